//! The registry of waiters: [`Registry`].

use std::collections::{BTreeMap, HashMap};

use crate::key::RecordId;

/// The waiters for changes of records, by record and by number.
///
/// It has no lock and wakes no waiter. Its owner takes waiters out under a lock of its own, and
/// wakes or drops them outside it, because either may run the application's code.
#[derive(Debug)]
pub(crate) struct Registry<W> {
    waiting: HashMap<RecordId, BTreeMap<u64, W>>,
    next: u64,
}

impl<W> Default for Registry<W> {
    fn default() -> Registry<W> {
        Registry { waiting: HashMap::new(), next: 0 }
    }
}

impl<W> Registry<W> {
    /// Registers a waiter for a record and returns its number, which no other waiter gets.
    pub(crate) fn register(&mut self, id: &RecordId, waiter: W) -> u64 {
        let number = self.next;
        self.next += 1;
        self.waiting.entry(*id).or_default().insert(number, waiter);
        number
    }

    /// Unregisters a waiter and returns it, unless it was taken before.
    pub(crate) fn remove(&mut self, id: &RecordId, number: u64) -> Option<W> {
        let waiters = self.waiting.get_mut(id)?;
        let removed = waiters.remove(&number);
        if waiters.is_empty() {
            self.waiting.remove(id);
        }
        removed
    }

    /// Takes the waiters of a record for which `is_due` returns true, in the order they came.
    #[inline]
    pub(crate) fn take(&mut self, id: &RecordId, is_due: impl Fn(u64, &W) -> bool) -> Vec<W> {
        // As nearly always: no record has waiters.
        if self.waiting.is_empty() { Vec::new() } else { self.take_due(id, is_due) }
    }

    fn take_due(&mut self, id: &RecordId, is_due: impl Fn(u64, &W) -> bool) -> Vec<W> {
        let Some(waiters) = self.waiting.get_mut(id) else { return Vec::new() };
        let due = waiters.iter().filter(|(number, waiter)| is_due(**number, waiter));
        let due: Vec<u64> = due.map(|(number, _)| *number).collect();
        let taken = due.iter().filter_map(|number| waiters.remove(number)).collect();
        if waiters.is_empty() {
            self.waiting.remove(id);
        }
        taken
    }

    #[cfg(any(feature = "sqlite", all(test, nevertwice_shuttle)))]
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(feature = "memory")]
impl<W> Registry<W> {
    /// Replaces the waiter with this number and returns the one that was there.
    pub(crate) fn replace(&mut self, id: &RecordId, number: u64, waiter: W) -> Option<W> {
        self.waiting.entry(*id).or_default().insert(number, waiter)
    }
}

#[cfg(feature = "sqlite")]
impl<W> Registry<W> {
    /// Returns the records that have waiters.
    pub(crate) fn ids(&self) -> Vec<RecordId> {
        self.waiting.keys().copied().collect()
    }

    /// Returns the number of the next waiter.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Takes all waiters.
    pub(crate) fn take_all(&mut self) -> Vec<W> {
        std::mem::take(&mut self.waiting).into_values().flat_map(BTreeMap::into_values).collect()
    }
}
