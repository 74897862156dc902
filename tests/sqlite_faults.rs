//! What a disk and a file do to a SQLite store: system calls that fail, a disk that is full, bytes that change, tables of
//! another release. Each check says in the output what it did.
#![cfg(all(feature = "sqlite", unix))]
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

/// An engine that gives up at `limit` what cannot be had.
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

/// The response that [`acquire`]d keys are completed with: each its own, and of another length than its neighbours'.
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
