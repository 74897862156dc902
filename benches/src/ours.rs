//! This crate, through its public API.

use nevertwice::backends::memory::MemoryStoreBuilder;
use nevertwice::store::Store;
use nevertwice::{Begin, Engine, Fingerprint, MemoryStore, Request, Scope};

use crate::side::{SCOPE, Side, key, response};

/// Returns a memory store with enough room: its default limit is a million records.
pub(crate) fn memory() -> MemoryStoreBuilder {
    MemoryStore::builder().max_records(1 << 30).max_bytes(1 << 40)
}

#[derive(Clone)]
pub(crate) struct Ours {
    pub(crate) engine: Engine,
    scope: Scope,
    /// Made in advance: its cost is a separate figure.
    fingerprint: Fingerprint,
}

impl Ours {
    pub(crate) fn new(store: impl Store) -> Ours {
        Ours {
            engine: Engine::builder(store).build().expect("the default policy is sound"),
            scope: Scope::new(SCOPE).expect("a scope"),
            fingerprint: Fingerprint::of([b'p'; 1024]),
        }
    }

    pub(crate) fn request(&self, key: String) -> Request {
        Request::new(&self.scope, key).expect("a key").fingerprint(self.fingerprint)
    }
}

impl Side for Ours {
    async fn fresh(&self, key: String) {
        match self.engine.begin(&self.request(key)).await {
            Ok(Begin::Acquired(lease)) => lease.complete(response()).await.expect("the lease is new"),
            other => panic!("a new key is granted, not {other:?}"),
        }
    }

    async fn replay(&self, key: String) {
        match self.engine.begin(&self.request(key)).await {
            Ok(Begin::Completed(done)) => assert!(done.response().is_some()),
            other => panic!("a completed key is replayed, not {other:?}"),
        }
    }

    async fn fill(&self, numbers: std::ops::Range<u64>) {
        const BATCH: usize = 2048;
        let mut rest = numbers;
        while !rest.is_empty() {
            let requests: Vec<_> =
                rest.by_ref().take(BATCH).map(|number| self.request(key(number))).collect();
            let begins = self.engine.begin_many(&requests).await;
            let leases: Vec<_> = begins
                .into_iter()
                .map(|begin| match begin {
                    Ok(Begin::Acquired(lease)) => lease,
                    other => panic!("a new key is granted, not {other:?}"),
                })
                .collect();
            let outcomes: Vec<_> = leases.iter().map(|lease| (lease, response().into())).collect();
            for completed in self.engine.complete_many(&outcomes).await {
                completed.expect("the lease is new");
            }
        }
    }
}
