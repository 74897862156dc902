//! The engine over the memory store: windows, timeouts, lost answers, clocks, bounds, handover.
#![cfg(feature = "memory")]

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use nevertwice::store::{Decide, DecodeError, Label, Snapshot, Store, Swap, SwapRequest, Update};
use nevertwice::testing::{Fault, FaultyStore, block_on};
use nevertwice::{
    Begin, Clock, Durability, Engine, Error, Fingerprint, Key, Lease, LeaseToken, ManualClock, MemoryStore,
    Owner, PolicyError, RecordId, Request, Retry, Scope, Stamp, StateKind, StoreError,
};

const SECOND: Duration = Duration::from_secs(1);

fn request(key: &str) -> Request {
    Request::new("tests", key).unwrap()
}

fn setup() -> (ManualClock, FaultyStore<MemoryStore>, Engine) {
    let clock = ManualClock::new();
    let store = FaultyStore::with_clock(MemoryStore::builder().clock(clock.clone()).build(), clock.clone());
    let engine = Engine::builder(store.clone()).clock(clock.clone()).build().unwrap();
    (clock, store, engine)
}

fn acquired(begin: Result<Begin, Error>) -> Lease {
    match begin {
        Ok(Begin::Acquired(lease)) => lease,
        other => panic!("expected a lease, got {other:?}"),
    }
}

fn acquire(engine: &Engine, key: &str) -> Lease {
    acquired(block_on(engine.begin(&request(key))))
}

/// Returns the output of `call`, advancing the clock by `step` whenever it is pending.
fn driven<T>(clock: &ManualClock, step: Duration, call: impl Future<Output = T>) -> T {
    let mut call = pin!(call);
    for _ in 0..10_000 {
        match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => return value,
            Poll::Pending => clock.advance(step),
        }
    }
    panic!("L1: the call does not end");
}

#[test]
fn unsafe_windows_are_refused_with_the_numbers() {
    let build = |change: fn(nevertwice::EngineBuilder) -> nevertwice::EngineBuilder| {
        change(Engine::builder(MemoryStore::new())).build().unwrap_err().to_string()
    };
    assert_eq!(build(|b| b.lease(Duration::ZERO)), "lease must not be 0");
    assert_eq!(build(|b| b.max_attempts(0)), "max_attempts must not be 0");
    assert_eq!(build(|b| b.call_timeout(Duration::ZERO)), "call_timeout must not be 0");
    assert_eq!(build(|b| b.retention(SECOND)), "retention of 1s is shorter than the lease of 30s");
    assert_eq!(
        build(|b| b.handler_timeout(60 * SECOND)),
        "lease of 30s is shorter than the handler_timeout of 60s"
    );
    assert_eq!(
        build(|b| b.retry_horizon(259_200 * SECOND)),
        "retention of 86400s is shorter than the retry_horizon of 259200s"
    );
    assert_eq!(
        build(|b| b.require(Durability::Power)),
        "the store's durability is Memory, but Power is required"
    );
}

#[test]
fn a_request_whose_windows_are_unsafe_is_refused() {
    let (_, store, engine) = setup();
    for request in [
        request("k").lease(Duration::ZERO),
        request("k").lease(100_000 * SECOND),
        request("k").retention(SECOND),
        request("k").max_attempts(0),
    ] {
        assert!(matches!(
            block_on(engine.begin(&request)),
            Err(Error::Policy(PolicyError::Zero { .. } | PolicyError::TooShort { .. }))
        ));
    }
    assert_eq!(store.calls(), 0);
}

#[test]
fn hot_paths_cost_one_store_call() {
    let (clock, store, engine) = setup();
    let lease = acquire(&engine, "k");
    assert_eq!(store.calls(), 1);
    lease.mark_effect_and_count(&store, 2);
    block_on(lease.complete("done")).unwrap();
    assert_eq!(store.calls(), 3);
    assert!(matches!(block_on(engine.begin(&request("k"))), Ok(Begin::Completed(_))));
    assert_eq!(store.calls(), 4);
    drop(acquire(&engine, "crashed"));
    clock.advance(31 * SECOND);
    assert!(acquire(&engine, "crashed").takeover());
    assert_eq!(store.calls(), 7);
}

trait Count {
    fn mark_effect_and_count(&self, store: &FaultyStore<MemoryStore>, calls: u64);
}

impl Count for Lease {
    fn mark_effect_and_count(&self, store: &FaultyStore<MemoryStore>, calls: u64) {
        block_on(self.mark_effect()).unwrap();
        assert_eq!(store.calls(), calls);
    }
}

/// S6: any call of a whole operation may fail, before or after it is done, get no answer, or be
/// sent twice: there is one grant and one outcome.
#[test]
fn s6_a_fault_at_any_call_changes_no_answer() {
    for fault in [
        Fault::FailBefore,
        Fault::FailAfter,
        Fault::RequestLost,
        Fault::AnswerLost,
        Fault::Duplicate,
        Fault::Delay(SECOND),
    ] {
        for call in 1..=6 {
            let (clock, store, engine) = setup();
            store.on_call(call, fault);
            whole_operation(&clock, &engine, &format!("{fault:?} at call {call}"));
        }
    }
}

