//! The transferable proof of a lease: [`LeaseToken`].

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fingerprint::Fingerprint;
use crate::key::{MAX_TYPED_KEY_BYTES, RecordId};
use crate::label::Label;
use crate::owner::Owner;
use crate::record::{Record, Stamp};
use crate::store_id::StoreId;

/// The proof of a lease, to be passed to another process: begin in the API, complete in the worker
/// through [`Engine::resume`](crate::Engine::resume). It serialises with serde (JSON and any other
/// format).
///
/// Any process that holds it may finish the operation: send it over trusted channels only. It
/// contains no payload and no key, but the first 48 bytes of the scope.
///
/// ```
/// use nevertwice::{Begin, Engine, LeaseToken, MemoryStore, Request};
/// # futures_executor::block_on(async {
/// let engine = Engine::builder(MemoryStore::new()).build()?;
/// let Begin::Acquired(lease) = engine.begin(&Request::new("exports", "2026-11")?).await? else { panic!() };
/// let message: String = serde_json::to_string(&lease.token())?;
///
/// // ... in the worker:
/// let token: LeaseToken = serde_json::from_str(&message)?;
/// engine.resume(&token).await?.complete("done").await?;
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Wire", into = "Wire")]
pub struct LeaseToken {
    pub(crate) id: RecordId,
    pub(crate) owner: Owner,
    pub(crate) fence: Stamp,
    pub(crate) attempt: u32,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) retention: Duration,
    pub(crate) response_retention: Option<Duration>,
    pub(crate) unresolved_retention: Duration,
    pub(crate) scope: Label,
    pub(crate) key: Option<Box<str>>,
    pub(crate) origin: Origin,
}

/// The store that made a grant, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) store: StoreId,
    /// True if the grant was made in a transaction of the application's. If its record is absent,
    /// the transaction was rolled back, and the effect with it.
    pub(crate) in_transaction: bool,
}

impl LeaseToken {
    /// The version that this release writes, and the only one that it reads. A field that readers
    /// may ignore needs no new version.
    const VERSION: u8 = 2;

    /// Returns the token of the grant that `record` holds for `owner`, made with this
    /// `unresolved_retention`.
    pub(crate) fn of(
        id: RecordId,
        owner: Owner,
        record: &Record,
        unresolved_retention: Duration,
        origin: Origin,
    ) -> LeaseToken {
        LeaseToken {
            id,
            owner,
            fence: record.fence,
            attempt: record.attempt,
            fingerprint: record.fingerprint,
            retention: record.retention,
            response_retention: record.response_retention,
            unresolved_retention,
            scope: record.scope,
            key: record.key.clone(),
            origin,
        }
    }

    /// Returns the identity of the store that made the grant.
    pub fn store(&self) -> StoreId {
        self.origin.store
    }

    /// Returns the fence of the grant: greater than that of every earlier grant of the key. Pass it
    /// to systems that can refuse requests with a lower fence.
    pub fn fence(&self) -> Stamp {
        self.fence
    }

    /// Returns the number of this attempt, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// See [`Lease::derive_key`].
    pub(crate) fn derive_key(&self, label: &str) -> String {
        derive_key(&self.id, label)
    }
}

/// Returns the downstream key of the operation under `id` for `label`.
pub(crate) fn derive_key(id: &RecordId, label: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("nevertwice 2026-11 downstream key v1");
    hasher.update(id.as_bytes());
    hasher.update(label.as_bytes());
    hex::encode(&hasher.finalize().as_bytes()[..16])
}

impl fmt::Debug for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseToken")
            .field("id", &self.id)
            .field("fence", &self.fence.0)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// The serialised form of a token. Fields that a later release adds are ignored.
#[derive(Serialize, Deserialize)]
struct Wire {
    version: u8,
    id: RecordId,
    owner: Owner,
    fence: Stamp,
    attempt: u32,
    fingerprint: Fingerprint,
    retention: Duration,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    response_retention: Option<Duration>,
    unresolved_retention: Duration,
    scope: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Box<str>>,
    store: StoreId,
    #[serde(default)]
    in_transaction: bool,
}

impl TryFrom<Wire> for LeaseToken {
    type Error = String;

    fn try_from(wire: Wire) -> Result<LeaseToken, String> {
        if wire.version != LeaseToken::VERSION {
            let known = LeaseToken::VERSION;
            return Err(format!("lease token of version {}, this release reads {known}", wire.version));
        }
        // No engine writes other values, and the contents of a token may be recorded.
        let Wire { fence, attempt, ref scope, ref key, .. } = wire;
        let plausible = (1..1 << 62).contains(&fence.0) && attempt > 0 && scope.len() <= Label::MAX_BYTES;
        if !plausible || key.as_ref().is_some_and(|key| key.len() > MAX_TYPED_KEY_BYTES) {
            return Err("lease token with invalid values".to_owned());
        }
        Ok(LeaseToken {
            id: wire.id,
            owner: wire.owner,
            fence,
            attempt,
            fingerprint: wire.fingerprint,
            retention: wire.retention,
            response_retention: wire.response_retention,
            unresolved_retention: wire.unresolved_retention,
            scope: Label::new(&wire.scope),
            key: wire.key,
            origin: Origin { store: wire.store, in_transaction: wire.in_transaction },
        })
    }
}

impl From<LeaseToken> for Wire {
    fn from(token: LeaseToken) -> Wire {
        Wire {
            version: LeaseToken::VERSION,
            id: token.id,
            owner: token.owner,
            fence: token.fence,
            attempt: token.attempt,
            fingerprint: token.fingerprint,
            retention: token.retention,
            response_retention: token.response_retention,
            unresolved_retention: token.unresolved_retention,
            scope: token.scope.as_str().into(),
            key: token.key,
            store: token.origin.store,
            in_transaction: token.origin.in_transaction,
        }
    }
}
