//! The outbox in a SQLite database.

use std::path::PathBuf;
use std::time::Duration;

use nevertwice::outbox::{EventId, Outbox, Relay};
use nevertwice::{Clock, Error, ManualClock, SqliteOutbox, SqliteStore, StoreError};
use rusqlite::{Connection, TransactionBehavior};
use tempfile::TempDir;

use crate::suite::{Db, Ledger, soon, suite, until};

const SECOND: Duration = Duration::from_secs(1);

pub(crate) struct File {
    dir: TempDir,
    clock: ManualClock,
}

impl File {
    pub(crate) fn new() -> File {
        let file = File { dir: tempfile::tempdir().unwrap(), clock: ManualClock::new() };
        file.raw().execute_batch("PRAGMA journal_mode = wal; CREATE TABLE effects (name TEXT)").unwrap();
        file
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("app.db")
    }

    fn raw(&self) -> Connection {
        let db = Connection::open(self.path()).unwrap();
        db.busy_timeout(SECOND * 60).unwrap();
        db
    }

    fn open(&self) -> Result<SqliteOutbox, StoreError> {
        SqliteOutbox::builder(self.path()).clock(self.clock.clone()).open()
    }
}

impl Db for File {
    type Outbox = SqliteOutbox;

    async fn start() -> File {
        File::new()
    }

    async fn outbox(&self) -> SqliteOutbox {
        self.open().unwrap()
    }

    fn clock(&self) -> &ManualClock {
        &self.clock
    }

    async fn push_or(&self, commit: bool, topic: &str, key: &str, payload: &[u8]) -> Result<EventId, Error> {
        let outbox = self.open().unwrap();
        let mut db = self.raw();
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        let id = outbox.push_in(&tx, topic, key, payload)?;
        if commit {
            tx.commit().unwrap();
        }
        Ok(id)
    }

    async fn push_all(&self, events: &[(String, String)]) {
        let outbox = self.open().unwrap();
        let mut db = self.raw();
        let tx = db.transaction().unwrap();
        for (key, payload) in events {
            outbox.push_in(&tx, "orders", key, payload).unwrap();
        }
        tx.commit().unwrap();
    }

    async fn pass(&self, time: Duration) {
        self.clock.set_wall(self.clock.wall() + time);
    }
}

suite!(File);

