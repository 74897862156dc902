//! The in-memory store: [`MemoryStore`].

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::future::poll_fn;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use crate::clock::{Clock, SystemClock, Timeline};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::policy::Durability;
use crate::record::{Record, Stamp};
use crate::store::{Cursor, Page, Snapshot, Store, Swap};

const BACKEND: &str = "memory store";
const SHARDS: usize = 64;

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
    shards: [Mutex<Shard>; SHARDS],
    timeline: Timeline,
    records: AtomicUsize,
    bytes: AtomicUsize,
    limits: Limits,
}

#[derive(Clone, Copy)]
struct Limits {
    records: usize,
    bytes: usize,
}

/// Sets up a [`MemoryStore`]; made by [`MemoryStore::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct MemoryStoreBuilder {
    records: usize,
    bytes: usize,
    clock: Arc<dyn Clock>,
}

impl MemoryStoreBuilder {
    /// How many records there may be. **Default 1 000 000.**
    pub fn max_records(mut self, records: usize) -> MemoryStoreBuilder {
        self.records = records;
        self
    }

    /// How many bytes the records may take, about. **Default 1 GiB.**
    pub fn max_bytes(mut self, bytes: usize) -> MemoryStoreBuilder {
        self.bytes = bytes;
        self
    }

    /// Takes time from `clock` instead of the operating system.
    pub fn clock(mut self, clock: impl Clock) -> MemoryStoreBuilder {
        self.clock = Arc::new(clock);
        self
    }

    /// The store.
    pub fn build(self) -> MemoryStore {
        MemoryStore(Arc::new(Inner {
            shards: std::array::from_fn(|_| Mutex::default()),
            timeline: Timeline::new(self.clock, Stamp::ZERO),
            records: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            limits: Limits { records: self.records, bytes: self.bytes },
        }))
    }
}

impl MemoryStore {
    /// A store with the default limits.
    pub fn new() -> MemoryStore {
        MemoryStore::builder().build()
    }

    /// Starts to set up a store.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder { records: 1_000_000, bytes: 1 << 30, clock: Arc::new(SystemClock) }
    }

    /// How many records there are, those over their time but not yet removed included.
    pub fn len(&self) -> usize {
        self.0.records.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn shard(&self, id: &RecordId) -> &Mutex<Shard> {
        &self.0.shards[usize::from(id.as_bytes()[31]) % SHARDS]
    }

    /// What a full store says. Records over their time are in nobody's way: some are removed first.
    fn room(&self, shard: &mut Shard, now: Stamp) -> Result<(), StoreError> {
        let limits = self.0.limits;
        let full = || {
            let (records, bytes) =
                (self.0.records.load(Ordering::Relaxed), self.0.bytes.load(Ordering::Relaxed));
            (records >= limits.records || bytes >= limits.bytes).then_some((records, bytes))
        };
        if full().is_some() {
            self.count(shard.expire(now, FULL_STEP));
        }
        // The other shards too, as far as nobody is at work there: this one's lock is held.
        for other in self.0.shards.iter().filter_map(Mutex::try_lock) {
            if full().is_none() {
                break;
            }
            let mut other = other;
            self.count(other.expire(now, FULL_STEP));
        }
        match full() {
            Some((records, bytes)) => {
                let Limits { records: most, bytes: most_bytes } = limits;
                let detail = format!("{records} records of {most}, {bytes} bytes of {most_bytes}");
                Err(StoreError::Full { backend: BACKEND, detail })
            }
            None => Ok(()),
        }
    }

    fn count(&self, removed: Removed) {
        self.0.records.fetch_sub(removed.records, Ordering::Relaxed);
        self.0.bytes.fetch_sub(removed.bytes, Ordering::Relaxed);
    }
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
        let record = shard.records.get(id).map(|kept| kept.record.clone());
        Ok(Snapshot { record, now: self.0.timeline.now() })
    }

    async fn swap(
        &self,
        id: &RecordId,
        expected: Option<Stamp>,
        next: Option<&Record>,
    ) -> Result<Swap, StoreError> {
        let mut shard = self.shard(id).lock();
        let found = shard.records.get(id).map(|kept| &kept.record);
        if found.map(|record| record.stamp) != expected {
            let (record, now) = (found.cloned(), self.0.timeline.now());
            return Ok(Swap::Conflict(Snapshot { record, now }));
        }
        let now = self.0.timeline.now();
        if let Some(next) = next.filter(|_| expected.is_none()) {
            if next.may_be_refused() {
                self.room(&mut shard, now)?;
            }
            self.count(shard.expire(now, INSERT_STEP));
        }
        let stamp = self.0.timeline.stamp_after(shard.last);
        shard.last = stamp;
        self.count(shard.remove(id));
        let waiters = shard.waiters_of(id);
        if let Some(next) = next {
            let weight = shard.insert(*id, next.clone().stamped(stamp));
            self.0.records.fetch_add(1, Ordering::Relaxed);
            self.0.bytes.fetch_add(weight, Ordering::Relaxed);
        }
        drop(shard); // a waker may run anything
        waiters.into_iter().for_each(Waker::wake);
        Ok(Swap::Done(stamp))
    }

    async fn changed(&self, id: &RecordId, stamp: Stamp, _within: Duration) -> Result<(), StoreError> {
        let mut seat = Seat { store: self, id, number: None };
        poll_fn(|context| {
            let mut shard = self.shard(id).lock();
            if shard.records.get(id).is_none_or(|kept| kept.record.stamp != stamp) {
                return Poll::Ready(Ok(()));
            }
            let number = *seat.number.get_or_insert_with(|| {
                shard.seats += 1;
                shard.seats
            });
            shard.waiters.entry(*id).or_default().insert(number, context.waker().clone());
            Poll::Pending
        })
        .await
    }

    async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let after = after.map(Place::read).transpose()?;
        let mut page = Page { records: Vec::new(), unreadable: Vec::new(), next: None, now: Stamp::ZERO };
        for number in after.map_or(0, |place| place.shard)..SHARDS {
            let passed = after.filter(|place| place.shard == number).map(|place| place.id);
            let shard = self.0.shards[number].lock();
            let mut ids: Vec<RecordId> =
                shard.records.keys().filter(|id| Some(**id) > passed).copied().collect();
            ids.sort_unstable();
            let room = limit.max(1) - page.records.len();
            let more = ids.len() > room;
            page.records.extend(
                ids.iter().take(room).filter_map(|id| Some((*id, shard.records.get(id)?.record.clone()))),
            );
            if more || page.records.len() >= limit.max(1) && number + 1 < SHARDS {
                page.next = page.records.last().map(|(id, _)| Place { shard: number, id: *id }.write());
                break;
            }
        }
        page.now = self.0.timeline.now();
        Ok(page)
    }

    async fn purge(&self, limit: usize) -> Result<u64, StoreError> {
        let mut purged = 0;
        for shard in &self.0.shards {
            let now = self.0.timeline.now();
            while purged < limit {
                let removed = shard.lock().expire(now, FULL_STEP.min(limit - purged));
                let done = removed.records == 0;
                purged += removed.records;
                self.count(removed);
                if done {
                    break;
                }
            }
        }
        Ok(purged as u64)
    }

    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        let mut shard = self.shard(id).lock();
        let removed = shard.remove(id);
        let waiters = shard.waiters_of(id);
        drop(shard);
        waiters.into_iter().for_each(Waker::wake);
        let existed = removed.records > 0;
        self.count(removed);
        Ok(existed)
    }

    fn durability(&self) -> Durability {
        Durability::Memory
    }

    fn name(&self) -> &'static str {
        "memory"
    }
}

