//! The in-memory store: [`MemoryStore`].

mod shard;

use std::collections::HashMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;

use self::shard::{Removed, Shard};
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
    /// How many records each scope has, by its label. Counted only where there is a quota.
    scopes: Mutex<HashMap<Box<str>, usize>>,
    limits: Limits,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    records: usize,
    bytes: usize,
    scope: Option<usize>,
}

/// Sets up a [`MemoryStore`]; made by [`MemoryStore::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct MemoryStoreBuilder {
    limits: Limits,
    clock: Arc<dyn Clock>,
}

impl MemoryStoreBuilder {
    /// How many records there may be, about: begins at the same moment may all find the last place free. What is over its
    /// time makes room within some 20 s. **Default 1 000 000.**
    pub fn max_records(mut self, records: usize) -> MemoryStoreBuilder {
        self.limits.records = records;
        self
    }

    /// How many bytes the records may take, about. **Default 1 GiB.**
    pub fn max_bytes(mut self, bytes: usize) -> MemoryStoreBuilder {
        self.limits.bytes = bytes;
        self
    }

    /// How many records there may be of one scope, so that one tenant cannot use up the room of all. **Default: no limit.** Scopes
    /// whose first 48 bytes are the same count as one. Counting takes a lock that all begins share.
    pub fn max_records_per_scope(mut self, records: usize) -> MemoryStoreBuilder {
        self.limits.scope = Some(records);
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
            shards: std::array::from_fn(|_| Mutex::new(Shard::new(self.limits.scope.is_some()))),
            timeline: Timeline::new(self.clock, Stamp::ZERO),
            records: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            scopes: Mutex::default(),
            limits: self.limits,
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
        let limits = Limits { records: 1_000_000, bytes: 1 << 30, scope: None };
        MemoryStoreBuilder { limits, clock: Arc::new(SystemClock) }
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

    /// Refuses another record of `scope` if there is no room. Records over their time are in nobody's way: some are
    /// removed first.
    fn room(&self, shard: &mut Shard, scope: &str, now: Stamp) -> Result<(), StoreError> {
        if self.full(scope).is_some() {
            self.count(shard.expire(now, FULL_STEP));
        }
        // The other shards too, as far as nobody is at work there: this one's lock is held.
        for mut other in self.0.shards.iter().filter_map(Mutex::try_lock) {
            if self.full(scope).is_none() {
                break;
            }
            self.count(other.expire(now, FULL_STEP));
        }
        self.full(scope).map_or(Ok(()), |detail| Err(StoreError::Full { backend: BACKEND, detail }))
    }

    /// Which limit is reached, if one is.
    fn full(&self, scope: &str) -> Option<String> {
        let Limits { records: most, bytes: most_bytes, scope: quota } = self.0.limits;
        let (records, bytes) = (self.len(), self.0.bytes.load(Ordering::Relaxed));
        if records >= most || bytes >= most_bytes {
            return Some(format!("{records} records of {most}, {bytes} bytes of {most_bytes}"));
        }
        let quota = quota?;
        let used = self.0.scopes.lock().get(scope).copied().unwrap_or_default();
        (used >= quota).then(|| format!("{used} records of {quota} for one scope"))
    }

    fn count(&self, removed: Removed) {
        self.0.records.fetch_sub(removed.records, Ordering::Relaxed);
        self.0.bytes.fetch_sub(removed.bytes, Ordering::Relaxed);
        if self.0.limits.scope.is_none() {
            return;
        }
        let mut scopes = self.0.scopes.lock();
        for scope in removed.scopes {
            if let Some(used) = scopes.get_mut(&scope) {
                *used -= 1;
                if *used == 0 {
                    scopes.remove(&scope);
                }
            }
        }
    }

    fn insert(&self, shard: &mut Shard, id: &RecordId, record: Record) {
        if self.0.limits.scope.is_some() {
            *self.0.scopes.lock().entry(record.scope.as_str().into()).or_default() += 1;
        }
        let weight = shard.insert(*id, record);
        self.0.records.fetch_add(1, Ordering::Relaxed);
        self.0.bytes.fetch_add(weight, Ordering::Relaxed);
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
        if let Some(next) = next.filter(|_| expected.is_none()) {
            let now = self.0.timeline.now();
            if next.may_be_refused() {
                self.room(&mut shard, &next.scope, now)?;
            }
            self.count(shard.expire(now, INSERT_STEP));
        }
        let stamp = self.0.timeline.stamp_after(shard.last);
        shard.last = stamp;
        self.count(shard.remove(id));
        let waiters = shard.waiters_of(id);
        if let Some(next) = next {
            self.insert(&mut shard, id, next.clone().stamped(stamp));
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
