//! An estimate of the server's clock between two readings: [`ServerTime`].

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::record::{Stamp, micros};

/// Maximum age of a reading. A change of the server's clock is noticed within this time.
const FRESH: Duration = Duration::from_secs(1);
/// Age after which the next pipeline asks for another reading.
const RENEW: Duration = Duration::from_millis(500);
/// Maximum round trip of a reading. After a longer one its bounds are too wide to be of use.
const PRECISE: Duration = Duration::from_millis(20);
/// Assumed maximum drift between two clocks: one part in this many.
const DRIFT: u32 = 2000;

/// The clock of the server behind one connection. It is read now and then along with other
/// commands, and followed in between by the machine's monotonic clock. It gives bounds; a caller
/// takes the one that errs to the safe side.
#[derive(Debug, Default)]
pub(super) struct ServerTime(Mutex<Option<Reading>>);

/// The server's clock was at `server` at some moment between `sent` and `received`.
#[derive(Debug, Clone, Copy)]
struct Reading {
    server: Stamp,
    sent: Duration,
    received: Duration,
}

/// Bounds of the server's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) lower: Stamp,
    pub(super) upper: Stamp,
}

/// The round trip of a pipeline that may return with a reading.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoundTrip {
    sent: Duration,
    /// The bounds of the server's time at the start.
    pub(super) bounds: Option<Bounds>,
    /// True if the server should be asked for its time.
    pub(super) wants_time: bool,
}

impl ServerTime {
    /// Starts a round trip at `sent` on the monotonic clock.
    pub(super) fn begin(&self, sent: Duration) -> RoundTrip {
        let reading = self.lock().filter(|reading| reading.age(sent) <= FRESH);
        let wants_time = reading.is_none_or(|reading| reading.age(sent) > RENEW);
        RoundTrip { sent, bounds: reading.map(|r| r.at(sent)), wants_time }
    }

    /// Ends a round trip; `server` is the server's time if it was asked for. Returns the bounds of
    /// its present time.
    pub(super) fn end(
        &self,
        round_trip: &RoundTrip,
        server: Option<Stamp>,
        received: Duration,
    ) -> Option<Bounds> {
        let mut last = self.lock();
        if let Some(server) = server {
            let reading = Reading { server, sent: round_trip.sent, received };
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

impl RoundTrip {
    /// True if a reading that it returned at `received` is precise enough to be of use.
    pub(super) fn is_precise(&self, received: Duration) -> bool {
        received.saturating_sub(self.sent) <= PRECISE
    }
}

impl Reading {
    fn age(&self, at: Duration) -> Duration {
        at.saturating_sub(self.received)
    }

    fn is_precise(&self) -> bool {
        self.received.saturating_sub(self.sent) <= PRECISE
    }

    /// Returns the bounds at `at`, which is not before the reading was received.
    fn at(&self, at: Duration) -> Bounds {
        let (least, most) = (at.saturating_sub(self.received), at.saturating_sub(self.sent));
        // `micros` rounds up, which is right for the drift (taken from the lower bound, added to
        // the upper) but not for the base of the lower bound.
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
                // The server's clock is as fast or as slow as the allowed drift.
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

    /// Takes a reading by a pipeline from `sent` to `received`, in milliseconds.
    fn read(time: &ServerTime, sent: u64, received: u64) -> Option<Bounds> {
        let round_trip = time.begin(Duration::from_millis(sent));
        time.end(&round_trip, Some(Stamp(5_000_000)), Duration::from_millis(received))
    }

    fn known(time: &ServerTime, at: u64) -> (bool, bool) {
        let round_trip = time.begin(Duration::from_millis(at));
        (round_trip.bounds.is_some(), round_trip.wants_time)
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
        let round_trip = time.begin(Duration::from_millis(900));
        assert_eq!(time.end(&round_trip, None, Duration::from_millis(1011)), None);
    }

    #[test]
    fn a_reading_that_took_long_is_not_used() {
        let time = ServerTime::default();
        assert_eq!(read(&time, 0, 21), None);
        assert!(read(&time, 30, 50).is_some());
        // A slow reading does not replace a precise one either.
        assert!(read(&time, 60, 90).is_some());
        assert_eq!(known(&time, 551), (true, true));
    }
}
