//! Observability: spans and events (feature `tracing`), counters, histograms and gauges (feature
//! `metrics`).
//!
//! Without the features none of it is compiled, and no clock is read for it. No key, record id,
//! owner, fingerprint, payload, response, error or checkpoint appears in any of it. Spans show the
//! scope, at most 48 bytes of it; metrics do not, so that the number of their series is bounded.
//! `store` is the store's [`name`](crate::store::Store::name).
//!
//! # Metrics
//!
#![doc = include_str!("observe/metrics.md")]
//!
//! Times are measured with the engine's [`Clock`], in a transaction of the application's with the
//! operating system's. The purgers of [`Engine::purge_regularly`](crate::Engine::purge_regularly)
//! coordinate through an operation of their own, whose begins, commands and leases are not counted.
//! Calls in a transaction (`sqlite::begin_in`, `postgres::begin_in` and their companions) are
//! counted when they are answered, whether the transaction commits or not. A lease of a transaction
//! never counts as abandoned, since its commit cannot be seen.
//!
//! Alert on any `nevertwice_restored_total`; on begins answered `unresolved`; on lost leases and
//! overdue renewals (the lease is shorter than the work, or the work blocks its executor:
//! [`run_blocking`](crate::Engine::run_blocking)); on abandoned leases, purge failures, and runs
//! that end `unrecorded`.
//!
//! # Buckets
//!
//! By default an exporter makes summaries of histograms, which cannot be added up over processes.
//! [`BUCKETS`] are the recommended bounds of each, from the time of a call to a memory store to the
//! longest that the default policy allows. With `metrics-exporter-prometheus`:
//!
//! ```text
//! let mut exporter = PrometheusBuilder::new();
//! for (histogram, bounds) in nevertwice::observe::BUCKETS {
//!     exporter = exporter.set_buckets_for_metric(Matcher::Full(histogram.to_string()), bounds)?;
//! }
//! exporter.install()?;
//! ```
//!
//! # Spans
//!
//! Each span has level `DEBUG` and target `nevertwice`, and encloses one call. Its fields are
//! `store`, `scope` (where the call knows it), and once the call is answered `outcome`, `state` (of
//! the key, as a lease's command leaves or finds it) and `attempt` (where the answer contains it).
//!
#![doc = include_str!("observe/spans.md")]
//!
//! # Events
//!
//! Events have the target `nevertwice` and lie in the span of their call;
//! `nevertwice.lease_abandoned` lies in the span in which the lease was dropped. Each message
//! begins with the name of its event, so that a terminal shows it and a search finds it.
//!
#![doc = include_str!("observe/events.md")]
//!
//! # Events of the SQLite store
//!
//! These have the same target and lie in no span of the crate's. Those about the clock come when a
//! file is opened.
//!
#![doc = include_str!("observe/sqlite_events.md")]
//!
//! # Events of the Redis store
//!
#![doc = include_str!("observe/redis_events.md")]
//!
//! # Metrics of the Redis store
//!
#![doc = include_str!("observe/redis_metrics.md")]
// The hooks are called in every build; without the features they ignore their arguments.
#![cfg_attr(not(all(feature = "tracing", feature = "metrics")), allow(unused_variables, dead_code))]

use std::time::Duration;

use crate::clock::Clock;
use crate::decide::{Current, Reason, StateKind};

/// The recommended bucket bounds of every histogram, in its unit: see [Buckets](self#buckets).
pub const BUCKETS: [(&str, &[f64]); 3] = [
    ("nevertwice_begin_seconds", CALL_SECONDS),
    ("nevertwice_finish_seconds", CALL_SECONDS),
    ("nevertwice_wait_seconds", WAIT_SECONDS),
];

/// Bounds from a call to a memory store, over a commit and a round trip, to a finish that an
/// unavailable store delays for a whole lease.
const CALL_SECONDS: &[f64] = &[
    0.00001, 0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0,
];

/// Bounds from a handler that is nearly done to the default `run_wait`, and beyond.
const WAIT_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// The source of a measurement: an engine, or a store inside a transaction of the application's.
pub(crate) trait Source: Sync {
    /// The store's name.
    fn name(&self) -> &'static str;
    /// The clock that latencies are measured with.
    fn clock(&self) -> &dyn Clock;
}

/// Emits an event with this level, name, store, fields and message, if tracing is compiled in.
macro_rules! event {
    ($level:ident, $name:literal, $store:expr, { $($field:ident),* }, $message:literal) => {
        #[cfg(feature = "tracing")]
        tracing::event!(
            name: $name,
            target: "nevertwice",
            tracing::Level::$level,
            store = $store,
            $($field,)*
            // Terminals do not show the name of an event.
            concat!($name, ": ", $message)
        )
    };
}

