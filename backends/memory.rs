//! The in-memory store: [`MemoryStore`].

mod builder;
mod index;
mod list;
mod packed;
#[cfg(all(test, nevertwice_shuttle))]
mod schedules;
mod segment;
mod shard;
mod waiters;

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
#[cfg(not(all(test, nevertwice_shuttle)))]
use parking_lot::Mutex;

use self::builder::Limits;
pub use self::builder::MemoryStoreBuilder;
use self::shard::{Removed, Shard, Size};
use crate::clock::Timeline;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::label::Label;
use crate::policy::Durability;
use crate::record::{Record, Stamp};
use crate::store::{Cursor, Page, Purge, Snapshot, Store, Swap, SwapRequest};
use crate::store_id::StoreId;
use crate::sync::atomic::{AtomicUsize, Ordering};
#[cfg(all(test, nevertwice_shuttle))]
use crate::sync::unpoisoned::Mutex;
use crate::wake::{ForeignWaker, wake_all};

const BACKEND: &str = "memory store";
const SHARDS: usize = 128;

/// Records in this process's memory, gone with it ([`Durability::Memory`]).
///
/// For tests, and for services that run as one process and can live with losing what they know in a crash.
/// Bounded by the number of records and by bytes: when it is full, begins are refused with [`StoreError::Full`], what
/// is under way can be finished (and may take it over the limit by its checkpoints and responses), and nothing is
/// evicted before its time. What is over its time is removed by and
/// by as new records come, or by [`Engine::purge`](crate::Engine::purge).
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
    /// Made where they stay: they are larger than the stack of some threads.
    shards: Box<[Mutex<Shard>]>,
    timeline: Timeline,
    /// Drawn when the store is made: nobody else ever has its records.
    identity: StoreId,
    /// What the shards have told of their sizes.
    total: Total,
    /// How many records each scope has, by its label. Counted only where there is a quota.
    scopes: Mutex<HashMap<Label, usize>>,
    limits: Limits,
    /// By how much a shard's size may differ from what it has told. So a begin seldom writes what all begins read.
    slack: Size,
}

#[derive(Default)]
struct Total {
    records: AtomicUsize,
    bytes: AtomicUsize,
    evidence: AtomicUsize,
    /// How many records of evidence expired since the last purge told of them.
    expired_evidence: AtomicUsize,
}

impl Inner {
    fn new(limits: Limits, timeline: Timeline) -> Inner {
        // All shards together are off by less than a hundredth, and by nothing where the limit is low.
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
    /// A store with the default limits.
    pub fn new() -> MemoryStore {
        MemoryStore::builder().build()
    }

    /// Starts to set up a store.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder::new()
    }

    /// How many records there are, those over their time but not yet removed included.
    pub fn len(&self) -> usize {
        self.0.shards.iter().map(|shard| shard.lock().size().records).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, id: &RecordId) -> &Mutex<Shard> {
        &self.0.shards[shard_of(id)]
    }

    /// A page of what `list` gives of each shard.
    fn page(&self, after: Option<&Cursor>, limit: usize, list: Listing) -> Result<Page, StoreError> {
        let after = after.map(Place::read).transpose()?;
        let mut page = Page { records: Vec::new(), unreadable: Vec::new(), next: None, now: Stamp::ZERO };
        for number in after.map_or(0, |place| place.shard)..SHARDS {
            let passed = after.filter(|place| place.shard == number).map(|place| place.id);
            let room = limit.max(1) - page.records.len();
            // One more, to know whether it is the end.
            let mut records = list(&self.0.shards[number].lock(), passed, room.saturating_add(1));
            let more = records.len() > room;
            records.truncate(room);
            page.records.append(&mut records);
            if more || page.records.len() >= limit.max(1) && number + 1 < SHARDS {
                page.next = page.records.last().map(|(id, _)| Place { shard: number, id: *id }.write());
                break;
            }
        }
        page.now = self.0.timeline.now();
        Ok(page)
    }

