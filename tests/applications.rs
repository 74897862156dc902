//! The calls of applications: waiting, run, batches, purging; on the memory store and a manual
//! clock.
#![cfg(feature = "memory")]

#[path = "support/manual.rs"]
mod manual;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use nevertwice::testing::{Fault, FaultyStore, block_on};
use nevertwice::{
    Begin, Clock, Engine, Error, Failure, Fingerprint, Lease, ManualClock, MemoryStore, Outcome, PurgePlan,
    Purged, Reason, Request, Resolution, Retry, RunError, StateKind,
};
use serde::{Deserialize, Serialize};

use manual::{SECOND, acquire, driven, poll, request, setup};

// Waiting

#[test]
fn l4_a_thousand_waiters_cost_a_handful_of_store_calls() {
    let (_, store, engine) = setup();
    let lease = acquire(&engine, "k");
    let request = request("k");
    let mut waits = Box::pin(join_all((0..1000).map(|_| engine.begin_or_wait(&request, 10 * SECOND))));
    assert!(poll(&mut waits).is_none());
    let before = store.calls();
    block_on(lease.complete("outcome")).unwrap();
    for begin in block_on(waits) {
        assert!(matches!(begin.unwrap(), Begin::Completed(done) if done.response().unwrap() == "outcome"));
    }
    assert!(store.calls() - before <= 3, "{} store calls", store.calls() - before);
}

#[test]
fn l4_a_wait_that_is_over_is_no_grant() {
    let (clock, _, engine) = setup();
    let lease = acquire(&engine, "k");
    match driven(&clock, SECOND, engine.begin_or_wait(&request("k"), 5 * SECOND)) {
        Ok(Begin::InProgress(busy)) => {
            assert_eq!((busy.lease_remaining(), busy.retry_after()), (25 * SECOND, 4 * SECOND));
        }
        other => panic!("{other:?}"),
    }
    block_on(lease.complete("done")).unwrap();
    assert!(matches!(block_on(engine.begin_or_wait(&request("k"), Duration::ZERO)), Ok(Begin::Completed(_))));
}

#[test]
fn l2_a_waiter_takes_over_when_the_holders_lease_is_over() {
    let (clock, _, engine) = setup();
    drop(acquire(&engine, "k"));
    match driven(&clock, SECOND, engine.begin_or_wait(&request("k"), 60 * SECOND)) {
        Ok(Begin::Acquired(lease)) => assert!(lease.takeover() && lease.attempt() == 2),
        other => panic!("{other:?}"),
    }
}

#[test]
fn s8_a_waiter_of_a_marked_effect_is_not_granted() {
    let (clock, _, engine) = setup();
    let lease = acquire(&engine, "k");
    block_on(lease.mark_effect()).unwrap();
    drop(lease);
    let begin = driven(&clock, SECOND, engine.begin_or_wait(&request("k"), 60 * SECOND));
    assert!(matches!(begin, Ok(Begin::Unresolved(unknown)) if unknown.reason() == Reason::EffectMarked));
}

#[test]
fn waiters_beyond_the_limit_are_told_at_once() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let engine = Engine::builder(store).clock(clock).max_waiters(2).build().unwrap();
    let lease = acquire(&engine, "k");
    let request = request("k");
    let mut waits: Vec<_> = (0..3).map(|_| Box::pin(engine.begin_or_wait(&request, 10 * SECOND))).collect();
    assert!(poll(&mut waits[0]).is_none() && poll(&mut waits[1]).is_none());
    assert!(matches!(poll(&mut waits[2]), Some(Ok(Begin::InProgress(_)))));
    // A waiter that is dropped makes room.
    drop(waits.remove(0));
    assert!(poll(&mut Box::pin(engine.begin_or_wait(&request, 10 * SECOND))).is_none());
    block_on(lease.complete("done")).unwrap();
    assert!(matches!(poll(&mut waits[0]), Some(Ok(Begin::Completed(_)))));
}

/// Neither one key nor one tenant can take every waiter slot: each has its own bound, and scopes
/// are distinguished by their whole text.
#[test]
fn waiters_of_one_key_or_one_scope_leave_places_to_others() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let engine = Engine::builder(store).clock(clock).max_waiters(6);
    let engine = engine.max_waiters_per_key(2).max_waiters_per_scope(3).build().unwrap();
    // The first 48 bytes, which operators see, are the same.
    let tenants = ["hostile", "victim", "other"].map(|name| format!("{}/{name}", "t".repeat(60)));
    let request = |tenant: usize, key: &str| Request::new(tenants[tenant].as_str(), key).unwrap();
    let requests = [(0, "a"), (0, "b"), (1, "a"), (2, "a")].map(|(tenant, key)| request(tenant, key));
    for request in &requests {
        assert!(matches!(block_on(engine.begin(request)), Ok(Begin::Acquired(_))));
    }
    let wait = |request: usize| {
        let mut wait = Box::pin(engine.begin_or_wait(&requests[request], 10 * SECOND));
        let refused = matches!(poll(&mut wait), Some(Ok(Begin::InProgress(_))));
        (!refused).then_some(wait)
    };
    let [hostile_a, hostile_b, victim, other] = [0, 1, 2, 3];
    let mut waits: Vec<_> = [hostile_a, hostile_a, hostile_b].map(|at| wait(at).unwrap()).into();
    assert!(wait(hostile_a).is_none() && wait(hostile_b).is_none());
    waits.extend([victim, victim].map(|at| wait(at).unwrap()));
    assert!(wait(victim).is_none(), "two of its key already");
    waits.push(wait(other).unwrap());
    assert!(wait(other).is_none(), "six in all already");
    drop(waits.remove(0));
    assert!(wait(hostile_b).is_some(), "a waiter that leaves makes room");
    waits.clear();
    assert!([hostile_a, hostile_a, hostile_b].map(wait).iter().all(Option::is_some));
}

