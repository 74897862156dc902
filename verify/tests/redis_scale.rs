//! Real clusters and sentinels that fail over, move slots and are cut apart, under load and with a
//! ledger: what was acknowledged, lost and done twice. They need `redis-server` (or the server that
//! `NEVERTWICE_REDIS_SERVER` names), iptables and root. `NEVERTWICE_LONG=1` makes them ten times as
//! long.

#[path = "redis_scale/clocks.rs"]
mod clocks;
#[path = "redis_scale/failovers.rs"]
mod failovers;
#[path = "redis_faults/ledger.rs"]
mod ledger;
#[path = "redis_scale/measured.rs"]
mod measured;
#[path = "redis_scale/nodes.rs"]
mod nodes;
#[path = "redis_scale/replication.rs"]
mod replication;
#[path = "redis_scale/setup.rs"]
mod setup;
#[path = "redis_scale/slots.rs"]
mod slots;
#[path = "redis_faults/storm.rs"]
#[allow(dead_code, reason = "of a shared module")]
mod storm;
#[path = "redis_scale/topologies.rs"]
mod topologies;

use std::future::Future;
use std::time::Duration;

use nevertwice::{Begin, Engine, Lease, RedisStore, Request};

/// The backend, in reports.
const BACKEND: &str = "redis";
/// Longer than any check.
const LEASE: Duration = Duration::from_secs(3600);

/// Returns the factor by which the tests are prolonged.
fn length() -> usize {
    if std::env::var_os("NEVERTWICE_LONG").is_some_and(|value| value == "1") { 10 } else { 1 }
}

fn block_on_tokio<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn engine(store: RedisStore) -> Engine {
    let engine = Engine::builder(store).lease(LEASE).call_timeout(Duration::from_secs(30));
    engine.finish_timeout(Duration::from_secs(30)).build().unwrap()
}

async fn acquire(engine: &Engine, request: &Request) -> Lease {
    match engine.begin(request).await.unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}
