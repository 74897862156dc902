//! Any bytes are a history of calls: a memory store must answer it as the reference model does.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use nevertwice::testing::block_on;
use nevertwice::testing::history::{self, Pace};
use nevertwice::{ManualClock, MemoryStore};

fuzz_target!(|bytes: &[u8]| {
    let clock = ManualClock::new();
    let store = Arc::new(MemoryStore::builder().clock(clock.clone()).build());
    let pace = Pace::Manual(clock);
    block_on(history::run(store, "key", &history::parse(bytes, &pace), &pace));
});
