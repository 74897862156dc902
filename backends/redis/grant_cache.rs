//! A cache of the grants that this store wrote: [`GrantCache`].

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::key::RecordId;
use crate::record::Stamp;

/// Entries kept at least; at most twice as many.
const ENOUGH: usize = 8192;
/// Longest record that is cached, in bytes.
const LONGEST: usize = 1024;

/// A bounded cache of grants that this store wrote, so that finishing one needs no script. A miss
/// (a grant written elsewhere or long ago) is only slower.
#[derive(Debug, Default)]
pub(super) struct GrantCache(Mutex<Generations>);

/// The cache that all connections of a store to one server share: a grant may be finished over
/// another one than it was written over.
#[derive(Debug, Default)]
pub(super) struct SharedGrants(Mutex<Option<(String, Arc<GrantCache>)>>);

/// Two generations of entries. When the younger is full, the elder is dropped.
#[derive(Debug, Default)]
struct Generations {
    younger: HashMap<RecordId, CachedGrant, Seed>,
    elder: HashMap<RecordId, CachedGrant, Seed>,
}

/// Hashes ids by one multiplication: they are digests, of which eight bytes do. The seed keeps
/// callers from choosing keys that collide.
#[derive(Debug, Clone, Copy)]
struct Seed(u64, u64);

struct SeededHasher(Seed, u64);

impl Default for Seed {
    fn default() -> Seed {
        let random = RandomState::new();
        Seed(random.hash_one(0), random.hash_one(1) | 1)
    }
}

impl BuildHasher for Seed {
    type Hasher = SeededHasher;

    fn build_hasher(&self) -> SeededHasher {
        SeededHasher(*self, 0)
    }
}

impl Hasher for SeededHasher {
    /// The last bytes count: the id, which follows its length.
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk() {
            self.1 = u64::from_le_bytes(*first);
        }
    }

    fn finish(&self) -> u64 {
        let SeededHasher(Seed(mask, factor), id) = *self;
        let product = u128::from(id ^ mask) * u128::from(factor);
        (product >> 64) as u64 ^ product as u64
    }
}

#[derive(Debug)]
pub(super) struct CachedGrant {
    pub(super) stamp: Stamp,
    /// The server keeps the record for at least this long, counted from its stamp.
    pub(super) keep: Duration,
    /// The record's bytes, for a server that compares whole values; empty if it cannot.
    pub(super) bytes: Vec<u8>,
}

impl CachedGrant {
    /// True if the replacement with this stamp may expire together with the grant: late enough, and
    /// not much too late.
    pub(super) fn lasts(&self, stamp: Stamp, keep: Duration) -> bool {
        let (end, least) = (self.stamp.after(self.keep), stamp.after(keep));
        end >= least && end.since(least) <= keep / 8
    }
}

impl GrantCache {
    pub(super) fn remember(&self, id: RecordId, grant: CachedGrant) {
        if grant.bytes.len() > LONGEST {
            return;
        }
        let mut both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if both.younger.len() == ENOUGH {
            both.elder = std::mem::take(&mut both.younger);
        }
        both.younger.insert(id, grant);
    }

    /// Removes and returns the grant if it has this stamp.
    pub(super) fn take(&self, id: &RecordId, stamp: Stamp) -> Option<CachedGrant> {
        let mut both = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = both.younger.remove(id).or_else(|| both.elder.remove(id));
        found.filter(|grant| grant.stamp == stamp)
    }
}

impl SharedGrants {
    /// Returns the cache for the server of this `run_id`. Another server, or one that is unknown,
    /// begins with an empty one.
    pub(super) fn of(&self, run_id: Option<&str>) -> Arc<GrantCache> {
        let Some(run_id) = run_id else { return Arc::default() };
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*shared {
            Some((known, cache)) if known == run_id => Arc::clone(cache),
            Some(_) | None => Arc::clone(&shared.insert((run_id.to_owned(), Arc::default())).1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s13_what_replaces_a_grant_ends_with_it_only_if_that_is_not_too_early() {
        let second = Duration::from_secs(1);
        let grant = CachedGrant { stamp: Stamp(5_000_000), keep: second * 1000, bytes: Vec::new() };
        let lasts = |later, keep| grant.lasts(grant.stamp.after(second * later), second * keep);
        assert!(lasts(0, 1000) && lasts(30, 970) && !lasts(30, 971));
        assert!(lasts(100, 800) && !lasts(99, 800), "not much too late");
        let for_ever = CachedGrant { keep: Duration::MAX, ..grant };
        assert!(for_ever.lasts(Stamp(9_000_000), Duration::MAX) && !for_ever.lasts(Stamp(9_000_000), second));
    }

    #[test]
    fn connections_to_one_server_share_its_grants_and_another_server_has_none() {
        let (shared, id) = (SharedGrants::default(), RecordId::from_bytes([7; 32]));
        let grant = |stamp| CachedGrant { stamp: Stamp(stamp), keep: Duration::MAX, bytes: Vec::new() };
        shared.of(Some("a")).remember(id, grant(1));
        assert!(shared.of(Some("a")).take(&id, Stamp(1)).is_some());
        shared.of(Some("a")).remember(id, grant(2));
        for other in [Some("b"), Some("a"), None, None] {
            assert!(shared.of(other).take(&id, Stamp(2)).is_none());
        }
    }
}