fn unusable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(error @ StoreError::Unusable { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_commit_of_another_connection_wakes_an_idle_relay() {
    let file = File::new();
    let outbox = SqliteOutbox::open(file.path()).unwrap();
    // Its own look comes far too late.
    let relay = Relay::new(outbox.clone()).poll(SECOND * 3600);
    let ledger = Ledger::default();
    let push = async {
        for number in 0..5 {
            let mut db = file.raw();
            let tx = db.transaction().unwrap();
            outbox.push_in(&tx, "orders", "a", number.to_string()).unwrap();
            tx.commit().unwrap();
            until(|| ledger.len() == number + 1).await;
        }
    };
    tokio::select! {
        ended = relay.run(ledger.deliver()) => panic!("{ended:?}"),
        () = push => {}
    }
}

#[tokio::test]
async fn s13_a_clock_set_back_leaves_no_event_waiting() {
    let file = File::new();
    let relay = file.relay().await.back_off(SECOND * 5, SECOND * 5);
    file.push("orders", "a", "1").await;
    let ledger = Ledger::default();
    let down = ledger.deliver_but("1", nevertwice::outbox::DeliveryError::retry("down"));
    assert_eq!(soon(relay.drain(down)).await.unwrap().retried, 1);
    assert_eq!(soon(relay.drain(ledger.deliver())).await.unwrap().delivered, 0);
    file.clock.set_wall(file.clock.wall() - SECOND * 86_400);
    assert_eq!(soon(relay.drain(ledger.deliver())).await.unwrap().delivered, 1);
}

#[tokio::test]
async fn a_path_that_holds_no_database_of_the_application_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.db");
    let says = unusable(SqliteOutbox::open(&missing));
    assert!(says.contains("create that first") && !missing.exists(), "{says}");
    let text = dir.path().join("text");
    std::fs::write(&text, "not a database, whatever its name says".repeat(100)).unwrap();
    let says = unusable(SqliteOutbox::open(&text));
    assert!(says.contains("not a SQLite database"), "{says}");
    for name in ["", "a b", "x\"; DROP TABLE y", "sqlite_x", &"x".repeat(51)] {
        unusable(SqliteOutbox::builder(File::new().path()).table(name).open());
    }
}

#[tokio::test]
async fn s14_a_table_of_another_owner_or_of_a_newer_release_is_refused_and_left_as_it_is() {
    let file = File::new();
    file.raw().execute_batch("CREATE TABLE nevertwice_outbox (x)").unwrap();
    let says = unusable(SqliteOutbox::open(file.path()));
    assert!(says.contains("not an outbox's"), "{says}");
    // A store's tables are no outbox either.
    drop(SqliteStore::open(file.path()).unwrap());
    let says = unusable(SqliteOutbox::builder(file.path()).table("nevertwice").open());
    assert!(says.contains("not an outbox's") || says.contains("version"), "{says}");

    let file = File::new();
    file.push("orders", "a", "1").await;
    file.raw().execute("UPDATE nevertwice_outbox_meta SET version = 2", []).unwrap();
    let says = unusable(SqliteOutbox::open(file.path()));
    assert!(says.contains("version 2"), "{says}");
    let rows: i64 =
        file.raw().query_row("SELECT count(*) FROM nevertwice_outbox", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn a_transaction_elsewhere_or_one_that_is_over_is_refused() {
    let (file, elsewhere) = (File::new(), File::new());
    let (outbox, other) = (file.open().unwrap(), elsewhere.open().unwrap());
    let mut db = elsewhere.raw();
    let tx = db.transaction().unwrap();
    assert!(matches!(outbox.push_in(&tx, "t", "k", "x"), Err(Error::Store(StoreError::Unusable { .. }))));
    tx.execute_batch("ROLLBACK").unwrap();
    assert!(matches!(other.push_in(&tx, "t", "k", "x"), Err(Error::Store(StoreError::Unusable { .. }))));
    drop(tx);
    let mut memory = Connection::open_in_memory().unwrap();
    let tx = memory.transaction().unwrap();
    assert!(matches!(outbox.push_in(&tx, "t", "k", "x"), Err(Error::Store(StoreError::Unusable { .. }))));
    assert_eq!(outbox.stats().await.unwrap().pending, 0);
}

#[tokio::test]
async fn a_savepoint_that_is_rolled_back_takes_its_event_along() {
    let file = File::new();
    let outbox = file.open().unwrap();
    let mut db = file.raw();
    let tx = db.transaction().unwrap();
    outbox.push_in(&tx, "orders", "a", "kept").unwrap();
    tx.execute_batch("SAVEPOINT s").unwrap();
    outbox.push_in(&tx, "orders", "a", "undone").unwrap();
    tx.execute_batch("ROLLBACK TO s; RELEASE s").unwrap();
    tx.commit().unwrap();
    let ledger = Ledger::default();
    soon(Relay::new(outbox).drain(ledger.deliver())).await.unwrap();
    assert_eq!(ledger.take(), ["a:kept"]);
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_was_replaced_stops_the_relay_with_the_reason() {
    let file = File::new();
    let outbox = SqliteOutbox::open(file.path()).unwrap();
    std::fs::rename(file.path(), file.path().with_extension("moved")).unwrap();
    let says = unusable(soon(Relay::new(outbox).run(Ledger::default().deliver())).await);
    assert!(says.contains("put it in its place"), "{says}");
}

#[tokio::test]
async fn a_relay_survives_a_writer_that_holds_the_lock_for_long() {
    let file = File::new();
    file.push("orders", "a", "1").await;
    let outbox = SqliteOutbox::builder(file.path()).busy_timeout(Duration::from_millis(10)).open().unwrap();
    let relay = Relay::new(outbox);
    let ledger = Ledger::default();
    let mut db = file.raw();
    let lock = db.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    // The error is transient: a drain reports it, a running relay goes on.
    assert!(matches!(soon(relay.drain(ledger.deliver())).await, Err(StoreError::Unavailable { .. })));
    let release = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        lock.commit().unwrap();
        until(|| ledger.len() == 1).await;
    };
    tokio::select! {
        ended = relay.run(ledger.deliver()) => panic!("{ended:?}"),
        () = release => {}
    }
}
