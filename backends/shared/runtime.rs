//! The runtime that callers share work on: tokio, or shuttle in the schedule tests.

#[cfg(not(all(test, nevertwice_shuttle)))]
mod tokios {
    use std::future::{Future, poll_fn};
    use std::pin::Pin;
    use std::task::Poll;
    use std::time::Duration;

    use tokio::runtime::Handle;
    pub(crate) use tokio::sync::oneshot;
    pub(crate) use tokio::task::{AbortHandle, yield_now};

    use crate::clock::timer::sleep;
    use crate::clock::{Clock, SystemClock};

    /// The error of a timeout.
    #[derive(Debug)]
    pub(crate) struct Elapsed;

    /// Returns the output of `future`, unless it times out first: by the timer of this crate, which
    /// runs while the runtime is blocked, and costs less than the runtime's.
    pub(crate) fn timeout<F: Future + Unpin>(
        limit: Duration,
        mut future: F,
    ) -> impl Future<Output = Result<F::Output, Elapsed>> {
        let mut sleep = sleep(limit);
        poll_fn(move |context| match Pin::new(&mut future).poll(context) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => Pin::new(&mut sleep).poll(context).map(|()| Err(Elapsed)),
        })
    }

    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        tokio::spawn(work).abort_handle()
    }

    /// The runtime of a caller.
    #[derive(Clone)]
    pub(crate) struct Runtime(Handle);

    impl Runtime {
        /// Returns the caller's, or `None` outside of one.
        pub(crate) fn current() -> Option<Runtime> {
            Handle::try_current().ok().map(Runtime)
        }

        /// Drops `work` if the runtime has ended.
        pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
            self.0.spawn(work);
        }
    }

    /// A time.
    pub(crate) struct Moment(Duration);

    impl Moment {
        pub(crate) fn now() -> Moment {
            Moment(SystemClock.monotonic())
        }

        pub(crate) fn is_older_than(&self, limit: Duration) -> bool {
            SystemClock.monotonic().saturating_sub(self.0) >= limit
        }
    }

    /// Leaves `work` to the runtime. If there is none any more, drops it.
    #[cfg(feature = "redis")]
    pub(crate) fn leave(work: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = Runtime::current() {
            runtime.spawn(work);
        }
    }
}

#[cfg(all(feature = "redis", not(all(test, nevertwice_shuttle))))]
pub(crate) use tokios::leave;
#[cfg(not(all(test, nevertwice_shuttle)))]
pub(crate) use tokios::{AbortHandle, Moment, Runtime, oneshot, spawn, timeout, yield_now};

#[cfg(all(test, nevertwice_shuttle, feature = "redis"))]
pub(crate) use crate::sync::runtime::leave;
#[cfg(all(test, nevertwice_shuttle))]
pub(crate) use crate::sync::runtime::{AbortHandle, Moment, Runtime, oneshot, spawn, timeout, yield_now};
