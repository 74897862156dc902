//! A count of the requests under way.

use std::sync::Arc;

use tokio::sync::watch;

/// A bounded count of the requests under way.
#[derive(Debug, Clone)]
pub(super) struct InFlight(Arc<watch::Sender<usize>>);

impl Default for InFlight {
    fn default() -> InFlight {
        InFlight(Arc::new(watch::Sender::new(0)))
    }
}

impl InFlight {
    /// Counts one more, unless there are `limit` already.
    pub(super) fn enter(&self, limit: usize) -> Option<Entered> {
        let admitted = self.0.send_if_modified(|count| {
            let admits = *count < limit;
            *count += usize::from(admits);
            admits
        });
        admitted.then(|| Entered(self.0.clone()))
    }

    /// Completes as soon as there is none.
    pub(super) async fn idle(&self) {
        // It fails only without a sender, and there is one as long as `self` lives.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }

    pub(super) fn count(&self) -> usize {
        *self.0.borrow()
    }
}

/// One of the count, until it is dropped.
#[derive(Debug)]
pub(super) struct Entered(Arc<watch::Sender<usize>>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
