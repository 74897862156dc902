//! The [`HeldFile`] of systems without locks that survive a close: it only creates and identifies
//! the file.

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::Path;

use super::file::FileId;

#[derive(Debug, Clone, Copy)]
pub(super) struct Range;

pub(super) const DATABASE: Range = Range;
pub(super) const INDEX: Range = Range;

#[derive(Debug)]
pub(super) struct HeldFile(FileId);

impl HeldFile {
    pub(super) fn make(path: &Path, range: Range) -> io::Result<HeldFile> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        match options.open(path) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        HeldFile::hold(path, range)
    }

    pub(super) fn hold(path: &Path, _range: Range) -> io::Result<HeldFile> {
        Ok(HeldFile(FileId::of(&fs::metadata(path)?)))
    }

    pub(super) fn id(&self) -> FileId {
        self.0
    }

    pub(super) fn lock(&self) -> bool {
        false
    }

    pub(super) fn unlock(&self) {}
}
