//! The checks that [`conformance!`](crate::conformance) mounts. Each takes an empty store and panics if it errs.
//! They need no control over the store's time: what is to be over lasts a microsecond, what is not lasts an hour.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a check fails by panicking
#![allow(clippy::wildcard_enum_match_arm)] // whatever else it is, the check fails

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::history::{self, Op, Pace};
use super::{Fault, FaultyStore, until_over};
use crate::begin::Begin;
use crate::clock::ManualClock;
use crate::decide::{Command, Decision, Reason, Resolution, StateKind, decide};
use crate::engine::Engine;
use crate::error::{Error, StoreError};
use crate::fingerprint::Fingerprint;
use crate::key::{Key, RecordId, Scope};
use crate::lease::{Lease, Owner};
use crate::policy::{Policy, Recovery, Retry};
use crate::record::{Body, Record, Stamp, State};
use crate::request::Request;
use crate::run::{Failure, RunError};
use crate::store::{Store, Swap, SwapRequest};

type Shared = Arc<dyn Store>;

/// Over by the next call, once [`until_over`] has seen to it.
const SHORT: Duration = Duration::from_micros(1);
/// Outlasts every check.
const LONG: Duration = Duration::from_secs(3600);
/// The longest that a record can say.
const MAX: Duration = Duration::from_micros(u64::MAX);

fn engine(store: &Shared) -> Engine {
    Engine::builder(store.clone()).build().unwrap()
}

fn request(key: &str) -> Request {
    Request::new("checks", key).unwrap().fingerprint(Fingerprint::of("payload"))
}

fn id(key: &str) -> RecordId {
    RecordId::new(&Scope::try_from("checks").unwrap(), &Key::try_from(key).unwrap())
}

async fn acquire(engine: &Engine, request: &Request) -> Lease {
    match engine.begin(request).await.unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("expected a lease, got {other:?}"),
    }
}

/// A lease of `request` that is over.
async fn crash(engine: &Engine, store: &Shared, request: &Request) -> Lease {
    let lease = acquire(engine, &request.clone().lease(SHORT)).await;
    until_over(store, &request.id(), SHORT).await;
    lease
}

async fn response(engine: &Engine, request: &Request) -> Bytes {
    match engine.begin(request).await.unwrap() {
        Begin::Completed(done) => done.response().unwrap().clone(),
        other => panic!("expected a response, got {other:?}"),
    }
}

async fn reason(engine: &Engine, request: &Request) -> (Reason, Stamp) {
    match engine.begin(request).await.unwrap() {
        Begin::Unresolved(unknown) => (unknown.reason(), unknown.fence()),
        other => panic!("expected unresolved, got {other:?}"),
    }
}

fn lost(result: Result<(), Error>) -> StateKind {
    match result {
        Err(Error::LeaseLost { current }) => current.state,
        other => panic!("expected LeaseLost, got {other:?}"),
    }
}

/// A record as a begin writes it.
fn grant(request: &Request) -> Record {
    let ask = request.ask(&Policy::default()).unwrap();
    match decide(Stamp::ZERO, None, &Command::Begin(ask)) {
        Decision::Write { next: Some(record), .. } => record,
        other => panic!("{other:?}"),
    }
}

fn done(swap: Swap) -> Stamp {
    match swap {
        Swap::Done(stamp) => stamp,
        Swap::Conflict(found) => panic!("expected a write, found {found:?}"),
    }
}

/// Store: what was never written is not there.
pub async fn an_absent_key_loads_as_none(store: Shared) {
    let snapshot = store.load(&id("absent")).await.unwrap();
    assert_eq!(snapshot.record, None);
    assert!(snapshot.now > Stamp::ZERO);
}

/// Store: of many swaps that expect the same, one is done, and each of the others is shown it.
pub async fn s1_one_of_many_concurrent_swaps_wins(store: Shared) {
    let records: Vec<_> = (0..32).map(|_| grant(&request("race"))).collect();
    let id = id("race");
    let swaps = join_all(records.iter().map(|record| store.swap(&id, None, Some(record)))).await;
    let stamps: Vec<_> = swaps.iter().filter_map(|swap| stamp_of(swap.as_ref().unwrap())).collect();
    assert_eq!(stamps.len(), 1);
    for swap in swaps {
        if let Swap::Conflict(found) = swap.unwrap() {
            let record = found.record.unwrap();
            assert_eq!(record.stamp, stamps[0]);
            assert!(found.now >= record.stamp);
        }
    }
}

fn stamp_of(swap: &Swap) -> Option<Stamp> {
    match swap {
        Swap::Done(stamp) => Some(*stamp),
        Swap::Conflict(_) => None,
    }
}

/// Store: a swap that expects what is no longer there writes nothing and shows what is there.
pub async fn a_lost_race_shows_the_present_record(store: Shared) {
    let (id, record) = (id("race"), grant(&request("race")));
    let first = done(store.swap(&id, None, Some(&record)).await.unwrap());
    let second = done(store.swap(&id, Some(first), Some(&record)).await.unwrap());
    for expected in [None, Some(first), Some(second.next()), Some(Stamp::ZERO)] {
        for next in [Some(&record), None] {
            match store.swap(&id, expected, next).await.unwrap() {
                Swap::Conflict(found) => {
                    let found = found.record.unwrap();
                    assert_eq!(found.fence, second, "a record without a fence of its own is its grant");
                    assert_eq!(found, record.clone().stamped(second));
                }
                Swap::Done(_) => panic!("{expected:?} is not there"),
            }
        }
    }
    match store.swap(&self::id("never"), Some(second), Some(&record)).await.unwrap() {
        Swap::Conflict(found) => assert_eq!(found.record, None),
        Swap::Done(_) => panic!("there is nothing to replace"),
    }
}

