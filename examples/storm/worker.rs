//! The handling of a delivery by a worker: how a queue consumer uses the crate.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use indicatif::ProgressBar;
use nevertwice::{Begin, Engine, Error, Lease};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};

use crate::input::Line;
use crate::ledger::Ledger;
use crate::queue::{Crash, Delivery};

/// State shared by the workers.
pub(crate) struct Storm {
    pub(crate) engine: Engine,
    pub(crate) lines: Vec<Line>,
    pub(crate) ledger: Ledger,
    pub(crate) tally: Mutex<Tally>,
    pub(crate) bar: ProgressBar,
    pub(crate) began: Instant,
    /// Time for which the store may fail without any delivery settled.
    pub(crate) patience: Duration,
}

/// The workers' observations.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) replays: usize,
    pub(crate) wrong_replays: usize,
    pub(crate) in_progress: usize,
    pub(crate) mismatches: usize,
    pub(crate) unresolved: usize,
    pub(crate) failed: usize,
    pub(crate) takeovers: usize,
    pub(crate) crashes: usize,
    pub(crate) leases_lost: usize,
    pub(crate) store_errors: usize,
    /// Times from before `begin` to after `complete`, one for every delivery that executed and
    /// could report it.
    pub(crate) executions: Vec<Duration>,
    last_settled: Option<Instant>,
}

/// The result of a delivery.
pub(crate) enum Step {
    /// It is acknowledged.
    Settled,
    /// It comes again after this time at the earliest.
    Again(Duration),
}

impl Storm {
    /// Handles one delivery. An error is permanent and ends the run.
    pub(crate) async fn handle(&self, delivery: &mut Delivery) -> Result<Step, String> {
        match self.deliver(delivery).await {
            Ok(Step::Settled) => {
                self.bar.inc(1);
                self.tally().last_settled = Some(Instant::now());
                Ok(Step::Settled)
            }
            Ok(step) => Ok(step),
            Err(error) if is_lost(&error) => {
                self.tally().leases_lost += 1;
                Ok(Step::Again(delivery.pause()))
            }
            Err(error) => self.bear(&error).map(|()| Step::Again(delivery.pause())),
        }
    }

    /// Begins, and executes if granted. Only `Acquired` allows acting; everything else is an
    /// answer.
    async fn deliver(&self, delivery: &mut Delivery) -> Result<Step, Error> {
        let line = &self.lines[delivery.line];
        let began = Instant::now();
        match self.engine.begin(&line.request).await? {
            Begin::Acquired(lease) => {
                let step = self.execute(lease, line, delivery).await?;
                if let Step::Settled = step {
                    self.tally().executions.push(began.elapsed());
                }
                return Ok(step);
            }
            Begin::InProgress(busy) => {
                self.tally().in_progress += 1;
                return Ok(Step::Again(busy.retry_after().min(delivery.pause())));
            }
            Begin::Completed(done) => {
                let wrong = !self.ledger.confirms(line, done.response());
                let mut tally = self.tally();
                tally.replays += 1;
                tally.wrong_replays += usize::from(wrong);
            }
            Begin::Mismatch(_) => self.tally().mismatches += 1,
            Begin::Unresolved(_) => self.tally().unresolved += 1,
            Begin::Failed(_) => self.tally().failed += 1,
        }
        Ok(Step::Settled)
    }

    /// Marks the effect, acts, completes; or is dropped on the way, as a killed process would be.
    async fn execute(&self, lease: Lease, line: &Line, delivery: &mut Delivery) -> Result<Step, Error> {
        self.tally().takeovers += usize::from(lease.takeover());
        let crash = delivery.crash.take();
        if crash == Some(Crash::BeforeMark) {
            return Ok(self.dropped(lease, delivery));
        }
        // From here on no other worker reruns it blindly, however long this worker may stall.
        lease.mark_effect().await?;
        if crash == Some(Crash::BeforeEffect) {
            return Ok(self.dropped(lease, delivery));
        }
        yield_now().await; // A real effect takes its time, and others get in between.
        let receipt = self.ledger.append(line, &lease, crash == Some(Crash::AfterEffect));
        yield_now().await;
        if crash == Some(Crash::AfterEffect) {
            return Ok(self.dropped(lease, delivery));
        }
        // The effect has happened. If the store is unavailable, all that is left is to repeat the
        // completion.
        while let Err(error) = lease.complete(receipt.clone()).await {
            if is_lost(&error) || self.bear(&error).is_err() {
                return Err(error);
            }
            sleep(delivery.pause()).await;
        }
        Ok(Step::Settled)
    }

    /// Abandons the lease. Nothing is written: to the store it looks as if the process was killed.
    fn dropped(&self, lease: Lease, delivery: &Delivery) -> Step {
        drop(lease);
        self.tally().crashes += 1;
        Step::Again(delivery.pause())
    }

    /// Tolerates a store error, which the engine's own retries did not overcome, as long as there
    /// is progress.
    fn bear(&self, error: &Error) -> Result<(), String> {
        let mut tally = self.tally();
        tally.store_errors += 1;
        if tally.store_errors == 1 {
            self.bar.suspend(|| eprintln!("storm: the store fails, trying again: {}", with_cause(error)));
        }
        let idle = tally.last_settled.unwrap_or(self.began).elapsed();
        if idle < self.patience {
            return Ok(());
        }
        Err(format!("given up: nothing was settled for {} s: {}", idle.as_secs(), with_cause(error)))
    }

    pub(crate) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().expect("no worker panics while it counts")
    }
}

/// True if another worker holds or has finished the key: this worker can no longer record an
/// outcome.
fn is_lost(error: &Error) -> bool {
    matches!(error, Error::LeaseLost { .. } | Error::AlreadyFinished { .. })
}

fn with_cause(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
