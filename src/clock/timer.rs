//! Sleeps on the system's monotonic clock, on any executor: [`Timer`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;
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
    sleepers: Sleepers,
    /// The time at which the thread wakes up; `None`: when it is notified.
    looks_at: Option<Duration>,
    /// True if the thread is running.
    runs: bool,
}

/// The sleepers, each in a slot, and the order in which they are due. One that leaves early frees
/// its slot. Its entry in the order stays until most entries are such ones, which are then swept.
#[derive(Default)]
struct Sleepers {
    slots: Vec<Slot>,
    /// The slots without a sleeper.
    free: Vec<usize>,
    order: BinaryHeap<Reverse<(Duration, Place)>>,
    next_number: u64,
}

struct Slot {
    /// The number of its sleeper, or of the last one.
    number: u64,
    waker: Option<ForeignWaker>,
}

/// The place of one sleeper. No later one has the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    number: u64,
    slot: usize,
}

/// Entries of those who left that are not swept yet, at least, and slots that are kept unused.
const FEW: usize = 1024;

/// Returns a sleep of `time`, from now.
pub(crate) fn sleep(time: Duration) -> Sleeping {
    Sleeping { until: SystemClock.monotonic().saturating_add(time.min(LONGEST)), place: None }
}

pub(crate) struct Sleeping {
    until: Duration,
    /// The timer and the place of the sleeper there, set by the first poll and again by the first
    /// poll in a forked child.
    place: Option<(&'static Timer, Place)>,
}

impl Future for Sleeping {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let timer = Timer::current();
        let waker = ForeignWaker::of(context.waker());
        let mut state = timer.lock();
        let old = match self.place.filter(|(known, _)| std::ptr::eq(*known, timer)) {
            Some((_, place)) => match state.sleepers.waker(place) {
                Some(known) if known.will_wake(context.waker()) => Some(waker),
                Some(known) => Some(std::mem::replace(known, waker)),
                None => return Poll::Ready(()),
            },
            None => {
                self.place = Some((timer, state.sleepers.add(self.until, waker)));
                None
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

impl Sleepers {
    fn add(&mut self, until: Duration, waker: ForeignWaker) -> Place {
        let number = self.next_number;
        self.next_number += 1;
        let waker = Some(waker);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = Slot { number, waker };
                slot
            }
            None => {
                self.slots.push(Slot { number, waker });
                self.slots.len() - 1
            }
        };
        let place = Place { number, slot };
        self.order.push(Reverse((until, place)));
        place
    }

    /// Returns the waker at this place, unless it was taken.
    fn waker(&mut self, place: Place) -> Option<&mut ForeignWaker> {
        let slot = self.slots.get_mut(place.slot).filter(|slot| slot.number == place.number)?;
        slot.waker.as_mut()
    }

    /// Takes a sleeper that leaves early, if it is still there.
    fn remove(&mut self, place: Place) -> Option<ForeignWaker> {
        let waker = self.take(place)?;
        let count = self.slots.len() - self.free.len();
        if self.order.len() > 2 * count + FEW {
            let Sleepers { slots, order, .. } = self;
            order.retain(|Reverse((_, place))| {
                slots.get(place.slot).is_some_and(|slot| slot.number == place.number && slot.waker.is_some())
            });
            order.shrink_to(2 * count + FEW);
        }
        Some(waker)
    }

    /// Takes the sleepers that are due.
    fn take_due(&mut self, now: Duration) -> Vec<ForeignWaker> {
        let mut due = Vec::new();
        while let Some(&Reverse((until, place))) = self.order.peek()
            && until <= now
        {
            self.order.pop();
            due.extend(self.take(place));
        }
        due
    }

    /// Returns the time at which the first sleeper is due.
    fn first(&mut self) -> Option<Duration> {
        while let Some(&Reverse((until, place))) = self.order.peek() {
            if self.waker(place).is_some() {
                return Some(until);
            }
            self.order.pop();
        }
        None
    }

    fn take(&mut self, place: Place) -> Option<ForeignWaker> {
        let slot = self.slots.get_mut(place.slot).filter(|slot| slot.number == place.number)?;
        let waker = slot.waker.take()?;
        self.free.push(place.slot);
        if self.free.len() == self.slots.len() && self.slots.len() > FEW {
            // The last one of many leaves.
            (self.slots, self.free) = Default::default();
        }
        Some(waker)
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
        if let Some((timer, place)) = self.place
            && timer.process == Process::current()
        {
            let waker = timer.lock().sleepers.remove(place);
            drop(waker); // not under the lock, as above
        }
    }
}

impl Timer {
    fn of(process: Process) -> Timer {
        let state = State { sleepers: Sleepers::default(), looks_at: None, runs: false };
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
            let due = state.sleepers.take_due(now);
            if !due.is_empty() {
                drop(state);
                wake_all(due);
                state = self.lock();
                continue;
            }
            let first = state.sleepers.first();
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
        let ours = || {
            let (to, mut state) = (until(), Timer::current().lock());
            let all: Vec<_> = state.sleepers.order.iter().map(|&Reverse(entry)| entry).collect();
            let ours = all.into_iter().filter(|(until, _)| (from..=to).contains(until));
            ours.filter(|(_, place)| state.sleepers.waker(*place).is_some()).count()
        };
        assert_eq!(ours(), 100);
        drop(early);
        assert_eq!(ours(), 0);
    }

    #[test]
    fn sleepers_are_due_in_order_and_those_who_left_take_no_room() {
        let waker = || ForeignWaker::of(noop_waker_ref());
        let mut sleepers = Sleepers::default();
        let stays = sleepers.add(millis(7), waker());
        // One that left is not mistaken for the sleeper that has its slot now.
        let left = sleepers.add(millis(3), waker());
        assert!(sleepers.remove(left).is_some() && sleepers.remove(left).is_none());
        let next = sleepers.add(millis(5), waker());
        assert!(next.slot == left.slot && sleepers.waker(left).is_none() && sleepers.waker(next).is_some());
        assert_eq!(sleepers.first(), Some(millis(5)));
        assert_eq!((sleepers.take_due(millis(4)).len(), sleepers.take_due(millis(5)).len()), (0, 1));
        assert!(sleepers.waker(next).is_none() && sleepers.waker(stays).is_some());
        for _ in 0..100 * FEW {
            let early = sleepers.add(millis(9), waker());
            assert!(sleepers.remove(early).is_some());
        }
        assert!(sleepers.order.len() <= 2 + FEW && sleepers.slots.len() <= 2, "{}", sleepers.order.len());
        let many: Vec<_> = (0..2 * FEW).map(|_| sleepers.add(millis(8), waker())).collect();
        assert_eq!(sleepers.take_due(millis(8)).len(), 1 + 2 * FEW);
        assert!(sleepers.slots.is_empty() && many.into_iter().all(|gone| sleepers.remove(gone).is_none()));
        assert_eq!(sleepers.first(), None);
    }
}
