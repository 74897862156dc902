//! The SQLite store: [`SqliteStore`], and [`begin_in`] with its companions, which put record and effect into one
//! transaction of the application's own.

mod jobs;
mod readers;
mod rows;
mod schema;
mod transaction;
mod trouble;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::{Clock, SystemClock, Timeline};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::policy::Durability;
use crate::record::{Record, Stamp};
use crate::store::{Snapshot, Store, Swap};

use jobs::{Discard, Exchange, Purge};
use readers::Readers;
use rows::Table;
use schema::Place;
use trouble::unusable;
use writer::{Desk, Writer};

pub use transaction::{TxLease, begin_in, complete_in, fail_in, resume_in};

const BACKEND: &str = "SQLite store";
/// How many rows one step of a purge removes, so that begins come in between.
const PURGE_STEP: usize = 100;

/// Records in a SQLite file, for one machine: one process or several that share the file.
///
/// What it acknowledged survives a power cut ([`Durability::Power`]); see [`SqliteStoreBuilder::synchronous`]. It runs
/// on any executor, or none: a thread of its own does the writing and commits whatever is queued at the moment together,
/// so that many callers share the cost of one sync of the disk. Replays are read on the caller's thread, in some ten
/// microseconds, and wait for no writer.
///
/// The file is made for its owner only (mode 0600), with SQLite's `-wal` and `-shm` beside it. It must be on a
/// local disk: SQLite's locks cannot be trusted on network file systems. Its two tables can live in a
/// database of the application's own, under a [name](SqliteStoreBuilder::table) of their own: then
/// [`begin_in`] commits effect and record together. The database is switched to WAL then.
///
/// Time is the machine's, never less than any stamp in the file: a clock set back revives no lease and repeats no fence.
///
/// Nothing is removed before its time, and nothing by itself: call [`Engine::purge`](crate::Engine::purge) now and then.
///
/// Clones share everything. Dropping the last one waits until what is queued is written.
///
/// ```
/// use nevertwice::{Begin, Engine, Request, SqliteStore};
/// # futures_executor::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("keys.db");
/// let engine = Engine::builder(SqliteStore::open(path)?).build()?;
/// let request = Request::new("acct_42/charges", "8d7f-11")?;
/// if let Begin::Acquired(lease) = engine.begin(&request).await? {
///     lease.complete("receipt 7").await?;
/// }
/// let Begin::Completed(done) = engine.begin(&request).await? else { panic!() };
/// assert_eq!(done.response().unwrap(), "receipt 7");
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct SqliteStore(Arc<Inner>);

struct Inner {
    readers: Readers,
    writer: Writer,
    table: Arc<Table>,
    timeline: Arc<Timeline>,
    limits: Limits,
    durability: Durability,
    path: PathBuf,
    /// The path as SQLite has it, to recognise the file by.
    known_as: Option<String>,
}

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
struct Limits {
    bytes: Option<u64>,
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
        let desk = Desk { db, table: table.clone(), timeline: timeline.clone(), limits };
        let writer = Writer::start(desk)?;
        let durability = match self.synchronous {
            Synchronous::Full => Durability::Power,
            Synchronous::Normal => Durability::Process,
        };
        let readers = Readers::new(place, first);
        Ok(SqliteStore(Arc::new(Inner {
            readers,
            writer,
            table,
            timeline,
            limits,
            durability,
            path,
            known_as,
        })))
    }
}

impl SqliteStore {
    /// Opens the store in the file at `path`, with the defaults; makes it if there is none.
    ///
    /// # Errors
    /// As for [`SqliteStoreBuilder::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<SqliteStore, StoreError> {
        SqliteStore::builder(path).open()
    }

    /// Starts to set up a store in the file at `path`.
    pub fn builder(path: impl AsRef<Path>) -> SqliteStoreBuilder {
        SqliteStoreBuilder {
            path: path.as_ref().to_owned(),
            table: "nevertwice".to_owned(),
            clock: Arc::new(SystemClock),
            synchronous: Synchronous::default(),
            busy_timeout: Duration::from_secs(1),
            limits: Limits { bytes: None },
        }
    }

    fn read(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        let Inner { table, timeline, .. } = &*self.0;
        self.0.readers.read(|db| table.snapshot(db, id, timeline))
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.0.path)
            .field("table", &self.0.table.name)
            .field("durability", &self.0.durability)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        self.read(id)
    }

    async fn swap(
        &self,
        id: &RecordId,
        expected: Option<Stamp>,
        next: Option<&Record>,
    ) -> Result<Swap, StoreError> {
        if expected.is_none() {
            // A duplicate learns all there is without the write lock. The writer compares anew.
            let snapshot = self.read(id)?;
            if snapshot.record.is_some() {
                return Ok(Swap::Conflict(snapshot));
            }
        }
        self.0.writer.run(Exchange { id: *id, expected, next: next.cloned() }).await
    }

    async fn purge(&self, limit: usize) -> Result<u64, StoreError> {
        let mut purged = 0;
        while purged < limit {
            let step = PURGE_STEP.min(limit - purged);
            let removed = self.0.writer.run(Purge(step)).await?;
            purged += removed;
            if removed < step {
                break;
            }
        }
        Ok(purged as u64)
    }

    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        self.0.writer.run(Discard(*id)).await
    }

    fn durability(&self) -> Durability {
        self.0.durability
    }

    fn name(&self) -> &'static str {
        "sqlite"
    }
}

/// Whether `name` can stand in a statement as it is. SQLite keeps names that start with `sqlite_` for itself.
fn is_identifier(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let reserved = name.get(..7).is_some_and(|start| start.eq_ignore_ascii_case("sqlite_"));
    starts && plain && !reserved && name.len() <= 63
}
