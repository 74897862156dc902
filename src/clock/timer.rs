//! Sleeps on the system's monotonic clock, on any executor: [`Timer`].

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::{Clock, SystemClock};

/// Nobody waits longer, and not every duration can be counted to.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// Who sleeps until when, and the thread that wakes them.
///
/// Nearly every sleep is the time limit of a call that is over long before. So going to sleep and leaving early must cost
/// next to nothing: the thread is told only of a sleep that ends before it would look anyway.
struct Timer {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    sleepers: BTreeMap<(Duration, u64), Waker>,
    next_number: u64,
    /// When the thread looks again; `None`: when it is told to.
    looks_at: Option<Duration>,
}

/// A sleep of `time` from now on.
pub(super) fn sleep(time: Duration) -> impl Future<Output = ()> + Send {
    Sleeping { until: SystemClock.monotonic().saturating_add(time.min(LONGEST)), number: None }
}

struct Sleeping {
    until: Duration,
    /// Given with the first poll.
    number: Option<u64>,
}

impl Future for Sleeping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let timer = Timer::global();
        let mut state = timer.lock();
        let Some(number) = self.number else {
            let number = state.next_number;
            state.next_number += 1;
            state.sleepers.insert((self.until, number), context.waker().clone());
            if state.looks_at.is_none_or(|at| self.until < at) {
                state.looks_at = Some(self.until);
                drop(state);
                timer.changed.notify_one();
            }
            self.number = Some(number);
            return Poll::Pending;
        };
        let Some(waker) = state.sleepers.get_mut(&(self.until, number)) else { return Poll::Ready(()) };
        if !waker.will_wake(context.waker()) {
            let old = std::mem::replace(waker, context.waker().clone());
            // Not under the lock: it may be the last to hold a task that sleeps itself.
            drop(state);
            drop(old);
        }
        Poll::Pending
    }
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let waker = Timer::global().lock().sleepers.remove(&(self.until, number));
            drop(waker); // not under the lock, as above
        }
    }
}

impl Timer {
    /// The one of the process, with its thread running.
    fn global() -> &'static Timer {
        static TIMER: Timer = Timer {
            state: Mutex::new(State { sleepers: BTreeMap::new(), next_number: 0, looks_at: None }),
            changed: Condvar::new(),
        };
        static THREAD: Once = Once::new();
        THREAD.call_once(|| drop(std::thread::spawn(|| TIMER.run())));
        &TIMER
    }

    /// Wakes who has slept long enough, for ever.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            let now = SystemClock.monotonic();
            let later = state.sleepers.split_off(&(now, u64::MAX));
            let due = std::mem::replace(&mut state.sleepers, later);
            if !due.is_empty() {
                drop(state);
                due.into_values().for_each(Waker::wake);
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
        std::thread::scope(|scope| {
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
        // Of no other test.
        let until = || SystemClock.monotonic() + LONGEST / 2;
        let from = until();
        let mut early: Vec<_> = (0..100).map(|_| Box::pin(sleep(LONGEST / 2))).collect();
        for sleep in &mut early {
            assert!(sleep.as_mut().poll(&mut Context::from_waker(noop_waker_ref())).is_pending());
        }
        let ours = || Timer::global().lock().sleepers.range((from, 0)..(until(), u64::MAX)).count();
        assert_eq!(ours(), 100);
        drop(early);
        assert_eq!(ours(), 0);
    }
}
