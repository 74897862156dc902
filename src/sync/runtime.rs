//! The parts of a runtime that callers need, implemented by shuttle.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

pub(crate) use shuttle::future::{AbortHandle, yield_now};
use shuttle::rand::Rng;

pub(crate) mod oneshot;

pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
    shuttle::future::spawn(work).abort_handle()
}

/// The runtime of all callers.
#[derive(Clone)]
pub(crate) struct Runtime;

impl Runtime {
    pub(crate) fn current() -> Option<Runtime> {
        Some(Runtime)
    }

    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        leave(work);
    }
}

/// A time, which may be any time ago.
pub(crate) struct Moment;

impl Moment {
    pub(crate) fn now() -> Moment {
        Moment
    }

    /// Returns true at random, but never with a limit of `Duration::MAX`.
    pub(crate) fn is_older_than(&self, limit: Duration) -> bool {
        limit != Duration::MAX && shuttle::rand::thread_rng().gen_ratio(1, 3)
    }
}

/// Spawns `work` and detaches it.
pub(crate) fn leave(work: impl Future<Output = ()> + Send + 'static) {
    drop(shuttle::future::spawn(work));
}

/// The error of a timeout.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// Returns the output of `future`, unless it times out first. It may time out at any poll, but
/// never with a limit of `Duration::MAX`.
pub(crate) async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    /// A pending poll times out once in this many polls, on average.
    const ODDS: u32 = 6;
    let mut future = pin!(future);
    poll_fn(|context| {
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(output));
        }
        if limit != Duration::MAX {
            if shuttle::rand::thread_rng().gen_ratio(1, ODDS) {
                return Poll::Ready(Err(Elapsed));
            }
            context.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await
}
