//! The contract of a backend: [`Store`].

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::StoreError;
use crate::key::RecordId;
use crate::policy::Durability;
use crate::record::{Record, Stamp};

/// What a store holds under an id, and its present time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The record, if there is one, with its stamp. One whose retention is over may or may not still be there.
    pub record: Option<Record>,
    /// The store's time when it was read: never before the record's stamp.
    pub now: Stamp,
}

/// What became of a swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// It was done; the write has this stamp (for a removal: the time of it).
    Done(Stamp),
    /// Nothing was written, because the record is not the expected one. This is what there is instead.
    Conflict(Snapshot),
}

/// Where records are kept: anything that can replace a value if it has not changed.
///
/// # Contract
///
/// A store knows no rules: it swaps records. To be correct it must see to this, and `conformance!`
/// (feature `testing`) checks it:
///
/// * **Atomic.** [`swap`](Store::swap) compares and writes in one step for every caller in every process.
/// * **Stamps.** Every write is stamped by the store's clock, in microseconds, forced strictly greater than
///   the stamp of what it replaces, and greater than that of any record that was removed under the same id before.
///   Callers' clocks decide nothing. [`Timeline`](crate::Timeline) does this for stores that keep their own time.
/// * **Time.** A snapshot's `now` is not before the stamp of its record, and does not go back.
/// * **Durable.** After `Ok`, every later load anywhere sees the write, after a crash too as far as [`durability`](Store::durability)
///   says.
/// * **Never early.** Nothing is removed before its [`deadline`](Record::deadline).
/// * **Fail closed.** What cannot be read is an error, never an absent record.
/// * **Finish when full.** A store that runs out of room may refuse what [`may_be_refused`](Record::may_be_refused), with
///   [`StoreError::Full`], and nothing else.
/// * **Cancel safe.** A dropped future leaves the record as it was, or as it was to become, and nothing between.
#[async_trait]
pub trait Store: Debug + Send + Sync + 'static {
    /// The record under `id`, and the store's present time.
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError>;

    /// Replaces (or with `None` removes) the record under `id`, if its stamp still is `expected` (`None`: if there
    /// is no record). `next`'s own stamp is not looked at.
    ///
    /// Removing what is not there is `Done`. A lost race returns the present snapshot. An `Err` may mean either
    /// outcome, unless the error says that nothing was done: the engine repeats the swap and recognises its own write.
    async fn swap(
        &self,
        id: &RecordId,
        expected: Option<Stamp>,
        next: Option<&Record>,
    ) -> Result<Swap, StoreError>;

    /// Removes up to `limit` records whose deadline is over and says how many, in steps that do not hold up other
    /// calls. A store whose server removes them by itself has nothing to do.
    async fn purge(&self, limit: usize) -> Result<u64, StoreError> {
        let _ = limit;
        Ok(0)
    }

    /// Removes what is stored under `id`, readable or not, and says whether there was anything: the way out for a
    /// damaged record, on an operator's word only. Fences go on increasing. **Provided**: refuses.
    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        let _ = id;
        let detail = "it cannot discard damaged records".to_owned();
        Err(StoreError::Unusable { backend: "this store", detail })
    }

    /// What an acknowledged write survives. **Provided**: [`Durability::Memory`], nothing.
    fn durability(&self) -> Durability {
        Durability::Memory
    }
}

#[async_trait]
impl<S: Store + ?Sized> Store for Arc<S> {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        (**self).load(id).await
    }

    async fn swap(
        &self,
        id: &RecordId,
        expected: Option<Stamp>,
        next: Option<&Record>,
    ) -> Result<Swap, StoreError> {
        (**self).swap(id, expected, next).await
    }

    async fn purge(&self, limit: usize) -> Result<u64, StoreError> {
        (**self).purge(limit).await
    }

    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        (**self).discard(id).await
    }

    fn durability(&self) -> Durability {
        (**self).durability()
    }
}