/// The defaults stop a storm of duplicates of one key before it takes every waiter slot.
#[test]
fn by_default_a_tenth_of_the_waiters_may_wait_for_one_key() {
    let policy = nevertwice::Policy::default();
    assert_eq!((policy.max_waiters, policy.max_waiters_per_key), (10_000, 1_000));
    assert_eq!(policy.max_waiters_per_scope, 5_000);
}

/// A store is created and used on a small stack: threads of other runtimes may have no more.
#[test]
fn a_memory_store_is_made_on_a_stack_of_96_kib() {
    let thread = std::thread::Builder::new().stack_size(96 * 1024).spawn(|| {
        let engine = Engine::builder(MemoryStore::new()).build().unwrap();
        acquire(&engine, "k").complete("done").now_or_never().unwrap().unwrap();
    });
    thread.unwrap().join().unwrap();
}

#[test]
fn s4_a_waiter_with_another_payload_does_not_wait() {
    let (_, _, engine) = setup();
    let lease = acquire(&engine, "k");
    let other = request("k").fingerprint(Fingerprint::of("other"));
    let begin = engine.begin_or_wait(&other, 10 * SECOND).now_or_never().unwrap();
    assert!(matches!(begin, Ok(Begin::Mismatch(_))));
    drop(lease);
}

/// S11: any waiter may be dropped, including the one whose task polls the store for all: the others
/// are woken.
#[test]
fn s11_a_dropped_waiter_takes_no_other_with_it() {
    let (_, _, engine) = setup();
    let lease = acquire(&engine, "k");
    let request = request("k");
    let mut waits: Vec<_> = (0..5).map(|_| Box::pin(engine.begin_or_wait(&request, 10 * SECOND))).collect();
    waits.iter_mut().for_each(|wait| assert!(poll(wait).is_none()));
    drop(waits.remove(0));
    block_on(lease.renew()).unwrap();
    waits.iter_mut().for_each(|wait| assert!(poll(wait).is_none()));
    drop(waits.remove(0));
    block_on(lease.complete("done")).unwrap();
    for mut wait in waits {
        assert!(matches!(poll(&mut wait), Some(Ok(Begin::Completed(_)))));
    }
}

#[test]
fn s10_a_waiter_on_a_store_that_fails_waits_on_and_is_answered() {
    for fault in [Fault::FailBefore, Fault::FailAfter, Fault::RequestLost, Fault::AnswerLost] {
        for call in 2..=5 {
            let (clock, store, engine) = setup();
            let lease = acquire(&engine, "k");
            store.on_call(call, fault);
            let request = request("k");
            let mut wait = Box::pin(engine.begin_or_wait(&request, 25 * SECOND));
            assert!(poll(&mut wait).is_none());
            driven(&clock, Duration::from_millis(50), lease.complete("done")).unwrap();
            let begin = driven(&clock, Duration::from_millis(50), wait);
            assert!(matches!(begin, Ok(Begin::Completed(_))), "{fault:?} at call {call}: {begin:?}");
        }
    }
}

// Losing a lease

#[test]
fn l3_a_holder_learns_that_it_lost_before_anyone_else_is_granted() {
    let (clock, _, engine) = setup();
    let lease = acquire(&engine, "k");
    let mut lost = Box::pin(lease.lost());
    clock.advance(20 * SECOND);
    block_on(lease.renew()).unwrap();
    clock.advance(29 * SECOND);
    assert!(poll(&mut lost).is_none() && !lease.is_lost());
    assert!(matches!(block_on(engine.begin(&request("k"))), Ok(Begin::InProgress(_))));
    clock.advance(SECOND);
    assert!(poll(&mut lost).is_some() && lease.is_lost());
    drop(lost);
    let successor = acquire(&engine, "k");
    assert!(lease.is_lost() && block_on(lease.renew()).is_err() && lease.is_lost());
    block_on(successor.complete("done")).unwrap();
    assert!(
        !successor.is_lost() && successor.lost().now_or_never().is_none(),
        "a finished lease is not lost"
    );
}

