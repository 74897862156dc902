//! The SQLite store: [`SqliteStore`], and [`begin_in`] with its companions, which put record and effect into one
//! transaction of the application's own.

mod anchor;
mod batch;
mod builder;
mod claim;
mod file;
mod fork;
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
))]
mod held;
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")
)))]
#[path = "sqlite/held_elsewhere.rs"]
mod held;
mod jobs;
mod log;
mod mark;
mod path;
mod readers;
mod rows;
mod scan;
#[cfg(all(test, nevertwice_shuttle))]
mod schedules;
mod schema;
mod transaction;
mod trouble;
mod waiters;
mod warning;
mod watcher;
mod writer;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
#[cfg(not(all(test, nevertwice_shuttle)))]
use futures_channel::oneshot;

use crate::clock::Timeline;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::policy::Durability;
use crate::record::{Record, Stamp};
use crate::store::{self, Cursor, Page, Snapshot, Store, Swap, SwapRequest};
use crate::store_id::StoreId;
#[cfg(all(test, nevertwice_shuttle))]
use crate::sync::runtime::oneshot;

use builder::Limits;
use claim::Claim;
use file::OpenFile;
use fork::ForkGuard;
use jobs::{Discard, Exchange, Purge};
use readers::Readers;
use rows::Table;
use watcher::Watch;
use writer::Writer;

pub use builder::{SqliteStoreBuilder, Synchronous};
/// The very `rusqlite` that the store is built with: [`begin_in`] and its companions take its transactions.
pub use rusqlite;
pub use transaction::{TxLease, begin_in, complete_in, fail_in, resume_in};
pub use warning::Warning;

const BACKEND: &str = "SQLite store";
/// What logs call it.
const NAME: &str = "sqlite";
/// How many rows a purge removes in a commit, so that begins come in between, of other processes too: a millisecond. Where more
/// are written in the same commit, up to twice as many as those.
const PURGE_STEP: usize = 100;

/// Records in a SQLite file, for one machine: one process or several that share the file.
///
/// What it acknowledged survives a power cut ([`Durability::Power`]); see [`SqliteStoreBuilder::synchronous`]. It runs
/// on any executor, or none: a thread of its own does the writing and commits whatever is queued at the moment together,
/// so that many callers share the cost of one sync of the disk. Replays are read on the caller's thread, in some ten
/// microseconds, and wait for no writer. Who waits for a record to change is woken by the write itself if it is
/// this store's; for all others a second thread watches the file, as long as somebody waits.
///
/// The file is made for its owner only (mode 0600), with SQLite's `-wal` and `-shm` beside it. It must be on a
/// local disk: SQLite's locks cannot be trusted on network file systems. Its two tables can live in a
/// database of the application's own, under a [name](SqliteStoreBuilder::table) of their own: then
/// [`begin_in`] commits effect and record together. The database is switched to WAL then.
///
/// # The file while it is open
///
/// SQLite knows its files by their names. When one of them leads elsewhere meanwhile, two users of "the" file see two, and
/// what one acknowledged the other does not know. So the store looks whether the path, the `-wal` and the `-shm` still lead to the
/// files that it opened (device, inode, and one name only): in every commit before anything is acknowledged, in reads at
/// least every 50 ms, and around every connection that it opens. Once they do not (moved, replaced, removed, hard-linked, a
/// link or folder on the way moved, a log that somebody "cleaned up"), every call is [`StoreError::Unusable`] and says what
/// happened, until the file is in its place and the store is opened anew; it does not touch the files any more. What was
/// acknowledged just before is in the file that was moved, or in the log that was removed.
///
/// Not everything can be noticed, so:
///
/// * **Copy it by `VACUUM INTO` or SQLite's backup API**, never by `cp` or `std::fs::copy`, which take the file and its log at two
///   moments. To restore a backup, close every store on the file first.
/// * **Do not open the file in this process by anything but SQLite**, and by no second copy of SQLite
///   either: as POSIX has it, closing it drops the locks of the whole process. On Linux (64 bits) the store has locks that
///   survive that; elsewhere it says so in its [`warnings`](SqliteStore::warnings).
/// * A process in a container needs the *folder* mounted, not the file alone: the log is beside it.
/// * Bytes that somebody writes into the file, or a file that is cut, are found by its checksums only where they hit a record.
/// * A transaction of the application's own ([`begin_in`]) is looked at in each call, but not in its `commit`.
/// * Where the system has no inode numbers (not Unix), names are compared; an open file cannot be replaced there.
///
/// A store takes eight file descriptors, and up to ten more while many threads read or wait.
///
/// Time is the machine's, and one for all processes: they derive it from an anchor in the file by the clock that counts from the
/// [`boot`](crate::Clock::boot) of the machine, suspends included. The wall clock is read once, when the file is first opened after the
/// machine was started, and then time does not go back behind where it had got to in the file (after a crash, at most
/// 100 ms): a clock set back revives no lease and repeats no fence, one set forward ends none, and one that is wrong by
/// more than [`max_clock_step`](SqliteStoreBuilder::max_clock_step) then is not believed.
///
/// So a file is for **one machine at a time**, and for containers that share its boot id and time namespace, as they do unless told
/// otherwise: opening it elsewhere is refused while a store has it open. An empty file `-{table}-lock` beside it tells.
/// Where locks do not reach the other side (most folders shared between virtual machines), the store that had it open first is
/// refused its next write instead; SQLite itself is not safe there. Copies of one snapshot of a virtual machine have one boot id, and are not told apart.
/// On systems other than Linux there is no boot id: each process goes by the wall clock as it was when that process opened the
/// file, and on from there, and a warning is logged (`nevertwice.clock_without_boot`). Two that were opened before and after the
/// clock was set disagree then, until one finds the other's later stamps.
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