/// Adds to a counter, if metrics are compiled in.
macro_rules! count {
    ($name:literal, $store:expr, $number:expr $(, $label:literal => $value:expr)*) => {
        #[cfg(feature = "metrics")]
        metrics::counter!($name, "store" => $store $(, $label => $value)*).increment($number)
    };
}

/// Records the time passed since a moment, if metrics are compiled in.
macro_rules! latency {
    ($name:literal, $source:expr, $since:expr, $label:literal => $value:expr) => {
        #[cfg(feature = "metrics")]
        metrics::histogram!($name, "store" => $source.name(), $label => $value)
            .record($since.seconds($source))
    };
}

mod describe;
#[cfg(feature = "http")]
mod http;
mod seen;
#[cfg(feature = "redis")]
mod shards;

pub(crate) use self::describe::describe;
#[cfg(feature = "http")]
pub(crate) use self::http::{
    HttpOutcome, http_answered, http_failed_open, http_no_caller, http_unrecorded, in_current_span,
};
pub(crate) use self::seen::{Granted, Moment, Op, Seen, call, in_span, quiet_call};
#[cfg(feature = "redis")]
pub(crate) use self::shards::{redis_failovers, redis_redirect, redis_refreshed, redis_too_few_replicas};

/// Reports that the holder of a lease learned, for the first time, that it lost the key.
pub(crate) fn lease_lost(source: &dyn Source, attempt: u32, current: Current) {
    let state = state(current.state);
    count!("nevertwice_leases_lost_total", source.name(), 1);
    event!(WARN, "nevertwice.lease_lost", source.name(), { state, attempt }, "lease lost");
}

/// Reports that a lease was dropped which was neither finished nor lost, and whose token no other
/// holder has.
pub(crate) fn lease_abandoned(source: &dyn Source, attempt: u32) {
    count!("nevertwice_leases_abandoned_total", source.name(), 1);
    event!(WARN, "nevertwice.lease_abandoned", source.name(), { attempt }, "dropped unfinished");
}

/// Reports a renewal that is `late`.
pub(crate) fn renewal_overdue(source: &dyn Source, attempt: u32, late: Duration) {
    count!("nevertwice_renewals_overdue_total", source.name(), 1);
    let late_ms = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
    event!(
        WARN, "nevertwice.renewal_overdue", source.name(), { attempt, late_ms },
        "the future that renews was not polled in time"
    );
}

/// Reports that an outcome was written although the record was gone.
pub(crate) fn restored(source: &dyn Source, attempt: u32) {
    count!("nevertwice_restored_total", source.name(), 1);
    event!(WARN, "nevertwice.restored", source.name(), { attempt }, "the record was gone");
}

/// Reports a warning of a store to operators.
pub(crate) fn store_warning(store: &'static str, warning: &dyn std::fmt::Display) {
    #[cfg(feature = "tracing")]
    tracing::event!(
        name: "nevertwice.store_warning",
        target: "nevertwice",
        tracing::Level::WARN,
        store,
        warning = %warning,
        "nevertwice.store_warning: the store warns"
    );
}

/// The reason for repeating a store call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RetryCause {
    Unavailable,
    NoAnswer,
}

/// Reports that a store call is repeated, after `tries` tries of its command.
pub(crate) fn repeated(source: &dyn Source, cause: RetryCause, tries: u32) {
    let reason = match cause {
        RetryCause::Unavailable => "unavailable",
        RetryCause::NoAnswer => "no_answer",
    };
    count!("nevertwice_store_retries_total", source.name(), 1, "reason" => reason);
    event!(WARN, "nevertwice.store_retry", source.name(), { reason, tries }, "store call repeated");
}

/// Reports that a call was given up after `tries` tries.
pub(crate) fn timed_out(source: &dyn Source, tries: u32) {
    count!("nevertwice_timeouts_total", source.name(), 1);
    event!(WARN, "nevertwice.timed_out", source.name(), { tries }, "given up");
}

/// Reports a step of a purge and the number of records that it removed.
pub(crate) fn purged(source: &dyn Source, records: usize) {
    count!("nevertwice_purged_total", source.name(), records as u64);
    if records > 0 {
        event!(INFO, "nevertwice.purged", source.name(), { records }, "purged");
    }
}

/// Reports the number of responses whose space was freed.
pub(crate) fn responses_dropped(source: &dyn Source, responses: u64) {
    count!("nevertwice_responses_dropped_total", source.name(), responses);
    if responses > 0 {
        event!(INFO, "nevertwice.responses_dropped", source.name(), { responses }, "space freed");
    }
}