/// A lease that its holder finished itself is not lost, whatever its later calls return.
#[test]
fn l3_a_finished_lease_is_not_lost_by_a_late_renewal() {
    let (_, _, engine) = setup();
    let lease = acquire(&engine, "k");
    block_on(lease.complete("one")).unwrap();
    assert!(block_on(lease.renew()).is_err() && block_on(lease.complete("other")).is_err());
    assert!(!lease.is_lost() && lease.lost().now_or_never().is_none());
    assert_eq!(lease.remaining(), Duration::ZERO);
}

/// With a lease far shorter than the timeout of calls, a renewal without an answer leaves time for
/// the next.
#[test]
fn l3_a_short_lease_survives_renewals_without_an_answer() {
    let clock = ManualClock::new();
    let store = FaultyStore::with_clock(MemoryStore::builder().clock(clock.clone()).build(), clock.clone());
    let lease = Duration::from_millis(600);
    let engine = Engine::builder(store.clone()).clock(clock.clone()).lease(lease).build().unwrap();
    let (request, work) = (request("k"), clock.clone());
    let mut run = Box::pin(engine.run(&request, |lease: Arc<Lease>| async move {
        Clock::sleep(&work, SECOND).await;
        assert!(!lease.is_lost());
        Ok::<_, Trouble>("short".to_owned())
    }));
    assert!(poll(&mut run).is_none());
    for call in 2..=5 {
        store.on_call(call, Fault::RequestLost);
    }
    assert!(!driven(&clock, Duration::from_millis(10), run).unwrap().is_replayed());
}

/// S8: a handler that returned an oversized value is not run again, under any policy for oversized
/// values.
#[test]
fn s8_run_records_what_is_too_long_and_does_not_repeat_it() {
    let (clock, store, _) = setup();
    let builder = Engine::builder(store).clock(clock.clone()).max_response(10);
    let engine = builder.oversized(nevertwice::Oversized::Refuse).build().unwrap();
    let long = "far longer than ten bytes";
    assert_eq!(run(&engine, "k", Ok(long)).unwrap().value(), long);
    assert!(matches!(run(&engine, "u", Err(Trouble::Unknown)), Err(RunError::Failed { .. })));
    clock.advance(60 * SECOND);
    assert!(matches!(run(&engine, "k", Ok("again")), Err(RunError::Unreadable { .. })));
    assert!(matches!(run(&engine, "u", Ok("again")), Err(RunError::Unresolved(_))));
}

/// A slow answer to a batch leaves its holders correspondingly less time.
#[test]
fn s13_a_batch_that_is_answered_late_counts_from_before_it_asked() {
    let (clock, store, engine) = setup();
    let requests = [request("k").owner(nevertwice::Owner::random().unwrap())];
    drop(block_on(engine.begin_many(&requests)));
    store.on_call(2, Fault::Delay(2 * SECOND));
    match driven(&clock, SECOND, engine.begin_many(&requests)).remove(0) {
        Ok(Begin::Acquired(lease)) => assert!(lease.remaining() <= 28 * SECOND, "{:?}", lease.remaining()),
        other => panic!("{other:?}"),
    }
}

/// A renewal that is answered late does not reopen a lease that was released meanwhile.
#[test]
fn s3_a_late_renewal_does_not_reopen_a_released_lease() {
    let (clock, store, engine) = setup();
    let lease = acquire(&engine, "k");
    store.on_call(2, Fault::AnswerLost);
    let mut renewal = Box::pin(lease.renew());
    assert!(poll(&mut renewal).is_none());
    block_on(lease.release()).unwrap();
    let other = acquire(&engine, "k");
    let _ = driven(&clock, SECOND, renewal);
    assert_eq!(lease.remaining(), Duration::ZERO);
    assert!(other.remaining() > Duration::ZERO);
}

// run

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Trouble {
    Again,
    Later,
    Declined,
    Unknown,
}

impl Failure for Trouble {
    fn retry(&self) -> Retry {
        match self {
            Trouble::Again => Retry::Now,
            Trouble::Later => Retry::After(60 * SECOND),
            Trouble::Declined => Retry::Never,
            Trouble::Unknown => Retry::Unresolved,
        }
    }
}

type Ran = Result<Outcome<String>, RunError<String, Trouble>>;

fn run(engine: &Engine, key: &str, result: Result<&str, Trouble>) -> Ran {
    block_on(engine.run(&request(key), |_| std::future::ready(result.map(str::to_owned))))
}

