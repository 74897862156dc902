//! Who waits for a record of a shard to change: [`Waiters`].

use std::collections::HashMap;

use crate::key::RecordId;
use crate::wake::ForeignWaker;

/// Wakers by record, and by the number of the seat.
#[derive(Default)]
pub(super) struct Waiters {
    seats: u64,
    waiting: HashMap<RecordId, HashMap<u64, ForeignWaker>>,
}

impl Waiters {
    /// Has `waker` woken when the record changes, in the seat `number` if there is one already. Returns the number of the
    /// seat, and the waker that was in it: it is dropped without the lock, as every waker.
    pub(super) fn sit(
        &mut self,
        id: &RecordId,
        number: Option<u64>,
        waker: ForeignWaker,
    ) -> (u64, Option<ForeignWaker>) {
        let number = number.unwrap_or_else(|| {
            self.seats += 1;
            self.seats
        });
        (number, self.waiting.entry(*id).or_default().insert(number, waker))
    }

    /// Gives a seat up. Returns the waker that was in it, to be dropped without the lock.
    pub(super) fn leave(&mut self, id: &RecordId, number: u64) -> Option<ForeignWaker> {
        let waiters = self.waiting.get_mut(id)?;
        let waker = waiters.remove(&number);
        if waiters.is_empty() {
            self.waiting.remove(id);
        }
        waker
    }

    /// Who waited for the record to change. None of them does any more.
    pub(super) fn call(&mut self, id: &RecordId) -> Vec<ForeignWaker> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        self.waiting.remove(id).map(|waiters| waiters.into_values().collect()).unwrap_or_default()
    }
}

#[cfg(all(test, nevertwice_shuttle))]
impl Waiters {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}
