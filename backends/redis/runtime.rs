//! The runtime that callers share work on: tokio, or shuttle in the schedule tests.

#[cfg(not(all(test, nevertwice_shuttle)))]
mod tokios {
    use std::future::Future;

    use tokio::runtime::Handle;
    pub(in super::super) use tokio::sync::oneshot;
    pub(in super::super) use tokio::task::{AbortHandle, yield_now};
    pub(in super::super) use tokio::time::timeout;

    pub(in super::super) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        tokio::spawn(work).abort_handle()
    }

    /// Leaves `work` to the runtime. If there is none any more, drops it.
    pub(in super::super) fn leave(work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(work);
        }
    }
}

#[cfg(not(all(test, nevertwice_shuttle)))]
pub(super) use tokios::{AbortHandle, leave, oneshot, spawn, timeout, yield_now};

#[cfg(all(test, nevertwice_shuttle))]
pub(super) use crate::sync::runtime::{AbortHandle, leave, oneshot, spawn, timeout, yield_now};