/// S6: the same where the store answers at once.
#[test]
fn s6_a_fault_of_an_answer_at_once_changes_no_answer() {
    for fault in [Fault::FailBefore, Fault::FailAfter, Fault::Duplicate] {
        for call in 1..=8 {
            let (clock, store, _) = setup();
            store.on_call(call, fault);
            let at_once = AtOnce(store.clone());
            let engine = Engine::builder(at_once).clock(clock.clone()).build().unwrap();
            whole_operation(&clock, &engine, &format!("{fault:?} at call {call}"));
            assert!(store.calls() >= 7, "a begin and a replay load, and five writes swap");
        }
    }
}

/// Executes an operation with every command, and replays it.
fn whole_operation(clock: &ManualClock, engine: &Engine, what: &str) {
    let step = Duration::from_millis(50);
    let lease = acquired(driven(clock, step, engine.begin(&request("k"))));
    assert_eq!(lease.attempt(), 1, "{what}");
    driven(clock, step, lease.save_checkpoint("half")).unwrap();
    driven(clock, step, lease.mark_effect()).unwrap();
    driven(clock, step, lease.renew()).unwrap();
    driven(clock, step, lease.complete("receipt")).unwrap();
    match driven(clock, step, engine.begin(&request("k"))) {
        Ok(Begin::Completed(done)) => assert_eq!(done.response().unwrap(), "receipt"),
        other => panic!("{what}: {other:?}"),
    }
}

/// A store that answers at once, with those faults of its calls that need no time.
#[derive(Debug)]
struct AtOnce(FaultyStore<MemoryStore>);

#[async_trait]
impl Store for AtOnce {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        self.0.load(id).await
    }

    async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
        self.0.swap(swap).await
    }

    fn load_now(&self, id: &RecordId) -> Option<Result<Snapshot, StoreError>> {
        Some(block_on(self.0.load(id)))
    }

    fn swap_now(&self, swap: &SwapRequest) -> Option<Result<Swap, StoreError>> {
        Some(block_on(self.0.swap(swap)))
    }
}

/// The end of a call of an [`InPlace`] store.
enum Fate {
    Done,
    AnswerLost,
}

type Before = Box<dyn FnOnce() -> Fate + Send>;

/// A store that decides under its own lock, after it has run what a test puts before the call.
struct InPlace(MemoryStore, Mutex<Option<Before>>);

impl std::fmt::Debug for InPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl InPlace {
    fn before(&self, act: impl FnOnce() -> Fate + Send + 'static) {
        *self.1.lock().unwrap() = Some(Box::new(act));
    }
}

#[async_trait]
impl Store for InPlace {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        self.0.load(id).await
    }

    async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
        self.0.swap(swap).await
    }

    fn update_now(
        &self,
        id: &RecordId,
        decide: &mut Decide<'_>,
    ) -> Option<Result<(Update, Stamp), StoreError>> {
        let before = self.1.lock().unwrap().take();
        let fate = before.map_or(Fate::Done, |before| before());
        let updated = self.0.update_now(id, decide);
        match fate {
            Fate::Done => updated,
            Fate::AnswerLost => Some(Err(StoreError::unavailable("in place", "the answer was lost"))),
        }
    }
}

fn in_place() -> (ManualClock, Arc<InPlace>, Engine) {
    let clock = ManualClock::new();
    let memory = MemoryStore::builder().clock(clock.clone()).build();
    let store = Arc::new(InPlace(memory, Mutex::default()));
    let engine = Engine::builder(store.clone()).clock(clock.clone()).build().unwrap();
    (clock, store, engine)
}

#[test]
fn s3_a_completion_in_place_that_a_release_overtakes_records_nothing() {
    let (_, store, engine) = in_place();
    let lease = Arc::new(acquire(&engine, "k"));
    let other = Arc::clone(&lease);
    store.before(move || {
        block_on(other.release()).unwrap();
        Fate::Done
    });
    assert!(matches!(block_on(lease.complete("done")), Err(Error::LeaseLost { .. })));
    assert!(store.0.is_empty());
}

/// A holder counts its lease from before the call, however long the store takes.
#[test]
fn s1_a_grant_in_place_is_counted_from_before_it_was_requested() {
    let (clock, store, engine) = in_place();
    let later = |seconds| {
        let clock = clock.clone();
        store.before(move || {
            clock.advance(seconds * SECOND);
            Fate::Done
        });
    };
    later(2);
    let lease = acquire(&engine, "k");
    assert_eq!(lease.remaining(), 28 * SECOND);
    later(3);
    block_on(lease.renew()).unwrap();
    assert_eq!(lease.remaining(), 27 * SECOND);
}

#[test]
fn s6_an_update_in_place_whose_answer_is_lost_is_recognised() {
    let (_, store, engine) = in_place();
    store.before(|| Fate::AnswerLost);
    let lease = acquire(&engine, "k");
    assert_eq!((lease.attempt(), store.0.len()), (1, 1));
    store.before(|| Fate::AnswerLost);
    block_on(lease.complete("done")).unwrap();
    assert!(matches!(block_on(engine.begin(&request("k"))), Ok(Begin::Completed(_))));
}

