//! An engine over a memory store that injects faults, on a manual clock, and calls driven by hand.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nevertwice::testing::{FaultyStore, block_on};
use nevertwice::{Begin, Engine, Lease, ManualClock, MemoryStore, Request};

pub(crate) const SECOND: Duration = Duration::from_secs(1);

pub(crate) type Store = FaultyStore<MemoryStore>;

pub(crate) fn request(key: &str) -> Request {
    Request::new("tests", key).unwrap()
}

pub(crate) fn setup() -> (ManualClock, Store, Engine) {
    let clock = ManualClock::new();
    let store = FaultyStore::with_clock(MemoryStore::builder().clock(clock.clone()).build(), clock.clone());
    let engine = Engine::builder(store.clone()).clock(clock.clone()).build().unwrap();
    (clock, store, engine)
}

pub(crate) fn acquire(engine: &Engine, key: &str) -> Lease {
    match block_on(engine.begin(&request(key))) {
        Ok(Begin::Acquired(lease)) => lease,
        other => panic!("expected a lease, got {other:?}"),
    }
}

/// Polls once; the output if the future is done.
pub(crate) fn poll<F: Future>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// The output of `call`, with the clock moved on by `step` whenever it waits.
pub(crate) fn driven<T>(clock: &ManualClock, step: Duration, call: impl Future<Output = T>) -> T {
    let mut call = Box::pin(call);
    for _ in 0..10_000 {
        if let Some(value) = poll(&mut call) {
            return value;
        }
        clock.advance(step);
    }
    panic!("L1: the call does not end");
}
