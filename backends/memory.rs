//! The in-memory store: [`MemoryStore`].

mod builder;
mod index;
mod linked_list;
mod packed;
mod scan;
#[cfg(all(test, nevertwice_shuttle))]
mod schedules;
mod segment;
mod shard;
mod waiters;

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
#[cfg(not(all(test, nevertwice_shuttle)))]
use parking_lot::{Mutex, MutexGuard};

use self::builder::Limits;
pub use self::builder::MemoryStoreBuilder;
use self::shard::{Removed, Shard, Size};
use self::waiters::Ticket;
use crate::clock::Timeline;
use crate::durability::Durability;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::label::Label;
use crate::record::{Record, Stamp};
use crate::store::{Cursor, Decide, Page, Purge, Snapshot, Store, Swap, SwapRequest, Update};
use crate::store_id::StoreId;
use crate::sync::atomic::{AtomicUsize, Ordering};
#[cfg(all(test, nevertwice_shuttle))]
use crate::sync::{MutexGuard, unpoisoned::Mutex};
use crate::wake::wake_all;

const BACKEND: &str = "memory store";
const SHARDS: usize = 128;

/// A store in this process's memory. Its records are lost when the process ends
/// ([`Durability::Memory`]).
///
/// Meant for tests, and for single-process services that can afford to lose their records in a
/// crash. The store is bounded by a number of records and by bytes. When it is full, a begin is
/// refused with [`StoreError::Full`]; work in progress can still be finished, and its checkpoints
/// and responses may exceed the limit. Nothing is evicted before it expires. Expired records are
/// removed gradually as new records arrive, or by [`Engine::purge`](crate::Engine::purge).
///
/// Clones share their records.
///
/// ```
/// use nevertwice::{Engine, MemoryStore};
/// let store = MemoryStore::builder().max_records(100_000).max_bytes(64 << 20).build();
/// let engine = Engine::builder(store).build()?;
/// # Ok::<(), nevertwice::PolicyError>(())
/// ```
#[derive(Clone)]
pub struct MemoryStore(Arc<Inner>);

struct Inner {
    /// Built directly on the heap: the array is larger than the stack of some threads.
    shards: Box<[Mutex<Shard>]>,
    timeline: Timeline,
    /// Random, drawn when the store is built: no other store ever has these records.
    identity: StoreId,
    /// The sum of the sizes that the shards have reported.
    total: Total,
    /// The number of records in each scope, by label. Maintained only if there is a quota.
    scopes: Mutex<HashMap<Label, usize>>,
    limits: Limits,
    /// The difference a shard's size may have from the size it last reported. It keeps most begins
    /// from writing the totals, which every begin reads.
    slack: Size,
}

#[derive(Default)]
struct Total {
    records: AtomicUsize,
    bytes: AtomicUsize,
    evidence: AtomicUsize,
    /// Records of evidence that expired since the last purge reported them.
    expired_evidence: AtomicUsize,
}

impl Inner {
    fn new(limits: Limits, timeline: Timeline) -> Inner {
        // All shards together are off by less than 1 %, and exact if the limit is low.
        let part = |limit: usize| limit / SHARDS / 128;
        Inner {
            shards: (0..SHARDS).map(|_| Mutex::new(Shard::new(limits.scope.is_some()))).collect(),
            timeline,
            identity: StoreId::of("memory", &[&rand::random::<[u8; 16]>()]),
            total: Total::default(),
            scopes: Mutex::default(),
            limits,
            slack: Size {
                records: part(limits.records).min(64),
                bytes: part(limits.bytes).min(1 << 16),
                evidence: 0,
            },
        }
    }
}

impl MemoryStore {
    /// Creates a store with the default limits.
    pub fn new() -> MemoryStore {
        MemoryStore::builder().build()
    }

