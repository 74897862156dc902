//! The write-ahead log: checkpointed as it grows, and truncated once it is longer than usual.
//!
//! SQLite moves no page that a reader may still need, and restarts the log only when no reader
//! needs it. A reader that stays open therefore makes it grow. In that case the log counts towards
//! the file's limit, an operator is warned, and the log is truncated once the reader is gone. A
//! large log is moved by a separate thread that no caller waits for.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;

use super::connection::Connector;
use super::file::OpenFile;
use crate::clock::Clock;
use crate::observe;
use crate::sync::thread::{self, JoinHandle};

/// The largest log in bytes that does not count as long.
pub(super) const USUAL: u64 = 8 << 20;
/// The log size in bytes at which an operator is first warned, and again each time it doubles.
pub(super) const WARNED: u64 = 64 << 20;
/// The number of pages that may wait in the log before they are moved into the file: 4 MiB.
const CHECKPOINT_PAGES: i64 = 1000;
/// The number of pages that the writer moves itself, while its callers wait.
const INLINE_PAGES: i64 = 4 * CHECKPOINT_PAGES;
/// The estimated number of written pages after which the log is queried. The query takes some
/// microseconds.
const QUERY_PAGES: usize = 100;
/// The interval between attempts to move or truncate a log that is in use.
const PAUSE: Duration = Duration::from_millis(100);
/// The first SQLite release with the `NOOP` mode. Older ones run a checkpoint instead.
const NOOP_SINCE: i32 = 3_051_000;

/// A thread that moves a large log, and a flag that it is done.
type Checkpointer = (JoinHandle<()>, Arc<AtomicBool>);

/// The writer's state for maintaining the log.
pub(super) struct Log {
    connector: Connector,
    clock: Arc<dyn Clock>,
    /// The estimated number of pages written since the last query.
    pages: Cell<usize>,
    /// The earliest time of the next attempt on a long log.
    again: Cell<Duration>,
    /// The log size in bytes at which the next warning is due.
    warn: Cell<u64>,
    checkpointer: RefCell<Option<Checkpointer>>,
}

impl Log {
    pub(super) fn new(connector: Connector, clock: Arc<dyn Clock>) -> Log {
        Log {
            connector,
            clock,
            pages: Cell::new(0),
            again: Cell::new(Duration::ZERO),
            warn: Cell::new(WARNED),
            checkpointer: RefCell::new(None),
        }
    }

    /// Adds to the estimate of pages written.
    pub(super) fn wrote(&self, pages: usize) {
        self.pages.set(self.pages.get() + pages);
    }

    /// Moves the log into the file if it has grown, and truncates it if it is long. Callers already
    /// have their answers, but new ones wait meanwhile. After a failure the next call tries again.
    pub(super) fn maintain(&self, db: &Connection, file: &Arc<OpenFile>) {
        let bytes = file.log_bytes();
        let is_long = bytes > USUAL && self.clock.monotonic() >= self.again.get();
        if !is_long && self.pages.get() < self.query_pages() {
            return;
        }
        self.pages.set(0);
        // A log that belongs to another file must not be moved into this one.
        if file.check().is_err() || self.is_checkpointing() {
            return;
        }
        let Ok(waiting) = checkpoint(db, "NOOP") else { return };
        match waiting {
            ..CHECKPOINT_PAGES if bytes <= USUAL => {}
            ..=INLINE_PAGES => drop(checkpoint(db, "PASSIVE")),
            _ if is_long => self.checkpoint_on_thread(file),
            _ => {}
        }
        if is_long {
            self.again.set(self.clock.monotonic().saturating_add(PAUSE));
            self.truncate(db);
        }
        self.warn(bytes);
    }

    /// Waits for the moving thread to finish.
    pub(super) fn wait(&self) {
        if let Some((checkpointer, _)) = self.checkpointer.take() {
            let _ = checkpointer.join();
        }
    }

    fn query_pages(&self) -> usize {
        if rusqlite::version_number() < NOOP_SINCE { CHECKPOINT_PAGES as usize } else { QUERY_PAGES }
    }

    fn is_checkpointing(&self) -> bool {
        if self.checkpointer.borrow().as_ref().is_some_and(|(_, done)| done.load(Ordering::Acquire)) {
            self.wait();
        }
        self.checkpointer.borrow().is_some()
    }

    /// Moves as much as possible on a separate thread.
    fn checkpoint_on_thread(&self, file: &Arc<OpenFile>) {
        let (connector, file) = (self.connector.clone(), file.clone());
        let done = Arc::new(AtomicBool::new(false));
        let is_done = done.clone();
        let checkpointer = thread::Builder::new().name("nevertwice-log".to_owned()).spawn(move || {
            if let Ok(db) = file.opening(|| connector.open_reader()) {
                let _ = checkpoint(&db, "PASSIVE");
            }
            is_done.store(true, Ordering::Release);
        });
        *self.checkpointer.borrow_mut() = checkpointer.ok().map(|checkpointer| (checkpointer, done));
    }

    /// Truncates the log if all of it is in the file and no reader uses it. Never blocks on
    /// readers.
    fn truncate(&self, db: &Connection) {
        let is_moved = checkpoint(db, "NOOP").is_ok_and(|waiting| waiting == 0);
        if is_moved && db.busy_timeout(Duration::ZERO).is_ok() {
            let _ = checkpoint(db, "TRUNCATE");
            let _ = db.busy_timeout(self.connector.busy_timeout());
        }
    }

    fn warn(&self, bytes: u64) {
        if bytes >= self.warn.get() {
            self.warn.set(bytes.saturating_mul(2));
            observe::store_warning("sqlite", &super::Warning::LongLog { bytes });
        } else if bytes <= USUAL {
            self.warn.set(WARNED);
        }
    }
}

/// Runs a checkpoint of the given mode and returns the number of pages still only in the log.
fn checkpoint(db: &Connection, mode: &str) -> rusqlite::Result<i64> {
    db.prepare_cached(&format!("PRAGMA main.wal_checkpoint({mode})"))?
        .query_row([], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?))
}
