//! Observability: exactly what src/observe.rs documents, and no secrets.

mod edges;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nevertwice::store::Store;
use nevertwice::testing::{Fault, FaultyStore, block_on};
use nevertwice::{
    Begin, Body, Bulk, Engine, Error, Failure, Filter, Fingerprint, Lease, LeaseToken, ManualClock,
    MemoryStore, Need, Request, Resolution, Retry, RunError,
};
use serde::{Deserialize, Serialize};

const SECOND: Duration = Duration::from_secs(1);

/// The marker in every key, payload, response, error and checkpoint of the story.
const SECRET: &str = "S3CR3T";

#[derive(Debug, Serialize, Deserialize)]
struct Declined(String);

impl Failure for Declined {
    fn retry(&self) -> Retry {
        Retry::Never
    }
}

fn secret(text: &str) -> String {
    format!("{SECRET}-{text}")
}

fn request(key: &str) -> Request {
    Request::new("orders", secret(key)).unwrap().fingerprint(Fingerprint::of(secret("payload")))
}

fn lease(begin: Result<Begin, Error>) -> Lease {
    match begin {
        Ok(Begin::Acquired(lease)) => lease,
        other => panic!("expected a lease, got {other:?}"),
    }
}

fn poll<F: Future>(future: &mut Pin<Box<F>>) -> Option<F::Output> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

/// Returns the output of `call`, advancing the clock whenever it is pending.
fn driven<T>(clock: &ManualClock, call: impl Future<Output = T>) -> T {
    let mut call = Box::pin(call);
    loop {
        if let Some(value) = poll(&mut call) {
            return value;
        }
        clock.advance(Duration::from_millis(100));
    }
}

/// The numbers and secrets that are only known once the story has run.
#[derive(Debug, Default)]
struct Told {
    /// The number of store calls repeated by the call that timed out.
    repetitions: u64,
    purged: u64,
    /// Ids and owners' proofs, which must not be shown either.
    hidden: Vec<String>,
}

