//! [`Engine::run`]: begin, wait, renew, finish and replay around a handler.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error as ThisError;

use crate::begin::{Begin, Unresolved};
use crate::engine::Engine;
use crate::error::Error;
use crate::lease::Lease;
use crate::observe::{self, Op};
use crate::policy::Retry;
use crate::request::Request;

/// An error of a handler that says what the next begin may do: what [`Engine::run`] records it by.
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
pub trait Failure: Serialize + DeserializeOwned {
    /// What the next begin may do.
    fn retry(&self) -> Retry;
}

/// What [`Engine::run`] returns when the operation is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome<T> {
    value: T,
    replayed: bool,
}

impl<T> Outcome<T> {
    /// What the handler returned, now or when it was executed.
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

/// Why [`Engine::run`] has no value to return. `E` is the handler's own error.
#[derive(Debug, ThisError)]
#[non_exhaustive]
pub enum RunError<E> {
    /// The handler failed, now or when it was executed.
    #[error("the operation failed{}", if *.replayed { " before" } else { "" })]
    Failed {
        /// Its error.
        error: E,
        /// Whether it is the recorded one.
        replayed: bool,
        /// When it may be executed again; `None`: never, or nobody knows.
        retry_after: Option<Duration>,
    },
    /// Somebody else is still at it after the policy's `run_wait`.
    #[error("the operation is in progress elsewhere, for up to {retry_after:?}")]
    InProgress {
        /// How long their lease still runs.
        retry_after: Duration,
    },
    /// Nobody may execute it until somebody has looked.
    #[error("the operation is unresolved: {:?}", .0.reason())]
    Unresolved(Unresolved),
    /// The key was used for another request.
    #[error("the key was used for another request")]
    Mismatch,
    /// The lease was lost while the handler ran: somebody else may have executed too, and what this handler returned is
    /// not recorded.
    #[error("the lease was lost while the operation ran")]
    LeaseLost,
    /// The operation was done or failed, and what is recorded cannot be had as a value. Nothing is executed again.
    #[error("the recorded {what} is no {type_name}: {detail}")]
    Unreadable {
        /// `response` or `error`.
        what: &'static str,
        /// The type that was expected.
        type_name: &'static str,
        /// Where it went wrong, or that it is not kept.
        detail: String,
    },
    /// The handler's value cannot be serialised. The operation is recorded as unresolved: it was executed.
    #[error("a {type_name} cannot be serialised: {detail}")]
    Unwritable {
        /// The value's type.
        type_name: &'static str,
        /// Why.
        detail: String,
    },
    /// The store or the request: see [`Error`]. If the handler ran already, its outcome is not recorded.
    #[error(transparent)]
    Engine(#[from] Error),
}

impl Engine {
    /// Runs `handler` under a lease on `request`, once: a duplicate waits for the one in flight (up to the policy's
    /// [`run_wait`](crate::Policy::run_wait)) and gets its value.
    ///
    /// The lease is renewed at a third of its length while the handler runs, from within this future: nothing is spawned, and
    /// dropping it is a crash. `Ok` is recorded as completed, `Err` by its [`Failure::retry`], both as JSON. If the lease is
    /// lost, the handler is told by [`Lease::lost`], and the result is [`RunError::LeaseLost`], whatever it returns. A panic leaves the
    /// lease to run out. A value over `max_response` is recorded as done without it, whatever the policy's
    /// [`oversized`](crate::Policy::oversized) says: the handler has returned, and must not run again.
    ///
    /// ```
    /// use nevertwice::{Engine, Failure, MemoryStore, Request, Retry};
    /// # #[derive(Debug, serde::Serialize, serde::Deserialize)] struct Declined;
    /// # impl Failure for Declined { fn retry(&self) -> Retry { Retry::Never } }
    /// # futures_executor::block_on(async {
    /// let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let request = Request::new("acct_42/charges", "8d7f-11")?;
    /// for replayed in [false, true] {
    ///     let outcome = engine
    ///         .run(&request, |lease| async move {
    ///             lease.mark_effect().await.expect("the lease is not a second old");
    ///             Ok::<u64, Declined>(4200)
    ///         })
    ///         .await?;
    ///     assert_eq!((*outcome.value(), outcome.is_replayed()), (4200, replayed));
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`RunError`]. None of them lets the caller act on its own.
    pub async fn run<T, E, F, Fut>(&self, request: &Request, handler: F) -> Result<Outcome<T>, RunError<E>>
    where
        T: Serialize + DeserializeOwned,
        E: Failure,
        F: FnOnce(Arc<Lease>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let seen = observe::call(self, Op::Run, &|| Some(request.label()));
        let result = observe::in_span(&seen, self.run_once(request, handler)).await;
        seen.ran(&result);
        result
    }

