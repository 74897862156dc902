//! [`Engine::run_blocking`]: a handler that blocks its thread, with its lease renewed from another
//! task.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::record::record;
use super::{Failure, Outcome, RunError, alive};
use crate::engine::Engine;
use crate::lease::Lease;
use crate::observe::{self, Op};
use crate::request::Request;

impl Engine {
    /// [`run`](Engine::run) for a handler that blocks: the handler gets a new thread of its own,
    /// and this future renews the lease meanwhile. It needs no runtime, but must be polled like any
    /// future.
    ///
    /// The handler calls the lease through the `block_on` of a small executor, or of its runtime's
    /// handle ([guide](crate::guide#synchronous-code)), and should check [`Lease::is_lost`] between
    /// its steps. A panic in it is a crash, as in `run`, and is resumed in the caller. **A thread
    /// cannot be stopped**: if this future is dropped, the handler continues, its lease is no
    /// longer renewed and expires, and nothing is recorded.
    ///
    /// ```
    /// use futures_executor::block_on;
    /// use nevertwice::{Classified, Engine, MemoryStore, Request, Retry};
    /// # block_on(async {
    /// let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let request = Request::new("reports", "2026-11")?;
    /// let sum = engine.run_blocking(&request, |lease| {
    ///     let failed = |error: nevertwice::Error| Classified { retry: Retry::Now, message: error.to_string() };
    ///     block_on(lease.mark_effect()).map_err(failed)?;
    ///     Ok::<u64, Classified>((1..=1000).sum()) // an hour's computation
    /// });
    /// assert_eq!(sum.await?.into_value(), 500_500);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`RunError`], as for [`run`](Engine::run); [`RunError::NoThread`] if the system cannot start
    /// a thread: then the handler did not run and the key is free.
    pub async fn run_blocking<T, E, F>(
        &self,
        request: &Request,
        handler: F,
    ) -> Result<Outcome<T>, RunError<T, E>>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        E: Failure + Send + 'static,
        F: FnOnce(&Lease) -> Result<T, E> + Send + 'static,
    {
        let seen = observe::call(self, Op::Run, &|| Some(request.label()));
        let result = observe::in_span(&seen, async {
            let lease = match self.lease_or_replay(request).await {
                Ok(lease) => lease,
                Err(answer) => return answer,
            };
            let here = Arc::new(Handover::new());
            let (there, held) = (Arc::clone(&here), Arc::clone(&lease));
            let work = move || {
                let result = catch_unwind(AssertUnwindSafe(|| handler(&held)));
                drop(held);
                there.give(result);
            };
            if let Err(error) = std::thread::Builder::new().name("nevertwice-run".to_owned()).spawn(work) {
                // If that fails too, the lease expires.
                drop(lease.release().await);
                return Err(RunError::NoThread(error));
            }
            match alive(&lease, poll_fn(|context| here.poll(context))).await {
                Ok(result) => record(&lease, result).await,
                Err(panic) => resume_unwind(panic),
            }
        });
        let result = result.await;
        seen.ran(&result);
        result
    }
}

/// A slot through which a thread passes its result to the future that waits for it.
struct Handover<R> {
    result: Mutex<Option<R>>,
    waiter: AtomicWaker,
}

impl<R> Handover<R> {
    fn new() -> Handover<R> {
        Handover { result: Mutex::new(None), waiter: AtomicWaker::new() }
    }

    fn give(&self, result: R) {
        *self.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        self.waiter.wake();
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<R> {
        // Registers before it reads the result: a result given in between wakes the waiter.
        self.waiter.register(context.waker());
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        result.map_or(Poll::Pending, Poll::Ready)
    }
}