/// Store: removing what is not there is done, and changes nothing.
pub async fn removing_what_is_absent_is_done(store: Shared) {
    let id = id("absent");
    done(store.swap(&id, None, None).await.unwrap());
    assert_eq!(store.load(&id).await.unwrap().record, None);
}

/// Store: stamps of an id increase over writes, removals, discards and what comes after them.
pub async fn s5_stamps_increase_over_writes_and_removals(store: Shared) {
    let (id, record) = (id("stamps"), grant(&request("stamps")));
    let mut last = Stamp::ZERO;
    for round in 0..20 {
        let first = done(store.swap(&id, None, Some(&record)).await.unwrap());
        assert!(first > last, "{first:?} after {last:?}");
        let second = done(store.swap(&id, Some(first), Some(&record)).await.unwrap());
        assert!(second > first);
        if round % 2 == 0 {
            let removed = done(store.swap(&id, Some(second), None).await.unwrap());
            assert!(removed >= second);
        } else {
            assert!(store.discard(&id).await.unwrap());
            assert!(!store.discard(&id).await.unwrap());
        }
        let snapshot = store.load(&id).await.unwrap();
        assert_eq!(snapshot.record, None);
        assert!(snapshot.now >= second);
        last = second;
    }
}

/// Store: records of all shapes come back as they were, with the stamp that the swap said.
pub async fn records_come_back_byte_for_byte(store: Shared) {
    let every_byte = Bytes::from_iter(0..=255_u8);
    let bodies = [Bytes::new(), every_byte.clone(), Bytes::from(vec![0xA5; 1 << 20])];
    let mut shapes: Vec<State> =
        bodies.iter().map(|body| State::Completed(Body::Kept(body.clone()))).collect();
    shapes.push(State::Completed(Body::new(bodies[2].clone(), 10)));
    for retry in [Retry::Now, Retry::After(LONG), Retry::After(MAX), Retry::Never, Retry::Unresolved] {
        shapes.push(State::Failed(Body::Kept(every_byte.clone()), retry));
    }
    for (effect, takeover) in [(false, true), (true, false), (true, true)] {
        let holder = "host-7/é".into();
        shapes.push(State::InProgress { owner: Owner::random(), lease: LONG, effect, takeover, holder });
    }
    for (at, state) in shapes.into_iter().enumerate() {
        let id = id(&format!("shape {at}"));
        let mut record = grant(&request("shape"));
        record.state = state;
        record.fence = Stamp(7);
        record.attempt = u32::MAX;
        record.scope = "é/scope".into();
        record.key = Some("a key".into());
        record.checkpoint = Some(every_byte.clone());
        let stamp = done(store.swap(&id, None, Some(&record)).await.unwrap());
        let found = store.load(&id).await.unwrap().record.unwrap();
        let record = record.stamped(stamp);
        assert_eq!(found, record);
    }
}

/// Store: what happens under one id does not touch another.
pub async fn s7_other_records_are_untouched(store: Shared) {
    let record = grant(&request("a"));
    let stamp = done(store.swap(&id("a"), None, Some(&record)).await.unwrap());
    let other = done(store.swap(&id("b"), None, Some(&record)).await.unwrap());
    done(store.swap(&id("b"), Some(other), None).await.unwrap());
    let found = store.load(&id("a")).await.unwrap().record.unwrap();
    assert_eq!(found, record.stamped(stamp));
}

/// Store: purge leaves what is not over, whatever its state, and what is over is as good as gone.
pub async fn s13_nothing_is_removed_before_its_deadline(store: Shared) {
    let engine = engine(&store);
    let mut kept = Vec::new();
    for at in 0..20 {
        let request = request(&format!("kept {at}"));
        let lease = acquire(&engine, &request).await;
        if at % 2 == 0 {
            lease.complete("kept").await.unwrap();
        }
        let gone =
            acquire(&engine, &self::request(&format!("gone {at}")).lease(SHORT).retention(SHORT)).await;
        gone.complete("gone").await.unwrap();
        kept.push(request);
    }
    // What was to be kept for a moment only, and was rewritten, is kept for as long as it says now.
    let (rewritten, mut record) = (id("rewritten"), grant(&request("rewritten")));
    let last = |record: &mut Record, state| {
        record.retention = SHORT;
        record.state = state;
    };
    last(&mut record, State::Completed(body("short")));
    let first = done(store.swap(&rewritten, None, Some(&record)).await.unwrap());
    last(&mut record, State::Failed(body("not due"), Retry::After(LONG)));
    done(store.swap(&rewritten, Some(first), Some(&record)).await.unwrap());
    until_over(&store, &id("gone 0"), SHORT).await;
    loop {
        match store.purge(7).await.unwrap() {
            0 => break,
            purged => assert!(purged <= 7, "{purged} of at most 7"),
        }
    }
    assert!(store.load(&rewritten).await.unwrap().record.is_some());
    for (at, request) in kept.iter().enumerate() {
        match engine.begin(request).await.unwrap() {
            Begin::Completed(_) if at % 2 == 0 => {}
            Begin::InProgress(_) if at % 2 == 1 => {}
            other => panic!("record {at}: {other:?}"),
        }
    }
    for at in 0..20 {
        assert_eq!(acquire(&engine, &request(&format!("gone {at}"))).await.attempt(), 1);
    }
}

/// Store: its time does not go back, and is never before what it wrote.
pub async fn s13_time_does_not_go_back(store: Shared) {
    let mut last = Stamp::ZERO;
    for round in 0..50 {
        let id = id(&format!("time {round}"));
        let stamp = done(store.swap(&id, None, Some(&grant(&request("time")))).await.unwrap());
        assert!(stamp >= last);
        let now = store.load(&id).await.unwrap().now;
        assert!(now >= stamp);
        last = stamp;
    }
}

