//! The best of the other Rust libraries, `idempotent` 2.0, used as its README says.

use std::sync::Arc;
use std::time::Duration;

use idempotent::memory::MemoryStore;
use idempotent::valkey::ValkeyStore;
use idempotent::{
    CachedResponse, ClaimOutcome, FencedOutcome, IdempotencyKey, IdempotencyStore, Metadata, ReplayOutcome,
};

use crate::side::{LEASE_MS, RETENTION_MS, Side, response};

pub(crate) struct Peer<S>(Arc<S>);

impl<S> Clone for Peer<S> {
    fn clone(&self) -> Peer<S> {
        Peer(self.0.clone())
    }
}

pub(crate) fn memory() -> Peer<MemoryStore> {
    Peer(Arc::new(MemoryStore::builder().try_build().expect("a runtime is there")))
}

pub(crate) async fn redis(url: &str) -> Peer<ValkeyStore> {
    let store = ValkeyStore::with_url(url).prefix("peer").try_build().await;
    Peer(Arc::new(store.expect("the server answers")))
}

const LEASE: Duration = Duration::from_millis(LEASE_MS);
/// The request. The peer takes the fingerprint of the request itself: a short one keeps that cost
/// negligible.
const REQUEST: (&str, &[u8]) = ("charges", b"{}");

impl<S: IdempotencyStore> Side for Peer<S> {
    async fn fresh(&self, key: String) {
        let key = IdempotencyKey::new(key).expect("a key");
        let claim = self.0.claim(&key, LEASE).fingerprint(REQUEST.0, REQUEST.1).try_insert().await;
        let ClaimOutcome::Claimed(guard) = claim.expect("the store answers") else {
            panic!("a new key is claimed")
        };
        let response = CachedResponse::new(200, Metadata::new(), response().into());
        let completed = guard.complete(response, Duration::from_millis(RETENTION_MS)).await;
        assert!(matches!(completed, Ok(FencedOutcome::Applied)));
    }

    async fn replay(&self, key: String) {
        let key = IdempotencyKey::new(key).expect("a key");
        let claim = self.0.claim(&key, LEASE).fingerprint(REQUEST.0, REQUEST.1).try_insert().await;
        let Ok(ClaimOutcome::Exists { existing, fingerprint }) = claim else {
            panic!("a completed key is not claimed")
        };
        assert!(matches!(existing.replay(fingerprint), ReplayOutcome::Replayed(_)));
    }
}
