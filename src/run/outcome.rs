//! The result of a run: [`Outcome`] and [`RunError`].

use std::any::type_name;
use std::fmt;
use std::time::Duration;

use thiserror::Error as ThisError;

use crate::begin::Unresolved;
use crate::error::Error;

/// The result of [`Engine::run`](crate::Engine::run) for an operation that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome<T> {
    value: T,
    replayed: bool,
}

impl<T> Outcome<T> {
    pub(super) fn executed(value: T) -> Outcome<T> {
        Outcome { value, replayed: false }
    }

    pub(super) fn replayed(value: T) -> Outcome<T> {
        Outcome { value, replayed: true }
    }

    /// The value that the handler returned, in this call or an earlier one, as it is recorded.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Returns the value.
    pub fn into_value(self) -> T {
        self.value
    }

    /// Returns true if the operation was executed before, and this is the recorded value.
    pub fn is_replayed(&self) -> bool {
        self.replayed
    }
}

/// The reason [`Engine::run`](crate::Engine::run) has no recorded value to return. `T` is the
/// handler's value, `E` its own error; `Debug` and `Display` show neither.
///
/// After [`LeaseLost`](RunError::LeaseLost), [`Unwritable`](RunError::Unwritable) and
/// [`Unrecorded`](RunError::Unrecorded) the handler has run, and the error carries the value that
/// it returned: see [`into_outcome`](RunError::into_outcome).
#[derive(ThisError)]
#[non_exhaustive]
pub enum RunError<T, E> {
    /// The handler failed, in this call or an earlier one.
    #[error("the operation failed{}", if *.replayed { " before" } else { "" })]
    Failed {
        /// The handler's error, as it is recorded.
        error: E,
        /// True if this is a replay.
        replayed: bool,
        /// The time after which the operation may be executed again, in whole seconds, at least
        /// one; `None` if it never may, or if its effect may have happened.
        retry_after: Option<Duration>,
    },
    /// Another caller still executes the operation after the policy's `run_wait`.
    #[error("the operation is in progress elsewhere, try again in {retry_after:?}")]
    InProgress {
        /// The time after which to come back.
        retry_after: Duration,
    },
    /// The operation is not executed until an operator resolves it.
    #[error("the operation is unresolved: {:?}", .0.reason())]
    Unresolved(Unresolved),
    /// The key was used for another request.
    #[error("the key was used for another request")]
    Mismatch,
    /// The lease was lost while the handler ran: another caller may have executed too, and the
    /// value that this handler returned is not recorded.
    #[error("the lease was lost while the operation ran")]
    LeaseLost {
        /// The value that this handler returned.
        outcome: Result<T, E>,
    },
    /// The operation was done or failed, and its recorded value cannot be read. It is not executed
    /// again.
    #[error("the recorded {what} does not read as {type_name}: {detail}")]
    Unreadable {
        /// `response` or `error`.
        what: &'static str,
        /// The type that was expected.
        type_name: &'static str,
        /// The position of the error in the JSON, or that the value is not kept.
        detail: String,
    },
    /// The handler ran, and the value that it returned cannot be recorded so that duplicates get
    /// the same. The operation is recorded as done (or failed, with its retry disposition) without
    /// the value: this causes no second execution, and duplicates get
    /// [`Unreadable`](RunError::Unreadable).
    #[error("the operation is recorded without its {what}: {type_name} {detail}")]
    Unwritable {
        /// The value that the handler returned.
        outcome: Result<T, E>,
        /// `response` or `error`.
        what: &'static str,
        /// The type of the value.
        type_name: &'static str,
        /// The reason.
        detail: String,
    },
    /// The handler ran, and the store refused its outcome or did not accept it before the lease
    /// ended (or within the policy's [`finish_timeout`](crate::Policy::finish_timeout)). The
    /// outcome may be recorded or not. If not, the key is left as by a crash: the operation is
    /// executed again, or is unresolved if the effect was marked.
    #[error("the operation ran, and its outcome could not be recorded: {error}")]
    Unrecorded {
        /// The value that the handler returned.
        outcome: Result<T, E>,
        /// The error of the finish.
        #[source]
        error: Box<Error>,
    },
    /// The system cannot start a thread for a blocking handler: the handler did not run, and
    /// nothing is recorded.
    #[error("could not start a thread for the operation; it did not run")]
    NoThread(#[source] std::io::Error),
    /// An error of the store or of the request: see [`Error`]. The handler did not run.
    #[error(transparent)]
    Engine(#[from] Error),
}

impl<T, E> RunError<T, E> {
    /// Returns the handler's value, if the handler ran in this call and duplicates may not get the
    /// same value.
    pub fn into_outcome(self) -> Option<Result<T, E>> {
        match self {
            RunError::LeaseLost { outcome }
            | RunError::Unwritable { outcome, .. }
            | RunError::Unrecorded { outcome, .. } => Some(outcome),
            RunError::Failed { .. }
            | RunError::InProgress { .. }
            | RunError::Unresolved(_)
            | RunError::Mismatch
            | RunError::Unreadable { .. }
            | RunError::NoThread(_)
            | RunError::Engine(_) => None,
        }
    }

    /// Converts the handler's error.
    pub(super) fn map<F>(self, change: impl FnOnce(E) -> F) -> RunError<T, F> {
        match self {
            RunError::Failed { error, replayed, retry_after } => {
                RunError::Failed { error: change(error), replayed, retry_after }
            }
            RunError::InProgress { retry_after } => RunError::InProgress { retry_after },
            RunError::Unresolved(unknown) => RunError::Unresolved(unknown),
            RunError::Mismatch => RunError::Mismatch,
            RunError::LeaseLost { outcome } => RunError::LeaseLost { outcome: outcome.map_err(change) },
            RunError::Unreadable { what, type_name, detail } => {
                RunError::Unreadable { what, type_name, detail }
            }
            RunError::Unwritable { outcome, what, type_name, detail } => {
                RunError::Unwritable { outcome: outcome.map_err(change), what, type_name, detail }
            }
            RunError::Unrecorded { outcome, error } => {
                RunError::Unrecorded { outcome: outcome.map_err(change), error }
            }
            RunError::NoThread(error) => RunError::NoThread(error),
            RunError::Engine(error) => RunError::Engine(error),
        }
    }
}

/// The handler's value, shown by its type only.
struct Hidden<'a, T, E>(&'a Result<T, E>);

impl<T, E> fmt::Debug for Hidden<'_, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(_) => write!(f, "Ok(<{}>)", type_name::<T>()),
            Err(_) => write!(f, "Err(<{}>)", type_name::<E>()),
        }
    }
}

