//! Batching of concurrent calls to a server: [`Batcher`].

#[cfg(all(test, nevertwice_shuttle))]
mod schedules;
mod slot;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use self::slot::{Receiver, Sender, slot};
use super::runtime::{leave, timeout, yield_now};
use crate::error::StoreError;
use crate::sync::{Mutex, MutexGuard, PoisonError};

/// Pipelines in flight at once. With only one, two callers would wait for each other's round trips.
const PIPELINES: usize = 2;
/// The detail of the error for a delivery with too few answers.
const LOST: &str = "it gave too few answers";

/// Sends a swap at once while fewer than [`PIPELINES`] pipelines are in flight. Later swaps queue,
/// only until one of these ends, and are then sent together.
///
/// There is no task. When a pipeline ends, the caller that has waited longest becomes leader and
/// sends the queue, its own swap included. A leader dropped in mid-flight leaves its pipeline to
/// the runtime and hands over the lead. A leader that is neither dropped nor polled, because its
/// runtime is blocked, loses the lead to the first caller whose wait times out.
pub(crate) struct Batcher<T: Transport>(Mutex<Queue<T>>);

/// The transport of items to the server: swaps, and the answer to each.
pub(crate) trait Transport: Send + Sync + Sized + 'static {
    type Item: Send + 'static;
    type Answer: Send + 'static;

    /// Limits of one pipeline.
    const MAX_ITEMS: usize;
    const MAX_BYTES: usize;

    /// Returns the length of an item in bytes.
    fn bytes(item: &Self::Item) -> usize;

    /// Returns the error for an item that was not answered.
    fn unanswered(detail: &'static str) -> StoreError;

    fn batcher(&self) -> &Batcher<Self>;

    /// Most items of one pipeline, where that depends on the settings.
    fn max_items(&self) -> usize {
        Self::MAX_ITEMS
    }

    /// Upper bound on the time that one delivery takes.
    fn delivery_limit(&self) -> Duration;

    /// Sends the items at once and returns the reply to each.
    fn deliver(self: &Arc<Self>, items: Vec<Self::Item>) -> impl Future<Output = Answers<Self>> + Send;
}

/// An answer to each item of a delivery.
pub(crate) type Answers<T> = Vec<Result<<T as Transport>::Answer, StoreError>>;

struct Queue<T: Transport> {
    pending: VecDeque<Pending<T>>,
    in_flight: usize,
    /// The current generation. Leaders of an earlier one no longer count.
    generation: u64,
    next_number: u64,
}

/// A queued item.
struct Pending<T: Transport> {
    number: u64,
    item: T::Item,
    sender: Sender<Reply<T>>,
}

/// A message to a queued caller.
enum Reply<T: Transport> {
    Item(Result<T::Answer, StoreError>),
    /// The caller's swap is not sent yet: it becomes leader and sends it along with the others.
    Lead(Leader<T>, T::Item),
}

/// The number of a queued item, and the receiver of its caller.
type Ticket<T> = (u64, Receiver<Reply<T>>);

/// The lead: the right to send a pipeline. It is never lost: dropping it passes it on.
struct Leader<T: Transport> {
    transport: Arc<T>,
    generation: u64,
    /// A shared pipeline that is still in flight.
    delivery: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<T: Transport> Default for Batcher<T> {
    fn default() -> Batcher<T> {
        let queue = Queue { pending: VecDeque::new(), in_flight: 0, generation: 0, next_number: 0 };
        Batcher(Mutex::new(queue))
    }
}

impl<T: Transport> Batcher<T> {
    pub(crate) async fn send(transport: &Arc<T>, item: T::Item) -> Result<T::Answer, StoreError> {
        let batcher = transport.batcher();
        let (leader, item) = match batcher.enter(transport, item) {
            Ok(lead) => lead,
            Err(ticket) => match batcher.wait(transport, ticket).await? {
                Reply::Item(reply) => return reply,
                Reply::Lead(leader, item) => (leader, item),
            },
        };
        let others = batcher.take_queued(transport.max_items(), &item);
        if others.is_empty() {
            // Boxed, so that the futures of those that wait for a leader are small to move.
            let replies = Box::pin(transport.deliver(vec![item])).await;
            return replies.into_iter().next_back().unwrap_or_else(|| Err(T::unanswered(LOST)));
        }
        Box::pin(leader.lead(item, others)).await
    }

