//! The write-ahead log: it is moved into the file as it grows, and cut once it is longer than usual.
//!
//! SQLite moves no page that a reader may still need, and starts the log anew only when no reader needs it. A reader that stays
//! open therefore lets it grow for as long as it is. Then the log counts where the file is limited, an operator is warned, and once
//! the reader is gone the log is cut: what is a lot is moved by a thread of its own, on which no caller waits.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::Connection;

use super::file::OpenFile;
use super::schema::Place;
use crate::clock::Clock;
use crate::observe;
use crate::sync::thread::{self, JoinHandle};

/// The longest log, in bytes, that nothing is made of.
pub(super) const USUAL: u64 = 8 << 20;
/// The shortest log, in bytes, that an operator is warned of; then of each time that it has doubled.
pub(super) const WARNED: u64 = 64 << 20;
/// How many pages may wait in the log before they are moved into the file: 4 MiB.
const CHECKPOINT_PAGES: i64 = 1000;
/// How many pages the writer moves by itself: its callers wait for that.
const INLINE_PAGES: i64 = 4 * CHECKPOINT_PAGES;
/// After how many pages written, as it is estimated, the log is asked how many wait. The question costs some microseconds.
const LOOK_PAGES: usize = 100;
/// How long from one try to the next to move or cut a log that is in use.
const PAUSE: Duration = Duration::from_millis(100);
/// Older releases do not know the question, and take it for the order to move.
const ASKS_SINCE: i32 = 3_051_000;

/// The thread that moves what is a lot, and whether it is done.
type Mover = (JoinHandle<()>, Arc<AtomicBool>);

/// What the writer does about the log.
pub(super) struct Log {
    place: Place,
    clock: Arc<dyn Clock>,
    /// About how many pages were written since the log was last asked.
    pages: Cell<usize>,
    /// When a long log may be looked at again.
    again: Cell<Duration>,
    /// The length of the log from which on somebody is to be warned next.
    warn: Cell<u64>,
    mover: RefCell<Option<Mover>>,
}

impl Log {
    pub(super) fn new(place: Place, clock: Arc<dyn Clock>) -> Log {
        Log {
            place,
            clock,
            pages: Cell::new(0),
            again: Cell::new(Duration::ZERO),
            warn: Cell::new(WARNED),
            mover: RefCell::new(None),
        }
    }

    /// About so many pages were written.
    pub(super) fn wrote(&self, pages: usize) {
        self.pages.set(self.pages.get() + pages);
    }

    /// Moves the log into the file if it has grown, and cuts it if it is long. Callers have their answers already, but
    /// those that come meanwhile wait. Should it fail, the next one does it.
    pub(super) fn tend(&self, db: &Connection, file: &Arc<OpenFile>) {
        let bytes = file.log_bytes();
        let is_long = bytes > USUAL && self.clock.monotonic() >= self.again.get();
        if !is_long && self.pages.get() < self.look_pages() {
            return;
        }
        self.pages.set(0);
        // A log that belongs to another file must not be moved into this one.
        if file.check().is_err() || self.is_moving() {
            return;
        }
        let Ok(waiting) = ask(db, "NOOP") else { return };
        match waiting {
            ..CHECKPOINT_PAGES if bytes <= USUAL => {}
            ..=INLINE_PAGES => drop(ask(db, "PASSIVE")),
            _ if is_long => self.move_apart(file),
            _ => {}
        }
        if is_long {
            self.again.set(self.clock.monotonic().saturating_add(PAUSE));
            self.cut(db);
        }
        self.warn(bytes);
    }

    /// Ends what was begun.
    pub(super) fn wait(&self) {
        if let Some((mover, _)) = self.mover.take() {
            let _ = mover.join();
        }
    }

    fn look_pages(&self) -> usize {
        if rusqlite::version_number() < ASKS_SINCE { CHECKPOINT_PAGES as usize } else { LOOK_PAGES }
    }

    fn is_moving(&self) -> bool {
        if self.mover.borrow().as_ref().is_some_and(|(_, done)| done.load(Ordering::Acquire)) {
            self.wait();
        }
        self.mover.borrow().is_some()
    }

    /// Moves what can be moved, beside the writer.
    fn move_apart(&self, file: &Arc<OpenFile>) {
        let (place, file) = (self.place.clone(), file.clone());
        let done = Arc::new(AtomicBool::new(false));
        let is_done = done.clone();
        let mover = thread::Builder::new().name("nevertwice-log".to_owned()).spawn(move || {
            if let Ok(db) = file.opening(|| place.open_reader()) {
                let _ = ask(&db, "PASSIVE");
            }
            is_done.store(true, Ordering::Release);
        });
        *self.mover.borrow_mut() = mover.ok().map(|mover| (mover, done));
    }

    /// Cuts the log if all of it is in the file and nobody reads from it: it waits for nobody.
    fn cut(&self, db: &Connection) {
        let is_moved = ask(db, "NOOP").is_ok_and(|waiting| waiting == 0);
        if is_moved && db.busy_timeout(Duration::ZERO).is_ok() {
            let _ = ask(db, "TRUNCATE");
            let _ = db.busy_timeout(self.place.busy_timeout());
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

/// How many pages of the log are not in the file yet, after a checkpoint of this mode.
fn ask(db: &Connection, mode: &str) -> rusqlite::Result<i64> {
    db.prepare_cached(&format!("PRAGMA main.wal_checkpoint({mode})"))?
        .query_row([], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?))
}