/// Large records are decided on outside the lock of the memory store.
#[test]
fn records_of_all_sizes_are_decided_on() {
    let (_, _, engine) = in_place();
    for bytes in [0, 256, 1024, 1025, 5000, 60_000] {
        let (key, payload) = (format!("{bytes} bytes"), vec![7; bytes]);
        let lease = acquire(&engine, &key);
        block_on(lease.save_checkpoint(payload.clone())).unwrap();
        block_on(lease.renew()).unwrap();
        let again = block_on(engine.begin(&request(&key)));
        assert!(matches!(again, Ok(Begin::InProgress(busy)) if busy.attempt() == 1));
        block_on(lease.complete(payload.clone())).unwrap();
        block_on(lease.complete(payload.clone())).unwrap();
        let done = block_on(engine.begin(&request(&key)));
        assert!(matches!(done, Ok(Begin::Completed(done)) if *done.response().unwrap() == payload));
    }
}

#[test]
fn l1_every_call_ends_by_its_deadline_on_a_store_that_hangs() {
    let (clock, store, engine) = setup();
    let lease = acquire(&engine, "held");
    let token = lease.token();
    store.from_call(1, Fault::RequestLost);
    let step = Duration::from_millis(100);
    let start = clock.monotonic();
    let mut ended = 0;
    let mut check = |result: Result<(), Error>| {
        assert!(
            matches!(result, Err(Error::TimedOut { limit, tries: 4, .. }) if limit == 5 * SECOND),
            "{result:?}"
        );
        ended += 1;
        assert!(clock.monotonic() - start <= ended * (5 * SECOND + step));
    };
    check(driven(&clock, step, engine.begin(&request("new"))).map(drop));
    check(driven(&clock, step, lease.renew()));
    check(driven(&clock, step, lease.save_checkpoint("c")));
    check(driven(&clock, step, lease.mark_effect()));
    check(driven(&clock, step, engine.resume(&token)).map(drop));
    check(driven(&clock, step, engine.inspect("tests", "held")).map(drop));
    check(driven(&clock, step, engine.forget("tests", "held")).map(drop));
    check(driven(&clock, step, engine.resolve("tests", "held", Stamp(1), nevertwice::Resolution::Rerun)));
    store.heal();
    block_on(lease.complete("in the end")).unwrap();
    let lease = acquire(&engine, "released");
    store.from_call(1, Fault::RequestLost);
    let released = driven(&clock, step, lease.release());
    assert!(matches!(released, Err(Error::TimedOut { tries: 4, .. })), "{released:?}");
    store.heal();
    // It is unknown whether the key is free, but this lease has released it.
    assert!(matches!(block_on(lease.complete("late")), Err(Error::LeaseLost { .. })));
    block_on(lease.release()).unwrap();
    assert_eq!(acquire(&engine, "released").attempt(), 1);
}

/// A completion that is in flight when its lease is released does not restore the record that the
/// release removed.
#[test]
fn s3_a_completion_that_a_release_overtakes_records_nothing() {
    let (clock, store, engine) = setup();
    let lease = acquire(&engine, "k");
    store.from_call(1, Fault::FailBefore);
    let mut completion = Box::pin(lease.complete("late"));
    let polled = completion.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "it is about to be repeated");
    store.heal();
    block_on(lease.release()).unwrap();
    let result = driven(&clock, SECOND, completion);
    assert!(matches!(result, Err(Error::LeaseLost { .. })), "{result:?}");
    assert_eq!(acquire(&engine, "k").attempt(), 1);
}

/// A renewal that is in flight when its lease is released does not report the lease as lost.
#[test]
fn a_renewal_that_a_release_overtakes_reports_no_loss() {
    let (clock, store, engine) = setup();
    let lease = acquire(&engine, "k");
    let mut context = Context::from_waker(Waker::noop());
    store.from_call(1, Fault::FailBefore);
    let mut renewal = Box::pin(lease.renew());
    assert!(renewal.as_mut().poll(&mut context).is_pending(), "it is about to be repeated");
    store.heal();
    store.on_call(store.calls() + 1, Fault::AnswerLost);
    let mut release = Box::pin(lease.release());
    assert!(release.as_mut().poll(&mut context).is_pending(), "it is done, but not answered");
    let result = driven(&clock, Duration::from_millis(1), renewal);
    assert!(matches!(result, Err(Error::LeaseLost { .. })), "{result:?}");
    assert!(!lease.is_lost());
    assert!(Box::pin(lease.lost()).as_mut().poll(&mut context).is_pending());
}

