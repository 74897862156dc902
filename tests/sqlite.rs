//! The SQLite store: its file, its time, several users of one file, and transactions of the
//! application's own.
#![cfg(feature = "sqlite")]
#![allow(clippy::wildcard_enum_match_arm)] // whatever else it is, the test fails

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_executor::block_on;
use nevertwice::clock::Boot;
use nevertwice::clock::Sleep;
use nevertwice::sqlite::{SqliteStore, SqliteStoreBuilder, Synchronous};
use nevertwice::store::{Record, Store};
use nevertwice::{
    Begin, Clock, Durability, Engine, Error, Fingerprint, Lease, LeaseToken, ManualClock, RecordId, Recovery,
    Request, Stamp, StoreError,
};
use rusqlite::Connection;
use tempfile::TempDir;

#[path = "sqlite/batches.rs"]
mod batches;
#[path = "sqlite/boots.rs"]
mod boots;
#[path = "support/children.rs"]
mod children;
#[path = "sqlite/evidence.rs"]
mod evidence;
#[path = "sqlite/files.rs"]
mod files;
#[path = "sqlite/growth.rs"]
mod growth;
#[cfg(unix)]
#[path = "sqlite/identity.rs"]
mod identity;
#[path = "sqlite/machines.rs"]
mod machines;
#[path = "sqlite/paths.rs"]
mod paths;
#[path = "sqlite/prefixes.rs"]
mod prefixes;
#[path = "sqlite/read_only.rs"]
mod read_only;
#[path = "sqlite/scanning.rs"]
mod scanning;
#[path = "sqlite/sharing.rs"]
mod sharing;
#[path = "sqlite/time.rs"]
mod time;
#[path = "sqlite/transaction.rs"]
mod transaction;
#[path = "sqlite/waiting.rs"]
mod waiting;
#[cfg(feature = "tracing")]
#[path = "sqlite/warned.rs"]
mod warned;

nevertwice::conformance!(sqlite, async {
    let dir = tempfile::tempdir().unwrap();
    (SqliteStore::open(dir.path().join("x.db")).unwrap(), dir)
});

/// The clock of another process on the machine of a [`ManualClock`]. The second clock gives its
/// wall time.
#[derive(Debug, Clone)]
struct Other(ManualClock, ManualClock);

impl Clock for Other {
    fn wall(&self) -> Duration {
        self.1.wall()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        self.0.sleep(time)
    }

    fn boot(&self) -> Option<Boot> {
        self.0.boot()
    }
}

/// Returns the clock of another process on the machine of `clock`, whose wall clock always reads
/// `wall`.
fn same_boot(clock: &ManualClock, wall: Duration) -> Other {
    Other(clock.clone(), ManualClock::starting_at(wall))
}

/// A file in a temporary folder of its own.
struct File(TempDir);

impl File {
    fn new() -> File {
        File(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("keys.db")
    }

    fn store(&self) -> SqliteStore {
        SqliteStore::open(self.path()).unwrap()
    }

    fn engine(&self) -> Engine {
        engine(self.store())
    }

    fn at(&self, clock: &(impl Clock + Clone)) -> SqliteStoreBuilder {
        SqliteStore::builder(self.path()).clock(clock.clone())
    }

    /// Copies the file as `kill -9` leaves it: no store had the time to close it.
    fn killed(&self) -> File {
        let copy = File::new();
        for end in ["", "-wal"] {
            let name = format!("keys.db{end}");
            std::fs::copy(self.0.path().join(&name), copy.0.path().join(&name)).unwrap();
        }
        copy
    }

    fn raw(&self) -> Connection {
        Connection::open(self.path()).unwrap()
    }

    fn rows(&self) -> i64 {
        self.raw().query_row("SELECT count(*) FROM nevertwice", [], |row| row.get(0)).unwrap()
    }
}

fn engine(store: SqliteStore) -> Engine {
    Engine::builder(store).lease(LEASE).retention(RETENTION).build().unwrap()
}

const LEASE: Duration = Duration::from_secs(30);
const RETENTION: Duration = Duration::from_secs(3600);

fn request(key: &str) -> Request {
    Request::new("tests", key).unwrap()
}

fn id(key: &str) -> RecordId {
    request(key).id()
}

fn stored(store: &SqliteStore, key: &str) -> Option<Record> {
    block_on(store.load(&id(key))).unwrap().record.map(|record| *record)
}

/// Returns a record that can be stored under any id.
fn sample() -> Record {
    let file = File::new();
    let store = file.store();
    let _lease = acquire(&engine(store.clone()), "any");
    stored(&store, "any").unwrap()
}

fn acquire(engine: &Engine, key: &str) -> Lease {
    match block_on(engine.begin(&request(key))).unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}

fn completed<L: std::fmt::Debug>(begin: Begin<L>) -> Vec<u8> {
    match begin {
        Begin::Completed(done) => done.response().unwrap().to_vec(),
        other => panic!("{other:?}"),
    }
}

fn replay(engine: &Engine, key: &str) -> Vec<u8> {
    completed(block_on(engine.begin(&request(key))).unwrap())
}

fn store_error(begin: Result<Begin, Error>) -> StoreError {
    match begin {
        Err(Error::Store(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_unusable(path: &Path, words: &str) {
    match SqliteStore::open(path) {
        Err(StoreError::Unusable { detail, .. }) => assert!(detail.contains(words), "{detail}"),
        other => panic!("{other:?}"),
    }
}
