//! Feature `testing`: tools that test a backend, and tools that test an application.
//!
//! * [`conformance!`](crate::conformance) runs one named test per check against any [`Store`], your
//!   own included.
//! * [`FaultyStore`] makes the n-th call of a store fail, to show what your service does then.
//! * [`audit`] runs a handler under every fault, drops it at every await, delivers twice, resumes
//!   it late, and says what to change (with the feature `memory`).
//! * [`ManualClock`] lets a lease expire without waiting.
//! * [`Model`](model::Model) is the state machine written down a second time, and [`history`]
//!   compares a store with it.

#[cfg(feature = "memory")]
mod audit;
pub mod checks;
mod conformance;
mod faulty;
pub mod history;
pub mod model;

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

#[cfg(feature = "memory")]
pub use audit::{Audit, Auditor, End, Finding, Row, audit};
pub use faulty::{Fault, FaultyStore};
pub use pollster::block_on;

pub use crate::clock::ManualClock;
use crate::key::RecordId;
use crate::store::Store;

/// Yields this many times to the other tasks of any executor.
pub async fn rest(times: u64) {
    let mut left = times;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Returns once more than `time` has passed on the store's own clock. For stores that keep real
/// time: it polls them, so `time` should be microseconds.
///
/// # Panics
/// If the store cannot be used.
#[allow(clippy::panic)] // a check fails by panicking
pub async fn until_over(store: &dyn Store, id: &RecordId, time: Duration) {
    let mut start = None;
    loop {
        match store.load(id).await {
            Ok(snapshot) if snapshot.now > start.get_or_insert(snapshot.now).after(time) => return,
            Ok(_) => {}
            Err(error) if error.is_transient() => {}
            Err(error) => panic!("{error}"),
        }
    }
}