/// A part of the records, under a lock of its own.
#[derive(Default)]
struct Shard {
    records: HashMap<RecordId, Kept, BuildHasherDefault<DigestHasher>>,
    /// The ids by the segment of time in which their deadline lies, so that expiry never scans the records.
    segments: BTreeMap<u64, HashSet<RecordId, BuildHasherDefault<DigestHasher>>>,
    /// The greatest stamp that was given here, to removed records too.
    last: Stamp,
    /// Who waits for a record to change, by the number of the seat.
    waiters: HashMap<RecordId, HashMap<u64, Waker>, BuildHasherDefault<DigestHasher>>,
    seats: u64,
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
        let mut shard = self.store.shard(self.id).lock();
        if let Some(waiters) = shard.waiters.get_mut(self.id) {
            waiters.remove(&number);
            if waiters.is_empty() {
                shard.waiters.remove(self.id);
            }
        }
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

struct Kept {
    record: Record,
    /// The segment that lists it: that of its deadline.
    segment: u64,
}

/// What was taken out of a shard.
struct Removed {
    records: usize,
    bytes: usize,
}

/// The length of a segment of time: 2^24 µs, about 17 s.
const SEGMENT_BITS: u32 = 24;

impl Shard {
    fn insert(&mut self, id: RecordId, mut record: Record) -> usize {
        record.detach();
        let segment = record.deadline().0 >> SEGMENT_BITS;
        let weight = weight(&record);
        self.segments.entry(segment).or_default().insert(id);
        self.records.insert(id, Kept { record, segment });
        weight
    }

    /// Who waited for the record to change. None of them does any more.
    fn waiters_of(&mut self, id: &RecordId) -> Vec<Waker> {
        if self.waiters.is_empty() {
            return Vec::new();
        }
        self.waiters.remove(id).map(|waiters| waiters.into_values().collect()).unwrap_or_default()
    }

    fn remove(&mut self, id: &RecordId) -> Removed {
        let Some(kept) = self.records.remove(id) else { return Removed { records: 0, bytes: 0 } };
        if let Some(ids) = self.segments.get_mut(&kept.segment) {
            ids.remove(id);
            if ids.is_empty() {
                self.segments.remove(&kept.segment);
            }
        }
        Removed { records: 1, bytes: weight(&kept.record) }
    }

    /// Removes up to `limit` records of the segments that lie wholly before `now`.
    fn expire(&mut self, now: Stamp, limit: usize) -> Removed {
        let mut removed = Removed { records: 0, bytes: 0 };
        while removed.records < limit {
            let Some(oldest) = self.segments.first_entry() else { break };
            if *oldest.key() >= now.0 >> SEGMENT_BITS {
                break;
            }
            let ids: Vec<RecordId> = oldest.get().iter().take(limit - removed.records).copied().collect();
            for id in &ids {
                let Removed { records, bytes } = self.remove(id);
                removed.records += records;
                removed.bytes += bytes;
            }
        }
        removed
    }
}

fn weight(record: &Record) -> usize {
    record.weight() + 2 * size_of::<RecordId>()
}

/// Record ids are digests already: eight of their bytes are as good a hash as any.
#[derive(Default)]
struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _length: usize) {}
}
