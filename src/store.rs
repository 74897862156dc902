//! The contract of a backend: [`Store`].

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::{Clock, SystemClock};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::policy::Durability;
use crate::record::{Record, Stamp};
use crate::store_id::StoreId;

/// What a store holds under an id, and its present time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The record, if there is one, with its stamp. One whose retention is over may or may not still be there.
    pub record: Option<Box<Record>>,
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

/// One of the swaps of a [`swap_many`](Store::swap_many).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapRequest {
    /// Under which id.
    pub id: RecordId,
    /// The stamp that must be there; `None`: no record.
    pub expected: Option<Stamp>,
    /// What is to be there instead; `None`: nothing.
    pub next: Option<Box<Record>>,
}

/// Where a [`scan`](Store::scan) goes on. Only the store that made it can read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor(pub Vec<u8>);

/// A part of what a store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Records and their ids, in the store's order.
    pub records: Vec<(RecordId, Record)>,
    /// Ids whose record could not be read.
    pub unreadable: Vec<RecordId>,
    /// Where the next page starts; `None`: this was the last.
    pub next: Option<Cursor>,
    /// The store's time.
    pub now: Stamp,
}

/// The count of a [`purge`](Store::purge).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Purge {
    /// How many records were removed.
    pub removed: u64,
    /// How many records, removed by this call or by the store itself since the last one, were
    /// [evidence](Record::is_evidence) of an effect that nobody settled in time; 0 where the store
    /// cannot tell.
    pub unsettled: u64,
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
/// * **Time.** A snapshot's `now` is not before the stamp of its record, and does not go back. A store that estimates its
///   clock may go ahead of it by milliseconds, and back, as long as nothing of the record is over by the estimate alone.
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
    /// Removing what is not there is `Done`, or, where a stamp was expected, a `Conflict` that shows that there is nothing: to the
    /// engine it is the same. A lost race returns the present snapshot. An `Err` may mean either
    /// outcome, unless the error says that nothing was done: the engine repeats the swap and recognises its own write.
    async fn swap(
        &self,
        id: &RecordId,
        expected: Option<Stamp>,
        next: Option<&Record>,
    ) -> Result<Swap, StoreError>;

    /// Does the swaps in their order and answers in the same, each for itself: at the cost of one where the backend can
    /// (one commit, one round trip). Two swaps of one id see each other. **Provided**: one after the other.
    async fn swap_many(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        let mut answers = Vec::with_capacity(swaps.len());
        for swap in swaps {
            answers.push(self.swap(&swap.id, swap.expected, swap.next.as_deref()).await);
        }
        answers
    }

    /// Waits until the record under `id` no longer has this stamp (or may not have it any more), at most for about `within`.
    /// No change is missed: one that comes between the caller's last look and this call ends it at once. It may end
    /// early; the caller looks again. Dropping it ends the wait. **Provided**: looks again and again, ever more seldom.
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

    /// Up to `limit` of the records, in an order of the store's own, from where `after` says (`None`: from the start). What
    /// is there all the time comes exactly once (where the backend cannot promise that: at least once). **Provided**: refuses.
    async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let _ = (after, limit);
        let detail = "it cannot list its records".to_owned();
        Err(StoreError::Unusable { backend: "this store", detail })
    }

    /// A page of the records that may be [evidence](Record::is_evidence), as [`scan`](Store::scan) gives
    /// pages: every record that is evidence comes, others may come too, and a page may be empty and not
    /// the last. `limit` bounds the records that are looked at. **Provided**: a scan, filtered.
    async fn unsettled(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let mut page = self.scan(after, limit).await?;
        page.records.retain(|(_, record)| record.is_evidence());
        Ok(page)
    }

    /// Whether [`unsettled`](Store::unsettled) costs no walk over all records. **Provided**: no.
    fn finds_unsettled(&self) -> bool {
        false
    }

    /// Removes up to `limit` records whose deadline is over and counts them, in steps that do not hold up other
    /// calls. A store whose server removes them by itself has nothing to do.
    async fn purge(&self, limit: usize) -> Result<Purge, StoreError> {
        let _ = limit;
        Ok(Purge::default())
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

    /// Whether another process, a forked child of this one too, may ever see the records. One that says no spares every begin
    /// a system call: who asks needs no name that a fork cannot repeat. **Provided**: yes, which is always right.
    fn is_shared(&self) -> bool {
        true
    }

    /// The identity of the store, which its tokens carry: the same in every process that shares its records, another for every
    /// other store. It must not change while the records live. **Provided**: one for all stores of this [name](Store::name),
    /// so that a token is accepted by each of them.
    fn identity(&self) -> StoreId {
        StoreId::of(self.name(), &[])
    }

    /// What logs and metrics call this kind of store: see [`observe`](crate::observe). A wrapper says the name of what it wraps.
    /// **Provided**: `store`.
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

    async fn swap(
        &self,
        id: &RecordId,
        expected: Option<Stamp>,
        next: Option<&Record>,
    ) -> Result<Swap, StoreError> {
        (**self).swap(id, expected, next).await
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