/// Runs one of everything. Returns the values that are not known in advance.
fn story() -> Told {
    let clock = ManualClock::new();
    let store = FaultyStore::with_clock(MemoryStore::builder().clock(clock.clone()).build(), clock.clone());
    let builder = || Engine::builder(store.clone()).clock(clock.clone()).keep_keys(true);
    let engine = builder().build().unwrap();
    let begin = |key: &str| block_on(engine.begin(&request(key)));
    let next_call = || store.calls() + 1;
    let crash = || clock.advance(engine.policy().lease);
    let mut told = Told::default();
    let mut hide = |token: LeaseToken| {
        let token = serde_json::to_value(token).unwrap();
        told.hidden.extend(["id", "owner"].map(|field| token[field].as_str().unwrap().to_owned()));
    };

    // Fresh, replay, mismatch.
    let fresh = lease(begin("fresh"));
    hide(fresh.token());
    block_on(fresh.save_checkpoint(secret("checkpoint"))).unwrap();
    block_on(fresh.mark_effect()).unwrap();
    block_on(fresh.renew()).unwrap();
    block_on(fresh.complete(secret("response"))).unwrap();
    assert!(matches!(begin("fresh"), Ok(Begin::Completed(_))));
    let other = request("fresh").fingerprint(Fingerprint::of("other"));
    assert!(matches!(block_on(engine.begin(&other)), Ok(Begin::Mismatch(_))));

    // In progress, taken over, lost, restored, finished already.
    let crashed = lease(begin("crashed"));
    block_on(crashed.save_checkpoint(secret("checkpoint"))).unwrap();
    assert!(matches!(begin("crashed"), Ok(Begin::InProgress(_))));
    crash();
    let successor = lease(begin("crashed"));
    hide(successor.token());
    assert!(matches!(block_on(crashed.complete(secret("late"))), Err(Error::LeaseLost { .. })));
    assert!(matches!(block_on(crashed.renew()), Err(Error::LeaseLost { .. })));
    assert!(matches!(block_on(engine.resume(&crashed.token())), Err(Error::LeaseLost { .. })));
    let resumed = block_on(engine.resume(&successor.token())).unwrap();
    assert!(block_on(store.inner().discard(&request("crashed").id())).unwrap());
    block_on(resumed.complete(secret("response"))).unwrap();
    let again = block_on(resumed.complete(secret("another")));
    assert!(matches!(again, Err(Error::AlreadyFinished { .. })));

    // A faulty store: an error, a lost answer, no answer at all.
    store.on_call(next_call(), Fault::FailAfter);
    let troubled = lease(begin("troubled"));
    store.on_call(next_call(), Fault::RequestLost);
    driven(&clock, troubled.complete(secret("response"))).unwrap();
    let before = store.calls();
    store.from_call(next_call(), Fault::RequestLost);
    let given_up = driven(&clock, engine.begin(&request("given up")));
    assert!(matches!(given_up, Err(Error::TimedOut { .. })));
    store.heal();
    told.repetitions = store.calls() - before - 1;

    // Waiting: answered, timed out, no free slot.
    let awaited = lease(begin("awaited"));
    let duplicate = request("awaited");
    let mut wait = Box::pin(engine.begin_or_wait(&duplicate, 5 * SECOND));
    assert!(poll(&mut wait).is_none());
    clock.advance(2 * SECOND);
    block_on(awaited.complete(secret("response"))).unwrap();
    assert!(matches!(block_on(wait), Ok(Begin::Completed(_))));
    let slow = lease(begin("slow"));
    let wait = driven(&clock, engine.begin_or_wait(&request("slow"), 5 * SECOND));
    assert!(matches!(wait, Ok(Begin::InProgress(_))));
    let small = builder().max_waiters(0).build().unwrap();
    let wait = block_on(small.begin_or_wait(&request("slow"), 5 * SECOND));
    assert!(matches!(wait, Ok(Begin::InProgress(_))));
    block_on(slow.release()).unwrap();

    // A run that delays its own renewal.
    let (hold_up, delayed) = (clock.clone(), request("overdue"));
    let run = engine.run(&delayed, |_| async move {
        hold_up.advance(20 * SECOND);
        Ok::<_, Declined>(secret("value"))
    });
    block_on(run).unwrap();

    // Runs: executed, replayed, failed.
    let (good, bad) = (request("run"), request("declined"));
    for _ in 0..2 {
        let run = engine.run(&good, |_| async { Ok::<_, Declined>(secret("value")) });
        block_on(run).unwrap();
    }
    let run = engine.run(&bad, |_| async { Err::<(), _>(Declined(secret("error"))) });
    assert!(matches!(block_on(run), Err(RunError::Failed { replayed: false, .. })));
    assert!(matches!(begin("declined"), Ok(Begin::Failed(_))));

    // An operator's actions.
    let unclear = lease(begin("unclear"));
    block_on(unclear.mark_effect()).unwrap();
    drop(unclear);
    crash();
    let Ok(Begin::Unresolved(unknown)) = begin("unclear") else { panic!() };
    let done = || Resolution::Completed(Body::kept(secret("response").into()));
    let resolve = |fence| block_on(engine.resolve("orders", secret("unclear"), fence, done()));
    resolve(unknown.fence()).unwrap();
    let stale = resolve(crashed.fence());
    assert!(matches!(stale, Err(Error::NotResolvable { .. })));
    for existed in [true, false] {
        assert_eq!(block_on(engine.forget("orders", secret("unclear"))).unwrap(), existed);
    }

    // Calls that keep the store small.
    let brief = builder().response_retention(SECOND).build().unwrap();
    block_on(lease(block_on(brief.begin(&request("brief")))).complete(secret("response"))).unwrap();
    clock.advance(2 * SECOND);
    assert_eq!(block_on(brief.drop_responses(None, 1000)).unwrap().0, 1);
    store.on_call(next_call(), Fault::FailBefore);
    assert!(block_on(engine.purge(1000)).is_err());
    store.on_call(next_call(), Fault::FailBefore);
    assert!(block_on(engine.drop_responses(None, 1000)).is_err());
    in_transactions();

    // A batch, begun and completed.
    let batch = block_on(engine.begin_many(&["one", "two"].map(request)));
    let leases: Vec<Lease> = batch.into_iter().map(lease).collect();
    let outcomes: Vec<_> = leases.iter().map(|lease| (lease, secret("response").into())).collect();
    assert!(block_on(engine.complete_many(&outcomes)).into_iter().all(|done| done.is_ok()));

    // Many unresolved at once: one is resolved and then amended, one is forgotten, one expires.
    let batch = block_on(engine.begin_many(&["three", "four", "five"].map(request)));
    let leases: Vec<Lease> = batch.into_iter().map(lease).collect();
    let held: Vec<&Lease> = leases.iter().collect();
    let unknown: Vec<_> =
        leases.iter().map(|lease| (lease, secret("error").into(), Retry::Unresolved)).collect();
    let renewed = block_on(engine.renew_many(&held)).into_iter();
    let marked = block_on(engine.mark_effect_many(&held)).into_iter();
    let failed = block_on(engine.fail_many(&unknown)).into_iter();
    assert!(renewed.chain(marked).chain(failed).all(|done| done.is_ok()));
    assert_eq!(block_on(engine.unresolved_count()).unwrap(), 3);
    let settling = Filter::new().need(Need::Settling);
    let page = block_on(engine.resolve_many(&settling, &done(), Bulk::Apply, None, 1)).unwrap();
    let id = page.done[0].id;
    let stamp = block_on(engine.inspect_id(&id)).unwrap().unwrap().stamp;
    block_on(engine.amend_id(&id, stamp, Resolution::Failed(Body::kept("no".into())))).unwrap();
    assert_eq!(block_on(engine.forget_many(&settling, Bulk::Apply, None, 1)).unwrap().done.len(), 1);
    for time in [engine.policy().retention + engine.policy().lease, engine.policy().unresolved_retention] {
        clock.advance(time);
        let purged = block_on(engine.purge(1000)).unwrap();
        assert!(purged > 0);
        told.purged += purged;
    }
    told
}

