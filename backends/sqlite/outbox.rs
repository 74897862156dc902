//! The outbox in a SQLite database: [`SqliteOutbox`].

mod rows;
mod worker;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rusqlite::{Connection, Transaction};

use self::rows::{Table, micros};
use self::worker::Worker;
use super::builder::is_identifier;
use super::connection::Connector;
use super::error::{self, Result};
use super::file::FileId;
use super::fork::ForkGuard;
use super::transaction::main_file;
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, StoreError};
use crate::outbox::sealed::Queue;
use crate::outbox::{self, Claim, Claims, DeadLetter, EventId, Isolation, Outbox, Settlement, Stats};

/// The interval at which an idle relay looks for commits of other connections.
const LOOK: Duration = Duration::from_millis(25);

/// An [outbox](crate::outbox) in the application's own SQLite database.
///
/// It takes two tables there, `nevertwice_outbox` and `nevertwice_outbox_meta`, and a connection
/// and a thread of its own. The database may be in any journal mode; in WAL, relays and the
/// application's readers do not wait for each other. An idle relay sees a commit of any process
/// within 25 ms.
///
/// Times are those of the wall clock. A clock set forward ends claims early, so that events are
/// delivered twice; a clock set back by more than a minute makes what is claimed, or waits for a
/// retry, due at once.
///
/// A relay's own writes are not forced to disk in WAL: after a power cut, events that were
/// delivered shortly before are delivered again.
///
/// Clones share everything.
#[derive(Clone)]
pub struct SqliteOutbox(Arc<Inner>);

struct Inner {
    worker: Worker,
    table: Arc<Table>,
    clock: Arc<dyn Clock>,
    path: PathBuf,
    file: FileId,
    fork: ForkGuard,
}

/// The settings of a [`SqliteOutbox`].
#[derive(Debug, Clone)]
pub struct SqliteOutboxBuilder {
    path: PathBuf,
    table: String,
    busy_timeout: Duration,
    clock: Arc<dyn Clock>,
}

impl SqliteOutbox {
    /// Opens the outbox in the database at `path`, and creates its tables if there are none.
    ///
    /// # Errors
    /// The same as for [`SqliteOutboxBuilder::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<SqliteOutbox, StoreError> {
        SqliteOutbox::builder(path).open()
    }

    /// Starts building an outbox in the database at `path`.
    pub fn builder(path: impl AsRef<Path>) -> SqliteOutboxBuilder {
        SqliteOutboxBuilder {
            path: path.as_ref().to_owned(),
            table: "nevertwice_outbox".to_owned(),
            busy_timeout: Duration::from_secs(5),
            clock: Arc::new(SystemClock),
        }
    }

    /// Writes an event inside `transaction`, to be delivered once that is committed. Returns the
    /// event's id.
    ///
    /// Events of one `topic` and `key` are delivered in the order in which they are pushed; an
    /// empty key has no order. Topic and key have at most 255 bytes and no control characters.
    ///
    /// # Errors
    /// [`Error::Key`] and [`Error::TooLarge`] if a part is invalid; [`Error::Store`] if the
    /// transaction is on another file than the outbox or was rolled back, or if SQLite refused.
    /// **Roll back**: the effect would be committed without its event.
    pub fn push_in(
        &self,
        transaction: &Transaction<'_>,
        topic: &str,
        key: &str,
        payload: impl AsRef<[u8]>,
    ) -> Result<EventId, Error> {
        let event = outbox::check(topic, key, payload.as_ref())?;
        self.0.check()?;
        let there = main_file(transaction)?.and_then(|path| fs::metadata(path).ok());
        if !there.is_some_and(|found| FileId::of(&found) == self.0.file) {
            return Err(
                error::Error::unusable("the transaction is on another database than the outbox").into()
            );
        }
        if transaction.is_autocommit() {
            return Err(error::Error::unusable("the transaction has been rolled back").into());
        }
        self.0.table.push(transaction, &event, self.0.now())?;
        Ok(event.id)
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Table, &Connection, i64) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.0.check()?;
        let (table, clock) = (self.0.table.clone(), self.0.clock.clone());
        self.0.worker.run(move |db| job(&table, db, micros(clock.wall()))).await
    }
}

impl Inner {
    fn now(&self) -> i64 {
        micros(self.clock.wall())
    }

    /// Refuses a forked child, and a path that leads to another file by now.
    fn check(&self) -> Result<()> {
        self.fork.check()?;
        if fs::metadata(&self.path).is_ok_and(|found| FileId::of(&found) == self.file) {
            return Ok(());
        }
        Err(error::Error::unusable(format!(
            "{} was moved, removed or replaced since the outbox was opened; put it in its place, and open the \
             outbox again",
            self.path.display()
        )))
    }
}