impl<T, E> fmt::Debug for RunError<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Failed { error: _, replayed, retry_after } => f
                .debug_struct("Failed")
                .field("error", &format_args!("<{}>", type_name::<E>()))
                .field("replayed", replayed)
                .field("retry_after", retry_after)
                .finish(),
            RunError::InProgress { retry_after } => {
                f.debug_struct("InProgress").field("retry_after", retry_after).finish()
            }
            RunError::Unresolved(unknown) => f.debug_tuple("Unresolved").field(unknown).finish(),
            RunError::Mismatch => f.write_str("Mismatch"),
            RunError::LeaseLost { outcome } => {
                f.debug_struct("LeaseLost").field("outcome", &Hidden(outcome)).finish()
            }
            RunError::Unreadable { what, type_name, detail } => f
                .debug_struct("Unreadable")
                .field("what", what)
                .field("type_name", type_name)
                .field("detail", detail)
                .finish(),
            RunError::Unwritable { outcome, what: _, type_name: _, detail } => f
                .debug_struct("Unwritable")
                .field("outcome", &Hidden(outcome))
                .field("detail", detail)
                .finish(),
            RunError::Unrecorded { outcome, error } => {
                f.debug_struct("Unrecorded").field("outcome", &Hidden(outcome)).field("error", error).finish()
            }
            RunError::NoThread(error) => f.debug_tuple("NoThread").field(error).finish(),
            RunError::Engine(error) => f.debug_tuple("Engine").field(error).finish(),
        }
    }
}
