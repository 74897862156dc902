//! Virtual time and the executor: a single thread that never blocks, every choice drawn from the
//! seed.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use nevertwice::Clock;
use nevertwice::clock::Sleep;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

/// Locks despite poisoning: values dropped while a failing seed unwinds still have to lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The source of every choice.
#[derive(Debug)]
pub(crate) struct Dice(Mutex<Xoshiro256PlusPlus>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(Mutex::new(Xoshiro256PlusPlus::seed_from_u64(seed)))
    }

    pub(crate) fn below(&self, end: usize) -> usize {
        lock(&self.0).random_range(0..end)
    }

    pub(crate) fn between(&self, least: u64, most: u64) -> u64 {
        lock(&self.0).random_range(least..=most)
    }

    pub(crate) fn chance(&self, of_a_million: u32) -> bool {
        lock(&self.0).random_range(0..1_000_000) < of_a_million
    }

    pub(crate) fn percent(&self, chance: u32) -> bool {
        self.chance(chance * 10_000)
    }

    pub(crate) fn one_of<T: Copy>(&self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// A time up to `most` microseconds, of any order of magnitude.
    pub(crate) fn any_time(&self, most: u64) -> u64 {
        let magnitude = self.between(0, u64::from(most.max(1).ilog2()));
        self.between(0, most.min(2 << magnitude))
    }
}

/// The time of the simulated world, in microseconds since its start.
#[derive(Debug, Default)]
pub(crate) struct Time {
    now: AtomicU64,
    timers: Mutex<Timers>,
}

#[derive(Debug, Default)]
struct Timers {
    set: u64,
    queue: BTreeMap<(u64, u64), Waker>,
}

impl Time {
    pub(crate) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    pub(crate) fn next_timer(&self) -> Option<u64> {
        lock(&self.timers).queue.first_key_value().map(|((at, _), _)| *at)
    }

    /// Advances time to `at` and wakes every timer that is due.
    pub(crate) fn pass_until(&self, at: u64) {
        self.now.fetch_max(at, Ordering::Relaxed);
        let mut timers = lock(&self.timers);
        let later = timers.queue.split_off(&(self.now() + 1, 0));
        let due = std::mem::replace(&mut timers.queue, later);
        drop(timers);
        due.into_values().for_each(Waker::wake);
    }

    pub(crate) fn timer(self: &Arc<Time>, micros: u64) -> Timer {
        Timer { time: Arc::clone(self), until: self.now().saturating_add(micros), place: None }
    }
}

/// A sleep in virtual time.
pub(crate) struct Timer {
    time: Arc<Time>,
    until: u64,
    place: Option<(u64, u64)>,
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Timer>, context: &mut Context<'_>) -> Poll<()> {
        if self.time.now() >= self.until {
            return Poll::Ready(());
        }
        let mut timers = lock(&self.time.timers);
        timers.set += 1;
        let place = self.place.unwrap_or((self.until, timers.set));
        timers.queue.insert(place, context.waker().clone());
        drop(timers);
        self.place = Some(place);
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            lock(&self.time.timers).queue.remove(&place);
        }
    }
}

/// A machine's clocks: the monotonic one started at a random moment, and the wall clock shows
/// anything.
#[derive(Debug, Clone)]
pub(crate) struct MachineClock {
    time: Arc<Time>,
    started: u64,
    wall: Arc<AtomicU64>,
}

impl MachineClock {
    pub(crate) fn new(time: &Arc<Time>, dice: &Dice) -> MachineClock {
        let clock =
            MachineClock { time: Arc::clone(time), started: dice.any_time(1 << 50), wall: Arc::default() };
        clock.set(dice);
        clock
    }

    /// Sets the wall clock to anything from 1970 to 2160, mostly to about the right time.
    pub(crate) fn set(&self, dice: &Dice) {
        const NOW: u64 = 1_767_225_600_000_000;
        let wall = match dice.below(4) {
            0 => dice.between(0, 6_000_000_000_000_000),
            1 => NOW - dice.any_time(1 << 40),
            _ => NOW + dice.any_time(1 << 40),
        };
        self.wall.store(wall, Ordering::Relaxed);
    }
}

impl Clock for MachineClock {
    fn wall(&self) -> Duration {
        Duration::from_micros(self.wall.load(Ordering::Relaxed) + self.time.now())
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.started + self.time.now())
    }

    fn sleep(&self, time: Duration) -> Sleep {
        // A timer fires late rather than early.
        Box::pin(self.time.timer(u64::try_from(time.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX)))
    }
}

/// The future of a task.
pub(crate) type Work = Pin<Box<dyn Future<Output = ()>>>;

/// The tasks, and the numbers of those that were woken.
#[derive(Default)]
pub(crate) struct Executor {
    tasks: Vec<Option<Task>>,
    /// Sorted, so that the order in which a store wakes its waiters does not matter.
    ready: Arc<Mutex<BTreeSet<usize>>>,
}

struct Task {
    process: usize,
    work: Work,
    waker: Waker,
}

struct Alarm {
    task: usize,
    ready: Arc<Mutex<BTreeSet<usize>>>,
}

impl Wake for Alarm {
    fn wake(self: Arc<Alarm>) {
        lock(&self.ready).insert(self.task);
    }
}

impl Executor {
    pub(crate) fn spawn(&mut self, process: usize, work: Work) {
        let task = self.tasks.len();
        let waker = Waker::from(Arc::new(Alarm { task, ready: Arc::clone(&self.ready) }));
        self.tasks.push(Some(Task { process, work, waker }));
        lock(&self.ready).insert(task);
    }

    /// The woken tasks of processes that run.
    pub(crate) fn ready(&self, runs: impl Fn(usize) -> bool) -> Vec<usize> {
        let runs = |task: &usize| self.tasks[*task].as_ref().is_some_and(|task| runs(task.process));
        lock(&self.ready).iter().copied().filter(runs).collect()
    }

    pub(crate) fn process_of(&self, task: usize) -> usize {
        self.tasks[task].as_ref().map_or(0, |task| task.process)
    }

    /// The unfinished tasks of a process.
    pub(crate) fn tasks_of(&self, process: usize) -> Vec<usize> {
        let of = |task: &Option<Task>| task.as_ref().is_some_and(|task| task.process == process);
        (0..self.tasks.len()).filter(|number| of(&self.tasks[*number])).collect()
    }

    /// Polls a task once and returns true if it is still pending.
    pub(crate) fn poll(&mut self, number: usize) -> bool {
        lock(&self.ready).remove(&number);
        let Some(task) = &mut self.tasks[number] else { return false };
        let pending = task.work.as_mut().poll(&mut Context::from_waker(&task.waker)).is_pending();
        if !pending {
            self.crash(number);
        }
        pending
    }

    /// Drops a task at its current await.
    pub(crate) fn crash(&mut self, number: usize) {
        drop(self.tasks[number].take());
        lock(&self.ready).remove(&number);
    }

    pub(crate) fn is_done(&self) -> bool {
        self.tasks.iter().all(Option::is_none)
    }
}