/// A finish ends with the lease, or by the policy's `finish_timeout`. Once the lease has expired,
/// or is about to, it ends by the `call_timeout` like any call.
#[test]
fn l1_a_finish_ends_by_its_deadline_on_a_store_that_hangs() {
    let step = Duration::from_millis(100);
    for (set, passed, expected) in
        [(None, 10, 20), (None, 28, 5), (None, 40, 5), (Some(7), 10, 7), (Some(3), 40, 3)]
    {
        let (clock, store, _) = setup();
        let builder = Engine::builder(store.clone()).clock(clock.clone());
        let builder = match set {
            Some(seconds) => builder.finish_timeout(seconds * SECOND),
            None => builder,
        };
        let engine = builder.build().unwrap();
        let leases = ["complete", "fail", "batch"].map(|key| acquire(&engine, key));
        store.from_call(1, Fault::RequestLost);
        clock.advance(passed * SECOND);
        let begun = clock.monotonic();
        let [complete, fail, batch] = &leases;
        let outcomes = [(batch, "c".into())];
        let all = async {
            let one = futures_util::future::join(complete.complete("c"), fail.fail("f", Retry::Never));
            futures_util::future::join(one, engine.complete_many(&outcomes)).await
        };
        let ((completed, failed), mut batched) = driven(&clock, step, all);
        let took = clock.monotonic() - begun;
        assert!(took >= expected * SECOND && took <= expected * SECOND + 5 * step, "{took:?}, {expected} s");
        for result in [completed, failed, batched.remove(0)] {
            assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
        }
    }
    let zero = Engine::builder(MemoryStore::new()).finish_timeout(Duration::ZERO).build();
    assert!(matches!(zero, Err(PolicyError::Zero { what: "finish_timeout" })));
}

/// A finish without an answer is repeated as soon as any other call, however long its time limit.
#[test]
fn a_finish_without_an_answer_does_not_wait_for_half_a_lease() {
    let (clock, store, engine) = setup();
    let lease = acquire(&engine, "k");
    store.on_call(2, Fault::RequestLost);
    let begun = clock.monotonic();
    driven(&clock, Duration::from_millis(100), lease.complete("done")).unwrap();
    assert!(clock.monotonic() - begun <= 3 * SECOND);
}

#[test]
fn s11_a_begin_that_timed_out_is_found_again_by_its_owner() {
    let (clock, store, engine) = setup();
    let owner = Owner::random().unwrap();
    store.from_call(1, Fault::AnswerLost);
    let result = driven(&clock, SECOND, engine.begin(&request("k").owner(owner)));
    assert!(matches!(result, Err(Error::TimedOut { .. })));
    store.heal();
    assert!(matches!(block_on(engine.begin(&request("k"))), Ok(Begin::InProgress(_))));
    let lease = acquired(block_on(engine.begin(&request("k").owner(owner))));
    assert_eq!(lease.attempt(), 1);
    assert!(lease.remaining() < 26 * SECOND, "the time that was lost is counted");
}

/// A holder counts its time from before it sent the begin: a slow answer leaves it less time, never
/// more.
#[test]
fn s13_a_holder_never_believes_in_more_than_it_was_granted() {
    let (clock, store, engine) = setup();
    store.on_call(1, Fault::Delay(SECOND));
    let lease = acquired(driven(&clock, SECOND, engine.begin(&request("k"))));
    assert_eq!(lease.remaining(), 29 * SECOND);
    clock.advance(20 * SECOND);
    assert_eq!(lease.remaining(), 9 * SECOND);
    block_on(lease.renew()).unwrap();
    assert_eq!(lease.remaining(), 30 * SECOND);
    clock.advance(31 * SECOND);
    assert_eq!(lease.remaining(), Duration::ZERO);
    // No other caller took the key meanwhile: the lease can still be renewed, and then counts anew.
    block_on(lease.renew()).unwrap();
    assert_eq!(lease.remaining(), 30 * SECOND);
    block_on(lease.complete("done")).unwrap();
    assert_eq!(lease.remaining(), Duration::ZERO);
}

/// Callers' clocks decide nothing: an engine whose clock is a year ahead takes over no running
/// lease.
#[test]
fn s13_callers_clocks_change_no_decision() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let ahead = ManualClock::starting_at(clock.wall() + 365 * 86_400 * SECOND);
    ahead.advance(1_000_000 * SECOND);
    let one = Engine::builder(store.clone()).clock(clock.clone()).build().unwrap();
    let other = Engine::builder(store).clock(ahead).build().unwrap();
    let lease = acquire(&one, "k");
    assert!(
        matches!(block_on(other.begin(&request("k"))), Ok(Begin::InProgress(busy)) if busy.lease_remaining() == 30 * SECOND)
    );
    clock.set_wall(Duration::ZERO);
    assert!(matches!(block_on(other.begin(&request("k"))), Ok(Begin::InProgress(_))));
    clock.advance(30 * SECOND);
    assert!(acquire(&other, "k").fence() > lease.fence());
}

#[test]
fn l2_a_lease_ends_exactly_when_its_time_is_over() {
    let (clock, _, engine) = setup();
    drop(acquire(&engine, "k"));
    clock.advance(30 * SECOND - Duration::from_micros(1));
    assert!(matches!(block_on(engine.begin(&request("k"))),
        Ok(Begin::InProgress(busy)) if busy.lease_remaining() == Duration::from_micros(1)));
    clock.advance(Duration::from_micros(1));
    assert!(acquire(&engine, "k").takeover());
}

/// The scope is read back without any of the bytes stored after it.
#[test]
fn s7_a_scope_comes_back_as_it_was_stored() {
    let (_, store, engine) = setup();
    for length in [1, 5, 47, 48, 60] {
        let scope = "s".repeat(length);
        let request = Request::new(scope.as_str(), "k").unwrap().fingerprint(Fingerprint::of("payload"));
        let lease = acquired(block_on(engine.begin(&request)));
        block_on(lease.complete(vec![0xff; 300])).unwrap();
        let id = RecordId::new(&Scope::try_from(scope.as_str()).unwrap(), &Key::try_from("k").unwrap());
        let found = block_on(store.load(&id)).unwrap();
        let shown = if length > 48 { format!("{}…", &scope[..45]) } else { scope };
        assert_eq!(found.record.unwrap().scope, Label::new(&shown), "{length} bytes");
    }
}

