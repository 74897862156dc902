//! The times at which the job is due.

use std::fmt;
use std::str::FromStr;

use jiff::{Timestamp, ToSpan};

/// A full minute, as `2026-11-26T13:00Z`. This text is the operation's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Slot(Timestamp);

impl FromStr for Slot {
    type Err = String;

    fn from_str(text: &str) -> Result<Slot, String> {
        let time: Timestamp = text.parse().map_err(|_| "a slot is a time such as 2026-11-26T13:00Z")?;
        if time.as_second() % 60 != 0 || time.subsec_nanosecond() != 0 {
            return Err("a slot begins at a full minute".to_owned());
        }
        Ok(Slot(time))
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.strftime("%Y-%m-%dT%H:%MZ"))
    }
}

/// A schedule.
pub(crate) struct Slots {
    pub(crate) first: Slot,
    /// Minutes from a slot to the next.
    pub(crate) every: u32,
    /// The most slots that are due at once.
    pub(crate) limit: u16,
}

impl Slots {
    /// The latest slots that have begun at `now`, oldest first. They are all due, whether or not a
    /// process looked at their time: the store says which ones ran.
    pub(crate) fn due(&self, now: Timestamp) -> impl Iterator<Item = Slot> {
        let (step, start) = (60 * i64::from(self.every), self.first.0);
        let begun = match now.as_second() - start.as_second() {
            passed @ 0.. => passed / step + 1,
            _ => 0,
        };
        let from = (begun - i64::from(self.limit)).max(0);
        (from..begun).filter_map(move |n| start.checked_add((n * step).seconds()).ok().map(Slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(first: &str, every: u32, limit: u16, now: &str) -> Vec<String> {
        let slots = Slots { first: first.parse().unwrap(), every, limit };
        slots.due(now.parse().unwrap()).map(|slot| slot.to_string()).collect()
    }

    #[test]
    fn slots_are_due_from_their_minute_on() {
        let first = "2026-11-26T13:00Z";
        assert!(due(first, 5, 9, "2026-11-26T12:59:59.9Z").is_empty());
        assert_eq!(due(first, 5, 9, "2026-11-26T13:00:00Z"), [first]);
        assert_eq!(due(first, 5, 9, "2026-11-26T13:04:59Z"), [first]);
        assert_eq!(due(first, 5, 9, "2026-11-26T13:05:00Z"), [first, "2026-11-26T13:05Z"]);
        assert_eq!(due(first, 5, 2, "2026-11-27T00:01Z"), ["2026-11-26T23:55Z", "2026-11-27T00:00Z"]);
        // In another zone it is the same slot.
        assert_eq!(due("2026-11-26T14:00+01:00", 5, 9, "2026-11-26T13:00Z"), [first]);
    }

    #[test]
    fn the_ends_of_time_are_no_panic() {
        assert!(due("9999-12-30T00:00Z", 1, 9, "-009999-01-02T01:59:59Z").is_empty());
        assert_eq!(due("-000001-01-02T02:00Z", 43_200, 9, "9999-12-30T00:00Z").len(), 9);
    }
}
