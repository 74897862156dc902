//! How an engine behaves: [`Policy`] with its defaults, [`Recovery`] after a crash, [`Retry`] after a failure.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error as ThisError;

use crate::error::Error;
use crate::record::Body;
use crate::store_id::StoreId;
use crate::token::LeaseToken;

/// What a failed operation's next begin may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Retry {
    /// Certainly no effect: the next begin executes.
    Now,
    /// Certainly no effect, but not before this time is over: stops retry storms.
    After(Duration),
    /// Definite: the error is replayed for as long as the record is kept.
    Never,
    /// The effect may have happened: nobody executes until somebody resolves it.
    Unresolved,
}

/// What a begin may do about an attempt whose lease is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Recovery {
    /// Execute again. For operations that are idempotent themselves.
    Rerun,
    /// Execute again unless the attempt had marked its effect. The default.
    #[default]
    RerunUnlessEffect,
    /// Never execute again: every crash is left to somebody who looks.
    Never,
}

/// What becomes of a response or error that is longer than the policy's `max_response`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Oversized {
    /// The operation is finished, and a marker takes the place of the bytes. The default: what was done is recorded.
    #[default]
    Marker,
    /// The finish is refused with [`Error::TooLarge`], for the handler to finish with something shorter. If it does not, the lease
    /// runs out.
    Refuse,
}

/// Every knob of an [`Engine`](crate::Engine), with its default. Set through [`Engine::builder`](crate::Engine::builder);
/// the first five can be overridden for one [`Request`](crate::Request).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// How long a grant holds. **Default 30 s.** Longer than the slowest call that is waited for under it; a
    /// crash blocks its key for that long. *Too short*: a slow worker is overtaken, and its result refused.
    pub lease: Duration,
    /// How long a record is kept from its last change on. **Default 24 h**, as Stripe does. Longer than the longest retry
    /// window of any caller. *Too short*: a late retry executes again. *Long* costs storage.
    pub retention: Duration,
    /// What happens to a crashed attempt. **Default [`Recovery::RerunUnlessEffect`].**
    pub recovery: Recovery,
    /// How often an operation is executed in all before it is left to somebody who looks. **Default: no limit.**
    pub max_attempts: u32,
    /// The longest response or error that is kept, in bytes. **Default 1 MiB.** What is longer is replaced by a marker:
    /// duplicates get the outcome without a body, and nothing is rerun.
    pub max_response: usize,
    /// What becomes of a longer one. **Default [`Oversized::Marker`].**
    pub oversized: Oversized,
    /// How long evidence of an effect that may have happened is kept while nobody settles it: a record
    /// whose effect was marked and whose lease is over, or that failed [`Retry::Unresolved`]. **Default
    /// 90 days.** At least the retention; [`Duration::MAX`] is for ever. *Too short*: the key is new
    /// again although the effect may have happened. *Long*: callers who can provoke such failures fill
    /// the store; watch [`unfinished`](crate::Engine::unfinished).
    pub unresolved_retention: Duration,
    /// How long a response or error is given out, if not as long as the record is kept. **Default: as long.** After that,
    /// duplicates get `Completed` without a response until the [`retention`](Policy::retention) ends. The room is freed by
    /// [`Engine::purge_regularly`](crate::Engine::purge_regularly), which reads the whole store for it.
    pub response_retention: Option<Duration>,
    /// The longest checkpoint, in bytes. **Default 64 KiB.** A longer one is refused.
    pub max_checkpoint: usize,
    /// When a call gives up repeating itself, and on a store that does not answer. **Default 5 s.** What
    /// it was about to write may or may not stand then.
    pub call_timeout: Duration,
    /// When a finish ([`complete`](crate::Lease::complete), [`fail`](crate::Lease::fail), and what
    /// [`run`](crate::Engine::run) records) gives up: what was done must not be forgotten because the
    /// store was away for some seconds. **Default: when the lease ends, but not before the
    /// `call_timeout`.** *Shorter*: what was done is executed again, or left to somebody who looks.
    /// *Long leases* on a store that is down hold up their finishes for as long.
    pub finish_timeout: Option<Duration>,
    /// How long [`Engine::run`](crate::Engine::run) waits for a duplicate in flight. **Default 30 s.**
    pub run_wait: Duration,
    /// How many callers may wait at a time. **Default 10 000.** One more is told `InProgress` at once. A waiter costs some
    /// hundred bytes and a timer; all waiters of one key share one look at the store.
    pub max_waiters: usize,
    /// What this process calls itself, for operators who [`inspect`](crate::Engine::inspect) what it holds: a host's or a
    /// pod's name. Its first 48 bytes are stored while a lease runs. **Default: nothing.**
    pub holder: String,
    /// Whether stores may see keys in the clear, for operators. **Default no**: keys can be secrets or personal
    /// data, and a digest is enough to find a record.
    pub keep_keys: bool,
    /// How long the application lets an operation run at most: no lease may be shorter, of the policy or
    /// of a request. **Default: not stated.**
    pub handler_timeout: Duration,
    /// How long after its first try a caller may still retry (Stripe's webhooks: 3 days): no retention
    /// may be shorter, of the policy or of a request. **Default: not stated.**
    pub retry_horizon: Duration,
    /// Other stores whose lease tokens are accepted as this store's own: names that it had before a
    /// prefix, a database or a table was renamed. **Default: none.**
    pub accept_tokens_from: Vec<StoreId>,
    /// How many callers may wait for one key at a time, of the [`max_waiters`](Policy::max_waiters) in all. **Default 1 000.** One
    /// more is told `InProgress` at once, so that a storm of duplicates leaves places to others.
    pub max_waiters_per_key: usize,
    /// The same for one scope, counted by all of it and not by what operators see of it. **Default 5 000**: one tenant cannot
    /// take every place. *Too low* for a service with a single scope: its duplicates poll.
    pub max_waiters_per_scope: usize,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            lease: Duration::from_secs(30),
            retention: Duration::from_secs(24 * 3600),
            recovery: Recovery::default(),
            max_attempts: u32::MAX,
            max_response: 1 << 20,
            oversized: Oversized::default(),
            unresolved_retention: Duration::from_secs(90 * 24 * 3600),
            response_retention: None,
            max_checkpoint: 1 << 16,
            call_timeout: Duration::from_secs(5),
            finish_timeout: None,
            run_wait: Duration::from_secs(30),
            max_waiters: 10_000,
            holder: String::new(),
            keep_keys: false,
            handler_timeout: Duration::ZERO,
            retry_horizon: Duration::ZERO,
            accept_tokens_from: Vec::new(),
            max_waiters_per_key: 1_000,
            max_waiters_per_scope: 5_000,
        }
    }
}