#[test]
fn run_executes_once_and_replays_values_and_errors() {
    let (clock, _, engine) = setup();
    let first = run(&engine, "k", Ok("receipt")).unwrap();
    assert_eq!((first.value().as_str(), first.is_replayed()), ("receipt", false));
    let again = run(&engine, "k", Ok("another")).unwrap();
    assert_eq!((again.is_replayed(), again.into_value().as_str()), (true, "receipt"));

    let failed = |ran: Ran| match ran {
        Err(RunError::Failed { error, replayed, retry_after }) => (error, replayed, retry_after),
        other => panic!("{other:?}"),
    };
    assert_eq!(failed(run(&engine, "n", Err(Trouble::Declined))), (Trouble::Declined, false, None));
    assert_eq!(failed(run(&engine, "n", Ok("late"))), (Trouble::Declined, true, None));
    assert_eq!(failed(run(&engine, "a", Err(Trouble::Again))).2, Some(SECOND), "a hint is never 0");
    assert_eq!(run(&engine, "a", Ok("then")).unwrap().value(), "then");
    assert_eq!(failed(run(&engine, "l", Err(Trouble::Later))).2, Some(60 * SECOND));
    clock.advance(SECOND);
    assert_eq!(failed(run(&engine, "l", Ok("early"))), (Trouble::Later, true, Some(59 * SECOND)));
    clock.advance(60 * SECOND);
    assert!(!run(&engine, "l", Ok("due")).unwrap().is_replayed());
    assert_eq!(failed(run(&engine, "u", Err(Trouble::Unknown))), (Trouble::Unknown, false, None));
    assert!(matches!(run(&engine, "u", Ok("blind")), Err(RunError::Unresolved(_))));
    let other = request("k").fingerprint(Fingerprint::of("other"));
    let mismatch: Ran = block_on(engine.run(&other, |_| async { Ok(String::new()) }));
    assert!(matches!(mismatch, Err(RunError::Mismatch)));
}

