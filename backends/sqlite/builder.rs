//! The configuration of a SQLite store: [`SqliteStoreBuilder`].

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::anchor::{self, Start};
use super::claim::Claim;
use super::connection::Connector;
use super::file::{OpenFile, leave_log};
use super::fork::ForkGuard;
use super::log::Log;
use super::read_only::SqliteReader;
use super::readers::Readers;
use super::rows::Table;
use super::waiters::Waiters;
use super::watcher::Watcher;
use super::writer::{Writer, WriterThread};
use super::{BACKEND, Inner, SqliteStore};
use crate::clock::{Clock, SystemClock};
use crate::durability::Durability;
use crate::error::StoreError;
use crate::observe;

/// The moment at which commits are forced to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// At every commit, before callers are answered: acknowledged writes survive a power cut. The
    /// default.
    #[default]
    Full,
    /// At checkpoints only. Faster with few callers, but **a power cut may undo the most recent
    /// acknowledged writes**, and their operations then run again. A killed process loses nothing.
    Normal,
}

#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) bytes: Option<u64>,
    /// The size of the log in bytes, which counts towards the limit.
    pub(super) log: Arc<AtomicU64>,
    /// The number of unresolved records removed to make room for begins since a purge last reported
    /// them.
    pub(super) unsettled: Arc<AtomicU64>,
}

/// Configures a [`SqliteStore`]. Created by [`SqliteStore::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until `open` is called"]
pub struct SqliteStoreBuilder {
    path: PathBuf,
    table: String,
    clock: Arc<dyn Clock>,
    synchronous: Synchronous,
    busy_timeout: Duration,
    max_bytes: Option<u64>,
    start: Start,
}

impl SqliteStoreBuilder {
    pub(super) fn new(path: &Path) -> SqliteStoreBuilder {
        SqliteStoreBuilder {
            path: path.to_owned(),
            table: "nevertwice".to_owned(),
            clock: Arc::new(SystemClock),
            synchronous: Synchronous::default(),
            busy_timeout: Duration::from_secs(1),
            max_bytes: None,
            start: Start { max_step: Duration::from_secs(30 * 86_400), accept: false },
        }
    }

    /// Sets the name of the table. **Default: `nevertwice`.** A second table is named after it with
    /// the suffix `_meta`. A name is a letter or `_`, followed by up to 62 letters, digits and `_`.
    pub fn table(mut self, table: impl Into<String>) -> SqliteStoreBuilder {
        self.table = table.into();
        self
    }

    /// Reads the time from `clock` instead of the operating system. All stores on a file need
    /// clocks of the same [`boot`](Clock::boot).
    pub fn clock(mut self, clock: impl Clock) -> SqliteStoreBuilder {
        self.clock = Arc::new(clock);
        self
    }

    /// Sets how far the wall clock may be ahead of the last time the file has seen, when the file
    /// is first opened after a boot. **Default: 30 days.**
    ///
    /// A clock that is further ahead is considered wrong: a warning is logged
    /// ([`nevertwice.clock_step`](crate::observe)), and the time continues from where it was, until
    /// [`accept_clock`](Self::accept_clock) is used. With a *longer* step, a single clock that is
    /// wrong by that much can expire every record. With a step *shorter* than the machine is ever
    /// off or the file unused, leases and retentions are prolonged by that time, each time it
    /// happens. A new file accepts any time.
    pub fn max_clock_step(mut self, step: Duration) -> SqliteStoreBuilder {
        self.start.max_step = step;
        self
    }

    /// Accepts the wall clock as it is now, however far ahead of the file's time: once, when the
    /// store is opened, and for every process that has the file open. For an operator who has
    /// checked the clock after the warning `nevertwice.clock_step`. The time does not move back: a
    /// clock that is behind changes nothing.
    ///
    /// **Do not call this at every start**: that would be [`max_clock_step`](Self::max_clock_step)
    /// without a bound.
    pub fn accept_clock(mut self) -> SqliteStoreBuilder {
        self.start.accept = true;
        self
    }

    /// Sets when commits are forced to disk. **Default: [`Synchronous::Full`]**, which gives
    /// [`Durability::Power`]; [`Synchronous::Normal`] gives [`Durability::Process`].
    pub fn synchronous(mut self, synchronous: Synchronous) -> SqliteStoreBuilder {
        self.synchronous = synchronous;
        self
    }

    /// Sets how long a write waits while another process, or an application's own transaction,
    /// holds the file's write lock. **Default: 1 s.**
    ///
    /// After that the write fails with [`StoreError::Unavailable`], and the engine retries until
    /// its `call_timeout`. A value *longer* than a third of the `call_timeout` gains nothing: the
    /// engine gives up a single try by then.
    pub fn busy_timeout(mut self, busy_timeout: Duration) -> SqliteStoreBuilder {
        self.busy_timeout = busy_timeout;
        self
    }

