//! Setting a store up: [`SqliteStoreBuilder`].

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::anchor::{self, Start};
use super::claim::Claim;
use super::file::{OpenFile, leave_log};
use super::fork::ForkGuard;
use super::log::Log;
use super::readers::Readers;
use super::rows::Table;
use super::schema::Place;
use super::trouble::unusable;
use super::waiters::Waiters;
use super::watcher::Watch;
use super::writer::{Desk, Writer};
use super::{Inner, SqliteStore};
use crate::clock::{Clock, SystemClock};
use crate::error::StoreError;
use crate::observe;
use crate::policy::Durability;

/// When the disk is told to keep what was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// At every commit, before anybody is answered: what was acknowledged survives a power cut. The default.
    #[default]
    Full,
    /// At checkpoints only. Faster for a few callers, and **a power cut takes back the last of what was acknowledged**:
    /// what was done is then done again. A killed process loses nothing.
    Normal,
}

#[derive(Debug, Clone)]
pub(super) struct Limits {
    pub(super) bytes: Option<u64>,
    /// The bytes of the log, which count too.
    pub(super) log: Arc<AtomicU64>,
    /// How much evidence was removed, unsettled, to make room for begins, since a purge last told of it.
    pub(super) unsettled: Arc<AtomicU64>,
}

/// Sets up a [`SqliteStore`]; made by [`SqliteStore::builder`].
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

    /// The name of the table; a second one has `_meta` behind it. **Default `nevertwice`.** A letter or `_`, then
    /// up to 62 letters, digits and `_`.
    pub fn table(mut self, table: impl Into<String>) -> SqliteStoreBuilder {
        self.table = table.into();
        self
    }

    /// Takes time from `clock` instead of the operating system. All stores on a file must have a clock of the same
    /// [`boot`](Clock::boot).
    pub fn clock(mut self, clock: impl Clock) -> SqliteStoreBuilder {
        self.clock = Arc::new(clock);
        self
    }

    /// How far the wall clock may be ahead of the last time that the file has seen, when it is first opened after a start of the machine.
    /// **Default 30 days.** A clock that is further ahead is taken to be wrong: a warning is logged
    /// ([`nevertwice.clock_step`](crate::observe)), and time goes on from where it had got to, until [`accept_clock`](Self::accept_clock).
    /// *Longer*, a clock that once is wrong by so much makes every record older than its retention. *Shorter* than the machine is ever off, or the
    /// file unused, and leases and retentions last longer by that time, each time. A new file takes any time.
    pub fn max_clock_step(mut self, step: Duration) -> SqliteStoreBuilder {
        self.start.max_step = step;
        self
    }

    /// Takes the wall clock as it is now, however far it is ahead, in place of the time that the file has got to: once, when the store is
    /// opened, and for every process that has it open. For an operator who has looked at the clock, after the warning
    /// `nevertwice.clock_step`. Time does not go back: a clock that is behind changes nothing.
    ///
    /// **Not for a program to call at every start**: that is [`max_clock_step`](Self::max_clock_step) without a bound.
    pub fn accept_clock(mut self) -> SqliteStoreBuilder {
        self.start.accept = true;
        self
    }

    /// When the disk is told to keep what was committed. **Default [`Synchronous::Full`]**, which is
    /// [`Durability::Power`]; [`Synchronous::Normal`] is [`Durability::Process`].
    pub fn synchronous(mut self, synchronous: Synchronous) -> SqliteStoreBuilder {
        self.synchronous = synchronous;
        self
    }

    /// How long a write waits while another process, or a transaction of the application's own, holds the file's one
    /// write lock; then it is [`StoreError::Unavailable`], and the engine tries again until its `call_timeout`.
    /// **Default 1 s.** *Longer* than a third of the `call_timeout` gains nothing: the engine gives up a try then.
    pub fn busy_timeout(mut self, busy_timeout: Duration) -> SqliteStoreBuilder {
        self.busy_timeout = busy_timeout;
        self
    }

    /// From how many bytes in use in the file on, other tables' included, and in its log what goes beyond 8 MiB, begins of new keys are refused with
    /// [`StoreError::Full`]. **Default: no limit.** Set it well below the size of the disk: what is under way must still be
    /// finished, which is never refused here. Records over their time make way first.
    pub fn max_bytes(mut self, bytes: u64) -> SqliteStoreBuilder {
        self.max_bytes = Some(bytes);
        self
    }

    /// Opens the file, and makes it and the tables if they are not there. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if the file is not a SQLite database, or cannot be written to, or its tables are not a
    /// store's or of another release: nothing in it is changed then. So too if a process of another boot has it open: another machine, or
    /// a container with a boot id or a time namespace of its own. [`StoreError::Unavailable`] if it stays locked.
    pub fn open(self) -> Result<SqliteStore, StoreError> {
        if !is_identifier(&self.table) {
            return Err(unusable("the table's name is not a plain identifier of 1 to 63 characters"));
        }
        let place = Place::new(&self.path, self.busy_timeout)?;
        ForkGuard::check_path(place.path())?;
        let (db, held) = place.open_writer(&self.table, self.synchronous)?;
        let path = place.path().to_owned();
        let fork = ForkGuard::new(&path);
        let table = Arc::new(Table::new(self.table));
        let identity = table.identity(&db)?;
        let claim = Claim::new(&path, &table.name, self.busy_timeout)?;
        // All that may refuse the file comes before the anchor, which is written to it.
        let first = place.open_reader()?;
        table.probe(&first)?;
        let timeline = Arc::new(anchor::open(&db, &table, &claim, self.clock.clone(), self.start)?);
        let file = Arc::new(OpenFile::new(&path, held, self.clock.clone())?);
        leave_log(&db, true)?;
        leave_log(&first, true)?;
        let limits = Limits { bytes: self.max_bytes, log: file.log_counter(), unsettled: Arc::default() };
        let waiters = Arc::new(Waiters::default());
        let writer = Writer::start(Desk {
            db,
            table: table.clone(),
            timeline: timeline.clone(),
            limits: limits.clone(),
            waiters: waiters.clone(),
            file: file.clone(),
            log: Log::new(place.clone(), self.clock),
            rows: Cell::new(0),
        })?;
        let durability = match self.synchronous {
            Synchronous::Full => Durability::Power,
            Synchronous::Normal => Durability::Process,
        };
        let watch = Watch::new(waiters, place.clone(), file.clone(), table.clone());
        let readers = Readers::new(place, file.clone(), first);
        let store = SqliteStore(Arc::new(Inner {
            watch,
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

/// Whether `name` can stand in a statement as it is. SQLite keeps names that start with `sqlite_` for itself.
fn is_identifier(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let reserved = name.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("sqlite_"));
    starts && plain && !reserved && name.len() <= 63
}
