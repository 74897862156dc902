//! The files that this process has open, so that its forked children leave them alone:
//! [`ForkGuard`].
//!
//! A process counts its locks on a file in memory. A forked child inherits the count but not the
//! locks: its connections would be unprotected, and others would reset or remove the log under
//! them.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::error::{Error, Result};
use super::file::FileId;
use crate::process::Process;

static OPEN: Mutex<Vec<(Process, FileId)>> = Mutex::new(Vec::new());

/// An entry for a file that this process has open, until it is dropped.
#[derive(Debug)]
pub(super) struct ForkGuard {
    process: Process,
    file: Option<FileId>,
}

impl ForkGuard {
    /// Checks that the file at `path` was not opened before a fork.
    ///
    /// # Errors
    /// Fails if a process that this one was forked from had the file at `path` open.
    pub(super) fn check_path(path: &Path) -> Result<()> {
        let (process, file) = (Process::current(), id(path));
        if open().iter().any(|(owner, known)| Some(*known) == file && *owner != process) {
            return Err(Error::unusable(
                "the process that this one was forked from had the file open; open it in the child only, \
                 or in a process of its own",
            ));
        }
        Ok(())
    }

    /// Registers the file at `path` as open.
    pub(super) fn new(path: &Path) -> ForkGuard {
        let (process, file) = (Process::current(), id(path));
        open().extend(file.map(|file| (process, file)));
        ForkGuard { process, file }
    }

    /// Checks that this process opened the file.
    ///
    /// # Errors
    /// Fails in a child that was forked since.
    pub(super) fn check(&self) -> Result<()> {
        if self.is_here() {
            return Ok(());
        }
        Err(Error::unusable(
            "it was opened before this process was forked; open it after the fork, in the child only",
        ))
    }

    /// Returns true if this process opened the file, not one that it was forked from.
    pub(super) fn is_here(&self) -> bool {
        self.process.is_current()
    }
}

impl Drop for ForkGuard {
    fn drop(&mut self) {
        let Some(file) = self.file else { return };
        let mut open = open();
        if let Some(own) = open.iter().position(|known| *known == (self.process, file)) {
            open.swap_remove(own);
        }
    }
}

fn id(path: &Path) -> Option<FileId> {
    fs::metadata(path).ok().map(|file| FileId::of(&file))
}

fn open() -> MutexGuard<'static, Vec<(Process, FileId)>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}
