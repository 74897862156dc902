//! What can go wrong, by meaning. No key, payload or response is in any message.

use std::time::Duration;

use thiserror::Error;

use crate::decide::Current;
use crate::key::{KeyError, RecordId};
use crate::owner::OwnerError;
use crate::policy::PolicyError;
use crate::record::DecodeError;
use crate::store_id::StoreId;

/// Why a call of the engine or of a lease did not do what was asked.
///
/// None of these is ever a grant: whoever gets one must not act.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The scope or the key is not one.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The request's windows cannot be safe.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The operating system gave no random bytes to name the begin with: nothing was sent.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// Somebody else took the key, it is finished, or its record is gone: nothing was written. Stop acting. What was
    /// done already should still be said: [`complete`](crate::Lease::complete) is accepted if the record is gone, and otherwise
    /// refused like this.
    #[error("the lease is lost: the key is now {:?}, attempt {}", current.state, current.attempt)]
    LeaseLost {
        /// What the key shows instead.
        current: Current,
    },
    /// This lease was finished before with another outcome, which stands.
    #[error("this lease was already finished with another outcome")]
    AlreadyFinished {
        /// What the key shows.
        current: Current,
    },
    /// There is nothing to resolve under this fence: the key is not unresolved, or somebody was faster.
    #[error("nothing to resolve under this fence: the key is {:?}, fence {}", current.state, current.fence.0)]
    NotResolvable {
        /// What the key shows.
        current: Current,
    },
    /// There is no operator's word to amend under this stamp: none settled the key, or it changed
    /// since.
    #[error("nothing to amend under this stamp: the key is {:?}, fence {}", current.state, current.fence.0)]
    NotAmendable {
        /// What the key shows.
        current: Current,
    },
    /// An operator's word was to be amended to a rerun without saying so: duplicates may have been
    /// told the outcome that stood until now. [`Amendment::rerun`](crate::Amendment::rerun) says
    /// it.
    #[error("a rerun in place of an outcome must be asked for as one (Amendment::rerun)")]
    RerunNotMeant,
    /// The lease was granted by another store: nothing was written, since nobody would look for it here.
    /// Resume it on the store that it names, or, if this store was renamed since, state its old identity
    /// with [`accept_tokens_from`](crate::EngineBuilder::accept_tokens_from).
    #[error("the lease is of store {token}, and this is store {store}")]
    WrongStore {
        /// The store that granted the lease.
        token: StoreId,
        /// This store.
        store: StoreId,
    },
    /// A checkpoint is longer than the policy allows.
    #[error("{what} of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// What is.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        limit: usize,
    },
    /// The store did not say what became of the call before its time limit: the policy's `call_timeout`, for a finish its
    /// `finish_timeout`. It may or may not have been carried out; repeating it is safe.
    #[error("no answer from the store within {limit:?} ({tries} tries)")]
    TimedOut {
        /// The time limit.
        limit: Duration,
        /// How often the store was called.
        tries: u32,
        /// What the store said last.
        #[source]
        last: Option<StoreError>,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a store did not answer with a record or a swap.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store could not be reached, or gave up half way: the write may or may not have happened. The engine
    /// tries again.
    #[error("{backend} is unavailable: {detail}")]
    Unavailable {
        /// Which backend.
        backend: &'static str,
        /// What it said.
        detail: String,
    },
    /// There is no room for another record: nothing was written. Only begins are refused so.
    #[error("{backend} is full: {detail}")]
    Full {
        /// Which backend.
        backend: &'static str,
        /// Which limit was reached.
        detail: String,
    },
    /// What is stored under the id is not a record: nobody gets a lease on it until somebody looks
    /// ([`Engine::forget`](crate::Engine::forget) removes it).
    #[error("{backend} holds no readable record under {id}: {source}")]
    Corrupt {
        /// Which backend.
        backend: &'static str,
        /// Under which id.
        id: RecordId,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The store as a whole is damaged, not a store, written by a newer release, or set up in a way that loses records.
    #[error("{backend} cannot be used: {detail}")]
    Unusable {
        /// Which backend.
        backend: &'static str,
        /// What is wrong with it.
        detail: String,
    },
}

impl Error {
    /// Whether a record cannot be read because it is damaged; one of a newer release is not.
    pub(crate) fn is_damaged_record(&self) -> bool {
        matches!(self, Error::Store(StoreError::Corrupt { source: DecodeError::Damaged { .. }, .. }))
    }
}

impl StoreError {
    /// Whether trying again may help. Everything else stands until somebody does something about it.
    pub fn is_transient(&self) -> bool {
        match self {
            StoreError::Unavailable { .. } => true,
            StoreError::Full { .. } | StoreError::Corrupt { .. } | StoreError::Unusable { .. } => false,
        }
    }
}