    /// Starts building a store.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder::new()
    }

    /// Returns the number of records, including expired ones that are not yet removed.
    pub fn len(&self) -> usize {
        self.0.shards.iter().map(|shard| shard.lock().size().records).sum()
    }

    /// Returns true if there are no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, id: &RecordId) -> &Mutex<Shard> {
        &self.0.shards[shard_of(id)]
    }

    fn read(&self, id: &RecordId) -> Snapshot {
        let shard = self.shard(id).lock();
        let record = shard.find(id).map(|location| Box::new(shard.read(location)));
        Snapshot { record, now: self.0.timeline.now() }
    }

    fn replace(&self, SwapRequest { id, expected, next }: &SwapRequest) -> Result<Swap, StoreError> {
        // Read before taking the lock, to keep the critical section short: a time that is slightly
        // early expires nothing early.
        let now = self.0.timeline.now();
        let shard = self.shard(id).lock();
        let found = shard.find(id);
        let is_expected = match (found, *expected) {
            (Some(location), Some(expected)) => shard.stamp(location) == expected,
            (found, expected) => found.is_none() && expected.is_none(),
        };
        if !is_expected {
            let record = found.map(|location| Box::new(shard.read(location)));
            let now = record.as_ref().map_or(now, |record| now.max(record.stamp));
            return Ok(Swap::Conflict(Snapshot { record, now }));
        }
        self.write(shard, (id, found), next.as_deref(), now).map(Swap::Done)
    }

    /// See [`Store::update_now`]. `None` for a large record: a decision may hash its response,
    /// which is too slow under the lock.
    fn update(&self, id: &RecordId, decide: &mut Decide<'_>) -> Option<Result<(Update, Stamp), StoreError>> {
        let mut now = self.0.timeline.now(); // before the lock, likewise
        let shard = self.shard(id).lock();
        let found = shard.find(id);
        let update = match found {
            None => decide(now, None),
            Some(location) if shard.is_large(location) => return None,
            Some(location) => shard.show(location, |record| {
                now = now.max(record.stamp);
                decide(now, Some(record))
            }),
        };
        let next = match &update {
            Update::Keep => return Some(Ok((update, now))),
            Update::Replace(next) => Some(&**next),
            Update::Remove => None,
        };
        let written = self.write(shard, (id, found), next, now);
        Some(written.map(|stamp| (update, stamp)))
    }

    /// Writes `next` in place of the record that was found under an id, or removes that.
    fn write(
        &self,
        mut shard: MutexGuard<'_, Shard>,
        (id, found): (&RecordId, Option<u32>),
        next: Option<&Record>,
        now: Stamp,
    ) -> Result<Stamp, StoreError> {
        let mut expired = Removed::default();
        if let Some(next) = next {
            let room = match found {
                None => self.make_room(&mut shard, next, now, &mut expired),
                Some(_) => Ok(()),
            };
            let room = room.and_then(|()| match shard.has_room() {
                true => Ok(()),
                false => Err(StoreError::full(BACKEND, "a shard has no room for more records")),
            });
            if let Err(full) = room {
                drop(shard); // and only then what expired
                return Err(full);
            }
        }
        let stamp = self.stamp(&mut shard, now);
        let replaced = match next {
            Some(next) => shard.put(id, next, stamp, found),
            None => found.map(|location| shard.remove(id, location)).unwrap_or_default(),
        };
        let waiters = shard.waiters.take(id, |_, _| true);
        self.report(&mut shard, self.0.slack);
        self.count_scopes(next, &replaced);
        drop(shard); // a waker may run anything, and what was removed may take time to free
        wake_all(waiters);
        drop((expired, replaced));
        Ok(stamp)
    }

    /// Returns the stamp of a write requested at `now`: greater than every earlier stamp of the
    /// shard.
    fn stamp(&self, shard: &mut Shard, now: Stamp) -> Stamp {
        let stamp = if now > shard.last { now } else { self.0.timeline.stamp_after(shard.last) };
        shard.last = stamp;
        stamp
    }

    /// Removes some expired records to make room for `next`, and refuses `next` if there is still
    /// none.
    fn make_room(
        &self,
        shard: &mut Shard,
        next: &Record,
        now: Stamp,
        expired: &mut Removed,
    ) -> Result<(), StoreError> {
        if next.may_be_refused() && self.full(&next.scope).is_some() {
            expired.absorb(self.expire(shard, now, FULL_STEP));
            // The other shards too, but only those not locked at the moment: this shard's lock is
            // held.
            for mut other in self.0.shards.iter().filter_map(Mutex::try_lock) {
                if self.full(&next.scope).is_none() {
                    break;
                }
                expired.absorb(self.expire(&mut other, now, FULL_STEP));
            }
            if let Some(detail) = self.full(&next.scope) {
                return Err(StoreError::full(BACKEND, detail));
            }
        }
        if shard.is_due(now) {
            let removed = shard.expire(now, INSERT_STEP);
            self.count_expired(&removed);
            expired.absorb(removed);
        }
        Ok(())
    }

    /// Removes up to `limit` expired records of a shard.
    fn expire(&self, shard: &mut Shard, now: Stamp, limit: usize) -> Removed {
        let removed = shard.expire(now, limit);
        self.report(shard, Size::default());
        self.count_expired(&removed);
        removed
    }

    fn count_expired(&self, removed: &Removed) {
        self.count_scopes(None, removed);
        if removed.evidence > 0 {
            self.0.total.expired_evidence.fetch_add(removed.evidence, Ordering::Relaxed);
        }
    }

    /// Describes the limit that is reached, if any.
    fn full(&self, scope: &Label) -> Option<String> {
        let Limits { records: most, bytes: most_bytes, scope: quota } = self.0.limits;
        let Total { records, bytes, evidence, .. } = &self.0.total;
        let (records, bytes) = (records.load(Ordering::Relaxed), bytes.load(Ordering::Relaxed));
        let unresolved = || match evidence.load(Ordering::Relaxed) {
            0 => String::new(),
            count => {
                format!("; {count} in the store have an effect marked or are unresolved: see `unfinished`")
            }
        };
        if records >= most || bytes >= most_bytes {
            let unresolved = unresolved();
            return Some(format!("{records} records of {most}, {bytes} bytes of {most_bytes}{unresolved}"));
        }
        let quota = quota?;
        let used = self.0.scopes.lock().get(scope).copied().unwrap_or_default();
        (used >= quota).then(|| format!("{used} records of {quota} for one scope{}", unresolved()))
    }

    /// Adds a shard's change in size to the totals if it exceeds `slack`.
    fn report(&self, shard: &mut Shard, slack: Size) {
        let (size, reported) = (shard.size(), shard.reported);
        if size.records.abs_diff(reported.records) > slack.records
            || size.bytes.abs_diff(reported.bytes) > slack.bytes
            || size.evidence.abs_diff(reported.evidence) > slack.evidence
        {
            // The addition wraps, so a decrease works too.
            let Total { records, bytes, evidence, .. } = &self.0.total;
            records.fetch_add(size.records.wrapping_sub(reported.records), Ordering::Relaxed);
            bytes.fetch_add(size.bytes.wrapping_sub(reported.bytes), Ordering::Relaxed);
            if size.evidence != reported.evidence {
                evidence.fetch_add(size.evidence.wrapping_sub(reported.evidence), Ordering::Relaxed);
            }
            shard.reported = size;
        }
    }

    /// Updates the number of records per scope, if there is a quota.
    fn count_scopes(&self, added: Option<&Record>, removed: &Removed) {
        if self.0.limits.scope.is_none() {
            return;
        }
        let mut scopes = self.0.scopes.lock();
        if let Some(added) = added {
            *scopes.entry(added.scope).or_default() += 1;
        }
        for scope in removed.scopes() {
            if let Some(used) = scopes.get_mut(scope) {
                *used -= 1;
                if *used == 0 {
                    scopes.remove(scope);
                }
            }
        }
    }
}

