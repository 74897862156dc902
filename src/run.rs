//! [`Engine::run`]: begin, wait, renew, finish and replay around a handler.

mod blocking;
mod failure;
mod outcome;
mod record;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use self::failure::{Classified, Failure, Reported};
pub use self::outcome::{Outcome, RunError};
use self::record::{read, record, whole_seconds};
use crate::begin::Begin;
use crate::engine::Engine;
use crate::error::Error;
use crate::lease::Lease;
use crate::observe::{self, Op};
use crate::request::Request;

impl Engine {
    /// Runs `handler` once under a lease on `request`. A duplicate waits for the run in flight (up
    /// to the policy's [`run_wait`](crate::Policy::run_wait)) and gets its value.
    ///
    /// While the handler runs, this future renews the lease at a third of its length: nothing is
    /// spawned, and dropping the future is a crash. A handler that blocks its thread also blocks
    /// the renewal: see [`run_blocking`](Engine::run_blocking). If the lease is lost,
    /// [`Lease::lost`] completes for the handler, and the result is [`RunError::LeaseLost`],
    /// whatever the handler returns. After a panic the lease expires.
    ///
    /// `Ok` is recorded as completed, `Err` by its [`Failure::retry`], both as JSON. **Every
    /// caller, this one included, gets the value that the recorded bytes read back as**: fields
    /// that serde skips are lost to all, and `Some(None)` becomes `None` for all. A value that
    /// cannot be written as JSON or does not read back (a NaN) is [`RunError::Unwritable`]: the
    /// operation is recorded as done without it. A value over `max_response` is recorded as done
    /// without it too, whatever the policy's [`oversized`](crate::Policy::oversized) says: the
    /// handler has returned, and must not run again.
    ///
    /// If the store is unavailable when the handler returns, the finish is retried until the lease
    /// ends (or for the policy's [`finish_timeout`](crate::Policy::finish_timeout)); then the error
    /// carries the value that the handler returned. If the handler [released](Lease::release) its
    /// lease, nothing is recorded, and this caller gets the returned value as it is.
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
    pub async fn run<T, E, F, Fut>(&self, request: &Request, handler: F) -> Result<Outcome<T>, RunError<T, E>>
    where
        T: Serialize + DeserializeOwned,
        E: Failure,
        F: FnOnce(Arc<Lease>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let seen = observe::call(self, Op::Run, &|| Some(request.label()));
        let result = observe::in_span(&seen, async {
            match self.lease_or_replay(request).await {
                Ok(lease) => {
                    let result = alive(&lease, handler(Arc::clone(&lease))).await;
                    record(&lease, result).await
                }
                Err(answer) => answer,
            }
        });
        let result = result.await;
        seen.ran(&result);
        result
    }

