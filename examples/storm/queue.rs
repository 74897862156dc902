//! The queue: it delivers at least once, in any order, and repeats unacknowledged deliveries.

use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::worker::{Step, Storm};

/// Delay of the first redelivery; doubles up to 64 times that.
const REDELIVERY: Duration = Duration::from_millis(5);

pub(crate) struct Delivery {
    /// The position of the line.
    pub(crate) line: usize,
    /// The point at which the worker is dropped if it gets to execute. Only once: the next worker
    /// gets through.
    pub(crate) crash: Option<Crash>,
    tries: u32,
    /// Each delivery holds the queue open, so that it ends when the last one is settled.
    queue: UnboundedSender<Delivery>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Crash {
    BeforeMark,
    BeforeEffect,
    AfterEffect,
}

impl Delivery {
    pub(crate) fn pause(&self) -> Duration {
        REDELIVERY * (1 << self.tries.min(6))
    }

    /// Redelivers after a delay, without occupying a worker.
    fn again(mut self, after: Duration) {
        self.tries += 1;
        tokio::spawn(async move {
            sleep(after).await;
            let queue = self.queue.clone();
            // If the run was given up, there is no receiver any more.
            let _ = queue.send(self);
        });
    }
}

/// Fills the queue with copies of every line, shuffled, some of which are to crash. The same seed
/// gives the same queue.
pub(crate) fn fill(lines: usize, copies: u16, crash_rate: f64, seed: u64) -> UnboundedReceiver<Delivery> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..lines).flat_map(|line| (0..copies).map(move |_| line)).collect();
    order.shuffle(&mut random);
    let (queue, deliveries) = unbounded_channel();
    for line in order {
        let crash = random.random_bool(crash_rate).then(|| match random.random_range(0..4) {
            0 => Crash::BeforeEffect,
            1 => Crash::AfterEffect,
            _ => Crash::BeforeMark,
        });
        // The receiver is alive: this function holds it.
        let _ = queue.send(Delivery { line, crash, tries: 0, queue: queue.clone() });
    }
    deliveries
}

/// Runs `workers` on the deliveries until each one is settled.
pub(crate) async fn drain(
    storm: &Arc<Storm>,
    deliveries: UnboundedReceiver<Delivery>,
    workers: u16,
) -> Result<(), String> {
    let deliveries = Arc::new(Mutex::new(deliveries));
    let mut running: JoinSet<Result<(), String>> = JoinSet::new();
    for _ in 0..workers {
        let (storm, deliveries) = (Arc::clone(storm), Arc::clone(&deliveries));
        running.spawn(async move {
            loop {
                let Some(mut delivery) = deliveries.lock().await.recv().await else { return Ok(()) };
                match storm.handle(&mut delivery).await? {
                    Step::Settled => {}
                    Step::Again(after) => delivery.again(after),
                }
            }
        });
    }
    while let Some(worker) = running.join_next().await {
        worker.map_err(|panic| format!("a worker failed: {panic}"))??;
    }
    Ok(())
}