impl Policy {
    /// Whether the windows can be safe, apart from what the builder knows of callers and store.
    pub(crate) fn check(&self) -> Result<(), PolicyError> {
        check_windows(self.lease, self.retention, self.max_attempts)?;
        self.check_horizons(self.lease, self.retention)?;
        covers("unresolved_retention", self.unresolved_retention, "retention", self.retention)?;
        if self.call_timeout.is_zero() {
            return Err(PolicyError::Zero { what: "call_timeout" });
        }
        if self.finish_timeout.is_some_and(|limit| limit.is_zero()) {
            return Err(PolicyError::Zero { what: "finish_timeout" });
        }
        if self.response_retention.is_some_and(|kept| kept.is_zero()) {
            return Err(PolicyError::Zero { what: "response_retention" });
        }
        Ok(())
    }

    /// Refuses windows, of the policy or of a request, that are shorter than what the application states of
    /// its handlers and callers.
    pub(crate) fn check_horizons(&self, lease: Duration, retention: Duration) -> Result<(), PolicyError> {
        covers("lease", lease, "handler_timeout", self.handler_timeout)?;
        covers("retention", retention, "retry_horizon", self.retry_horizon)
    }

    /// Refuses a token of another store than `store`.
    pub(crate) fn check_origin(&self, token: &LeaseToken, store: StoreId) -> Result<(), Error> {
        let origin = token.store();
        if origin == store || self.accept_tokens_from.contains(&origin) {
            return Ok(());
        }
        Err(Error::WrongStore { token: origin, store })
    }

    /// A response or error as it is recorded.
    pub(crate) fn body(&self, what: &'static str, bytes: Bytes) -> Result<Body, Error> {
        let (length, limit) = (bytes.len(), self.max_response);
        match self.oversized {
            Oversized::Refuse if length > limit => Err(Error::TooLarge { what, bytes: length, limit }),
            Oversized::Refuse | Oversized::Marker => Ok(Body::new(bytes, limit)),
        }
    }
}

/// Refuses windows that no caller can be safe with.
pub(crate) fn check_windows(
    lease: Duration,
    retention: Duration,
    max_attempts: u32,
) -> Result<(), PolicyError> {
    if lease.is_zero() {
        return Err(PolicyError::Zero { what: "lease" });
    }
    if max_attempts == 0 {
        return Err(PolicyError::Zero { what: "max_attempts" });
    }
    covers("retention", retention, "lease", lease)
}

fn covers(what: &'static str, is: Duration, than: &'static str, least: Duration) -> Result<(), PolicyError> {
    if is < least { Err(PolicyError::TooShort { what, is, than, least }) } else { Ok(()) }
}

/// Why a policy was refused: windows that cannot be safe, or a store that cannot keep what is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum PolicyError {
    /// A duration or a count that must not be zero.
    #[error("{what} is 0")]
    Zero {
        /// Which.
        what: &'static str,
    },
    /// A window that must not be shorter than another.
    #[error("{what} of {is:?} is shorter than the {than} of {least:?}")]
    TooShort {
        /// The window that is too short.
        what: &'static str,
        /// How long it is.
        is: Duration,
        /// What it must cover.
        than: &'static str,
        /// How long that is.
        least: Duration,
    },
    /// The store keeps less than the application requires.
    #[error("the store's durability is {has}, {required} is required")]
    Durability {
        /// What the store says of itself.
        has: Durability,
        /// What was asked for.
        required: Durability,
    },
}

/// What a store's acknowledged writes survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Durability {
    /// Nothing: gone with the process.
    Memory,
    /// The process, or the server, killed with `kill -9`.
    Process,
    /// A power cut.
    Power,
    /// The loss of the primary: this many replicas have the write too. (A failover is still no consensus.)
    Replicated(u8),
}

impl Durability {
    /// Whether a store of this level keeps what `required` promises. Replicas survive a killed
    /// process, but do not stand in for a synced disk.
    pub fn satisfies(self, required: Durability) -> bool {
        match (self, required) {
            (_, Durability::Memory) => true,
            (Durability::Memory, Durability::Process | Durability::Power | Durability::Replicated(_)) => {
                false
            }
            (Durability::Process | Durability::Power | Durability::Replicated(_), Durability::Process) => {
                true
            }
            (has, Durability::Power) => has == Durability::Power,
            (Durability::Replicated(has), Durability::Replicated(required)) => has >= required,
            (Durability::Process | Durability::Power, Durability::Replicated(_)) => false,
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Durability::Memory => f.write_str("Memory"),
            Durability::Process => f.write_str("Process"),
            Durability::Power => f.write_str("Power"),
            Durability::Replicated(replicas) => write!(f, "Replicated({replicas})"),
        }
    }
}
