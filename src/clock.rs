//! Time as an argument: the [`Clock`] that engines and stores are given, and the [`Timeline`] by
//! which stores stamp.

mod boot;
pub(crate) mod timer;

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::record::{Stamp, micros};
use crate::sync::atomic::{AtomicI64, Ordering};
use crate::wake::{ForeignWaker, wake_all};

/// The future that [`Clock::sleep`] returns.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The source of time of an engine or a store.
///
/// The default is [`SystemClock`]; tests pass a [`ManualClock`] and never wait.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Returns the time since the Unix epoch as the machine believes it. It may jump either way.
    fn wall(&self) -> Duration;

    /// Returns the time since some fixed point. It never goes back, does not follow changes of the
    /// wall clock, and advances while the machine is suspended: a holder measures its lease by it,
    /// and another caller may be granted the key during the suspend.
    fn monotonic(&self) -> Duration;

    /// Completes once `time` has passed on the monotonic clock, on any executor.
    fn sleep(&self, time: Duration) -> Sleep;

    /// Returns the machine's present boot, from which processes that share a file derive one time.
    /// A clock that has a boot must always return one. **Provided**: `None`; each process then uses
    /// its own wall clock as it was when the file was opened.
    fn boot(&self) -> Option<Boot> {
        None
    }
}

/// One boot of a machine, and the time since then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// The identity of the boot: equal in two processes if, and only if, `elapsed` is the same
    /// clock for both. Not 0.
    pub id: u128,
    /// The time since the boot. It never goes back, does not follow changes of the wall clock, and
    /// includes suspends.
    pub elapsed: Duration,
}

/// The operating system's clocks.
///
/// On Linux, with the feature `sqlite`, `redis` or `postgres`, [`monotonic`](Clock::monotonic) and
/// [`boot`](Clock::boot) read `CLOCK_BOOTTIME`, which advances during a suspend. The kernel's boot
/// id and the time namespace of the process identify a boot. Both are read once, from `/proc`;
/// where that is not mounted there is no boot.
///
/// On other systems, and without these features, there is no boot, and `monotonic` is
/// [`Instant`](std::time::Instant), which stops during a suspend on most systems. **A machine that
/// is suspended there must not hold leases of a store that others use meanwhile**: its holders
/// believe in them longer than the store does.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // the one place that may ask
    fn wall(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn monotonic(&self) -> Duration {
        boot::elapsed()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        Box::pin(timer::sleep(time))
    }

    fn boot(&self) -> Option<Boot> {
        boot::id().map(|id| Boot { id, elapsed: boot::elapsed() })
    }
}

/// A clock that moves only when a test advances it. Clones share one time and one boot, as the
/// processes of one machine do. Two clocks that were created separately are two machines.
///
/// ```
/// use nevertwice::{Clock, ManualClock};
/// use std::time::Duration;
///
/// let clock = ManualClock::new();
/// let before = clock.monotonic();
/// clock.advance(Duration::from_secs(30));
/// assert_eq!(clock.monotonic() - before, Duration::from_secs(30));
/// ```
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<Hands>>);

#[derive(Debug)]
struct Hands {
    wall: Duration,
    monotonic: Duration,
    boot: u128,
    /// The time of that boot, on the monotonic clock.
    booted: Duration,
    sleepers: Vec<(Duration, ForeignWaker)>,
}

impl ManualClock {
    /// Creates a clock that reads 2026-01-01 00:00 UTC.
    pub fn new() -> ManualClock {
        ManualClock::starting_at(Duration::from_secs(1_767_225_600))
    }

    /// Creates a clock that reads `wall` after the Unix epoch.
    pub fn starting_at(wall: Duration) -> ManualClock {
        let (monotonic, booted) = (Duration::ZERO, Duration::ZERO);
        let hands = Hands { wall, monotonic, boot: boot::random(), booted, sleepers: Vec::new() };
        ManualClock(Arc::new(Mutex::new(hands)))
    }

    /// Advances all clocks by `time` and wakes the sleepers that are due. A suspend is no
    /// different.
    pub fn advance(&self, time: Duration) {
        let mut hands = self.hands();
        hands.wall = hands.wall.saturating_add(time);
        hands.monotonic = hands.monotonic.saturating_add(time);
        let now = hands.monotonic;
        let (due, waiting) = std::mem::take(&mut hands.sleepers).into_iter().partition(|(at, _)| *at <= now);
        hands.sleepers = waiting;
        drop(hands);
        wake_all(Vec::into_iter(due).map(|(_, waker)| waker));
    }