    fn swap_now(
        &self,
        id: &RecordId,
        expected: Option<Stamp>,
        next: Option<&Record>,
    ) -> Result<Swap, StoreError> {
        // Before the lock, for whoever waits for it: a moment that is too early ends nothing too early.
        let now = self.0.timeline.now();
        let mut expired = Removed::default(); // dropped when the lock is not held any more
        let mut shard = self.shard(id).lock();
        let found = shard.find(id);
        let is_expected = match (found, expected) {
            (Some(place), Some(expected)) => shard.stamp(place) == expected,
            (found, expected) => found.is_none() && expected.is_none(),
        };
        if !is_expected {
            let record = found.map(|place| Box::new(shard.read(place)));
            let now = record.as_ref().map_or(now, |record| now.max(record.stamp));
            return Ok(Swap::Conflict(Snapshot { record, now }));
        }
        if let Some(next) = next {
            if found.is_none() {
                self.make_way(&mut shard, next, now, &mut expired)?;
            }
            if !shard.has_place() {
                let detail = "a shard has no more places".to_owned();
                return Err(StoreError::Full { backend: BACKEND, detail });
            }
        }
        let stamp = self.stamp(&mut shard, now);
        let replaced = match next {
            Some(next) => shard.put(id, next, stamp, found),
            None => found.map(|place| shard.remove(id, place)).unwrap_or_default(),
        };
        let waiters = shard.waiters.call(id);
        self.tell(&mut shard, self.0.slack);
        self.count_scopes(next, &replaced);
        drop(shard); // a waker may run anything, and what was removed may take time to free
        wake_all(waiters);
        drop((expired, replaced));
        Ok(Swap::Done(stamp))
    }

    /// The stamp of a write that is asked for at `now`: greater than all before it in the shard.
    fn stamp(&self, shard: &mut Shard, now: Stamp) -> Stamp {
        let stamp = if now > shard.last { now } else { self.0.timeline.stamp_after(shard.last) };
        shard.last = stamp;
        stamp
    }

    /// Removes some of what is over its time to make way for `next`, and refuses it if there is no room all the same.
    fn make_way(
        &self,
        shard: &mut Shard,
        next: &Record,
        now: Stamp,
        expired: &mut Removed,
    ) -> Result<(), StoreError> {
        if next.may_be_refused() && self.full(&next.scope).is_some() {
            expired.absorb(self.expire(shard, now, FULL_STEP));
            // The other shards too, as far as nobody is at work there: this one's lock is held.
            for mut other in self.0.shards.iter().filter_map(Mutex::try_lock) {
                if self.full(&next.scope).is_none() {
                    break;
                }
                expired.absorb(self.expire(&mut other, now, FULL_STEP));
            }
            if let Some(detail) = self.full(&next.scope) {
                return Err(StoreError::Full { backend: BACKEND, detail });
            }
        }
        if shard.is_due(now) {
            let removed = shard.expire(now, INSERT_STEP);
            self.count_expired(&removed);
            expired.absorb(removed);
        }
        Ok(())
    }

    /// Removes up to `limit` records of a shard that are over their time.
    fn expire(&self, shard: &mut Shard, now: Stamp, limit: usize) -> Removed {
        let removed = shard.expire(now, limit);
        self.tell(shard, Size::default());
        self.count_expired(&removed);
        removed
    }

    fn count_expired(&self, removed: &Removed) {
        self.count_scopes(None, removed);
        if removed.evidence > 0 {
            self.0.total.expired_evidence.fetch_add(removed.evidence, Ordering::Relaxed);
        }
    }

    /// Which limit is reached, if one is.
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

    /// Adds to the totals what has changed in a shard, if it is more than `slack`.
    fn tell(&self, shard: &mut Shard, slack: Size) {
        let (size, told) = (shard.size(), shard.told);
        if size.records.abs_diff(told.records) > slack.records
            || size.bytes.abs_diff(told.bytes) > slack.bytes
            || size.evidence.abs_diff(told.evidence) > slack.evidence
        {
            // Additions wrap, so that less is added too.
            let Total { records, bytes, evidence, .. } = &self.0.total;
            records.fetch_add(size.records.wrapping_sub(told.records), Ordering::Relaxed);
            bytes.fetch_add(size.bytes.wrapping_sub(told.bytes), Ordering::Relaxed);
            if size.evidence != told.evidence {
                evidence.fetch_add(size.evidence.wrapping_sub(told.evidence), Ordering::Relaxed);
            }
            shard.told = size;
        }
    }

