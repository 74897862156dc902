//! Who waits for a record of a shard to change: [`Waiters`].

use std::collections::HashMap;
use std::task::Waker;

use crate::key::RecordId;

/// Wakers by record, and by the number of the seat.
#[derive(Default)]
pub(super) struct Waiters {
    seats: u64,
    waiting: HashMap<RecordId, HashMap<u64, Waker>>,
}

impl Waiters {
    /// Has `waker` woken when the record changes, in the seat `number` if there is one already. Says which seat it is.
    pub(super) fn sit(&mut self, id: &RecordId, number: Option<u64>, waker: &Waker) -> u64 {
        let number = number.unwrap_or_else(|| {
            self.seats += 1;
            self.seats
        });
        self.waiting.entry(*id).or_default().insert(number, waker.clone());
        number
    }

    pub(super) fn leave(&mut self, id: &RecordId, number: u64) {
        if let Some(waiters) = self.waiting.get_mut(id) {
            waiters.remove(&number);
            if waiters.is_empty() {
                self.waiting.remove(id);
            }
        }
    }

    /// Who waited for the record to change. None of them does any more.
    pub(super) fn call(&mut self, id: &RecordId) -> Vec<Waker> {
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
