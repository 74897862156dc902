//! The offsets that may be committed after a batch.

use std::collections::BTreeMap;

/// By partition, the offset of the next message that has no outcome yet.
///
/// A committed offset says that *everything* before it is done, so one message without an outcome
/// holds back those behind it, though they have theirs. They are delivered again with it, and the
/// engine knows them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress(BTreeMap<i32, Position>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    /// Everything before it has an outcome.
    pub(crate) next: i64,
    /// True if the message at `next` was delivered and has no outcome: it must be read again.
    pub(crate) held: bool,
}

impl Progress {
    /// The progress of a batch, of which each message is a partition, an offset, and whether it has
    /// an outcome. In a partition, messages are in the order of their offsets.
    pub(crate) fn of(messages: impl IntoIterator<Item = (i32, i64, bool)>) -> Progress {
        let mut progress = Progress::default();
        for (partition, offset, settled) in messages {
            let at = progress.0.entry(partition).or_insert(Position { next: offset, held: false });
            if !at.held {
                // Not `next + 1`: compacted topics and transactions have gaps.
                *at = Position { next: if settled { offset + 1 } else { offset }, held: !settled };
            }
        }
        progress
    }

    pub(crate) fn positions(&self) -> impl Iterator<Item = (i32, Position)> {
        self.0.iter().map(|(partition, at)| (*partition, *at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(messages: &[(i32, i64, bool)]) -> Vec<(i32, i64, bool)> {
        let progress = Progress::of(messages.iter().copied());
        progress.positions().map(|(partition, at)| (partition, at.next, at.held)).collect()
    }

    #[test]
    fn no_offset_passes_a_message_without_an_outcome() {
        assert!(of(&[]).is_empty());
        assert_eq!(of(&[(0, 5, true), (0, 6, true)]), [(0, 7, false)]);
        assert_eq!(of(&[(0, 5, true), (0, 6, false), (0, 7, true)]), [(0, 6, true)]);
        assert_eq!(of(&[(0, 5, false), (0, 6, false)]), [(0, 5, true)]);
        // One partition does not hold back another, and gaps are no messages.
        assert_eq!(of(&[(0, 5, false), (1, 2, true), (1, 9, true)]), [(0, 5, true), (1, 10, false)]);
    }
}
