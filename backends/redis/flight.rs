//! Refreshes in the background, one at a time: [`Flight`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::clock::{Clock, SystemClock};

/// Time for which most sentinels, or seeds of a cluster, must agree on what contradicts all that
/// was known before it counts, if others do not answer. They tell each other of a failover within
/// seconds.
pub(super) const SETTLED: Duration = Duration::from_secs(30);
/// Least time between two refreshes.
const LEAST: Duration = Duration::from_millis(100);
/// Longest time between two refreshes that are asked for, after several that failed.
const MOST: Duration = Duration::from_millis(500);

/// The refreshes of a topology: at most one at a time and ten a second, and one now and then
/// without a reason.
#[derive(Default)]
pub(super) struct Flight {
    state: Mutex<State>,
    watcher: Mutex<Watcher>,
}

/// A topology that can be refreshed.
pub(super) trait Refreshed: Send + Sync + Sized + 'static {
    fn flight(&self) -> &Flight;

    /// Longest time between two refreshes.
    fn every(&self) -> Duration;

    /// Upper bound on the time of one refresh.
    fn limit(&self) -> Duration;

    /// Looks for changes, and applies them. Returns false if no server answered.
    fn refresh(self: &Arc<Self>) -> impl Future<Output = bool> + Send;
}

/// The task that refreshes now and then.
#[derive(Default)]
struct Watcher {
    task: Option<AbortHandle>,
    /// The last time at which it ran, on the monotonic clock.
    heartbeat: Duration,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// The number of the present turn. Earlier ones no longer count.
    number: u64,
    /// The end of the last refresh, on the monotonic clock.
    last: Option<Duration>,
    /// Refreshes that failed one after the other.
    failures: u32,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    /// A refresh follows soon.
    Pausing { since: Duration },
    /// A refresh runs. `again`: it began too early for a caller, so that another one follows.
    Refreshing { since: Duration, again: bool },
}

/// The right to refresh, until dropped.
struct RefreshLead<T: Refreshed> {
    topology: Arc<T>,
    number: u64,
}

impl Flight {
    /// Starts a refresh that begins after this call, unless one is due anyway.
    pub(super) fn start<T: Refreshed>(topology: &Arc<T>) {
        let Ok(runtime) = Handle::try_current() else { return };
        Flight::watch(topology);
        Flight::begin(topology, &runtime);
    }

    fn begin<T: Refreshed>(topology: &Arc<T>, runtime: &Handle) {
        let taken = topology.flight().lock().take(SystemClock.monotonic(), topology.limit());
        if let Some((number, pause)) = taken {
            let lead = RefreshLead { topology: Arc::clone(topology), number };
            // A runtime that shuts down drops the lead at once, which frees it.
            runtime.spawn(lead.run(pause));
        }
    }

    /// Makes sure that a task of a runtime that is run refreshes now and then. Each call does: the
    /// runtime of the task may be gone, and a store that is cut off together with its servers gets
    /// no error that would tell.
    pub(super) fn watch<T: Refreshed>(topology: &Arc<T>) {
        let (now, every) = (SystemClock.monotonic(), topology.every());
        let mut watcher = topology.flight().watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if watcher.is_alive(now, every) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        watcher.heartbeat = now;
        let before =
            watcher.task.replace(runtime.spawn(keep(Arc::downgrade(topology), every)).abort_handle());
        drop(watcher);
        if let Some(before) = before {
            before.abort();
        }
    }

