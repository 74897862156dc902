//! The lock file beside the database, by which stores show that they are open: [`Claim`].

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::error::{Error, Result};
use super::path;

/// A lock that all open stores of a table share. The system releases it when the process ends,
/// however it ends, so it is never stale. It is on a file of its own, because opening and closing
/// the database would release SQLite's locks on it. The empty file is left behind, and may be
/// removed while no store is open.
#[derive(Debug)]
pub(super) struct Claim {
    file: File,
    patience: Duration,
}

impl Claim {
    /// Prepares the claim on `table` in the existing database at `database`, without taking it.
    /// Other processes hold theirs exclusively only for a moment, so `patience` is meant for slow
    /// machines.
    pub(super) fn new(database: &Path, table: &str, patience: Duration) -> Result<Claim> {
        let refused = |error: io::Error| match path::explain(&error) {
            Some(why) => Error::unavailable(format!("the lock file beside it cannot be opened: {why}")),
            None => Error::unusable(format!("the lock file beside it cannot be opened: {error}")),
        };
        // The database has one lock under all of its names, and the table's name ignores case.
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

    /// Tries to take the claim exclusively. Returns false if another process holds it. A file
    /// system without locks grants it to every process.
    pub(super) fn take_alone(&self) -> Result<bool> {
        taken(self.file.try_lock())
    }

    /// Takes the claim shared, until it is dropped.
    pub(super) fn share(&self) -> Result<()> {
        const PAUSE: Duration = Duration::from_millis(5);
        // Some systems convert one kind of lock into the other only by way of none, and some not at
        // all.
        let _ = self.file.unlock();
        let mut tries = self.patience.as_millis() / PAUSE.as_millis() + 1;
        while !taken(self.file.try_lock_shared())? {
            tries -= 1;
            if tries == 0 {
                return Err(Error::unavailable("another process is about to open it"));
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }
}

fn taken(locked: Result<(), TryLockError>) -> Result<bool> {
    match locked {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => Ok(true),
        Err(TryLockError::Error(error)) => {
            Err(Error::unavailable(format!("its lock file cannot be locked: {error}")))
        }
    }
}

/// Creates an empty file for the users that may open `model`, as SQLite does for its own side
/// files.
fn create_like(path: &Path, model: &Path) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
        let model = fs::metadata(model)?;
        file.set_permissions(PermissionsExt::from_mode(model.mode() & 0o666))?;
        // Only root may do this, and only root needs to.
        let _ = fchown(&file, Some(model.uid()), Some(model.gid()));
    }
    #[cfg(not(unix))]
    let _ = model;
    Ok(file)
}