#[test]
fn run_waits_for_the_one_in_flight() {
    let (_, _, engine) = setup();
    let executions = AtomicUsize::new(0);
    let (executions, request) = (&executions, &request("k"));
    let runs = (0..100).map(|_| {
        engine.run(request, |lease| async move {
            executions.fetch_add(1, Ordering::SeqCst);
            lease.mark_effect().await.unwrap();
            // All other callers run in between.
            let mut yielded = false;
            std::future::poll_fn(|context| {
                context.waker().wake_by_ref();
                if std::mem::replace(&mut yielded, true) { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            Ok::<_, Trouble>("value".to_owned())
        })
    });
    let outcomes: Vec<_> = block_on(join_all(runs)).into_iter().map(Result::unwrap).collect();
    assert_eq!(executions.load(Ordering::SeqCst), 1);
    assert_eq!(outcomes.iter().filter(|outcome| !outcome.is_replayed()).count(), 1);
    assert!(outcomes.iter().all(|outcome| outcome.value() == "value"));
}

#[test]
fn run_that_waits_too_long_says_when_to_come_back() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let engine = Engine::builder(store).clock(clock.clone()).run_wait(5 * SECOND).build().unwrap();
    let lease = acquire(&engine, "k");
    let request = request("k");
    let ran: Ran = driven(&clock, SECOND, engine.run(&request, |_| async { Ok(String::new()) }));
    assert!(matches!(ran, Err(RunError::InProgress { retry_after }) if retry_after == 4 * SECOND));
    drop(lease);
}

/// L3: a handler that runs for ten leases keeps its own, although two renewals in a row fail now
/// and then.
#[test]
fn l3_run_renews_and_survives_two_lost_renewals_in_a_row() {
    for fault in [Fault::FailBefore, Fault::FailAfter, Fault::RequestLost, Fault::AnswerLost] {
        let (clock, store, engine) = setup();
        let request = request("k");
        let work = clock.clone();
        let mut run = Box::pin(engine.run(&request, |lease: Arc<Lease>| async move {
            Clock::sleep(&work, 300 * SECOND).await;
            assert!(!lease.is_lost());
            Ok::<_, Trouble>("long".to_owned())
        }));
        for second in 0..300 {
            assert!(poll(&mut run).is_none());
            // Every renewal of a minute fails, with all of the engine's retries.
            if second % 60 == 9 {
                store.from_call(store.calls() + 1, fault);
            }
            if second % 60 == 22 {
                store.heal();
            }
            clock.advance(SECOND);
        }
        let outcome = driven(&clock, Duration::from_millis(100), run);
        assert!(!outcome.unwrap().is_replayed(), "{fault:?}");
    }
}

/// A handler learns of a lost lease at once, and the loss is never a silent success.
#[test]
fn l3_run_tells_its_handler_and_its_caller_that_the_lease_is_lost() {
    let (clock, _, engine) = setup();
    let request = request("k");
    let mut run = Box::pin(engine.run(&request, |lease: Arc<Lease>| async move {
        lease.lost().await;
        Ok::<_, Trouble>("too late".to_owned())
    }));
    assert!(poll(&mut run).is_none());
    assert!(block_on(engine.forget("tests", "k")).unwrap());
    let successor = acquire(&engine, "k");
    clock.advance(10 * SECOND);
    // The renewal finds out, and the handler ends.
    match poll(&mut run) {
        Some(Err(RunError::LeaseLost { outcome: Ok(value) })) => assert_eq!(value, "too late"),
        other => panic!("{other:?}"),
    }
    block_on(successor.complete("\"successor\"")).unwrap();
    assert_eq!(self::run(&engine, "k", Ok("x")).unwrap().value(), "successor");
}

#[test]
fn s8_a_panic_or_a_dropped_run_leaves_the_lease_to_run_out() {
    let (clock, _, engine) = setup();
    let panicking = std::panic::AssertUnwindSafe(async {
        engine
            .run(&request("p"), |_| async { if true { panic!("planned") } else { Ok::<(), Trouble>(()) } })
            .await
    });
    assert!(block_on(panicking.catch_unwind()).is_err());
    {
        let request = request("d");
        let mut dropped = Box::pin(engine.run(&request, |_| std::future::pending::<Result<(), Trouble>>()));
        assert!(poll(&mut dropped).is_none());
    }
    for key in ["p", "d"] {
        assert!(matches!(block_on(engine.begin(&request(key))), Ok(Begin::InProgress(_))));
    }
    clock.advance(30 * SECOND);
    assert!(acquire(&engine, "p").takeover());
}

#[test]
fn what_is_recorded_as_another_type_is_an_error_that_names_it_and_shows_nothing() {
    let (_, _, engine) = setup();
    block_on(acquire(&engine, "k").complete("{\"secret\": 1}")).unwrap();
    let error = run(&engine, "k", Ok("x")).unwrap_err().to_string();
    assert_eq!(
        error,
        "the recorded response does not read as alloc::string::String: another type at line 1 column 0"
    );
    block_on(acquire(&engine, "e").fail("not json", Retry::Never)).unwrap();
    let error = run(&engine, "e", Ok("x")).unwrap_err().to_string();
    assert!(
        error.starts_with("the recorded error does not read as applications::Trouble: not JSON"),
        "{error}"
    );
    let small = Engine::builder(MemoryStore::new()).max_response(4).build().unwrap();
    run(&small, "k", Ok("too long")).unwrap();
    assert!(matches!(run(&small, "k", Ok("x")), Err(RunError::Unreadable { what: "response", .. })));
}

/// S6, S11: any store call may fail, or be the last before the run is dropped: the effect happens
/// once.
#[test]
fn s6_run_survives_a_fault_at_any_call() {
    for fault in
        [Fault::FailBefore, Fault::FailAfter, Fault::RequestLost, Fault::AnswerLost, Fault::Duplicate]
    {
        for call in 1..=4 {
            let (clock, store, engine) = setup();
            store.on_call(call, fault);
            let effects = Arc::new(AtomicUsize::new(0));
            for _ in 0..2 {
                let (request, effects) = (request("k"), effects.clone());
                let run = engine.run(&request, |lease| async move {
                    lease.mark_effect().await.unwrap();
                    effects.fetch_add(1, Ordering::SeqCst);
                    Ok::<_, Trouble>("value".to_owned())
                });
                assert_eq!(driven(&clock, Duration::from_millis(50), run).unwrap().value(), "value");
            }
            assert_eq!(effects.load(Ordering::SeqCst), 1, "{fault:?} at call {call}");
        }
    }
}

// Batches

#[test]
fn a_batch_answers_in_order_and_each_for_itself() {
    let (clock, store, engine) = setup();
    block_on(acquire(&engine, "done").complete("done")).unwrap();
    drop(acquire(&engine, "crashed"));
    clock.advance(31 * SECOND);
    drop(acquire(&engine, "running"));
    let requests = [
        request("new"),
        request("done"),
        request("bad").lease(Duration::ZERO),
        request("running"),
        request("new"),
        request("crashed"),
        request("done").fingerprint(Fingerprint::of("other")),
    ];
    let before = store.calls();
    let answers = block_on(engine.begin_many(&requests));
    assert_eq!(store.calls() - before, 2, "one for all, one for the takeover");
    assert!(matches!(&answers[0], Ok(Begin::Acquired(lease)) if lease.attempt() == 1));
    assert!(matches!(&answers[1], Ok(Begin::Completed(_))));
    assert!(matches!(&answers[2], Err(Error::Policy(_))));
    assert!(matches!(&answers[3], Ok(Begin::InProgress(_))));
    assert!(matches!(&answers[4], Ok(Begin::InProgress(_))));
    assert!(matches!(&answers[5], Ok(Begin::Acquired(lease)) if lease.takeover()));
    assert!(matches!(&answers[6], Ok(Begin::Mismatch(_))));
    assert!(block_on(engine.begin_many(&[])).is_empty());
}

#[test]
fn a_batch_of_completions_is_one_call_and_refuses_each_for_itself() {
    let (_, store, engine) = setup();
    let leases: Vec<Lease> = ["a", "b", "c", "d"].map(|key| acquire(&engine, key)).into();
    block_on(engine.forget("tests", "b")).unwrap();
    let successor = acquire(&engine, "b");
    block_on(leases[2].complete("first")).unwrap();
    let outcomes: Vec<_> = leases.iter().map(|lease| (lease, "outcome".into())).collect();
    let before = store.calls();
    let results = block_on(engine.complete_many(&outcomes));
    assert_eq!(store.calls() - before, 2, "one for all, one look at what was finished");
    assert!(results[0].is_ok() && results[3].is_ok());
    assert!(matches!(results[1], Err(Error::LeaseLost { .. })));
    assert!(matches!(results[2], Err(Error::AlreadyFinished { .. })));
    // Repeated, it changes nothing.
    assert!(block_on(engine.complete_many(&outcomes))[0].is_ok());
    drop(successor);
}

#[test]
fn s6_a_fault_at_any_call_of_a_batch_changes_no_answer() {
    for fault in
        [Fault::FailBefore, Fault::FailAfter, Fault::RequestLost, Fault::AnswerLost, Fault::Duplicate]
    {
        for call in 1..=3 {
            let (clock, store, engine) = setup();
            store.on_call(call, fault);
            let step = Duration::from_millis(50);
            let requests: Vec<_> = (0..5).map(|key| request(&key.to_string())).collect();
            let begins = driven(&clock, step, engine.begin_many(&requests));
            let leases: Vec<Lease> = begins
                .into_iter()
                .map(|begin| match begin {
                    Ok(Begin::Acquired(lease)) => lease,
                    other => panic!("{fault:?} at call {call}: {other:?}"),
                })
                .collect();
            assert!(leases.iter().all(|lease| lease.attempt() == 1));
            let outcomes: Vec<_> = leases.iter().map(|lease| (lease, "done".into())).collect();
            let results = driven(&clock, step, engine.complete_many(&outcomes));
            assert!(results.into_iter().all(|result| result.is_ok()));
        }
    }
}

#[test]
fn s11_a_dropped_batch_leaves_nothing_half_done() {
    let (clock, store, engine) = setup();
    let owner = nevertwice::Owner::random().unwrap();
    let requests: Vec<_> = (0..5).map(|key| request(&key.to_string()).owner(owner)).collect();
    store.on_call(1, Fault::AnswerLost);
    {
        let mut dropped = Box::pin(engine.begin_many(&requests));
        assert!(poll(&mut dropped).is_none());
    }
    let begins = driven(&clock, SECOND, engine.begin_many(&requests));
    assert!(begins.iter().all(|begin| matches!(begin, Ok(Begin::Acquired(lease)) if lease.attempt() == 1)));
}

// Operators

#[test]
fn unfinished_operations_are_listed_by_age_and_settled_by_id() {
    let (clock, _, engine) = setup();
    drop(acquire(&engine, "crashed long ago"));
    clock.advance(SECOND);
    block_on(acquire(&engine, "unknown").fail("?", Retry::Unresolved)).unwrap();
    block_on(acquire(&engine, "done").complete("done")).unwrap();
    block_on(acquire(&engine, "declined").fail("no", Retry::Never)).unwrap();
    clock.advance(40 * SECOND);
    drop(acquire(&engine, "running"));
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let page = block_on(engine.unfinished(after.as_ref(), 2)).unwrap();
        found.extend(page.operations);
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    found.sort_by_key(|operation| std::cmp::Reverse(operation.inspection.age));
    let states: Vec<_> = found.iter().map(|operation| operation.inspection.state).collect();
    assert_eq!(states, [StateKind::InProgress, StateKind::Failed]);
    assert_eq!(found[0].id, request("crashed long ago").id());
    let fence = found[1].inspection.fence;
    block_on(engine.resolve_id(&found[1].id, fence, Resolution::Rerun)).unwrap();
    assert_eq!(acquire(&engine, "unknown").attempt(), 1);
    assert!(block_on(engine.forget_id(&found[0].id)).unwrap());
    assert_eq!(acquire(&engine, "crashed long ago").attempt(), 1);
    assert!(block_on(engine.unfinished(Some(&nevertwice::Cursor(vec![9; 3])), 2)).is_err());
}

#[test]
fn l5_one_of_several_purgers_purges_once_an_interval() {
    let (clock, store, engine) = setup();
    for key in 0..200 {
        block_on(acquire(&engine, &key.to_string()).complete("done")).unwrap();
    }
    clock.advance(3 * 86_400 * SECOND);
    let plan = PurgePlan { step: 50, ..PurgePlan::default() };
    let (removed, elsewhere) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut purgers: Vec<_> = (0..3)
        .map(|_| {
            let (removed, elsewhere) = (removed.clone(), elsewhere.clone());
            Box::pin(engine.purge_regularly(plan, move |purged| match purged {
                Purged::Removed(records) => drop(removed.fetch_add(records as usize, Ordering::SeqCst)),
                Purged::Elsewhere => drop(elsewhere.fetch_add(1, Ordering::SeqCst)),
                Purged::Failed(_, error) => panic!("{error}"),
                other => panic!("{other}"),
            }))
        })
        .collect();
    for _ in 0..600 {
        purgers.iter_mut().for_each(|purger| assert!(poll(purger).is_none()));
        clock.advance(Duration::from_millis(100));
    }
    assert!(removed.load(Ordering::SeqCst) >= 190, "{}", removed.load(Ordering::SeqCst));
    assert_eq!(store.inner().len(), 1, "the purgers' own");
    assert_eq!(elsewhere.load(Ordering::SeqCst), 2);
    // The purger that holds the purge lease dies midway: another continues once that lease has
    // expired.
    for key in 0..200 {
        block_on(acquire(&engine, &format!("old {key}")).complete("done")).unwrap();
    }
    clock.advance(3 * 86_400 * SECOND);
    assert!(poll(&mut purgers[0]).is_none());
    drop(purgers.remove(0));
    let before = removed.load(Ordering::SeqCst);
    purgers.truncate(1);
    for _ in 0..1500 {
        assert!(poll(&mut purgers[0]).is_none());
        clock.advance(Duration::from_millis(100));
    }
    assert!(removed.load(Ordering::SeqCst) > before);
}

/// Polls a purger for `seconds` of the clock, in steps of 10 ms, and returns its reports:
/// `(seconds, what)`.
fn reports_of(plan: PurgePlan, records: usize, seconds: u64) -> Vec<(u64, String)> {
    let (clock, _store, engine) = setup();
    for key in 0..records {
        block_on(acquire(&engine, &key.to_string()).complete("done")).unwrap();
    }
    clock.advance(3 * 86_400 * SECOND);
    let start = Clock::monotonic(&clock);
    let reports = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (told, time) = (reports.clone(), clock.clone());
    let mut purger = Box::pin(engine.purge_regularly(plan, move |purged| {
        told.lock().unwrap().push(((Clock::monotonic(&time) - start).as_secs(), purged.to_string()));
    }));
    for _ in 0..seconds * 100 {
        assert!(poll(&mut purger).is_none());
        clock.advance(Duration::from_millis(10));
    }
    let reports = reports.lock().unwrap();
    reports.clone()
}

fn number(words: &str) -> u64 {
    words.split(' ').next().unwrap().parse().unwrap()
}

#[test]
fn l5_a_purge_that_takes_long_says_how_it_gets_on_and_then_rests_no_more() {
    // Ten a second: 300 records in 30 s, a quarter of the interval, and the other 700 without a
    // rest.
    let plan =
        PurgePlan { every: 120 * SECOND, step: 1, rest: Duration::from_millis(100), ..PurgePlan::default() };
    let reports = reports_of(plan, 1000, 40);
    assert!(reports.len() >= 4, "{reports:?}");
    for (at, (second, words)) in reports[..2].iter().enumerate() {
        assert!((10 * (at as u64 + 1)..12 * (at as u64 + 1)).contains(second), "{reports:?}");
        assert!(words.ends_with("so far"), "{reports:?}");
    }
    // The last ones may be in the segment that the store still writes.
    let (second, words) = reports.iter().find(|(_, words)| words.ends_with("removed")).unwrap();
    assert!(*second <= 33 && number(words) >= 990, "{reports:?}");
}

#[test]
fn l5_a_purge_that_reached_its_limit_is_followed_by_the_next_at_once() {
    let plan = PurgePlan { limit: 100, ..PurgePlan::default() };
    let reports = reports_of(plan, 450, 10);
    let removed = reports.iter().filter(|(_, words)| words == "100 records removed").count();
    assert!(removed == 4 && number(&reports.last().unwrap().1) >= 40, "{reports:?}");
}

/// Two stages: the response is dropped first, and the key stays refused as done until its retention
/// ends.
#[test]
fn s2_a_key_stays_done_when_its_response_is_no_longer_given_out() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let builder = Engine::builder(store.clone()).clock(clock.clone());
    let engine = builder.response_retention(3600 * SECOND).build().unwrap();
    let lease = acquire(&engine, "k");
    block_on(lease.complete("response")).unwrap();
    block_on(acquire(&engine, "young").complete("young")).unwrap();
    let kept = |begin: Result<Begin, Error>| match begin {
        Ok(Begin::Completed(done)) => done.response().is_some(),
        other => panic!("{other:?}"),
    };
    clock.advance(3599 * SECOND);
    assert!(kept(block_on(engine.begin(&request("k")))));
    clock.advance(SECOND);
    assert!(!kept(block_on(engine.begin(&request("k")))));
    // The room is freed, the outcome is still known, and the key is not kept for longer than
    // before.
    let (dropped, next) = block_on(engine.drop_responses(None, 100)).unwrap();
    assert_eq!((dropped, next), (2, None));
    assert_eq!(block_on(engine.drop_responses(None, 100)).unwrap().0, 0);
    let seen = block_on(engine.inspect("tests", "k")).unwrap().unwrap();
    assert_eq!((seen.body_bytes, seen.kept_for.as_secs_f64().round()), (Some(8), 82_800.0));
    block_on(engine.resume(&lease.token())).unwrap().complete("response").now_or_never().unwrap().unwrap();
    assert!(block_on(lease.complete("another")).is_err());
    clock.advance(82_799 * SECOND);
    assert!(!kept(block_on(engine.begin(&request("k")))));
    clock.advance(SECOND);
    assert_eq!(acquire(&engine, "k").attempt(), 1);
}

#[test]
fn s6_a_resolution_repeated_after_its_response_is_gone_is_the_same() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let builder = Engine::builder(store).clock(clock.clone());
    let engine = builder.response_retention(60 * SECOND).build().unwrap();
    let lease = acquire(&engine, "k");
    block_on(lease.fail("?", Retry::Unresolved)).unwrap();
    let resolve = || {
        let done = Resolution::Completed(nevertwice::Body::new("done".into(), 100));
        block_on(engine.resolve("tests", "k", lease.fence(), done))
    };
    resolve().unwrap();
    clock.advance(61 * SECOND);
    assert_eq!(block_on(engine.drop_responses(None, 0)).unwrap().0, 1);
    resolve().unwrap();
}