#[test]
fn only_what_a_crash_left_behind_is_a_takeover() {
    let (clock, _, engine) = setup();
    let first = acquire(&engine, "k");
    assert!(!first.takeover());
    block_on(first.fail("busy", Retry::Now)).unwrap();
    let second = acquire(&engine, "k");
    assert_eq!((second.attempt(), second.takeover()), (2, false));
    drop(second);
    clock.advance(30 * SECOND);
    let third = acquire(&engine, "k");
    assert_eq!((third.attempt(), third.takeover()), (3, true));
    // It stays a takeover where the lease is handed over, while it is held.
    assert!(block_on(engine.resume(&third.token())).unwrap().takeover());
    block_on(third.complete("done")).unwrap();
    assert!(!block_on(engine.resume(&third.token())).unwrap().takeover());
}

#[test]
fn s2_an_outcome_is_kept_until_its_retention_is_over() {
    let (clock, store, engine) = setup();
    block_on(acquire(&engine, "k").complete("done")).unwrap();
    clock.advance(86_400 * SECOND - Duration::from_micros(1));
    block_on(engine.purge(10)).unwrap();
    assert!(matches!(block_on(engine.begin(&request("k"))), Ok(Begin::Completed(_))));
    clock.advance(Duration::from_micros(1));
    assert_eq!(acquire(&engine, "k").attempt(), 1);
    assert_eq!(store.inner().len(), 1);
}

/// A handle with an outdated stamp does not mistake another handle's renewal for its own.
#[test]
fn l3_a_renewal_that_is_ok_has_renewed() {
    let (clock, _, engine) = setup();
    let lease = acquire(&engine, "k");
    let other = block_on(engine.resume(&lease.token())).unwrap();
    clock.advance(SECOND);
    block_on(other.renew()).unwrap();
    clock.advance(28 * SECOND);
    block_on(lease.renew()).unwrap();
    assert_eq!(lease.remaining(), 30 * SECOND);
    clock.advance(20 * SECOND);
    assert!(matches!(block_on(engine.begin(&request("k"))), Ok(Begin::InProgress(_))));
}

#[test]
fn l3_a_holder_that_lost_relies_on_nothing() {
    let (_, _, engine) = setup();
    let lost = acquire(&engine, "k");
    block_on(engine.forget("tests", "k")).unwrap();
    let successor = acquire(&engine, "k");
    assert!(block_on(lost.renew()).is_err());
    assert_eq!(lost.remaining(), Duration::ZERO);
    let late = block_on(engine.resume(&successor.token())).unwrap();
    block_on(successor.complete("one")).unwrap();
    assert!(matches!(block_on(late.complete("other")), Err(Error::AlreadyFinished { .. })));
    assert_eq!(late.remaining(), Duration::ZERO);
}

/// The retention counts from the end of the lease: even if the two are equally long, a crash leaves
/// its evidence.
#[test]
fn s8_a_marked_effect_outlives_a_lease_as_long_as_the_retention() {
    let (clock, _, engine) = setup();
    let request = request("k").lease(30 * SECOND).retention(30 * SECOND).max_attempts(1);
    block_on(acquired(block_on(engine.begin(&request))).mark_effect()).unwrap();
    clock.advance(59 * SECOND);
    assert!(matches!(block_on(engine.begin(&request)), Ok(Begin::Unresolved(_))));
    // It also outlives a failure with a retry time longer than that.
    let request = self::request("waits").lease(30 * SECOND).retention(30 * SECOND).max_attempts(1);
    block_on(acquired(block_on(engine.begin(&request))).fail("busy", Retry::After(120 * SECOND))).unwrap();
    clock.advance(120 * SECOND);
    assert!(matches!(block_on(engine.begin(&request)), Ok(Begin::Unresolved(_))));
}

#[test]
fn l1_a_purge_of_a_store_that_hangs_ends() {
    let (clock, store, engine) = setup();
    store.from_call(1, Fault::RequestLost);
    let result = driven(&clock, SECOND, engine.purge(10));
    assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
}

#[test]
fn l1_pauses_between_tries_do_not_outlast_the_deadline() {
    let (clock, store, _) = setup();
    let limit = Duration::from_millis(130);
    let engine = Engine::builder(store.clone()).clock(clock.clone()).call_timeout(limit).build().unwrap();
    store.from_call(1, Fault::FailBefore);
    let start = clock.monotonic();
    assert!(driven(&clock, Duration::from_millis(1), engine.begin(&request("k"))).is_err());
    assert!(clock.monotonic() - start <= limit + Duration::from_millis(1));
}

#[test]
fn l1_a_store_that_takes_two_seconds_is_slow_and_not_gone() {
    let (clock, store, engine) = setup();
    store.from_call(1, Fault::Delay(2 * SECOND));
    drop(acquired(driven(&clock, Duration::from_millis(10), engine.begin(&request("k")))));
}

