//! What operators see: spans and events (feature `tracing`), counters, histograms and gauges (feature `metrics`).
//!
//! Without the features nothing of it is compiled, and no clock is read for it. No key, record id, owner, fingerprint, payload,
//! response, error or checkpoint is in any of it. Spans show the scope, at most 48 bytes of it; metrics do not, so that the number
//! of their series is bounded. `store` is the store's [`name`](crate::Store::name).
//!
//! # Metrics
//!
//! | metric | type | labels | unit | meaning |
//! |---|---|---|---|---|
//! | `nevertwice_begins_total` | counter | `store`, `outcome` | answers | begins, waited ones, those of batches and those in transactions too, by their answer: `acquired`, `completed`, `in_progress`, `failed`, `unresolved`, `mismatch`, `error` |
//! | `nevertwice_begin_seconds` | histogram | `store`, `outcome` | seconds | from asking to that answer, without the time waited; of a batch, the whole of it for each |
//! | `nevertwice_takeovers_total` | counter | `store` | grants | begins granted after an attempt that ran out of its lease |
//! | `nevertwice_commands_total` | counter | `store`, `command`, `outcome` | answers | `resume`, `renew`, `save_checkpoint`, `mark_effect`, `complete`, `fail` and `release`, by `ok`, `lease_lost`, `already_finished`, `error` |
//! | `nevertwice_finish_seconds` | histogram | `store`, `command` | seconds | from `complete` or `fail` to its answer; of a batch, the whole of it for each |
//! | `nevertwice_leases_abandoned_total` | counter | `store` | leases | leases dropped unfinished, whose token nobody took: the operation runs again after the lease, or is left to somebody who looks |
//! | `nevertwice_renewals_overdue_total` | counter | `store` | renewals | renewals by `run` and `keep_alive` that came at least a sixth of the lease late, because their future was not polled |
//! | `nevertwice_leases_lost_total` | counter | `store` | leases | holders that were told, for the first time (in a transaction: each time), that the key is no longer theirs |
//! | `nevertwice_restored_total` | counter | `store` | records | outcomes written although the record was gone: **a store that loses records**, or a retention that is too short |
//! | `nevertwice_store_retries_total` | counter | `store`, `reason` | calls | store calls that were repeated, because of `unavailable` or `no_answer` |
//! | `nevertwice_timeouts_total` | counter | `store` | calls | calls given up after the policy's `call_timeout` or `finish_timeout` |
//! | `nevertwice_waiters` | gauge | `store` | callers | who waits for a duplicate in flight at present |
//! | `nevertwice_waits_total` | counter | `store`, `end` | waits | waits that ended: the operation `changed`, `timeout`, `limit` (no place: `max_waiters`), `error`. Not those that were dropped |
//! | `nevertwice_wait_seconds` | histogram | `store`, `end` | seconds | how long they were; none for `limit` |
//! | `nevertwice_runs_total` | counter | `store`, `outcome` | runs | `executed`, `failed`, `replayed`, `replayed_failure`, `in_progress`, `unresolved`, `mismatch`, `lease_lost`, `unreadable`, `unwritable`, `unrecorded`, `error` |
//! | `nevertwice_purged_total` | counter | `store` | records | removed by purges |
//! | `nevertwice_unsettled_expired_total` | counter | `store` | records | of those, the ones whose effect may have happened and nobody settled in time, where the store can tell (memory, SQLite) |
//! | `nevertwice_unresolved` | gauge | `store` | operations | whose effect may have happened and nobody knows, as last counted: by [`purge_regularly`](crate::Engine::purge_regularly) (on Redis if [asked for](crate::PurgePlan::count_unresolved)) or [`unresolved_count`](crate::Engine::unresolved_count) |
//! | `nevertwice_responses_dropped_total` | counter | `store` | responses | whose room was freed after the policy's `response_retention` |
//! | `nevertwice_purge_failures_total` | counter | `store`, `command` | calls | `purge` and `drop_responses` that ended with an error |
//! | `nevertwice_operator_actions_total` | counter | `store`, `action`, `outcome` | actions | `resolve`, `amend` and `forget`, those of bulk calls too, by `ok`, `nothing` (to forget), `not_resolvable`, `not_amendable`, `error` |
//!
//! Times are the engine's [`Clock`]'s; in a transaction of the application's, the
//! operating system's. The operation by which
//! [`Engine::purge_regularly`](crate::Engine::purge_regularly) takes turns is none of the
//! application's: its begins, commands and leases are not counted. What is said in a transaction
//! (`sqlite::begin_in` and its companions) is counted when it is answered, whatever becomes of the
//! transaction; a lease of a transaction is never counted as abandoned, since nobody can tell
//! whether it was committed.
//!
//! What to alert on: `nevertwice_restored_total` at all, begins answered `unresolved`, lost leases
//! and overdue renewals (the lease is shorter than the work, or the work blocks its executor:
//! [`run_blocking`](crate::Engine::run_blocking)), abandoned leases, purge failures, and runs that
//! end `unrecorded`.
//!
//! # Buckets
//!
//! An exporter that is told nothing makes summaries of the histograms, which cannot be added up
//! over processes. [`BUCKETS`] are the advised bounds of each, from what a memory store needs to
//! the longest that the default policy allows. With `metrics-exporter-prometheus`:
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
//! All of level `DEBUG` and target `nevertwice`, around one call each, with the fields `store`, `scope` (where the call knows it), and once
//! it is answered `outcome`, `state` (the key's, as a lease's command leaves or finds it) and `attempt` (where the answer tells it).
//!
//! | span | call |
//! |---|---|
//! | `nevertwice.begin` | [`Engine::begin`](crate::Engine::begin) |
//! | `nevertwice.begin_or_wait` | [`Engine::begin_or_wait`](crate::Engine::begin_or_wait) |
//! | `nevertwice.begin_many` | [`Engine::begin_many`](crate::Engine::begin_many); its outcomes are in its events |
//! | `nevertwice.run` | [`Engine::run`](crate::Engine::run), `run_classified` and `run_blocking`, the handler included (what a blocking one says on its own thread is outside) |
//! | `nevertwice.resume` | [`Engine::resume`](crate::Engine::resume) |
//! | `nevertwice.renew` | [`Lease::renew`](crate::Lease::renew) |
//! | `nevertwice.save_checkpoint` | [`Lease::save_checkpoint`](crate::Lease::save_checkpoint) |
//! | `nevertwice.mark_effect` | [`Lease::mark_effect`](crate::Lease::mark_effect) |
//! | `nevertwice.complete` | [`Lease::complete`](crate::Lease::complete) |
//! | `nevertwice.complete_many` | [`Engine::complete_many`](crate::Engine::complete_many); its outcomes are in its events |
//! | `nevertwice.fail` | [`Lease::fail`](crate::Lease::fail) |
//! | `nevertwice.fail_many` | [`Engine::fail_many`](crate::Engine::fail_many), likewise |
//! | `nevertwice.renew_many` | [`Engine::renew_many`](crate::Engine::renew_many), likewise |
//! | `nevertwice.mark_effect_many` | [`Engine::mark_effect_many`](crate::Engine::mark_effect_many), likewise |
//! | `nevertwice.release` | [`Lease::release`](crate::Lease::release) |
//! | `nevertwice.resolve` | [`Engine::resolve`](crate::Engine::resolve) |
//! | `nevertwice.amend` | [`Engine::amend`](crate::Engine::amend) |
//! | `nevertwice.forget` | [`Engine::forget`](crate::Engine::forget) |
//! | `nevertwice.resolve_many` | [`Engine::resolve_many`](crate::Engine::resolve_many), likewise |
//! | `nevertwice.forget_many` | [`Engine::forget_many`](crate::Engine::forget_many), likewise |
//! | `nevertwice.purge` | [`Engine::purge`](crate::Engine::purge) |
//! | `nevertwice.drop_responses` | [`Engine::drop_responses`](crate::Engine::drop_responses) |
//! | `nevertwice.begin_in` | `sqlite::begin_in` |
//! | `nevertwice.resume_in` | `sqlite::resume_in` |
//! | `nevertwice.complete_in` | `sqlite::complete_in` |
//! | `nevertwice.fail_in` | `sqlite::fail_in` |
//!
//! # Events
//!
//! Of target `nevertwice`, within the span of their call (`nevertwice.lease_abandoned`: of whatever
//! dropped the lease). The message of each begins with its name, so that it is seen and found in a
//! terminal too.
//!
//! | event | level | fields | meaning |
//! |---|---|---|---|
//! | `nevertwice.begun` | DEBUG | `store`, `outcome`, `attempt` | a begin was answered |
//! | `nevertwice.takeover` | INFO | `store`, `attempt` | it was granted, after an attempt that ran out of its lease |
//! | `nevertwice.unresolved` | WARN | `store`, `reason`, `attempt` | it was not granted: somebody has to look |
//! | `nevertwice.answered` | DEBUG | `store`, `command`, `outcome`, `state`, `attempt` | a lease's command was answered |
//! | `nevertwice.lease_lost` | WARN | `store`, `state`, `attempt` | a holder was told, for the first time, that the key is no longer its own |
//! | `nevertwice.lease_abandoned` | WARN | `store`, `attempt` | a lease was dropped that was not finished, released or told that it is lost, and whose token nobody took |
//! | `nevertwice.renewal_overdue` | WARN | `store`, `attempt`, `late_ms` | a renewal came so late, at least a sixth of the lease: the future that renews was not polled in time |
//! | `nevertwice.restored` | WARN | `store`, `attempt` | an outcome was written although the record was gone |
//! | `nevertwice.store_retry` | WARN | `store`, `reason`, `tries` | a store call is repeated, after so many |
//! | `nevertwice.timed_out` | WARN | `store`, `tries` | a call was given up |
//! | `nevertwice.waited` | DEBUG | `store`, `end` | a wait ended |
//! | `nevertwice.ran` | DEBUG | `store`, `outcome` | a run ended |
//! | `nevertwice.purged` | INFO | `store`, `records` | a step of a purge removed records |
//! | `nevertwice.unsettled_expired` | WARN | `store`, `records` | a purge removed evidence of effects that nobody settled in time |
//! | `nevertwice.responses_dropped` | INFO | `store`, `responses` | the room of responses was freed |
//! | `nevertwice.purge_failed` | WARN | `store`, `command` | a `purge` or `drop_responses` ended with an error |
//! | `nevertwice.operated` | INFO | `store`, `action`, `outcome` | an operator's word was carried out or refused |
//!
//! # Events of the SQLite store
//!
//! Of the same target and in no span of the crate's; those of its clock when a file is opened.
//!
//! | event | level | fields | meaning |
//! |---|---|---|---|
//! | `nevertwice.store_warning` | WARN | `store`, `warning` | one of `SqliteStore::warnings`, or: the file is no longer the one that was opened, and every call fails |
//! | `nevertwice.clock_step` | WARN | `store`, `ahead_s` | the wall clock is so many seconds ahead of the file's time, which is further than it is believed: see `SqliteStoreBuilder::max_clock_step` |
//! | `nevertwice.clock_without_boot` | WARN | `store` | the system has no boot id, so the processes that open the file do not share one time |

