//! Refreshes in the background, one at a time: [`Flight`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::clock::{Clock, SystemClock};

/// Least time between two refreshes.
const LEAST: Duration = Duration::from_millis(100);

/// The refreshes of a topology: at most one at a time and ten a second, and one now and then
/// without a reason.
#[derive(Default)]
pub(super) struct Flight {
    is_flying: AtomicBool,
    /// The end of the last refresh, on the monotonic clock.
    last: Mutex<Option<Duration>>,
    watcher: Mutex<Option<AbortHandle>>,
}

/// A topology that can be refreshed.
pub(super) trait Refreshed: Send + Sync + Sized + 'static {
    fn flight(&self) -> &Flight;

    /// Longest time between two refreshes.
    fn every(&self) -> Duration;

    /// Upper bound on the time of one refresh.
    fn limit(&self) -> Duration;

    /// Looks for changes, and applies them.
    fn refresh(&self) -> impl Future<Output = ()> + Send;
}

/// The right to refresh, until dropped.
struct Turn<'a>(&'a Flight);

impl Flight {
    /// Starts a refresh, unless one is running or was just over.
    pub(super) fn start<T: Refreshed>(topology: &Arc<T>) {
        let flight = topology.flight();
        let Ok(runtime) = Handle::try_current() else { return };
        Flight::watch(topology, &runtime);
        if flight.is_recent() || flight.is_flying.load(Ordering::Relaxed) {
            return;
        }
        let topology = Arc::clone(topology);
        runtime.spawn(async move { Flight::fly(&*topology).await });
    }

    /// Makes sure that a task of a living runtime refreshes now and then.
    pub(super) fn watch<T: Refreshed>(topology: &Arc<T>, runtime: &Handle) {
        let mut watcher = topology.flight().watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if watcher.as_ref().is_none_or(AbortHandle::is_finished) {
            let (every, weak) = (topology.every(), Arc::downgrade(topology));
            *watcher = Some(runtime.spawn(Flight::keep(weak, every)).abort_handle());
        }
    }

    async fn keep<T: Refreshed>(topology: Weak<T>, every: Duration) {
        loop {
            sleep(every).await;
            let Some(topology) = topology.upgrade() else { return };
            Flight::fly(&*topology).await;
        }
    }

    /// Refreshes, unless that is being done. A refresh ends in time, and frees its turn however it
    /// ends.
    async fn fly<T: Refreshed>(topology: &T) {
        let flight = topology.flight();
        if flight.is_flying.swap(true, Ordering::Acquire) {
            return;
        }
        let _turn = Turn(flight);
        // A refresh that takes too long is repeated by the next call that needs it.
        let _ = timeout(topology.limit(), topology.refresh()).await;
    }

    fn is_recent(&self) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_some_and(|last| SystemClock.monotonic().saturating_sub(last) < LEAST)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(SystemClock.monotonic());
        self.0.is_flying.store(false, Ordering::Release);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let watcher = self.watcher.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = watcher {
            watcher.abort();
        }
    }
}
