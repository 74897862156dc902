//! Callers, the writer thread and the watcher thread, explored under many schedules. The file is
//! real, on a file system in memory if the machine has one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};

use rusqlite::Connection;
use shuttle::future::block_on;
use shuttle::thread::{self, JoinHandle};
use tempfile::TempDir;

use super::waiters::Waiters;
use super::*;
use crate::clock::ManualClock;
use crate::fingerprint::Fingerprint;
use crate::label::Label;
use crate::record::{Body, Record, State};
use crate::sync::atomic::AtomicU64;
use crate::sync::schedules::explore;

const HOUR: Duration = Duration::from_secs(3600);

/// A store's file, reused by one schedule after another: each removes its records at its end.
struct File {
    /// Keeps the file open, so that SQLite need not recover it after each schedule.
    db: std::sync::Mutex<Connection>,
    path: PathBuf,
    clock: ManualClock,
    _dir: TempDir,
}

impl File {
    fn new() -> Arc<File> {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = dir.path().join("schedules.db");
        let db = connection::Connector::new(&path, Duration::ZERO)
            .and_then(|connector| connector.open_writer("nevertwice", Synchronous::Normal))
            .unwrap()
            .0;
        Arc::new(File { db: db.into(), path, clock: ManualClock::new(), _dir: dir })
    }

    fn open(&self) -> SqliteStore {
        let builder = SqliteStore::builder(&self.path).clock(self.clock.clone()).busy_timeout(Duration::ZERO);
        builder.synchronous(Synchronous::Normal).open().unwrap()
    }

    /// Returns the stamp of a record as it is in the file.
    fn stamp(&self, id: RecordId) -> Option<Stamp> {
        Table::new("nevertwice".to_owned()).stamp(&self.db.lock().unwrap(), &id).unwrap()
    }

    fn clear(&self) {
        self.db.lock().unwrap().execute("DELETE FROM nevertwice", []).unwrap();
    }
}

fn id(number: u8) -> RecordId {
    RecordId::from_bytes([number; 32])
}

fn record() -> Record {
    Record {
        stamp: Stamp::ZERO,
        fence: Stamp::ZERO,
        fingerprint: Fingerprint::NONE,
        attempt: 1,
        retention: HOUR,
        response_retention: None,
        unresolved_retention: None,
        scope: Label::new("schedules"),
        key: None,
        checkpoint: None,
        resolved: false,
        extra: None,
        state: State::Completed(Body::kept("done".into())),
    }
}

