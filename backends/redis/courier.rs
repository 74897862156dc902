//! Concurrent swaps share trips: [`Courier`].

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

/// How many trips are under way at once. With one, two callers would wait for each other's trips.
const TRIPS: usize = 2;
/// What a trip takes along at most: the server does nothing else meanwhile, for some 3 µs a swap.
const TRIP_ITEMS: usize = 128;
const TRIP_BYTES: usize = 256 << 10;

/// Sends a swap at once while few trips are under way. Those that come later wait, for nothing else than that one of
/// these is over, and then go together.
///
/// There is no task: whoever waits longest gets the [`Turn`] of the trip that is over and sends what waits, its own swap
/// included. One that is dropped on its way leaves what it has sent to the runtime, and passes its turn on. One that is
/// neither dropped nor polled (its runtime stands still) loses its turn to the first who has waited too long.
pub(super) struct Courier<C: Carrier>(Mutex<State<C>>);

/// What takes swaps to the server.
pub(super) trait Carrier: Send + Sync + Sized + 'static {
    fn courier(&self) -> &Courier<Self>;

    /// How long it takes at most until a trip is over.
    fn patience(&self) -> Duration;

    /// Sends the items at once, and gives the answer to each.
    fn deliver(&self, items: &mut [Item]) -> impl Future<Output = Vec<Result<Answer, StoreError>>> + Send;
}

struct State<C: Carrier> {
    waiting: VecDeque<Parcel<C>>,
    under_way: usize,
    /// Turns of an earlier one count no more.
    generation: u64,
    next_number: u64,
}

struct Parcel<C: Carrier> {
    number: u64,
    item: Item,
    sender: oneshot::Sender<Word<C>>,
}

/// What somebody who waits is told.
enum Word<C: Carrier> {
    Answer(Result<Answer, StoreError>),
    /// Its swap is not sent yet: now it is to send it, with the others.
    Go(Turn<C>, Item),
}

/// The number under which an item waits, and where its caller is told.
type Waiting<C> = (u64, oneshot::Receiver<Word<C>>);

/// The right to send a trip. It never gets lost: whoever drops it passes it on.
struct Turn<C: Carrier> {
    carrier: Arc<C>,
    generation: u64,
    /// A trip for several callers that is not over.
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

    /// A turn, or the number under which the item waits.
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

    /// Those that go along with the item.
    fn company(&self, item: &Item) -> Vec<Parcel<C>> {
        let mut company = Vec::new();
        let mut bytes = item.bytes.len();
        let mut state = self.lock();
        while company.len() + 1 < TRIP_ITEMS
            && let Some(next) = state.waiting.front()
            && bytes.saturating_add(next.item.bytes.len()) <= TRIP_BYTES
            && let Some(parcel) = state.waiting.pop_front()
        {
            // Who is gone sends nothing.
            if !parcel.sender.is_closed() {
                bytes = bytes.saturating_add(parcel.item.bytes.len());
                company.push(parcel);
            }
        }
        company
    }

    /// Gives a turn that is free to who waits longest.
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
            // If it is gone, so is its swap.
            if !sender.is_closed() {
                let turn = Turn { carrier: Arc::clone(carrier), generation, trip: None };
                // Should it go just now, the turn is dropped and comes back here.
                let _ = sender.send(Word::Go(turn, item));
                return;
            }
        }
    }

    /// Takes the turns away from those that have them for too long, and gives a new one to the item of that number. If that
    /// is on its way, nothing happens.
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
    /// Sends the item with the others and gives everybody the answer to its own.
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
                // Who is gone does not want to know.
                let _ = sender.send(Word::Answer(answer));
            }
        }));
        poll_fn(|context| trip.as_mut().poll(context)).await;
        self.trip = None;
        let answer = own.try_recv();
        // Who was answered just now may have more to send, which then goes along with the next.
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