/// A purger runs for ever, under any limit on attempts. It shows no operation of its own as
/// unfinished, and makes room for its own record in a full store.
#[test]
fn l5_a_purger_is_stopped_by_no_limit() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().max_records(20).clock(clock.clone()).build();
    let engine = Engine::builder(store.clone()).clock(clock.clone()).max_attempts(1).build().unwrap();
    for key in 0..20 {
        block_on(acquire(&engine, &key.to_string()).complete("done")).unwrap();
    }
    clock.advance(2 * 86_400 * SECOND);
    let (done, count) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (turns, removed) = (done.clone(), count.clone());
    let mut purger = Box::pin(engine.purge_regularly(PurgePlan::default(), move |purged| match purged {
        Purged::Removed(records) => {
            turns.fetch_add(1, Ordering::SeqCst);
            removed.fetch_add(records as usize, Ordering::SeqCst);
        }
        other => panic!("{other}"),
    }));
    for second in 0..600 {
        assert!(poll(&mut purger).is_none());
        assert_eq!(block_on(engine.unfinished(None, 100)).unwrap().operations, [], "second {second}");
        clock.advance(SECOND);
    }
    assert!(done.load(Ordering::SeqCst) >= 9, "{}", done.load(Ordering::SeqCst));
    assert!(count.load(Ordering::SeqCst) >= 15);
    let endless = PurgePlan { every: Duration::MAX, ..PurgePlan::default() };
    assert!(poll(&mut Box::pin(engine.purge_regularly(endless, drop))).is_none());
}

