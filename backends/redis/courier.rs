//! Batching of concurrent swaps: [`Courier`].

#[cfg(all(test, nevertwice_shuttle))]
mod schedules;

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use super::refusal::{nonsense, unavailable};
use super::runtime::{leave, oneshot, timeout, yield_now};
use super::script::{Answer, Item};
use crate::error::StoreError;
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::wake::guarded;

/// Pipelines in flight at once. With only one, two callers would wait for each other's round trips.
const TRIPS: usize = 2;
/// Limits of one pipeline. It blocks the server for some 3 µs per swap.
const TRIP_ITEMS: usize = 128;
const TRIP_BYTES: usize = 256 << 10;

/// Sends a swap at once while fewer than [`TRIPS`] pipelines are in flight. Later swaps queue, only
/// until one of these ends, and are then sent together.
///
/// There is no task. When a pipeline ends, the caller that has waited longest becomes leader and
/// sends the queue, its own swap included. A leader dropped in mid-flight leaves its pipeline to
/// the runtime and hands over the lead. A leader that is neither dropped nor polled, because its
/// runtime is blocked, loses the lead to the first caller whose wait times out.
pub(super) struct Courier<C: Carrier>(Mutex<State<C>>);

/// The transport of swaps to the server.
pub(super) trait Carrier: Send + Sync + Sized + 'static {
    fn courier(&self) -> &Courier<Self>;

    /// Upper bound on the time that one delivery takes.
    fn patience(&self) -> Duration;

    /// Sends the items at once and returns the answer to each.
    fn deliver(&self, items: &mut [Item]) -> impl Future<Output = Vec<Result<Answer, StoreError>>> + Send;
}

struct State<C: Carrier> {
    waiting: VecDeque<Parcel<C>>,
    under_way: usize,
    /// The current generation. Leaders of an earlier one no longer count.
    generation: u64,
    next_number: u64,
}

struct Parcel<C: Carrier> {
    number: u64,
    item: Item,
    sender: oneshot::Sender<Word<C>>,
}

/// A message to a queued caller.
enum Word<C: Carrier> {
    Answer(Result<Answer, StoreError>),
    /// The caller's swap is not sent yet: it becomes leader and sends it along with the others.
    Go(Turn<C>, Item),
}

/// The number of a queued item, and the receiver of its caller.
type Waiting<C> = (u64, oneshot::Receiver<Word<C>>);

/// The lead: the right to send a pipeline. It is never lost: dropping it passes it on.
struct Turn<C: Carrier> {
    carrier: Arc<C>,
    generation: u64,
    /// A shared pipeline that is still in flight.
    trip: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl<C: Carrier> Default for Courier<C> {
    fn default() -> Courier<C> {
        let state = State { waiting: VecDeque::new(), under_way: 0, generation: 0, next_number: 0 };
        Courier(Mutex::new(state))
    }
}

impl<C: Carrier> Courier<C> {
    pub(super) async fn send(carrier: &Arc<C>, item: Item) -> Result<Answer, StoreError> {
        let (courier, patience) = (carrier.courier(), carrier.patience());
        let (turn, item) = match courier.enter(carrier, item) {
            Ok(turn) => turn,
            Err((number, mut waiting)) => {
                // Another caller's task wakes this one.
                let word = guarded(async {
                    match timeout(patience, &mut waiting).await {
                        Ok(word) => Ok(word),
                        Err(_) => match courier.renew(carrier, number) {
                            Some((turn, item)) => Ok(Ok(Word::Go(turn, item))),
                            None => timeout(patience, waiting).await,
                        },
                    }
                });
                let word = word.await;
                match word {
                    Ok(Ok(Word::Answer(answer))) => return answer,
                    Ok(Ok(Word::Go(turn, item))) => (turn, item),
                    Ok(Err(_)) => return Err(unavailable("the call that it was sent with was dropped")),
                    Err(_) => return Err(unavailable("no answer in time")),
                }
            }
        };
        let others = courier.company(&item);
        if others.is_empty() {
            let mut alone = [item];
            return carrier.deliver(&mut alone).await.pop().unwrap_or_else(|| Err(nonsense()));
        }
        turn.lead(item, others).await
    }