    /// True if the last refresh ended less than `time` ago.
    pub(super) fn was_within(&self, time: Duration) -> bool {
        self.lock().last.is_some_and(|last| SystemClock.monotonic().saturating_sub(last) < time)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refreshes again and again, for as long as the topology exists.
async fn keep<T: Refreshed>(topology: Weak<T>, every: Duration) {
    loop {
        sleep(every).await;
        let Some(topology) = topology.upgrade() else { return };
        let mut watcher = topology.flight().watcher.lock().unwrap_or_else(PoisonError::into_inner);
        watcher.heartbeat = SystemClock.monotonic();
        drop(watcher);
        Flight::begin(&topology, &Handle::current());
    }
}

impl Watcher {
    /// False if its task ended, or is on a runtime that does not run it.
    fn is_alive(&self, now: Duration, every: Duration) -> bool {
        let is_late = now.saturating_sub(self.heartbeat) > every.saturating_mul(2).saturating_add(MOST);
        self.task.as_ref().is_some_and(|task| !task.is_finished()) && !is_late
    }
}

impl State {
    /// Takes the turn, and returns its number and the time to wait before the refresh. Returns none
    /// if a refresh that begins later than now will come anyway. A turn that is held for too long,
    /// by a runtime that is not run, is lost.
    fn take(&mut self, now: Duration, limit: Duration) -> Option<(u64, Duration)> {
        let patience = limit.saturating_mul(2).saturating_add(MOST);
        let is_stuck = |since: Duration| now.saturating_sub(since) >= patience;
        match &mut self.phase {
            Phase::Pausing { since } if !is_stuck(*since) => return None,
            Phase::Refreshing { since, again } if !is_stuck(*since) => {
                *again = true;
                return None;
            }
            Phase::Idle | Phase::Pausing { .. } | Phase::Refreshing { .. } => {}
        }
        self.number += 1;
        self.phase = Phase::Pausing { since: now };
        Some((self.number, self.pause(now)))
    }

    fn pause(&self, now: Duration) -> Duration {
        let pause = LEAST.saturating_mul(1 << self.failures.min(8)).min(MOST);
        self.last.map_or(Duration::ZERO, |last| last.saturating_add(pause).saturating_sub(now))
    }

    /// Begins the refresh, if the turn still is the one of this number.
    fn begin(&mut self, number: u64, now: Duration) -> bool {
        if self.number == number {
            self.phase = Phase::Refreshing { since: now, again: false };
        }
        self.number == number
    }

    /// Ends the refresh. Returns the pause before the next one, if that was asked for meanwhile.
    fn end(&mut self, number: u64, now: Duration, is_ok: bool) -> Option<Duration> {
        if self.number != number {
            return None;
        }
        let again = matches!(self.phase, Phase::Refreshing { again: true, .. });
        self.last = Some(now);
        self.failures = if is_ok { 0 } else { self.failures.saturating_add(1) };
        self.phase = if again { Phase::Pausing { since: now } } else { Phase::Idle };
        again.then(|| self.pause(now))
    }
}

impl<T: Refreshed> RefreshLead<T> {
    async fn run(self, pause: Duration) {
        let (flight, mut pause) = (self.topology.flight(), pause);
        loop {
            sleep(pause).await;
            if !flight.lock().begin(self.number, SystemClock.monotonic()) {
                return;
            }
            let is_ok = timeout(self.topology.limit(), self.topology.refresh()).await.unwrap_or(false);
            let next = flight.lock().end(self.number, SystemClock.monotonic(), is_ok);
            let Some(next) = next else { return };
            pause = next;
        }
    }
}

impl<T: Refreshed> Drop for RefreshLead<T> {
    fn drop(&mut self) {
        let mut state = self.topology.flight().lock();
        if state.number == self.number {
            state.phase = Phase::Idle;
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let watcher = self.watcher.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = &watcher.task {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(2);

    /// A topology that counts its refreshes.
    #[derive(Default)]
    struct Counted {
        flight: Flight,
        refreshes: AtomicUsize,
    }

    impl Refreshed for Counted {
        fn flight(&self) -> &Flight {
            &self.flight
        }

        fn every(&self) -> Duration {
            at(10)
        }

        fn limit(&self) -> Duration {
            LIMIT
        }

        async fn refresh(self: &Arc<Counted>) -> bool {
            self.refreshes.fetch_add(1, Ordering::SeqCst);
            true
        }
    }

    #[test]
    fn a_watch_whose_runtime_is_gone_is_taken_over_by_the_next_call() {
        let topology = Arc::new(Counted::default());
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime().block_on(async { Flight::watch(&topology) });
        assert_eq!(topology.refreshes.load(Ordering::SeqCst), 0, "its runtime was not run again");
        runtime().block_on(async {
            for _ in 0..2_000 {
                Flight::watch(&topology);
                if topology.refreshes.load(Ordering::SeqCst) > 1 {
                    return;
                }
                sleep(at(10)).await;
            }
            panic!("it is watched no more");
        });
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_refresh_asked_for_during_another_one_follows_it() {
        let mut state = State::default();
        let (number, pause) = state.take(at(0), LIMIT).unwrap();
        assert_eq!(pause, Duration::ZERO);
        assert_eq!(state.take(at(0), LIMIT), None, "it begins later than this call");
        assert!(state.begin(number, at(1)));
        assert_eq!(state.take(at(5), LIMIT), None);
        assert_eq!(state.end(number, at(10), true), Some(LEAST), "a caller came after it began");
        assert!(state.begin(number, at(110)));
        assert_eq!(state.end(number, at(120), true), None);
        let (_, pause) = state.take(at(150), LIMIT).unwrap();
        assert_eq!(pause, at(70), "one that was just over does not count, and rests first");
    }

    #[test]
    fn a_turn_on_a_runtime_that_is_not_run_is_taken_over() {
        let mut state = State::default();
        let (stuck, _) = state.take(at(0), LIMIT).unwrap();
        assert!(state.begin(stuck, at(0)));
        assert_eq!(state.take(at(4_499), LIMIT), None);
        let (number, _) = state.take(at(4_500), LIMIT).unwrap();
        assert!(!state.begin(stuck, at(4_501)) && state.begin(number, at(4_501)));
        assert_eq!(state.end(stuck, at(4_502), true), None);
        assert!(matches!(state.phase, Phase::Refreshing { .. }), "it is the turn of the other one");
        assert!(!Watcher::default().is_alive(at(0), LIMIT));
    }

    #[test]
    fn refreshes_that_fail_are_repeated_less_often() {
        let mut state = State::default();
        let mut now = at(0);
        let pauses = [0, 200, 400, 500, 500].map(|expected| {
            let (number, pause) = state.take(now, LIMIT).unwrap();
            assert_eq!(pause, at(expected));
            assert!(state.begin(number, now));
            state.end(number, now, false);
            pause
        });
        now += pauses[4];
        let (number, _) = state.take(now, LIMIT).unwrap();
        assert!(state.begin(number, now));
        state.end(number, now, true);
        assert_eq!(state.take(now, LIMIT).unwrap().1, LEAST);
    }
}