/// Engines with different limits on responses agree on what is a repetition.
#[test]
fn s6_a_finish_repeated_under_another_limit_is_the_same() {
    let store = MemoryStore::new();
    let short = Engine::builder(store.clone()).max_response(8).build().unwrap();
    let long = Engine::builder(store).build().unwrap();
    for (first, second, key) in [(&short, &long, "a"), (&long, &short, "b")] {
        let lease = acquire(first, key);
        block_on(lease.complete("nine bytes")).unwrap();
        let again = block_on(second.resume(&lease.token())).unwrap();
        block_on(again.complete("nine bytes")).unwrap();
        assert!(block_on(again.complete("nine bytez")).is_err());
    }
}

#[test]
fn no_debug_shows_a_key_or_a_payload() {
    use nevertwice::decide::{Command, Reply};
    let engine = Engine::builder(MemoryStore::new()).keep_keys(true).build().unwrap();
    let lease = acquire(&engine, "SECRET");
    let inspection = block_on(engine.inspect("tests", "SECRET")).unwrap();
    let secret = bytes::Bytes::from_static(b"SECRET");
    let unresolved = Reply::Unresolved {
        reason: nevertwice::Reason::Reported,
        fence: Stamp(1),
        attempt: 1,
        error: None,
        checkpoint: Some(secret.clone()),
    };
    let checkpoint = Command::Checkpoint(lease.token(), secret);
    for shown in [
        format!("{inspection:?}"),
        format!("{unresolved:?}"),
        format!("{checkpoint:?}"),
        format!("{lease:?}"),
        format!("{:?}", request("SECRET")),
    ] {
        assert!(!shown.contains("SECRET"), "{shown}");
    }
}

/// Even while time stands still, and after an unreadable record was discarded.
#[test]
fn s5_fences_increase_while_time_stands_still() {
    let (_, store, engine) = setup();
    let mut last = Stamp::ZERO;
    for round in 0..20 {
        let lease = acquire(&engine, "k");
        assert!(lease.fence() > last, "round {round}");
        last = lease.fence();
        match round % 3 {
            0 => block_on(lease.release()).unwrap(),
            1 => assert!(block_on(engine.forget("tests", "k")).unwrap()),
            _ => assert!(block_on(store.discard(&request("k").id())).unwrap()),
        }
    }
}

/// An owner that returns long after it marked its effect has crashed like any other.
#[test]
fn s8_a_marked_effect_is_not_handed_out_again_to_its_own_owner() {
    let (clock, _, engine) = setup();
    let request = request("k").owner(Owner::random().unwrap());
    let lease = acquired(block_on(engine.begin(&request)));
    block_on(lease.mark_effect()).unwrap();
    assert!(matches!(block_on(engine.begin(&request)), Ok(Begin::InProgress(_))), "its lease runs");
    drop(lease);
    clock.advance(31 * SECOND);
    assert!(matches!(block_on(engine.begin(&request)), Ok(Begin::Unresolved(_))));
}

/// A holder whose operation an operator ordered to be rerun learns that it lost its lease, not that
/// it finished with another outcome.
#[test]
fn s3_a_grant_that_an_operator_ordered_to_be_rerun_counts_no_more() {
    let (clock, _, engine) = setup();
    let lease = acquire(&engine, "k");
    clock.advance(31 * SECOND);
    block_on(engine.resolve("tests", "k", lease.fence(), nevertwice::Resolution::Rerun)).unwrap();
    assert!(matches!(block_on(lease.complete("late")), Err(Error::LeaseLost { .. })));
    assert!(matches!(block_on(lease.fail("", Retry::Now)), Err(Error::LeaseLost { .. })));
    assert_eq!(acquire(&engine, "k").attempt(), 1);
}

/// A call gives up, after pauses, on a store that always reports a lost race.
#[test]
fn l1_a_race_that_is_always_lost_ends() {
    #[derive(Debug)]
    struct Rigged {
        swaps: std::sync::atomic::AtomicU64,
        at_once: bool,
    }
    #[async_trait]
    impl Store for Rigged {
        async fn load(&self, _: &RecordId) -> Result<Snapshot, StoreError> {
            Ok(Snapshot { record: None, now: Stamp(1) })
        }
        async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
            let swaps = self.swaps.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            assert!(swaps < 200, "it does not pause");
            self.load(&swap.id).await.map(Swap::Conflict)
        }
        fn swap_now(&self, swap: &SwapRequest) -> Option<Result<Swap, StoreError>> {
            self.at_once.then(|| block_on(self.swap(swap)))
        }
    }
    for at_once in [false, true] {
        let clock = ManualClock::new();
        let store = Arc::new(Rigged { swaps: 0.into(), at_once });
        let engine = Engine::builder(store.clone()).clock(clock.clone()).build().unwrap();
        let result = driven(&clock, Duration::from_millis(10), engine.begin(&request("k")));
        assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
    }
}

/// A small response that is a slice of a large buffer does not keep the buffer in memory.
#[test]
fn l5_a_small_response_does_not_keep_a_large_buffer() {
    let (_, _, engine) = setup();
    let large = bytes::Bytes::from(vec![7; 1 << 20]);
    let lease = acquire(&engine, "k");
    block_on(lease.complete(large.slice(..10))).unwrap();
    drop(lease);
    assert!(large.is_unique());
}