#[test]
fn l5_a_purger_makes_room_for_its_own_turn() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().max_bytes(20_000).clock(clock.clone()).build();
    let builder = Engine::builder(store.clone()).clock(clock.clone());
    let engine = builder.response_retention(60 * SECOND).build().unwrap();
    let lease = acquire(&engine, "k");
    block_on(lease.complete(vec![7; 50_000])).unwrap();
    clock.advance(61 * SECOND);
    assert!(block_on(engine.begin(&request("refused"))).is_err());
    let mut purger = Box::pin(engine.purge_regularly(PurgePlan::default(), drop));
    assert!(poll(&mut purger).is_none());
    drop(acquire(&engine, "there is room"));
}

#[test]
fn the_purger_frees_responses_too() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let builder = Engine::builder(store.clone()).clock(clock.clone());
    let engine = builder.response_retention(60 * SECOND).build().unwrap();
    for key in 0..30 {
        block_on(acquire(&engine, &key.to_string()).complete(vec![7; 1000])).unwrap();
    }
    let plan = PurgePlan { step: 10, ..PurgePlan::default() };
    let mut purger =
        Box::pin(engine.purge_regularly(plan, |purged| assert!(!matches!(purged, Purged::Failed(..)))));
    clock.advance(61 * SECOND);
    for _ in 0..100 {
        assert!(poll(&mut purger).is_none());
        clock.advance(SECOND);
    }
    let page = block_on(nevertwice::store::Store::scan(&store, None, 100)).unwrap();
    assert!(page.records.iter().all(|(_, record)| record.weight() < 1000));
}

