//! The file that a store opened, and the check that it still is the one: [`OpenFile`].
//!
//! SQLite opens files by name: the database and its log with every connection, and the log's index once a process. When a name
//! leads elsewhere meanwhile, connections of one process see different files, and what is acknowledged on one of them is not
//! on the other. So the three names are looked up
//!
//! * by the writer after every commit, before anybody is answered, and before it the database's name,
//! * by readers and the watcher every [`EVERY`], and around every connection that is opened,
//! * by [`begin_in`](super::begin_in) and its companions in each call.
//!
//! The store's connections keep all three files open, so a number that is freed and given to another file does not deceive.
//! From the first sign on every call fails, and no connection moves its log into the file when it is closed.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;

use super::held::{self, HeldFile};
use super::trouble::Trouble;
use crate::clock::Clock;
use crate::error::StoreError;
use crate::observe;

/// How old a check may be that a reader goes by.
const EVERY: Duration = Duration::from_millis(50);

/// What tells a file from every other that exists at the same time.
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

    /// There is no such number that is stable; an open file cannot be replaced there either.
    #[cfg(not(unix))]
    pub(super) fn of(_file: &Metadata) -> FileId {
        FileId { device: 0, inode: 0 }
    }
}

/// The three files, as they were opened.
#[derive(Debug)]
pub(super) struct OpenFile {
    /// As the application named it.
    path: PathBuf,
    database: HeldFile,
    log: (PathBuf, FileId),
    index: (PathBuf, HeldFile),
    /// Whether the locks on them are the store's own too, and cannot be lost.
    locked: [bool; 2],
    unlocked: AtomicBool,
    clock: Arc<dyn Clock>,
    /// When it was last looked at, in microseconds of the clock.
    looked: AtomicU64,
    log_bytes: Arc<AtomicU64>,
    /// The first sign that it is no longer the file that was opened.
    lost: OnceLock<String>,
}

impl OpenFile {
    /// The file at `path`, which `database` holds and connections have read from.
    pub(super) fn new(
        path: &Path,
        database: HeldFile,
        clock: Arc<dyn Clock>,
    ) -> Result<OpenFile, StoreError> {
        let gone =
            |error: io::Error| Trouble::lasting(format!("its files changed while it was opened: {error}"));
        // SQLite names the log after the file that links lead to.
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
            looked: AtomicU64::new(0),
            log_bytes: Arc::default(),
            lost: OnceLock::new(),
        };
        file.check()?;
        Ok(file)
    }

    /// Whether closing the file elsewhere in the process leaves it locked.
    pub(super) fn is_locked(&self) -> bool {
        self.locked == [true; 2]
    }

    /// The bytes in the log, when it was last looked at.
    pub(super) fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }

    /// What keeps [`log_bytes`](OpenFile::log_bytes).
    pub(super) fn log_counter(&self) -> Arc<AtomicU64> {
        self.log_bytes.clone()
    }

    /// Looks whether the names still lead to the files that were opened: three system calls.
    pub(super) fn check(&self) -> Result<(), Trouble> {
        let now = u64::try_from(self.clock.monotonic().as_micros()).unwrap_or(u64::MAX);
        self.judge(|| self.look())?;
        self.looked.store(now, Ordering::Relaxed);
        Ok(())
    }

    /// The same of the database alone: one system call.
    pub(super) fn check_name(&self) -> Result<(), Trouble> {
        self.judge(|| self.look_at_database())
    }

    /// What to make of `look`, and of what was seen before.
    fn judge(&self, look: impl FnOnce() -> Result<(), Sign>) -> Result<(), Trouble> {
        self.verdict()?;
        match look() {
            Ok(()) => self.verdict(),
            Err(Sign::Unknown(error)) => {
                Err(Trouble::passing(format!("its files cannot be looked at: {error}")))
            }
            Err(Sign::Lost(what)) => {
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

    /// The same, unless somebody looked a moment ago.
    pub(super) fn glance(&self) -> Result<(), Trouble> {
        let now = self.clock.monotonic();
        let looked = Duration::from_micros(self.looked.load(Ordering::Relaxed));
        if now.saturating_sub(looked) < EVERY { self.verdict() } else { self.check() }
    }

    /// The connection that `open` gives, if it was opened while the names led to the right files.
    pub(super) fn opening(
        &self,
        open: impl FnOnce() -> Result<Connection, StoreError>,
    ) -> Result<Connection, StoreError> {
        self.check()?;
        let opened = open();
        if let Ok(db) = &opened {
            leave_log(db, true)?;
        }
        // Should it have failed, this may be why.
        self.check()?;
        opened
    }

    /// Whether `path` leads to this database.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        if cfg!(unix) {
            return fs::metadata(path).is_ok_and(|file| FileId::of(&file) == self.database.id());
        }
        fs::canonicalize(path).is_ok_and(|path| fs::canonicalize(&self.path).is_ok_and(|own| own == path))
    }

    /// Gives the locks back, for the last connection to close the file.
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

    fn verdict(&self) -> Result<(), Trouble> {
        match self.lost.get() {
            None => Ok(()),
            Some(what) => Err(Trouble::lasting(what.clone())),
        }
    }

    fn look_at_database(&self) -> Result<(), Sign> {
        let (_, names) = same(&self.path, self.database.id(), "the file")?;
        if names > 1 {
            return Err(Sign::Lost(format!(
                "{} has {names} names (hard links), and SQLite keeps a log for each",
                self.path.display()
            )));
        }
        Ok(())
    }

    fn look(&self) -> Result<(), Sign> {
        self.look_at_database()?;
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

enum Sign {
    /// It could not be looked at.
    Unknown(io::Error),
    Lost(String),
}

/// The length of the file at `path` and how many names it has, if it is the one called `id`.
fn same(path: &Path, id: FileId, what: &str) -> Result<(u64, u64), Sign> {
    match fs::metadata(path) {
        Ok(file) if FileId::of(&file) == id => Ok((file.len(), names(&file))),
        Ok(_) => Err(Sign::Lost(format!(
            "{} is not {what} that the store opened: it was replaced, or the path leads elsewhere now",
            path.display()
        ))),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err(
            Sign::Lost(format!("{}, {what} that the store has open, was moved or removed", path.display())),
        ),
        Err(error) => Err(Sign::Unknown(error)),
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

/// Whether `db`, should it be the last connection to be closed, leaves the log as it is. A store's do, so that nothing is moved from a
/// log into a file that no longer belong together; the writer moves it, once it has looked.
pub(super) fn leave_log(db: &Connection, leave: bool) -> Result<(), Trouble> {
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, leave)?;
    Ok(())
}

/// The name of a file that SQLite keeps beside the one at `path`.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}
