//! What proves a lease elsewhere: [`LeaseToken`].

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::fingerprint::Fingerprint;
use crate::key::{MAX_KEY_BYTES, RecordId};
use crate::label::Label;
use crate::owner::Owner;
use crate::record::{Record, Stamp};

/// What proves a lease, to be handed to another process: begin in the API, complete in the worker through
/// [`Engine::resume`](crate::Engine::resume). It serialises with serde (JSON and any other format).
///
/// Whoever holds it may finish the operation: send it over trusted channels only. It holds no key and no payload, but the
/// first 48 bytes of the scope.
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
    pub(crate) scope: Label,
    pub(crate) key: Option<Box<str>>,
}

impl LeaseToken {
    const VERSION: u8 = 1;

    /// The token of the grant that `record` holds for `owner`.
    pub(crate) fn of(id: RecordId, owner: Owner, record: &Record) -> LeaseToken {
        LeaseToken {
            id,
            owner,
            fence: record.fence,
            attempt: record.attempt,
            fingerprint: record.fingerprint,
            retention: record.retention,
            response_retention: record.response_retention,
            scope: record.scope,
            key: record.key.clone(),
        }
    }

    /// The fence of the grant: greater than that of every earlier grant of the key. Pass it to systems that can
    /// refuse what comes with a lower one.
    pub fn fence(&self) -> Stamp {
        self.fence
    }

    /// Which execution of the operation this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// See [`Lease::derive_key`].
    pub(crate) fn derive_key(&self, label: &str) -> String {
        let mut hasher = blake3::Hasher::new_derive_key("nevertwice 2026-11 downstream key v1");
        hasher.update(self.id.as_bytes());
        hasher.update(label.as_bytes());
        hex::encode(&hasher.finalize().as_bytes()[..16])
    }
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

/// A token as it is serialised.
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
    scope: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Box<str>>,
}

impl TryFrom<Wire> for LeaseToken {
    type Error = String;

    fn try_from(wire: Wire) -> Result<LeaseToken, String> {
        if wire.version != LeaseToken::VERSION {
            let known = LeaseToken::VERSION;
            return Err(format!("lease token of version {}, this release reads {known}", wire.version));
        }
        let Wire {
            id,
            owner,
            fence,
            attempt,
            fingerprint,
            retention,
            response_retention,
            scope,
            key,
            version: _,
        } = wire;
        // No engine writes anything else, and what a token says may be recorded.
        let plausible = (1..1 << 62).contains(&fence.0) && attempt > 0 && scope.len() <= Label::MAX_BYTES;
        if !plausible || key.as_ref().is_some_and(|key| key.len() > MAX_KEY_BYTES) {
            return Err("lease token with values that none has".to_owned());
        }
        let scope = Label::new(&scope);
        Ok(LeaseToken { id, owner, fence, attempt, fingerprint, retention, response_retention, scope, key })
    }
}

impl From<LeaseToken> for Wire {
    fn from(token: LeaseToken) -> Wire {
        let version = LeaseToken::VERSION;
        let LeaseToken { id, owner, fence, attempt, fingerprint, retention, response_retention, scope, key } =
            token;
        let scope = scope.as_str().into();
        Wire { version, id, owner, fence, attempt, fingerprint, retention, response_retention, scope, key }
    }
}
