//! The SQLite store: [`SqliteStore`], and [`begin_in`] with its companions, which commit record and
//! effect in one transaction of the application's own.

mod anchor;
mod batch;
mod builder;
mod claim;
mod connection;
mod error;
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
mod high_water;
mod jobs;
mod log;
mod outbox;
mod path;
mod read_only;
mod readers;
mod rows;
mod scan;
#[cfg(all(test, nevertwice_shuttle))]
mod schedules;
mod schema;
mod transaction;
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
use crate::durability::Durability;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::store::{self, Cursor, Page, Snapshot, Store, Swap, SwapRequest};
use crate::store_id::StoreId;
#[cfg(all(test, nevertwice_shuttle))]
use crate::sync::runtime::oneshot;

use builder::Limits;
use claim::Claim;
use error::Result;
use file::OpenFile;
use fork::ForkGuard;
use jobs::{Job, Purge};
use readers::Readers;
use rows::Table;
use watcher::Watcher;
use writer::Writer;

pub use builder::{SqliteStoreBuilder, Synchronous};
pub use outbox::{SqliteOutbox, SqliteOutboxBuilder};
pub use read_only::SqliteReader;
/// The `rusqlite` that the store is built with. [`begin_in`] and its companions take its
/// transactions.
pub use rusqlite;
pub use transaction::{TxLease, begin_in, complete_in, fail_in, resume_in};
pub use warning::Warning;

const BACKEND: &str = "SQLite store";
/// The name used in logs.
const NAME: &str = "sqlite";
/// The number of rows that a purge removes per commit, about a millisecond, so that begins of any
/// process get in between. If the same commit writes more rows, the purge may remove up to twice as
/// many as those.
const PURGE_STEP: usize = 100;

/// A store in a SQLite file, for one machine: one process, or several that share the file.
///
/// Acknowledged writes survive a power cut ([`Durability::Power`]); see
/// [`SqliteStoreBuilder::synchronous`]. The store runs on any executor, or none. A writer thread
/// commits everything queued at the moment in one transaction, so that many callers share the cost
/// of one disk sync. Replays are read on the caller's thread in about ten microseconds and wait for
/// no writer. A caller waiting for a record to change is woken by the write itself if this store
/// makes it; for other writes a second thread watches the file while there are waiters.
///
/// The file is created for its owner only (mode 0600), with SQLite's `-wal` and `-shm` beside it.
/// It must be on a local disk, because SQLite's locks are unreliable on network file systems. The
/// store's two tables can live in the application's own database, under a configurable
/// [name](SqliteStoreBuilder::table). [`begin_in`] then commits effect and record together. The
/// database is switched to WAL.
///
/// # Replacing or copying an open file
///
/// SQLite identifies its files by name. If a name leads to another file while the store is open,
/// two connections may use different files, and one does not see what the other acknowledged. The
/// store therefore checks that the path, the `-wal` and the `-shm` still lead to the files it
/// opened (same device and inode, and no second name): in every commit before it acknowledges
/// anything, in reads at least every 50 ms, and around every connection it opens. Once they do not
/// (moved, replaced, removed, hard-linked, a symbolic link or folder on the way changed, a log that
/// was "cleaned up"), every call returns [`StoreError::Unusable`] with the reason, and the store no
/// longer touches the files. To recover, put the file in its place and open the store again. The
/// last acknowledged writes are in the file that was moved, or in the log that was removed.
///
/// Not everything can be detected, so:
///
/// * **Copy the file with `VACUUM INTO` or SQLite's backup API**, never with `cp` or
///   `std::fs::copy`, which read the file and its log at two different moments. To restore a
///   backup, first close every store on the file.
/// * **Within this process, open the file only through SQLite**, and only through one copy of
///   SQLite. POSIX drops all of a process's locks on a file when any descriptor of it is closed. On
///   64-bit Linux the store holds additional locks that survive this; elsewhere
///   [`warnings`](SqliteStore::warnings) reports the risk.
/// * A process in a container needs the *folder* mounted, not only the file: the log is beside it.
/// * Bytes that another program writes into the file, or a truncated file, are detected by
///   checksums only where a record is hit.
/// * An application's own transaction ([`begin_in`]) is checked in each call, but not in its
///   `commit`.
/// * On systems without inode numbers (not Unix), names are compared. An open file cannot be
///   replaced there.
///
/// A store uses eight file descriptors, and up to ten more while many threads read or wait.
///
/// # Time
///
/// All processes on the machine share one time. They derive it from an anchor in the file and from
/// the clock that counts from the [`boot`](crate::Clock::boot) of the machine, suspends included.
/// The wall clock is read once, when the file is first opened after a boot. Even then the time does
/// not fall behind the last time the file has seen (after a crash, by at most 100 ms). A clock set
/// back therefore revives no lease and repeats no fence, and a clock set forward later ends no
/// lease. A wall clock that is ahead by more than
/// [`max_clock_step`](SqliteStoreBuilder::max_clock_step) is not believed.
///
/// A file is therefore for **one machine at a time**. Containers may share it if they share the
/// boot id and the time namespace, as they do by default. While a store has the file open, opening
/// it elsewhere is refused; an empty file `-{table}-lock` beside it carries the lock. Where locks
/// do not reach the other side (most folders shared between virtual machines), the store that had
/// the file open first is refused its next write instead; SQLite itself is not safe there. Copies
/// of one virtual machine snapshot share a boot id and are not told apart. Systems other than Linux
/// have no boot id. There, each process starts from the wall clock as it was when the process
/// opened the file, and a warning is logged (`nevertwice.clock_without_boot`). If the clock was set
/// in between, two processes disagree until one of them reads a later stamp of the other.
///
/// # Lifetime
///
/// Nothing is removed before it expires, and nothing automatically: call
/// [`Engine::purge`](crate::Engine::purge) regularly.
///
/// Clones share everything. Dropping the last one blocks until all queued writes are done.
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

