//! Measurements of the Redis store: redirects, refreshes, failovers and missing replicas.

/// The name of the store.
#[cfg(feature = "metrics")]
const STORE: &str = "redis";

/// Reports that a node of a cluster sent an item elsewhere: `moved` or `ask`.
pub(crate) fn redis_redirect(kind: &'static str) {
    count!("nevertwice_redis_redirects_total", STORE, 1, "kind" => kind);
}

/// Reports that nodes or sentinels are asked for the primaries.
pub(crate) fn redis_refreshed() {
    count!("nevertwice_redis_refreshes_total", STORE, 1);
}

/// Reports so many primaries that others replaced.
pub(crate) fn redis_failovers(primaries: usize) {
    if primaries > 0 {
        count!("nevertwice_redis_failovers_total", STORE, primaries as u64);
        event!(WARN, "nevertwice.redis_failover", "redis", { primaries }, "other servers are primaries now");
    }
}

/// Reports a pipeline that too few replicas confirmed.
pub(crate) fn redis_too_few_replicas() {
    count!("nevertwice_redis_too_few_replicas_total", STORE, 1);
    event!(WARN, "nevertwice.redis_too_few_replicas", "redis", {}, "too few replicas confirmed a write");
}
