//! Points at which the agent can be made to stop, so that it is killed there.

use std::sync::atomic::{AtomicU32, Ordering};

/// A count of the steps that the agent has made.
pub(crate) struct Steps {
    made: AtomicU32,
    stop_at: Option<u32>,
}

impl Steps {
    pub(crate) fn new(stop_at: Option<u32>) -> Steps {
        Steps { made: AtomicU32::new(0), stop_at }
    }

    /// Makes a step. At the chosen one the agent stops, until it is killed.
    pub(crate) fn make(&self, name: &str) {
        let step = self.made.fetch_add(1, Ordering::SeqCst) + 1;
        if self.stop_at == Some(step) {
            println!("stops at step {step}: {name}");
            loop {
                std::thread::park();
            }
        }
    }
}
