//! The failures of a SQLite store, classified by what they mean for a caller: [`Error`].

use rusqlite::ErrorCode;

use super::{BACKEND, path};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::DecodeError;

/// A failure, to be reported to every call that it affected.
#[derive(Debug, Clone)]
pub(super) enum Error {
    /// There is no space on the disk. The detail is SQLite's own message, which names tables and
    /// columns, never values.
    DiskFull(String),
    /// A failure that means the same to every call.
    Store(StoreError),
}

pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure that may pass. The write may or may not be in effect.
    pub(super) fn unavailable(detail: impl Into<String>) -> Error {
        Error::Store(StoreError::unavailable(BACKEND, detail))
    }

    /// A failure that does not pass by itself, such as a file that is not as this store left it.
    pub(super) fn unusable(detail: impl Into<String>) -> Error {
        Error::Store(StoreError::unusable(BACKEND, detail))
    }

    /// An unreadable row under `id`.
    pub(super) fn corrupt(id: &RecordId, source: DecodeError) -> Error {
        Error::Store(StoreError::corrupt(BACKEND, id, source))
    }

    /// SQLite rolled back the whole transaction, as it may when a disk or memory is full.
    pub(super) fn rolled_back() -> Error {
        Error::unavailable("the transaction was rolled back")
    }

    /// Converts to the error for a call that may, or may not, be refused for lack of space.
    pub(super) fn for_call(self, may_be_refused: bool) -> StoreError {
        match self {
            Error::DiskFull(detail) if may_be_refused => StoreError::full(BACKEND, detail),
            Error::DiskFull(detail) => StoreError::unavailable(BACKEND, detail),
            Error::Store(error) => error,
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Error {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Error::DiskFull(error.to_string()),
            Some(ErrorCode::CannotOpen) => Error::unavailable(match path::out_of_descriptors() {
                Some(why) => format!("{error}: {why}"),
                None => error.to_string(),
            }),
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::OutOfMemory
                | ErrorCode::OperationInterrupted
                | ErrorCode::OperationAborted
                | ErrorCode::SystemIoFailure
                | ErrorCode::FileLockingProtocolFailed,
            ) => Error::unavailable(error.to_string()),
            Some(_) | None => Error::unusable(error.to_string()),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Error {
        Error::Store(error)
    }
}

impl From<Error> for StoreError {
    fn from(error: Error) -> StoreError {
        error.for_call(false)
    }
}

impl From<Error> for crate::error::Error {
    fn from(error: Error) -> crate::error::Error {
        StoreError::from(error).into()
    }
}