/// A heartbeat concurrent with a finish, in either order and with a stale view of the record, does
/// no harm.
#[test]
fn s6_a_renewal_beside_a_complete_does_no_harm() {
    let (_, _, engine) = setup();
    let lease = acquire(&engine, "k");
    let heartbeat = block_on(engine.resume(&lease.token())).unwrap();
    block_on(heartbeat.renew()).unwrap();
    block_on(lease.complete("done")).unwrap();
    assert!(matches!(block_on(heartbeat.renew()),
        Err(Error::LeaseLost { current }) if current.state == StateKind::Completed));
    assert!(matches!(block_on(engine.begin(&request("k"))), Ok(Begin::Completed(_))));
}

#[test]
fn s8_a_dropped_lease_writes_nothing_and_runs_out() {
    let (clock, store, engine) = setup();
    drop(acquire(&engine, "k"));
    assert_eq!(store.calls(), 1);
    clock.advance(29 * SECOND);
    assert!(matches!(block_on(engine.begin(&request("k"))), Ok(Begin::InProgress(_))));
}

#[test]
fn a_full_memory_store_refuses_begins_and_no_finish() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().max_records(3).clock(clock.clone()).build();
    let engine = Engine::builder(store.clone()).clock(clock.clone()).build().unwrap();
    let leases: Vec<Lease> = (0..3).map(|key| acquire(&engine, &key.to_string())).collect();
    let refused = block_on(engine.begin(&request("one too many")));
    let Err(Error::Store(full @ StoreError::Full { .. })) = refused else { panic!("{refused:?}") };
    assert!(full.to_string().starts_with("memory store is full: 3 records of 3"), "{full}");
    // A finish is not refused, even for a record that was forgotten meanwhile.
    assert!(block_on(engine.forget("tests", "0")).unwrap());
    drop(acquire(&engine, "takes its place"));
    for lease in &leases {
        block_on(lease.complete("done")).unwrap();
    }
    assert_eq!(store.len(), 4);
    // A day later everything has expired and makes room by itself.
    clock.advance(2 * 86_400 * SECOND);
    let fresh =
        (0..100).filter(|key| block_on(engine.begin(&request(&format!("new {key}")))).is_ok()).count();
    assert!(fresh >= 3, "{fresh}");
}

/// S12: one tenant's flood is refused, but neither other tenants' begins nor any finish.
#[test]
fn s12_a_scope_over_its_quota_is_refused_begins_and_no_finish() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().max_records_per_scope(3).clock(clock.clone()).build();
    let engine = Engine::builder(store).clock(clock.clone()).build().unwrap();
    let begin =
        |scope: &str, key: usize| block_on(engine.begin(&Request::new(scope, key.to_string()).unwrap()));
    let leases: Vec<Lease> = (0..3).map(|key| acquired(begin("flood", key))).collect();
    let refused = begin("flood", 3).unwrap_err().to_string();
    assert_eq!(refused, "memory store is full: 3 records of 3 for one scope");
    drop(acquired(begin("other", 3)));
    assert!(matches!(begin("flood", 0), Ok(Begin::InProgress(_))), "a duplicate is answered");
    leases.iter().for_each(|lease| block_on(lease.complete("done")).unwrap());
    assert!(block_on(engine.forget("flood", "0")).unwrap());
    drop(acquired(begin("flood", 4)));
    assert!(begin("flood", 5).is_err());
    // A forgotten record can still be finished, and expired records make room.
    block_on(leases[0].complete("done")).unwrap();
    clock.advance(3 * 86_400 * SECOND);
    (6..9).for_each(|key| drop(acquired(begin("flood", key))));
    assert!(begin("flood", 9).is_err());
}

#[test]
fn a_memory_store_is_bounded_by_bytes() {
    let engine = Engine::builder(MemoryStore::builder().max_bytes(100_000).build()).build().unwrap();
    let begun = (0..1000)
        .map(|key| block_on(engine.begin(&request(&key.to_string()))))
        .take_while(|begin| matches!(begin, Ok(Begin::Acquired(_))))
        .count();
    assert!((100..1000).contains(&begun), "{begun}");
}

#[test]
fn l5_purge_keeps_storage_proportional_to_live_records_in_bounded_steps() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let engine = Engine::builder(store.clone()).clock(clock.clone()).build().unwrap();
    for key in 0..500 {
        block_on(acquire(&engine, &key.to_string()).complete("done")).unwrap();
    }
    clock.advance(2 * 86_400 * SECOND);
    drop(acquire(&engine, "live"));
    assert_eq!(block_on(engine.purge(100)).unwrap(), 100);
    let before = store.len();
    let rest = block_on(engine.purge(usize::MAX)).unwrap();
    assert_eq!((before as u64 - rest, store.len()), (1, 1));
    // Without any purge, new records free the room of old ones.
    for day in 0..20 {
        for key in 0..100 {
            block_on(acquire(&engine, &format!("{day} {key}")).complete("done")).unwrap();
        }
        clock.advance(2 * 86_400 * SECOND);
    }
    assert!(store.len() <= 400, "{}", store.len());
}

#[test]
fn s1_threads_race_for_one_key() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    for round in 0..50 {
        let key = round.to_string();
        let granted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| matches!(block_on(engine.begin(&request(&key))), Ok(Begin::Acquired(_))))
                })
                .collect();
            threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum()
        });
        assert_eq!(granted, 1);
    }
}

