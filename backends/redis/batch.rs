//! Many swaps at once: how a batch is cut into calls of the script.

use std::collections::HashMap;

use ::redis::{RedisError, Value, pipe};

use super::refusal::{again, full, is_no_script, is_oom, meaning, nonsense};
use super::script::{Answer, Item};
use super::{Inner, SwapScript};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::store::{Swap, SwapRequest};

/// A call is cut here: the server does nothing else meanwhile, for about 10 µs a swap.
const CALL_ITEMS: usize = 256;
const CALL_BYTES: usize = 1 << 20;
/// As many calls are under way at once: they share one response time-out.
const TRIP_CALLS: usize = 8;

/// One call of the script: which of the batch it does, in their order.
struct Call {
    refusable: bool,
    places: Vec<usize>,
    items: Vec<Item>,
    bytes: usize,
}

impl Call {
    fn has_room_for(&self, bytes: usize) -> bool {
        self.items.len() < CALL_ITEMS && self.bytes.saturating_add(bytes) <= CALL_BYTES
    }
}

/// Calls that are sent at once. No two of them have an id in common: so it does not matter in which order they
/// are done, nor whether one has to be repeated after another was done.
#[derive(Default)]
struct Trip {
    calls: Vec<Call>,
    homes: HashMap<RecordId, usize>,
}

impl Trip {
    /// Takes a swap in, or gives it back if it has to wait for the next trip.
    fn take(&mut self, id: &RecordId, refusable: bool, place: usize, item: Item) -> Result<(), Item> {
        let bytes = item.bytes.len();
        // The last one of the kind: those before it are full.
        let open = self.calls.iter().rposition(|call| call.refusable == refusable);
        let open = open.filter(|&open| self.calls.get(open).is_some_and(|call| call.has_room_for(bytes)));
        let open = open.unwrap_or(self.calls.len());
        if open == TRIP_CALLS || self.homes.get(id).is_some_and(|&home| home != open) {
            return Err(item);
        }
        if open == self.calls.len() {
            self.calls.push(Call { refusable, places: Vec::new(), items: Vec::new(), bytes: 0 });
        }
        let Some(call) = self.calls.get_mut(open) else { return Err(item) };
        call.places.push(place);
        call.items.push(item);
        call.bytes = call.bytes.saturating_add(bytes);
        self.homes.insert(*id, open);
        Ok(())
    }
}

impl Inner {
    /// Does the swaps in their order: a batch in which no id occurs twice takes one round trip for every few thousand.
    pub(super) async fn swap_batch(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        let mut answers: Vec<_> = swaps.iter().map(|_| Err(nonsense())).collect();
        let mut trip = Trip::default();
        for (place, swap) in swaps.iter().enumerate() {
            let (refusable, item) = self.item(&swap.id, swap.expected, swap.next.as_deref());
            if let Err(item) = trip.take(&swap.id, refusable, place, item) {
                self.travel(std::mem::take(&mut trip), swaps, &mut answers).await;
                // An empty trip has room for anything.
                let _ = trip.take(&swap.id, refusable, place, item);
            }
        }
        self.travel(trip, swaps, &mut answers).await;
        answers
    }

    async fn travel(&self, trip: Trip, swaps: &[SwapRequest], answers: &mut [Result<Swap, StoreError>]) {
        let mut refused = Vec::new();
        let replies = self.send(&trip.calls).await;
        for (number, call) in trip.calls.iter().enumerate() {
            let reply = match &replies {
                Ok(replies) => replies.get(number).cloned().ok_or_else(nonsense),
                Err(error) => Err(meaning(error)),
            };
            let reply = reply.and_then(|reply| match reply.extract_error() {
                Err(error) if is_oom(&error) && call.refusable => {
                    refused.extend_from_slice(&call.places);
                    Err(full())
                }
                reply => reply.map_err(|error| meaning(&error)),
            });
            let mut done = reply.and_then(|reply| Answer::parse(reply, call.items.len())).map(Vec::into_iter);
            for &place in &call.places {
                let (Some(answer), Some(swap)) = (answers.get_mut(place), swaps.get(place)) else { continue };
                *answer = match &mut done {
                    Ok(done) => done.next().ok_or_else(nonsense).and_then(|done| done.into_swap(&swap.id)),
                    Err(error) => Err(again(error)),
                };
            }
        }
        self.look_when_full(&refused, swaps, answers).await;
    }

    /// Sends the calls together, and those again for which a server that lost the script did nothing.
    async fn send(&self, calls: &[Call]) -> Result<Vec<Value>, RedisError> {
        let mut replies = self.send_those(calls.iter()).await?;
        let is_lost =
            |reply: &Value| matches!(reply, Value::ServerError(error) if is_no_script(&error.clone().into()));
        let lost: Vec<usize> = (0..replies.len()).filter(|&n| replies.get(n).is_some_and(is_lost)).collect();
        if lost.is_empty() {
            return Ok(replies);
        }
        for script in [&self.refusable, &self.always] {
            self.records.link.call(&script.load()).await?;
        }
        let second = self.send_those(lost.iter().filter_map(|&number| calls.get(number))).await?;
        for (number, reply) in lost.into_iter().zip(second) {
            if let Some(place) = replies.get_mut(number) {
                *place = reply;
            }
        }
        Ok(replies)
    }

    async fn send_those(&self, calls: impl Iterator<Item = &Call>) -> Result<Vec<Value>, RedisError> {
        let (mut commands, mut count) = (pipe(), 0);
        for call in calls {
            commands.add_command(self.script(call.refusable).call(&call.items));
            count += 1;
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        self.records.link.call_all(&commands, count).await
    }

    /// The answers to swaps that were refused for want of memory: a duplicate is still told what there is.
    async fn look_when_full(
        &self,
        places: &[usize],
        swaps: &[SwapRequest],
        answers: &mut [Result<Swap, StoreError>],
    ) {
        let wanted: Vec<_> = places.iter().filter_map(|&place| Some((place, swaps.get(place)?))).collect();
        let ids: Vec<_> = wanted.iter().map(|(_, swap)| swap.id).collect();
        let mut found = self.records.load_many(&ids).await.map(Vec::into_iter);
        for (place, swap) in wanted {
            let found = match &mut found {
                Ok(found) => found.next().unwrap_or_else(|| Err(nonsense())),
                Err(error) => Err(again(error)),
            };
            let Some(answer) = answers.get_mut(place) else { continue };
            *answer = found.and_then(|found| {
                if found.record.as_ref().map(|record| record.stamp) == swap.expected {
                    return Err(full());
                }
                Ok(Swap::Conflict(found))
            });
        }
    }

    fn script(&self, refusable: bool) -> &SwapScript {
        if refusable { &self.refusable } else { &self.always }
    }
}