    /// Sets the wall clock, forward or back, as an operator or NTP would. The monotonic clock is
    /// unaffected.
    pub fn set_wall(&self, wall: Duration) {
        self.hands().wall = wall;
    }

    /// Restarts the machine: another boot begins, at time zero. The wall clock continues, and so
    /// does the monotonic one, for any process that should have survived. Drop open stores first.
    pub fn reboot(&self) {
        let mut hands = self.hands();
        hands.boot = boot::random();
        hands.booted = hands.monotonic;
    }

    /// Returns the number of pending sleeps. Tests wait for it before they advance the clock.
    pub fn sleepers(&self) -> usize {
        self.hands().sleepers.len()
    }

    /// Returns the time until the next pending sleep is over.
    #[cfg(all(feature = "testing", feature = "memory"))]
    pub(crate) fn next_sleeper(&self) -> Option<Duration> {
        let hands = self.hands();
        let next = hands.sleepers.iter().map(|(until, _)| *until).min();
        next.map(|until| until.saturating_sub(hands.monotonic))
    }

    fn hands(&self) -> MutexGuard<'_, Hands> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for ManualClock {
    fn default() -> ManualClock {
        ManualClock::new()
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Duration {
        self.hands().wall
    }

    fn monotonic(&self) -> Duration {
        self.hands().monotonic
    }

    fn sleep(&self, time: Duration) -> Sleep {
        let until = self.monotonic().saturating_add(time);
        Box::pin(ManualSleep { clock: self.clone(), until })
    }

    fn boot(&self) -> Option<Boot> {
        let hands = self.hands();
        Some(Boot { id: hands.boot, elapsed: hands.monotonic.saturating_sub(hands.booted) })
    }
}

struct ManualSleep {
    clock: ManualClock,
    until: Duration,
}

impl Future for ManualSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut hands = self.clock.hands();
        if hands.monotonic >= self.until {
            return Poll::Ready(());
        }
        let waker = context.waker();
        if !hands.sleepers.iter().any(|(at, known)| *at == self.until && known.will_wake(waker)) {
            hands.sleepers.push((self.until, ForeignWaker::of(waker)));
        }
        Poll::Pending
    }
}

/// The time of a store that keeps its own: memory and SQLite stamp their writes with it.
///
/// It starts at the wall clock (or at `floor`, if that is later) and then follows the monotonic
/// clock, so that setting the wall clock back revives no lease and setting it forward ends none.
/// [`observe`](Timeline::observe) raises it to a later stamp found in the store (another
/// process's), and it continues from there. Time never stops, even after the correction of a clock
/// that was once years ahead.
#[derive(Debug)]
pub struct Timeline {
    clock: Arc<dyn Clock>,
    /// True if it counts from the clock's boot, and not from the monotonic clock's starting point.
    by_boot: bool,
    /// The offset from the clock to the store's time, in microseconds. It only grows.
    offset: AtomicI64,
}

/// A reading of the clock that a [`Timeline`] counts by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    /// The boot that it counts from; 0 if its starting point has no meaning in other processes.
    pub(crate) boot: u128,
    /// The reading, in microseconds.
    pub(crate) elapsed: u64,
}

impl Moment {
    /// Reads `clock`, from its boot if it has one.
    #[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
    pub(crate) fn of(clock: &dyn Clock) -> Moment {
        match clock.boot() {
            Some(Boot { id, elapsed }) => Moment { boot: id, elapsed: micros_down(elapsed) },
            None => Moment { boot: 0, elapsed: micros_down(clock.monotonic()) },
        }
    }
}

impl Timeline {
    /// Creates a timeline that starts at the wall clock's time, but not before `floor`.
    pub fn new(clock: Arc<dyn Clock>, floor: Stamp) -> Timeline {
        let start = micros(clock.wall()).max(floor.0);
        let elapsed = micros_down(clock.monotonic());
        Timeline::starting(clock, Moment { boot: 0, elapsed }, Stamp(start))
    }

    /// Creates a timeline that reads `time` at `moment`. All timelines made from the same pair
    /// agree, in any process.
    pub(crate) fn starting(clock: Arc<dyn Clock>, moment: Moment, time: Stamp) -> Timeline {
        let offset = AtomicI64::new(offset(time, moment.elapsed));
        Timeline { clock, by_boot: moment.boot != 0, offset }
    }

