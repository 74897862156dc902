//! The operator's view of a key: [`Inspection`].

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::decide::{Reason, StateKind, unresolved_reason};
use crate::policy::Policy;
use crate::record::{Body, Record, Recovery, Retry, Stamp, State};
use crate::store::Snapshot;

/// A record without its content: made by [`Engine::inspect`](crate::Engine::inspect). `Debug` does
/// not show the key.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// The state of the operation.
    pub state: StateKind,
    /// Its scope in typed form ([`Scope`](crate::Scope)), cut to at most 48 bytes; a cut scope ends
    /// in `…`.
    pub scope: String,
    /// Its key in typed form ([`Key`](crate::Key)), if the policy lets stores see keys.
    pub key: Option<String>,
    /// The number of the last execution, from 1; 0 after a resolution to rerun.
    pub attempt: u32,
    /// The fence of the latest grant, to pass to [`Engine::resolve`](crate::Engine::resolve).
    pub fence: Stamp,
    /// The stamp of the record, to pass to [`Engine::amend`](crate::Engine::amend). Every write
    /// changes it: see [`Engine::resolve_shown`](crate::Engine::resolve_shown).
    pub stamp: Stamp,
    /// The time since the record was last written, in the store's time.
    pub age: Duration,
    /// The time since the latest execution was granted.
    pub granted_ago: Duration,
    /// The name of the lease's holder ([`Policy::holder`](crate::Policy::holder)).
    pub holder: Option<String>,
    /// The remaining time of the lease: zero if it has expired, `None` if the operation is
    /// finished.
    pub lease_remaining: Option<Duration>,
    /// The time for which the record is still kept, if nothing changes.
    pub kept_for: Duration,
    /// True if an attempt in progress has marked its effect.
    pub effect_marked: bool,
    /// The recovery that the grant of an attempt in progress was requested with.
    pub recovery: Option<Recovery>,
    /// True if the effect may have happened and the operation is not settled: no lease runs, and
    /// the record is kept until it is settled, at most for [`kept_for`](Inspection::kept_for).
    pub unresolved: bool,
    /// True if an operator settled it, so that it can be [amended](crate::Engine::amend).
    pub resolved: bool,
    /// The retry disposition of a failure.
    pub retry: Option<Retry>,
    /// The length of the checkpoint in bytes.
    pub checkpoint_bytes: Option<usize>,
    /// The length of the response or error in bytes, kept or not.
    pub body_bytes: Option<u64>,
    /// The length of its head in bytes.
    pub head_bytes: Option<usize>,
    reason: Option<Reason>,
}

impl Inspection {
    /// The reason for which a begin would return `Unresolved`; `None` if it would not. An attempt
    /// whose lease expired is judged by the recovery of its grant, and attempts are counted against
    /// the policy of the inspecting engine.
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    pub(crate) fn of(snapshot: &Snapshot, policy: &Policy) -> Option<Inspection> {
        let now = snapshot.now;
        let record = snapshot.record.as_ref().filter(|record| record.is_kept(now))?;
        let (state, retry, body) = match &record.state {
            State::InProgress { .. } => (StateKind::InProgress, None, None),
            State::Completed(body) => (StateKind::Completed, None, Some(body)),
            State::Failed(body, retry) => (StateKind::Failed, Some(*retry), Some(body)),
        };
        let recovery = match &record.state {
            State::InProgress { recovery, .. } => Some(*recovery),
            State::Completed(_) | State::Failed(..) => None,
        };
        let reason = unresolved_reason(now, record, recovery.unwrap_or(policy.recovery), policy.max_attempts);
        Some(Inspection {
            state,
            scope: record.scope.to_string(),
            key: record.key.as_ref().map(ToString::to_string),
            attempt: record.attempt,
            fence: record.fence,
            stamp: record.stamp,
            age: now.since(record.stamp),
            granted_ago: now.since(record.fence),
            holder: holder(&record.state),
            lease_remaining: record.lease_remaining(now),
            kept_for: Record::deadline(record).since(now),
            effect_marked: record.is_effect_marked(),
            recovery,
            unresolved: record.is_unsettled(now),
            resolved: record.resolved,
            retry,
            checkpoint_bytes: record.checkpoint.as_ref().map(|bytes| bytes.len()),
            body_bytes: body.map(Body::length),
            head_bytes: body.map(|body| body.head().len()),
            reason,
        })
    }
}

fn holder(state: &State) -> Option<String> {
    match state {
        State::InProgress { holder, .. } if !holder.is_empty() => Some(holder.to_string()),
        State::InProgress { .. } | State::Completed(_) | State::Failed(..) => None,
    }
}

/// The content of a record: made by [`Engine::content`](crate::Engine::content). `Debug` shows
/// lengths only.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Content {
    /// The response of a completed operation, if it is kept.
    pub response: Option<Bytes>,
    /// The error of a failed operation, if it is kept.
    pub error: Option<Bytes>,
    /// The checkpoint that an attempt saved for the next.
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
            .field("stamp", &self.stamp.0)
            .field("age", &self.age)
            .field("granted_ago", &self.granted_ago)
            .field("holder", &self.holder)
            .field("lease_remaining", &self.lease_remaining)
            .field("kept_for", &self.kept_for)
            .field("effect_marked", &self.effect_marked)
            .field("recovery", &self.recovery)
            .field("unresolved", &self.unresolved)
            .field("reason", &self.reason)
            .field("resolved", &self.resolved)
            .field("retry", &self.retry)
            .field("checkpoint_bytes", &self.checkpoint_bytes)
            .field("body_bytes", &self.body_bytes)
            .field("head_bytes", &self.head_bytes)
            .finish_non_exhaustive()
    }
}
