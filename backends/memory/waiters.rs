//! The callers waiting for a record to change: [`Ticket`].

use std::task::{Context, Poll};

use super::MemoryStore;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::wake::ForeignWaker;

/// A caller waiting for a record to change. Dropping it unregisters its waker.
pub(super) struct Ticket<'a> {
    store: &'a MemoryStore,
    id: &'a RecordId,
    /// The number of its waker, once registered.
    number: Option<u64>,
}

impl<'a> Ticket<'a> {
    pub(super) fn new(store: &'a MemoryStore, id: &'a RecordId) -> Ticket<'a> {
        Ticket { store, id, number: None }
    }

    /// Returns ready once the record no longer has `stamp`.
    pub(super) fn poll(&mut self, stamp: Stamp, context: &Context<'_>) -> Poll<()> {
        let waker = ForeignWaker::of(context.waker());
        let mut shard = self.store.shard(self.id).lock();
        if shard.find(self.id).is_none_or(|location| shard.stamp(location) != stamp) {
            return Poll::Ready(()); // drops the waker without the lock
        }
        let replaced = match self.number {
            Some(number) => shard.waiters.replace(self.id, number, waker),
            None => {
                self.number = Some(shard.waiters.register(self.id, waker));
                None
            }
        };
        drop(shard); // and only then the waker that was there
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let waker = self.store.shard(self.id).lock().waiters.remove(self.id, number);
        drop(waker); // without the lock
    }
}
