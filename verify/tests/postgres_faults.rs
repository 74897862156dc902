//! Cut connections, ended sessions and dead servers against the operations of the PostgreSQL store,
//! and transactions that last long. A ledger records what was done: each key has one effect, and no
//! answer that an application received is ever contradicted. Every check prints what it did.
//! Without Debian's package `postgresql` they fail.

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
#[path = "postgres_faults/snapshots.rs"]
mod snapshots;
#[path = "redis_faults/storm.rs"]
#[allow(dead_code, reason = "the Redis store has more faults")]
mod storm;
#[path = "postgres_faults/storms.rs"]
mod storms;

use std::future::Future;

/// The factor by which the longer run multiplies its work.
fn length() -> usize {
    if std::env::var_os("NEVERTWICE_LONG").is_some() { 10 } else { 1 }
}

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
