//! Batches of swaps: splitting a batch into pipelines, and settling the answers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::join_all;

use super::Inner;
use super::error::malformed;
use super::item::{Item, ItemReply};
use super::records::Wanted;
use super::shard::Shard;
use super::value::snapshot;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::{Record, Stamp};
use crate::store::{Snapshot, Swap, SwapRequest};

/// Limits of one pipeline. It blocks the server for some 3 to 7 µs per swap.
const MAX_ITEMS: usize = 256;
const MAX_BYTES: usize = 1 << 20;

/// The queues of all shards.
#[derive(Default)]
struct Queues {
    all: Vec<Queue>,
    /// The queue of each id: a slot that moves meanwhile does not part swaps of one id.
    chosen: HashMap<RecordId, usize>,
}

/// The pipelines of one shard, one after the other.
struct Queue {
    shard: Arc<Shard>,
    parts: Vec<Part>,
    /// The ids in the last part.
    ids: HashSet<RecordId>,
}

/// The items of one pipeline, each with its place in the batch.
#[derive(Default)]
struct Part {
    items: Vec<Item>,
    places: Vec<usize>,
    bytes: usize,
}

impl Inner {
    /// Applies the swaps in their order. A batch without repeated ids takes one round trip per few
    /// hundred swaps and shard. Shards do not wait for each other.
    pub(super) async fn swap_batch(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        let mut replies: Vec<Option<Result<ItemReply, StoreError>>> = swaps.iter().map(|_| None).collect();
        let mut queues = Queues::default();
        for (place, swap) in swaps.iter().enumerate() {
            match queues.of(&swap.id, || self.topology.shard(&swap.id)) {
                Ok(queue) => queue.add(place, self.item(swap)),
                Err(error) => replies[place] = Some(Err(error)),
            }
        }
        let sent = join_all(queues.all.into_iter().map(|queue| self.send_queue(queue))).await;
        for (place, reply) in sent.into_iter().flatten() {
            replies[place] = Some(reply);
        }
        let missing = || Err(malformed());
        let replies = replies.into_iter().map(|reply| reply.unwrap_or_else(missing)).collect();
        self.settle(swaps, replies).await
    }

    /// Sends the parts of one shard in their order. Items that another node serves follow. After a
    /// part that the shard did not answer, the others are not sent.
    async fn send_queue(&self, queue: Queue) -> Vec<(usize, Result<ItemReply, StoreError>)> {
        let (mut replies, mut silent) = (Vec::new(), None::<StoreError>);
        for part in queue.parts {
            if let Some(error) = &silent {
                replies.extend(part.places.into_iter().map(|place| (place, Err(error.clone()))));
                continue;
            }
            let answers = queue.shard.deliver(part.items).await;
            let is_silent = answers.iter().all(|reply| matches!(reply, Err(error) if error.is_transient()));
            let followed = join_all(answers.into_iter().map(|reply| self.follow(reply))).await;
            silent = followed.first().and_then(|reply| reply.as_ref().err().cloned()).filter(|_| is_silent);
            replies.extend(part.places.into_iter().zip(followed));
        }
        replies
    }

    /// Translates replies into results. Swaps whose reply does not suffice have their records
    /// loaded, all together.
    async fn settle(
        &self,
        swaps: &[SwapRequest],
        replies: Vec<Result<ItemReply, StoreError>>,
    ) -> Vec<Result<Swap, StoreError>> {
        let settled: Vec<(&SwapRequest, Settled)> =
            swaps.iter().zip(replies).map(|(swap, reply)| (swap, settle_alone(&swap.id, reply))).collect();
        let is_open = |settled: &Settled| matches!(settled, Settled::Open(_));
        let open = settled.iter().filter(|(_, settled)| is_open(settled));
        let wanted: Vec<_> = open.map(|(swap, settled)| settled.wanted(swap)).collect();
        let found = match wanted.is_empty() {
            true => Vec::new(),
            // Boxed, since it is rare, and would make every swap's future large to move.
            false => Box::pin(self.load_many(&wanted)).await,
        };
        let mut found = found.into_iter();
        let mut load = || found.next().unwrap_or_else(|| Err(malformed()));
        let settle = |(swap, settled): (&SwapRequest, Settled)| match settled {
            Settled::Done(result) => result,
            Settled::Open(refused) => settle_loaded(swap, load(), refused),
        };
        settled.into_iter().map(settle).collect()
    }

    /// Translates one reply, as [`settle`](Inner::settle) does.
    pub(super) async fn settle_one(
        &self,
        swap: &SwapRequest,
        reply: Result<ItemReply, StoreError>,
    ) -> Result<Swap, StoreError> {
        let settled = settle_alone(&swap.id, reply);
        let wanted = settled.wanted(swap);
        match settled {
            Settled::Done(result) => result,
            // Boxed, since it is rare, as there.
            Settled::Open(refused) => settle_loaded(swap, Box::pin(self.load_one(wanted)).await, refused),
        }
    }
}

