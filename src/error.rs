//! Errors by meaning. No message contains a key, payload or response.

use std::time::Duration;

use thiserror::Error;

use crate::decide::Current;
use crate::key::{KeyError, RecordId};
use crate::owner::OwnerError;
use crate::policy::PolicyError;
use crate::record::DecodeError;
use crate::store_id::StoreId;

/// The reason why a call of the engine or of a lease failed.
///
/// No error is ever a grant: a caller that gets one must not act.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The scope or the key is invalid.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The request's windows cannot be safe.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The operating system gave no random bytes for the begin's owner: nothing was sent.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// Another caller took the key, it is finished, or its record is gone: nothing was written.
    /// Stop acting. Still report what was done already: [`complete`](crate::Lease::complete) is
    /// accepted if the record is gone, and otherwise refused with this error.
    #[error("the lease is lost: the key is now {:?}, attempt {}", current.state, current.attempt)]
    LeaseLost {
        /// The present state of the key.
        current: Current,
    },
    /// This lease was already finished with another outcome, which is final.
    #[error("this lease was already finished with another outcome")]
    AlreadyFinished {
        /// The present state of the key.
        current: Current,
    },
    /// There is nothing to resolve under this fence: the key is not unresolved, or another caller
    /// was faster.
    #[error("nothing to resolve under this fence: the key is {:?}, fence {}", current.state, current.fence.0)]
    NotResolvable {
        /// The present state of the key.
        current: Current,
    },
    /// There is no operator's resolution to amend under this stamp: no operator settled the key, or
    /// it has changed since.
    #[error("nothing to amend under this stamp: the key is {:?}, fence {}", current.state, current.fence.0)]
    NotAmendable {
        /// The present state of the key.
        current: Current,
    },
    /// The call would amend an operator's resolution to a rerun without asking for one explicitly.
    /// Duplicates may already have received the previous outcome.
    /// [`Amendment::rerun`](crate::Amendment::rerun) asks for it.
    #[error("replacing an outcome by a rerun must be explicit (Amendment::rerun)")]
    RerunNotMeant,
    /// The lease was granted by another store: nothing was written, since no caller would look for
    /// it here. Resume it on the store that it names or, if this store has been renamed since,
    /// state its old identity with
    /// [`accept_tokens_from`](crate::EngineBuilder::accept_tokens_from).
    #[error("the lease belongs to store {token}, but this is store {store}")]
    WrongStore {
        /// The store that granted the lease.
        token: StoreId,
        /// This store.
        store: StoreId,
    },
    /// A value, such as a checkpoint, is longer than its limit.
    #[error("{what} of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// The value that is too long.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The longest that is allowed.
        limit: usize,
    },
    /// The store did not report the result of the call within its time limit: the policy's
    /// `call_timeout` or, for a finish, its `finish_timeout`. The call may or may not have been
    /// carried out; repeating it is safe.
    #[error("no answer from the store within {limit:?} ({tries} tries)")]
    TimedOut {
        /// The time limit.
        limit: Duration,
        /// The number of times that the store was called.
        tries: u32,
        /// The store's last error.
        #[source]
        last: Option<StoreError>,
    },
    /// The database gave up the application's transaction for another one: a serialisation failure
    /// (SQLSTATE 40001), a deadlock (40P01) or a lock that stayed taken (55P03). Nothing was
    /// decided, and nothing of it is recorded: roll back, and repeat the whole transaction, reads
    /// included. Only calls inside a transaction return it.
    #[error("the database gave up the transaction for another one ({code}): repeat the whole transaction")]
    RepeatTransaction {
        /// The SQLSTATE.
        code: &'static str,
    },
    /// The store returned an error.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store, or this crate, broke its own contract: please report it. Nothing more was done.
    #[error("internal error: {detail}")]
    Internal {
        /// The contradiction that was found.
        detail: &'static str,
    },
}

/// The reason why a store did not answer with a record or a swap.
#[derive(Debug, Clone, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store could not be reached, or failed half way: the write may or may not have happened.
    /// The engine tries again.
    #[error("{backend} is unavailable: {detail}")]
    Unavailable {
        /// The backend.
        backend: &'static str,
        /// Its error.
        detail: String,
    },
    /// There is no space for another record: nothing was written. Only begins are refused with this
    /// error.
    #[error("{backend} is full: {detail}")]
    Full {
        /// The backend.
        backend: &'static str,
        /// The limit that was reached.
        detail: String,
    },
    /// The stored value under the id is not a record: no caller gets a lease on it until an
    /// operator acts ([`Engine::forget`](crate::Engine::forget) removes it).
    #[error("{backend} holds no readable record under {id}: {source}")]
    Corrupt {
        /// The backend.
        backend: &'static str,
        /// The id.
        id: RecordId,
        /// The fault that was found.
        source: DecodeError,
    },
    /// The store as a whole is damaged, is not a store, was written by a newer release, or is
    /// configured in a way that loses records.
    #[error("{backend} cannot be used: {detail}")]
    Unusable {
        /// The backend.
        backend: &'static str,
        /// The fault that was found.
        detail: String,
    },
}

impl Error {
    /// Returns true if a record cannot be read because it is damaged, and not because a newer
    /// release wrote it.
    pub(crate) fn is_damaged_record(&self) -> bool {
        matches!(self, Error::Store(StoreError::Corrupt { source: DecodeError::Damaged { .. }, .. }))
    }
}

impl StoreError {
    /// Builds [`Unavailable`](StoreError::Unavailable).
    pub fn unavailable(backend: &'static str, detail: impl Into<String>) -> StoreError {
        StoreError::Unavailable { backend, detail: detail.into() }
    }

    /// Builds [`Full`](StoreError::Full).
    pub fn full(backend: &'static str, detail: impl Into<String>) -> StoreError {
        StoreError::Full { backend, detail: detail.into() }
    }

    /// Builds [`Corrupt`](StoreError::Corrupt).
    pub fn corrupt(backend: &'static str, id: &RecordId, source: DecodeError) -> StoreError {
        StoreError::Corrupt { backend, id: *id, source }
    }

    /// Builds [`Unusable`](StoreError::Unusable).
    pub fn unusable(backend: &'static str, detail: impl Into<String>) -> StoreError {
        StoreError::Unusable { backend, detail: detail.into() }
    }

    /// Returns true if trying again may help. Every other error persists until its cause is
    /// removed.
    pub fn is_transient(&self) -> bool {
        match self {
            StoreError::Unavailable { .. } => true,
            StoreError::Full { .. } | StoreError::Corrupt { .. } | StoreError::Unusable { .. } => false,
        }
    }
}
