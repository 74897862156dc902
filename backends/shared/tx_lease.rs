//! The lease of a transaction of the application's own: [`TxLease`].

use std::fmt;

use bytes::Bytes;

use crate::begin::Begin;
use crate::decide::{Command, Reply};
use crate::error::{Error, StoreError};
use crate::key::RecordId;
use crate::observe::{self, Source};
use crate::owner::Owner;
use crate::policy::Policy;
use crate::record::{Record, Retry, Stamp};
use crate::store::Store;
use crate::token::{LeaseToken, Origin};

/// The right to act inside a transaction, from `begin_in` or `resume_in`.
///
/// A grant of `begin_in` is gone if the transaction is rolled back. If it is committed unfinished,
/// it holds its key until its lease runs out, like any dropped lease.
#[must_use = "a lease that is committed unfinished holds its key until it runs out"]
pub struct TxLease<S> {
    pub(crate) store: S,
    pub(crate) token: LeaseToken,
    pub(crate) policy: Policy,
    takeover: bool,
    checkpoint: Option<Bytes>,
}

/// Returns the answer to a begin of `owner`.
pub(crate) fn begun<S: Store + Clone>(
    store: &S,
    policy: &Policy,
    (id, owner): (RecordId, Owner),
    (reply, record): (Reply, Option<Box<Record>>),
) -> Result<Begin<TxLease<S>>, Error> {
    Begin::of(reply, || {
        let unusable = || StoreError::unusable(store.name(), "it granted a lease and shows no record of it");
        let record = record.ok_or_else(unusable)?;
        let origin = Origin { store: store.identity(), in_transaction: true };
        let token = LeaseToken::of(id, owner, &record, policy.unresolved_retention, origin);
        Ok(TxLease::new(store, policy, token, Some(&record)))
    })
}

/// Returns the lease that `token` continues.
pub(crate) fn resumed<S: Store + Source + Clone>(
    store: &S,
    policy: &Policy,
    token: &LeaseToken,
    (reply, record): (Reply, Option<Box<Record>>),
) -> Result<TxLease<S>, Error> {
    done(store, token.attempt, reply)?;
    Ok(TxLease::new(store, policy, token.clone(), record.as_deref()))
}

/// Converts the reply to a finish.
pub(crate) fn finished<S: Source>(lease: &TxLease<S>, reply: Reply) -> Result<(), Error> {
    if reply == (Reply::Done { existed: false }) {
        observe::restored(&lease.store, lease.token.attempt);
    }
    done(&lease.store, lease.token.attempt, reply)
}

impl<S: Store + Clone> TxLease<S> {
    fn new(store: &S, policy: &Policy, token: LeaseToken, record: Option<&Record>) -> TxLease<S> {
        TxLease {
            store: store.clone(),
            token,
            policy: policy.clone(),
            takeover: record.is_some_and(Record::is_takeover),
            checkpoint: record.and_then(|record| record.checkpoint.clone()),
        }
    }

    /// Refuses a token of another store.
    pub(crate) fn check_origin(&self) -> Result<(), Error> {
        self.policy.check_origin(&self.token, self.store.identity())
    }
}

impl<S> TxLease<S> {
    /// Returns the number of this execution of the operation, counted from 1.
    pub fn attempt(&self) -> u32 {
        self.token.attempt
    }

    /// Returns the fence of this grant: greater than that of every earlier committed grant of the
    /// key.
    pub fn fence(&self) -> Stamp {
        self.token.fence
    }

    /// Returns true if the lease of the previous attempt ran out, so that it may have left traces.
    pub fn takeover(&self) -> bool {
        self.takeover
    }

    /// Returns the checkpoint that an earlier attempt saved with
    /// [`Lease::save_checkpoint`](crate::Lease::save_checkpoint).
    pub fn checkpoint(&self) -> Option<&Bytes> {
        self.checkpoint.as_ref()
    }

    /// Derives a key for a downstream call: see [`Lease::derive_key`](crate::Lease::derive_key).
    pub fn derive_key(&self, label: &str) -> String {
        self.token.derive_key(label)
    }

    /// Returns the command that completes the operation.
    pub(crate) fn completion(&self, response: Bytes) -> Result<Command, Error> {
        Ok(Command::Complete(self.token.clone(), self.policy.body("response", response)?))
    }

    /// Returns the command that fails the operation.
    pub(crate) fn failure(&self, error: Bytes, retry: Retry) -> Result<Command, Error> {
        Ok(Command::Fail(self.token.clone(), self.policy.body("error", error)?, retry))
    }
}

/// Converts a reply for the holder of a lease. A lost lease is reported to operators at every call,
/// because a lease of a transaction keeps no state.
fn done(source: &dyn Source, attempt: u32, reply: Reply) -> Result<(), Error> {
    if let Reply::LeaseLost(current) = &reply {
        observe::lease_lost(source, attempt, *current);
    }
    reply.into_done()
}

impl<S> observe::Granted for TxLease<S> {
    fn attempt(&self) -> u32 {
        TxLease::attempt(self)
    }

    fn takeover(&self) -> bool {
        TxLease::takeover(self)
    }
}

impl<S> fmt::Debug for TxLease<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TxLease")
            .field("token", &self.token)
            .field("takeover", &self.takeover)
            .finish_non_exhaustive()
    }
}