impl Queues {
    /// Returns the queue of an id: that of its earlier swaps, or that of the shard.
    fn of(
        &mut self,
        id: &RecordId,
        shard: impl FnOnce() -> Result<Arc<Shard>, StoreError>,
    ) -> Result<&mut Queue, StoreError> {
        let number = match self.chosen.get(id) {
            Some(&number) => number,
            None => {
                let shard = shard()?;
                let known = self.all.iter().position(|queue| Arc::ptr_eq(&queue.shard, &shard));
                let number = known.unwrap_or(self.all.len());
                if known.is_none() {
                    self.all.push(Queue { shard, parts: Vec::new(), ids: HashSet::new() });
                }
                self.chosen.insert(*id, number);
                number
            }
        };
        Ok(&mut self.all[number])
    }
}

impl Queue {
    fn add(&mut self, place: usize, item: Item) {
        // A swap must see the effect of an earlier one with the same id.
        let is_repeated = !self.ids.insert(item.id);
        if is_repeated || self.parts.last().is_none_or(|part| part.is_full(&item)) {
            self.ids = HashSet::from([item.id]);
            self.parts.push(Part::default());
        }
        if let Some(part) = self.parts.last_mut() {
            part.add(place, item);
        }
    }
}

impl Part {
    fn is_full(&self, item: &Item) -> bool {
        self.items.len() == MAX_ITEMS
            || self.bytes.saturating_add(item.bytes.len()) > MAX_BYTES && self.bytes > 0
    }

    fn add(&mut self, place: usize, item: Item) {
        self.bytes = self.bytes.saturating_add(item.bytes.len());
        self.items.push(item);
        self.places.push(place);
    }
}

/// The result of a swap as far as its reply alone decides it.
enum Settled {
    Done(Result<Swap, StoreError>),
    /// The record and the server's clock have to be read again. Holds the reason if the swap was
    /// refused.
    Open(Option<StoreError>),
}

impl Settled {
    /// Returns the record to read.
    fn wanted(&self, swap: &SwapRequest) -> Wanted {
        // If it was refused and there still is nothing, the answer is an error.
        let is_absence_news = swap.expected.is_some() || matches!(self, Settled::Open(None));
        Wanted { is_absence_news, ..Wanted::new(swap.id) }
    }
}

fn settle_alone(id: &RecordId, reply: Result<ItemReply, StoreError>) -> Settled {
    Settled::Done(match reply {
        Ok(ItemReply::Done { stamp, .. }) => Ok(Swap::Done(stamp)),
        Ok(ItemReply::Conflict { now, value }) => snapshot(id, now, value).map(Swap::Conflict),
        Ok(ItemReply::Seen { by, value }) => match snapshot(id, by, Some(value)) {
            Ok(found) if !found.record.as_ref().is_some_and(|record| is_unchanged(record, found.now)) => {
                return Settled::Open(None);
            }
            found => found.map(Swap::Conflict),
        },
        Ok(ItemReply::Refused(why)) => return Settled::Open(Some(why)),
        // Followed before it comes here.
        Ok(ItemReply::Elsewhere(..)) => Err(malformed()),
        Err(error) => Err(error),
    })
}

/// The result of a swap whose record was loaded, after it was refused for this reason, if it was.
fn settle_loaded(
    swap: &SwapRequest,
    loaded: Result<Snapshot, StoreError>,
    refused: Option<StoreError>,
) -> Result<Swap, StoreError> {
    match (loaded, refused) {
        // A duplicate is answered from the record even while begins are refused.
        (Ok(found), Some(why)) if found.record.as_ref().map(|record| record.stamp) == swap.expected => {
            Err(why)
        }
        (found, _) => found.map(Swap::Conflict),
    }
}

/// True if no deadline of the record has passed by `now`. An estimate of the server's clock must
/// not decide that another caller may act because a deadline has passed: only the clock itself
/// does.
fn is_unchanged(record: &Record, now: Stamp) -> bool {
    now < record.settled_until()
}

#[cfg(test)]
mod tests {
    use ::redis::Client;

    use super::super::shard::Settings;
    use super::*;

    #[test]
    fn s15_swaps_of_one_id_stay_in_one_queue_while_its_slot_moves() {
        let shard = |port: u16| {
            let client = Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
            Shard::new(&client, &Settings::for_tests(true))
        };
        let (before, after) = (shard(1), shard(2));
        let (id, other) = (RecordId::from_bytes([1; 32]), RecordId::from_bytes([2; 32]));
        let mut queues = Queues::default();
        for (id, serving) in [(id, &before), (id, &after), (other, &after), (other, &before)] {
            let first = if id == other { &after } else { &before };
            let queue = queues.of(&id, || Ok(Arc::clone(serving))).unwrap();
            assert!(Arc::ptr_eq(&queue.shard, first));
        }
        assert_eq!(queues.all.len(), 2);
    }
}
