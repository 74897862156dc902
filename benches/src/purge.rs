//! `purge`: the delay of callers while a million records are removed (PostgreSQL: 200 000), one
//! step right after the other (`purge_regularly` would even pause between its steps).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nevertwice::clock::Sleep;
use nevertwice::{Clock, SqliteStore, SystemClock};
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::hand::HandMemory;
use crate::ours::{self, Ours};
use crate::postgres::Postgres;
use crate::side::{RETENTION_MS, Side, key};

/// Times in milliseconds. A cycle is a begin and a complete of a new key by one caller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Pauses {
    pub(crate) store: String,
    pub(crate) side: String,
    pub(crate) records: u64,
    /// The longest cycle in a second without a purge: the machine's own noise.
    pub(crate) quiet_ms: f64,
    /// The longest during the purge.
    pub(crate) longest_ms: f64,
    /// The 99.9th percentile during the purge.
    pub(crate) p999_ms: f64,
    /// The longest that another process waited for the file's write lock during the purge.
    pub(crate) lock_ms: Option<f64>,
    /// The cost of a removed record for the purger, in microseconds.
    pub(crate) per_record_us: f64,
}

/// A clock that can be set forward.
#[derive(Clone, Debug, Default)]
struct Ahead(Arc<AtomicU64>);

impl Ahead {
    /// Sets it past the retention of all records.
    fn past_retention(&self) {
        self.0.store(2 * RETENTION_MS, Relaxed);
    }

    fn by(&self) -> Duration {
        Duration::from_millis(self.0.load(Relaxed))
    }
}

impl Clock for Ahead {
    fn wall(&self) -> Duration {
        SystemClock.wall() + self.by()
    }

    fn monotonic(&self) -> Duration {
        SystemClock.monotonic() + self.by()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        SystemClock.sleep(time)
    }
}

pub(crate) async fn memory(records: u64) -> Pauses {
    let clock = Ahead::default();
    let ours = Ours::new(ours::memory().clock(clock.clone()).build());
    ours.fill(0..records).await;
    let quiet = cycles(&ours, 1 << 40, tokio::time::sleep(Duration::from_secs(1))).await.times;
    clock.past_retention();
    let busy = cycles(&ours, 1 << 41, purged(ours.engine.clone(), records)).await;
    pauses("memory", "ours", records, &quiet, &busy, None)
}

/// Measures a map, which drops expired entries in one scan.
pub(crate) async fn by_hand(records: u64) -> Pauses {
    let hand = HandMemory::default();
    hand.fill(0..records).await;
    let quiet = cycles(&hand, 1 << 40, tokio::time::sleep(Duration::from_secs(1))).await.times;
    let map = hand.clone();
    let purge = async move {
        map.purge(Duration::from_millis(2 * RETENTION_MS));
        records
    };
    let busy = cycles(&hand, 1 << 41, purge).await;
    pauses("memory", "by hand", records, &quiet, &busy, None)
}

pub(crate) async fn sqlite(folder: &Path, records: u64) -> Pauses {
    let (clock, path) = (Ahead::default(), folder.join("purged.db"));
    let store = SqliteStore::builder(&path).clock(clock.clone()).open().expect("the store opens");
    let ours = Ours::new(store);
    ours.fill(0..records).await;
    let quiet = cycles(&ours, 1 << 40, tokio::time::sleep(Duration::from_secs(1))).await.times;
    clock.past_retention();
    // Half of the purge runs alongside callers, half alongside another process: the two would
    // disturb each other.
    let busy = cycles(&ours, 1 << 41, purged(ours.engine.clone(), records / 2)).await;
    let stop = Arc::new(AtomicBool::new(false));
    let other = {
        let stop = stop.clone();
        std::thread::spawn(move || longest_lock(&path, &stop))
    };
    purged(ours.engine.clone(), records - records / 2).await;
    stop.store(true, Relaxed);
    let lock = other.join().expect("the probe does not panic");
    pauses("sqlite", "ours", records, &quiet, &busy, Some(lock.as_secs_f64() * 1e3))
}

/// Measures rows of a server, whose clock cannot be set: the rows are made old instead.
pub(crate) async fn postgres(ours: &Ours, server: &Postgres, records: u64) -> Pauses {
    ours.fill(0..records).await;
    let quiet = cycles(ours, 1 << 40, tokio::time::sleep(Duration::from_secs(1))).await.times;
    server.age(Duration::from_millis(2 * RETENTION_MS));
    let busy = cycles(ours, 1 << 41, purged(ours.engine.clone(), records)).await;
    pauses("postgres", "ours", records, &quiet, &busy, None)
}

/// Purges and returns the number of removed records. A store that makes room by itself meanwhile
/// leaves less to do.
async fn purged(engine: nevertwice::Engine, records: u64) -> u64 {
    let removed = engine.purge(records as usize).await.expect("the store answers");
    assert!(removed > 0, "all of them were past their retention");
    removed
}

/// One caller's cycles during some work.
struct Cycles<T> {
    /// The time of each, sorted.
    times: Vec<Duration>,
    took: Duration,
    work: T,
}

/// Runs one caller until `work` is done.
async fn cycles<T: Send + 'static>(
    side: &impl Side,
    first: u64,
    work: impl Future<Output = T> + Send + 'static,
) -> Cycles<T> {
    let stop = Arc::new(AtomicBool::new(false));
    let caller = {
        let (side, stop) = (side.clone(), stop.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            for number in first.. {
                if stop.load(Relaxed) {
                    break;
                }
                let key = key(number);
                let start = Instant::now();
                side.fresh(key).await;
                times.push(start.elapsed());
            }
            times.sort_unstable();
            times
        })
    };
    let start = Instant::now();
    let work = tokio::spawn(work).await.expect("it does not panic");
    let took = start.elapsed();
    stop.store(true, Relaxed);
    Cycles { times: caller.await.expect("it does not panic"), took, work }
}

/// Requests the write lock of a file repeatedly, as another process would. Returns the longest time
/// that it was refused.
fn longest_lock(path: &Path, stop: &AtomicBool) -> Duration {
    let db = Connection::open(path).expect("the file opens");
    db.busy_timeout(Duration::ZERO).expect("an option");
    let mut longest = Duration::ZERO;
    while !stop.load(Relaxed) {
        let start = Instant::now();
        while db.execute_batch("BEGIN IMMEDIATE; ROLLBACK").is_err() && !stop.load(Relaxed) {
            std::hint::spin_loop();
        }
        longest = longest.max(start.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    longest
}

fn pauses(
    store: &str,
    side: &str,
    records: u64,
    quiet: &[Duration],
    busy: &Cycles<u64>,
    lock_ms: Option<f64>,
) -> Pauses {
    let millis = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    Pauses {
        store: store.to_owned(),
        side: side.to_owned(),
        records,
        quiet_ms: millis(quiet.last()),
        longest_ms: millis(busy.times.last()),
        p999_ms: millis(busy.times.get(busy.times.len() * 999 / 1000)),
        lock_ms,
        per_record_us: busy.took.as_secs_f64() * 1e6 / busy.work as f64,
    }
}