fn all(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Writes a record and returns its stamp, trying again while another process (here: another store)
/// has the lock.
fn write(store: &SqliteStore, id: RecordId, expected: Option<Stamp>) -> Option<Stamp> {
    loop {
        match block_on(store.swap(&SwapRequest::new(&id, expected, Some(&record())))) {
            Ok(Swap::Done(stamp)) => return Some(stamp),
            Ok(Swap::Conflict(_)) => return None,
            Err(StoreError::Unavailable { .. }) => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// S9, S11: Answers come after the commit, one of two competing swaps succeeds, a caller that
/// leaves while queued affects no other, and dropping a store on any thread first writes what is
/// queued.
#[test]
fn schedules_of_writers() {
    let file = File::new();
    explore("sqlite: writers, one who leaves, and the end", 2_000, move || {
        let store = file.open();
        let winners = Arc::new(AtomicUsize::new(0));
        let writers = (0..2).map(|number| {
            let (store, winners, file) = (store.clone(), winners.clone(), file.clone());
            thread::spawn(move || {
                let record = record();
                let swap =
                    |id: RecordId| block_on(store.swap(&SwapRequest::new(&id, None, Some(&record)))).unwrap();
                let Swap::Done(stamp) = swap(id(number)) else { panic!("no other caller writes it") };
                assert_eq!(file.stamp(id(number)), Some(stamp), "answered before it was committed");
                if let Swap::Done(_) = swap(id(9)) {
                    winners.fetch_add(1, Ordering::SeqCst);
                }
            })
        });
        let writers: Vec<_> = writers.collect();
        let leaving = store.clone();
        let leaver = thread::spawn(move || {
            let swap = SwapRequest::new(&id(5), None, Some(&record()));
            let mut swap = leaving.swap(&swap);
            let _ = swap.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        });
        drop(store);
        all(writers);
        leaver.join().unwrap();
        assert_eq!(winners.load(Ordering::SeqCst), 1);
        assert!(file.stamp(id(9)).is_some());
        file.clear();
    });
}

/// L4: A wait ends by the store's own write or by another's, whenever it comes. A waiter that
/// leaves leaves nothing behind.
#[test]
fn schedules_of_waits() {
    let file = File::new();
    explore("sqlite: waits for a change, here and from elsewhere", 1_000, move || {
        let (store, other) = (file.open(), file.open());
        let [own, foreign] = [1, 2].map(|number| write(&store, id(number), None).unwrap());
        let waiter = |number: u8, stamp: Stamp, leaves: bool| {
            let store = store.clone();
            thread::spawn(move || {
                let id = id(number);
                let mut wait = store.changed(&id, stamp, HOUR);
                if leaves {
                    let _ = wait.as_mut().poll(&mut Context::from_waker(Waker::noop()));
                } else {
                    block_on(wait).unwrap();
                }
            })
        };
        let waiters = [waiter(1, own, false), waiter(2, foreign, false), waiter(1, own, true)];
        let elsewhere = thread::spawn(move || {
            write(&other, id(2), Some(foreign)).unwrap();
        });
        write(&store, id(1), Some(own)).unwrap();
        all(waiters);
        elsewhere.join().unwrap();
        assert_eq!(store.0.watcher.waiters(), 0);
        drop(store);
        file.clear();
    });
}

/// The waiters of a store alone, without a file: a waiter that registers and then reads either sees
/// the change or is woken, by the writer or by the watcher.
#[test]
fn schedules_of_waiters() {
    for by_writer in [true, false] {
        let name =
            if by_writer { "sqlite: waiters and the writer" } else { "sqlite: waiters and the watcher" };
        explore(name, 10_000, move || meet(by_writer));
    }
}

fn meet(by_writer: bool) {
    let waiters = Arc::new(Waiters::default());
    // The record's stamp, and the version of the file as another process's writes change it.
    let (present, version) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(1)));
    let waiting = |leaves: bool| {
        let (waiters, present) = (waiters.clone(), present.clone());
        thread::spawn(move || {
            let mut ticket = waiters.register(id(1), Stamp(1));
            if !leaves && present.load(Ordering::SeqCst) == 1 {
                assert!(waiters.wake_watcher().is_none());
                block_on(std::future::poll_fn(|context| ticket.poll(context))).unwrap();
            }
        })
    };
    let guard = waiters.wake_watcher().unwrap();
    let threads = [waiting(false), waiting(true), waiting(false)];
    let (room, stamp, file) = (waiters.clone(), present.clone(), version.clone());
    let watcher = thread::spawn(move || {
        let _guard = guard;
        let mut known = 1;
        while room.wait_for_waiters() {
            // In the order of the real watcher: the version, the waiters, the records.
            let version = file.load(Ordering::SeqCst);
            if version != known {
                let watched = room.watched();
                let stamps = vec![Some(Stamp(stamp.load(Ordering::SeqCst))); watched.ids.len()];
                room.take_changed(&watched, &stamps).wake();
                known = version;
            }
            room.sleep(HOUR);
        }
    });
    present.store(2, Ordering::SeqCst);
    if !by_writer {
        version.store(2, Ordering::SeqCst);
    } else if waiters.any() {
        waiters.take_written(&[(id(1), Stamp(2))]).wake();
    }
    all(threads);
    assert!(!waiters.any());
    waiters.close();
    watcher.join().unwrap();
}