    /// Makes the caller leader, or queues the item.
    fn enter(&self, transport: &Arc<T>, item: T::Item) -> Result<(Leader<T>, T::Item), Ticket<T>> {
        let mut queue = self.lock();
        if queue.in_flight < PIPELINES {
            queue.in_flight += 1;
            return Ok((Leader::new(transport, queue.generation), item));
        }
        let (sender, receiver) = slot();
        let number = queue.next_number;
        queue.next_number += 1;
        queue.pending.push_back(Pending { number, item, sender });
        Err((number, receiver))
    }

    /// Waits for a reply, and takes over the lead if none comes in time.
    async fn wait(&self, transport: &Arc<T>, ticket: Ticket<T>) -> Result<Reply<T>, StoreError> {
        let (limit, (number, mut receiver)) = (transport.delivery_limit(), ticket);
        // In one place, so that the future holds one timer. The second time the item is in flight.
        for _ in 0..2 {
            match timeout(limit, &mut receiver).await {
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(_)) => return Err(T::unanswered("the call that it was sent with was dropped")),
                Err(_) => {
                    if let Some((leader, item)) = self.take_over(transport, number) {
                        return Ok(Reply::Lead(leader, item));
                    }
                }
            }
        }
        Err(T::unanswered("no answer in time"))
    }

    /// Takes the queued items that are sent along with this one.
    fn take_queued(&self, max_items: usize, item: &T::Item) -> Vec<Pending<T>> {
        let mut bytes = T::bytes(item);
        let mut queue = self.lock();
        let mut taken = Vec::with_capacity(queue.pending.len().min(max_items));
        while taken.len() + 1 < max_items
            && let Some(next) = queue.pending.front()
            && bytes.saturating_add(T::bytes(&next.item)) <= T::MAX_BYTES
            && let Some(next) = queue.pending.pop_front()
        {
            // The swap of a caller that is gone is not sent.
            if !next.sender.is_closed() {
                bytes = bytes.saturating_add(T::bytes(&next.item));
                taken.push(next);
            }
        }
        taken
    }

    /// Passes the lead on to the caller that has waited longest.
    fn pass_on(&self, transport: &Arc<T>, generation: u64) {
        loop {
            let mut queue = self.lock();
            if queue.generation != generation {
                return;
            }
            let Some(Pending { item, sender, .. }) = queue.pending.pop_front() else {
                queue.in_flight -= 1;
                return;
            };
            drop(queue);
            // The swap of a caller that is gone is dropped with it.
            if !sender.is_closed() {
                // If the caller leaves just now, the lead is dropped and passed on again.
                sender.send(Reply::Lead(Leader::new(transport, generation), item));
                return;
            }
        }
    }

    /// Revokes all leads, which have been held for too long, and makes the caller of the item with
    /// this number leader. Does nothing if that item is already in flight.
    fn take_over(&self, transport: &Arc<T>, number: u64) -> Option<(Leader<T>, T::Item)> {
        let mut queue = self.lock();
        let own = queue.pending.iter().position(|pending| pending.number == number)?;
        let own = queue.pending.remove(own)?;
        queue.generation += 1;
        queue.in_flight = 1;
        Some((Leader::new(transport, queue.generation), own.item))
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Transport> Leader<T> {
    fn new(transport: &Arc<T>, generation: u64) -> Leader<T> {
        Leader { transport: Arc::clone(transport), generation, delivery: None }
    }

    /// Sends the item with the others and hands each caller its own reply.
    async fn lead(mut self, item: T::Item, others: Vec<Pending<T>>) -> Result<T::Answer, StoreError> {
        let (sender, own) = slot();
        let count = others.len() + 1;
        let (mut items, mut senders) = (Vec::with_capacity(count), Vec::with_capacity(count));
        items.push(item);
        senders.push(sender);
        for Pending { item, sender, .. } in others {
            items.push(item);
            senders.push(sender);
        }
        let transport = Arc::clone(&self.transport);
        let delivery = self.delivery.insert(Box::pin(async move {
            let replies = transport.deliver(items).await;
            for (sender, reply) in senders.into_iter().zip(replies) {
                // The caller may be gone.
                sender.send(Reply::Item(reply));
            }
        }));
        poll_fn(|context| delivery.as_mut().poll(context)).await;
        self.delivery = None;
        let reply = own.take();
        // Callers that just got their reply may have more to send, which then joins the next
        // pipeline.
        yield_now().await;
        drop(self);
        match reply {
            Some(Reply::Item(reply)) => reply,
            Some(Reply::Lead(..)) | None => Err(T::unanswered(LOST)),
        }
    }
}

impl<T: Transport> Drop for Leader<T> {
    fn drop(&mut self) {
        if let Some(delivery) = self.delivery.take() {
            leave(delivery);
        }
        self.transport.batcher().pass_on(&self.transport, self.generation);
    }
}
