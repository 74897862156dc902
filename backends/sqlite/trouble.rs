//! SQLite's failures, classified by what they mean for a caller.

use rusqlite::{Error, ErrorCode};

use super::{BACKEND, path};
use crate::error::StoreError;

/// A failure of SQLite, to be reported to every call that it affected.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    kind: Kind,
    /// SQLite's own message. It names tables and columns, never values.
    detail: String,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Locked, interrupted or an I/O error: it may pass, and the write may or may not be in effect.
    Passing,
    /// No space on the disk.
    Full,
    /// It does not pass by itself.
    Lasting,
}

impl Trouble {
    /// SQLite rolled back the whole transaction, as it may when a disk or memory is full.
    pub(super) fn rolled_back() -> Trouble {
        Trouble { kind: Kind::Passing, detail: "the transaction was rolled back".to_owned() }
    }

    /// The application's clock panicked, or a value it gave to be written did.
    pub(super) fn panicked() -> Trouble {
        Trouble { kind: Kind::Passing, detail: "a panic ended the transaction".to_owned() }
    }

    /// The file is not as this store left it.
    pub(super) fn lasting(detail: String) -> Trouble {
        Trouble { kind: Kind::Lasting, detail }
    }

    /// A failure that may pass.
    pub(super) fn passing(detail: String) -> Trouble {
        Trouble { kind: Kind::Passing, detail }
    }

    /// Converts to the error for a call that may, or may not, be refused for lack of space.
    pub(super) fn into_error(self, may_be_refused: bool) -> StoreError {
        let Trouble { kind, detail } = self;
        match kind {
            Kind::Full if may_be_refused => StoreError::Full { backend: BACKEND, detail },
            Kind::Full | Kind::Passing => StoreError::Unavailable { backend: BACKEND, detail },
            Kind::Lasting => StoreError::Unusable { backend: BACKEND, detail },
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        let kind = match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Kind::Full,
            Some(code) if passes(code) => Kind::Passing,
            Some(_) | None => Kind::Lasting,
        };
        let why = if error.sqlite_error_code() == Some(ErrorCode::CannotOpen) {
            path::out_of_descriptors()
        } else {
            None
        };
        Trouble { kind, detail: why.map_or_else(|| error.to_string(), |why| format!("{error}: {why}")) }
    }
}

fn passes(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::OutOfMemory
            | ErrorCode::OperationInterrupted
            | ErrorCode::OperationAborted
            | ErrorCode::SystemIoFailure
            | ErrorCode::FileLockingProtocolFailed
            // Out of file handles, among others.
            | ErrorCode::CannotOpen
    )
}

impl From<Trouble> for StoreError {
    fn from(trouble: Trouble) -> StoreError {
        trouble.into_error(false)
    }
}

pub(super) fn unusable(detail: impl Into<String>) -> StoreError {
    StoreError::Unusable { backend: BACKEND, detail: detail.into() }
}

pub(super) fn unavailable(detail: impl Into<String>) -> StoreError {
    StoreError::Unavailable { backend: BACKEND, detail: detail.into() }
}
