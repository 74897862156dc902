//! By hand on SQLite: a transaction for the begin, another for the complete.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use crate::side::{LEASE_MS, RETENTION_MS, Side, key, response};

thread_local! {
    /// The connection with which a worker reads, and its file.
    static READER: std::cell::RefCell<Option<(PathBuf, Connection)>> = const { std::cell::RefCell::new(None) };
}

/// The threads on which the blocking calls are made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// The caller's thread: right for one caller only.
    Direct,
    /// Tokio's blocking threads, one after the other.
    Spawned,
}

#[derive(Clone)]
pub(crate) struct HandSqlite {
    writer: Arc<Mutex<Connection>>,
    path: Arc<Path>,
    calls: Calls,
}

fn open(path: &Path) -> Connection {
    let db = Connection::open(path).expect("the file opens");
    db.busy_timeout(Duration::from_secs(5)).expect("an option");
    // The settings that the store uses.
    db.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).expect("an option");
    db.pragma_update(None, "synchronous", "FULL").expect("an option");
    db.pragma_update(None, "cache_size", -8 * 1024).expect("an option");
    db
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("past 1970").as_millis() as i64
}

impl HandSqlite {
    pub(crate) fn open(path: &Path, calls: Calls) -> HandSqlite {
        let db = open(path);
        db.execute_batch(
            "CREATE TABLE IF NOT EXISTS operations (
                key TEXT PRIMARY KEY, response BLOB, expires INTEGER NOT NULL
             );
             CREATE INDEX IF NOT EXISTS by_expiry ON operations (expires);",
        )
        .expect("the table is made");
        HandSqlite { writer: Arc::new(Mutex::new(db)), path: path.into(), calls }
    }

    async fn write(&self, work: impl FnOnce(&mut Connection) + Send + 'static) {
        let writer = self.writer.clone();
        let work = move || work(&mut writer.lock().expect("no caller panics"));
        match self.calls {
            Calls::Direct => work(),
            Calls::Spawned => tokio::task::spawn_blocking(work).await.expect("no caller panics"),
        }
    }

    /// Reads on the current thread, over a connection of its own: the pages are in memory.
    fn read<T>(&self, work: impl FnOnce(&mut Connection) -> T) -> T {
        READER.with_borrow_mut(|reader| {
            if reader.as_ref().is_none_or(|(path, _)| **path != *self.path) {
                *reader = Some((self.path.to_path_buf(), open(&self.path)));
            }
            let (_, db) = reader.as_mut().expect("just set");
            work(db)
        })
    }
}

fn begin(db: &mut Connection, key: &str) {
    let (now, expires) = (now_ms(), now_ms() + LEASE_MS as i64);
    let begin = db.transaction_with_behavior(TransactionBehavior::Immediate).expect("it begins");
    let inserted = begin
        .prepare_cached(
            "INSERT INTO operations (key, response, expires) VALUES (?1, NULL, ?2)
             ON CONFLICT (key) DO UPDATE SET response = NULL, expires = ?2 WHERE expires <= ?3",
        )
        .and_then(|mut insert| insert.execute(params![key, expires, now]))
        .expect("it is inserted");
    assert_eq!(inserted, 1);
    begin.commit().expect("it is committed");
}

fn complete(db: &mut Connection, key: &str, response: &[u8]) {
    let expires = now_ms() + RETENTION_MS as i64;
    let complete = db.transaction_with_behavior(TransactionBehavior::Immediate).expect("it begins");
    let updated = complete
        .prepare_cached("UPDATE operations SET response = ?2, expires = ?3 WHERE key = ?1")
        .and_then(|mut update| update.execute(params![key, response, expires]))
        .expect("it is updated");
    assert_eq!(updated, 1);
    complete.commit().expect("it is committed");
}

fn stored(db: &mut Connection, key: &str) -> Option<Vec<u8>> {
    let now = now_ms();
    let read = db.transaction().expect("it begins");
    let found = read
        .prepare_cached("SELECT response FROM operations WHERE key = ?1 AND expires > ?2")
        .and_then(|mut select| select.query_row(params![key, now], |row| row.get(0)).optional())
        .expect("it is read");
    read.commit().expect("it ends");
    found.flatten()
}

impl Side for HandSqlite {
    async fn fresh(&self, key: String) {
        let key: Arc<str> = key.into();
        let begun = key.clone();
        self.write(move |db| begin(db, &begun)).await;
        self.write(move |db| complete(db, &key, &response())).await;
    }

    async fn replay(&self, key: String) {
        assert!(self.read(|db| stored(db, &key)).is_some());
    }

    async fn fill(&self, numbers: std::ops::Range<u64>) {
        let mut db = self.writer.lock().expect("no caller panics");
        let (mut rest, expires) = (numbers, now_ms() + RETENTION_MS as i64);
        while !rest.is_empty() {
            let fill = db.transaction_with_behavior(TransactionBehavior::Immediate).expect("it begins");
            for number in rest.by_ref().take(4096) {
                fill.prepare_cached("INSERT INTO operations (key, response, expires) VALUES (?1, ?2, ?3)")
                    .and_then(|mut insert| insert.execute(params![key(number), response(), expires]))
                    .expect("it is inserted");
            }
            fill.commit().expect("it is committed");
        }
    }
}