// The hooks are called in every build; what they are told is then not looked at.
#![cfg_attr(not(all(feature = "tracing", feature = "metrics")), allow(unused_variables, dead_code))]

use std::time::Duration;

use crate::clock::Clock;
use crate::decide::{Current, Reason, StateKind};

/// The advised bucket bounds of every histogram, in its unit: see [Buckets](self#buckets).
pub const BUCKETS: [(&str, &[f64]); 3] = [
    ("nevertwice_begin_seconds", CALL_SECONDS),
    ("nevertwice_finish_seconds", CALL_SECONDS),
    ("nevertwice_wait_seconds", WAIT_SECONDS),
];

/// From a call to a memory store, over a commit and a round trip, to a finish that a dead store
/// holds up for a lease.
const CALL_SECONDS: &[f64] = &[
    0.00001, 0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0,
];

/// From a handler that is nearly done to the default `run_wait`, and beyond.
const WAIT_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// What is observed: an engine, or a store inside a transaction of the application's.
pub(crate) trait Source: Sync {
    /// The store's name.
    fn name(&self) -> &'static str;
    /// What latencies are measured with.
    fn clock(&self) -> &dyn Clock;
}

/// An event of the level, name, store, fields and message, if there is tracing.
macro_rules! event {
    ($level:ident, $name:literal, $store:expr, { $($field:ident),* }, $message:literal) => {
        #[cfg(feature = "tracing")]
        tracing::event!(
            name: $name,
            target: "nevertwice",
            tracing::Level::$level,
            store = $store,
            $($field,)*
            // A terminal shows no event's name.
            concat!($name, ": ", $message)
        )
    };
}