    /// Keeps count of the scopes, where there is a quota.
    fn count_scopes(&self, added: Option<&Record>, removed: &Removed) {
        if self.0.limits.scope.is_none() {
            return;
        }
        let mut scopes = self.0.scopes.lock();
        if let Some(added) = added {
            *scopes.entry(added.scope).or_default() += 1;
        }
        for scope in &removed.scopes {
            if let Some(used) = scopes.get_mut(scope) {
                *used -= 1;
                if *used == 0 {
                    scopes.remove(scope);
                }
            }
        }
    }
}

/// Records of a shard and their ids, in the order of the ids: up to so many behind an id.
type Listing = fn(&Shard, Option<RecordId>, usize) -> Vec<(RecordId, Record)>;

/// In which shard a record is. The first shards get up to twice as many as the last: their tables double one after the
/// other as the store grows, and so there are never many of them half empty.
fn shard_of(id: &RecordId) -> usize {
    let [.., high, low] = *id.as_bytes();
    let part = u64::from(u16::from_be_bytes([high, low]));
    // 128 log2(1 + part / 2^16), to a hundredth: the shares of the shards are a geometric series.
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

/// How many records a new one makes way for, so that a store that nobody purges does not grow for ever.
const INSERT_STEP: usize = 2;
/// How many a begin looks for when the store is full.
const FULL_STEP: usize = 64;

#[async_trait]
impl Store for MemoryStore {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        let shard = self.shard(id).lock();
        let record = shard.find(id).map(|place| Box::new(shard.read(place)));
        Ok(Snapshot { record, now: self.0.timeline.now() })
    }

    async fn swap(
        &self,
        id: &RecordId,
        expected: Option<Stamp>,
        next: Option<&Record>,
    ) -> Result<Swap, StoreError> {
        self.swap_now(id, expected, next)
    }

    async fn swap_many(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        swaps.iter().map(|swap| self.swap_now(&swap.id, swap.expected, swap.next.as_deref())).collect()
    }

    async fn changed(&self, id: &RecordId, stamp: Stamp, _within: Duration) -> Result<(), StoreError> {
        let mut seat = Seat { store: self, id, number: None };
        poll_fn(|context| {
            let waker = ForeignWaker::of(context.waker());
            let mut shard = self.shard(id).lock();
            if shard.find(id).is_none_or(|place| shard.stamp(place) != stamp) {
                drop(shard);
                return Poll::Ready(Ok(()));
            }
            let (number, old) = shard.waiters.sit(id, seat.number, waker);
            seat.number = Some(number);
            drop(shard); // and only then the waker that was there
            drop(old);
            Poll::Pending
        })
        .await
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
        let removed = shard.find(id).map(|place| shard.remove(id, place)).unwrap_or_default();
        let waiters = shard.waiters.call(id);
        self.tell(&mut shard, self.0.slack);
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

/// A caller that waits for a record to change. It leaves when it is dropped.
struct Seat<'a> {
    store: &'a MemoryStore,
    id: &'a RecordId,
    number: Option<u64>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let waker = self.store.shard(self.id).lock().waiters.leave(self.id, number);
        drop(waker); // without the lock
    }
}

/// Where a listing goes on: behind this record of this shard.
#[derive(Clone, Copy)]
struct Place {
    shard: usize,
    id: RecordId,
}

impl Place {
    fn read(cursor: &Cursor) -> Result<Place, StoreError> {
        let place = cursor.0.split_first().and_then(|(shard, id)| {
            Some(Place { shard: usize::from(*shard), id: RecordId::from_bytes(id.try_into().ok()?) })
        });
        place.ok_or_else(|| StoreError::Unusable {
            backend: BACKEND,
            detail: "not one of its cursors".to_owned(),
        })
    }

    fn write(self) -> Cursor {
        let mut bytes = vec![self.shard as u8]; // less than SHARDS
        bytes.extend_from_slice(self.id.as_bytes());
        Cursor(bytes)
    }
}
