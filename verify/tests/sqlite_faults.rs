//! Faults of the disk and the file of a SQLite store: failing system calls, a full disk, damaged
//! bytes, tables of another release. Each check prints what it did.
#![allow(clippy::wildcard_enum_match_arm)] // whatever else it is, the test fails

use std::path::Path;
use std::time::Duration;

use futures_executor::block_on;
use nevertwice::{Begin, Engine, Lease, Request, SqliteStore};
use rusqlite::Connection;

#[path = "sqlite_faults/damage.rs"]
mod damage;
#[path = "support/disks.rs"]
mod disks;
#[path = "sqlite_faults/full.rs"]
mod full;
#[path = "sqlite_faults/image.rs"]
mod image;
#[path = "sqlite_faults/syscalls.rs"]
mod syscalls;
#[path = "sqlite_faults/versions.rs"]
mod versions;

const LEASE: Duration = Duration::from_secs(3600);
const FILE: &str = "keys.db";

fn request(key: &str) -> Request {
    Request::new("faults", key).unwrap()
}

/// Creates an engine whose calls time out after `limit`.
fn engine(store: SqliteStore, limit: Duration) -> Engine {
    Engine::builder(store).lease(LEASE).call_timeout(limit).finish_timeout(limit).build().unwrap()
}

fn open(folder: &Path) -> Engine {
    engine(SqliteStore::open(folder.join(FILE)).unwrap(), Duration::from_secs(10))
}

fn acquire(engine: &Engine, key: &str) -> Lease {
    match block_on(engine.begin(&request(key))).unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{key}: {other:?}"),
    }
}

/// Returns the response for an [`acquire`]d key: unique, and of another length than its
/// neighbours'.
fn response(key: &str) -> Vec<u8> {
    let times = 5 + key.bytes().map(usize::from).sum::<usize>() % 20;
    key.repeat(times).into_bytes()
}

fn assert_replays(engine: &Engine, key: &str) {
    match block_on(engine.begin(&request(key))).unwrap() {
        Begin::Completed(done) => assert_eq!(done.response().unwrap(), &response(key), "{key}"),
        other => panic!("{key}: {other:?}"),
    }
}

fn assert_intact(folder: &Path) {
    let db = Connection::open(folder.join(FILE)).unwrap();
    let intact: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(intact, "ok");
}
