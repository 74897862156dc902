//! Cut connections against every operation of the PostgreSQL store. A ledger records what was done:
//! each key has one effect, and no answer that an application received is ever contradicted. Every
//! check prints what it did. Without Debian's package `postgresql` they fail.

#[path = "postgres_faults/bench.rs"]
mod bench;
#[path = "postgres_faults/cuts.rs"]
mod cuts;
#[path = "redis_faults/ledger.rs"]
#[allow(dead_code, reason = "the Redis store has more faults")]
mod ledger;
#[path = "redis_faults/operations.rs"]
#[allow(dead_code, reason = "the Redis store has more faults")]
mod operations;
#[path = "../../tests/support/proxy.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod proxy;
#[path = "../../tests/support/postgres.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod server;

use std::future::Future;

/// The store under test, in reports.
const BACKEND: &str = "postgres";

fn block_on_tokio<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}
