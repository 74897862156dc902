//! What the server's clock shows, as far as it can be known without asking: [`ServerTime`].

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::record::{Stamp, micros};

/// For how long a reading counts. A clock that is set meanwhile is noticed no later.
const FRESH: Duration = Duration::from_secs(1);
/// After how long the next trip asks for another.
const RENEW: Duration = Duration::from_millis(500);
/// A reading that took longer to get is not used: it says too little.
const PRECISE: Duration = Duration::from_millis(20);
/// By how much two clocks drift apart at most: one part in this many.
const DRIFT: u32 = 2000;

/// The clock of the server behind one connection, read now and then along with other commands, and followed in between by the
/// machine's monotonic clock. It gives bounds, and whoever uses them takes the one that errs to the safe side.
#[derive(Debug, Default)]
pub(super) struct ServerTime(Mutex<Option<Reading>>);

/// The server showed `server` at some moment between `sent` and `received`.
#[derive(Debug, Clone, Copy)]
struct Reading {
    server: Stamp,
    sent: Duration,
    received: Duration,
}

/// Between what moments the server's time is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) lower: Stamp,
    pub(super) upper: Stamp,
}

/// A trip that may bring a reading home.
#[derive(Debug, Clone, Copy)]
pub(super) struct Departure {
    sent: Duration,
    /// What is known of the server's time before the trip.
    pub(super) bounds: Option<Bounds>,
    /// Whether the server should be asked for its time on the way.
    pub(super) wants_time: bool,
}

impl ServerTime {
    /// A trip starts `sent`, on the monotonic clock.
    pub(super) fn depart(&self, sent: Duration) -> Departure {
        let reading = self.lock().filter(|reading| reading.age(sent) <= FRESH);
        let wants_time = reading.is_none_or(|reading| reading.age(sent) > RENEW);
        Departure { sent, bounds: reading.map(|r| r.at(sent)), wants_time }
    }

    /// The trip is over; `server` is what the server said, if it was asked. Gives the bounds of its present time.
    pub(super) fn arrive(
        &self,
        departure: &Departure,
        server: Option<Stamp>,
        received: Duration,
    ) -> Option<Bounds> {
        let mut last = self.lock();
        if let Some(server) = server {
            let reading = Reading { server, sent: departure.sent, received };
            if reading.is_precise() {
                *last = Some(reading);
            }
        }
        last.filter(|reading| reading.age(received) <= FRESH).map(|reading| reading.at(received))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Reading>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reading {
    fn age(&self, at: Duration) -> Duration {
        at.saturating_sub(self.received)
    }

    fn is_precise(&self) -> bool {
        self.received.saturating_sub(self.sent) <= PRECISE
    }

    /// `at` is not before it was received.
    fn at(&self, at: Duration) -> Bounds {
        let (least, most) = (at.saturating_sub(self.received), at.saturating_sub(self.sent));
        // `micros` rounds up: what is taken away from the lower bound and added to the upper.
        let least = Duration::from_micros(micros(least).saturating_sub(1));
        Bounds {
            lower: Stamp(self.server.after(least).0.saturating_sub(micros(most / DRIFT))),
            upper: self.server.after(most).after(most / DRIFT).next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READING: Reading = Reading {
        server: Stamp(5_000_000),
        sent: Duration::from_millis(100),
        received: Duration::from_millis(103),
    };

    #[test]
    fn s1_the_servers_time_is_between_the_bounds_wherever_on_the_way_it_was_read() {
        for read_at in 100..=103 {
            for passed in [0, 1, 500, 1000] {
                // The server's clock runs as fast or as slowly as clocks may.
                for drift in [-1, 0, 1] {
                    let at = Duration::from_millis(103 + passed);
                    let elapsed = (at - Duration::from_millis(read_at)).as_micros() as i64;
                    let server = 5_000_000 + elapsed + drift * elapsed / i64::from(DRIFT);
                    let Bounds { lower, upper } = READING.at(at);
                    assert!(
                        lower.0 as i64 <= server && server < upper.0 as i64,
                        "{read_at} {passed} {drift}"
                    );
                    assert!(upper.since(lower) < Duration::from_millis(5));
                }
            }
        }
    }

    /// A time that was read on a trip from `sent` to `received`, in milliseconds.
    fn read(time: &ServerTime, sent: u64, received: u64) -> Option<Bounds> {
        let departure = time.depart(Duration::from_millis(sent));
        time.arrive(&departure, Some(Stamp(5_000_000)), Duration::from_millis(received))
    }

    fn known(time: &ServerTime, at: u64) -> (bool, bool) {
        let departure = time.depart(Duration::from_millis(at));
        (departure.bounds.is_some(), departure.wants_time)
    }

    #[test]
    fn s13_a_reading_is_renewed_and_not_used_for_long() {
        let time = ServerTime::default();
        assert_eq!(known(&time, 0), (false, true));
        assert!(read(&time, 0, 10).is_some());
        assert_eq!(known(&time, 10), (true, false));
        assert_eq!(known(&time, 510), (true, false));
        assert_eq!(known(&time, 511), (true, true));
        assert_eq!(known(&time, 1010), (true, true));
        assert_eq!(known(&time, 1011), (false, true));
        let departure = time.depart(Duration::from_millis(900));
        assert_eq!(time.arrive(&departure, None, Duration::from_millis(1011)), None);
    }

    #[test]
    fn a_reading_that_took_long_is_not_used() {
        let time = ServerTime::default();
        assert_eq!(read(&time, 0, 21), None);
        assert!(read(&time, 30, 50).is_some());
        // Nor does it spoil one that took less.
        assert!(read(&time, 60, 90).is_some());
        assert_eq!(known(&time, 551), (true, true));
    }
}