#[test]
fn an_oversized_response_can_be_refused_instead() {
    let store = MemoryStore::new();
    let engine =
        Engine::builder(store).max_response(4).oversized(nevertwice::Oversized::Refuse).build().unwrap();
    let (one, two) = (acquire(&engine, "1"), acquire(&engine, "2"));
    let refused = block_on(one.complete("too long")).unwrap_err().to_string();
    assert_eq!(refused, "response of 8 bytes is over the limit of 4");
    assert!(matches!(
        block_on(one.fail("too long", Retry::Never)),
        Err(Error::TooLarge { what: "error", .. })
    ));
    let results = block_on(engine.complete_many(&[(&one, "too long".into()), (&two, "ok".into())]));
    assert!(matches!(results[0], Err(Error::TooLarge { .. })) && results[1].is_ok());
    block_on(one.complete("ok")).unwrap();
}

#[test]
fn a_pinned_future_is_send() {
    fn send<T: Send>(value: T) -> T {
        value
    }
    let (_, _, engine) = setup();
    let request = request("k");
    drop(send(engine.begin_or_wait(&request, SECOND)));
    drop(send(engine.run(&request, |_| async { Ok::<(), Trouble>(()) })));
    drop(send(engine.begin_many(&[])));
    drop(send(engine.unfinished(None, 1)));
    let lease = acquire(&engine, "k");
    drop(send(engine.complete_many(&[(&lease, "x".into())])));
    drop(send(lease.lost()));
    drop(send(lease.complete("x")));
}