/// Adds to a counter, if there are metrics.
macro_rules! count {
    ($name:literal, $store:expr, $number:expr $(, $label:literal => $value:expr)*) => {
        #[cfg(feature = "metrics")]
        metrics::counter!($name, "store" => $store $(, $label => $value)*).increment($number)
    };
}

/// Records how long it took, if there are metrics.
macro_rules! latency {
    ($name:literal, $source:expr, $since:expr, $label:literal => $value:expr) => {
        #[cfg(feature = "metrics")]
        metrics::histogram!($name, "store" => $source.name(), $label => $value)
            .record($since.seconds($source))
    };
}

mod describe;
mod seen;

pub(crate) use self::describe::describe;
pub(crate) use self::seen::{Granted, Moment, Op, Seen, call, in_span, quiet_call};

/// The holder of a lease was told, for the first time, that the key is no longer its own.
pub(crate) fn lease_lost(source: &dyn Source, attempt: u32, current: Current) {
    let state = state(current.state);
    count!("nevertwice_leases_lost_total", source.name(), 1);
    event!(WARN, "nevertwice.lease_lost", source.name(), { state, attempt }, "lease lost");
}

/// A lease was dropped that was neither finished nor lost, and that nobody else can go on with.
pub(crate) fn lease_abandoned(source: &dyn Source, attempt: u32) {
    count!("nevertwice_leases_abandoned_total", source.name(), 1);
    event!(WARN, "nevertwice.lease_abandoned", source.name(), { attempt }, "dropped unfinished");
}

