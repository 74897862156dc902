//! Histories of calls, made from any bytes. A memory store must answer them as the reference model
//! does.

use std::sync::Arc;

use nevertwice::testing::block_on;
use nevertwice::testing::history::{self, Pace};
use nevertwice::{ManualClock, MemoryStore};

pub(crate) fn run(input: &[u8]) {
    let clock = ManualClock::new();
    let store = Arc::new(MemoryStore::builder().clock(clock.clone()).build());
    let pace = Pace::Manual(clock);
    block_on(history::run(store, "key", &history::parse(input, &pace), &pace));
}
