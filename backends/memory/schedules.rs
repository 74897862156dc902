//! Concurrent swaps, waits and purges of the store, explored under many schedules.

use std::borrow::Cow;
use std::sync::Mutex as Plain;

use bytes::Bytes;
use shuttle::future::block_on;
use shuttle::thread::{self, JoinHandle};

use super::*;
use crate::clock::ManualClock;
use crate::fingerprint::Fingerprint;
use crate::owner::Owner;
use crate::record::{Body, Recovery, State};
use crate::sync::schedules::explore;

const HOUR: Duration = Duration::from_secs(3600);

fn swap_now(
    store: &MemoryStore,
    id: &RecordId,
    expected: Option<Stamp>,
    next: Option<&Record>,
) -> Result<Swap, StoreError> {
    store.swap_now(&SwapRequest::new(id, expected, next)).unwrap()
}

/// Writes `next` in place of whatever there is.
fn update_now(store: &MemoryStore, id: &RecordId, next: Option<Record>) -> Option<Write> {
    let mut there = None;
    let mut decide = |now: Stamp, found: Option<Cow<'_, Record>>| {
        assert!(found.as_ref().is_none_or(|record| record.stamp <= now));
        there = found.map(|record| record.stamp);
        match (&next, there) {
            (Some(next), _) => Update::Replace(Box::new(next.clone())),
            (None, Some(_)) => Update::Remove,
            (None, None) => Update::Keep,
        }
    };
    let (update, stamp) = store.update_now(id, &mut decide).unwrap().unwrap();
    (update != Update::Keep).then_some((there, stamp, next.is_some().then_some(stamp)))
}

fn id(number: u8) -> RecordId {
    RecordId::from_bytes([number; 32])
}

/// A record in progress, which may be refused, or a completed one.
fn record(scope: &str, in_progress: bool) -> Record {
    let running = || State::InProgress {
        owner: Owner::from_bytes([3; Owner::BYTES]),
        lease: HOUR,
        effect: false,
        takeover: false,
        recovery: Recovery::Never,
        holder: Label::new("host-7"),
    };
    Record {
        stamp: Stamp::ZERO,
        fence: Stamp::ZERO,
        fingerprint: Fingerprint::NONE,
        attempt: 1,
        retention: HOUR,
        response_retention: None,
        unresolved_retention: None,
        scope: Label::new(scope),
        key: None,
        checkpoint: None,
        resolved: false,
        extra: None,
        state: if in_progress {
            running()
        } else {
            State::Completed(Body::kept(Bytes::from_static(b"done")))
        },
    }
}

fn all(threads: Vec<JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// A completed swap: the stamp it expected, the stamp it got, and the stamp it left behind, if any.
type Write = (Option<Stamp>, Stamp, Option<Stamp>);

/// S1, S5: The successful swaps of a record form a chain. Each replaced what the one before it
/// left.
#[test]
fn schedules_of_swaps() {
    explore("memory: swaps of one record", 30_000, || {
        let store = MemoryStore::builder().clock(ManualClock::new()).build();
        let writes = Arc::new(Plain::new(Vec::<Write>::new()));
        let threads = (0..3_usize).map(|number| {
            let (store, writes) = (store.clone(), writes.clone());
            thread::spawn(move || {
                let mut known = None;
                for round in 0..3 {
                    let next = (number + round) % 3;
                    let next = (next > 0).then(|| record("schedules", next == 1));
                    if number == 2 {
                        let written = update_now(&store, &id(1), next);
                        writes.lock().unwrap().extend(written);
                        continue;
                    }
                    match swap_now(&store, &id(1), known, next.as_ref()).unwrap() {
                        Swap::Done(stamp) => {
                            let left = next.is_some().then_some(stamp);
                            writes.lock().unwrap().push((known, stamp, left));
                            known = left;
                        }
                        Swap::Conflict(found) => {
                            assert!(found.record.as_ref().is_none_or(|record| record.stamp <= found.now));
                            known = found.record.map(|record| record.stamp);
                        }
                    }
                }
            })
        });
        all(threads.collect());
        let mut writes = writes.lock().unwrap().clone();
        writes.sort_by_key(|(_, stamp, _)| *stamp);
        let mut there = None;
        let mut last = Stamp::ZERO;
        for (expected, stamp, left) in writes {
            assert_eq!(expected, there, "it replaced what was not there");
            assert!(stamp > last, "two writes of one stamp");
            (there, last) = (left, stamp);
        }
        let found = block_on(store.load(&id(1))).unwrap().record.map(|record| record.stamp);
        assert_eq!(found, there);
    });
}

/// L4: Every waiter sees a change, however it is made. A waiter that leaves leaves nothing behind.
#[test]
fn schedules_of_changes() {
    explore("memory: waits for a change", 30_000, || {
        let store = MemoryStore::builder().clock(ManualClock::new()).build();
        let in_progress = record("schedules", true);
        let Swap::Done(stamp) = swap_now(&store, &id(1), None, Some(&in_progress)).unwrap() else { panic!() };
        let waiter = |leaves: bool| {
            let store = store.clone();
            thread::spawn(move || {
                let id = id(1);
                if leaves {
                    let mut wait = store.changed(&id, stamp, HOUR);
                    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                    let _ = wait.as_mut().poll(&mut context);
                } else {
                    block_on(store.changed(&id, stamp, HOUR)).unwrap();
                }
            })
        };
        let waiters = vec![waiter(false), waiter(false), waiter(true)];
        let other = store.clone();
        let discards = thread::spawn(move || {
            block_on(other.discard(&id(1))).unwrap();
        });
        let _ = swap_now(&store, &id(1), Some(stamp), Some(&record("schedules", false))).unwrap();
        all(waiters);
        discards.join().unwrap();
        let shard = store.shard(&id(1)).lock();
        assert!(shard.waiters.is_empty());
    });
}

/// S12, L5: Begins in several shards of a full store, each searching the others for room, race with
/// finishes and a purge. None of them deadlocks, no finish is refused, and the counters match the
/// records.
#[test]
fn schedules_of_a_full_store() {
    explore("memory: a full store makes room", 4_000, || {
        let clock = ManualClock::new();
        let store =
            MemoryStore::builder().clock(clock.clone()).max_records(3).max_records_per_scope(2).build();
        for number in [10, 90] {
            swap_now(&store, &id(number), None, Some(&record("old", true))).unwrap();
        }
        clock.advance(HOUR);
        let threads = [40_u8, 120, 200].map(|number| {
            let store = store.clone();
            thread::spawn(move || {
                let id = id(number);
                match swap_now(&store, &id, None, Some(&record("new", true))) {
                    Ok(Swap::Done(stamp)) => {
                        let next = record("new", false);
                        let done = swap_now(&store, &id, Some(stamp), Some(&next)).unwrap();
                        assert!(matches!(done, Swap::Done(_)));
                    }
                    Ok(Swap::Conflict(_)) => panic!("there was nothing"),
                    Err(StoreError::Full { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            })
        });
        block_on(store.purge(10)).unwrap();
        all(threads.into());
        assert_eq!(block_on(store.purge(10)).unwrap().removed, 0, "no other record has expired");
        let records = store.len();
        assert_eq!(store.0.total.records.load(Ordering::SeqCst), records);
        let counted: usize = store.0.scopes.lock().values().sum();
        assert_eq!(counted, records);
    });
}
