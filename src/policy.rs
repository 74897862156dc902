//! Settings of an engine: [`Policy`] with its defaults.

use std::time::Duration;

use thiserror::Error as ThisError;

use crate::durability::Durability;
use crate::record::Recovery;
use crate::store_id::StoreId;

/// The treatment of a response or error that is longer than the policy's `max_response`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Oversized {
    /// Finishes the operation and stores a marker in place of the bytes. The default: the outcome
    /// is recorded.
    #[default]
    Marker,
    /// Refuses the finish with [`Error::TooLarge`](crate::Error::TooLarge), so that the handler can
    /// finish with something shorter. If it does not, the lease expires.
    Refuse,
}

/// The settings of an [`Engine`](crate::Engine), with their defaults. Set them through
/// [`Engine::builder`](crate::Engine::builder). The lease, the retention, the recovery and
/// `max_attempts` can be overridden for one [`Request`](crate::Request).
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// The duration of a grant. **Default 30 s.** 0 is refused. Make it longer than the slowest
    /// call that is waited for under it; a crash blocks its key for that long. *Too short*: a slow
    /// worker is taken over, and its result is refused.
    pub lease: Duration,
    /// The time that a record is kept, counted from its finish, from the end of its lease or from
    /// when a retry is due. **Default 24 h**, as at Stripe. At least the lease. Make it longer than
    /// the longest retry window of any caller. *Too short*: a late retry executes again. *Long*:
    /// costs storage.
    pub retention: Duration,
    /// The treatment of a crashed attempt. **Default [`Recovery::RerunUnlessEffect`].**
    pub recovery: Recovery,
    /// The number of times an operation is executed in all before it is left to an operator.
    /// **Default: no limit.** 0 is refused.
    pub max_attempts: u32,
    /// The longest response or error that is kept, in bytes. **Default 1 MiB.** A longer one is
    /// replaced by a marker: duplicates get the outcome without a body, and nothing is rerun.
    pub max_response: usize,
    /// The treatment of a longer one. **Default [`Oversized::Marker`].**
    pub oversized: Oversized,
    /// The time that evidence of an effect that may have happened is kept while no operator settles
    /// it: a record whose effect was marked and whose lease has expired, or that failed with
    /// [`Unresolved`](crate::Retry::Unresolved). **Default 90 days.** At least the retention;
    /// [`Duration::MAX`] keeps it forever. *Too short*: the key becomes new although the effect may
    /// have happened. *Long*: callers that can provoke such failures fill the store; watch
    /// [`unfinished`](crate::Engine::unfinished).
    pub unresolved_retention: Duration,
    /// The time that a response or error is replayed, if that is shorter than the record is kept.
    /// **Default: as long as the record.** 0 is refused. After it, duplicates get `Completed`
    /// without a response until the [`retention`](Policy::retention) ends.
    /// [`Engine::purge_regularly`](crate::Engine::purge_regularly) frees the space, for which it
    /// reads the whole store.
    pub response_retention: Option<Duration>,
    /// The longest checkpoint, in bytes. **Default 64 KiB.** A longer one is refused.
    pub max_checkpoint: usize,
    /// The time limit of a call, including its retries and a store that does not answer. **Default
    /// 5 s.** 0 is refused. After a timeout, the write may or may not have been made.
    pub call_timeout: Duration,
    /// The time limit of a finish ([`complete`](crate::Lease::complete),
    /// [`fail`](crate::Lease::fail), and the outcome that [`run`](crate::Engine::run) records). It
    /// is longer than that of other calls because finished work must not be lost to a store that is
    /// unavailable for some seconds. **Default: until the lease ends, and at least the
    /// `call_timeout`.** 0 is refused. *Shorter*: finished work is executed again, or left to an
    /// operator. *Long leases* on a store that is down delay finishes for as long.
    pub finish_timeout: Option<Duration>,
    /// The time that [`Engine::run`](crate::Engine::run) waits for a duplicate in flight. **Default
    /// 30 s.**
    pub run_wait: Duration,
    /// The number of callers that may wait at a time. **Default 10 000.** Any further caller gets
    /// `InProgress` at once. A waiter costs some hundred bytes and a timer; all waiters of one key
    /// share one watch on the store.
    pub max_waiters: usize,
    /// The name of this process, for operators that [`inspect`](crate::Engine::inspect) what it
    /// holds: a host or pod name. Its first 48 bytes are stored while a lease runs. **Default:
    /// empty.**
    pub holder: String,
    /// True if stores may see keys in the clear, for operators. **Default: false**, since keys can
    /// be secrets or personal data, and a digest is enough to find a record.
    pub keep_keys: bool,
    /// The longest time that the application lets an operation run: no lease, of the policy or of a
    /// request, may be shorter. **Default: not stated.**
    pub handler_timeout: Duration,
    /// The time after its first attempt within which a caller may still retry (3 days for Stripe's
    /// webhooks): no retention, of the policy or of a request, may be shorter. **Default: not
    /// stated.**
    pub retry_horizon: Duration,
    /// Other stores whose lease tokens are accepted as this store's own: identities that it had
    /// before a prefix, a database or a table was renamed. **Default: none.**
    pub accept_tokens_from: Vec<StoreId>,
    /// The number of callers that may wait for one key at a time, out of
    /// [`max_waiters`](Policy::max_waiters) in all. **Default 1 000.** Any further caller gets
    /// `InProgress` at once, so that a storm of duplicates leaves room for the waiters of other
    /// keys.
    pub max_waiters_per_key: usize,
    /// The same for one scope, counted by the whole scope and not by its label. **Default 5 000**:
    /// one tenant cannot take up all waiters. *Too low* for a service with a single scope: its
    /// duplicates poll.
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
    /// Refuses a policy whose windows cannot be safe. The builder checks the durability.
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

    /// Refuses windows, of the policy or of a request, that are shorter than the limits that the
    /// application states for its handlers and callers.
    pub(crate) fn check_horizons(&self, lease: Duration, retention: Duration) -> Result<(), PolicyError> {
        covers("lease", lease, "handler_timeout", self.handler_timeout)?;
        covers("retention", retention, "retry_horizon", self.retry_horizon)
    }
}

/// Refuses windows that are unsafe for every caller.
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

/// The reason a policy was refused: windows that cannot be safe, or a store that cannot keep what
/// is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum PolicyError {
    /// A duration or a count is zero and must not be.
    #[error("{what} must not be 0")]
    Zero {
        /// The setting.
        what: &'static str,
    },
    /// A window is shorter than another that it must cover.
    #[error("{what} of {is:?} is shorter than the {than} of {least:?}")]
    TooShort {
        /// The window that is too short.
        what: &'static str,
        /// Its length.
        is: Duration,
        /// The window that it must cover.
        than: &'static str,
        /// The length of that window.
        least: Duration,
    },
    /// The store is less durable than the application requires.
    #[error("the store's durability is {has}, but {required} is required")]
    Durability {
        /// The durability of the store.
        has: Durability,
        /// The required durability.
        required: Durability,
    },
}
