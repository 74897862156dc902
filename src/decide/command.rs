//! The commands of the state machine and its replies.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::fingerprint::Fingerprint;
use crate::label::Label;
use crate::owner::Owner;
use crate::record::{Body, Record, Recovery, Retry, Stamp, State};
use crate::token::LeaseToken;

/// A request to change or read a key. `Debug` shows no content.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// Asks for the right to execute, or for the outcome.
    Begin(BeginParams),
    /// Continues a grant in another process.
    Resume(LeaseToken),
    /// Restarts the lease from now.
    Renew(LeaseToken),
    /// Stores bytes for the next attempt.
    Checkpoint(LeaseToken, Bytes),
    /// Marks that the effect may have happened.
    MarkEffect(LeaseToken),
    /// Records success.
    Complete(LeaseToken, Body),
    /// Records failure.
    Fail(LeaseToken, Body, Retry),
    /// Removes the record, as if the operation had never begun.
    Release(LeaseToken),
    /// An operator's resolution of an unresolved operation, if its fence is still this one.
    Resolve {
        /// The fence of the latest grant that the operator was shown.
        fence: Stamp,
        /// The stamp of the record that the operator was shown. With it the resolution is refused
        /// if anything changed since; `None` compares the fence only.
        stamp: Option<Stamp>,
        /// The resolution.
        resolution: Resolution,
    },
    /// An operator's correction of an earlier resolution, if the record's stamp is still this one.
    /// A rerun is refused unless `may_rerun` is set, since duplicates may already have received the
    /// outcome.
    Amend {
        /// The stamp of the record that the operator was shown.
        stamp: Stamp,
        /// The outcome that replaces the earlier one.
        resolution: Resolution,
        /// True if [`Resolution::Rerun`] is intended.
        may_rerun: bool,
    },
    /// Removes any record, on an operator's order.
    Forget,
    /// Frees the space of a response that is no longer returned.
    DropResponse,
}

/// The parameters of a begin. `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct BeginParams {
    /// The owner that asks.
    pub owner: Owner,
    /// True if the owner was drawn for this very call, so that no caller can have acted on one of
    /// its grants.
    pub owner_is_new: bool,
    /// The fingerprint of the request.
    pub fingerprint: Fingerprint,
    /// Another fingerprint that represents the same request: the old or new scheme during a
    /// deployment.
    pub also: Option<Fingerprint>,
    /// The length of the lease.
    pub lease: Duration,
    /// The retention of the record.
    pub retention: Duration,
    /// The retention of its response, if not as long as the record's.
    pub response_retention: Option<Duration>,
    /// The retention of the record once it is evidence of an effect that may have happened, if that
    /// is longer than its retention.
    pub unresolved_retention: Duration,
    /// The treatment of a crashed attempt.
    pub recovery: Recovery,
    /// True if the grant is to mark the effect, as if the holder had done so at once.
    pub assume_effect: bool,
    /// The number of attempts allowed.
    pub max_attempts: u32,
    /// The caller's name for itself, for operators.
    pub holder: Label,
    /// The label of the scope, for operators.
    pub scope: Label,
    /// The key, if the policy allows stores to see it.
    pub key: Option<Box<str>>,
}

/// An operator's settlement of an unresolved operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// It was done, with this response.
    Completed(Body),
    /// It failed for good, with this error.
    Failed(Body),
    /// It had no effect: the next begin executes, and attempts are counted from 1 again.
    Rerun,
}

/// The effect of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing changes, and this is the reply.
    Reply(Reply),
    /// Nothing changes, and the reply is the recorded response: [`Reply::replay`].
    Replay,
    /// The record becomes `next` (`None`: it is removed). Once that is written, `reply` is the
    /// reply.
    Write {
        /// The record that replaces the one that was decided on.
        next: Option<Box<Record>>,
        /// The reply.
        reply: Reply,
    },
}

