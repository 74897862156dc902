//! The callers waiting for a record of a shard to change: [`Waiters`].

use std::collections::HashMap;

use crate::key::RecordId;
use crate::wake::ForeignWaker;

/// Wakers by record and by registration number.
#[derive(Default)]
pub(super) struct Waiters {
    seats: u64,
    waiting: HashMap<RecordId, HashMap<u64, ForeignWaker>>,
}

impl Waiters {
    /// Registers `waker` to be woken when the record changes, replacing the one registered under
    /// `number` if given. Returns the registration number and the replaced waker, which, like every
    /// waker, must be dropped outside the lock.
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

    /// Unregisters a waiter. Returns its waker, to be dropped outside the lock.
    pub(super) fn leave(&mut self, id: &RecordId, number: u64) -> Option<ForeignWaker> {
        let waiters = self.waiting.get_mut(id)?;
        let waker = waiters.remove(&number);
        if waiters.is_empty() {
            self.waiting.remove(id);
        }
        waker
    }

    /// Removes and returns all waiters of a record that changed.
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