    /// Sets the number of bytes in use at which begins of new keys are refused with
    /// [`StoreError::Full`]. **Default: no limit.**
    ///
    /// The file counts, including other tables in it, and so does the part of its log beyond 8 MiB.
    /// Expired records are removed first to make room. Set the limit well below the size of the
    /// disk: this limit never refuses a finish, and work in progress must still be finished.
    pub fn max_bytes(mut self, bytes: u64) -> SqliteStoreBuilder {
        self.max_bytes = Some(bytes);
        self
    }

    /// Opens the file, and creates it and the tables if necessary. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if the file is not a SQLite database or not writable, or if its
    /// tables do not belong to a store or are of another release. The file is then left unchanged.
    /// The same error reports that a process of another boot has the file open: another machine, or
    /// a container with its own boot id or time namespace. [`StoreError::Unavailable`] if the file
    /// stays locked.
    pub fn open(self) -> Result<SqliteStore, StoreError> {
        self.check_table()?;
        let connector = Connector::new(&self.path, self.busy_timeout)?;
        ForkGuard::check_path(connector.path())?;
        let (db, held) = connector.open_writer(&self.table, self.synchronous)?;
        let path = connector.path().to_owned();
        let fork = ForkGuard::new(&path);
        let table = Arc::new(Table::new(self.table));
        let identity = table.identity(&db)?;
        let claim = Claim::new(&path, &table.name, self.busy_timeout)?;
        // Every step that may refuse the file comes before the anchor, which is written to it.
        let first = connector.open_reader()?;
        table.probe(&first)?;
        let timeline = Arc::new(anchor::open(&db, &table, &claim, self.clock.clone(), self.start)?);
        let file = Arc::new(OpenFile::new(&path, held, self.clock.clone())?);
        leave_log(&db, true)?;
        leave_log(&first, true)?;
        let limits = Limits { bytes: self.max_bytes, log: file.log_counter(), unsettled: Arc::default() };
        let waiters = Arc::new(Waiters::default());
        let writer = Writer::start(WriterThread {
            db,
            table: table.clone(),
            timeline: timeline.clone(),
            limits: limits.clone(),
            waiters: waiters.clone(),
            file: file.clone(),
            log: Log::new(connector.clone(), self.clock),
            rows: Cell::new(0),
        })?;
        let durability = match self.synchronous {
            Synchronous::Full => Durability::Power,
            Synchronous::Normal => Durability::Process,
        };
        let watcher = Watcher::new(waiters, connector.clone(), file.clone(), table.clone());
        let readers = Readers::new(connector, file.clone(), first);
        let store = SqliteStore(Arc::new(Inner {
            watcher,
            readers,
            writer,
            file,
            table,
            timeline,
            limits,
            durability,
            path,
            identity,
            _claim: claim,
            fork,
        }));
        store.warnings().iter().for_each(|warning| observe::store_warning("sqlite", warning));
        Ok(store)
    }
}

impl SqliteStoreBuilder {
    /// Opens an existing file for reading only, as an operator's tool does. Creates and changes
    /// nothing, in the file or beside it: a file and a folder that cannot be written to will do.
    ///
    /// ```
    /// # use nevertwice::{Engine, SqliteStore};
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("keys.db");
    /// assert!(SqliteStore::builder(&path).open_read_only().is_err()); // there is no file
    /// # drop(SqliteStore::open(&path)?);
    /// let engine = Engine::builder(SqliteStore::builder(&path).open_read_only()?).build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if there is no such file, it is not a SQLite database, has no
    /// tables of a store or those of another release, or has a log without its index (`-shm`).
    pub fn open_read_only(self) -> Result<SqliteReader, StoreError> {
        self.check_table()?;
        let connector = Connector::new(&self.path, self.busy_timeout)?;
        Ok(SqliteReader::open(connector, Table::new(self.table), self.clock, self.start)?)
    }

    fn check_table(&self) -> Result<(), StoreError> {
        if is_identifier(&self.table) {
            return Ok(());
        }
        let detail = "the table's name is not a plain identifier of 1 to 63 characters";
        Err(StoreError::unusable(BACKEND, detail))
    }
}

/// Returns true if `name` can be used in a statement as it is. SQLite reserves names that start
/// with `sqlite_`.
pub(super) fn is_identifier(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let reserved = name.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("sqlite_"));
    starts && plain && !reserved && name.len() <= 63
}
