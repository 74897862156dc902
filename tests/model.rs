//! Histories on a manual clock against the reference model: durations of all lengths are tried, and
//! shrinking works.
#![cfg(feature = "memory")]

use std::sync::Arc;

use nevertwice::store::Store;
use nevertwice::testing::history::{self, Op, Pace};
use nevertwice::testing::model::ModelBegin;
use nevertwice::testing::{Fault, FaultyStore, block_on};
use nevertwice::{ManualClock, MemoryStore};
use proptest::collection::vec;
use proptest::prelude::*;

fn compare(bytes: &[u8], wrap: impl FnOnce(MemoryStore) -> Arc<dyn Store>, change: impl FnMut(&mut Op)) {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let pace = Pace::Manual(clock);
    let mut ops = history::parse(bytes, &pace);
    ops.iter_mut().for_each(change);
    block_on(history::run(wrap(store), "key", &ops, &pace));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn s15_the_memory_store_answers_as_the_model_at_any_time(bytes in vec(any::<u8>(), 0..240)) {
        compare(&bytes, |store| Arc::new(store), |_| ());
    }

    #[test]
    fn s6_faults_change_no_answer_at_any_time(
        bytes in vec(any::<u8>(), 0..160),
        faults in vec((1_u64..120, 0_usize..3), 0..24),
    ) {
        // A kept owner does not find a grant again that assumes its effect.
        let draw_owner = |op: &mut Op| {
            if let Op::Begin(ask) = op
                && ask.assumes
            {
                ask.owner = ModelBegin::KEPT_OWNERS;
            }
        };
        let wrap = |store| -> Arc<dyn Store> {
            let faulty = FaultyStore::new(store);
            for (call, fault) in faults {
                // At most two in a row: the third repetition waits, and nothing advances the clock
                // for it.
                if call % 3 != 0 {
                    faulty.on_call(call, [Fault::FailBefore, Fault::FailAfter, Fault::Duplicate][fault]);
                }
            }
            Arc::new(faulty)
        };
        compare(&bytes, wrap, draw_owner);
    }
}

/// Every history of four calls, out of those that change something, on one key.
#[test]
fn s15_every_short_history_is_answered_as_by_the_model() {
    const CALLS: [[u8; 4]; 16] = [
        [0, 0, 0, 0],   // begin for an hour
        [0, 0, 1, 8],   // another owner, recovery Rerun
        [0, 3, 1, 0],   // another owner, a lease of 10 s
        [0, 3, 0, 12],  // the first owner, a lease of 10 s, recovery Never
        [0, 3, 0, 48],  // the first owner, a lease of 10 s, assumes its effect
        [0, 0, 231, 0], // another payload
        [0, 204, 2, 0], // at most two attempts
        [5, 0, 0, 0],   // renew the youngest lease
        [7, 0, 0, 0],   // mark its effect
        [8, 0, 0, 1],   // complete it
        [8, 0, 1, 2],   // complete the one before it
        [10, 0, 0, 16], // fail it: retry now
        [10, 3, 0, 16], // fail it: unresolved
        [12, 0, 0, 0],  // release it
        [14, 4, 0, 0],  // resolve it: rerun
        [15, 2, 0, 0],  // 11 s pass
    ];
    let clock = ManualClock::new();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::builder().clock(clock.clone()).build());
    let pace = Pace::Manual(clock);
    let ops: Vec<Op> = CALLS.iter().flat_map(|call| history::parse(call, &pace)).collect();
    for number in 0..CALLS.len().pow(4) {
        let picked = (0..4).map(|place| number / CALLS.len().pow(place) % CALLS.len());
        let history: Vec<Op> = picked.map(|call| ops[call].clone()).collect();
        block_on(history::run(store.clone(), &number.to_string(), &history, &pace));
    }
}
