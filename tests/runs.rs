//! `run` and its relatives: one value for all callers, outcomes that are recorded despite outages,
//! errors without serde, blocking handlers, and leases kept alive; on the memory store and a manual
//! clock.
#![cfg(feature = "memory")]

#[path = "support/manual.rs"]
mod manual;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use nevertwice::testing::{Fault, block_on};
use nevertwice::{
    Begin, Classified, Clock, Engine, Error, Failure, Lease, MemoryStore, Outcome, Request, Retry, RunError,
    StateKind,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use manual::{SECOND, acquire, driven, poll, request, setup};

fn state(engine: &Engine, key: &str) -> Option<StateKind> {
    block_on(engine.inspect("tests", key)).unwrap().map(|seen| seen.state)
}

/// An error that carries its retry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Trouble(Retry);

impl Failure for Trouble {
    fn retry(&self) -> Retry {
        self.0
    }
}

// One value for all callers

type Ran<T> = Result<Outcome<T>, RunError<T, Trouble>>;

fn run<T: Serialize + DeserializeOwned>(engine: &Engine, key: &str, value: T) -> Ran<T> {
    block_on(engine.run(&request(key), |_| std::future::ready(Ok(value))))
}

/// Returns the value that both the first caller and a duplicate get for `value`: they are the same.
#[track_caller]
fn both<T: Serialize + DeserializeOwned + Clone + Debug>(value: T) -> T {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let first = run(&engine, "k", value.clone()).unwrap();
    let second = run(&engine, "k", value).unwrap();
    assert!(!first.is_replayed() && second.is_replayed());
    assert_eq!(format!("{:?}", first.value()), format!("{:?}", second.value()));
    first.into_value()
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Quote {
    price: f64,
    note: Option<Option<String>>,
    #[serde(skip)]
    internal: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Either {
    Int(i64),
    Float(f64),
    Text(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
struct Pair(u8, u8);

#[test]
fn s2_all_callers_get_one_and_the_same_value() {
    for value in
        [1.577_777_777_777_000_1_f64, 117.633_311_394_000_17, 0.921_568_632_125_854_5, -0.0, 5e-324, f64::MAX]
    {
        assert_eq!(both(value).to_bits(), value.to_bits());
    }
    assert_eq!(both(16_777_217_f32), 16_777_216_f32);
    assert_eq!(both(Either::Float(2.0)), Either::Float(2.0));
    assert_eq!(both(Either::Text("2".to_owned())), Either::Text("2".to_owned()));
    assert_eq!(both(Either::Int(2)), Either::Int(2));
    assert_eq!((both(u128::MAX), both(i128::MIN)), (u128::MAX, i128::MIN));
    assert_eq!(both(HashMap::from([(1_u32, "a".to_owned())])).len(), 1);
    assert_eq!(both(vec![0_u8, 255]), [0, 255]);
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
    assert_eq!(both(time), time);
    both(());
    // Information that JSON does not keep is lost to all callers, including the first.
    let quote = Quote { price: 1.0, note: Some(None), internal: 7 };
    assert_eq!(both(quote), Quote { price: 1.0, note: None, internal: 0 });
    assert_eq!(both(Some(None::<u8>)), None);
    assert!(both(Some(f64::NAN)).is_none());
    assert_eq!(both(Some(())), None);
}

/// An ordinary computation of prices, of which one in seven once came back one bit off.
#[test]
fn s2_no_price_comes_back_as_another() {
    let engine = Engine::builder(MemoryStore::new()).build().unwrap();
    let prices: Vec<f64> = (1..2000_u32)
        .flat_map(|cents| [1.0825, 0.07, 1.19, 1.0 / 3.0].map(|rate| f64::from(cents) / 100.0 * rate))
        .collect();
    for _ in 0..2 {
        let told = run(&engine, "prices", prices.clone()).unwrap().into_value();
        assert!(told.iter().zip(&prices).all(|(told, price)| told.to_bits() == price.to_bits()));
    }
}

/// Errors are values too.
#[test]
fn s2_all_callers_get_one_and_the_same_error() {
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Rejected {
        limit: f64,
        reason: Option<Option<u8>>,
        #[serde(skip)]
        trace: u32,
    }
    impl Failure for Rejected {
        fn retry(&self) -> Retry {
            Retry::Never
        }
    }
    let (_, _, engine) = setup();
    for expected in [false, true] {
        let rejected = Rejected { limit: 117.633_311_394_000_17, reason: Some(None), trace: 7 };
        match block_on(engine.run(&request("k"), |_| std::future::ready(Err::<(), _>(rejected)))) {
            Err(RunError::Failed { error, replayed, .. }) => {
                let told = Rejected { limit: 117.633_311_394_000_17, reason: None, trace: 0 };
                assert_eq!((error, replayed), (told, expected));
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Checks that `value` ran, is recorded as done without its value, and is neither lost nor run
/// again.
#[track_caller]
fn unwritable<T: Serialize + DeserializeOwned + Clone + Debug>(value: T, why: &str) {
    let (clock, _, engine) = setup();
    let error = run(&engine, "k", value.clone()).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(why), "{message}");
    match error.into_outcome() {
        Some(Ok(kept)) => assert_eq!(format!("{kept:?}"), format!("{value:?}")),
        other => panic!("{other:?}"),
    }
    assert_eq!(state(&engine, "k"), Some(StateKind::Completed));
    clock.advance(3600 * SECOND);
    match block_on(engine.begin(&request("k"))) {
        Ok(Begin::Completed(done)) => assert_eq!(done.response(), None),
        other => panic!("{other:?}"),
    }
    assert!(matches!(run(&engine, "k", value), Err(RunError::Unreadable { what: "response", .. })));
}

#[test]
fn s8_what_does_not_read_back_is_done_and_not_lost() {
    #[derive(Debug, Clone, Serialize, Deserialize)]
    struct Nested(Vec<Nested>);
    #[derive(Debug, Clone, Deserialize)]
    struct Odd;
    impl Serialize for Odd {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("odd secret"))
        }
    }
    let reads_back = "does not read back from its JSON";
    unwritable(f64::NAN, reads_back);
    unwritable(f64::INFINITY, reads_back);
    unwritable(vec![1.0, f64::NAN], reads_back);
    unwritable(Quote { price: f64::NEG_INFINITY, note: None, internal: 0 }, reads_back);
    both((0..50).fold(Nested(Vec::new()), |inner, _| Nested(vec![inner])));
    unwritable((0..200).fold(Nested(Vec::new()), |inner, _| Nested(vec![inner])), reads_back);
    unwritable(BTreeMap::from([(Pair(1, 2), 3)]), "cannot be written as JSON");
    unwritable(Odd, "cannot be written as JSON");
}

/// An error that cannot be recorded itself: its retry is.
#[test]
fn s8_an_error_that_does_not_read_back_keeps_its_retry() {
    #[derive(Debug, Clone, Serialize, Deserialize)]
    struct Rejected(f64, Retry);
    impl Failure for Rejected {
        fn retry(&self) -> Retry {
            self.1
        }
    }
    let (_, _, engine) = setup();
    let fail = |key: &str, retry| {
        block_on(engine.run(&request(key), |_| std::future::ready(Err::<(), _>(Rejected(f64::NAN, retry)))))
    };
    for (key, retry) in [("never", Retry::Never), ("unclear", Retry::Unresolved), ("now", Retry::Now)] {
        match fail(key, retry) {
            Err(RunError::Unwritable { outcome: Err(error), what: "error", .. }) => assert!(error.0.is_nan()),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(fail("never", Retry::Never), Err(RunError::Unreadable { what: "error", .. })));
    assert!(matches!(fail("unclear", Retry::Now), Err(RunError::Unresolved(_))));
    assert_eq!(acquire(&engine, "now").attempt(), 2);
}

#[test]
fn errors_show_no_content() {
    #[derive(Clone, Serialize, Deserialize)]
    struct Secret(String, f64);
    impl Failure for Secret {
        fn retry(&self) -> Retry {
            Retry::Now
        }
    }
    let (clock, store, engine) = setup();
    let secret = |number| Secret("S3CR3T".to_owned(), number);
    let shown = |error: RunError<Secret, Secret>| {
        let text = format!("{error} {error:?} {error:#?}");
        assert!(!text.contains("S3CR3T"), "{text}");
        text
    };
    let run = |key: &str, result: Result<Secret, Secret>| {
        let (request, step) = (request(key), Duration::from_millis(50));
        driven(&clock, step, engine.run(&request, |_| std::future::ready(result))).map(drop).unwrap_err()
    };
    assert!(shown(run("failed", Err(secret(1.0)))).contains("Failed"));
    assert!(shown(run("unwritable", Ok(secret(f64::NAN)))).contains("Ok(<"));
    assert!(shown(run("unwritable error", Err(secret(f64::NAN)))).contains("Err(<"));
    store.from_call(store.calls() + 2, Fault::FailBefore);
    assert!(shown(run("unrecorded", Ok(secret(1.0)))).contains("Unrecorded"));
}

// Outcomes that are recorded despite outages

/// A store that is down for seven seconds of a lease of twenty: the outcome is recorded.
#[test]
fn s2_an_outcome_is_recorded_though_the_store_is_away_for_a_while() {
    for fault in [Fault::FailBefore, Fault::FailAfter, Fault::RequestLost, Fault::AnswerLost] {
        for result in [Ok("value".to_owned()), Err(Trouble(Retry::Never))] {
            let (clock, store, engine) = setup();
            let request = request("k").lease(20 * SECOND);
            store.from_call(2, fault);
            let mut run = Box::pin(engine.run(&request, |_| std::future::ready(result.clone())));
            for _ in 0..70 {
                assert!(poll(&mut run).is_none(), "{fault:?}");
                clock.advance(SECOND / 10);
            }
            store.heal();
            match driven(&clock, SECOND / 10, run) {
                Ok(outcome) => {
                    assert_eq!((outcome.value(), outcome.is_replayed()), (result.as_ref().unwrap(), false))
                }
                Err(RunError::Failed { error, .. }) => assert_eq!(error, result.clone().unwrap_err()),
                Err(other) => panic!("{fault:?}: {other}"),
            }
            let expected = if result.is_ok() { StateKind::Completed } else { StateKind::Failed };
            assert_eq!(state(&engine, "k"), Some(expected), "{fault:?}");
        }
    }
}

/// A store that stays down: the run ends with the lease, and its error carries what the handler
/// returned.
#[test]
fn l1_an_outcome_that_cannot_be_recorded_is_not_lost_to_its_caller() {
    for result in [Ok("value".to_owned()), Err(Trouble(Retry::Unresolved))] {
        let (clock, store, engine) = setup();
        let request = request("k").lease(20 * SECOND);
        store.from_call(2, Fault::FailBefore);
        let begun = clock.monotonic();
        match driven(&clock, SECOND / 10, engine.run(&request, |_| std::future::ready(result.clone()))) {
            Err(RunError::Unrecorded { outcome, error }) => {
                assert!(matches!(*error, Error::TimedOut { .. }), "{error}");
                assert_eq!(outcome, result);
            }
            other => panic!("{other:?}"),
        }
        let took = clock.monotonic() - begun;
        assert!(took >= 20 * SECOND && took < 21 * SECOND, "{took:?}");
    }
}

/// The store accepts a finish past the lease as long as no other caller took the key. Otherwise the
/// value comes with the error.
#[test]
fn s3_an_outcome_past_the_lease_is_recorded_unless_the_key_was_taken() {
    for taken in [false, true] {
        let (clock, _, engine) = setup();
        let request = request("k");
        let (work, other) = (clock.clone(), engine.clone());
        let successor = Cell::new(None);
        let slot = &successor;
        let run = engine.run(&request, |_| async move {
            work.advance(31 * SECOND); // a handler that holds up its thread
            if taken {
                slot.set(other.begin(&self::request("k")).now_or_never());
            }
            Ok::<_, Trouble>("late".to_owned())
        });
        match (block_on(run), taken) {
            (Ok(outcome), false) => assert_eq!(outcome.value(), "late"),
            (Err(error @ RunError::LeaseLost { .. }), true) => {
                assert_eq!(error.into_outcome(), Some(Ok("late".to_owned())));
            }
            (other, _) => panic!("{other:?}"),
        }
    }
}

#[test]
fn s3_a_released_lease_records_nothing_of_a_run() {
    let (_, _, engine) = setup();
    let ran = block_on(engine.run(&request("done"), |lease| async move {
        lease.release().await.unwrap();
        Ok::<_, Trouble>(Some(f64::NAN))
    }));
    assert!(ran.unwrap().into_value().unwrap().is_nan(), "nothing is recorded, and the value is as it was");
    let failed = block_on(engine.run(&request("failed"), |lease| async move {
        lease.release().await.unwrap();
        Err::<(), _>(Trouble(Retry::Never))
    }));
    match failed {
        Err(RunError::Failed { error, replayed: false, retry_after }) => {
            assert_eq!((error, retry_after), (Trouble(Retry::Never), Some(SECOND)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((state(&engine, "done"), state(&engine, "failed")), (None, None));
}

#[test]
fn retry_hints_of_a_run_are_whole_seconds_and_never_0() {
    let (clock, _, engine) = setup();
    let fail = |key: &str, retry| match block_on(
        engine.run(&request(key), |_| std::future::ready(Err::<(), _>(Trouble(retry)))),
    ) {
        Err(RunError::Failed { retry_after, .. }) => retry_after,
        other => panic!("{other:?}"),
    };
    assert_eq!(fail("now", Retry::Now), Some(SECOND));
    assert_eq!(fail("zero", Retry::After(Duration::ZERO)), Some(SECOND));
    assert_eq!(fail("half", Retry::After(SECOND / 2)), Some(SECOND));
    assert_eq!(fail("later", Retry::After(SECOND * 5 / 2)), Some(3 * SECOND));
    clock.advance(SECOND / 4);
    assert_eq!(fail("half", Retry::Never), Some(SECOND));
    assert_eq!(fail("never", Retry::Never), None);
    let endless = Retry::After(Duration::MAX);
    assert!(fail("for ever", endless) >= Some(Duration::from_secs(u64::MAX)));
}

// Errors without serde

/// An error that is neither `Serialize` nor `Clone`.
#[derive(Debug)]
struct Foreign(std::io::ErrorKind);

fn classify(error: &Foreign) -> Classified {
    let retry = match error.0 {
        std::io::ErrorKind::ConnectionRefused => Retry::Now,
        std::io::ErrorKind::TimedOut => Retry::Unresolved,
        _ => Retry::Never,
    };
    Classified { retry, message: error.0.to_string() }
}

#[test]
fn an_error_without_serde_is_replayed_as_its_message() {
    let (_, _, engine) = setup();
    let run = |key: &str, result: Result<u8, Foreign>| {
        block_on(engine.run_classified(&request(key), |_| std::future::ready(result), classify))
    };
    let denied = || Err(Foreign(std::io::ErrorKind::PermissionDenied));
    for expected in [false, true] {
        match run("denied", denied()) {
            Err(RunError::Failed { error, replayed, retry_after: None }) => {
                assert_eq!((error.message(), error.retry()), ("permission denied", Retry::Never));
                assert_eq!((replayed, error.original().is_none()), (expected, expected));
                assert!(!format!("{error:?}").contains("permission"), "{error:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    let refused = || Err(Foreign(std::io::ErrorKind::ConnectionRefused));
    assert!(matches!(run("k", refused()), Err(RunError::Failed { retry_after: Some(SECOND), .. })));
    assert_eq!(run("k", Ok(7)).unwrap().into_value(), 7);
    assert!(run("k", refused()).unwrap().is_replayed());
    assert!(matches!(run("t", Err(Foreign(std::io::ErrorKind::TimedOut))), Err(RunError::Failed { .. })));
    assert!(matches!(run("t", Ok(1)), Err(RunError::Unresolved(_))));
}

#[test]
fn an_error_without_serde_comes_with_what_could_not_be_recorded() {
    let (clock, store, engine) = setup();
    store.from_call(2, Fault::FailBefore);
    let request = request("k");
    let run = engine.run_classified(
        &request,
        |_| std::future::ready(Err::<(), _>(Foreign(std::io::ErrorKind::TimedOut))),
        classify,
    );
    match driven(&clock, SECOND / 10, run) {
        Err(RunError::Unrecorded { outcome: Err(error), .. }) => {
            assert_eq!(error.into_original().unwrap().0, std::io::ErrorKind::TimedOut);
        }
        other => panic!("{other:?}"),
    }
}

// Handlers that block

/// Polls until the other thread has done its part.
fn polled<F: Future>(future: &mut Pin<Box<F>>) -> F::Output {
    for _ in 0..60_000 {
        if let Some(value) = poll(future) {
            return value;
        }
        std::thread::sleep(Duration::from_millis(1)); // a thread of the system's, not the clock's time
    }
    panic!("the handler's thread does not end");
}

/// L3: a handler that blocks its thread for ten leases keeps its own.
#[test]
fn l3_a_blocking_handler_keeps_its_lease() {
    let (clock, store, engine) = setup();
    let (done, wait) = mpsc::channel();
    let executions = Arc::new(AtomicUsize::new(0));
    let (request, count) = (request("k"), executions.clone());
    let mut run = Box::pin(engine.run_blocking(&request, move |lease| {
        count.fetch_add(1, Ordering::SeqCst);
        block_on(lease.mark_effect()).unwrap();
        wait.recv().unwrap(); // nothing is polled on this thread meanwhile
        assert!(!lease.is_lost());
        Ok::<_, Trouble>("blocked".to_owned())
    }));
    assert!(poll(&mut run).is_none());
    // The handler has marked the effect: begin, mark.
    for _ in 0..60_000 {
        if store.calls() >= 2 {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    for _ in 0..300 {
        assert!(poll(&mut run).is_none());
        clock.advance(SECOND);
    }
    done.send(()).unwrap();
    let outcome = polled(&mut run).unwrap();
    assert_eq!((outcome.value().as_str(), outcome.is_replayed()), ("blocked", false));
    let again = engine.run_blocking(&request, |_| Ok::<_, Trouble>(String::new()));
    assert_eq!(block_on(again).unwrap().value(), "blocked");
    assert_eq!(executions.load(Ordering::SeqCst), 1);
}

#[test]
fn a_blocking_handlers_failure_is_recorded_and_its_panic_is_a_crash() {
    let (clock, _, engine) = setup();
    let failed = block_on(engine.run_blocking(&request("f"), |_| Err::<(), _>(Trouble(Retry::Never))));
    assert!(matches!(failed, Err(RunError::Failed { replayed: false, .. })));
    let request = request("p");
    let panics =
        engine.run_blocking(&request, |_| if true { panic!("planned") } else { Ok::<(), Trouble>(()) });
    let panic = block_on(std::panic::AssertUnwindSafe(panics).catch_unwind()).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"planned"));
    assert!(matches!(block_on(engine.begin(&request)), Ok(Begin::InProgress(_))));
    clock.advance(30 * SECOND);
    assert!(acquire(&engine, "p").takeover());
}

/// A handler whose caller was dropped continues, and its return value is not recorded.
#[test]
fn s11_a_dropped_blocking_run_is_a_crash() {
    let (clock, _, engine) = setup();
    let (done, wait) = mpsc::channel();
    let (told, tells) = mpsc::channel();
    let request = request("k");
    let mut run = Box::pin(engine.run_blocking(&request, move |lease| {
        wait.recv().unwrap();
        told.send(lease.is_lost()).unwrap();
        Ok::<_, Trouble>(())
    }));
    assert!(poll(&mut run).is_none());
    drop(run);
    clock.advance(30 * SECOND);
    done.send(()).unwrap();
    assert!(tells.recv_timeout(Duration::from_secs(60)).unwrap(), "it was not renewed");
    let lease = acquire(&engine, "k");
    assert!(lease.takeover());
}

// Leases kept alive

/// L3: leases of several lengths are kept for as long as the work takes, although two renewals in a
/// row fail. Those that are finished meanwhile are left alone.
#[test]
fn l3_many_leases_are_kept_alive() {
    for fault in [Fault::FailBefore, Fault::FailAfter, Fault::RequestLost, Fault::AnswerLost] {
        let (clock, store, engine) = setup();
        let leases: Vec<Lease> = [10, 30, 30, 60, 600]
            .into_iter()
            .enumerate()
            .map(|(at, seconds)| {
                let request = request(&at.to_string()).lease(seconds * SECOND);
                match block_on(engine.begin(&request)) {
                    Ok(Begin::Acquired(lease)) => lease,
                    other => panic!("{other:?}"),
                }
            })
            .collect();
        let mut alive = Box::pin(engine.keep_alive(&leases));
        for second in 0..1200 {
            assert!(poll(&mut alive).is_none());
            assert!(leases.iter().all(|lease| !lease.is_lost()), "{fault:?} at {second} s");
            if second % 60 == 9 {
                store.on_call(store.calls() + 1, fault);
                store.on_call(store.calls() + 2, fault);
            }
            if second == 600 {
                block_on(leases[1].complete("done")).unwrap();
                block_on(leases[2].release()).unwrap();
            }
            clock.advance(SECOND / 2);
            assert!(poll(&mut alive).is_none());
            clock.advance(SECOND / 2);
        }
        store.heal();
        for at in [0, 3, 4] {
            block_on(leases[at].complete("done")).unwrap();
        }
        let calls = store.calls();
        for _ in 0..100 {
            assert!(poll(&mut alive).is_none());
            clock.advance(10 * SECOND);
        }
        assert_eq!(store.calls(), calls, "nothing is left to renew");
    }
}

#[test]
fn l3_leases_are_renewed_at_a_third_and_together() {
    let (clock, store, engine) = setup();
    let requests: Vec<Request> = (0..50).map(|key| request(&key.to_string())).collect();
    let begins = block_on(engine.begin_many(&requests));
    let leases: Vec<Arc<Lease>> = begins
        .into_iter()
        .map(|begin| match begin {
            Ok(Begin::Acquired(lease)) => Arc::new(lease),
            other => panic!("{other:?}"),
        })
        .collect();
    let mut alive = Box::pin(engine.keep_alive(&leases));
    let before = store.calls();
    clock.advance(9 * SECOND);
    assert!(poll(&mut alive).is_none());
    assert_eq!(store.calls(), before);
    clock.advance(SECOND);
    assert!(poll(&mut alive).is_none());
    assert!(store.calls() <= before + 50);
    assert!(leases.iter().all(|lease| lease.remaining() == 30 * SECOND));
    // A lease that its holder renews itself is not renewed again before its own third.
    block_on(leases[0].renew()).unwrap();
    drop(alive);
    clock.advance(31 * SECOND);
    assert!(leases.iter().all(|lease| lease.is_lost()), "a dropped lease is not renewed");
}

/// A lease that is lost or released, with any result, is dropped from renewal and delays no other.
/// An empty set is no error.
#[test]
fn l3_a_lost_lease_holds_up_no_other() {
    let (clock, store, engine) = setup();
    let leases = ["lost", "released", "kept"].map(|key| acquire(&engine, key));
    assert!(block_on(engine.forget("tests", "lost")).unwrap());
    let _successor = acquire(&engine, "lost");
    store.on_call(store.calls() + 1, Fault::RequestLost);
    let mut release = Box::pin(leases[1].release());
    assert!(poll(&mut release).is_none());
    drop(release);
    let borrowed: Vec<&Lease> = leases.iter().collect();
    let mut alive = Box::pin(engine.keep_alive(&borrowed));
    for _ in 0..120 {
        assert!(poll(&mut alive).is_none());
        clock.advance(SECOND);
        assert!(!leases[2].is_lost());
    }
    assert!(leases[0].is_lost() && leases[1].is_lost());
    assert!(poll(&mut Box::pin(engine.keep_alive::<Lease>(&[]))).is_none());
}

#[test]
fn what_runs_and_renews_can_be_sent() {
    fn sent<T: Send>(_: &T) {}
    let (_, _, engine) = setup();
    let (request, leases) = (request("k"), [acquire(&engine, "l")]);
    sent(&engine.run(&request, |_| async { Ok::<_, Trouble>(()) }));
    sent(&engine.run_classified(&request, |_| async { Ok::<_, Foreign>(()) }, classify));
    sent(&engine.run_blocking(&request, |_| Ok::<_, Trouble>(())));
    sent(&engine.keep_alive(&leases));
}