    /// Returns the present time of the store.
    pub fn now(&self) -> Stamp {
        self.time_at(self.elapsed())
    }

    /// Takes a stamp that the store already holds into account, so that [`now`](Timeline::now) is
    /// not before it.
    pub fn observe(&self, stamp: Stamp) {
        self.align(self.elapsed(), stamp);
    }

    /// Ensures that the time at the moment `elapsed` is not before `time`, and continues from
    /// there.
    pub(crate) fn align(&self, elapsed: u64, time: Stamp) {
        self.offset.fetch_max(offset(time, elapsed), Ordering::AcqRel);
    }

    /// Returns the store's time at the moment `elapsed`.
    pub(crate) fn time_at(&self, elapsed: u64) -> Stamp {
        Stamp(elapsed.saturating_add_signed(self.offset.load(Ordering::Acquire)))
    }

    /// Reads the clock. Its boot may by now differ from the one in which the timeline was made.
    #[cfg_attr(not(feature = "sqlite"), allow(dead_code))]
    pub(crate) fn moment(&self) -> Moment {
        Moment::of(&*self.clock)
    }

    /// Returns the stamp of a write: the present time, forced greater than `last`, the greatest
    /// stamp of any earlier write to the same keys. The caller serialises calls for the same keys.
    pub fn stamp_after(&self, last: Stamp) -> Stamp {
        let stamp = self.now().max(last.next());
        self.observe(stamp);
        stamp
    }

    fn elapsed(&self) -> u64 {
        let boot = if self.by_boot { self.clock.boot() } else { None };
        micros_down(boot.map_or_else(|| self.clock.monotonic(), |boot| boot.elapsed))
    }
}

/// Returns the difference to add to `elapsed` to give `time`.
fn offset(time: Stamp, elapsed: u64) -> i64 {
    let most = i64::MAX as u64;
    time.0.min(most) as i64 - elapsed.min(most) as i64
}

/// Returns the elapsed microseconds, rounded down so as not to claim a moment that has not come
/// yet.
fn micros_down(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn timeline(clock: &ManualClock, floor: Stamp) -> Timeline {
        Timeline::new(Arc::new(clock.clone()), floor)
    }

    #[test]
    fn s13_a_wall_clock_set_back_or_forward_moves_no_running_timeline() {
        let clock = ManualClock::new();
        let line = timeline(&clock, Stamp(0));
        let start = line.now();
        clock.set_wall(Duration::ZERO);
        clock.advance(Duration::from_secs(1));
        assert_eq!(line.now().0 - start.0, 1_000_000);
        clock.set_wall(Duration::from_secs(1 << 40));
        assert_eq!(line.now().0 - start.0, 1_000_000);
    }

    #[test]
    fn s13_a_restart_with_a_clock_set_back_continues_from_the_floor_and_still_moves() {
        let clock = ManualClock::starting_at(Duration::from_secs(100));
        let line = timeline(&clock, Stamp(500_000_000));
        assert_eq!(line.now(), Stamp(500_000_000));
        clock.advance(Duration::from_secs(1));
        assert_eq!(line.now(), Stamp(501_000_000));
    }

    #[test]
    fn s5_stamps_strictly_increase_while_time_stands_still() {
        let clock = ManualClock::new();
        let line = timeline(&clock, Stamp(0));
        let mut last = line.now();
        for _ in 0..1000 {
            let stamp = line.stamp_after(last);
            assert!(stamp > last);
            last = stamp;
        }
        assert!(line.now() >= last);
    }

    #[test]
    fn a_manual_sleep_ends_when_its_time_comes_and_not_before() {
        let clock = ManualClock::new();
        let mut sleep = clock.sleep(Duration::from_secs(2));
        let mut context = Context::from_waker(Waker::noop());
        assert!(sleep.as_mut().poll(&mut context).is_pending());
        assert_eq!(clock.sleepers(), 1);
        clock.advance(Duration::from_secs(1));
        assert!(sleep.as_mut().poll(&mut context).is_pending());
        clock.advance(Duration::from_secs(1));
        assert_eq!(clock.sleepers(), 0);
        assert!(sleep.as_mut().poll(&mut context).is_ready());
    }
}