/// In this order they are dropped: the last connection to be closed is the writer's, which moves the log into the file.
struct Inner {
    watch: Watch,
    readers: Readers,
    writer: Writer,
    file: Arc<OpenFile>,
    table: Arc<Table>,
    timeline: Arc<Timeline>,
    limits: Limits,
    durability: Durability,
    path: PathBuf,
    identity: StoreId,
    /// Given up last, when nobody writes any more.
    _claim: Claim,
    /// The last to be dropped.
    fork: ForkGuard,
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
        SqliteStoreBuilder::new(path.as_ref())
    }

    /// What an operator should know at present. Each is also an event of level `WARN`, `nevertwice.store_warning`, when it is found.
    ///
    /// ```
    /// # use nevertwice::SqliteStore;
    /// # let dir = tempfile::tempdir()?;
    /// let store = SqliteStore::open(dir.path().join("keys.db"))?;
    /// for warning in store.warnings() {
    ///     eprintln!("sqlite: {warning}");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn warnings(&self) -> Vec<Warning> {
        let bytes = self.0.file.log_bytes();
        let long = (bytes >= log::WARNED).then_some(Warning::LongLog { bytes });
        let lost = (cfg!(unix) && !self.0.file.is_locked()).then_some(Warning::LocksCanBeLost);
        [Warning::of_library(rusqlite::version_number()), lost, long].into_iter().flatten().collect()
    }

    fn read(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        let Inner { table, timeline, .. } = self.inner()?;
        self.0.readers.read(|db| table.snapshot(db, id, timeline))
    }

    /// What the store works with, in the process that opened it.
    fn inner(&self) -> Result<&Inner, StoreError> {
        self.0.fork.check()?;
        Ok(&self.0)
    }
}

impl Drop for SqliteStore {
    /// A forked child must not even close what its parent opened, and has no threads to wait for: it leaves all of it alone.
    fn drop(&mut self) {
        if !self.0.fork.is_here() {
            std::mem::forget(self.0.clone());
        }
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore")
            .field("path", &self.0.path)
            .field("table", &self.0.table.name)
            .field("durability", &self.0.durability)
            .field("waiters", &self.0.watch.waiters())
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
        self.inner()?.writer.run(Exchange { id: *id, expected, next: next.cloned().map(Box::new) }).await
    }

    async fn swap_many(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        self.swap_all(swaps).await
    }

    async fn changed(&self, id: &RecordId, stamp: Stamp, within: Duration) -> Result<(), StoreError> {
        let Inner { readers, watch, table, .. } = self.inner()?;
        watch.changed(*id, stamp, within, || readers.read(|db| table.stamp(db, id))).await
    }

    async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let Inner { readers, table, timeline, .. } = self.inner()?;
        readers.read(|db| table.page(db, timeline, after, limit))
    }

    async fn purge(&self, limit: usize) -> Result<store::Purge, StoreError> {
        let steps = self.inner()?.writer.run(Purge::new(limit)).await?;
        // Full begins make room too.
        let unsettled = steps.unsettled + self.0.limits.unsettled.swap(0, Ordering::Relaxed);
        Ok(store::Purge { removed: steps.removed as u64, unsettled })
    }

    async fn unsettled(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let Inner { readers, table, timeline, .. } = self.inner()?;
        readers.read(|db| table.evidence_page(db, timeline, after, limit))
    }

    fn finds_unsettled(&self) -> bool {
        true
    }

    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        self.inner()?.writer.run(Discard(*id)).await
    }

    fn durability(&self) -> Durability {
        self.0.durability
    }

    fn identity(&self) -> StoreId {
        self.0.identity
    }

    fn name(&self) -> &'static str {
        NAME
    }
}