#[test]
fn a_token_tells_no_key_and_an_unknown_version_is_refused() {
    let (_, _, engine) = setup();
    let lease = acquired(block_on(engine.begin(&Request::new("scope", "secret-key").unwrap())));
    let json = serde_json::to_value(lease.token()).unwrap();
    assert!(!json.to_string().contains("secret") && !format!("{:?}", lease.token()).contains("owner"));
    let mut newer = json.clone();
    newer["version"] = 3.into();
    let refused = serde_json::from_value::<LeaseToken>(newer).unwrap_err().to_string();
    assert_eq!(refused, "lease token of version 3, this release reads 2");
    for (field, value) in [
        ("owner", serde_json::json!("zz")),
        ("fence", 0.into()),
        ("fence", u64::MAX.into()),
        ("attempt", 0.into()),
        ("scope", "x".repeat(49).into()),
        ("key", "x".repeat(2000).into()),
    ] {
        let mut damaged = json.clone();
        damaged[field] = value;
        assert!(serde_json::from_value::<LeaseToken>(damaged).is_err(), "{field}");
    }
}

#[test]
fn a_derived_key_is_the_same_on_every_attempt_and_another_elsewhere() {
    let (clock, _, engine) = setup();
    let first = acquire(&engine, "k");
    let key = first.derive_key("psp");
    assert_eq!((key.len(), &key), (32, &first.derive_key("psp")));
    assert_ne!(key, first.derive_key("mail"));
    assert_ne!(key, acquire(&engine, "other").derive_key("psp"));
    clock.advance(31 * SECOND);
    assert_eq!(acquire(&engine, "k").derive_key("psp"), key);
}

#[test]
fn a_checkpoint_over_the_limit_is_refused_and_nothing_written() {
    let (_, store, engine) = setup();
    let lease = acquire(&engine, "k");
    let error = block_on(lease.save_checkpoint(vec![0; 65_537])).unwrap_err();
    assert_eq!(error.to_string(), "checkpoint of 65537 bytes is over the limit of 65536");
    assert_eq!(store.calls(), 1);
}

#[test]
fn keys_are_kept_only_where_the_policy_says_so() {
    let store = MemoryStore::new();
    let engine = Engine::builder(store).keep_keys(true).build().unwrap();
    block_on(acquire(&engine, "a key").complete("done")).unwrap();
    let seen = block_on(engine.inspect("tests", "a key")).unwrap().unwrap();
    assert_eq!(seen.key.as_deref(), Some("a key"));
}

#[test]
fn an_engine_accepts_a_shared_store() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let one = Engine::builder(store.clone()).build().unwrap();
    let other = Engine::builder(store).build().unwrap();
    drop(acquire(&one, "k"));
    assert!(matches!(block_on(other.begin(&request("k"))), Ok(Begin::InProgress(_))));
}

/// A store with an unreadable record under every id.
#[derive(Debug)]
struct Damaged(DecodeError);

#[async_trait]
impl Store for Damaged {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        Err(StoreError::Corrupt { backend: "damaged store", id: *id, source: self.0 })
    }

    async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
        self.load(&swap.id).await.map(Swap::Conflict)
    }

    async fn discard(&self, _: &RecordId) -> Result<bool, StoreError> {
        Ok(true)
    }
}

#[test]
fn s10_an_unreadable_record_is_no_grant_until_an_operator_forgets_it() {
    let damaged = DecodeError::Damaged { what: "test" };
    let engine = Engine::builder(Damaged(damaged)).build().unwrap();
    let error = block_on(engine.begin(&request("k"))).unwrap_err();
    assert!(matches!(error, Error::Store(StoreError::Corrupt { .. })));
    assert!(error.to_string().starts_with("damaged store holds no readable record under "));
    assert!(block_on(engine.forget("tests", "k")).unwrap());
}

#[test]
fn s14_a_record_of_a_newer_release_is_not_even_forgotten() {
    let engine = Engine::builder(Damaged(DecodeError::NewerVersion { found: 9 })).build().unwrap();
    assert!(block_on(engine.begin(&request("k"))).is_err());
    assert!(block_on(engine.forget("tests", "k")).is_err());
}

#[test]
fn owners_do_not_repeat() {
    let owners: std::collections::HashSet<Owner> = (0..10_000).map(|_| Owner::random().unwrap()).collect();
    assert_eq!(owners.len(), 10_000);
}

/// Failed keys take a second step, each on its own. Every answer must still reach its own request.
#[test]
fn s3_what_of_a_batch_goes_on_one_by_one_is_answered_to_its_own() {
    let (_, _, engine) = setup();
    let keys = ["a", "b", "c"];
    for key in keys {
        block_on(acquire(&engine, key).fail("not yet", Retry::Now)).unwrap();
    }
    let begins = block_on(engine.begin_many(&keys.map(request)));
    for (key, begin) in keys.into_iter().zip(begins) {
        block_on(acquired(begin).complete(key)).unwrap();
        let Begin::Completed(done) = block_on(engine.begin(&request(key))).unwrap() else { panic!("{key}") };
        assert_eq!(done.response().unwrap(), key);
    }
}
