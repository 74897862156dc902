//! Errors of handlers: [`Failure`], and [`Classified`] for errors without serde.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::record::Retry;

/// An error of a handler. It states what the next begin may do, and
/// [`Engine::run`](crate::Engine::run) records it accordingly.
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
    /// The retry disposition: what the next begin may do.
    fn retry(&self) -> Retry;
}

/// The recorded part of an error without serde.
/// [`Engine::run_classified`](crate::Engine::run_classified) gets it from a closure. It is a
/// [`Failure`] too, so that a handler can return it directly. `Debug` does not show the message.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Classified {
    /// The retry disposition: what the next begin may do.
    pub retry: Retry,
    /// The message that duplicates get. It is stored as it is: no secrets.
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

/// An error returned by [`Engine::run_classified`](crate::Engine::run_classified): the recorded
/// part, which every caller gets, and for the caller whose handler failed also the error itself.
/// `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Reported<E> {
    classified: Classified,
    original: Option<E>,
}

impl<E> Reported<E> {
    pub(super) fn new(classified: Classified, original: Option<E>) -> Reported<E> {
        Reported { classified, original }
    }

    /// The recorded message.
    pub fn message(&self) -> &str {
        &self.classified.message
    }

    /// The recorded retry disposition: what the next begin may do.
    pub fn retry(&self) -> Retry {
        self.classified.retry
    }

    /// The handler's error; `None` in a replay.
    pub fn original(&self) -> Option<&E> {
        self.original.as_ref()
    }

    /// Returns the handler's error by value; `None` in a replay.
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
