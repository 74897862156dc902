//! The configuration of a memory store: [`MemoryStoreBuilder`].

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

/// Configures a [`MemoryStore`]. Created by [`MemoryStore::builder`].
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

    /// Sets the maximum number of records. **Default: 1 000 000.**
    ///
    /// The limit holds to within about 1 %, and concurrent begins may all find the last free place.
    /// Expired records make room, roughly oldest first: an expired record can be removed only after
    /// those written before it whose retention is at most 1/32 longer.
    pub fn max_records(mut self, records: usize) -> MemoryStoreBuilder {
        self.limits.records = records;
        self
    }

    /// Sets the approximate maximum number of bytes that the records may occupy. **Default: 1
    /// GiB.**
    pub fn max_bytes(mut self, bytes: usize) -> MemoryStoreBuilder {
        self.limits.bytes = bytes;
        self
    }

    /// Sets the maximum number of records per scope, so that one tenant cannot fill the store.
    /// **Default: no limit.**
    ///
    /// Scopes that display alike (their first 45 bytes are equal) count as one. Counting takes a
    /// lock that all begins share.
    pub fn max_records_per_scope(mut self, records: usize) -> MemoryStoreBuilder {
        self.limits.scope = Some(records);
        self
    }

    /// Reads the time from `clock` instead of the operating system.
    pub fn clock(mut self, clock: impl Clock) -> MemoryStoreBuilder {
        self.clock = Arc::new(clock);
        self
    }

    /// Builds the store.
    pub fn build(self) -> MemoryStore {
        MemoryStore(Arc::new(Inner::new(self.limits, Timeline::new(self.clock, Stamp::ZERO))))
    }
}
