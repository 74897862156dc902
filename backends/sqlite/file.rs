//! The file that a store opened, and the check that it is still the same: [`OpenFile`].
//!
//! SQLite opens files by name: the database and its log with every connection, and the log's index
//! once per process. If a name leads elsewhere in the meantime, the connections of one process use
//! different files, and one of them lacks what another acknowledged. So the three names are looked
//! up
//!
//! * by the writer after every commit, before it answers; before the commit, only the database's
//!   name,
//! * by readers and the watcher every [`CHECK_INTERVAL`], and around every connection that is
//!   opened,
//! * by [`begin_in`](super::begin_in) and its companions in each call.
//!
//! The store's connections keep all three files open, so an inode number cannot be freed and reused
//! unnoticed. After the first mismatch every call fails, and no connection moves its log into the
//! file when it closes.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::error::{Error, Result};
use super::held::{self, HeldFile};
use crate::clock::Clock;
use crate::observe;

/// The maximum age of a check that a reader relies on.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The identity of a file among all that exist at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    #[cfg(unix)]
    pub(super) fn of(file: &Metadata) -> FileId {
        use std::os::unix::fs::MetadataExt;
        FileId { device: file.dev(), inode: file.ino() }
    }

    /// Returns the same id for every file: there is no stable number here, but an open file cannot
    /// be replaced either.
    #[cfg(not(unix))]
    pub(super) fn of(_file: &Metadata) -> FileId {
        FileId { device: 0, inode: 0 }
    }
}

/// The three files as they were opened.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// The path that the application passed.
    path: PathBuf,
    database: HeldFile,
    log: (PathBuf, FileId),
    index: (PathBuf, HeldFile),
    /// True for the database and the index if the store holds its own lock on it, which cannot be
    /// lost.
    locked: [bool; 2],
    unlocked: AtomicBool,
    clock: Arc<dyn Clock>,
    /// The time of the last check, in microseconds of the clock.
    checked_at: AtomicU64,
    log_bytes: Arc<AtomicU64>,
    /// The first mismatch found.
    lost: OnceLock<String>,
}

impl OpenFile {
    /// Records the files at `path`; `database` holds the database, and connections have read from
    /// it.
    pub(super) fn new(path: &Path, database: HeldFile, clock: Arc<dyn Clock>) -> Result<OpenFile> {
        let gone =
            |error: io::Error| Error::unusable(format!("its files changed while it was opened: {error}"));
        // SQLite names the log after the file that symbolic links lead to.
        let real = if cfg!(unix) { fs::canonicalize(path).map_err(gone)? } else { path.to_owned() };
        let (log, index) = (beside(&real, "-wal"), beside(&real, "-shm"));
        let log_id = FileId::of(&fs::metadata(&log).map_err(gone)?);
        let index_file = HeldFile::hold(&index, held::INDEX).map_err(gone)?;
        let locked = [database.lock(), index_file.lock()];
        let file = OpenFile {
            path: path.to_owned(),
            database,
            log: (log, log_id),
            index: (index, index_file),
            locked,
            unlocked: AtomicBool::new(false),
            clock,
            checked_at: AtomicU64::new(0),
            log_bytes: Arc::default(),
            lost: OnceLock::new(),
        };
        file.check()?;
        Ok(file)
    }

    /// Returns true if the file stays locked when another part of the process closes it.
    pub(super) fn is_locked(&self) -> bool {
        self.locked == [true; 2]
    }