impl SqliteOutboxBuilder {
    /// Sets the name of the table; a second one has `_meta` added. **Default:
    /// `nevertwice_outbox`.**
    pub fn table(mut self, table: impl Into<String>) -> SqliteOutboxBuilder {
        self.table = table.into();
        self
    }

    /// Sets how long a relay's write waits for another writer. **Default 5 s.** After that it fails
    /// and is repeated.
    pub fn busy_timeout(mut self, busy_timeout: Duration) -> SqliteOutboxBuilder {
        self.busy_timeout = busy_timeout;
        self
    }

    /// Sets the clock, for tests. **Default: the system's.**
    pub fn clock(mut self, clock: impl Clock) -> SqliteOutboxBuilder {
        self.clock = Arc::new(clock);
        self
    }

    /// Opens the database, which must exist, and creates the tables if there are none. Blocks for
    /// some milliseconds.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if there is no database at the path, it cannot be written to, or
    /// its table does not belong to an outbox or is of another release. It is then left unchanged.
    /// [`StoreError::Unavailable`] if it stays locked.
    pub fn open(self) -> Result<SqliteOutbox, StoreError> {
        if !is_identifier(&self.table) || self.table.len() > 50 {
            let detail = "the outbox's table is not a plain identifier of 1 to 50 characters";
            return Err(error::Error::unusable(detail).into());
        }
        let connector = Connector::new(&self.path, self.busy_timeout)?;
        ForkGuard::check_path(connector.path())?;
        let path = connector.path().to_owned();
        let Ok(found) = fs::metadata(&path) else {
            return Err(error::Error::unusable(format!(
                "there is no file {}; an outbox is a table of the application's own database: create that first",
                path.display()
            ))
            .into());
        };
        let db = connector.open_other()?;
        let table = Arc::new(Table::new(self.table));
        table.make(&db)?;
        let fork = ForkGuard::new(&path);
        let (worker, file) = (Worker::start(db)?, FileId::of(&found));
        Ok(SqliteOutbox(Arc::new(Inner { worker, table, clock: self.clock, path, file, fork })))
    }
}

impl Drop for SqliteOutbox {
    /// Leaks the outbox in a forked child, as a store does.
    fn drop(&mut self) {
        if !self.0.fork.is_here() {
            std::mem::forget(self.0.clone());
        }
    }
}

impl fmt::Debug for SqliteOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteOutbox").field("path", &self.0.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl Queue for SqliteOutbox {
    async fn claim(&self, claim: &Claim) -> Result<Claims, StoreError> {
        let claim = claim.clone();
        Ok(self.run(move |table, db, now| table.claim(db, &claim, now)).await?)
    }

    async fn isolate(&self, alone: &Isolation) -> Result<bool, StoreError> {
        let alone = *alone;
        Ok(self.run(move |table, db, now| table.isolate(db, &alone, now)).await?)
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<bool>, StoreError> {
        let settlements = settlements.to_vec();
        Ok(self.run(move |table, db, now| table.settle(db, &settlements, now)).await?)
    }

    async fn changed(&self, seen: u64, within: Duration) -> u64 {
        let mut left = within;
        loop {
            let version = self
                .run(|_, db, _| Ok(db.pragma_query_value(None, "data_version", |row| row.get::<_, i64>(0))?));
            match version.await {
                Ok(version) if version.unsigned_abs() != seen => return version.unsigned_abs(),
                Ok(_) | Err(_) if left.is_zero() => return seen,
                Ok(_) | Err(_) => {
                    let pause = LOOK.min(left);
                    self.0.clock.sleep(pause).await;
                    left -= pause;
                }
            }
        }
    }

    fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    fn name(&self) -> &'static str {
        super::NAME
    }
}

#[async_trait]
impl Outbox for SqliteOutbox {
    async fn stats(&self) -> Result<Stats, StoreError> {
        Ok(self.run(|table, db, now| table.stats(db, now)).await?)
    }

    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        Ok(self.run(move |table, db, now| table.dead_letters(db, limit, now)).await?)
    }

    async fn revive(&self, id: EventId) -> Result<bool, StoreError> {
        Ok(self.run(move |table, db, _| table.revive(db, id)).await?)
    }

    async fn discard(&self, id: EventId) -> Result<bool, StoreError> {
        Ok(self.run(move |table, db, _| table.discard(db, id)).await?)
    }

    async fn purge(&self, age: Duration, limit: usize) -> Result<u64, StoreError> {
        let age = micros(age);
        Ok(self.run(move |table, db, now| table.purge(db, now.saturating_sub(age), limit)).await?)
    }
}
