//! What a run comes to: [`Outcome`] and [`RunError`].

use std::any::type_name;
use std::fmt;
use std::time::Duration;

use thiserror::Error as ThisError;

use crate::begin::Unresolved;
use crate::error::Error;

/// What [`Engine::run`](crate::Engine::run) returns when the operation is done.
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

    /// What the handler returned, now or when it was executed, as it is recorded.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The same, by value.
    pub fn into_value(self) -> T {
        self.value
    }

    /// Whether it was executed before, and this is the recorded value.
    pub fn is_replayed(&self) -> bool {
        self.replayed
    }
}

/// Why [`Engine::run`](crate::Engine::run) has no recorded value to return. `T` is the handler's
/// value, `E` its own error; neither is shown by `Debug` or `Display`.
///
/// After [`LeaseLost`](RunError::LeaseLost), [`Unwritable`](RunError::Unwritable) and
/// [`Unrecorded`](RunError::Unrecorded) the handler has run, and the error carries what it
/// returned: see [`into_outcome`](RunError::into_outcome).
#[derive(ThisError)]
#[non_exhaustive]
pub enum RunError<T, E> {
    /// The handler failed, now or when it was executed.
    #[error("the operation failed{}", if *.replayed { " before" } else { "" })]
    Failed {
        /// Its error, as it is recorded.
        error: E,
        /// Whether it is a replay.
        replayed: bool,
        /// When it may be executed again, in whole seconds, at least one; `None`: never, or nobody
        /// knows.
        retry_after: Option<Duration>,
    },
    /// Somebody else is still at it after the policy's `run_wait`.
    #[error("the operation is in progress elsewhere, try again in {retry_after:?}")]
    InProgress {
        /// When to come back.
        retry_after: Duration,
    },
    /// Nobody may execute it until somebody has looked.
    #[error("the operation is unresolved: {:?}", .0.reason())]
    Unresolved(Unresolved),
    /// The key was used for another request.
    #[error("the key was used for another request")]
    Mismatch,
    /// The lease was lost while the handler ran: somebody else may have executed too, and what this
    /// handler returned is not recorded.
    #[error("the lease was lost while the operation ran")]
    LeaseLost {
        /// What this handler returned.
        outcome: Result<T, E>,
    },
    /// The operation was done or failed, and what is recorded cannot be had as a value. Nothing is
    /// executed again.
    #[error("the recorded {what} is no {type_name}: {detail}")]
    Unreadable {
        /// `response` or `error`.
        what: &'static str,
        /// The type that was expected.
        type_name: &'static str,
        /// Where it went wrong, or that it is not kept.
        detail: String,
    },
    /// The handler ran, and what it returned cannot be recorded so that duplicates get the same.
    /// That it was done (or failed, and what may be done about it) is recorded without it: nothing
    /// is executed again because of this, and duplicates get [`Unreadable`](RunError::Unreadable).
    #[error("the operation is recorded without its {what}, since a {type_name} {detail}")]
    Unwritable {
        /// What the handler returned.
        outcome: Result<T, E>,
        /// `response` or `error`.
        what: &'static str,
        /// Its type.
        type_name: &'static str,
        /// Why.
        detail: String,
    },
    /// The handler ran, and the store did not take its outcome before the lease ended (the policy's
    /// [`finish_timeout`](crate::Policy::finish_timeout)), or refused it. It may be recorded or
    /// not; if not, the key goes the way of a crash: it is executed again, or is unresolved if the
    /// effect was marked.
    #[error("the operation ran, and its outcome could not be recorded: {error}")]
    Unrecorded {
        /// What the handler returned.
        outcome: Result<T, E>,
        /// What went wrong.
        #[source]
        error: Box<Error>,
    },
    /// The system has no thread for a blocking handler: it did not run, and nothing is recorded.
    #[error("no thread for the operation, which did not run")]
    NoThread(#[source] std::io::Error),
    /// The store or the request: see [`Error`]. The handler did not run.
    #[error(transparent)]
    Engine(#[from] Error),
}

impl<T, E> RunError<T, E> {
    /// What the handler returned, if it ran in this very call and duplicates may not get the same.
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

    /// The same with another error of the handler.
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

/// What the handler returned, by its type only.
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
