//! Where a shard finds a record by its id: [`Index`].

use hashbrown::HashTable;

use crate::key::RecordId;

/// Places by ids: eight bytes a record. It knows ids by 32 bits of them; whoever has the records compares the rest.
#[derive(Default)]
pub(super) struct Index(HashTable<Slot>);

#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    place: u32,
}

/// The first bits of an id: ids are digests, so these are as good a hash as any. They are in the order of the ids.
pub(super) fn hash_of(id: &RecordId) -> u32 {
    let [first, second, third, fourth, ..] = *id.as_bytes();
    u32::from_be_bytes([first, second, third, fourth])
}

/// The table takes a bucket from the low bits of a hash and a tag from the high ones.
fn spread(hash: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(hash)
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The place of a record with this hash that `is` the one looked for.
    pub(super) fn find(&self, hash: u32, is: impl Fn(u32) -> bool) -> Option<u32> {
        self.0.find(spread(hash), |slot| slot.hash == hash && is(slot.place)).map(|slot| slot.place)
    }

    pub(super) fn insert(&mut self, hash: u32, place: u32) {
        self.0.insert_unique(spread(hash), Slot { hash, place }, |slot| spread(slot.hash));
    }

    pub(super) fn replace(&mut self, hash: u32, from: u32, to: u32) {
        if let Some(slot) = self.0.find_mut(spread(hash), |slot| slot.place == from) {
            slot.place = to;
        }
    }

    pub(super) fn remove(&mut self, hash: u32, place: u32) {
        if let Ok(entry) = self.0.find_entry(spread(hash), |slot| slot.place == place) {
            entry.remove();
        }
        // A table does not shrink by itself, and storage is to be proportional to what is there.
        if self.0.len() < self.0.capacity() / 4 {
            self.0.shrink_to(self.0.len() * 2, |slot| spread(slot.hash));
        }
    }

    /// Hashes and places of the records whose hash is not before `from`, in no order.
    pub(super) fn since(&self, from: u32) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().filter(move |slot| slot.hash >= from).map(|slot| (slot.hash, slot.place))
    }
}

#[cfg(test)]
impl Index {
    pub(super) fn capacity(&self) -> usize {
        self.0.capacity()
    }
}
