//! The contract of a backend: [`Store`], and the types that only backends use.
//!
//! [`guide::write_a_store`](crate::guide::write_a_store) shows how to implement one.

use std::borrow::Cow;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

pub use async_trait::async_trait;

pub use crate::clock::Timeline;
pub use crate::label::Label;
pub use crate::record::{DecodeError, Record, State};

use crate::clock::{Clock, SystemClock};
use crate::durability::Durability;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::store_id::StoreId;

/// The record that a store holds under an id, and the store's present time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The record, if there is one, with its stamp. It may be one whose retention is over.
    pub record: Option<Box<Record>>,
    /// The store's time of the read: never before the record's stamp.
    pub now: Stamp,
}

/// The result of a swap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// The swap was done. This is the stamp of the write (of a removal: its time).
    Done(Stamp),
    /// Nothing was written, because the record is not the expected one. This is the present one.
    Conflict(Snapshot),
}

/// A compare-and-swap of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapRequest {
    /// The id of the record.
    pub id: RecordId,
    /// The expected stamp; `None`: no record.
    pub expected: Option<Stamp>,
    /// The record to write; `None`: remove it.
    pub next: Option<Box<Record>>,
}

impl SwapRequest {
    /// Builds a request from a copy of `next`.
    pub fn new(id: &RecordId, expected: Option<Stamp>, next: Option<&Record>) -> SwapRequest {
        SwapRequest { id: *id, expected, next: next.cloned().map(Box::new) }
    }
}

/// A decision on the record under an id, of which it gets the store's time and the record: see
/// [`Store::update_now`].
pub type Decide<'a> = dyn FnMut(Stamp, Option<Cow<'_, Record>>) -> Update + 'a;

/// The change to a record that was decided on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// Nothing is written.
    Keep,
    /// The record is replaced, or written if there is none.
    Replace(Box<Record>),
    /// The record is removed.
    Remove,
}

/// The position at which a [`scan`](Store::scan) continues. Only the store that made it can read
/// it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(pub Vec<u8>);

/// A page of a store's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Records and their ids, in the store's order.
    pub records: Vec<(RecordId, Record)>,
    /// Ids whose record could not be read.
    pub unreadable: Vec<RecordId>,
    /// The start of the next page; `None`: this was the last.
    pub next: Option<Cursor>,
    /// The store's time.
    pub now: Stamp,
}

/// The counts of a [`purge`](Store::purge).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Purge {
    /// The number of records removed.
    pub removed: u64,
    /// The number of records that were [evidence](Record::is_evidence) of an effect and were not
    /// settled in time, removed by this call or by the store itself since the last one; 0 where the
    /// store cannot tell.
    pub unsettled: u64,
}

