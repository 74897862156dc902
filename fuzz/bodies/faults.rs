//! Calls on a store that fails. The first byte gives the number of faults, which follow with two
//! bytes each; the rest is the history. No fault may change an answer: every repeated command is
//! recognised.

use std::sync::Arc;

use nevertwice::testing::history::{self, Op, Pace};
use nevertwice::testing::model::ModelBegin;
use nevertwice::testing::{Fault, FaultyStore, block_on};
use nevertwice::{ManualClock, MemoryStore};

const FAULTS: [Fault; 3] = [Fault::FailBefore, Fault::FailAfter, Fault::Duplicate];

pub(crate) fn run(input: &[u8]) {
    let Some((faults, rest)) = input.split_first() else { return };
    let faults = 2 * usize::from(faults % 32);
    let Some((plan, ops)) = rest.split_at_checked(faults) else { return };
    let clock = ManualClock::new();
    let store = FaultyStore::new(MemoryStore::builder().clock(clock.clone()).build());
    for fault in plan.chunks_exact(2) {
        // At most two in a row: the third repetition waits, and the clock does not move.
        if fault[0] % 3 != 0 {
            store.on_call(u64::from(fault[0]), FAULTS[usize::from(fault[1]) % FAULTS.len()]);
        }
    }
    let pace = Pace::Manual(clock);
    let mut ops = history::parse(ops, &pace);
    for op in &mut ops {
        // A kept owner does not find a grant again that assumes its effect.
        if let Op::Begin(ask) = op
            && ask.assumes
        {
            ask.owner = ModelBegin::KEPT_OWNERS;
        }
    }
    block_on(history::run(Arc::new(store), "key", &ops, &pace));
}
