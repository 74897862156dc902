//! Records the calls of several tasks on one key, over a store that yields, fails and loses
//! answers.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use nevertwice::store::{Snapshot, Store, Swap, SwapRequest, async_trait};
pub(crate) use nevertwice::testing::rest;
use nevertwice::{RecordId, StoreError};

use crate::spec::Event;

/// A pseudo-random generator, reproducible from its seed.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }

    pub(crate) fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

tokio::task_local! {
    /// The number of answers that the current call has lost. Each of them may hide a write.
    static LOST: Cell<usize>;
}

/// A store whose calls yield before and after, and which fails now and then if `faulty` is set.
#[derive(Debug)]
pub(crate) struct Troubled {
    pub(crate) inner: Arc<dyn Store>,
    pub(crate) faulty: bool,
    pub(crate) seed: u64,
    pub(crate) calls: AtomicU64,
}

impl Troubled {
    async fn call<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let n = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut dice = Dice::new(self.seed.wrapping_add(n << 32));
        let fault = if self.faulty { dice.below(10) } else { 10 };
        let lost = || StoreError::Unavailable { backend: "troubled", detail: "as planned".to_owned() };
        rest(dice.below(3)).await;
        if fault == 0 {
            return Err(lost());
        }
        let answer = call.await;
        rest(dice.below(3)).await;
        if fault == 1 || answer.is_err() {
            LOST.with(|lost| lost.set(lost.get() + 1));
        }
        if fault == 1 { Err(lost()) } else { answer }
    }
}

#[async_trait]
impl Store for Troubled {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        self.call(self.inner.load(id)).await
    }

    async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
        self.call(self.inner.swap(swap)).await
    }
}

/// Returns the result of `call`, or `None` if it is dropped after so many polls.
pub(crate) async fn dropped_after<T>(polls: Option<u64>, call: impl Future<Output = T>) -> Option<T> {
    let mut call = pin!(call);
    let mut left = polls;
    poll_fn(|context| match (call.as_mut().poll(context), &mut left) {
        (Poll::Ready(value), _) => Poll::Ready(Some(value)),
        (Poll::Pending, Some(0)) => Poll::Ready(None),
        (Poll::Pending, left) => {
            if let Some(left) = left {
                *left -= 1;
                context.waker().wake_by_ref();
            }
            Poll::Pending
        }
    })
    .await
}

/// The history of one key so far.
#[derive(Debug)]
pub(crate) struct Recorder<C, A> {
    clock: AtomicUsize,
    events: Mutex<Vec<Event<C, A>>>,
}

impl<C: Clone, A> Recorder<C, A> {
    pub(crate) fn new() -> Recorder<C, A> {
        Recorder { clock: AtomicUsize::new(0), events: Mutex::default() }
    }

    /// Runs `act` and records it as `call`, with the answer that `answer` derives from its result
    /// (`None`: unknown).
    pub(crate) async fn record<T>(
        &self,
        call: C,
        act: impl Future<Output = T>,
        answer: impl FnOnce(&T) -> Option<A>,
    ) -> T {
        let sent = self.clock.fetch_add(1, Ordering::SeqCst);
        let (given, lost) = LOST
            .scope(Cell::new(0), async {
                let given = act.await;
                (given, LOST.with(Cell::get))
            })
            .await;
        let at = self.clock.fetch_add(1, Ordering::SeqCst);
        let answered = answer(&given).map(|answer| (at, answer));
        let mut events = self.events.lock().unwrap();
        // An attempt whose answer was lost counts as a call of its own, with an unknown outcome.
        for _ in 0..lost {
            events.push(Event { call: call.clone(), sent, answered: None });
        }
        events.push(Event { call, sent, answered });
        given
    }

    pub(crate) fn into_events(self) -> Vec<Event<C, A>> {
        self.events.into_inner().unwrap()
    }
}