/// A renewal comes `late`.
pub(crate) fn renewal_overdue(source: &dyn Source, attempt: u32, late: Duration) {
    count!("nevertwice_renewals_overdue_total", source.name(), 1);
    let late_ms = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
    event!(
        WARN, "nevertwice.renewal_overdue", source.name(), { attempt, late_ms },
        "the future that renews was not polled in time"
    );
}

/// An outcome was written although the record was gone.
pub(crate) fn restored(source: &dyn Source, attempt: u32) {
    count!("nevertwice_restored_total", source.name(), 1);
    event!(WARN, "nevertwice.restored", source.name(), { attempt }, "the record was gone");
}

/// A store found something that an operator should know.
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

/// Why a store call is repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    Unavailable,
    NoAnswer,
}

/// A store call is repeated, after `tries` of its command.
pub(crate) fn repeated(source: &dyn Source, trouble: Trouble, tries: u32) {
    let reason = match trouble {
        Trouble::Unavailable => "unavailable",
        Trouble::NoAnswer => "no_answer",
    };
    count!("nevertwice_store_retries_total", source.name(), 1, "reason" => reason);
    event!(WARN, "nevertwice.store_retry", source.name(), { reason, tries }, "store call repeated");
}

/// A call was given up.
pub(crate) fn timed_out(source: &dyn Source, tries: u32) {
    count!("nevertwice_timeouts_total", source.name(), 1);
    event!(WARN, "nevertwice.timed_out", source.name(), { tries }, "given up");
}

/// A step of a purge was done.
pub(crate) fn purged(source: &dyn Source, records: usize) {
    count!("nevertwice_purged_total", source.name(), records as u64);
    if records > 0 {
        event!(INFO, "nevertwice.purged", source.name(), { records }, "purged");
    }
}

/// The room of so many responses was freed.
pub(crate) fn responses_dropped(source: &dyn Source, responses: u64) {
    count!("nevertwice_responses_dropped_total", source.name(), responses);
    if responses > 0 {
        event!(INFO, "nevertwice.responses_dropped", source.name(), { responses }, "room freed");
    }
}

/// A purge or a dropping of responses ended with an error.
pub(crate) fn purge_failed(source: &dyn Source, op: Op) {
    let command = op.label();
    count!("nevertwice_purge_failures_total", source.name(), 1, "command" => command);
    event!(WARN, "nevertwice.purge_failed", source.name(), { command }, "ended with an error");
}

/// A store was opened whose wall clock is `ahead` of its time, further than is believed.
pub(crate) fn clock_step(store: &'static str, ahead: Duration) {
    let ahead_s = ahead.as_secs();
    event!(
        WARN,
        "nevertwice.clock_step",
        store,
        { ahead_s },
        "the wall clock is too far ahead to be believed; time goes on from where it had got to"
    );
}

/// A store was opened whose clock has no boot.
pub(crate) fn clock_without_boot(store: &'static str) {
    event!(
        WARN,
        "nevertwice.clock_without_boot",
        store,
        {},
        "no boot id: each process that opens the file goes by its own wall clock"
    );
}

/// A purge removed evidence of effects that nobody settled in time.
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

/// So many operations are unresolved.
pub(crate) fn unresolved(source: &dyn Source, operations: u64) {
    #[cfg(feature = "metrics")]
    metrics::gauge!("nevertwice_unresolved", "store" => source.name()).set(operations as f64);
}

/// Somebody who waits, until it is dropped.
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

/// How a wait ended.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    Changed,
    Timeout,
    Limit,
    Error,
}

/// A wait ended; `waiter` is nobody if there was no place.
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