/// The reply to a command. `Debug` shows no content.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// The caller holds the lease that the record now shows.
    Acquired,
    /// The operation completed with this response.
    Completed(Body),
    /// Another caller holds the lease.
    InProgress {
        /// The time to wait before a retry: whole seconds, from 1 to 30.
        retry_after: Duration,
        /// The remaining time of that lease, if it is not renewed.
        lease_remaining: Duration,
        /// The number of that attempt.
        attempt: u32,
    },
    /// The operation failed.
    Failed {
        /// The recorded error.
        error: Body,
        /// The time until a begin may execute again; `None`: never.
        retry_after: Option<Duration>,
    },
    /// The effect may have happened, or attempts are used up: an operator has to resolve it.
    Unresolved {
        /// The reason why no caller may execute.
        reason: Reason,
        /// The fence to pass to [`Command::Resolve`].
        fence: Stamp,
        /// The number of the last attempt.
        attempt: u32,
        /// The error that it recorded, if any.
        error: Option<Body>,
        /// The checkpoint that it left for the next attempt.
        checkpoint: Option<Bytes>,
    },
    /// The key was used for another request.
    Mismatch,
    /// The command has been carried out, now or before.
    Done {
        /// True if there was a record at that time.
        existed: bool,
    },
    /// The record does not show the token's grant, or no longer does.
    LeaseLost(Current),
    /// The token's grant was finished with another outcome, which is final.
    AlreadyFinished(Current),
    /// There is nothing to resolve, or not under this fence.
    NotResolvable(Current),
}

/// The reason why a key is unresolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// An attempt marked its effect, and then its lease expired.
    EffectMarked,
    /// The lease of an attempt expired, and the policy lets no crashed attempt be rerun.
    CrashedAttempt,
    /// An attempt failed and reported that its effect may have happened.
    Reported,
    /// The attempts that the policy allows are used up.
    AttemptsExhausted,
}

/// A summary of a key's present state, without any of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Current {
    /// The state.
    pub state: StateKind,
    /// The fence of the latest grant; zero if absent.
    pub fence: Stamp,
    /// The number of that attempt; zero if absent.
    pub attempt: u32,
}

/// The name of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// There is no record, or its retention is over.
    Absent,
    /// A caller has, or had, a lease.
    InProgress,
    /// The operation completed.
    Completed,
    /// The operation failed.
    Failed,
}

impl Command {
    /// Returns the body of an outcome.
    #[inline]
    pub(crate) fn body(&self) -> Option<&Body> {
        match self {
            Command::Complete(_, body) | Command::Fail(_, body, _) => Some(body),
            Command::Begin(_)
            | Command::Resume(_)
            | Command::Renew(_)
            | Command::Checkpoint(..)
            | Command::MarkEffect(_)
            | Command::Release(_)
            | Command::Resolve { .. }
            | Command::Amend { .. }
            | Command::Forget
            | Command::DropResponse => None,
        }
    }

    /// Returns the token of a command that a holder gives.
    pub(crate) fn token(&self) -> Option<&LeaseToken> {
        match self {
            Command::Resume(token)
            | Command::Renew(token)
            | Command::Checkpoint(token, _)
            | Command::MarkEffect(token)
            | Command::Complete(token, _)
            | Command::Fail(token, ..)
            | Command::Release(token) => Some(token),
            Command::Begin(_)
            | Command::Resolve { .. }
            | Command::Amend { .. }
            | Command::Forget
            | Command::DropResponse => None,
        }
    }
}

impl BeginParams {
    /// Returns true if a record with this fingerprint belongs to the same request.
    pub(super) fn accepts(&self, fingerprint: &Fingerprint) -> bool {
        self.fingerprint == *fingerprint || self.also.as_ref() == Some(fingerprint)
    }
}

impl Reply {
    /// The reply with the response of a completed record; `None` for any other record. It takes the
    /// record, since moving a response is cheaper than copying it.
    pub fn replay(record: Option<Box<Record>>) -> Option<Reply> {
        Reply::replay_of(record?.state)
    }

