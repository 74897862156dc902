//! The file beside the database by whose lock stores show that they are open: [`Claim`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::path;
use super::trouble::{unavailable, unusable};
use crate::error::StoreError;

/// A lock that every open store of a table shares. The system frees it with the process, however that ends, so a stale one
/// cannot be met. It is on a file of its own: to open and close the database would free SQLite's locks on it. An empty file is
/// left behind, which may be removed when no store is open.
#[derive(Debug)]
pub(super) struct Claim {
    file: File,
    patience: Duration,
}

impl Claim {
    /// The claim on `table` in the database at `database`, which is there. It is not taken yet. Others take theirs for a moment only, so
    /// `patience` is for those that a machine is slow to run.
    pub(super) fn new(database: &Path, table: &str, patience: Duration) -> Result<Claim, StoreError> {
        let refused = |error: io::Error| match path::explain(&error) {
            Some(why) => unavailable(format!("the lock file beside it cannot be opened: {why}")),
            None => unusable(format!("the lock file beside it cannot be opened: {error}")),
        };
        // By whichever name the database is opened, it has one lock; and the table's name in either case is the same table.
        let mut lock = fs::canonicalize(database).map_err(refused)?.into_os_string();
        lock.push(format!("-{}-lock", table.to_ascii_lowercase()));
        let lock = PathBuf::from(lock);
        let file = loop {
            match File::open(&lock) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                opened => break opened.map_err(refused)?,
            }
            match create_like(&lock, database) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => break created.map_err(refused)?,
            }
        };
        Ok(Claim { file, patience })
    }

    /// Takes it alone, or says that somebody else has it. A file system that knows no locks gives it to everybody.
    pub(super) fn take_alone(&self) -> Result<bool, StoreError> {
        taken(self.file.try_lock())
    }

    /// Shares it, until it is dropped.
    pub(super) fn share(&self) -> Result<(), StoreError> {
        const PAUSE: Duration = Duration::from_millis(5);
        // Some systems change one kind of lock into the other only by way of none, and some not at all.
        let _ = self.file.unlock();
        let mut tries = self.patience.as_millis() / PAUSE.as_millis() + 1;
        while !taken(self.file.try_lock_shared())? {
            tries -= 1;
            if tries == 0 {
                return Err(unavailable("another process is about to open it"));
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

fn taken(locked: Result<(), TryLockError>) -> Result<bool, StoreError> {
    match locked {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => Ok(true),
        Err(TryLockError::Error(error)) => {
            Err(unavailable(format!("its lock file cannot be locked: {error}")))
        }
    }
}

/// Makes an empty file for those who may open `model`, as SQLite does with the files beside a database.
fn create_like(path: &Path, model: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
        let model = fs::metadata(model)?;
        file.set_permissions(PermissionsExt::from_mode(model.mode() & 0o666))?;
        // Only root may, and nobody else need.
        let _ = fchown(&file, Some(model.uid()), Some(model.gid()));
    }
    #[cfg(not(unix))]
    let _ = model;
    Ok(file)
}
