//! What can be asked of the state machine, and what it answers.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::error::Error;
use crate::fingerprint::Fingerprint;
use crate::label::Label;
use crate::owner::Owner;
use crate::policy::{Recovery, Retry};
use crate::record::{Body, Record, Stamp, State};
use crate::token::LeaseToken;

/// What somebody wants of a key. `Debug` shows no content.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// The right to execute, or what became of it.
    Begin(Ask),
    /// To go on with a grant in another process.
    Resume(LeaseToken),
    /// The lease from now on.
    Renew(LeaseToken),
    /// Bytes kept for the next attempt.
    Checkpoint(LeaseToken, Bytes),
    /// A mark that the effect may have happened.
    MarkEffect(LeaseToken),
    /// The outcome: done.
    Complete(LeaseToken, Body),
    /// The outcome: failed.
    Fail(LeaseToken, Body, Retry),
    /// As if it never began.
    Release(LeaseToken),
    /// An operator's word on an unresolved operation, if its fence still is this one.
    Resolve(Stamp, Resolution),
    /// An operator's correction of an operator's earlier word, if the record's stamp still is this
    /// one. A rerun is refused unless `may_rerun` is set: duplicates may have been told the outcome.
    Amend {
        /// The stamp of the record that the operator was shown.
        stamp: Stamp,
        /// The outcome that takes the place of the earlier one.
        resolution: Resolution,
        /// Whether [`Resolution::Rerun`] is meant.
        may_rerun: bool,
    },
    /// An operator's word to remove whatever there is.
    Forget,
    /// Frees the room of a response that is no longer given out.
    DropResponse,
}

/// The particulars of a begin. `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct Ask {
    /// Who asks.
    pub owner: Owner,
    /// Whether the owner was drawn for this very call, so that nobody has acted on any grant of its.
    pub owner_is_new: bool,
    /// What for.
    pub fingerprint: Fingerprint,
    /// Another fingerprint that stands for the same request: a deploy's old or new scheme.
    pub also: Option<Fingerprint>,
    /// How long a grant is to hold.
    pub lease: Duration,
    /// How long the record is to be kept.
    pub retention: Duration,
    /// How long its response is to be kept, if not as long as the record.
    pub response_retention: Option<Duration>,
    /// How long the record is to be kept once it is evidence of an effect that may have happened, if
    /// that is longer than its retention.
    pub unresolved_retention: Duration,
    /// What may be done about a crashed attempt.
    pub recovery: Recovery,
    /// How many attempts there may be.
    pub max_attempts: u32,
    /// What the asker calls itself, for operators.
    pub holder: Label,
    /// The label of the scope, for operators.
    pub scope: Label,
    /// The key, where the policy lets stores see it.
    pub key: Option<Box<str>>,
}

/// How an operator settles an unresolved operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// It was done, with this response.
    Completed(Body),
    /// It failed for good, with this error.
    Failed(Body),
    /// It had no effect: the next begin executes, and attempts are counted from 1 again.
    Rerun,
}

/// What is to be done about a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing changes, and this is the answer.
    Reply(Reply),
    /// The record becomes `next` (`None`: it is removed); once that is done, `reply` is the answer.
    Write {
        /// What takes the place of the record that was decided on.
        next: Option<Box<Record>>,
        /// The answer.
        reply: Reply,
    },
}

/// The answer to a command. `Debug` shows no content.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// The asker holds the lease that the record now shows.
    Acquired,
    /// It was done.
    Completed(Body),
    /// Somebody else is at it.
    InProgress {
        /// When to come back: whole seconds, from 1 to 30.
        retry_after: Duration,
        /// How long their lease still runs, if it is not renewed.
        lease_remaining: Duration,
        /// Which execution theirs is.
        attempt: u32,
    },
    /// It failed.
    Failed {
        /// The recorded error.
        error: Body,
        /// When a begin may execute again; `None`: never.
        retry_after: Option<Duration>,
    },
    /// The effect may have happened, or attempts are used up: somebody has to look.
    Unresolved {
        /// Why nobody may execute.
        reason: Reason,
        /// What to pass to [`Command::Resolve`].
        fence: Stamp,
        /// Which execution was the last.
        attempt: u32,
        /// The error recorded by it, if any.
        error: Option<Body>,
        /// What it left for the next.
        checkpoint: Option<Bytes>,
    },
    /// The key was used for another request.
    Mismatch,
    /// The command has been carried out, now or before.
    Done {
        /// Whether there was a record when it was.
        existed: bool,
    },
    /// The token's grant is not, or no longer, what the record shows.
    LeaseLost(Current),
    /// The token's grant was finished with another outcome, which stands.
    AlreadyFinished(Current),
    /// There is nothing to resolve, or not under this fence.
    NotResolvable(Current),
}

/// Why a key is unresolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// An attempt ran out of its lease after it had marked its effect.
    EffectMarked,
    /// An attempt ran out of its lease, and the policy lets no crashed attempt be rerun.
    CrashedAttempt,
    /// An attempt failed and said that its effect may have happened.
    Reported,
    /// Every attempt that the policy allows was made.
    AttemptsExhausted,
}

/// What a key shows at present, without any of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Current {
    /// Its state.
    pub state: StateKind,
    /// The fence of its latest grant; zero if absent.
    pub fence: Stamp,
    /// Which execution that was; zero if absent.
    pub attempt: u32,
}

/// The name of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// There is no record, or its retention is over.
    Absent,
    /// Somebody has, or had, a lease.
    InProgress,
    /// Done.
    Completed,
    /// Failed.
    Failed,
}

impl Command {
    /// The token that the command is given by, if a holder gives it.
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
            | Command::Resolve(..)
            | Command::Amend { .. }
            | Command::Forget
            | Command::DropResponse => None,
        }
    }
}

impl Ask {
    /// Whether a record with this fingerprint is of the same request.
    pub(super) fn accepts(&self, fingerprint: &Fingerprint) -> bool {
        self.fingerprint == *fingerprint || self.also.as_ref() == Some(fingerprint)
    }
}

impl Reply {
    /// The answer to a command that is either carried out or refused.
    pub(crate) fn into_done(self) -> Result<(), Error> {
        match self {
            Reply::Done { .. } => Ok(()),
            Reply::LeaseLost(current) => Err(Error::LeaseLost { current }),
            Reply::AlreadyFinished(current) => Err(Error::AlreadyFinished { current }),
            Reply::NotResolvable(current) => Err(Error::NotResolvable { current }),
            // Only a begin is answered so; should another command be, it was not carried out.
            Reply::Acquired
            | Reply::Completed(_)
            | Reply::InProgress { .. }
            | Reply::Failed { .. }
            | Reply::Unresolved { .. }
            | Reply::Mismatch => Err(Error::LeaseLost { current: Current::of(None) }),
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

/// Bytes that must not show.
struct Hidden<'a>(&'a Bytes);

impl fmt::Debug for Hidden<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Begin(ask) => f.debug_tuple("Begin").field(ask).finish(),
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
            Command::Resolve(fence, resolution) => {
                f.debug_tuple("Resolve").field(fence).field(resolution).finish()
            }
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

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask")
            .field("fingerprint", &self.fingerprint)
            .field("lease", &self.lease)
            .field("retention", &self.retention)
            .field("recovery", &self.recovery)
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
