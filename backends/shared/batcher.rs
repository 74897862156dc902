//! Batching of concurrent calls to a server: [`Batcher`].

#[cfg(all(test, nevertwice_shuttle))]
mod schedules;
mod slot;

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use self::slot::{Sender, slot};
use super::runtime::{Moment, Runtime, timeout, yield_now};
use crate::error::StoreError;
use crate::sync::{Mutex, MutexGuard, PoisonError};

/// Pipelines in flight at once. With only one, two callers would wait for each other's round trips.
const PIPELINES: usize = 2;
/// The longest time that others leave to a pipeline to take its items: its runtime may be busy.
const GATHERING: Duration = Duration::from_millis(5);
/// The details of errors without an answer.
const LOST: &str = "it gave too few answers";
const DROPPED: &str = "the runtime that sent it has ended";
const LATE: &str = "no answer in time";
const NO_RUNTIME: &str = "it was called outside of a tokio runtime";

/// Sends a swap at once while fewer than [`PIPELINES`] pipelines are in flight. Later swaps queue,
/// only until one of these ends, and are then sent together.
///
/// Each pipeline is a task of its own, on the runtime of the caller that has waited longest: a
/// caller that is not polled for a while, or leaves, delays no other. Only a runtime that does not
/// run can: if no pipeline has started or ended for some time, those in flight no longer count.
///
/// A caller that is alone sends its swap itself where that blocks nothing, since waking a task for
/// it costs more than the swap; it does not count.
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

    /// The time without a start or an end of a pipeline after which those in flight no longer
    /// count. Less than the time of one try of an engine by default.
    fn stall_limit(&self) -> Duration {
        Duration::from_secs(2)
    }

    /// True if a delivery holds nothing that others wait for.
    fn may_send_alone(&self) -> bool {
        false
    }

    /// Sends the items at once and returns the reply to each.
    fn deliver(self: &Arc<Self>, items: Vec<Self::Item>) -> impl Future<Output = Answers<Self>> + Send;
}

/// An answer to each item of a delivery.
pub(crate) type Answers<T> = Vec<Result<<T as Transport>::Answer, StoreError>>;

struct Queue<T: Transport> {
    pending: VecDeque<Pending<T>>,
    in_flight: usize,
    /// The current generation. Pipelines of an earlier one no longer count.
    generation: u64,
    next_number: u64,
    /// The time at which a pipeline last started or ended.
    moved: Moment,
    /// True if the last pipeline had several items.
    is_busy: bool,
    /// The number of pipelines that have not taken their items yet.
    gathering: usize,
    /// True while a caller sends its item alone.
    has_lone: bool,
}

/// An item that is not sent yet.
struct Pending<T: Transport> {
    number: u64,
    item: T::Item,
    sender: Sender<Result<T::Answer, StoreError>>,
    /// The caller's.
    runtime: Runtime,
}

/// The right to send one item alone, until dropped.
struct Lone<'a, T: Transport>(&'a Batcher<T>);

/// A pipeline to be sent, with the item that has waited longest. Dropping it starts the next one.
struct PipelineTask<T: Transport> {
    transport: Arc<T>,
    generation: u64,
    first: Option<Pending<T>>,
    /// True until it has taken its items.
    is_gathering: bool,
}

impl<T: Transport> Default for Batcher<T> {
    fn default() -> Batcher<T> {
        Batcher(Mutex::new(Queue {
            pending: VecDeque::new(),
            in_flight: 0,
            generation: 0,
            next_number: 0,
            moved: Moment::now(),
            is_busy: false,
            gathering: 0,
            has_lone: false,
        }))
    }
}

impl<T: Transport> Batcher<T> {
    pub(crate) async fn send(transport: &Arc<T>, item: T::Item) -> Result<T::Answer, StoreError> {
        let batcher = transport.batcher();
        if let Some(lone) = batcher.enter_alone(transport) {
            // Boxed, so that the futures of those that wait are small to move.
            let replies = Box::pin(transport.deliver(vec![item])).await;
            drop(lone);
            return replies.into_iter().next_back().unwrap_or_else(|| Err(T::unanswered(LOST)));
        }
        let Some(runtime) = Runtime::current() else { return Err(T::unanswered(NO_RUNTIME)) };
        let (sender, mut receiver) = slot();
        let number = batcher.enter(transport, item, sender, runtime);
        let stall = transport.stall_limit();
        // For a delivery after others that stalled.
        let waits = 2 + transport.delivery_limit().as_micros() / stall.as_micros().max(1);
        for _ in 0..waits {
            match timeout(stall, &mut receiver).await {
                Ok(reply) => return reply.unwrap_or_else(|_| Err(T::unanswered(DROPPED))),
                Err(_) => batcher.take_over(transport, number),
            }
        }
        Err(T::unanswered(LATE))
    }

