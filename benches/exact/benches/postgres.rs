//! The client's side of calls over PostgreSQL, beside the same by hand on a pool of twenty
//! connections: a prepared `INSERT .. ON CONFLICT DO NOTHING`, then `UPDATE` or `SELECT`. Callers
//! and connections share a thread; the server is a process of its own, behind a relay.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use gungraun::prelude::*;
use gungraun::{Callgrind, Dhat, main};
use nevertwice::postgres::tokio_postgres::{Client, NoTls, Statement, connect};
use nevertwice::{Begin, Engine, Fingerprint, PostgresStore};
use nevertwice_exact::{REPEATS, Relay, key, request};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

#[path = "../../../tests/support/postgres.rs"]
#[allow(dead_code)] // tests use the rest
mod private;

const CONNECTIONS: usize = 20;

const SCHEMA: &str = "
    CREATE TABLE hand (key text PRIMARY KEY, state int2 NOT NULL, until timestamptz NOT NULL,
        response bytea) WITH (fillfactor = 50)";
const INSERT: &str =
    "INSERT INTO hand (key, state, until) VALUES ($1, 0, now() + '30 s') ON CONFLICT DO NOTHING";
const UPDATE: &str = "UPDATE hand SET state = 1, response = $2 WHERE key = $1 AND state = 0";
const SELECT: &str = "SELECT state, response FROM hand WHERE key = $1";

/// A connection of the pool by hand.
struct Connection {
    client: Client,
    insert: Statement,
    update: Statement,
    select: Statement,
}

struct Bench {
    engine: Engine,
    fingerprint: Fingerprint,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
    runtime: Runtime,
    _relay: Relay,
    _server: private::Server,
}

fn bench() -> Bench {
    // Without waits for the disk, which vary.
    let server = private::Server::start(&["fsync=off"]);
    server.sql(SCHEMA);
    let relay = Relay::start(env!("CARGO_BIN_EXE_relay"), server.port());
    let url = server.url_at(relay.port);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Under valgrind, the usual limits may be too short.
    let limit = Duration::from_secs(60);
    let store = PostgresStore::builder(&url).connect_timeout(limit).answer_timeout(limit);
    let store = runtime.block_on(store.connect()).unwrap();
    let engine = Engine::builder(store).build().unwrap();
    let idle = (0..CONNECTIONS).map(|_| runtime.block_on(connection(&url))).collect();
    let bench = Bench {
        engine,
        fingerprint: Fingerprint::of("4200 EUR"),
        idle: Mutex::new(idle),
        permits: Semaphore::new(CONNECTIONS),
        runtime,
        _relay: relay,
        _server: server,
    };
    for round in 0..4 {
        bench.cycles(round);
        bench.replays(round);
        bench.hand_cycles(round);
        bench.hand_replays(round);
    }
    bench
}

async fn connection(url: &str) -> Connection {
    let (client, connection) = connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    let prepare = async |sql| client.prepare(sql).await.unwrap();
    let (insert, update, select) = (prepare(INSERT).await, prepare(UPDATE).await, prepare(SELECT).await);
    Connection { client, insert, update, select }
}

/// The operations of as many concurrent callers as a figure counts.
impl Bench {
    fn all<T>(&self, round: usize, call: impl AsyncFn(usize) -> T) {
        let numbers = round * REPEATS..(round + 1) * REPEATS;
        self.runtime.block_on(join_all(numbers.map(|number| call(number))));
    }

    fn cycles(&self, round: usize) {
        self.all(round, async |number| {
            let request = request(number, self.fingerprint);
            match self.engine.begin(&request).await.unwrap() {
                Begin::Acquired(lease) => lease.complete(response()).await.unwrap(),
                other => panic!("{other:?}"),
            }
        });
    }

    fn replays(&self, round: usize) {
        self.all(round, async |number| {
            let request = request(number, self.fingerprint);
            let begin = self.engine.begin(&request).await.unwrap();
            assert!(matches!(begin, Begin::Completed(_)));
        });
    }

    /// Lends one of the connections.
    async fn with<T>(&self, work: impl AsyncFnOnce(&Connection) -> T) -> T {
        let _permit = self.permits.acquire().await.unwrap();
        let connection = self.idle.lock().unwrap().pop().unwrap();
        let done = work(&connection).await;
        self.idle.lock().unwrap().push(connection);
        done
    }

    fn hand_cycles(&self, round: usize) {
        self.all(round, async |number| {
            let key = key(number);
            let begun = self.with(async |on| on.client.execute(&on.insert, &[&key]).await).await;
            assert_eq!(begun.unwrap(), 1);
            let response = &response()[..];
            let done = self.with(async |on| on.client.execute(&on.update, &[&key, &response]).await).await;
            assert_eq!(done.unwrap(), 1);
        });
    }

    fn hand_replays(&self, round: usize) {
        self.all(round, async |number| {
            let key = key(number);
            let row = self.with(async |on| {
                assert_eq!(on.client.execute(&on.insert, &[&key]).await.unwrap(), 0);
                on.client.query_one(&on.select, &[&key]).await.unwrap()
            });
            assert_eq!(row.await.get::<_, Vec<u8>>(1).len(), 256);
        });
    }
}

/// A response of 256 bytes.
fn response() -> Bytes {
    Bytes::from_static(&[b'r'; 256])
}

#[library_benchmark]
#[bench::fresh_c64(bench(), Bench::cycles, 9)]
#[bench::fresh_c64_by_hand(bench(), Bench::hand_cycles, 9)]
#[bench::replay_c64(bench(), Bench::replays, 3)]
#[bench::replay_c64_by_hand(bench(), Bench::hand_replays, 3)]
fn on_postgres(bench: Bench, call: fn(&Bench, usize), round: usize) -> Bench {
    call(&bench, round);
    bench
}

library_benchmark_group!(name = calls, benchmarks = on_postgres);

main!(
    config = LibraryBenchmarkConfig::default()
        // The server runs without valgrind.
        .valgrind_args(["--trace-children=no"])
        .pass_through_env("PATH")
        .pass_through_env("NEVERTWICE_POSTGRES_BIN")
        .tool(Callgrind::with_args(["--cache-sim=no"]))
        .tool(Dhat::with_args(["--num-callers=100"])),
    library_benchmark_groups = calls
);
