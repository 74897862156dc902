//! How a memory store is set up: [`MemoryStoreBuilder`].

use std::sync::Arc;

use super::{Inner, MemoryStore};
use crate::clock::{Clock, SystemClock, Timeline};
use crate::record::Stamp;

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) records: usize,
    pub(super) bytes: usize,
    pub(super) scope: Option<usize>,
}

/// Sets up a [`MemoryStore`]; made by [`MemoryStore::builder`].
#[derive(Debug)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct MemoryStoreBuilder {
    limits: Limits,
    clock: Arc<dyn Clock>,
}

impl MemoryStoreBuilder {
    pub(super) fn new() -> MemoryStoreBuilder {
        let limits = Limits { records: 1_000_000, bytes: 1 << 30, scope: None };
        MemoryStoreBuilder { limits, clock: Arc::new(SystemClock) }
    }

    /// How many records there may be, to about a hundredth: begins at the same moment may all find the last place free. What is
    /// over its time makes room, but behind what was recorded before it and is kept for a 32nd longer at most. **Default 1 000 000.**
    pub fn max_records(mut self, records: usize) -> MemoryStoreBuilder {
        self.limits.records = records;
        self
    }

    /// How many bytes the records may take, about. **Default 1 GiB.**
    pub fn max_bytes(mut self, bytes: usize) -> MemoryStoreBuilder {
        self.limits.bytes = bytes;
        self
    }

    /// How many records there may be of one scope, so that one tenant cannot use up the room of all. **Default: no limit.** Scopes
    /// that are shown alike (their first 45 bytes are the same) count as one. Counting takes a lock that all begins share.
    pub fn max_records_per_scope(mut self, records: usize) -> MemoryStoreBuilder {
        self.limits.scope = Some(records);
        self
    }

    /// Takes time from `clock` instead of the operating system.
    pub fn clock(mut self, clock: impl Clock) -> MemoryStoreBuilder {
        self.clock = Arc::new(clock);
        self
    }

    /// The store.
    pub fn build(self) -> MemoryStore {
        MemoryStore(Arc::new(Inner::new(self.limits, Timeline::new(self.clock, Stamp::ZERO))))
    }
}