/// Runs the stories of the HTTP layer and the outbox, and that of the engine.
fn everything() -> Told {
    edges::edges();
    story()
}

/// Runs a purger on a store that fails now and then, and drops it midway through a purge. Returns
/// the number of purges.
fn purger() -> u64 {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    let clock = ManualClock::new();
    let store = FaultyStore::with_clock(MemoryStore::builder().clock(clock.clone()).build(), clock.clone());
    let builder = Engine::builder(store.clone()).clock(clock.clone());
    let engine = builder.response_retention(SECOND).build().unwrap();
    let plan = nevertwice::PurgePlan { every: 10 * SECOND, ..nevertwice::PurgePlan::default() };
    let turns = Arc::new(AtomicU64::new(0));
    let count = turns.clone();
    let mut purger = Box::pin(engine.purge_regularly(plan, move |purged| {
        if !matches!(purged, nevertwice::Purged::Elsewhere) {
            count.fetch_add(1, Ordering::SeqCst);
        }
    }));
    for second in 0..60 {
        assert!(poll(&mut purger).is_none());
        if second == 30 {
            store.on_call(store.calls() + 3, Fault::FailBefore); // a begin's two, and the purge
        }
        clock.advance(SECOND);
    }
    let taken = turns.load(Ordering::SeqCst);
    let hangs = store.calls() + 3;
    store.on_call(hangs, Fault::RequestLost);
    for _ in 0..60 {
        assert!(poll(&mut purger).is_none());
        if store.calls() == hangs {
            break; // it has the turn
        }
        clock.advance(SECOND);
    }
    assert_eq!(store.calls(), hangs);
    drop(purger);
    taken
}

/// Ends leases in every way. Returns the number of abandoned ones.
fn abandoned() -> u64 {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let engine = Engine::builder(store).clock(clock.clone()).build().unwrap();
    let begin = |key: &str| lease(block_on(engine.begin(&request(key))));
    let lose = |key: &str| {
        let lost = begin(key);
        assert!(block_on(engine.forget("orders", secret(key))).unwrap());
        let successor = begin(key);
        block_on(successor.complete(secret("response"))).unwrap();
        assert!(block_on(lost.renew()).is_err());
    };
    // Finished, released, lost, handed over.
    block_on(begin("completed").complete(secret("response"))).unwrap();
    block_on(begin("failed").fail(secret("error"), Retry::Never)).unwrap();
    block_on(begin("released").release()).unwrap();
    lose("lost");
    let token = begin("handed over").token();
    // One: resumed and dropped. Then resumed and finished, and resumed after it is finished.
    drop(block_on(engine.resume(&token)).unwrap());
    block_on(block_on(engine.resume(&token)).unwrap().complete(secret("response"))).unwrap();
    drop(block_on(engine.resume(&token)).unwrap());
    // Two and three: dropped within its lease, and after it.
    drop(begin("dropped"));
    let late = begin("late");
    clock.advance(2 * engine.policy().lease);
    drop(late);
    // Four: a run that is dropped. Five: one that panics, on its own thread.
    let running = request("run");
    let mut run = Box::pin(engine.run(&running, |_| std::future::pending::<Result<(), Declined>>()));
    assert!(poll(&mut run).is_none());
    drop(run);
    let panicking = request("panic");
    let run =
        engine.run(&panicking, |_| async { if true { panic!("planned") } else { Ok::<(), Declined>(()) } });
    let run = std::panic::AssertUnwindSafe(run);
    assert!(block_on(futures_util::FutureExt::catch_unwind(run)).is_err());
    5
}

