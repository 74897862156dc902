//! The reading connections, which never wait for the writer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rusqlite::Connection;

use super::connection::{Connector, is_busy};
use super::error::Result;
use super::file::OpenFile;
use crate::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// A few connections, opened on demand. A read takes about ten microseconds on the caller's thread.
#[derive(Debug)]
pub(super) struct Readers {
    connector: Connector,
    file: Arc<OpenFile>,
    slots: [Slot; READERS],
}

/// A connection on its own cache line, so that threads do not contend for the line of their
/// neighbour.
#[derive(Debug)]
#[repr(align(128))]
struct Slot(Mutex<Option<Connection>>);

const READERS: usize = 4;

thread_local! {
    /// The slot this thread tries first: most likely its own connection, still in the CPU's cache.
    static OWN_SLOT: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % READERS
    };
}

impl Readers {
    pub(super) fn new(connector: Connector, file: Arc<OpenFile>, first: Connection) -> Readers {
        let mut first = Some(first);
        Readers { connector, file, slots: std::array::from_fn(|_| Slot(Mutex::new(first.take()))) }
    }

    /// Calls `read` with a connection that no other thread uses meanwhile.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        self.file.check_recent()?;
        let mut slot = self.slot();
        let db = match slot.take() {
            Some(db) => db,
            None => self.file.opening(|| self.connector.open_reader())?,
        };
        read(slot.insert(db)).or_else(|error| {
            self.file.check()?;
            Err(error)
        })
    }

    /// Returns true if some transaction holds the file's write lock.
    pub(super) fn is_locked(&self) -> Result<bool> {
        self.read(|db| {
            let taken = db
                .busy_timeout(Duration::ZERO)
                .and_then(|()| db.pragma_update(None, "query_only", false))
                .and_then(|()| db.execute_batch("BEGIN IMMEDIATE"));
            if taken.is_ok() {
                db.execute_batch("ROLLBACK")?;
            }
            db.pragma_update(None, "query_only", true)?;
            db.busy_timeout(self.connector.busy_timeout())?;
            match taken {
                Ok(()) => Ok(false),
                Err(error) if is_busy(&error) => Ok(true),
                Err(error) => Err(error.into()),
            }
        })
    }

    /// Returns the thread's own slot, else a free one. If none is free, waits for its own: reads
    /// are short.
    fn slot(&self) -> MutexGuard<'_, Option<Connection>> {
        let own = OWN_SLOT.with(|own| *own);
        let mut slots = (own..READERS).chain(0..own).map(|at| &self.slots[at].0);
        let free = slots.find_map(|slot| match slot.try_lock() {
            Ok(free) => Some(free),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        });
        free.unwrap_or_else(|| self.slots[own].0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