/// A place that keeps records: any medium that can replace a value atomically if it has not
/// changed.
///
/// # Contract
///
/// A store knows no rules: it swaps records. A correct store meets these obligations, which
/// `conformance!` (feature `testing`) checks:
///
/// * **Atomic.** [`swap`](Store::swap) compares and writes in one step for every caller in every
///   process.
/// * **Stamps.** The store's clock stamps every write, in microseconds. A stamp is forced strictly
///   greater than the stamp that it replaces and than that of any record removed under the same id
///   before. Callers' clocks decide nothing. [`Timeline`] does this for
///   stores that keep their own time.
/// * **Time.** A snapshot's `now` is not before the stamp of its record and does not go back. A
///   store that estimates its clock may run ahead of it by milliseconds, and fall back, as long as
///   no deadline of the record passes by the estimate alone.
/// * **Durable.** After `Ok`, every later load anywhere sees the write, even after a crash, as far
///   as [`durability`](Store::durability) promises.
/// * **Never early.** Nothing is removed before its [`deadline`](Record::deadline).
/// * **Fail closed.** A record that cannot be read is an error, never an absent record.
/// * **Finish when full.** A store that runs out of space may refuse, with [`StoreError::Full`],
///   only records for which [`may_be_refused`](Record::may_be_refused) returns true.
/// * **Cancel safe.** A dropped future leaves the record as it was or as it was to become, and
///   nothing in between.
#[async_trait]
pub trait Store: Debug + Send + Sync + 'static {
    /// Returns the record under `id` and the store's present time.
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError>;

    /// Replaces the record under the id with `next`, or removes it, if its stamp is still
    /// `expected`. The stamp in `next` is ignored.
    ///
    /// Removing an absent record is `Done` or, where a stamp was expected, a `Conflict` that shows
    /// no record: the engine treats both alike. A lost race returns the present snapshot. An `Err`
    /// may mean either outcome, unless the error says that nothing was done: the engine repeats the
    /// swap and recognises its own write.
    async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError>;

    /// Does a [`load`](Store::load) at once, without waiting and without a boxed future. `None` if
    /// it cannot: then the engine calls `load`, or tries a write. It must not block: no deadline is
    /// looked at before the next call. With it, a begin loads before it writes; after a transient
    /// error or a pause the engine calls `load`. **Provided**: `None`.
    fn load_now(&self, id: &RecordId) -> Option<Result<Snapshot, StoreError>> {
        let _ = id;
        None
    }

    /// Does a [`swap`](Store::swap) at once, without waiting and without a boxed future. `None` if
    /// it cannot, with nothing done: then the engine calls `swap`, as it does after a transient
    /// error or a pause. It must not block. **Provided**: `None`.
    fn swap_now(&self, swap: &SwapRequest) -> Option<Result<Swap, StoreError>> {
        let _ = swap;
        None
    }

    /// Does a [`load`](Store::load) and the [`swap`](Store::swap) that `decide` asks for in one
    /// atomic step, at once and without blocking. Returns the change and the stamp of the write
    /// (without one, the time of the read). `None` if it cannot, or not for this record, with
    /// nothing done: then the engine calls [`load_now`](Store::load_now). An error means that
    /// nothing was written: a store that may lose the answer to a write returns `None`. `decide` is
    /// called at most once. It only reads, copies and compares, so that it may be called under a
    /// lock. **Provided**: `None`.
    fn update_now(
        &self,
        id: &RecordId,
        decide: &mut Decide<'_>,
    ) -> Option<Result<(Update, Stamp), StoreError>> {
        let _ = (id, decide);
        None
    }

    /// Does the swaps in order and returns one answer for each, in the same order, at the cost of
    /// one where the backend can (one commit, one round trip). Two swaps of one id see each other.
    /// **Provided**: one after the other.
    async fn swap_many(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        let mut answers = Vec::with_capacity(swaps.len());
        for swap in swaps {
            answers.push(self.swap(swap).await);
        }
        answers
    }

    /// Waits until the record under `id` no longer has this stamp (or may no longer have it), for
    /// about `within` at most. No change is missed: one that comes between the caller's last load
    /// and this call ends the wait at once. The wait may end early, so the caller loads again.
    /// Dropping it ends the wait. **Provided**: polls, with growing pauses.
    async fn changed(&self, id: &RecordId, stamp: Stamp, within: Duration) -> Result<(), StoreError> {
        let mut pause = Duration::from_millis(2);
        let mut waited = Duration::ZERO;
        while waited < within {
            if self.load(id).await?.record.is_none_or(|record| record.stamp != stamp) {
                return Ok(());
            }
            SystemClock.sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Returns up to `limit` of the records, in the store's own order, starting at `after` (`None`:
    /// at the beginning). A record that exists throughout is returned exactly once (at least once
    /// where the backend cannot promise that). **Provided**: refuses.
    async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let _ = (after, limit);
        Err(StoreError::unusable(self.name(), "it cannot list its records"))
    }

    /// Returns a page of the records that may be [evidence](Record::is_evidence), paged as
    /// [`scan`](Store::scan) is. Every record that is evidence is returned, others may be, and a
    /// page may be empty without being the last. `limit` bounds the records that are examined.
    /// **Provided**: a scan, filtered.
    async fn unsettled(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let mut page = self.scan(after, limit).await?;
        page.records.retain(|(_, record)| record.is_evidence());
        Ok(page)
    }

    /// Returns true if [`unsettled`](Store::unsettled) needs no walk over all records.
    /// **Provided**: no.
    fn finds_unsettled(&self) -> bool {
        false
    }

    /// Removes and counts up to `limit` expired records, in steps that do not block other calls. A
    /// store whose server removes them itself has nothing to do.
    async fn purge(&self, limit: usize) -> Result<Purge, StoreError> {
        let _ = limit;
        Ok(Purge::default())
    }

    /// Removes the value stored under `id`, readable or not, and returns whether there was one. It
    /// is the remedy for a damaged record, on an operator's order only. Fences keep increasing.
    /// **Provided**: refuses.
    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        let _ = id;
        Err(StoreError::unusable(self.name(), "it cannot discard damaged records"))
    }

    /// Returns the durability of an acknowledged write. **Provided**: [`Durability::Memory`], which
    /// survives nothing.
    fn durability(&self) -> Durability {
        Durability::Memory
    }

    /// Returns true if an acknowledged write survives what this level names. **Provided**: as
    /// [`durability`](Store::durability) says. A store whose replicas and disks promise different
    /// things overrides it.
    fn is_as_durable_as(&self, required: Durability) -> bool {
        self.durability().satisfies(required)
    }

    /// Returns true if another process, including a forked child of this one, may ever see the
    /// records. A store that returns false saves every begin a system call, since owners need not
    /// stay unique across a fork. **Provided**: true, which is always safe.
    fn is_shared(&self) -> bool {
        true
    }

    /// Returns the identity of the store, which its tokens carry: the same in every process that
    /// shares its records, and different for every other store. It must not change while the
    /// records live. **Provided**: one identity for all stores of this [name](Store::name), so that
    /// each of them accepts a token.
    fn identity(&self) -> StoreId {
        StoreId::of(self.name(), &[])
    }

    /// Returns the name of this kind of store in logs and metrics: see [`observe`](crate::observe).
    /// A wrapper returns the name of the store that it wraps. **Provided**: `store`.
    fn name(&self) -> &'static str {
        "store"
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)] // a wrapper that forgets a method changes the store
impl<S: Store + ?Sized> Store for Arc<S> {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        (**self).load(id).await
    }

    async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
        (**self).swap(swap).await
    }

    fn load_now(&self, id: &RecordId) -> Option<Result<Snapshot, StoreError>> {
        (**self).load_now(id)
    }

    fn swap_now(&self, swap: &SwapRequest) -> Option<Result<Swap, StoreError>> {
        (**self).swap_now(swap)
    }

    fn update_now(
        &self,
        id: &RecordId,
        decide: &mut Decide<'_>,
    ) -> Option<Result<(Update, Stamp), StoreError>> {
        (**self).update_now(id, decide)
    }

    async fn swap_many(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        (**self).swap_many(swaps).await
    }

    async fn changed(&self, id: &RecordId, stamp: Stamp, within: Duration) -> Result<(), StoreError> {
        (**self).changed(id, stamp, within).await
    }

    async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        (**self).scan(after, limit).await
    }

    async fn unsettled(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        (**self).unsettled(after, limit).await
    }

    fn finds_unsettled(&self) -> bool {
        (**self).finds_unsettled()
    }

    async fn purge(&self, limit: usize) -> Result<Purge, StoreError> {
        (**self).purge(limit).await
    }

    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        (**self).discard(id).await
    }

    fn durability(&self) -> Durability {
        (**self).durability()
    }

    fn is_as_durable_as(&self, required: Durability) -> bool {
        (**self).is_as_durable_as(required)
    }

    fn is_shared(&self) -> bool {
        (**self).is_shared()
    }

    fn identity(&self) -> StoreId {
        (**self).identity()
    }

    fn name(&self) -> &'static str {
        (**self).name()
    }
}