/// Runs one of everything in transactions of the application's.
fn in_transactions() {
    use nevertwice::{SqliteStore, sqlite};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.db");
    let store = SqliteStore::open(&path).unwrap();
    let engine = Engine::builder(store.clone()).build().unwrap();
    let mut db = rusqlite::Connection::open(&path).unwrap();
    let begin = |transaction: &rusqlite::Transaction<'_>, key: &str| {
        sqlite::begin_in(transaction, &store, engine.policy(), &request(key)).unwrap()
    };
    let transaction = db.transaction().unwrap();
    let Begin::Acquired(done) = begin(&transaction, "done") else { panic!() };
    sqlite::complete_in(&transaction, &done, secret("response")).unwrap();
    assert!(matches!(begin(&transaction, "done"), Begin::Completed(_)));
    let other = sqlite::complete_in(&transaction, &done, secret("other"));
    assert!(matches!(other, Err(Error::AlreadyFinished { .. })));
    let Begin::Acquired(failed) = begin(&transaction, "failed") else { panic!() };
    sqlite::fail_in(&transaction, &failed, secret("error"), Retry::Never).unwrap();
    let Begin::Acquired(undone) = begin(&transaction, "undone") else { panic!() };
    transaction.rollback().unwrap();
    let lease = lease(block_on(engine.begin(&request("engine's"))));
    let transaction = db.transaction().unwrap();
    let resumed = sqlite::resume_in(&transaction, &store, engine.policy(), &lease.token()).unwrap();
    sqlite::complete_in(&transaction, &resumed, secret("response")).unwrap();
    let lost = sqlite::complete_in(&transaction, &undone, secret("response"));
    assert!(matches!(lost, Err(Error::LeaseLost { .. })));
    transaction.commit().unwrap();
}

/// Returns the rows of one of the tables in the documentation of `observe`, without their
/// backticks.
fn documented(table: &str) -> Vec<Vec<String>> {
    let table = match table {
        "Metrics" => include_str!("../../../src/observe/metrics.md"),
        "Spans" => include_str!("../../../src/observe/spans.md"),
        "Events" => include_str!("../../../src/observe/events.md"),
        other => panic!("no table {other}"),
    };
    let rows = table.lines().filter(|line| line.starts_with("| `nevertwice"));
    let cells = |row: &str| row.split('|').map(|cell| cell.trim().replace('`', "")).collect::<Vec<_>>();
    rows.map(|row| cells(row)[1..].to_vec()).collect()
}

fn words(cell: &str) -> BTreeSet<String> {
    cell.split(", ").map(str::to_owned).collect()
}

mod measured {
    use std::collections::BTreeMap;

