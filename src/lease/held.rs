//! [`Held`]: the record as a holder knows it.

use std::time::Duration;

use crate::decide::Reply;
use crate::record::Record;
use crate::wake::ForeignWaker;

/// The record as this holder last saw it, and the time on the engine's monotonic clock until which
/// the holder may rely on it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) record: Option<Box<Record>>,
    pub(super) until: Duration,
    pub(super) lost: bool,
    /// True if this holder finished or released the lease. The answer of an earlier call must not
    /// reopen it.
    pub(super) closed: bool,
    /// True if the token was taken, so that another holder may continue.
    pub(super) handed_over: bool,
    /// True if this holder asked to mark the effect, whatever the answer.
    #[cfg(feature = "http")]
    pub(super) marked: bool,
    /// True if the effect was marked, as far as this holder knows.
    pub(super) effect: bool,
    /// Wakers of the futures that wait for the loss of the lease.
    pub(super) watchers: Vec<ForeignWaker>,
}

impl Held {
    /// Returns true if the operation is in progress, as far as this holder knows.
    pub(super) fn is_working(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.lease().is_some())
    }

    /// Remembers the record that a command left in the store.
    pub(super) fn remember(&mut self, record: Option<Box<Record>>, until: Duration) {
        let working = record.as_ref().is_some_and(|record| record.lease().is_some());
        let newer = match (&self.record, &record) {
            (Some(known), Some(new)) => known.stamp <= new.stamp,
            (None, _) | (_, None) => true,
        };
        if newer && !(self.closed && working) {
            self.effect |= record.as_ref().is_some_and(|record| record.is_effect_marked());
            (self.record, self.until, self.lost, self.closed) = (record, until, false, !working);
        }
    }

    /// Forgets the record, which is no longer this holder's. A lease that this holder finished
    /// itself is not lost.
    pub(super) fn give_up(&mut self, reply: &Reply) {
        let finished = self.closed && !self.lost || matches!(reply, Reply::AlreadyFinished(_));
        (self.record, self.until, self.lost, self.closed) = (None, Duration::ZERO, !finished, true);
    }
}
