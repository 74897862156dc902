//! Errors of handlers: [`Failure`], and [`Classified`] for those that serde cannot write.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::policy::Retry;

/// An error of a handler that says what the next begin may do: what
/// [`Engine::run`](crate::Engine::run) records it by.
///
/// ```
/// use nevertwice::{Failure, Retry};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, Serialize, Deserialize)]
/// enum ChargeError {
///     Declined,
///     ProviderDown,
///     TimedOut,
/// }
///
/// impl Failure for ChargeError {
///     fn retry(&self) -> Retry {
///         match self {
///             ChargeError::Declined => Retry::Never,
///             ChargeError::ProviderDown => Retry::Now,      // certainly nothing happened
///             ChargeError::TimedOut => Retry::Unresolved,   // it may have
///         }
///     }
/// }
/// ```
///
/// For an error without serde there is [`Classified`].
pub trait Failure: Serialize + DeserializeOwned {
    /// What the next begin may do.
    fn retry(&self) -> Retry;
}

/// What is recorded of an error that serde cannot write.
/// [`Engine::run_classified`](crate::Engine::run_classified) asks a closure for it; it is a
/// [`Failure`] too, for a handler that returns it itself. `Debug` does not show the message.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classified {
    /// What the next begin may do.
    pub retry: Retry,
    /// What duplicates are told. It is stored as it is: no secrets.
    pub message: String,
}

impl Failure for Classified {
    fn retry(&self) -> Retry {
        self.retry
    }
}

impl fmt::Debug for Classified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = format_args!("<{} bytes>", self.message.len());
        f.debug_struct("Classified").field("retry", &self.retry).field("message", &message).finish()
    }
}

/// An error as [`Engine::run_classified`](crate::Engine::run_classified) gives it: what everybody
/// is told, and to the caller whose handler failed the error itself. `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Reported<E> {
    classified: Classified,
    original: Option<E>,
}

impl<E> Reported<E> {
    pub(super) fn new(classified: Classified, original: Option<E>) -> Reported<E> {
        Reported { classified, original }
    }

    /// The message that is recorded.
    pub fn message(&self) -> &str {
        &self.classified.message
    }

    /// What the next begin may do, as it is recorded.
    pub fn retry(&self) -> Retry {
        self.classified.retry
    }

    /// The handler's error, unless this is a replay.
    pub fn original(&self) -> Option<&E> {
        self.original.as_ref()
    }

    /// The same, by value.
    pub fn into_original(self) -> Option<E> {
        self.original
    }
}

impl<E> fmt::Debug for Reported<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reported")
            .field("classified", &self.classified)
            .field("replayed", &self.original.is_none())
            .finish()
    }
}