    /// Returns the size of the log in bytes at the last check.
    pub(super) fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }

    /// Returns the counter behind [`log_bytes`](OpenFile::log_bytes).
    pub(super) fn log_counter(&self) -> Arc<AtomicU64> {
        self.log_bytes.clone()
    }

    /// Checks that the names still lead to the files that were opened. Takes three system calls.
    pub(super) fn check(&self) -> Result<()> {
        let now = u64::try_from(self.clock.monotonic().as_micros()).unwrap_or(u64::MAX);
        self.unless_lost(|| self.compare())?;
        self.checked_at.store(now, Ordering::Relaxed);
        Ok(())
    }

    /// Checks the database's name only. Takes one system call.
    pub(super) fn check_name(&self) -> Result<()> {
        self.unless_lost(|| self.compare_database())
    }

    /// Returns the result of `compare`, or the error of an earlier mismatch.
    fn unless_lost(&self, compare: impl FnOnce() -> Result<(), Mismatch>) -> Result<()> {
        self.verdict()?;
        match compare() {
            Ok(()) => self.verdict(),
            Err(Mismatch::Unknown(error)) => {
                Err(Error::unavailable(format!("its files cannot be examined: {error}")))
            }
            Err(Mismatch::Found(what)) => {
                let words = self.lost.get_or_init(|| {
                    format!(
                        "{what}. Nothing more is read or written, so that no two files are mistaken for one: \
                         put the right file in place and open the store anew"
                    )
                });
                observe::store_warning("sqlite", words);
                self.verdict()
            }
        }
    }

    /// Checks the files like [`OpenFile::check`], unless the last check is recent enough.
    pub(super) fn check_recent(&self) -> Result<()> {
        let now = self.clock.monotonic();
        let checked_at = Duration::from_micros(self.checked_at.load(Ordering::Relaxed));
        if now.saturating_sub(checked_at) < CHECK_INTERVAL { self.verdict() } else { self.check() }
    }

    /// Opens a connection, and makes sure that the names led to the right files before and after.
    pub(super) fn opening(&self, open: impl FnOnce() -> Result<Connection>) -> Result<Connection> {
        self.check()?;
        let opened = open();
        if let Ok(db) = &opened {
            leave_log(db, true)?;
        }
        // If opening failed, this may be the reason.
        self.check()?;
        opened
    }

    /// Returns true if `path` leads to this database.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        if cfg!(unix) {
            return fs::metadata(path).is_ok_and(|file| FileId::of(&file) == self.database.id());
        }
        fs::canonicalize(path).is_ok_and(|path| fs::canonicalize(&self.path).is_ok_and(|own| own == path))
    }

    /// Releases the locks, for the last connection to close the file.
    pub(super) fn unlock(&self) {
        if self.unlocked.swap(true, Ordering::AcqRel) {
            return;
        }
        for (file, locked) in [&self.database, &self.index.1].into_iter().zip(self.locked) {
            if locked {
                file.unlock();
            }
        }
    }

    fn verdict(&self) -> Result<()> {
        match self.lost.get() {
            None => Ok(()),
            Some(what) => Err(Error::unusable(what.clone())),
        }
    }

    fn compare_database(&self) -> Result<(), Mismatch> {
        let (_, names) = same(&self.path, self.database.id(), "the file")?;
        if names > 1 {
            return Err(Mismatch::Found(format!(
                "{} has {names} names (hard links), and SQLite keeps a log for each",
                self.path.display()
            )));
        }
        Ok(())
    }

    fn compare(&self) -> Result<(), Mismatch> {
        self.compare_database()?;
        let (bytes, _) = same(&self.log.0, self.log.1, "its log")?;
        same(&self.index.0, self.index.1.id(), "the index of its log")?;
        self.log_bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.unlock();
    }
}

enum Mismatch {
    /// The file could not be examined.
    Unknown(io::Error),
    Found(String),
}

/// Returns the length of the file at `path` and its number of names, if its id is `id`.
fn same(path: &Path, id: FileId, what: &str) -> Result<(u64, u64), Mismatch> {
    match fs::metadata(path) {
        Ok(file) if FileId::of(&file) == id => Ok((file.len(), names(&file))),
        Ok(_) => Err(Mismatch::Found(format!(
            "{} is not {what} that the store opened: it was replaced, or the path leads elsewhere now",
            path.display()
        ))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Err(Mismatch::Found(format!(
                "{}, {what} that the store has open, was moved or removed",
                path.display()
            )))
        }
        Err(error) => Err(Mismatch::Unknown(error)),
    }
}

#[cfg(unix)]
fn names(file: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(file)
}

#[cfg(not(unix))]
fn names(_file: &Metadata) -> u64 {
    1
}

/// Sets whether `db`, if it is the last connection to close, leaves the log alone. All of a store's
/// connections do, so that no log is moved into a file it does not belong to. The writer moves it
/// after a check.
pub(super) fn leave_log(db: &Connection, leave: bool) -> Result<()> {
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, leave)?;
    Ok(())
}

/// Returns the name of a file that SQLite keeps beside the one at `path`.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}
