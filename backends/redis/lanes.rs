//! The connections to one server, one pipeline at a time each: [`Lanes`].

use std::ops::Deref;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::error::unavailable;
use crate::error::StoreError;
use crate::wake::guarded_in_place;

/// Connections that are used in turn. Where each pipeline ends with a `WAIT`, which blocks its
/// connection, a pipeline has a connection to itself: queued behind others, its response timeout
/// would pass before its turn.
pub(super) struct Lanes<T> {
    all: Vec<T>,
    turn: AtomicUsize,
    exclusive: Option<Exclusive>,
}

/// The pipelines that are under way.
struct Exclusive {
    turns: Semaphore,
    /// The numbers of the lanes without a pipeline.
    free: Mutex<Vec<usize>>,
    /// The number of pipelines that ended.
    ended: AtomicUsize,
    patience: Duration,
}

/// A lane that a pipeline has taken, until dropped.
pub(super) struct Lane<'a, T> {
    lane: &'a T,
    _held: Option<Held<'a>>,
}

struct Held<'a> {
    exclusive: &'a Exclusive,
    number: usize,
    /// Released after the number is free again.
    _turn: SemaphorePermit<'a>,
}

impl<T> Lanes<T> {
    /// Creates lanes, at least one, on which pipelines do not wait for each other.
    pub(super) fn shared(all: Vec<T>) -> Lanes<T> {
        Lanes { all, turn: AtomicUsize::new(0), exclusive: None }
    }

    /// Creates lanes, at least one, with one pipeline at a time each. A pipeline waits for at most
    /// `patience`.
    pub(super) fn exclusive(all: Vec<T>, patience: Duration) -> Lanes<T> {
        let (turns, free) = (Semaphore::new(all.len()), Mutex::new((0..all.len()).collect()));
        let exclusive = Some(Exclusive { turns, free, ended: AtomicUsize::new(0), patience });
        Lanes { all, turn: AtomicUsize::new(0), exclusive }
    }

    pub(super) fn all(&self) -> &[T] {
        &self.all
    }

    /// Returns the lane whose turn it is, for what is no pipeline.
    pub(super) fn next(&self) -> &T {
        match &*self.all {
            [only] => only,
            all => &all[self.turn.fetch_add(1, Ordering::Relaxed) % all.len()],
        }
    }

    /// Takes a lane for a pipeline. Fails if others are served for so long that its turn does not
    /// come. Where no pipeline ends at all, those under way are of callers that are not polled, and
    /// are not waited for.
    pub(super) async fn take(&self) -> Result<Lane<'_, T>, StoreError> {
        let Some(exclusive) = &self.exclusive else { return Ok(Lane { lane: self.next(), _held: None }) };
        let before = exclusive.ended.load(Ordering::Relaxed);
        // The pipeline that ends wakes the next.
        match guarded_in_place(pin!(timeout(exclusive.patience, exclusive.turns.acquire()))).await {
            Ok(Ok(turn)) => {
                let number = exclusive.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let number = number.unwrap_or_default();
                Ok(Lane { lane: &self.all[number], _held: Some(Held { exclusive, number, _turn: turn }) })
            }
            Ok(Err(_)) | Err(_) if exclusive.ended.load(Ordering::Relaxed) != before => {
                Err(unavailable("the calls before it took too long: their replicas confirm late"))
            }
            Ok(Err(_)) | Err(_) => Ok(Lane { lane: self.next(), _held: None }),
        }
    }
}

impl<T> Deref for Lane<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.lane
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.exclusive.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
        self.exclusive.ended.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);
    const SHORT: Duration = Duration::from_millis(10);

    fn block_on<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn l1_pipelines_have_a_lane_of_their_own_and_the_next_one_waits_for_a_free_one() {
        block_on(async {
            let lanes = Lanes::exclusive(vec!['a', 'b'], LONG);
            let (first, second) = (lanes.take().await.unwrap(), lanes.take().await.unwrap());
            assert_ne!(*first, *second);
            let mut third = Box::pin(lanes.take());
            assert!((&mut third).now_or_never().is_none(), "both are taken");
            let free = *second;
            drop(second);
            assert_eq!(*third.await.unwrap(), free);
            assert_eq!(*lanes.take().await.unwrap(), free, "it is free again, and the other is not");
        });
    }

    #[test]
    fn l1_a_pipeline_whose_turn_does_not_come_fails_and_one_that_is_not_polled_is_passed() {
        block_on(async {
            let lanes = Lanes::exclusive(vec!['a'], SHORT);
            let stuck = lanes.take().await.unwrap();
            assert_eq!(*lanes.take().await.unwrap(), 'a');
            drop(stuck);
            let held = lanes.take().await.unwrap();
            let waiting = lanes.take();
            let busy = async {
                // As if pipelines of others had come first.
                lanes.exclusive.as_ref().unwrap().ended.fetch_add(1, Ordering::Relaxed);
            };
            let mut waiting = Box::pin(waiting);
            assert!((&mut waiting).now_or_never().is_none());
            busy.await;
            assert!(waiting.await.is_err_and(|error| error.is_transient()));
            drop(held);
        });
    }

    #[test]
    fn shared_lanes_are_used_in_turn() {
        block_on(async {
            let lanes = Lanes::shared(vec!['a']);
            let both = [lanes.take().await.unwrap(), lanes.take().await.unwrap()];
            assert!(both.iter().all(|lane| **lane == 'a'));
        });
    }
}
