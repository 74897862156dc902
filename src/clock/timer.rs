//! Sleeps on the system's monotonic clock, on any executor: [`Timer`].

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use super::{Clock, SystemClock};
use crate::process::Process;
use crate::wake::{ForeignWaker, wake_all};

/// The longest sleep. No caller waits longer, and not every duration can be represented.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// The sleepers of one process, and the thread that wakes them.
///
/// Nearly every sleep is the time limit of a call that finishes long before. Starting a sleep and
/// dropping it must therefore cost next to nothing: the thread is notified only of a sleep that
/// ends before the thread would wake up anyway.
///
/// A forked child has none of its parent's threads, and a copy of locks that may be held for ever.
/// It leaves its parent's timer alone, sleepers included, and starts another.
struct Timer {
    process: Process,
    state: Mutex<State>,
    changed: Condvar,
    /// The timer of a child that was forked while this one was the last.
    next: OnceLock<Box<Timer>>,
}

struct State {
    sleepers: BTreeMap<(Duration, u64), ForeignWaker>,
    next_number: u64,
    /// The time at which the thread wakes up; `None`: when it is notified.
    looks_at: Option<Duration>,
    /// True if the thread is running.
    runs: bool,
}

/// Returns a sleep of `time`, from now.
pub(super) fn sleep(time: Duration) -> impl Future<Output = ()> + Send {
    Sleeping { until: SystemClock.monotonic().saturating_add(time.min(LONGEST)), place: None }
}

struct Sleeping {
    until: Duration,
    /// The timer and the number of the sleeper there, set by the first poll and again by the first
    /// poll in a forked child.
    place: Option<(&'static Timer, u64)>,
}

impl Future for Sleeping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let timer = Timer::current();
        let waker = ForeignWaker::of(context.waker());
        let mut state = timer.lock();
        let old = match self.place.filter(|(known, _)| std::ptr::eq(*known, timer)) {
            Some((_, number)) => match state.sleepers.get_mut(&(self.until, number)) {
                Some(known) if known.will_wake(context.waker()) => Some(waker),
                Some(known) => Some(std::mem::replace(known, waker)),
                None => return Poll::Ready(()),
            },
            None => {
                let number = state.next_number;
                state.next_number += 1;
                self.place = Some((timer, number));
                state.sleepers.insert((self.until, number), waker)
            }
        };
        let is_earlier = state.looks_at.is_none_or(|at| self.until < at);
        if is_earlier {
            state.looks_at = Some(self.until);
        }
        let starts = !std::mem::replace(&mut state.runs, true);
        // Not under the lock: a waker may hold the last reference to a task that sleeps itself.
        drop(state);
        drop(old);
        if starts && !timer.start() {
            // Without a thread the sleeper polls the clock itself.
            return self.look(context);
        }
        if is_earlier {
            timer.changed.notify_one();
        }
        Poll::Pending
    }
}

impl Sleeping {
    fn look(&self, context: &mut Context<'_>) -> Poll<()> {
        if SystemClock.monotonic() >= self.until {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        if let Some((timer, number)) = self.place
            && timer.process == Process::current()
        {
            let waker = timer.lock().sleepers.remove(&(self.until, number));
            drop(waker); // not under the lock, as above
        }
    }
}

impl Timer {
    fn of(process: Process) -> Timer {
        let state = State { sleepers: BTreeMap::new(), next_number: 0, looks_at: None, runs: false };
        Timer { process, state: Mutex::new(state), changed: Condvar::new(), next: OnceLock::new() }
    }

    /// Returns the timer of this process: the last one, unless that belongs to an ancestor.
    fn current() -> &'static Timer {
        static FIRST: OnceLock<Timer> = OnceLock::new();
        let process = Process::current();
        let mut timer = FIRST.get_or_init(|| Timer::of(process));
        loop {
            timer = match timer.next.get() {
                Some(next) => next,
                None if timer.process == process => return timer,
                None => timer.next.get_or_init(|| Box::new(Timer::of(process))),
            };
        }
    }

    /// Starts the thread. If the system cannot start one, the next sleeper tries again.
    fn start(&'static self) -> bool {
        let started = thread::Builder::new().name("nevertwice-timer".to_owned()).spawn(|| self.run());
        if started.is_err() {
            self.lock().runs = false;
        }
        started.is_ok()
    }

    /// Wakes the sleepers that are due, for ever.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            let now = SystemClock.monotonic();
            let later = state.sleepers.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut state.sleepers, later);
            if !due.is_empty() {
                drop(state);
                wake_all(due.into_values());
                state = self.lock();
                continue;
            }
            let first = state.sleepers.first_key_value().map(|((until, _), _)| *until);
            state.looks_at = first;
            let pause = first.map_or(LONGEST, |first| first.saturating_sub(now));
            let woken = self.changed.wait_timeout(state, pause).unwrap_or_else(PoisonError::into_inner);
            state = woken.0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use futures_util::task::noop_waker_ref;

    use super::*;

    fn millis(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn a_sleep_is_not_too_short_and_a_later_one_that_is_shorter_does_not_wait_for_it() {
        let start = SystemClock.monotonic();
        let mut long = Box::pin(sleep(LONGEST * 2));
        assert!(long.as_mut().poll(&mut Context::from_waker(noop_waker_ref())).is_pending());
        for time in [0, 1, 5, 2] {
            let before = SystemClock.monotonic();
            futures_executor::block_on(sleep(millis(time)));
            assert!(SystemClock.monotonic() - before >= millis(time));
        }
        assert!(SystemClock.monotonic() - start >= millis(8));
        assert!(long.as_mut().poll(&mut Context::from_waker(noop_waker_ref())).is_pending());
    }

    #[test]
    fn many_sleeps_of_many_threads_all_end() {
        thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    let all = (0..500).map(|number| sleep(millis((number * 7 + thread) % 20)));
                    futures_executor::block_on(join_all(all));
                });
            }
        });
    }

    #[test]
    fn who_leaves_early_is_forgotten() {
        // A range that no other test uses.
        let until = || SystemClock.monotonic() + LONGEST / 2;
        let from = until();
        let mut early: Vec<_> = (0..100).map(|_| Box::pin(sleep(LONGEST / 2))).collect();
        for sleep in &mut early {
            assert!(sleep.as_mut().poll(&mut Context::from_waker(noop_waker_ref())).is_pending());
        }
        let ours = || Timer::current().lock().sleepers.range((from, 0)..(until(), u64::MAX)).count();
        assert_eq!(ours(), 100);
        drop(early);
        assert_eq!(ours(), 0);
    }
}