/// Returns the index of the shard that holds a record. The first shards get up to twice as many
/// records as the last, so that their hash tables double one after another as the store grows and
/// few are ever half empty.
fn shard_of(id: &RecordId) -> usize {
    let [.., high, low] = *id.as_bytes();
    let part = u64::from(u16::from_be_bytes([high, low]));
    // 128 log2(1 + part / 2^16), accurate to 1 %: the shares of the shards form a geometric series.
    (part * ((4 << 16) - part) / ((3 << 32) / SHARDS as u64)) as usize
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("records", &self.len()).finish_non_exhaustive()
    }
}

/// Expired records that each new one removes, so that a store that is never purged does not grow
/// without bound.
const INSERT_STEP: usize = 2;
/// Expired records that a begin tries to remove when the store is full.
const FULL_STEP: usize = 64;

#[async_trait]
impl Store for MemoryStore {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        Ok(self.read(id))
    }

    fn load_now(&self, id: &RecordId) -> Option<Result<Snapshot, StoreError>> {
        Some(Ok(self.read(id)))
    }

    async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
        self.replace(swap)
    }

    fn swap_now(&self, swap: &SwapRequest) -> Option<Result<Swap, StoreError>> {
        Some(self.replace(swap))
    }

    fn update_now(
        &self,
        id: &RecordId,
        decide: &mut Decide<'_>,
    ) -> Option<Result<(Update, Stamp), StoreError>> {
        self.update(id, decide)
    }

    async fn swap_many(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        swaps.iter().map(|swap| self.replace(swap)).collect()
    }

    async fn changed(&self, id: &RecordId, stamp: Stamp, _within: Duration) -> Result<(), StoreError> {
        let mut ticket = Ticket::new(self, id);
        poll_fn(|context| ticket.poll(stamp, context)).await;
        Ok(())
    }

    async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.page(after, limit, Shard::list)
    }

    async fn unsettled(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        self.page(after, limit, Shard::list_evidence)
    }

    fn finds_unsettled(&self) -> bool {
        true
    }

    async fn purge(&self, limit: usize) -> Result<Purge, StoreError> {
        let mut purged = 0;
        for shard in &*self.0.shards {
            let now = self.0.timeline.now();
            while purged < limit {
                let removed = self.expire(&mut shard.lock(), now, FULL_STEP.min(limit - purged));
                if removed.records == 0 {
                    break;
                }
                purged += removed.records;
            }
        }
        let unsettled = self.0.total.expired_evidence.swap(0, Ordering::Relaxed);
        Ok(Purge { removed: purged as u64, unsettled: unsettled as u64 })
    }

    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        let mut shard = self.shard(id).lock();
        let removed = shard.find(id).map(|location| shard.remove(id, location)).unwrap_or_default();
        let waiters = shard.waiters.take(id, |_, _| true);
        self.report(&mut shard, self.0.slack);
        self.count_scopes(None, &removed);
        drop(shard);
        wake_all(waiters);
        Ok(removed.records > 0)
    }

    fn durability(&self) -> Durability {
        Durability::Memory
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn identity(&self) -> StoreId {
        self.0.identity
    }

    fn name(&self) -> &'static str {
        "memory"
    }
}
