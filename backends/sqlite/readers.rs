//! Connections that read beside the writer, and never wait for it.

use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use rusqlite::Connection;

use super::schema::Place;
use crate::error::StoreError;

/// A few connections, opened as they are needed. A read takes some ten microseconds, on the caller's own thread.
#[derive(Debug)]
pub(super) struct Readers {
    place: Place,
    slots: [Mutex<Option<Connection>>; READERS],
}

const READERS: usize = 4;

impl Readers {
    pub(super) fn new(place: Place, first: Connection) -> Readers {
        let mut first = Some(first);
        Readers { place, slots: std::array::from_fn(|_| Mutex::new(first.take())) }
    }

    /// What `read` makes of a connection that nobody else reads on meanwhile.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut slot = self.slot();
        let db = match slot.take() {
            Some(db) => db,
            None => self.place.open_reader()?,
        };
        read(slot.insert(db))
    }

    /// The first slot that is free; if none is, the last: reads are short.
    fn slot(&self) -> MutexGuard<'_, Option<Connection>> {
        let free = self.slots.iter().find_map(|slot| match slot.try_lock() {
            Ok(free) => Some(free),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        });
        free.unwrap_or_else(|| self.slots[READERS - 1].lock().unwrap_or_else(PoisonError::into_inner))
    }
}