    /// [`run`](Engine::run) for an error type without serde: `classify` makes the part that is
    /// recorded. The first caller also gets the error itself, duplicates get only the recorded
    /// part.
    ///
    /// ```
    /// use nevertwice::{Classified, Engine, MemoryStore, Request, Retry, RunError};
    /// # futures_executor::block_on(async {
    /// let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let request = Request::new("imports", "2026-11.csv")?;
    /// for replayed in [false, true] {
    ///     let result = engine
    ///         .run_classified(
    ///             &request,
    ///             |_| async { "12,5".parse::<u64>() },
    ///             |error| Classified { retry: Retry::Never, message: error.to_string() },
    ///         )
    ///         .await;
    ///     let Err(RunError::Failed { error, .. }) = result else { panic!() };
    ///     assert_eq!(error.message(), "invalid digit found in string");
    ///     assert_eq!(error.original().is_none(), replayed);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`RunError`], as for [`run`](Engine::run).
    pub async fn run_classified<T, E, F, Fut, C>(
        &self,
        request: &Request,
        handler: F,
        classify: C,
    ) -> Result<Outcome<T>, RunError<T, Reported<E>>>
    where
        T: Serialize + DeserializeOwned,
        F: FnOnce(Arc<Lease>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        C: FnOnce(&E) -> Classified,
    {
        let mut original = None;
        let slot = &mut original;
        let result = self.run(request, |lease| {
            let work = handler(lease);
            async move {
                work.await.map_err(|error| {
                    let classified = classify(&error);
                    *slot = Some(error);
                    classified
                })
            }
        });
        let result = result.await;
        result.map_err(|error| error.map(|classified| Reported::new(classified, original)))
    }

    /// The lease to execute under, or the result if there is none.
    async fn lease_or_replay<T, E>(
        &self,
        request: &Request,
    ) -> Result<Arc<Lease>, Result<Outcome<T>, RunError<T, E>>>
    where
        T: DeserializeOwned,
        E: DeserializeOwned,
    {
        let begin = self.begin_or_wait(request, self.policy().run_wait).await;
        Err(match begin.map_err(|error| Err(RunError::Engine(error)))? {
            Begin::Acquired(lease) => return Ok(Arc::new(lease)),
            Begin::Completed(done) => read("response", done.response()).map(Outcome::replayed),
            Begin::Failed(failed) => Err(match read("error", failed.error()) {
                Ok(error) => {
                    let retry_after = failed.retry_after().map(whole_seconds);
                    RunError::Failed { error, replayed: true, retry_after }
                }
                Err(unreadable) => unreadable,
            }),
            Begin::InProgress(busy) => Err(RunError::InProgress { retry_after: busy.retry_after() }),
            Begin::Unresolved(unknown) => Err(RunError::Unresolved(unknown)),
            Begin::Mismatch(_) => Err(RunError::Mismatch),
        })
    }
}

/// Runs `work` and renews the lease meanwhile. The lease is renewed after a third of its length; a
/// renewal may take a sixth, and a failed one is repeated after a twelfth. So two may fail in a row
/// before the lease ends.
pub(crate) async fn alive<T>(lease: &Lease, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    let length = lease.length();
    let mut pause = length / 3;
    loop {
        let step = Step::begin(lease, pause);
        match select(work.as_mut(), lease.engine().clock().sleep(pause)).await {
            Either::Left((result, _)) => {
                step.end();
                return result;
            }
            Either::Right(_) => step.end(),
        }
        let step = Step::begin(lease, length / 6);
        pause = match select(work.as_mut(), pin!(lease.renew_within(length / 6))).await {
            Either::Left((result, _)) => {
                step.end();
                return result;
            }
            Either::Right((renewed, _)) => {
                step.end();
                match renewed {
                    Ok(()) => length / 3,
                    // `Lease::lost` completes for the work, and its result does not count.
                    Err(Error::LeaseLost { .. }) => return work.await,
                    Err(_) => retry_pause(length),
                }
            }
        };
    }
}

/// The pause after a failed renewal.
pub(crate) fn retry_pause(length: Duration) -> Duration {
    (length / 12).max(Duration::from_millis(1))
}

/// A part of a renewal: the pause before it, or the renewal itself. If it takes far longer than
/// planned, the task that polls it was blocked.
pub(crate) struct Step<'a> {
    lease: &'a Lease,
    /// The time at which it should end.
    due: Duration,
}

impl<'a> Step<'a> {
    /// A part that takes `time` at most.
    pub(crate) fn begin(lease: &'a Lease, time: Duration) -> Step<'a> {
        Step { lease, due: lease.engine().clock().monotonic().saturating_add(time) }
    }

    /// Reports the part to operators if it ends at least a sixth of the lease late.
    pub(crate) fn end(self) {
        let engine = self.lease.engine();
        let late = engine.clock().monotonic().saturating_sub(self.due);
        if late >= (self.lease.length() / 6).max(Duration::from_micros(1)) {
            observe::renewal_overdue(engine, self.lease.attempt(), late);
        }
    }
}
