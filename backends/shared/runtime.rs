//! The runtime that callers share work on: tokio, or shuttle in the schedule tests.

#[cfg(not(all(test, nevertwice_shuttle)))]
mod tokios {
    use std::future::Future;

    use tokio::runtime::Handle;
    pub(crate) use tokio::sync::oneshot;
    pub(crate) use tokio::task::{AbortHandle, yield_now};
    pub(crate) use tokio::time::timeout;

    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        tokio::spawn(work).abort_handle()
    }

    /// Leaves `work` to the runtime. If there is none any more, drops it.
    pub(crate) fn leave(work: impl Future<Output = ()> + Send + 'static) {
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(work);
        }
    }
}

#[cfg(not(all(test, nevertwice_shuttle)))]
pub(crate) use tokios::{AbortHandle, leave, oneshot, spawn, timeout, yield_now};

#[cfg(all(test, nevertwice_shuttle))]
pub(crate) use crate::sync::runtime::{AbortHandle, leave, oneshot, spawn, timeout, yield_now};
