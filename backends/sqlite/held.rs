//! A lock of the store's own on a file that SQLite has open: [`HeldFile`].
//!
//! SQLite uses POSIX locks. They belong to the process, and a process loses all of its locks on a
//! file as soon as it closes *any* descriptor of it. After a `std::fs::copy` of the database,
//! another process would believe that it is the only user and remove the log under this one. A lock
//! of an open file description, which Linux has, is not lost that way. It is a shared lock on the
//! bytes that SQLite locks, so it means the same to every other process.
//!
//! For the same reason the descriptor that carries the lock must not be closed while SQLite has
//! locks on the file. It is kept in [`KEPT`], for the next store on the file, until this process
//! has no lock on it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::file::FileId;

/// The byte range of a lock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    start: i64,
    length: i64,
}

/// The bytes of a database on which every WAL connection has a shared lock (`SHARED_FIRST` in
/// SQLite's sources).
pub(super) const DATABASE: Range = Range { start: 0x4000_0002, length: 510 };
/// The byte of a `-shm` on which every process that uses it has a shared lock (`UNIX_SHM_DMS`).
pub(super) const INDEX: Range = Range { start: 128, length: 1 };

/// A file that is held open.
#[derive(Debug)]
pub(super) struct HeldFile {
    id: FileId,
    range: Range,
}

struct Kept {
    id: FileId,
    file: File,
    holders: usize,
    locks: usize,
}

static KEPT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

fn kept() -> MutexGuard<'static, Vec<Kept>> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HeldFile {
    /// Holds the file at `path`, and creates it, for its owner only, if there is none.
    pub(super) fn make(path: &Path, range: Range) -> io::Result<HeldFile> {
        let mut kept = kept();
        let mut options = OpenOptions::new();
        match options.read(true).write(true).create_new(true).mode(0o600).open(path) {
            Ok(file) => HeldFile::keep(&mut kept, file, range),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => HeldFile::find(&mut kept, path, range),
            Err(error) => Err(error),
        }
    }

    /// Holds the file at `path`.
    pub(super) fn hold(path: &Path, range: Range) -> io::Result<HeldFile> {
        HeldFile::find(&mut kept(), path, range)
    }

    fn find(kept: &mut Vec<Kept>, path: &Path, range: Range) -> io::Result<HeldFile> {
        let id = FileId::of(&fs::metadata(path)?);
        if let Some(known) = kept.iter_mut().find(|known| known.id == id) {
            known.holders += 1;
            return Ok(HeldFile { id, range });
        }
        // Read access is enough for a shared lock.
        HeldFile::keep(kept, File::open(path)?, range)
    }

    fn keep(kept: &mut Vec<Kept>, file: File, range: Range) -> io::Result<HeldFile> {
        let id = FileId::of(&file.metadata()?);
        // A second descriptor of a known file (its name moved in between) must not be closed
        // either: see above.
        kept.push(Kept { id, file, holders: 1, locks: 0 });
        Ok(HeldFile { id, range })
    }

    pub(super) fn id(&self) -> FileId {
        self.id
    }

    /// Takes the lock. Returns true if it is held now.
    pub(super) fn lock(&self) -> bool {
        let mut kept = kept();
        let Some(known) = kept.iter_mut().find(|known| known.id == self.id) else { return false };
        if known.locks > 0 || set(&known.file, self.range, libc::F_RDLCK) {
            known.locks += 1;
            return true;
        }
        false
    }

    /// Releases the lock. Call it once for every successful [`lock`](HeldFile::lock).
    pub(super) fn unlock(&self) {
        if let Some(known) = kept().iter_mut().find(|known| known.id == self.id) {
            known.locks = known.locks.saturating_sub(1);
            if known.locks == 0 {
                set(&known.file, self.range, libc::F_UNLCK);
            }
        }
    }
}

impl Drop for HeldFile {
    fn drop(&mut self) {
        let mut kept = kept();
        if let Some(known) = kept.iter_mut().find(|known| known.id == self.id) {
            known.holders = known.holders.saturating_sub(1);
        }
        kept.retain(|known| known.holders > 0 || is_in_use(known));
    }
}

fn set(file: &File, range: Range, kind: i32) -> bool {
    fcntl(file, FcntlArg::F_OFD_SETLK(&lock_on(range, kind))).is_ok()
}

/// Returns true if this process may have a lock on the file that closing it would release.
fn is_in_use(known: &Kept) -> bool {
    let mut found = lock_on(Range { start: 0, length: 0 }, libc::F_WRLCK);
    let asked = fcntl(&known.file, FcntlArg::F_OFD_GETLK(&mut found));
    let free = asked.is_ok() && i32::from(found.l_type) == libc::F_UNLCK;
    // Another process's lock hides this one's. Then another descriptor decides.
    !free && has_another_descriptor(known)
}

fn has_another_descriptor(known: &Kept) -> bool {
    let Ok(open) = fs::read_dir("/proc/self/fd") else { return true };
    let own = known.file.as_raw_fd().to_string();
    open.flatten().any(|entry| {
        entry.file_name().to_str() != Some(&own)
            && fs::metadata(entry.path()).is_ok_and(|file| FileId::of(&file) == known.id)
    })
}

#[allow(clippy::cast_possible_truncation)] // the constants are small
fn lock_on(Range { start, length }: Range, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: length,
        l_pid: 0,
    }
}
