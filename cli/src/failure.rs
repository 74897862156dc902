//! The reason why a command ended without success, and its exit code: [`Failure`].

use std::io::{self, Write};
use std::process::ExitCode;

use nevertwice::{Error, KeyError, StoreError};

use crate::redact::redact;

/// The reason why a command ended without success. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// Nothing matched: exit code 1.
    #[error("{0}")]
    NothingFound(String),
    /// The arguments are wrong: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The store cannot be reached or used: exit code 3.
    #[error("{0}")]
    Unreachable(String),
    /// The command was refused or not confirmed, or ended early: exit code 4.
    #[error("{0}")]
    Refused(String),
    /// The record of an operation cannot be read: exit code 4.
    #[error("{0}")]
    Corrupt(String),
    /// The reader of the output has gone, as that of `| head` does: no failure of a command that
    /// only reads. The others use [`or_no_reader`].
    #[error("the reader of the output has gone")]
    NoReader,
}

impl Failure {
    /// Returns the exit code.
    pub fn code(&self) -> u8 {
        match self {
            Failure::NoReader => 0,
            Failure::NothingFound(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Unreachable(_) => 3,
            Failure::Refused(_) | Failure::Corrupt(_) => 4,
        }
    }

    /// Writes the reason to stderr, without passwords, and returns the exit code.
    pub fn report(&self) -> ExitCode {
        if !matches!(self, Failure::NoReader) {
            let text = redact(self.to_string().trim_end());
            let text = if text.starts_with("error:") { text } else { format!("error: {text}") };
            let _ = writeln!(anstream::stderr(), "{text}");
        }
        ExitCode::from(self.code())
    }
}

/// Turns [`Failure::NoReader`] into success, for output that a command goes on without: a change
/// that was confirmed is made, and its verdict told by the exit code, whether or not it is read.
pub(crate) fn or_no_reader(written: Result<(), Failure>) -> Result<(), Failure> {
    match written {
        Err(Failure::NoReader) => Ok(()),
        other => other,
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        let text = error.to_string();
        match error {
            StoreError::Unavailable { .. } | StoreError::Unusable { .. } => Failure::Unreachable(text),
            StoreError::Corrupt { .. } => Failure::Corrupt(text),
            _ => Failure::Refused(text),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::Store(error) => error.into(),
            Error::Key(error) => error.into(),
            Error::TimedOut { last: Some(last), .. } => {
                Failure::Unreachable(format!("no answer in time: {last}"))
            }
            Error::TimedOut { .. } => Failure::Unreachable("no answer in time: see --timeout".to_owned()),
            other => Failure::Refused(other.to_string()),
        }
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Failure {
        Failure::Usage(error.to_string())
    }
}

/// For writing the output. Errors of other files are given their name where they occur.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::NoReader,
            _ => Failure::Refused(format!("the output cannot be written: {error}")),
        }
    }
}