/// Fields are dropped in this order. The writer's connection must be the last to close: it moves
/// the log into the file.
struct Inner {
    watcher: Watcher,
    readers: Readers,
    writer: Writer,
    file: Arc<OpenFile>,
    table: Arc<Table>,
    timeline: Arc<Timeline>,
    limits: Limits,
    durability: Durability,
    path: PathBuf,
    identity: StoreId,
    /// Released after the writer has ended.
    _claim: Claim,
    /// Dropped last.
    fork: ForkGuard,
}

impl SqliteStore {
    /// Opens the store in the file at `path` with default settings. Creates the file if there is
    /// none.
    ///
    /// # Errors
    /// The same as for [`SqliteStoreBuilder::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<SqliteStore, StoreError> {
        SqliteStore::builder(path).open()
    }

    /// Starts building a store in the file at `path`.
    pub fn builder(path: impl AsRef<Path>) -> SqliteStoreBuilder {
        SqliteStoreBuilder::new(path.as_ref())
    }

    /// Returns the current warnings for an operator. Each is also logged when it is detected, as a
    /// `WARN` event `nevertwice.store_warning`.
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

    fn read(&self, id: &RecordId) -> Result<Snapshot> {
        let Inner { table, timeline, .. } = self.inner()?;
        self.0.readers.read(|db| table.snapshot(db, id, timeline))
    }

    /// Returns the shared state, or an error in a forked child.
    fn inner(&self) -> Result<&Inner> {
        self.0.fork.check()?;
        Ok(&self.0)
    }
}

impl Drop for SqliteStore {
    /// Leaks the store in a forked child: the child must not close what its parent opened, and has
    /// no threads to wait for.
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
            .field("waiters", &self.0.watcher.waiters())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        Ok(self.read(id)?)
    }

    async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
        self.swap_one(swap).await
    }

    async fn swap_many(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        self.swap_all(swaps).await
    }

    async fn changed(&self, id: &RecordId, stamp: Stamp, within: Duration) -> Result<(), StoreError> {
        let Inner { readers, watcher, table, .. } = self.inner()?;
        Ok(watcher.changed(*id, stamp, within, || readers.read(|db| table.stamp(db, id))).await?)
    }

    async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let Inner { readers, table, timeline, .. } = self.inner()?;
        Ok(readers.read(|db| table.page(db, timeline, after, limit))?)
    }

    async fn purge(&self, limit: usize) -> Result<store::Purge, StoreError> {
        let purged = self.inner()?.writer.run(|reply| Job::Purge(Purge::new(limit), reply)).await??;
        // A full begin removes expired records too.
        let unsettled = purged.unsettled + self.0.limits.unsettled.swap(0, Ordering::Relaxed);
        Ok(store::Purge { removed: purged.removed as u64, unsettled })
    }

    async fn unsettled(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let Inner { readers, table, timeline, .. } = self.inner()?;
        Ok(readers.read(|db| table.evidence_page(db, timeline, after, limit))?)
    }

    fn finds_unsettled(&self) -> bool {
        true
    }

    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        Ok(self.inner()?.writer.run(|reply| Job::Discard(*id, reply)).await??)
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
