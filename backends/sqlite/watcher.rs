//! The thread that detects writes to the file by others while there are waiters: by other
//! processes, and by transactions on the application's own connections. The store's own writes are
//! reported by its writer.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rusqlite::Connection;

use super::connection::Connector;
use super::error::{Error, Result};
use super::file::OpenFile;
use super::rows::Table;
use super::waiters::{Waiters, WatcherGuard};
use crate::clock::{Clock, SystemClock};
use crate::key::RecordId;
use crate::record::Stamp;
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Mutex, PoisonError};
use crate::wake::guarded;

/// The interval at which it checks for changes of the file. A check takes some microseconds.
const PAUSE: Duration = Duration::from_millis(2);
/// The additional pause for each record it had to read, so that it never uses more than part of a
/// core.
const PAUSE_PER_READ: Duration = Duration::from_micros(20);

/// The waiters of a store and the thread that watches for them. The thread is started for the first
/// waiter, and rests while there are none.
#[derive(Debug)]
pub(super) struct Watcher {
    waiters: Arc<Waiters>,
    connector: Connector,
    file: Arc<OpenFile>,
    table: Arc<Table>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Watcher {
    pub(super) fn new(
        waiters: Arc<Waiters>,
        connector: Connector,
        file: Arc<OpenFile>,
        table: Arc<Table>,
    ) -> Watcher {
        Watcher { waiters, connector, file, table, thread: Mutex::new(None) }
    }

    /// Returns the number of waiters.
    pub(super) fn waiters(&self) -> usize {
        self.waiters.count()
    }

    /// Waits until the record under `id` has another stamp, or until `within` has passed. `read`
    /// returns the present stamp.
    pub(super) async fn changed(
        &self,
        id: RecordId,
        stamp: Stamp,
        within: Duration,
        read: impl FnOnce() -> Result<Option<Stamp>>,
    ) -> Result<()> {
        // Registered first, read second: a change is seen by one or the other.
        let mut ticket = self.waiters.register(id, stamp);
        if read()? != Some(stamp) {
            return Ok(());
        }
        self.ensure_watched()?;
        let mut time_out = SystemClock.sleep(within);
        // The task is woken on the thread of the writer or the watcher.
        guarded(poll_fn(|context| match ticket.poll(context) {
            Poll::Ready(ending) => Poll::Ready(ending),
            Poll::Pending => time_out.as_mut().poll(context).map(Ok),
        }))
        .await
    }

    /// Makes sure that the thread watches, for a registered waiter.
    fn ensure_watched(&self) -> Result<()> {
        let Some(guard) = self.waiters.wake_watcher() else { return Ok(()) };
        let watcher = WatcherThread {
            waiters: self.waiters.clone(),
            connector: self.connector.clone(),
            file: self.file.clone(),
            table: self.table.clone(),
        };
        let started = thread::Builder::new()
            .name("nevertwice-watch".to_owned())
            .spawn(move || watcher.run(guard))
            .map_err(|error| Error::unavailable(format!("no thread to watch its file on: {error}")))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.waiters.close();
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // A woken task may drop the last handle right there, on the watching thread.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != thread::current().id()) {
            let _ = thread.join();
        }
    }
}

struct WatcherThread {
    waiters: Arc<Waiters>,
    connector: Connector,
    file: Arc<OpenFile>,
    table: Arc<Table>,
}

/// A connection, and the version of the data that it last read.
struct VersionedConnection {
    db: Connection,
    version: Option<i64>,
}

impl WatcherThread {
    fn run(self, _guard: WatcherGuard) {
        let mut connection = None;
        while self.waiters.wait_for_waiters() {
            match self.check(&mut connection) {
                Ok(reads) => self.waiters.sleep(PAUSE + PAUSE_PER_READ * reads),
                Err(error) => {
                    connection = None;
                    self.waiters.fail_all(&error);
                }
            }
        }
    }