    /// Makes the caller leader, or queues the item and returns its number.
    fn enter(&self, carrier: &Arc<C>, item: Item) -> Result<(Turn<C>, Item), Waiting<C>> {
        let mut state = self.lock();
        if state.under_way < TRIPS {
            state.under_way += 1;
            let turn = Turn { carrier: Arc::clone(carrier), generation: state.generation, trip: None };
            return Ok((turn, item));
        }
        let (sender, waiting) = oneshot::channel();
        let number = state.next_number;
        state.next_number += 1;
        state.waiting.push_back(Parcel { number, item, sender });
        Err((number, waiting))
    }

    /// Takes the queued items that are sent along with this one.
    fn company(&self, item: &Item) -> Vec<Parcel<C>> {
        let mut company = Vec::new();
        let mut bytes = item.bytes.len();
        let mut state = self.lock();
        while company.len() + 1 < TRIP_ITEMS
            && let Some(next) = state.waiting.front()
            && bytes.saturating_add(next.item.bytes.len()) <= TRIP_BYTES
            && let Some(parcel) = state.waiting.pop_front()
        {
            // The swap of a caller that is gone is not sent.
            if !parcel.sender.is_closed() {
                bytes = bytes.saturating_add(parcel.item.bytes.len());
                company.push(parcel);
            }
        }
        company
    }

    /// Passes the lead on to the caller that has waited longest.
    fn pass_on(&self, carrier: &Arc<C>, generation: u64) {
        loop {
            let mut state = self.lock();
            if state.generation != generation {
                return;
            }
            let Some(Parcel { item, sender, .. }) = state.waiting.pop_front() else {
                state.under_way -= 1;
                return;
            };
            drop(state);
            // The swap of a caller that is gone is dropped with it.
            if !sender.is_closed() {
                let turn = Turn { carrier: Arc::clone(carrier), generation, trip: None };
                // If the caller leaves just now, the lead is dropped and passed on again.
                let _ = sender.send(Word::Go(turn, item));
                return;
            }
        }
    }

    /// Revokes all leads, which have been held for too long, and makes the caller of the item with
    /// this number leader. Does nothing if that item is already in flight.
    fn renew(&self, carrier: &Arc<C>, number: u64) -> Option<(Turn<C>, Item)> {
        let mut state = self.lock();
        let own = state.waiting.iter().position(|parcel| parcel.number == number)?;
        let parcel = state.waiting.remove(own)?;
        state.generation += 1;
        state.under_way = 1;
        Some((Turn { carrier: Arc::clone(carrier), generation: state.generation, trip: None }, parcel.item))
    }

    fn lock(&self) -> MutexGuard<'_, State<C>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Carrier> Turn<C> {
    /// Sends the item with the others and hands each caller its own answer.
    async fn lead(mut self, item: Item, others: Vec<Parcel<C>>) -> Result<Answer, StoreError> {
        let (sender, mut own) = oneshot::channel();
        let (mut items, mut senders) = (vec![item], vec![sender]);
        for Parcel { item, sender, .. } in others {
            items.push(item);
            senders.push(sender);
        }
        let carrier = Arc::clone(&self.carrier);
        let trip = self.trip.insert(Box::pin(async move {
            let answers = carrier.deliver(&mut items).await;
            for (sender, answer) in senders.into_iter().zip(answers) {
                // The caller may be gone.
                let _ = sender.send(Word::Answer(answer));
            }
        }));
        poll_fn(|context| trip.as_mut().poll(context)).await;
        self.trip = None;
        let answer = own.try_recv();
        // Callers that were just answered may have more to send, which then joins the next
        // pipeline.
        yield_now().await;
        drop(self);
        match answer {
            Ok(Word::Answer(answer)) => answer,
            Ok(Word::Go(..)) | Err(_) => Err(nonsense()),
        }
    }
}

impl<C: Carrier> Drop for Turn<C> {
    fn drop(&mut self) {
        if let Some(trip) = self.trip.take() {
            leave(trip);
        }
        self.carrier.courier().pass_on(&self.carrier, self.generation);
    }
}