/// A begin of a key that nobody used gets attempt 1 and no traces.
pub async fn a_fresh_key_is_granted(store: Shared) {
    let lease = acquire(&engine(&store), &request("fresh")).await;
    assert_eq!((lease.attempt(), lease.takeover(), lease.checkpoint()), (1, false, None));
    assert!(lease.fence() > Stamp::ZERO);
    assert!(lease.remaining() > Duration::from_secs(20) && lease.remaining() <= Duration::from_secs(30));
}

/// S1: of many begins at once, one is granted; the others learn for how long.
pub async fn s1_of_many_concurrent_begins_one_is_granted(store: Shared) {
    let engine = engine(&store);
    let request = request("race");
    let begins = join_all((0..32).map(|_| engine.begin(&request))).await;
    let mut granted = 0;
    for begin in begins {
        match begin.unwrap() {
            Begin::Acquired(_) => granted += 1,
            Begin::InProgress(busy) => assert!(busy.retry_after() <= Duration::from_secs(30)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(granted, 1);
}

/// S1: of many begins that find a crashed attempt, one takes over.
pub async fn s1_of_many_takeovers_one_is_granted(store: Shared) {
    let engine = engine(&store);
    let request = request("takeover race");
    drop(crash(&engine, &store, &request).await);
    let begins = join_all((0..32).map(|_| engine.begin(&request))).await;
    let granted = begins.iter().filter(|begin| matches!(begin, Ok(Begin::Acquired(_)))).count();
    assert_eq!(granted, 1);
}

/// S2: once completed, every begin gets the response byte for byte, whatever anybody tries after.
pub async fn s2_an_outcome_is_immutable(store: Shared) {
    let engine = engine(&store);
    let request = request("done");
    let lease = acquire(&engine, &request).await;
    let receipt = Bytes::from_iter(0..=255_u8);
    lease.complete(receipt.clone()).await.unwrap();
    let again = engine.resume(&lease.token()).await.unwrap();
    for holder in [&lease, &again] {
        assert!(matches!(holder.complete("other").await, Err(Error::AlreadyFinished { .. })));
        assert!(matches!(holder.fail("other", Retry::Now).await, Err(Error::AlreadyFinished { .. })));
        for result in [holder.renew().await, holder.mark_effect().await, holder.release().await] {
            assert_eq!(lost(result), StateKind::Completed);
        }
        assert_eq!(lost(holder.save_checkpoint("c").await), StateKind::Completed);
    }
    let resolved = engine.resolve("checks", "done", lease.fence(), Resolution::Rerun).await;
    assert!(matches!(resolved, Err(Error::NotResolvable { .. })));
    engine.purge(1000).await.unwrap();
    assert_eq!(response(&engine, &request).await, receipt);
}

/// S3: whatever a holder tries whose key was taken over, it changes nothing and learns that it lost.
pub async fn s3_stale_token_changes_nothing(store: Shared) {
    let engine = engine(&store);
    let request = request("zombie");
    let zombie = crash(&engine, &store, &request).await;
    let successor = acquire(&engine, &request).await;
    assert!(successor.takeover() && successor.fence() > zombie.fence());
    let before = store.load(&request.id()).await.unwrap().record;
    assert!(engine.resume(&zombie.token()).await.is_err());
    for result in [
        zombie.renew().await,
        zombie.mark_effect().await,
        zombie.save_checkpoint("late").await,
        zombie.complete("late").await,
        zombie.fail("late", Retry::Never).await,
        zombie.release().await,
    ] {
        assert_eq!(lost(result), StateKind::InProgress);
    }
    assert_eq!(store.load(&request.id()).await.unwrap().record, before);
    successor.complete("right").await.unwrap();
    assert_eq!(lost(zombie.complete("late").await), StateKind::Completed);
    assert_eq!(response(&engine, &request).await, "right");
}

/// S3: nor does a token that somebody made up, or that is for another payload.
pub async fn s3_a_forged_token_changes_nothing(store: Shared) {
    let engine = engine(&store);
    let lease = acquire(&engine, &request("forged")).await;
    let genuine = serde_json::to_value(lease.token()).unwrap();
    for (field, value) in [
        ("owner", serde_json::to_value(Owner::random()).unwrap()),
        ("fingerprint", serde_json::to_value(Fingerprint::of("other")).unwrap()),
        ("fence", (lease.fence().0 - 1).into()),
        ("fence", (lease.fence().0 + 1).into()),
    ] {
        let mut forged = genuine.clone();
        forged[field] = value;
        let forged = serde_json::from_value(forged).unwrap();
        assert!(engine.resume(&forged).await.is_err(), "{field}");
    }
    lease.complete("genuine").await.unwrap();
}

/// Store: nothing is evicted to make room for something else.
pub async fn s13_nothing_is_evicted(store: Shared) {
    let record = grant(&request("many"));
    let ids: Vec<_> = (0..600).map(|number| id(&format!("many {number}"))).collect();
    for ids in ids.chunks(100) {
        for swap in join_all(ids.iter().map(|id| store.swap(id, None, Some(&record)))).await {
            done(swap.unwrap());
        }
    }
    for loaded in join_all(ids.iter().map(|id| store.load(id))).await {
        assert!(loaded.unwrap().record.is_some());
    }
}

/// Store: of many threads that expect the same, one is done, in every round.
pub async fn s1_threads_race_and_one_wins(store: Shared) {
    const THREADS: usize = 8;
    for round in 0..100 {
        let id = id(&format!("threads {round}"));
        let barrier = Arc::new(std::sync::Barrier::new(THREADS));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (store, barrier) = (store.clone(), barrier.clone());
                let record = grant(&request("threads"));
                std::thread::spawn(move || {
                    barrier.wait();
                    super::block_on(store.swap(&id, None, Some(&record)))
                })
            })
            .collect();
        let swaps = threads.into_iter().map(|thread| thread.join().unwrap().unwrap());
        assert_eq!(swaps.filter(|swap| matches!(swap, Swap::Done(_))).count(), 1, "round {round}");
    }
}

/// Store: swaps of a batch are done in their order, see each other, and are answered each for itself.
pub async fn swaps_of_a_batch_see_each_other(store: Shared) {
    let (one, two) = (id("one"), id("two"));
    let record = grant(&request("batch"));
    let insert = |id| SwapRequest { id, expected: None, next: Some(record.clone()) };
    let remove = SwapRequest { id: id("absent"), expected: None, next: None };
    let wrong = SwapRequest { id: two, expected: Some(Stamp(1)), next: None };
    assert_eq!(store.swap_many(&[]).await.len(), 0);
    let batch = [insert(one), insert(one), insert(two), remove, wrong, insert(two)];
    let answers: Vec<Swap> = store.swap_many(&batch).await.into_iter().map(Result::unwrap).collect();
    let done: Vec<bool> = answers.iter().map(|swap| matches!(swap, Swap::Done(_))).collect();
    assert_eq!(done, [true, false, true, true, false, false]);
    for (at, first) in [(1, 0), (4, 2), (5, 2)] {
        let (Swap::Conflict(found), Swap::Done(stamp)) = (&answers[at], &answers[first]) else { panic!() };
        assert_eq!(found.record.as_ref().unwrap().stamp, *stamp);
    }
    // A batch of what is there already, and one that goes on from the first.
    let replays = store.swap_many(&[insert(two), insert(one)]).await;
    assert!(replays.iter().all(|swap| matches!(swap, Ok(Swap::Conflict(_)))));
    let stamp = stamp_of(&answers[0]);
    let batch = [SwapRequest { id: one, expected: stamp, next: None }, insert(one)];
    let again: Vec<_> =
        store.swap_many(&batch).await.into_iter().map(|swap| self::done(swap.unwrap())).collect();
    assert!(again[1] > stamp.unwrap());
}

/// L4: who waits for a record is told of every change, also of one that came between its look and its wait.
pub async fn l4_a_change_is_never_missed(store: Shared) {
    let id = id("watched");
    let record = grant(&request("watched"));
    let first = done(store.swap(&id, None, Some(&record)).await.unwrap());
    store.changed(&id, Stamp(first.0 - 1), LONG).await.unwrap();
    store.changed(&self::id("absent"), first, LONG).await.unwrap();
    // The change comes while eight wait, and once more before they do.
    let mut stamp = first;
    for next in [Some(&record), None] {
        let waits = join_all((0..8).map(|_| store.changed(&id, stamp, LONG)));
        let change = async { done(store.swap(&id, Some(stamp), next).await.unwrap()) };
        let (waits, changed) = futures_util::future::join(waits, change).await;
        waits.into_iter().for_each(|wait| wait.unwrap());
        store.changed(&id, stamp, LONG).await.unwrap();
        stamp = changed;
    }
}

/// L4: waiters of a key are answered when it is finished, each byte for byte, and none of them executes.
pub async fn l4_waiters_get_the_outcome(store: Shared) {
    let engine = engine(&store);
    let request = request("awaited");
    let lease = acquire(&engine, &request).await;
    let waits = join_all((0..50).map(|_| engine.begin_or_wait(&request, LONG)));
    let work = async {
        lease.renew().await.unwrap();
        lease.complete("the outcome").await.unwrap();
    };
    let (answers, ()) = futures_util::future::join(waits, work).await;
    for answer in answers {
        match answer.unwrap() {
            Begin::Completed(done) => assert_eq!(done.response().unwrap(), "the outcome"),
            other => panic!("{other:?}"),
        }
    }
}

/// L4: when the holder fails and says that it may be done again at once, one of the waiters is granted.
pub async fn l4_one_waiter_goes_on_after_a_failure(store: Shared) {
    let engine = engine(&store);
    let request = request("awaited");
    let lease = acquire(&engine, &request).await;
    let wait = async || match engine.begin_or_wait(&request, LONG).await.unwrap() {
        Begin::Acquired(lease) => {
            assert_eq!(lease.attempt(), 2);
            lease.complete("the second").await.unwrap();
            1
        }
        Begin::Completed(_) => 0,
        other => panic!("{other:?}"),
    };
    let waits = join_all((0..20).map(|_| wait()));
    let (granted, failed) = futures_util::future::join(waits, lease.fail("again", Retry::Now)).await;
    failed.unwrap();
    assert_eq!(granted.iter().sum::<usize>(), 1);
}

/// Of many runs of one operation at once, one executes and all get its value; a failed one is replayed too.
pub async fn run_executes_once(store: Shared) {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Declined(String);
    impl Failure for Declined {
        fn retry(&self) -> Retry {
            Retry::Never
        }
    }
    let engine = engine(&store);
    for (key, result) in [("good", Ok(4200_u64)), ("bad", Err(()))] {
        let (executions, request) = (AtomicUsize::new(0), request(key));
        let run = || {
            engine.run(&request, |lease| {
                executions.fetch_add(1, Ordering::SeqCst);
                async move {
                    lease.mark_effect().await.unwrap();
                    result.map_err(|()| Declined("no".to_owned()))
                }
            })
        };
        for ran in join_all((0..30).map(|_| run())).await.into_iter().chain([run().await]) {
            match ran {
                Ok(outcome) => assert_eq!((key, outcome.into_value()), ("good", 4200)),
                Err(RunError::Failed { error, .. }) => {
                    assert_eq!((key, error), ("bad", Declined("no".to_owned())));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(executions.load(Ordering::SeqCst), 1);
    }
}

/// Batches of begins and completions are answered in order, whatever is among them, and can be repeated and dropped.
pub async fn s11_batches_are_whole_or_can_be_repeated(store: Shared) {
    let engine = engine(&store);
    acquire(&engine, &request("batch done")).await.complete("before").await.unwrap();
    drop(crash(&engine, &store, &request("batch crashed")).await);
    let owner = Owner::random();
    let mut requests: Vec<_> = (0..100).map(|key| request(&format!("batch {key}")).owner(owner)).collect();
    requests.push(request("batch done"));
    requests.push(request("batch 7"));
    requests.push(request("batch crashed"));
    for awaits in 0..3 {
        drop(dropped_at(awaits, engine.begin_many(&requests[..100])).await);
    }
    let begins = engine.begin_many(&requests).await;
    let mut leases = Vec::new();
    for (at, begin) in begins.into_iter().enumerate() {
        match (at, begin.unwrap()) {
            (0..100, Begin::Acquired(lease)) => {
                assert_eq!(lease.attempt(), 1);
                leases.push(lease);
            }
            (100, Begin::Completed(done)) => assert_eq!(done.response().unwrap(), "before"),
            (101, Begin::InProgress(_)) => {}
            (102, Begin::Acquired(lease)) => assert!(lease.takeover()),
            other => panic!("{other:?}"),
        }
    }
    let outcomes: Vec<_> =
        leases.iter().enumerate().map(|(at, lease)| (lease, Bytes::from(at.to_string()))).collect();
    for awaits in 0..3 {
        drop(dropped_at(awaits, engine.complete_many(&outcomes)).await);
    }
    for result in engine.complete_many(&outcomes).await {
        result.unwrap();
    }
    for (at, begin) in engine.begin_many(&requests[..100]).await.into_iter().enumerate() {
        match begin.unwrap() {
            Begin::Completed(done) => assert_eq!(*done.response().unwrap(), at.to_string()),
            other => panic!("{other:?}"),
        }
    }
}

/// Store: a listing shows every record once, in pages. A store need not be able to list.
pub async fn a_listing_shows_every_record_once(store: Shared) {
    let record = grant(&request("listed"));
    let mut ids: Vec<_> = (0..50).map(|number| id(&format!("listed {number}"))).collect();
    for id in &ids {
        done(store.swap(id, None, Some(&record)).await.unwrap());
    }
    done(store.swap(&id("removed"), None, None).await.unwrap());
    let mut listed = Vec::new();
    let mut after = None;
    loop {
        let page = match store.scan(after.as_ref(), 7).await {
            Err(StoreError::Unusable { .. }) if after.is_none() => return,
            page => page.unwrap(),
        };
        assert_eq!(page.unreadable, []);
        for (id, found) in page.records {
            assert_eq!(found, store.load(&id).await.unwrap().record.unwrap());
            listed.push(id);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    ids.sort();
    listed.sort();
    listed.dedup();
    assert_eq!(listed, ids);
}

/// S4: another payload under the key gets nothing, in any state, not even by its own owner or past a lease.
pub async fn s4_another_fingerprint_gets_nothing_in_any_state(store: Shared) {
    let engine = engine(&store);
    let check = async |key: &str, owner: Owner| {
        let other = Request::new("checks", key).unwrap().owner(owner);
        let others = [
            other.clone().fingerprint(Fingerprint::of("other")),
            other.clone().fingerprint(Fingerprint::of("other")).recovery(Recovery::Rerun),
            other,
        ];
        for other in others {
            match engine.begin(&other).await.unwrap() {
                Begin::Mismatch(nothing) => assert_eq!(format!("{nothing:?}"), "Mismatch"),
                begin => panic!("{key}: {begin:?}"),
            }
        }
    };
    let owner = Owner::random();
    let own = |key: &str| request(key).owner(owner);
    drop(acquire(&engine, &own("running")).await);
    drop(crash(&engine, &store, &own("crashed")).await);
    acquire(&engine, &own("completed")).await.complete("secret").await.unwrap();
    for (key, retry) in [
        ("now", Retry::Now),
        ("after", Retry::After(LONG)),
        ("never", Retry::Never),
        ("unresolved", Retry::Unresolved),
    ] {
        acquire(&engine, &own(key)).await.fail("secret", retry).await.unwrap();
        check(key, owner).await;
    }
    for key in ["running", "crashed", "completed"] {
        check(key, owner).await;
    }
}

/// S5: fences of a key increase across takeover, failure, release and forget.
pub async fn s5_fences_increase(store: Shared) {
    let engine = engine(&store);
    let request = request("fences");
    let mut last = Stamp::ZERO;
    for round in 0..24 {
        let lease = match round % 4 {
            0 => crash(&engine, &store, &request).await,
            _ => acquire(&engine, &request).await,
        };
        assert!(lease.fence() > last, "round {round}");
        last = lease.fence();
        match round % 4 {
            1 => lease.fail("again", Retry::Now).await.unwrap(),
            2 => lease.release().await.unwrap(),
            3 => assert!(engine.forget("checks", "fences").await.unwrap()),
            _ => {}
        }
    }
}

/// S6: a begin repeated by its owner gets the same grant, and no more time.
pub async fn s6_a_repeated_begin_gets_the_same_grant_and_no_more_time(store: Shared) {
    let engine = engine(&store);
    let request = request("repeat").owner(Owner::random());
    let first = acquire(&engine, &request).await;
    let written = store.load(&request.id()).await.unwrap().record.unwrap();
    for _ in 0..3 {
        let again = acquire(&engine, &request).await;
        assert_eq!((again.fence(), again.attempt()), (first.fence(), 1));
        assert!(again.remaining() <= Duration::from_secs(30));
    }
    assert_eq!(store.load(&request.id()).await.unwrap().record.unwrap(), written);
    assert!(matches!(engine.begin(&self::request("repeat")).await.unwrap(), Begin::InProgress(_)));
}

/// S6: a finish repeated, by the same lease or from its token, is Ok and changes nothing.
pub async fn s6_a_repeated_finish_is_ok_and_changes_nothing(store: Shared) {
    let engine = engine(&store);
    for (key, retry) in [("done", None), ("failed", Some(Retry::After(LONG))), ("never", Some(Retry::Never))]
    {
        let lease = acquire(&engine, &request(key)).await;
        let finish = async |lease: &Lease| match retry {
            None => lease.complete("outcome").await,
            Some(retry) => lease.fail("outcome", retry).await,
        };
        finish(&lease).await.unwrap();
        let written = store.load(&id(key)).await.unwrap().record;
        finish(&lease).await.unwrap();
        let resumed = engine.resume(&lease.token()).await.unwrap();
        finish(&resumed).await.unwrap();
        assert_eq!(store.load(&id(key)).await.unwrap().record, written);
    }
    let lease = acquire(&engine, &request("released")).await;
    lease.release().await.unwrap();
    lease.release().await.unwrap();
}

/// S7: the same key in another scope is another operation.
pub async fn s7_nothing_is_readable_under_another_scope(store: Shared) {
    let engine = engine(&store);
    acquire(&engine, &request("k")).await.complete("mine").await.unwrap();
    for scope in [vec!["check", "sk"], vec!["checks", "k"], vec!["checksk"], vec!["other"]] {
        let other = Request::new(scope.clone(), "k").unwrap().fingerprint(Fingerprint::of("payload"));
        drop(acquire(&engine, &other).await);
        assert!(engine.forget(scope, "k").await.unwrap());
    }
    assert_eq!(response(&engine, &request("k")).await, "mine");
}

/// S8: an attempt that marked its effect and crashed is not rerun by default, nor by the attempts after it.
pub async fn s8_a_marked_effect_is_not_rerun(store: Shared) {
    let engine = engine(&store);
    let request = request("marked");
    let first = acquire(&engine, &request.clone().lease(SHORT)).await;
    first.mark_effect().await.unwrap();
    until_over(&store, &request.id(), SHORT).await;
    assert_eq!(reason(&engine, &request).await, (Reason::EffectMarked, first.fence()));
    // Who knows better may say so; the mark stays for whoever comes after.
    let second = acquire(&engine, &request.clone().recovery(Recovery::Rerun).lease(SHORT)).await;
    assert!(second.takeover() && second.attempt() == 2);
    until_over(&store, &request.id(), SHORT).await;
    assert_eq!(reason(&engine, &request).await, (Reason::EffectMarked, second.fence()));
    let cautious = request.clone().recovery(Recovery::Never);
    assert_eq!(reason(&engine, &cautious).await.0, Reason::CrashedAttempt);
}

/// S10: an error is never a grant, and a store that answers nothing but errors ends as an error.
pub async fn s10_errors_are_never_grants(store: Shared) {
    let faulty = FaultyStore::new(store.clone());
    faulty.from_call(1, Fault::FailBefore);
    let clock = ManualClock::new();
    let engine = Engine::builder(faulty.clone()).clock(clock.clone()).build().unwrap();
    match driven(&clock, engine.begin(&request("dark"))).await {
        Err(Error::TimedOut { tries, last: Some(StoreError::Unavailable { .. }), .. }) => assert!(tries > 3),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.load(&id("dark")).await.unwrap().record, None);
    faulty.heal();
    drop(acquire(&engine, &request("dark")).await);
}

/// L1: a call on a store that never answers ends by its deadline, and what it had written is found again.
pub async fn l1_a_call_ends_by_its_deadline(store: Shared) {
    for fault in [Fault::RequestLost, Fault::AnswerLost] {
        let key = format!("{fault:?}");
        let faulty = FaultyStore::new(store.clone());
        faulty.from_call(1, fault);
        let clock = ManualClock::new();
        let engine = Engine::builder(faulty.clone()).clock(clock.clone()).build().unwrap();
        let request = request(&key).owner(Owner::random());
        let limit = engine.policy().call_timeout;
        let result = poll_until(engine.begin(&request), || {
            assert!(crate::Clock::monotonic(&clock) <= limit + Duration::from_secs(1));
            clock.advance(Duration::from_millis(100));
        })
        .await;
        assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
        faulty.heal();
        assert_eq!(acquire(&engine, &request).await.attempt(), 1);
    }
}

/// What `call` gives, while the clock goes on whenever it has to wait. For calls that no longer reach a real store.
async fn driven<T>(clock: &ManualClock, call: impl Future<Output = T>) -> T {
    poll_until(call, || {
        assert!(crate::Clock::monotonic(clock) < LONG, "L1: the call does not end");
        clock.advance(Duration::from_millis(100));
    })
    .await
}

async fn poll_until<T>(call: impl Future<Output = T>, mut meanwhile: impl FnMut()) -> T {
    let mut call = pin!(call);
    poll_fn(|context| {
        let poll = call.as_mut().poll(context);
        if poll.is_pending() {
            meanwhile();
            context.waker().wake_by_ref();
        }
        poll
    })
    .await
}

/// S11: a begin or a finish that is dropped at any await leaves nothing half done, and its owner can go on.
pub async fn s11_a_dropped_call_leaves_nothing_half_done(store: Shared) {
    let engine = engine(&store);
    for awaits in 0..4 {
        let request = request(&format!("dropped at {awaits}")).owner(Owner::random());
        let begun = dropped_at(awaits, engine.begin(&request)).await;
        drop(begun);
        let lease = acquire(&engine, &request).await;
        assert_eq!(lease.attempt(), 1);
        let _ = dropped_at(awaits, lease.complete("once")).await;
        lease.complete("once").await.unwrap();
        assert_eq!(response(&engine, &request).await, "once");
        let _ = dropped_at(awaits, lease.complete("other")).await;
        assert_eq!(response(&engine, &request).await, "once");
    }
}

/// What `call` gives, or `None` if it is still not done when it has waited `awaits` times.
async fn dropped_at<T>(awaits: u32, call: impl Future<Output = T>) -> Option<T> {
    let mut call = Box::pin(call);
    let mut left = awaits;
    poll_fn(|context| match call.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

/// L2: a crashed attempt's key is granted once its lease is over, with what the attempt left.
pub async fn l2_a_crashed_key_is_granted_after_its_lease(store: Shared) {
    let engine = engine(&store);
    let request = request("crashed");
    let first = acquire(&engine, &request.clone().lease(SHORT)).await;
    first.save_checkpoint("half way").await.unwrap();
    until_over(&store, &request.id(), SHORT).await;
    let second = acquire(&engine, &request).await;
    assert_eq!((second.attempt(), second.takeover()), (2, true));
    assert_eq!(second.checkpoint().unwrap(), "half way");
    assert!(matches!(engine.begin(&request).await.unwrap(), Begin::InProgress(_)));
}

/// L6: leases and retentions of one microsecond and of for ever both lead out of every state.
pub async fn l6_extreme_durations_leave_every_state_an_exit(store: Shared) {
    let engine = engine(&store);
    for (lease, retention) in [(SHORT, SHORT), (SHORT, Duration::MAX), (Duration::MAX, Duration::MAX)] {
        let request = request(&format!("{lease:?} {retention:?}")).lease(lease).retention(retention);
        let id = request.id();
        acquire(&engine, &request).await.release().await.unwrap();
        let failed = acquire(&engine, &request).await;
        failed.fail("wait", Retry::After(Duration::MAX)).await.unwrap();
        let Begin::Failed(wait) = engine.begin(&request).await.unwrap() else { panic!("not due for ever") };
        assert!(wait.retry_after().unwrap() > LONG);
        let key = format!("{lease:?} {retention:?}");
        engine.resolve("checks", key.as_str(), failed.fence(), Resolution::Rerun).await.unwrap();
        until_over(&store, &id, SHORT).await;
        let again = acquire(&engine, &request).await;
        again.renew().await.unwrap_or_else(|error| assert_eq!(retention, SHORT, "{error}"));
        again.complete("done").await.unwrap();
        until_over(&store, &id, SHORT).await;
        match engine.begin(&request).await.unwrap() {
            Begin::Completed(done) => assert!(retention > SHORT && done.response().unwrap() == "done"),
            Begin::Acquired(_) => assert_eq!(retention, SHORT),
            other => panic!("{other:?}"),
        }
        assert!(engine.forget("checks", key.as_str()).await.unwrap() || retention == SHORT);
    }
}

/// A finish past the lease is accepted while nobody took the key, and when the record is gone, it is written anew.
pub async fn late_work_is_recorded(store: Shared) {
    let engine = engine(&store);
    crash(&engine, &store, &request("late")).await.complete("late").await.unwrap();
    assert_eq!(response(&engine, &request("late")).await, "late");
    let forgotten = acquire(&engine, &request("forgotten")).await;
    assert!(engine.forget("checks", "forgotten").await.unwrap());
    assert_eq!(lost(forgotten.renew().await), StateKind::Absent);
    forgotten.complete("all the same").await.unwrap();
    assert_eq!(response(&engine, &request("forgotten")).await, "all the same");
}

/// The four kinds of failure do what they say.
pub async fn a_failure_is_retried_as_it_says(store: Shared) {
    let engine = engine(&store);
    let fail = async |key: &str, retry: Retry| {
        let lease = acquire(&engine, &request(key)).await;
        lease.save_checkpoint("kept").await.unwrap();
        lease.fail("why", retry).await.unwrap();
    };
    fail("now", Retry::Now).await;
    fail("due", Retry::After(SHORT)).await;
    until_over(&store, &id("due"), SHORT).await;
    for key in ["now", "due"] {
        let lease = acquire(&engine, &request(key)).await;
        assert_eq!((lease.attempt(), lease.takeover()), (2, false));
        assert_eq!(lease.checkpoint().unwrap(), "kept");
    }
    fail("after", Retry::After(LONG)).await;
    fail("never", Retry::Never).await;
    for (key, waits) in [("after", true), ("never", false)] {
        let Begin::Failed(failed) = engine.begin(&request(key)).await.unwrap() else { panic!("{key}") };
        assert_eq!(failed.error().unwrap(), "why");
        assert_eq!(failed.retry_after().is_some(), waits);
    }
    fail("unresolved", Retry::Unresolved).await;
    assert_eq!(reason(&engine, &request("unresolved")).await.0, Reason::Reported);
}

/// Attempts are counted, and used up they are left to somebody who looks; each word of an operator does what it says.
pub async fn an_operator_settles_what_is_unresolved(store: Shared) {
    let engine = engine(&store);
    for resolution in [Resolution::Completed(body("done")), Resolution::Failed(body("no")), Resolution::Rerun]
    {
        let key = format!("{resolution:?}");
        let request = request(&key).max_attempts(2);
        for attempt in 1..=2 {
            let lease = acquire(&engine, &request).await;
            assert_eq!(lease.attempt(), attempt);
            lease.fail("again", Retry::Now).await.unwrap();
        }
        let (why, fence) = reason(&engine, &request).await;
        assert_eq!(why, Reason::AttemptsExhausted);
        let resolve = |fence| engine.resolve("checks", key.as_str(), fence, resolution.clone());
        assert!(matches!(resolve(fence.next()).await, Err(Error::NotResolvable { .. })));
        resolve(fence).await.unwrap();
        resolve(fence).await.unwrap();
        match (engine.begin(&request).await.unwrap(), &resolution) {
            (Begin::Completed(done), Resolution::Completed(_)) => {
                assert_eq!(done.response().unwrap(), "done")
            }
            (Begin::Failed(failed), Resolution::Failed(_)) => assert_eq!(failed.error().unwrap(), "no"),
            (Begin::Acquired(lease), Resolution::Rerun) => assert_eq!(lease.attempt(), 1),
            other => panic!("{other:?}"),
        }
    }
    let lease = acquire(&engine, &request("running")).await;
    let early = engine.resolve("checks", "running", lease.fence(), Resolution::Rerun).await;
    assert!(matches!(early, Err(Error::NotResolvable { .. })), "its lease runs");
}

fn body(text: &'static str) -> Body {
    Body::Kept(Bytes::from_static(text.as_bytes()))
}

/// Released and forgotten keys are absent: attempt 1, any payload.
pub async fn a_released_or_forgotten_key_is_absent(store: Shared) {
    let engine = engine(&store);
    acquire(&engine, &request("key")).await.release().await.unwrap();
    assert_eq!(engine.inspect("checks", "key").await.unwrap(), None);
    let other = request("key").fingerprint(Fingerprint::of("other payload"));
    let lease = acquire(&engine, &other).await;
    assert_eq!(lease.attempt(), 1);
    assert!(engine.forget("checks", "key").await.unwrap());
    assert!(!engine.forget("checks", "key").await.unwrap());
    assert_eq!(acquire(&engine, &request("key")).await.attempt(), 1);
}

/// A lease handed over by its token is renewed and finished elsewhere, and the first holder's finish is a repetition.
pub async fn a_lease_is_handed_over_by_its_token(store: Shared) {
    let here = engine(&store);
    let there = engine(&store);
    let lease = acquire(&here, &request("handed over")).await;
    lease.save_checkpoint("page 3").await.unwrap();
    let token = serde_json::from_str(&serde_json::to_string(&lease.token()).unwrap()).unwrap();
    let resumed = there.resume(&token).await.unwrap();
    assert_eq!(resumed.checkpoint().unwrap(), "page 3");
    assert_eq!((resumed.fence(), resumed.attempt()), (lease.fence(), 1));
    assert_eq!(resumed.derive_key("psp"), lease.derive_key("psp"));
    resumed.renew().await.unwrap();
    // The first holder knows an older version only: it is told the new one and carries on.
    lease.renew().await.unwrap();
    resumed.complete("there").await.unwrap();
    lease.complete("there").await.unwrap();
    assert_eq!(response(&here, &request("handed over")).await, "there");
}

/// A response over the limit is replayed as done without a body, and never executed again.
pub async fn an_oversized_response_leaves_a_marker(store: Shared) {
    let engine = Engine::builder(store.clone()).max_response(8).build().unwrap();
    let lease = acquire(&engine, &request("big")).await;
    lease.complete("nine bytes").await.unwrap();
    lease.complete("nine bytes").await.unwrap();
    assert!(matches!(lease.complete("nine bytez").await, Err(Error::AlreadyFinished { .. })));
    match engine.begin(&request("big")).await.unwrap() {
        Begin::Completed(done) => assert_eq!(done.response(), None),
        other => panic!("{other:?}"),
    }
    assert_eq!(engine.inspect("checks", "big").await.unwrap().unwrap().body_bytes, Some(10));
}

/// An operator sees where an operation stands and nothing of its content.
pub async fn an_inspection_tells_the_state(store: Shared) {
    let engine = Engine::builder(store.clone()).holder("host-7").build().unwrap();
    let lease = acquire(&engine, &request("seen")).await;
    lease.save_checkpoint("12345").await.unwrap();
    lease.mark_effect().await.unwrap();
    let seen = engine.inspect("checks", "seen").await.unwrap().unwrap();
    assert_eq!((seen.state, seen.attempt, seen.fence), (StateKind::InProgress, 1, lease.fence()));
    assert_eq!((seen.checkpoint_bytes, seen.effect_marked, seen.key), (Some(5), true, None));
    assert!(seen.lease_remaining.unwrap() <= Duration::from_secs(30));
    assert!(seen.holder.as_deref() == Some("host-7") && seen.granted_ago >= seen.age);
    let content = engine.content("checks", "seen").await.unwrap().unwrap();
    assert_eq!((content.checkpoint.unwrap(), content.response), ("12345".into(), None));
    lease.complete("abc").await.unwrap();
    let content = engine.content("checks", "seen").await.unwrap().unwrap();
    assert_eq!((content.response.unwrap(), content.checkpoint), ("abc".into(), None));
    assert_eq!(engine.content("checks", "never").await.unwrap(), None);
    let seen = engine.inspect("checks", "seen").await.unwrap().unwrap();
    assert_eq!((seen.state, seen.body_bytes, seen.lease_remaining), (StateKind::Completed, Some(3), None));
    assert_eq!(seen.scope, "checks");
}

/// S15: random histories of calls are answered as the reference model answers them.
pub async fn s15_random_histories_are_answered_as_by_the_model(store: Shared) {
    for seed in 0..60 {
        let ops = history::parse(&random_bytes(seed), &Pace::Real);
        history::run(store.clone(), &format!("seed {seed}"), &ops, &Pace::Real).await;
    }
}

/// S6, S15: so they are if now and then a call fails before or after it is done, or is done twice.
pub async fn s6_faults_change_no_answer(store: Shared) {
    for seed in 1000..1040 {
        let faulty = FaultyStore::new(store.clone());
        let mut random = StdRng::seed_from_u64(seed);
        // Never three in a row: a call that is repeated often enough to pause would be another check.
        for call in (1..600).step_by(3) {
            let fault =
                [Fault::FailBefore, Fault::FailAfter, Fault::Duplicate][random.next_u32() as usize % 3];
            faulty.on_call(call + u64::from(random.next_u32() % 2), fault);
        }
        let mut ops = history::parse(&random_bytes(seed), &Pace::Real);
        for op in &mut ops {
            // A record that is over before the repetition comes is another story.
            if let Op::Begin(ask) = op {
                ask.retention = LONG;
            }
        }
        history::run(Arc::new(faulty), &format!("seed {seed}"), &ops, &Pace::Real).await;
    }
}

fn random_bytes(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4 * 60];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}
