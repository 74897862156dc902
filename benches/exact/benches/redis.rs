//! The client's side of calls over Redis, beside the same by hand on one multiplexed connection:
//! `SET NX`, then `SET` or `GET`. Callers and connections share a thread; the server is a process
//! of its own, behind a relay.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use gungraun::prelude::*;
use gungraun::{Callgrind, Dhat, main};
use nevertwice::{Begin, Engine, Fingerprint, RedisStore};
use nevertwice_exact::{REPEATS, Relay, key, request};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, cmd};
use tokio::runtime::Runtime;

struct Bench {
    runtime: Runtime,
    engine: Engine,
    fingerprint: Fingerprint,
    hand: MultiplexedConnection,
    _relay: Relay,
    server: Child,
}

impl Drop for Bench {
    fn drop(&mut self) {
        _ = self.server.kill();
        _ = self.server.wait();
    }
}

fn bench() -> Bench {
    let (server, port) = server();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let relay = Relay::start(env!("CARGO_BIN_EXE_relay"), port);
    let url = format!("redis://127.0.0.1:{}", relay.port);
    // Under valgrind, the usual limits may be too short.
    let limit = Duration::from_secs(60);
    let store = RedisStore::builder(&url).connection_timeout(limit).response_timeout(limit);
    let store = runtime.block_on(store.connect()).unwrap();
    let client = redis::Client::open(url).unwrap();
    let patient = AsyncConnectionConfig::new().set_response_timeout(Some(limit));
    let hand = client.get_multiplexed_async_connection_with_config(&patient);
    let hand = runtime.block_on(hand).unwrap();
    let engine = Engine::builder(store).build().unwrap();
    let fingerprint = Fingerprint::of("4200 EUR");
    let bench = Bench { runtime, engine, fingerprint, hand, _relay: relay, server };
    for round in 0..4 {
        bench.cycles(round);
        bench.replays(round);
        bench.hand_cycles(round);
        bench.hand_replays(round);
    }
    bench
}

/// Starts a server on a free port.
fn server() -> (Child, u16) {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let server = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed");
    let deadline = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(Instant::now() < deadline, "redis-server does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    (server, port)
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

    fn hand_cycles(&self, round: usize) {
        self.all(round, async |number| {
            let (key, mut hand) = (key(number), self.hand.clone());
            assert!(begin_by_hand(&mut hand, &key).await);
            let mut set = cmd("SET");
            set.arg(&key).arg(&response()[..]).arg("PX").arg(86_400_000);
            set.query_async::<()>(&mut hand).await.unwrap();
        });
    }

    fn hand_replays(&self, round: usize) {
        self.all(round, async |number| {
            let (key, mut hand) = (key(number), self.hand.clone());
            assert!(!begin_by_hand(&mut hand, &key).await);
            let stored: Vec<u8> = cmd("GET").arg(&key).query_async(&mut hand).await.unwrap();
            assert_eq!(stored.len(), 256);
        });
    }
}

/// A response of 256 bytes.
fn response() -> Bytes {
    Bytes::from_static(&[b'r'; 256])
}

/// Returns true if the key is new.
async fn begin_by_hand(hand: &mut MultiplexedConnection, key: &str) -> bool {
    let mut set = cmd("SET");
    set.arg(key).arg("p").arg("NX").arg("PX").arg(30_000);
    set.query_async::<Option<String>>(hand).await.unwrap().is_some()
}

#[library_benchmark]
#[bench::fresh_c64(bench(), Bench::cycles, 9)]
#[bench::fresh_c64_by_hand(bench(), Bench::hand_cycles, 9)]
#[bench::replay_c64(bench(), Bench::replays, 3)]
#[bench::replay_c64_by_hand(bench(), Bench::hand_replays, 3)]
fn on_redis(bench: Bench, call: fn(&Bench, usize), round: usize) -> Bench {
    call(&bench, round);
    bench
}

library_benchmark_group!(name = calls, benchmarks = on_redis);

main!(
    config = LibraryBenchmarkConfig::default()
        // The server runs without valgrind.
        .valgrind_args(["--trace-children=no"])
        .pass_through_env("PATH")
        .tool(Callgrind::with_args(["--cache-sim=no"]))
        .tool(Dhat::with_args(["--num-callers=100"])),
    library_benchmark_groups = calls
);
