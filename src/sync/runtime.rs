//! What callers need of a runtime, as shuttle has it.

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

/// Leaves `work` to the runtime.
pub(crate) fn leave(work: impl Future<Output = ()> + Send + 'static) {
    drop(shuttle::future::spawn(work));
}

/// What was waited for took too long.
#[derive(Debug)]
pub(crate) struct Elapsed;

/// What `future` gives, unless the time is over before. It may be over at any moment, but for `Duration::MAX` never.
pub(crate) async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    /// How often it is not over yet, of once that it is.
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