    use metrics::Unit;
    use metrics_util::MetricKind;
    use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};

    use super::*;

    type Metrics = BTreeMap<String, (MetricKind, Option<Unit>, bool, DebugValue)>;

    /// Returns the recorded metrics, by name and labels.
    fn taken(snapshotter: &Snapshotter) -> Metrics {
        let mut metrics = Metrics::new();
        for (key, unit, description, value) in snapshotter.snapshot().into_vec() {
            let (kind, key) = key.into_parts();
            let labels: BTreeSet<String> =
                key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let labels: Vec<String> = labels.into_iter().collect();
            let name = format!("{} {}", key.name(), labels.join(" "));
            metrics.insert(name, (kind, unit, description.is_some(), value));
        }
        metrics
    }

    fn recorded<T>(story: impl FnOnce(&Snapshotter) -> T) -> (T, Metrics) {
        let recorder = DebuggingRecorder::new();
        let snapshotter = recorder.snapshotter();
        let told = metrics::with_local_recorder(&recorder, || story(&snapshotter));
        (told, taken(&snapshotter))
    }

    #[test]
    fn the_story_is_counted_as_documented() {
        let (told, metrics) = recorded(|_| story());
        let counted: BTreeMap<&str, u64> = metrics
            .iter()
            .filter_map(|(name, (.., value))| match value {
                DebugValue::Counter(count) => Some((name.as_str(), *count)),
                DebugValue::Gauge(_) | DebugValue::Histogram(_) => None,
            })
            .collect();
        let expected = BTreeMap::from([
            ("nevertwice_begins_total outcome=acquired store=memory", 16),
            ("nevertwice_begins_total outcome=completed store=memory", 3),
            ("nevertwice_begins_total outcome=in_progress store=memory", 3),
            ("nevertwice_begins_total outcome=failed store=memory", 1),
            ("nevertwice_begins_total outcome=unresolved store=memory", 1),
            ("nevertwice_begins_total outcome=mismatch store=memory", 1),
            ("nevertwice_begins_total outcome=error store=memory", 1),
            ("nevertwice_takeovers_total store=memory", 1),
            ("nevertwice_commands_total command=complete outcome=ok store=memory", 9),
            ("nevertwice_commands_total command=complete outcome=lease_lost store=memory", 1),
            ("nevertwice_commands_total command=complete outcome=already_finished store=memory", 1),
            ("nevertwice_commands_total command=fail outcome=ok store=memory", 4),
            ("nevertwice_commands_total command=mark_effect outcome=ok store=memory", 5),
            ("nevertwice_commands_total command=release outcome=ok store=memory", 1),
            ("nevertwice_commands_total command=renew outcome=ok store=memory", 4),
            ("nevertwice_commands_total command=renew outcome=lease_lost store=memory", 1),
            ("nevertwice_commands_total command=resume outcome=ok store=memory", 1),
            ("nevertwice_commands_total command=resume outcome=lease_lost store=memory", 1),
            ("nevertwice_commands_total command=save_checkpoint outcome=ok store=memory", 2),
            ("nevertwice_leases_abandoned_total store=memory", 1),
            ("nevertwice_renewals_overdue_total store=memory", 1),
            ("nevertwice_leases_lost_total store=memory", 2),
            ("nevertwice_restored_total store=memory", 1),
            ("nevertwice_store_retries_total reason=unavailable store=memory", 1),
            ("nevertwice_store_retries_total reason=no_answer store=memory", 1 + told.repetitions),
            ("nevertwice_timeouts_total store=memory", 1),
            ("nevertwice_waits_total end=changed store=memory", 1),
            ("nevertwice_waits_total end=timeout store=memory", 1),
            ("nevertwice_waits_total end=limit store=memory", 1),
            ("nevertwice_runs_total outcome=executed store=memory", 2),
            ("nevertwice_runs_total outcome=replayed store=memory", 1),
            ("nevertwice_runs_total outcome=failed store=memory", 1),
            ("nevertwice_purged_total store=memory", told.purged),
            ("nevertwice_unsettled_expired_total store=memory", 1),
            ("nevertwice_responses_dropped_total store=memory", 1),
            ("nevertwice_purge_failures_total command=purge store=memory", 1),
            ("nevertwice_purge_failures_total command=drop_responses store=memory", 1),
            ("nevertwice_operator_actions_total action=amend outcome=ok store=memory", 1),
            ("nevertwice_operator_actions_total action=resolve outcome=ok store=memory", 2),
            ("nevertwice_operator_actions_total action=resolve outcome=not_resolvable store=memory", 1),
            ("nevertwice_operator_actions_total action=forget outcome=ok store=memory", 2),
            ("nevertwice_operator_actions_total action=forget outcome=nothing store=memory", 1),
        ]);
        let (in_transactions, counted): (BTreeMap<&str, u64>, BTreeMap<&str, u64>) =
            counted.into_iter().partition(|(name, _)| name.ends_with("store=sqlite"));
        assert_eq!(counted, expected);
        let expected = BTreeMap::from([
            ("nevertwice_begins_total outcome=acquired store=sqlite", 4),
            ("nevertwice_begins_total outcome=completed store=sqlite", 1),
            ("nevertwice_commands_total command=complete outcome=already_finished store=sqlite", 1),
            ("nevertwice_commands_total command=complete outcome=lease_lost store=sqlite", 1),
            ("nevertwice_commands_total command=complete outcome=ok store=sqlite", 2),
            ("nevertwice_commands_total command=fail outcome=ok store=sqlite", 1),
            ("nevertwice_commands_total command=resume outcome=ok store=sqlite", 1),
            ("nevertwice_leases_lost_total store=sqlite", 1),
        ]);
        assert_eq!(in_transactions, expected);
    }

    /// The operation by which purgers exclude each other does not count as one of the
    /// application's.
    #[test]
    fn a_purger_counts_what_it_removes_and_nothing_else() {
        let (turns, metrics) = recorded(|_| purger());
        assert!(turns >= 3);
        let counted: Vec<&str> = metrics
            .iter()
            .filter(|(_, (kind, ..))| *kind == MetricKind::Counter)
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(
            counted,
            [
                "nevertwice_purge_failures_total command=purge store=memory",
                "nevertwice_purged_total store=memory",
                "nevertwice_responses_dropped_total store=memory",
            ]
        );
        assert!(!metrics.values().any(|(kind, ..)| *kind == MetricKind::Histogram));
    }

    /// A lease is reported at most once, however it ends, and only if it was abandoned.
    #[test]
    fn only_abandoned_leases_are_counted() {
        let (expected, metrics) = recorded(|_| abandoned());
        let (.., count) = &metrics["nevertwice_leases_abandoned_total store=memory"];
        assert_eq!(*count, DebugValue::Counter(expected));
    }

    #[test]
    fn every_histogram_has_advised_buckets() {
        let histograms: BTreeSet<String> = documented("Metrics")
            .into_iter()
            .filter(|row| row[1] == "histogram")
            .map(|row| row[0].clone())
            .collect();
        let advised = nevertwice::observe::BUCKETS.map(|(name, bounds)| {
            assert!(bounds.len() > 5 && bounds[0] > 0.0, "{name}");
            assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "{name}");
            // The range covers what the default policy allows, with one bound beyond what is usual.
            let longest = Engine::builder(MemoryStore::new()).build().unwrap().policy().run_wait;
            assert!(*bounds.last().unwrap() >= longest.as_secs_f64(), "{name}");
            name.to_owned()
        });
        assert_eq!(BTreeSet::from(advised), histograms);
    }

    #[test]
    fn latencies_are_of_the_engines_clock_and_as_many_as_answers() {
        let (_, metrics) = recorded(|_| story());
        let times = |name: &str| match &metrics[name].3 {
            DebugValue::Histogram(times) => times.iter().map(|time| time.0).collect::<Vec<f64>>(),
            other => panic!("{name}: {other:?}"),
        };
        assert_eq!(times("nevertwice_begin_seconds outcome=acquired store=memory"), [0.0; 16]);
        assert_eq!(times("nevertwice_begin_seconds outcome=error store=memory"), [5.0]);
        // The time waited does not count as the begin's latency.
        assert_eq!(times("nevertwice_begin_seconds outcome=completed store=memory"), [0.0; 3]);
        assert_eq!(times("nevertwice_wait_seconds end=changed store=memory"), [2.0]);
        assert_eq!(times("nevertwice_wait_seconds end=timeout store=memory"), [5.0]);
        let finished = times("nevertwice_finish_seconds command=complete store=memory");
        assert_eq!((finished.len(), finished.iter().sum::<f64>()), (11, 2.5)); // one got no answer at first
        assert_eq!(times("nevertwice_finish_seconds command=fail store=memory"), [0.0; 4]);
    }

    #[test]
    fn every_metric_is_documented_with_its_type_labels_and_unit() {
        let (told, metrics) = recorded(|_| everything());
        let mut emitted = BTreeMap::new();
        for (name, (kind, unit, described, _)) in &metrics {
            assert!(!name.contains(SECRET) && !name.contains("orders"), "{name}");
            assert!(told.hidden.iter().all(|hidden| !name.contains(hidden)), "{name}");
            assert!(described, "{name} is not described");
            let mut parts = name.split(' ').map(|part| part.split('=').next().unwrap().to_owned());
            let name = parts.next().unwrap();
            let seconds = *unit == Some(Unit::Seconds);
            let kind = format!("{kind:?}").to_lowercase();
            emitted.insert(name, (kind, parts.collect::<BTreeSet<_>>(), seconds));
        }
        let documented = documented("Metrics").into_iter().map(|row| {
            let [name, kind, labels, unit, ..] = row.as_slice() else { panic!("{row:?}") };
            (name.clone(), (kind.clone(), words(labels), unit == "seconds"))
        });
        assert_eq!(emitted, documented.collect());
    }

    #[test]
    fn the_gauge_shows_who_waits_also_if_they_give_up() {
        let ((), metrics) = recorded(|snapshotter| {
            let waiting = || match taken(snapshotter)["nevertwice_waiters store=memory"].3 {
                DebugValue::Gauge(waiters) => waiters.0,
                DebugValue::Counter(_) | DebugValue::Histogram(_) => panic!("it is a gauge"),
            };
            let engine = Engine::builder(MemoryStore::new()).build().unwrap();
            let _lease = lease(block_on(engine.begin(&request("k"))));
            let request = request("k");
            let mut waits = [(); 2].map(|()| Box::pin(engine.begin_or_wait(&request, SECOND)));
            assert!(waits.iter_mut().all(|wait| poll(wait).is_none()));
            assert_eq!(waiting(), 2.0);
            drop(waits);
            assert_eq!(waiting(), -2.0); // since it was looked at, which starts it anew
        });
        assert!(!metrics.keys().any(|name| name.starts_with("nevertwice_waits_total")));
    }
}