    /// Lets the caller send its item alone if no other one is under way.
    fn enter_alone(&self, transport: &Arc<T>) -> Option<Lone<'_, T>> {
        let mut queue = self.lock();
        let is_alone = !queue.has_lone && queue.in_flight == 0 && queue.pending.is_empty();
        queue.has_lone |= is_alone && transport.may_send_alone();
        (is_alone && queue.has_lone).then(|| Lone(self))
    }

    /// Queues the item, or starts a pipeline with it. Returns its number.
    fn enter(
        &self,
        transport: &Arc<T>,
        item: T::Item,
        sender: Sender<Result<T::Answer, StoreError>>,
        runtime: Runtime,
    ) -> u64 {
        let mut queue = self.lock();
        let number = queue.next_number;
        queue.next_number += 1;
        queue.pending.push_back(Pending { number, item, sender, runtime });
        let is_free = queue.has_room() || queue.give_up_stalled(transport.stall_limit());
        // Its own item: the runtime of this caller runs. Those before it go along.
        if is_free && let Some(first) = queue.pending.pop_back() {
            let task = queue.start(transport, first);
            drop(queue);
            task.spawn();
        }
        number
    }

    /// Starts a pipeline with the item of this number if it is still queued while nothing moves.
    fn take_over(&self, transport: &Arc<T>, number: u64) {
        let mut queue = self.lock();
        let own = queue.pending.iter().position(|pending| pending.number == number);
        if let Some(own) = own
            && queue.give_up_stalled(transport.stall_limit())
            && let Some(own) = queue.pending.remove(own)
        {
            let task = queue.start(transport, own);
            drop(queue);
            task.spawn();
        }
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
        queue.is_busy = !taken.is_empty();
        taken
    }

    /// Starts the next pipeline in place of one that ended, if anything is queued. One that did not
    /// even begin was dropped with its runtime: those behind it may be of the same runtime, and
    /// each would be dropped within the drop of the one before it. What started it goes on.
    fn pass_on(&self, task: &PipelineTask<T>) {
        let mut queue = self.lock();
        if queue.generation != task.generation {
            return;
        }
        queue.in_flight -= 1;
        queue.gathering -= usize::from(task.is_gathering);
        if task.first.is_some() {
            return;
        }
        queue.moved = Moment::now();
        drop(queue);
        self.fill(&task.transport);
    }

    /// Starts a pipeline with what is queued, if there is room for one, and others for as long as
    /// none runs: a runtime that has ended drops one at once.
    fn fill(&self, transport: &Arc<T>) {
        let mut queue = self.lock();
        while queue.has_room()
            && let Some(first) = queue.pending.pop_front()
        {
            // The swap of a caller that is gone is dropped with it.
            if !first.sender.is_closed() {
                let task = queue.start(transport, first);
                drop(queue);
                task.spawn();
                queue = self.lock();
                if queue.in_flight > 0 {
                    return;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Transport> Queue<T> {
    /// True if a pipeline can start. While calls come in numbers, one that has not taken its items
    /// yet takes all that are queued: another one would be left with too few.
    fn has_room(&self) -> bool {
        let is_filling = self.is_busy && self.gathering > 0 && !self.moved.is_older_than(GATHERING);
        self.in_flight < PIPELINES && !is_filling
    }

    fn start(&mut self, transport: &Arc<T>, first: Pending<T>) -> PipelineTask<T> {
        self.in_flight += 1;
        self.gathering += 1;
        self.moved = Moment::now();
        let (transport, generation) = (Arc::clone(transport), self.generation);
        PipelineTask { transport, generation, first: Some(first), is_gathering: true }
    }

    /// Stops counting the pipelines in flight if nothing has moved for `limit`.
    fn give_up_stalled(&mut self, limit: Duration) -> bool {
        let is_stalled = self.moved.is_older_than(limit);
        if is_stalled {
            self.generation += 1;
            (self.in_flight, self.gathering) = (0, 0);
        }
        is_stalled
    }
}

impl<T: Transport> PipelineTask<T> {
    /// Sends the pipeline, on the runtime of its first caller.
    fn spawn(self) {
        if let Some(first) = &self.first {
            let runtime = first.runtime.clone();
            runtime.spawn(self.deliver());
        }
    }

    /// Leaves what did not fit to the next pipeline.
    fn end_gathering(&mut self) {
        self.is_gathering = false;
        let batcher = self.transport.batcher();
        let mut queue = batcher.lock();
        if queue.generation == self.generation {
            queue.gathering -= 1;
            drop(queue);
            batcher.fill(&self.transport);
        }
    }

    /// Sends the first item with those queued and hands each caller its own reply.
    async fn deliver(mut self) {
        let batcher = self.transport.batcher();
        if batcher.lock().is_busy {
            // Callers that just got their reply may have more to send, which then joins this
            // pipeline.
            yield_now().await;
        }
        // If the caller left, the next pipeline starts at once.
        let first = self.first.take().filter(|first| !first.sender.is_closed());
        let Some(Pending { item, sender, .. }) = first else { return };
        let others = batcher.take_queued(self.transport.max_items(), &item);
        self.end_gathering();
        let count = others.len() + 1;
        let (mut items, mut senders) = (Vec::with_capacity(count), Vec::with_capacity(count));
        items.push(item);
        senders.push(sender);
        for Pending { item, sender, .. } in others {
            items.push(item);
            senders.push(sender);
        }
        let mut replies = self.transport.deliver(items).await.into_iter();
        for sender in senders {
            // The caller may be gone.
            sender.send(replies.next().unwrap_or_else(|| Err(T::unanswered(LOST))));
        }
    }
}

impl<T: Transport> Drop for Lone<'_, T> {
    fn drop(&mut self) {
        self.0.lock().has_lone = false;
    }
}

impl<T: Transport> Drop for PipelineTask<T> {
    fn drop(&mut self) {
        self.transport.batcher().pass_on(self);
    }
}
