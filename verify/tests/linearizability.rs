//! Linearizability of the real stores: short histories of one key, recorded while several tasks use
//! it concurrently, must be explained by some order of the calls. The outcome of a call that was
//! dropped or whose answer was lost is unknown. Prints a summary with `--nocapture`.
//! `NEVERTWICE_LONG=1` runs ten times as many histories.
#![allow(clippy::print_stdout)] // what a run did is its result

#[path = "linearizability/keys.rs"]
mod keys;
#[path = "../../tests/support/postgres.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod postgres;
#[path = "linearizability/recorder.rs"]
mod recorder;
#[path = "linearizability/register.rs"]
mod register;
#[path = "../../tests/support/redis.rs"]
#[allow(dead_code)] // the proxy is for others
mod server;
#[path = "linearizability/spec.rs"]
mod spec;
#[path = "linearizability/tasks.rs"]
mod tasks;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use nevertwice::postgres::{Warning, tokio_postgres};
use nevertwice::store::Store;
use nevertwice::{Clock, MemoryStore, PostgresStore, RedisStore, SqliteStore, SystemClock};

use recorder::Troubled;
use server::Server;
use spec::{Event, Spec, is_linearizable};

/// The number of histories for most stores, half of them of the engine and half of the store alone.
/// A tenth of that without optimisation.
const HISTORIES: u64 = if cfg!(debug_assertions) { 5_000 } else { 50_000 };
const SEED: u64 = 20_261_122;

/// The most calls of unknown outcome in a history that is checked: each doubles the search.
const MOST_UNKNOWN: usize = 14;

/// The factor by which the longer run multiplies its work.
fn factor() -> u64 {
    if std::env::var("NEVERTWICE_LONG").is_ok_and(|long| long == "1") { 10 } else { 1 }
}

/// Totals over the histories of a store.
#[derive(Default)]
struct Tally {
    histories: u64,
    calls: u64,
    unknown: u64,
    overlapping: u64,
    /// Histories that were not checked, since too many outcomes are unknown.
    left_out: u64,
}

impl Tally {
    fn add<S: Spec>(&mut self, start: S, history: &[Event<S::Call, S::Answer>], seed: u64, store: &str) {
        let unknown = history.iter().filter(|event| event.answered.is_none()).count();
        if unknown > MOST_UNKNOWN {
            self.left_out += 1;
            return;
        }
        self.histories += 1;
        self.calls += history.len() as u64;
        self.unknown += unknown as u64;
        let overlaps = |event: &Event<S::Call, S::Answer>| {
            history.iter().any(|other| {
                other.sent < event.sent && other.answered.as_ref().is_none_or(|(at, _)| *at > event.sent)
            })
        };
        self.overlapping += u64::from(history.iter().any(overlaps));
        if !is_linearizable(start, history) {
            let mut events: Vec<&Event<S::Call, S::Answer>> = history.iter().collect();
            events.sort_by_key(|event| event.sent);
            let lines: String = events.iter().map(|event| format!("\n    {event:?}")).collect();
            panic!("{store}, history {seed}: no order of these calls explains the answers:{lines}");
        }
    }
}

async fn histories(store: Arc<dyn Store>, name: &'static str, at_once: usize, all: u64) {
    histories_from(store, name, at_once, 0, all * factor()).await;
}

/// Runs the histories from the number `first` on.
async fn histories_from(store: Arc<dyn Store>, name: &'static str, at_once: usize, first: u64, all: u64) {
    let start = SystemClock.monotonic();
    let mut tally = Tally::default();
    let (half, end) = (first + all / 2, first + all);
    let engines = stream::iter(first..half).map(|n| tokio::spawn(tasks::engine(troubled(&store, n), n)));
    let mut engines = engines.buffer_unordered(at_once);
    while let Some(history) = engines.next().await {
        let (seed, history) = history.unwrap();
        tally.add(keys::Key::default(), &history, seed, name);
    }
    let stores = stream::iter(half..end).map(|n| tokio::spawn(tasks::store(troubled(&store, n), n)));
    let mut stores = stores.buffer_unordered(at_once);
    while let Some(history) = stores.next().await {
        let (seed, history) = history.unwrap();
        tally.add(register::Register::default(), &history, seed, name);
    }
    println!(
        "linearizability: {name}: {} histories, {} of them of calls at once, {} calls, {} of unknown outcome, {} \
         histories left out, {:?}",
        tally.histories,
        tally.overlapping,
        tally.calls,
        tally.unknown,
        tally.left_out,
        SystemClock.monotonic() - start,
    );
    assert!(tally.overlapping > all / 2, "calls overlap");
    assert!(tally.left_out < all / 10, "{} histories were not checked", tally.left_out);
}