mod traced {
    use std::fmt::{Debug, Write};
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Level, Metadata, Subscriber};
    use tracing_subscriber::layer::{Context, SubscriberExt};
    use tracing_subscriber::registry::LookupSpan;
    use tracing_subscriber::{Layer, Registry};

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Seen(Arc<Mutex<Trace>>);

    #[derive(Debug, Default)]
    struct Trace {
        /// The name, level and fields of each declared span.
        spans: BTreeSet<(String, Level, BTreeSet<String>)>,
        events: BTreeSet<(String, Level, BTreeSet<String>)>,
        /// Every recorded line. Those of events include their span.
        lines: Vec<String>,
    }

    struct Line<'a>(&'a mut String);

    impl Visit for Line<'_> {
        fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
            write!(self.0, " {}={value:?}", field.name()).unwrap();
        }
    }

    fn declared(metadata: &Metadata<'_>) -> (String, Level, BTreeSet<String>) {
        let fields = metadata.fields().iter().map(|field| field.name().to_owned());
        (metadata.name().to_owned(), *metadata.level(), fields.filter(|name| name != "message").collect())
    }

    impl Seen {
        fn note(&self, name: &str, record: impl FnOnce(&mut dyn Visit), note: impl FnOnce(&mut Trace)) {
            let mut line = name.to_owned();
            record(&mut Line(&mut line));
            let mut trace = self.0.lock().unwrap();
            trace.lines.push(line);
            note(&mut trace);
        }
    }

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Seen {
        fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
            let metadata = attributes.metadata();
            if metadata.target().starts_with("nevertwice") {
                let note = |trace: &mut Trace| _ = trace.spans.insert(declared(metadata));
                self.note(metadata.name(), |visit| attributes.record(visit), note);
            }
        }

        fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
            let name = context.span(id).unwrap().name();
            self.note(name, |visit| values.record(visit), |_| ());
        }

        fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
            let metadata = event.metadata();
            assert_eq!(metadata.target(), "nevertwice");
            let span = context.lookup_current().map_or("no span", |span| span.name());
            let note = |trace: &mut Trace| _ = trace.events.insert(declared(metadata));
            self.note(&format!("{span}: {}", metadata.name()), |visit| event.record(visit), note);
        }
    }

    fn trace() -> (Told, Trace) {
        traced(story)
    }

    fn traced<T>(story: impl FnOnce() -> T) -> (T, Trace) {
        let seen = Seen::default();
        let told = tracing::subscriber::with_default(Registry::default().with(seen.clone()), story);
        (told, std::mem::take(&mut seen.0.lock().unwrap()))
    }

    #[test]
    fn every_span_and_event_is_documented_with_its_level_and_fields() {
        let (_, trace) = traced(everything);
        let fields = ["store", "scope", "outcome", "state", "attempt"].map(str::to_owned);
        let spans = documented("Spans")
            .into_iter()
            .map(|row| (row[0].clone(), Level::DEBUG, BTreeSet::from(fields.clone())));
        assert_eq!(trace.spans, spans.collect());
        let events = documented("Events")
            .into_iter()
            .map(|row| (row[0].clone(), row[1].parse::<Level>().unwrap(), words(&row[2])));
        assert_eq!(trace.events, events.collect());
    }

    #[test]
    fn nothing_secret_is_said() {
        let (told, trace) = traced(everything);
        assert!(trace.lines.len() > 50 && told.hidden.len() == 4);
        for line in &trace.lines {
            assert!(!line.contains(SECRET), "{line}");
            assert!(told.hidden.iter().all(|hidden| !line.contains(hidden)), "{line}");
        }
    }

    #[test]
    fn events_are_in_the_span_of_their_call() {
        let (_, trace) = trace();
        let said = |line: &str| assert!(trace.lines.iter().any(|said| said == line), "{:#?}", trace.lines);
        said(r#"nevertwice.begin store="memory" scope="orders""#);
        said(r#"nevertwice.begin outcome="unresolved""#);
        said("nevertwice.begin attempt=2");
        said(
            r#"nevertwice.begin: nevertwice.takeover message=nevertwice.takeover: taken over store="memory" attempt=2"#,
        );
        said(r#"nevertwice.complete outcome="lease_lost""#);
        said(r#"nevertwice.complete state="in_progress""#);
        said(concat!(
            r#"nevertwice.complete: nevertwice.lease_lost message=nevertwice.lease_lost: lease lost store="memory" "#,
            r#"state="in_progress" attempt=1"#
        ));
        said(concat!(
            r#"nevertwice.complete: nevertwice.restored message=nevertwice.restored: the record was gone "#,
            r#"store="memory" attempt=2"#
        ));
        said(concat!(
            r#"nevertwice.run: nevertwice.renewal_overdue message=nevertwice.renewal_overdue: "#,
            r#"the future that renews was not polled in time store="memory" attempt=1 late_ms=10000"#
        ));
        said(concat!(
            r#"nevertwice.begin: nevertwice.store_retry message=nevertwice.store_retry: store call repeated store="memory" "#,
            r#"reason="unavailable" tries=1"#
        ));
        said(concat!(
            r#"nevertwice.begin: nevertwice.unresolved message=nevertwice.unresolved: an operator must resolve it store="memory" "#,
            r#"reason="effect_marked" attempt=1"#
        ));
        // A lease is dropped outside any call.
        let outside: Vec<&String> = trace.lines.iter().filter(|line| line.starts_with("no span")).collect();
        let abandoned = concat!(
            r#"no span: nevertwice.lease_abandoned message=nevertwice.lease_abandoned: dropped unfinished "#,
            r#"store="memory" attempt=1"#
        );
        assert_eq!(outside, [abandoned]);
    }

    /// A terminal shows the message of an event and not its name: the message begins with the name.
    #[test]
    fn every_event_says_its_name_in_its_message() {
        let (_, trace) = trace();
        let (mut events, mut lines) = (0, trace.lines.iter());
        for line in lines.by_ref().filter(|line| line.contains(" message=")) {
            let (name, message) = line.split_once(" message=").unwrap();
            let name = name.split_once(": ").unwrap().1;
            assert!(message.starts_with(&format!("{name}: ")), "{line}");
            events += 1;
        }
        assert!(events > 50);
    }

    #[test]
    fn nothing_is_said_of_a_purgers_turns() {
        let seen = Seen::default();
        tracing::subscriber::with_default(Registry::default().with(seen.clone()), purger);
        let trace = std::mem::take(&mut *seen.0.lock().unwrap());
        let names = |said: &BTreeSet<(String, Level, BTreeSet<String>)>| {
            said.iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(&trace.spans), ["nevertwice.drop_responses", "nevertwice.purge"]);
        assert_eq!(names(&trace.events), ["nevertwice.purge_failed"]);
    }

    #[test]
    fn futures_can_be_sent() {
        fn sent<T: Send>(_: &T) {}
        let engine = Engine::builder(MemoryStore::new()).build().unwrap();
        let request = request("k");
        let lease = lease(block_on(engine.begin(&request)));
        sent(&engine.begin(&request));
        sent(&engine.begin_or_wait(&request, SECOND));
        sent(&engine.begin_many(&[]));
        sent(&engine.try_begin_many([Request::new("scope", "")]));
        sent(&engine.fail_many(&[]));
        sent(&engine.resolve_many(&Filter::new(), &Resolution::Rerun, Bulk::DryRun, None, 1));
        sent(&engine.forget_many(&Filter::new(), Bulk::DryRun, None, 1));
        sent(&engine.unresolved_count());
        sent(&engine.run(&request, |_| async { Ok::<_, Declined>(()) }));
        sent(&engine.purge(1));
        sent(&engine.drop_responses(None, 1));
        sent(&lease.complete("response"));
    }
}