/// Reports that a `purge` or `drop_responses` ended with an error.
pub(crate) fn purge_failed(source: &dyn Source, op: Op) {
    let command = op.label();
    count!("nevertwice_purge_failures_total", source.name(), 1, "command" => command);
    event!(WARN, "nevertwice.purge_failed", source.name(), { command }, "ended with an error");
}

/// Reports that a store was opened while the wall clock is `ahead` of its time, by more than is
/// accepted.
pub(crate) fn clock_step(store: &'static str, ahead: Duration) {
    let ahead_s = ahead.as_secs();
    event!(
        WARN,
        "nevertwice.clock_step",
        store,
        { ahead_s },
        "the wall clock is too far ahead to be trusted; time continues from the last known moment"
    );
}

/// Reports that a store was opened with a clock that has no boot id.
pub(crate) fn clock_without_boot(store: &'static str) {
    event!(
        WARN,
        "nevertwice.clock_without_boot",
        store,
        {},
        "no boot id: each process that opens the file uses its own wall clock"
    );
}

/// Reports that evidence of effects expired unsettled: a purge removed it, or a begin replaced it.
pub(crate) fn expired_unsettled(source: &dyn Source, records: u64) {
    if records > 0 {
        count!("nevertwice_unsettled_expired_total", source.name(), records);
        event!(
            WARN,
            "nevertwice.unsettled_expired",
            source.name(),
            { records },
            "evidence expired unsettled"
        );
    }
}

/// Reports the end of an attempt to deliver an event.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) fn outbox_delivery(store: &'static str, outcome: &'static str) {
    count!("nevertwice_outbox_deliveries_total", store, 1, "outcome" => outcome);
    event!(DEBUG, "nevertwice.outbox_delivery", store, { outcome }, "an attempt ended");
}

/// Reports that an event becomes a dead letter after its attempt of this number.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) fn outbox_dead(store: &'static str, attempt: u32) {
    event!(WARN, "nevertwice.outbox_dead_letter", store, { attempt }, "an event is put aside");
}

/// Reports that the database of an outbox failed.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) fn outbox_error(store: &'static str) {
    count!("nevertwice_outbox_errors_total", store, 1);
    event!(WARN, "nevertwice.outbox_error", store, {}, "the database failed");
}

/// Sets the gauges of an outbox.
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub(crate) fn outbox_stats(store: &'static str, stats: &crate::outbox::Stats) {
    #[cfg(feature = "metrics")]
    {
        metrics::gauge!("nevertwice_outbox_depth", "store" => store).set(stats.pending as f64);
        metrics::gauge!("nevertwice_outbox_dead_letters", "store" => store).set(stats.dead as f64);
        metrics::gauge!("nevertwice_outbox_lag_seconds", "store" => store).set(stats.lag.as_secs_f64());
    }
}

/// Sets the gauge of unresolved operations.
pub(crate) fn unresolved(source: &dyn Source, operations: u64) {
    #[cfg(feature = "metrics")]
    metrics::gauge!("nevertwice_unresolved", "store" => source.name()).set(operations as f64);
}

/// A waiting caller, counted in the gauge until this is dropped.
pub(crate) struct Waiter<'a> {
    source: &'a dyn Source,
    since: Moment,
}

impl<'a> Waiter<'a> {
    pub(crate) fn enter(source: &'a dyn Source) -> Waiter<'a> {
        #[cfg(feature = "metrics")]
        metrics::gauge!("nevertwice_waiters", "store" => source.name()).increment(1.0);
        Waiter { source, since: Moment::now(source) }
    }
}

#[cfg(feature = "metrics")]
impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        metrics::gauge!("nevertwice_waiters", "store" => self.source.name()).decrement(1.0);
    }
}

/// The end of a wait.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    Changed,
    Timeout,
    Limit,
    Error,
}

/// Reports the end of a wait; `waiter` is `None` if the limit on waiters refused it.
pub(crate) fn waited(source: &dyn Source, waiter: Option<&Waiter<'_>>, end: End) {
    let end = match end {
        End::Changed => "changed",
        End::Timeout => "timeout",
        End::Limit => "limit",
        End::Error => "error",
    };
    count!("nevertwice_waits_total", source.name(), 1, "end" => end);
    if let Some(waiter) = waiter {
        latency!("nevertwice_wait_seconds", source, waiter.since, "end" => end);
    }
    event!(DEBUG, "nevertwice.waited", source.name(), { end }, "wait ended");
}

fn state(state: StateKind) -> &'static str {
    match state {
        StateKind::Absent => "absent",
        StateKind::InProgress => "in_progress",
        StateKind::Completed => "completed",
        StateKind::Failed => "failed",
    }
}

fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::EffectMarked => "effect_marked",
        Reason::CrashedAttempt => "crashed_attempt",
        Reason::Reported => "reported",
        Reason::AttemptsExhausted => "attempts_exhausted",
    }
}
