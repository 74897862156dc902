//! Tests of the Redis store against a real server, one per test. Without `redis-server`, or the
//! program that the environment variable `NEVERTWICE_REDIS_SERVER` names instead, they fail.
#![cfg(feature = "redis")]

#[path = "redis/batches.rs"]
mod batches;
#[path = "redis/changes.rs"]
mod changes;
#[path = "support/children.rs"]
mod children;
#[path = "redis/faults.rs"]
mod faults;
#[path = "redis/keeping.rs"]
mod keeping;
#[path = "redis/listing.rs"]
mod listing;
#[path = "redis/nodes.rs"]
mod nodes;
#[path = "redis/outages.rs"]
mod outages;
#[path = "redis/pipelines.rs"]
mod pipelines;
#[path = "redis/races.rs"]
mod races;
#[path = "redis/replicas.rs"]
mod replicas;
#[path = "support/redis.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod server;
#[path = "redis/setup.rs"]
mod setup;
#[path = "redis/stamps.rs"]
mod stamps;
#[cfg(any(feature = "redis-rustls", feature = "redis-native-tls"))]
#[path = "redis/tls.rs"]
mod tls;
#[path = "redis/waiting.rs"]
mod waiting;

use std::future::Future;
use std::time::Duration;

use nevertwice::{Begin, Engine, Lease, RecordId, RedisStore, Request};
use server::{Proxy, Server};

nevertwice::conformance!(
    conformance,
    async {
        let server = Server::start(&[]);
        (connect(&server).await, server)
    },
    block_on_tokio
);

fn block_on_tokio<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn connect(server: &Server) -> RedisStore {
    RedisStore::connect(&server.url()).await.unwrap()
}

async fn engine(server: &Server) -> Engine {
    Engine::builder(connect(server).await).build().unwrap()
}

fn request(key: &str) -> Request {
    Request::new("scope", key).unwrap()
}

/// The name under which the store keeps a request's record.
fn name(request: &Request) -> Vec<u8> {
    name_of(&request.id())
}

fn name_of(id: &RecordId) -> Vec<u8> {
    [b"nevertwice:", &id.as_bytes()[..]].concat()
}

async fn acquire(engine: &Engine, request: &Request) -> Lease {
    match engine.begin(request).await.unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}

async fn response(engine: &Engine, request: &Request) -> Vec<u8> {
    match engine.begin(request).await.unwrap() {
        Begin::Completed(done) => done.response().unwrap().to_vec(),
        other => panic!("{other:?}"),
    }
}

fn get(server: &Server, name: &[u8]) -> Option<Vec<u8>> {
    redis::cmd("GET").arg(name).query(&mut server.raw()).unwrap()
}

fn set(server: &Server, name: &[u8], value: &[u8]) {
    redis::cmd("SET").arg(name).arg(value).exec(&mut server.raw()).unwrap();
}

/// Returns the number of times the server ran a command since `CONFIG RESETSTAT`.
fn calls(server: &Server, command: &str) -> u64 {
    let text: String = server.ask("INFO commandstats");
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
}

/// Returns the remaining time to live of a key; `None` means for ever.
fn ttl(server: &Server, name: &[u8]) -> Option<Duration> {
    let millis: i64 = redis::cmd("PTTL").arg(name).query(&mut server.raw()).unwrap();
    assert_ne!(millis, -2, "there is no such key");
    u64::try_from(millis).ok().map(Duration::from_millis)
}
