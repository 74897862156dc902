//! Faults of networks, servers and clocks against every operation of the Redis store. A ledger
//! records what was done: each key has one effect, and no answer that an application received is
//! ever contradicted. Every check prints what it did. Without `redis-server` they fail.
//! `NEVERTWICE_LONG=1` makes them ten times as long.

#[path = "redis_faults/bench.rs"]
mod bench;
#[path = "../../tests/support/children.rs"]
mod children;
#[path = "redis_faults/clocks.rs"]
mod clocks;
#[path = "redis_faults/cuts.rs"]
mod cuts;
#[path = "redis_faults/ledger.rs"]
mod ledger;
#[path = "redis_faults/losses.rs"]
mod losses;
#[path = "redis_faults/operations.rs"]
mod operations;
#[path = "../../tests/support/redis.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod server;
#[path = "redis_faults/shards.rs"]
mod shards;
#[path = "redis_faults/states.rs"]
mod states;
#[path = "redis_faults/storm.rs"]
mod storm;
#[path = "redis_faults/storms.rs"]
mod storms;

use std::future::Future;
use std::time::Duration;

/// Returns the factor by which the tests are prolonged.
fn length() -> usize {
    if std::env::var_os("NEVERTWICE_LONG").is_some_and(|value| value == "1") { 10 } else { 1 }
}

/// The store under test, in reports.
const BACKEND: &str = "redis";

fn block_on_tokio<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Polls until the condition holds, for actions that a server takes in its own time.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..4000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}
