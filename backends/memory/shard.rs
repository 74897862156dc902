//! A part of a memory store's records, and how they are found, expire, and are waited for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::task::Waker;

use crate::key::RecordId;
use crate::record::{Record, Stamp};

/// A part of the records, under a lock of its own.
#[derive(Default)]
pub(super) struct Shard {
    pub(super) records: HashMap<RecordId, Kept, BuildHasherDefault<DigestHasher>>,
    /// The ids by the segment of time in which their deadline lies, so that expiry never scans the records.
    segments: BTreeMap<u64, HashSet<RecordId, BuildHasherDefault<DigestHasher>>>,
    /// The greatest stamp that was given here, to removed records too.
    pub(super) last: Stamp,
    /// Who waits for a record to change, by the number of the seat.
    pub(super) waiters: HashMap<RecordId, HashMap<u64, Waker>, BuildHasherDefault<DigestHasher>>,
    pub(super) seats: u64,
    /// Whether the scopes of removed records are asked for.
    counts_scopes: bool,
}

pub(super) struct Kept {
    pub(super) record: Record,
    /// The segment that lists it: that of its deadline.
    segment: u64,
}

/// What was taken out of a shard.
#[derive(Default)]
pub(super) struct Removed {
    pub(super) records: usize,
    pub(super) bytes: usize,
    /// The scope of each.
    pub(super) scopes: Vec<Box<str>>,
}

/// The length of a segment of time: 2^24 µs, about 17 s.
const SEGMENT_BITS: u32 = 24;

impl Shard {
    pub(super) fn new(counts_scopes: bool) -> Shard {
        Shard { counts_scopes, ..Shard::default() }
    }

    pub(super) fn insert(&mut self, id: RecordId, mut record: Record) -> usize {
        record.detach();
        let segment = record.deadline().0 >> SEGMENT_BITS;
        let weight = weight(&record);
        self.segments.entry(segment).or_default().insert(id);
        self.records.insert(id, Kept { record, segment });
        weight
    }

    /// Who waited for the record to change. None of them does any more.
    pub(super) fn waiters_of(&mut self, id: &RecordId) -> Vec<Waker> {
        if self.waiters.is_empty() {
            return Vec::new();
        }
        self.waiters.remove(id).map(|waiters| waiters.into_values().collect()).unwrap_or_default()
    }

    pub(super) fn remove(&mut self, id: &RecordId) -> Removed {
        let Some(kept) = self.records.remove(id) else { return Removed::default() };
        if let Some(ids) = self.segments.get_mut(&kept.segment) {
            ids.remove(id);
            if ids.is_empty() {
                self.segments.remove(&kept.segment);
            }
        }
        let bytes = weight(&kept.record);
        let scopes = if self.counts_scopes { vec![kept.record.scope.as_str().into()] } else { Vec::new() };
        Removed { records: 1, bytes, scopes }
    }

    /// Removes up to `limit` records of the segments that lie wholly before `now`.
    pub(super) fn expire(&mut self, now: Stamp, limit: usize) -> Removed {
        let mut removed = Removed::default();
        while removed.records < limit {
            let Some(oldest) = self.segments.first_entry() else { break };
            if *oldest.key() >= now.0 >> SEGMENT_BITS {
                break;
            }
            let ids: Vec<RecordId> = oldest.get().iter().take(limit - removed.records).copied().collect();
            for id in &ids {
                let Removed { records, bytes, scopes } = self.remove(id);
                removed.records += records;
                removed.bytes += bytes;
                removed.scopes.extend(scopes);
            }
        }
        removed
    }
}

fn weight(record: &Record) -> usize {
    record.weight() + 2 * size_of::<RecordId>()
}

/// Record ids are digests already: eight of their bytes are as good a hash as any.
#[derive(Default)]
pub(super) struct DigestHasher(u64);

impl Hasher for DigestHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _length: usize) {}
}
