//! Setting a store up: [`SqliteStoreBuilder`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::readers::Readers;
use super::rows::Table;
use super::schema::Place;
use super::trouble::unusable;
use super::waiters::Waiters;
use super::watcher::Watch;
use super::writer::{Desk, Writer};
use super::{Inner, SqliteStore};
use crate::clock::{Clock, SystemClock, Timeline};
use crate::error::StoreError;
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

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) bytes: Option<u64>,
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
    limits: Limits,
}

impl SqliteStoreBuilder {
    pub(super) fn new(path: &Path) -> SqliteStoreBuilder {
        SqliteStoreBuilder {
            path: path.to_owned(),
            table: "nevertwice".to_owned(),
            clock: Arc::new(SystemClock),
            synchronous: Synchronous::default(),
            busy_timeout: Duration::from_secs(1),
            limits: Limits { bytes: None },
        }
    }

    /// The name of the table; a second one has `_meta` behind it. **Default `nevertwice`.** A letter or `_`, then
    /// up to 62 letters, digits and `_`.
    pub fn table(mut self, table: impl Into<String>) -> SqliteStoreBuilder {
        self.table = table.into();
        self
    }

    /// Takes time from `clock` instead of the operating system.
    pub fn clock(mut self, clock: impl Clock) -> SqliteStoreBuilder {
        self.clock = Arc::new(clock);
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

    /// From how many bytes in use in the file on, other tables' included, begins of new keys are refused with
    /// [`StoreError::Full`]. **Default: no limit.** Set it well below the size of the disk: what is under way must still be
    /// finished, which is never refused here. Records over their time make way first.
    pub fn max_bytes(mut self, bytes: u64) -> SqliteStoreBuilder {
        self.limits.bytes = Some(bytes);
        self
    }

    /// Opens the file, and makes it and the tables if they are not there. Blocks for some milliseconds.
    ///
    /// Tables of an older release are brought up to date in one transaction, which takes some ten seconds for a million records and, for
    /// as long as it is open, as much room beside the file again. A process of the older release that still has the file open
    /// can go on reading, but writes and purges nothing more.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if the file is not a SQLite database, or cannot be written to, or its tables are not a
    /// store's or of a newer release: nothing in it is changed then. [`StoreError::Unavailable`] if it stays locked.
    pub fn open(self) -> Result<SqliteStore, StoreError> {
        if !is_identifier(&self.table) {
            return Err(unusable("the table's name is not a plain identifier of 1 to 63 characters"));
        }
        let place = Place::new(&self.path, self.busy_timeout)?;
        let db = place.open_writer(&self.table, self.synchronous)?;
        let path = place.path().to_owned();
        let known_as = db.path().map(str::to_owned);
        let table = Arc::new(Table::new(self.table));
        let timeline = Arc::new(Timeline::new(self.clock, table.high_water(&db)?));
        let first = place.open_reader()?;
        table.probe(&first)?;
        let limits = self.limits;
        let waiters = Arc::new(Waiters::default());
        let desk =
            Desk { db, table: table.clone(), timeline: timeline.clone(), limits, waiters: waiters.clone() };
        let writer = Writer::start(desk)?;
        let durability = match self.synchronous {
            Synchronous::Full => Durability::Power,
            Synchronous::Normal => Durability::Process,
        };
        let watch = Watch::new(waiters, place.clone(), table.clone());
        let readers = Readers::new(place, first);
        Ok(SqliteStore(Arc::new(Inner {
            readers,
            writer,
            watch,
            table,
            timeline,
            limits,
            durability,
            path,
            known_as,
        })))
    }
}

/// Whether `name` can stand in a statement as it is. SQLite keeps names that start with `sqlite_` for itself.
fn is_identifier(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let reserved = name.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("sqlite_"));
    starts && plain && !reserved && name.len() <= 63
}
