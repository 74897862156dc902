//! The index of a shard, from record ids to locations: [`Index`].

use hashbrown::HashTable;

use crate::key::RecordId;

/// A map from ids to locations, eight bytes per record. It stores only 32 bits of an id; the
/// caller, which has the records, compares the rest.
#[derive(Default)]
pub(super) struct Index(HashTable<Slot>);

#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    location: u32,
}

/// Returns the first 32 bits of an id. Ids are digests, so these bits are as good a hash as any.
/// Hashes sort in the same order as ids.
pub(super) fn hash_of(id: &RecordId) -> u32 {
    let [first, second, third, fourth, ..] = *id.as_bytes();
    u32::from_be_bytes([first, second, third, fourth])
}

/// Repeats the hash in both halves: the table takes a bucket from the low bits and a tag from the
/// high ones.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the location of the record with this hash for which `is` returns true.
    pub(super) fn find(&self, hash: u32, is: impl Fn(u32) -> bool) -> Option<u32> {
        self.0.find(spread(hash), |slot| slot.hash == hash && is(slot.location)).map(|slot| slot.location)
    }

    pub(super) fn insert(&mut self, hash: u32, location: u32) {
        self.0.insert_unique(spread(hash), Slot { hash, location }, |slot| spread(slot.hash));
    }

    pub(super) fn replace(&mut self, hash: u32, from: u32, to: u32) {
        if let Some(slot) = self.0.find_mut(spread(hash), |slot| slot.location == from) {
            slot.location = to;
        }
    }

    pub(super) fn remove(&mut self, hash: u32, location: u32) {
        if let Ok(entry) = self.0.find_entry(spread(hash), |slot| slot.location == location) {
            entry.remove();
        }
        // Tables do not shrink by themselves, and memory must stay proportional to the live
        // records.
        if self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to(self.0.len() * 2, |slot| spread(slot.hash));
        }
    }

    /// Returns the hashes and locations of records whose hash is at least `from`, in no particular
    /// order.
    pub(super) fn since(&self, from: u32) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().filter(move |slot| slot.hash >= from).map(|slot| (slot.hash, slot.location))
    }
}

#[cfg(test)]
impl Index {
    pub(super) fn capacity(&self) -> usize {
        self.0.capacity()
    }
}
