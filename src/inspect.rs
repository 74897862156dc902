//! What operators see of a key: [`Inspection`].

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::decide::StateKind;
use crate::policy::Retry;
use crate::record::{Body, Record, Stamp, State};
use crate::store::Snapshot;

/// What is recorded under a key, without its content: made by [`Engine::inspect`](crate::Engine::inspect). `Debug` does
/// not show the key.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// Where the operation stands.
    pub state: StateKind,
    /// The first 48 bytes of its scope.
    pub scope: String,
    /// Its key, if the policy says that stores may see it.
    pub key: Option<String>,
    /// Which execution was the last, from 1; 0 after a resolution to rerun.
    pub attempt: u32,
    /// The fence of the latest grant: what [`Engine::resolve`](crate::Engine::resolve) asks for.
    pub fence: Stamp,
    /// How long ago the record was last written, in the store's time.
    pub age: Duration,
    /// How long ago the latest execution was granted.
    pub granted_ago: Duration,
    /// What the holder of a lease calls itself ([`Policy::holder`](crate::Policy::holder)).
    pub holder: Option<String>,
    /// How long a lease still runs: zero if it is over, `None` if the operation is finished.
    pub lease_remaining: Option<Duration>,
    /// How long the record is still kept.
    pub kept_for: Duration,
    /// Whether an attempt in progress has marked its effect.
    pub effect_marked: bool,
    /// What a failure said about retrying.
    pub retry: Option<Retry>,
    /// How long the checkpoint is, in bytes.
    pub checkpoint_bytes: Option<usize>,
    /// How long the response or error is, in bytes, kept or not.
    pub body_bytes: Option<u64>,
}

impl Inspection {
    pub(crate) fn of(snapshot: &Snapshot) -> Option<Inspection> {
        let now = snapshot.now;
        let record = snapshot.record.as_ref().filter(|record| record.is_kept(now))?;
        let (state, lease, effect_marked, retry, body) = match &record.state {
            State::InProgress { lease, effect, .. } => {
                (StateKind::InProgress, Some(*lease), *effect, None, None)
            }
            State::Completed(body) => (StateKind::Completed, None, false, None, Some(body)),
            State::Failed(body, retry) => (StateKind::Failed, None, false, Some(*retry), Some(body)),
        };
        Some(Inspection {
            state,
            scope: record.scope.to_string(),
            key: record.key.as_ref().map(ToString::to_string),
            attempt: record.attempt,
            fence: record.fence,
            age: now.since(record.stamp),
            granted_ago: now.since(record.fence),
            holder: holder(&record.state),
            lease_remaining: lease.map(|lease| record.stamp.after(lease).since(now)),
            kept_for: Record::deadline(record).since(now),
            effect_marked,
            retry,
            checkpoint_bytes: record.checkpoint.as_ref().map(|bytes| bytes.len()),
            body_bytes: body.map(Body::length),
        })
    }
}

fn holder(state: &State) -> Option<String> {
    match state {
        State::InProgress { holder, .. } if !holder.is_empty() => Some(holder.to_string()),
        State::InProgress { .. } | State::Completed(_) | State::Failed(..) => None,
    }
}

/// What is recorded under a key: made by [`Engine::content`](crate::Engine::content). `Debug` shows lengths only.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Content {
    /// The response of a completed operation, if it is kept.
    pub response: Option<Bytes>,
    /// The error of a failed one, if it is kept.
    pub error: Option<Bytes>,
    /// What an attempt saved for the next.
    pub checkpoint: Option<Bytes>,
}

impl Content {
    pub(crate) fn of(snapshot: &Snapshot) -> Option<Content> {
        let record = snapshot.record.as_ref().filter(|record| record.is_kept(snapshot.now))?;
        let (response, error) = match &record.state {
            State::Completed(body) => (body.bytes().cloned(), None),
            State::Failed(body, _) => (None, body.bytes().cloned()),
            State::InProgress { .. } => (None, None),
        };
        Some(Content { response, error, checkpoint: record.checkpoint.clone() })
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = |bytes: &Option<Bytes>| bytes.as_ref().map(Bytes::len);
        f.debug_struct("Content")
            .field("response_bytes", &length(&self.response))
            .field("error_bytes", &length(&self.error))
            .field("checkpoint_bytes", &length(&self.checkpoint))
            .finish()
    }
}

impl fmt::Debug for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inspection")
            .field("state", &self.state)
            .field("scope", &self.scope)
            .field("attempt", &self.attempt)
            .field("fence", &self.fence.0)
            .field("age", &self.age)
            .field("granted_ago", &self.granted_ago)
            .field("holder", &self.holder)
            .field("lease_remaining", &self.lease_remaining)
            .field("kept_for", &self.kept_for)
            .field("effect_marked", &self.effect_marked)
            .field("retry", &self.retry)
            .field("checkpoint_bytes", &self.checkpoint_bytes)
            .field("body_bytes", &self.body_bytes)
            .finish_non_exhaustive()
    }
}
