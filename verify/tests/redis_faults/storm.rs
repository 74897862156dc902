//! Many workers and keys that are delivered three times each, alongside a disturbance.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use nevertwice::{Begin, Clock, Engine, Error, Lease, Owner, StoreError, SystemClock};

use crate::ledger::{Ledger, request};

/// Deliveries of each key.
const DELIVERIES: usize = 3;
const ENDLESS: usize = usize::MAX / 8;
/// Maximum distance, in keys, of a duplicate from its first delivery.
const SPREAD: usize = 24;

/// Longer than it takes to bring a key to its outcome if no acknowledged write is lost.
const PATIENCE: Duration = Duration::from_secs(40);
/// Time limit if a finish may be lost. Its key then stays in progress until the lease expires,
/// which takes longer than the test waits.
const LITTLE_PATIENCE: Duration = Duration::from_secs(1);

/// The source of the workers' deliveries.
pub(crate) struct Storm {
    name: &'static str,
    may_lose: bool,
    ledger: Arc<Ledger>,
    next: AtomicUsize,
    end: AtomicUsize,
    executions: AtomicU64,
    refused: AtomicUsize,
    lost: AtomicUsize,
}

impl Storm {
    /// Delivers so many keys.
    pub(crate) fn new(name: &'static str, keys: usize) -> Arc<Storm> {
        Storm::with(name, keys, false)
    }

    /// Delivers until ended, to a server that may lose acknowledged writes.
    pub(crate) fn on_weak_server(name: &'static str) -> Arc<Storm> {
        Storm::with(name, ENDLESS, true)
    }

    /// Delivers until ended.
    pub(crate) fn endless(name: &'static str) -> Arc<Storm> {
        Storm::with(name, ENDLESS, false)
    }

    fn with(name: &'static str, keys: usize, may_lose: bool) -> Arc<Storm> {
        Arc::new(Storm {
            name,
            may_lose,
            ledger: Arc::default(),
            next: AtomicUsize::new(0),
            end: AtomicUsize::new(keys.saturating_mul(DELIVERIES)),
            executions: AtomicU64::new(0),
            refused: AtomicUsize::new(0),
            lost: AtomicUsize::new(0),
        })
    }

    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Starts no more deliveries. Those in progress are finished.
    pub(crate) fn end(&self) {
        self.end.store(0, Ordering::SeqCst);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.next.load(Ordering::SeqCst) >= self.end.load(Ordering::SeqCst)
    }

    /// Returns the number of calls that ended in an error and were repeated.
    pub(crate) fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    /// Returns the number of lost leases: 0 as long as the server keeps its writes.
    pub(crate) fn leases_lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }

    /// Runs so many workers, spread over the engines, until all keys are delivered.
    pub(crate) async fn run(self: &Arc<Storm>, engines: &[Engine], workers: usize) {
        let tasks = (0..workers).map(|number| {
            let (storm, engine) = (Arc::clone(self), engines[number % engines.len()].clone());
            tokio::spawn(async move { storm.work(&engine).await })
        });
        join_all(tasks).await.into_iter().for_each(|worker| worker.unwrap());
    }

    async fn work(&self, engine: &Engine) {
        loop {
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            if number >= self.end.load(Ordering::SeqCst) {
                return;
            }
            // Each key is new once and is delivered again soon after, or at once.
            let (key, copy) = (number / DELIVERIES, number % DELIVERIES);
            let back = if copy == 0 { 0 } else { key.wrapping_mul(31).wrapping_add(copy * 7) % SPREAD };
            self.deliver(engine, &format!("{}/{}", self.name, key.saturating_sub(back)), number).await;
        }
    }

    /// Delivers until the outcome is known, as a queue would.
    async fn deliver(&self, engine: &Engine, key: &str, number: usize) {
        // One owner for all repetitions of this delivery, so that a repeated begin finds the grant
        // whose answer was lost.
        let request = request(key).owner(Owner::random().unwrap());
        let started = SystemClock.monotonic();
        let patience = if self.may_lose { LITTLE_PATIENCE } else { PATIENCE };
        while SystemClock.monotonic() - started < patience {
            let begin = if number.is_multiple_of(2) {
                engine.begin(&request).await
            } else {
                engine.begin_or_wait(&request, Duration::from_secs(1)).await
            };
            match begin {
                Ok(Begin::Acquired(lease)) => return self.execute(key, &lease).await,
                Ok(Begin::Completed(done)) => {
                    return self.ledger.acknowledge(key, done.response().unwrap().to_vec());
                }
                Ok(Begin::InProgress(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
                Ok(other) => panic!("{key}: {other:?}"),
                Err(error) => self.refuse(key, &error),
            }
        }
        assert!(self.may_lose, "{key}: still in progress, and no worker holds it");
    }

    async fn execute(&self, key: &str, lease: &Lease) {
        self.ledger.effect(key);
        // Each execution has a different outcome.
        let execution = self.executions.fetch_add(1, Ordering::SeqCst);
        let outcome = format!("outcome of {key} by execution {execution}");
        tokio::task::yield_now().await;
        loop {
            match lease.complete(outcome.clone()).await {
                Ok(()) => return self.ledger.acknowledge(key, outcome),
                Err(Error::LeaseLost { .. }) => {
                    self.lost.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                Err(error) => self.refuse(key, &error),
            }
        }
    }

    fn refuse(&self, key: &str, error: &Error) {
        let passing = matches!(error, Error::TimedOut { .. } | Error::Store(StoreError::Unavailable { .. }));
        assert!(passing, "{key}: {error}");
        self.refused.fetch_add(1, Ordering::SeqCst);
    }
}

/// A thread that repeats a disturbance until it is stopped.
pub(crate) struct Disturbance {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<u64>,
}

impl Disturbance {
    /// Starts the thread. `disturb` returns the number of faults that it caused.
    pub(crate) fn start(mut disturb: impl FnMut() -> u64 + Send + 'static) -> Disturbance {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !stopped.load(Ordering::SeqCst) {
                count += disturb();
            }
            count
        });
        Disturbance { stop, thread }
    }

    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap()
    }
}