/// Wraps the store for history `n`; every other history has faults.
fn troubled(store: &Arc<dyn Store>, n: u64) -> Troubled {
    let seed = SEED.wrapping_add(n);
    Troubled { inner: Arc::clone(store), faulty: n % 2 == 1, seed, calls: AtomicU64::new(0) }
}

/// Runs on two threads, so that calls on one key really run concurrently.
fn on_threads(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future);
}

#[test]
fn s15_memory_is_linearizable() {
    on_threads(histories(Arc::new(MemoryStore::new()), "memory", 8, HISTORIES));
}

#[test]
fn s15_sqlite_is_linearizable() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("keys.db")).unwrap();
    on_threads(histories(Arc::new(store), "sqlite", 2048, HISTORIES));
}

#[test]
fn s15_redis_is_linearizable() {
    let server = Server::start(&[]);
    on_threads(async {
        let store =
            RedisStore::builder(&server.url()).response_timeout(tasks::PATIENCE).connect().await.unwrap();
        histories(Arc::new(store), "redis", 256, HISTORIES).await;
    });
}

async fn connect(url: &str) -> PostgresStore {
    PostgresStore::builder(url).answer_timeout(tasks::PATIENCE).connect().await.unwrap()
}

#[test]
fn s15_postgres_is_linearizable() {
    let server = postgres::Server::start(&["fsync=off"]);
    on_threads(async {
        histories(Arc::new(connect(&server.url()).await), "postgres", 256, HISTORIES / 10).await;
    });
}

#[test]
fn s15_postgres_by_single_statements_is_linearizable() {
    let server = postgres::Server::start(&["fsync=off"]);
    server.sql("REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC; CREATE ROLE app LOGIN; GRANT CREATE ON SCHEMA public TO app");
    on_threads(async {
        let store = connect(&server.url_as("app", "", "postgres")).await;
        assert_eq!(store.warnings(), [Warning::NoFunctions]);
        histories(Arc::new(store), "postgres by single statements", 256, HISTORIES / 50).await;
    });
}

/// The server ends the sessions that serve the calls, so answers are lost with their effects done
/// or not, and many at once. Rounds of histories follow each other until enough sessions ended,
/// however fast the machine is.
#[test]
fn s15_postgres_whose_sessions_end_is_linearizable() {
    const END: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE application_name = 'nevertwice' AND state = 'active' ORDER BY random() LIMIT 1";
    const HISTORIES_A_ROUND: u64 = 1_000;
    /// More would leave too many outcomes unknown.
    const ENDED_A_ROUND: usize = 40;
    let server = postgres::Server::start(&["fsync=off"]);
    on_threads(async {
        let store: Arc<dyn Store> = Arc::new(connect(&server.url()).await);
        let (client, connection) =
            tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let (mut ended, mut rounds) = (0, 0);
        while ended < ENDED_A_ROUND * factor() as usize {
            assert!(rounds < 20 * factor(), "{ended} sessions ended in {rounds} rounds");
            let first = rounds * HISTORIES_A_ROUND;
            let name = "postgres whose sessions end";
            let work = tokio::spawn(histories_from(Arc::clone(&store), name, 64, first, HISTORIES_A_ROUND));
            let before = ended;
            while !work.is_finished() {
                tokio::time::sleep(Duration::from_millis(30)).await;
                if ended - before < ENDED_A_ROUND {
                    ended += client.query(END, &[]).await.unwrap().len();
                }
            }
            work.await.unwrap();
            rounds += 1;
        }
        println!("linearizability: {ended} sessions ended in {rounds} rounds");
    });
}