    /// [`replay`](Reply::replay) of a record in this state.
    pub(crate) fn replay_of(state: State) -> Option<Reply> {
        match state {
            State::Completed(response) => Some(Reply::Completed(response)),
            State::InProgress { .. } | State::Failed(..) => None,
        }
    }
}

impl Current {
    pub(crate) fn of(record: Option<&Record>) -> Current {
        record.map_or(Current { state: StateKind::Absent, fence: Stamp::ZERO, attempt: 0 }, |record| {
            let state = match &record.state {
                State::InProgress { .. } => StateKind::InProgress,
                State::Completed(_) => StateKind::Completed,
                State::Failed(..) => StateKind::Failed,
            };
            Current { state, fence: record.fence, attempt: record.attempt }
        })
    }
}

/// Bytes that `Debug` must not show.
struct Hidden<'a>(&'a Bytes);

impl fmt::Debug for Hidden<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Begin(params) => f.debug_tuple("Begin").field(params).finish(),
            Command::Resume(token) => f.debug_tuple("Resume").field(token).finish(),
            Command::Renew(token) => f.debug_tuple("Renew").field(token).finish(),
            Command::Checkpoint(token, bytes) => {
                f.debug_tuple("Checkpoint").field(token).field(&Hidden(bytes)).finish()
            }
            Command::MarkEffect(token) => f.debug_tuple("MarkEffect").field(token).finish(),
            Command::Complete(token, body) => f.debug_tuple("Complete").field(token).field(body).finish(),
            Command::Fail(token, body, retry) => {
                f.debug_tuple("Fail").field(token).field(body).field(retry).finish()
            }
            Command::Release(token) => f.debug_tuple("Release").field(token).finish(),
            Command::Resolve { fence, stamp, resolution } => f
                .debug_struct("Resolve")
                .field("fence", &fence.0)
                .field("stamp", &stamp.map(|stamp| stamp.0))
                .field("resolution", resolution)
                .finish(),
            Command::Amend { stamp, resolution, may_rerun } => f
                .debug_struct("Amend")
                .field("stamp", &stamp.0)
                .field("resolution", resolution)
                .field("may_rerun", may_rerun)
                .finish(),
            Command::Forget => f.write_str("Forget"),
            Command::DropResponse => f.write_str("DropResponse"),
        }
    }
}

impl fmt::Debug for BeginParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BeginParams")
            .field("fingerprint", &self.fingerprint)
            .field("lease", &self.lease)
            .field("retention", &self.retention)
            .field("recovery", &self.recovery)
            .field("assume_effect", &self.assume_effect)
            .field("max_attempts", &self.max_attempts)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Acquired => f.write_str("Acquired"),
            Reply::Completed(body) => f.debug_tuple("Completed").field(body).finish(),
            Reply::InProgress { retry_after, lease_remaining, attempt } => f
                .debug_struct("InProgress")
                .field("retry_after", retry_after)
                .field("lease_remaining", lease_remaining)
                .field("attempt", attempt)
                .finish(),
            Reply::Failed { error, retry_after } => {
                f.debug_struct("Failed").field("error", error).field("retry_after", retry_after).finish()
            }
            Reply::Unresolved { reason, fence, attempt, error, checkpoint } => f
                .debug_struct("Unresolved")
                .field("reason", reason)
                .field("fence", &fence.0)
                .field("attempt", attempt)
                .field("error", error)
                .field("checkpoint", &checkpoint.as_ref().map(Hidden))
                .finish(),
            Reply::Mismatch => f.write_str("Mismatch"),
            Reply::Done { existed } => f.debug_struct("Done").field("existed", existed).finish(),
            Reply::LeaseLost(current) => f.debug_tuple("LeaseLost").field(current).finish(),
            Reply::AlreadyFinished(current) => f.debug_tuple("AlreadyFinished").field(current).finish(),
            Reply::NotResolvable(current) => f.debug_tuple("NotResolvable").field(current).finish(),
        }
    }
}
