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