    /// Wakes the waiters whose records have changed, if the file has. Returns the number of records
    /// read.
    fn check(&self, connection: &mut Option<VersionedConnection>) -> Result<u32> {
        self.file.check_recent()?;
        let connection = match connection {
            Some(connection) => connection,
            None => {
                let db = self.file.opening(|| self.connector.open_reader())?;
                connection.insert(VersionedConnection { db, version: None })
            }
        };
        // The order is version, waiters, records: a change after any of these steps gives another
        // version.
        let version = Some(data_version(&connection.db)?);
        if connection.version == version {
            return Ok(0);
        }
        let watched = self.waiters.watched();
        let stamp = |id| self.table.stamp(&connection.db, id);
        let stamps = watched.ids.iter().map(stamp).collect::<Result<Vec<_>, _>>()?;
        self.waiters.take_changed(&watched, &stamps).wake();
        connection.version = version;
        Ok(u32::try_from(stamps.len()).unwrap_or(u32::MAX))
    }
}

/// Returns a number that changes when another connection, of any process, commits.
fn data_version(db: &Connection) -> Result<i64> {
    Ok(db.prepare_cached("PRAGMA main.data_version")?.query_row([], |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use futures_executor::block_on;
    use futures_util::future::{Either, select};

    use super::super::SqliteStore;
    use super::*;
    use crate::error::StoreError;
    use crate::store::{Store, Swap, SwapRequest};
    use crate::{Begin, Engine, Request};

    const LONG: Duration = Duration::from_secs(3600);

    fn ends(future: impl Future<Output = Result<(), StoreError>>) -> bool {
        let (future, patience) = (std::pin::pin!(future), SystemClock.sleep(Duration::from_secs(10)));
        match block_on(select(future, patience)) {
            Either::Left((ended, _)) => ended.is_ok(),
            Either::Right(_) => false,
        }
    }

    /// Creates a store with one record and without a watcher: only its own writer reports changes.
    fn unwatched() -> (SqliteStore, WatcherGuard, RecordId, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path().join("x.db")).unwrap();
        let request = Request::new("tests", "k").unwrap();
        let engine = Engine::builder(store.clone()).build().unwrap();
        assert!(matches!(block_on(engine.begin(&request)).unwrap(), Begin::Acquired(_)));
        let guard = store.0.watcher.waiters.wake_watcher().unwrap();
        (store, guard, request.id(), dir)
    }

    #[test]
    fn a_change_right_after_the_look_is_not_missed() {
        let (store, _guard, id, _dir) = unwatched();
        let record = block_on(store.load(&id)).unwrap().record.unwrap();
        let look = || {
            let swap = block_on(store.swap(&SwapRequest::new(&id, Some(record.stamp), Some(&record))));
            assert!(matches!(swap, Ok(Swap::Done(_))));
            // The writer wakes waiters after it has answered; this second answer comes after that.
            assert!(!block_on(store.discard(&RecordId::from_bytes([0; 32]))).unwrap());
            Ok(Some(record.stamp))
        };
        let changed = std::pin::pin!(store.0.watcher.changed(id, record.stamp, LONG, look));
        assert!(changed.poll(&mut Context::from_waker(Waker::noop())).is_ready());
    }

    #[test]
    fn the_writer_itself_wakes_the_waiters_of_its_writes() {
        let (store, _guard, id, _dir) = unwatched();
        for removes in [false, false, true] {
            let record = block_on(store.load(&id)).unwrap().record.unwrap();
            let mut changed = store.changed(&id, record.stamp, LONG);
            assert!(changed.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            if removes {
                assert!(block_on(store.discard(&id)).unwrap());
            } else {
                block_on(store.swap(&SwapRequest::new(&id, Some(record.stamp), Some(&record)))).unwrap();
            }
            assert!(ends(changed));
        }
        assert_eq!(store.0.watcher.waiters(), 0);
    }

    #[test]
    fn the_watcher_is_idle_without_waiters_and_ends_with_the_store() {
        let (store, guard, id, dir) = unwatched();
        drop(guard);
        let record = block_on(store.load(&id)).unwrap().record.unwrap();
        for _ in 0..3 {
            let mut changed = store.changed(&id, record.stamp, LONG);
            assert!(changed.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            drop(changed);
            while !store.0.watcher.waiters.is_idle() {
                thread::yield_now();
            }
        }
        // The watcher resumes for a write that is not the store's own.
        let changed = store.changed(&id, record.stamp, LONG);
        let other = SqliteStore::open(dir.path().join("x.db")).unwrap();
        let both = futures_util::future::join(changed, other.discard(&id));
        assert!(ends(async { both.await.0 }));
        let waiters = store.0.watcher.waiters.clone();
        drop(store);
        assert_eq!(Arc::strong_count(&waiters), 1);
    }
}