    async fn run_once<T, E, F, Fut>(&self, request: &Request, handler: F) -> Result<Outcome<T>, RunError<E>>
    where
        T: Serialize + DeserializeOwned,
        E: Failure,
        F: FnOnce(Arc<Lease>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        match self.begin_or_wait(request, self.policy().run_wait).await? {
            Begin::Acquired(lease) => {
                let lease = Arc::new(lease);
                let result = alive(&lease, handler(Arc::clone(&lease))).await;
                record(&lease, result).await
            }
            Begin::Completed(done) => {
                Ok(Outcome { value: read("response", done.response())?, replayed: true })
            }
            Begin::Failed(failed) => Err(RunError::Failed {
                error: read("error", failed.error())?,
                replayed: true,
                retry_after: failed.retry_after(),
            }),
            Begin::InProgress(busy) => Err(RunError::InProgress { retry_after: busy.retry_after() }),
            Begin::Unresolved(unknown) => Err(RunError::Unresolved(unknown)),
            Begin::Mismatch(_) => Err(RunError::Mismatch),
        }
    }
}

/// What `work` gives, with the lease renewed while it goes on.
async fn alive<T>(lease: &Lease, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let mut renewal = pin!(renew(lease));
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(value),
        // It never completes: when the lease is lost, the work is told, and what it returns does not count.
        Poll::Pending => renewal.as_mut().poll(context).map(|never| match never {}),
    })
    .await
}

/// Renews at a third of the lease. A renewal may take a sixth of it, and after one that failed comes the next at a twelfth: two
/// in a row may fail, and there is still time for a third.
async fn renew(lease: &Lease) -> std::convert::Infallible {
    let length = lease.length();
    let mut pause = length / 3;
    loop {
        lease.engine().clock().sleep(pause).await;
        pause = match lease.renew_within(length / 6).await {
            Ok(()) => length / 3,
            Err(Error::LeaseLost { .. }) => std::future::pending().await,
            Err(_) => length / 12,
        };
    }
}

async fn record<T: Serialize, E: Failure>(
    lease: &Lease,
    result: Result<T, E>,
) -> Result<Outcome<T>, RunError<E>> {
    let known_lost = |error: Error| {
        if let Error::LeaseLost { .. } = error { RunError::LeaseLost } else { RunError::Engine(error) }
    };
    // The handler said that nothing happened: nothing is recorded over that.
    if lease.is_released() {
        let retry_after = Some(Duration::from_secs(1));
        return match result {
            Ok(value) => Ok(Outcome { value, replayed: false }),
            Err(error) => Err(RunError::Failed { error, replayed: false, retry_after }),
        };
    }
    match result {
        Ok(value) => {
            let response = match serde_json::to_vec(&value) {
                Ok(response) => response,
                Err(error) => return Err(unwritable::<T, E>(lease, &error).await),
            };
            lease.finish(Ok(response.into())).await.map_err(known_lost)?;
            Ok(Outcome { value, replayed: false })
        }
        Err(failure) => {
            let retry = failure.retry();
            let error = match serde_json::to_vec(&failure) {
                Ok(error) => error,
                Err(error) => return Err(unwritable::<E, E>(lease, &error).await),
            };
            lease.finish(Err((error.into(), retry))).await.map_err(known_lost)?;
            let retry_after = match retry {
                Retry::Now => Some(Duration::ZERO),
                Retry::After(wait) => Some(wait),
                Retry::Never | Retry::Unresolved => None,
            };
            Err(RunError::Failed { error: failure, replayed: false, retry_after })
        }
    }
}

/// The handler ran, and what it returned cannot be recorded: somebody has to look.
async fn unwritable<V, E>(lease: &Lease, error: &serde_json::Error) -> RunError<E> {
    let unwritable =
        RunError::Unwritable { type_name: std::any::type_name::<V>(), detail: Place(error).to_string() };
    match lease.finish(Err((Bytes::from_static(b"null"), Retry::Unresolved))).await {
        Ok(()) => unwritable,
        Err(Error::LeaseLost { .. }) => RunError::LeaseLost,
        Err(error) => RunError::Engine(error),
    }
}

fn read<V: DeserializeOwned, E>(what: &'static str, body: Option<&Bytes>) -> Result<V, RunError<E>> {
    let unreadable = |detail| RunError::Unreadable { what, type_name: std::any::type_name::<V>(), detail };
    let bytes =
        body.ok_or_else(|| unreadable("it is not kept (max_response, response_retention)".to_owned()))?;
    serde_json::from_slice(bytes).map_err(|error| unreadable(Place(&error).to_string()))
}

/// Where JSON went wrong, without the content that `serde_json` would quote.
struct Place<'a>(&'a serde_json::Error);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.0.classify() {
            serde_json::error::Category::Io => "I/O error",
            serde_json::error::Category::Syntax => "not JSON",
            serde_json::error::Category::Data => "another type",
            serde_json::error::Category::Eof => "cut short",
        };
        write!(f, "{kind} at line {} column {}", self.0.line(), self.0.column())
    }
}
