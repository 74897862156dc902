//! What operators see: spans and events (feature `tracing`), counters, histograms and a gauge (feature `metrics`).
//!
//! Without the features nothing of it is compiled, and no clock is read for it. No key, record id, owner, fingerprint, payload,
//! response, error or checkpoint is in any of it. Spans show the scope, at most 48 bytes of it; metrics do not, so that the number
//! of their series is bounded. `store` is the store's [`name`](crate::Store::name).
//!
//! # Metrics
//!
//! | metric | type | labels | unit | meaning |
//! |---|---|---|---|---|
//! | `nevertwice_begins_total` | counter | `store`, `outcome` | answers | begins, waited ones and those of batches too, by their answer: `acquired`, `completed`, `in_progress`, `failed`, `unresolved`, `mismatch`, `error` |
//! | `nevertwice_begin_seconds` | histogram | `store`, `outcome` | seconds | from asking to that answer, without the time waited; of a batch, the whole of it for each |
//! | `nevertwice_takeovers_total` | counter | `store` | grants | begins granted after an attempt that ran out of its lease |
//! | `nevertwice_commands_total` | counter | `store`, `command`, `outcome` | answers | `resume`, `renew`, `save_checkpoint`, `mark_effect`, `complete`, `fail` and `release`, by `ok`, `lease_lost`, `already_finished`, `error` |
//! | `nevertwice_finish_seconds` | histogram | `store`, `command` | seconds | from `complete` or `fail` to its answer; of a batch, the whole of it for each |
//! | `nevertwice_leases_lost_total` | counter | `store` | leases | holders that were told, for the first time, that the key is no longer theirs |
//! | `nevertwice_restored_total` | counter | `store` | records | outcomes written although the record was gone: **a store that loses records**, or a retention that is too short |
//! | `nevertwice_store_retries_total` | counter | `store`, `reason` | calls | store calls that were repeated, because of `unavailable` or `no_answer` |
//! | `nevertwice_timeouts_total` | counter | `store` | calls | calls given up after the policy's `call_timeout` |
//! | `nevertwice_waiters` | gauge | `store` | callers | who waits for a duplicate in flight at present |
//! | `nevertwice_waits_total` | counter | `store`, `end` | waits | waits that ended: the operation `changed`, `timeout`, `limit` (no place: `max_waiters`), `error`. Not those that were dropped |
//! | `nevertwice_wait_seconds` | histogram | `store`, `end` | seconds | how long they were; none for `limit` |
//! | `nevertwice_runs_total` | counter | `store`, `outcome` | runs | `executed`, `failed`, `replayed`, `replayed_failure`, `in_progress`, `unresolved`, `mismatch`, `lease_lost`, `unreadable`, `unwritable`, `error` |
//! | `nevertwice_purged_total` | counter | `store` | records | removed by purges |
//! | `nevertwice_unsettled_expired_total` | counter | `store` | records | of those, the ones whose effect may have happened and nobody settled in time, where the store can tell (memory, SQLite) |
//! | `nevertwice_unresolved` | gauge | `store` | operations | whose effect may have happened and nobody knows, as last counted: by [`purge_regularly`](crate::Engine::purge_regularly) (on Redis if [asked for](crate::PurgePlan::count_unresolved)) or [`unresolved_count`](crate::Engine::unresolved_count) |
//! | `nevertwice_operator_actions_total` | counter | `store`, `action`, `outcome` | actions | `resolve`, `amend` and `forget`, those of bulk calls too, by `ok`, `nothing` (to forget), `not_resolvable`, `not_amendable`, `error` |
//!
//! Times are the engine's [`Clock`](crate::Clock)'s. The operation by which [`Engine::purge_regularly`](crate::Engine::purge_regularly)
//! takes turns is counted like any other: a begin per interval and process, and one `fail` per turn. What to alert on: `nevertwice_restored_total` at all, begins answered `unresolved`, and
//! lost leases (the lease is shorter than the work).
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
//! | `nevertwice.run` | [`Engine::run`](crate::Engine::run), the handler included |
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
//!
//! # Events
//!
//! Of target `nevertwice`, within the span of their call.
//!
//! | event | level | fields | meaning |
//! |---|---|---|---|
//! | `nevertwice.begun` | DEBUG | `store`, `outcome`, `attempt` | a begin was answered |
//! | `nevertwice.takeover` | INFO | `store`, `attempt` | it was granted, after an attempt that ran out of its lease |
//! | `nevertwice.unresolved` | WARN | `store`, `reason`, `attempt` | it was not granted: somebody has to look |
//! | `nevertwice.answered` | DEBUG | `store`, `command`, `outcome`, `state`, `attempt` | a lease's command was answered |
//! | `nevertwice.lease_lost` | WARN | `store`, `state`, `attempt` | a holder was told, for the first time, that the key is no longer its own |
//! | `nevertwice.restored` | WARN | `store`, `attempt` | an outcome was written although the record was gone |
//! | `nevertwice.store_retry` | WARN | `store`, `reason`, `tries` | a store call is repeated, after so many |
//! | `nevertwice.timed_out` | WARN | `store`, `tries` | a call was given up |
//! | `nevertwice.waited` | DEBUG | `store`, `end` | a wait ended |
//! | `nevertwice.ran` | DEBUG | `store`, `outcome` | a run ended |
//! | `nevertwice.purged` | INFO | `store`, `records` | a step of a purge removed records |
//! | `nevertwice.unsettled_expired` | WARN | `store`, `records` | a purge removed evidence of effects that nobody settled in time |
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

use std::future::Future;
use std::time::Duration;

#[cfg(feature = "tracing")]
use tracing::Instrument;

use crate::begin::Begin;
use crate::decide::{Current, Reason, StateKind};
use crate::engine::Engine;
use crate::error::Error;
use crate::label::Label;
use crate::run::{Outcome, RunError};

/// The calls that have a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Begin,
    BeginOrWait,
    BeginMany,
    Run,
    Resume,
    Renew,
    SaveCheckpoint,
    MarkEffect,
    Complete,
    CompleteMany,
    Fail,
    FailMany,
    RenewMany,
    MarkEffectMany,
    Release,
    Resolve,
    ResolveMany,
    Amend,
    Forget,
    ForgetMany,
    Purge,
}

impl Op {
    /// The label of a lease's command, or of an operator's action.
    fn label(self) -> &'static str {
        match self {
            Op::Begin | Op::BeginOrWait | Op::BeginMany => "begin",
            Op::Run => "run",
            Op::Resume => "resume",
            Op::Renew | Op::RenewMany => "renew",
            Op::SaveCheckpoint => "save_checkpoint",
            Op::MarkEffect | Op::MarkEffectMany => "mark_effect",
            Op::Complete | Op::CompleteMany => "complete",
            Op::Fail | Op::FailMany => "fail",
            Op::Release => "release",
            Op::Resolve | Op::ResolveMany => "resolve",
            Op::Amend => "amend",
            Op::Forget | Op::ForgetMany => "forget",
            Op::Purge => "purge",
        }
    }

    /// Where a key stands once this command of a lease is carried out, where that is certain.
    fn leaves(self) -> Option<&'static str> {
        match self {
            Op::Renew | Op::RenewMany | Op::SaveCheckpoint | Op::MarkEffect | Op::MarkEffectMany => {
                Some(state(StateKind::InProgress))
            }
            Op::Complete | Op::CompleteMany => Some(state(StateKind::Completed)),
            Op::Fail | Op::FailMany => Some(state(StateKind::Failed)),
            Op::Release => Some(state(StateKind::Absent)),
            Op::Begin
            | Op::BeginOrWait
            | Op::BeginMany
            | Op::Run
            | Op::Resume
            | Op::Resolve
            | Op::ResolveMany
            | Op::Amend
            | Op::Forget
            | Op::ForgetMany
            | Op::Purge => None,
        }
    }

    /// Whether it has many outcomes, which are in its events.
    fn is_batch(self) -> bool {
        match self {
            Op::BeginMany
            | Op::CompleteMany
            | Op::FailMany
            | Op::RenewMany
            | Op::MarkEffectMany
            | Op::ResolveMany
            | Op::ForgetMany => true,
            Op::Begin
            | Op::BeginOrWait
            | Op::Run
            | Op::Resume
            | Op::Renew
            | Op::SaveCheckpoint
            | Op::MarkEffect
            | Op::Complete
            | Op::Fail
            | Op::Release
            | Op::Resolve
            | Op::Amend
            | Op::Forget
            | Op::Purge => false,
        }
    }
}

/// A moment on the engine's clock. It is read for metrics only.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    #[cfg(feature = "metrics")]
    time: Duration,
}

impl Moment {
    pub(crate) fn now(engine: &Engine) -> Moment {
        Moment {
            #[cfg(feature = "metrics")]
            time: engine.clock().monotonic(),
        }
    }

    #[cfg(feature = "metrics")]
    fn seconds(self, engine: &Engine) -> f64 {
        engine.clock().monotonic().saturating_sub(self.time).as_secs_f64()
    }
}

/// One call, as it is observed.
pub(crate) struct Seen<'a> {
    engine: &'a Engine,
    op: Op,
    /// Since when its latency counts.
    pub(crate) since: Moment,
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

/// A call starts. `scope` is asked for if there is a span to show it.
pub(crate) fn call<'a>(engine: &'a Engine, op: Op, scope: &dyn Fn() -> Option<Label>) -> Seen<'a> {
    Seen {
        engine,
        op,
        since: Moment::now(engine),
        #[cfg(feature = "tracing")]
        span: span(engine, op, scope),
    }
}

/// `future`, in the span of its call.
pub(crate) fn in_span<F: Future>(seen: &Seen<'_>, future: F) -> impl Future<Output = F::Output> + use<F> {
    #[cfg(feature = "tracing")]
    let future = future.instrument(seen.span.clone());
    future
}

#[cfg(feature = "tracing")]
fn span(engine: &Engine, op: Op, scope: &dyn Fn() -> Option<Label>) -> tracing::Span {
    macro_rules! spans {
        ($($op:ident $name:literal),+) => {
            match op {
                $(Op::$op => tracing::debug_span!(
                    target: "nevertwice",
                    $name,
                    store = engine.store().name(),
                    scope = scope().as_deref(),
                    outcome = tracing::field::Empty,
                    state = tracing::field::Empty,
                    attempt = tracing::field::Empty,
                ),)+
            }
        };
    }
    spans!(
        Begin "nevertwice.begin",
        BeginOrWait "nevertwice.begin_or_wait",
        BeginMany "nevertwice.begin_many",
        Run "nevertwice.run",
        Resume "nevertwice.resume",
        Renew "nevertwice.renew",
        SaveCheckpoint "nevertwice.save_checkpoint",
        MarkEffect "nevertwice.mark_effect",
        Complete "nevertwice.complete",
        CompleteMany "nevertwice.complete_many",
        Fail "nevertwice.fail",
        FailMany "nevertwice.fail_many",
        RenewMany "nevertwice.renew_many",
        MarkEffectMany "nevertwice.mark_effect_many",
        Release "nevertwice.release",
        Resolve "nevertwice.resolve",
        ResolveMany "nevertwice.resolve_many",
        Amend "nevertwice.amend",
        Forget "nevertwice.forget",
        ForgetMany "nevertwice.forget_many",
        Purge "nevertwice.purge"
    )
}

/// An event of the level, name, engine, fields and message, if there is tracing.
macro_rules! event {
    ($level:ident, $name:literal, $engine:expr, { $($fields:tt)* }, $message:literal) => {
        #[cfg(feature = "tracing")]
        tracing::event!(
            name: $name,
            target: "nevertwice",
            tracing::Level::$level,
            store = $engine.store().name(),
            $($fields)*,
            $message
        )
    };
}

/// Adds to a counter, if there are metrics.
macro_rules! count {
    ($name:literal, $engine:expr, $number:expr $(, $label:literal => $value:expr)*) => {
        #[cfg(feature = "metrics")]
        metrics::counter!($name, "store" => $engine.store().name() $(, $label => $value)*).increment($number)
    };
}

/// Records how long it took, if there are metrics.
macro_rules! latency {
    ($name:literal, $engine:expr, $since:expr, $label:literal => $value:expr) => {
        #[cfg(feature = "metrics")]
        metrics::histogram!($name, "store" => $engine.store().name(), $label => $value)
            .record($since.seconds($engine))
    };
}

impl Seen<'_> {
    /// A begin was answered.
    pub(crate) fn begun(&self, begin: &Result<Begin, Error>) {
        let engine = self.engine;
        let (outcome, attempt) = match begin {
            Ok(Begin::Acquired(lease)) => ("acquired", Some(lease.attempt())),
            Ok(Begin::Completed(_)) => ("completed", None),
            Ok(Begin::InProgress(busy)) => ("in_progress", Some(busy.attempt())),
            Ok(Begin::Failed(_)) => ("failed", None),
            Ok(Begin::Unresolved(unknown)) => ("unresolved", Some(unknown.attempt())),
            Ok(Begin::Mismatch(_)) => ("mismatch", None),
            Err(_) => ("error", None),
        };
        count!("nevertwice_begins_total", engine, 1, "outcome" => outcome);
        latency!("nevertwice_begin_seconds", engine, self.since, "outcome" => outcome);
        self.inside(|| {
            self.record(outcome, None, attempt);
            event!(DEBUG, "nevertwice.begun", engine, { outcome, attempt }, "begin answered");
            match begin {
                Ok(Begin::Acquired(lease)) if lease.takeover() => {
                    count!("nevertwice_takeovers_total", engine, 1);
                    event!(INFO, "nevertwice.takeover", engine, { attempt }, "taken over");
                }
                Ok(Begin::Unresolved(unknown)) => {
                    let reason = reason(unknown.reason());
                    event!(WARN, "nevertwice.unresolved", engine, { reason, attempt }, "somebody has to look");
                }
                Ok(_) | Err(_) => {}
            }
        });
    }

    /// A command of the lease of this attempt was answered.
    pub(crate) fn answered<T>(&self, attempt: u32, result: &Result<T, Error>) {
        let (engine, command) = (self.engine, self.op.label());
        let (outcome, state) = match result {
            Ok(_) => ("ok", self.op.leaves()),
            Err(Error::LeaseLost { current }) => ("lease_lost", Some(state(current.state))),
            Err(Error::AlreadyFinished { current }) => ("already_finished", Some(state(current.state))),
            Err(_) => ("error", None),
        };
        count!("nevertwice_commands_total", engine, 1, "command" => command, "outcome" => outcome);
        if let Op::Complete | Op::CompleteMany | Op::Fail | Op::FailMany = self.op {
            latency!("nevertwice_finish_seconds", engine, self.since, "command" => command);
        }
        self.inside(|| {
            self.record(outcome, state, Some(attempt));
            event!(
                DEBUG, "nevertwice.answered", engine, { command, outcome, state, attempt }, "command answered"
            );
        });
    }

    /// An operator's word was carried out (or there was nothing to do), or refused.
    pub(crate) fn operated(&self, result: Result<bool, &Error>) {
        let (engine, action) = (self.engine, self.op.label());
        let outcome = match result {
            Ok(true) => "ok",
            Ok(false) => "nothing",
            Err(Error::NotResolvable { .. }) => "not_resolvable",
            Err(Error::NotAmendable { .. }) => "not_amendable",
            Err(_) => "error",
        };
        count!("nevertwice_operator_actions_total", engine, 1, "action" => action, "outcome" => outcome);
        self.inside(|| {
            self.record(outcome, None, None);
            event!(INFO, "nevertwice.operated", engine, { action, outcome }, "operator's word");
        });
    }

    /// A run ended.
    pub(crate) fn ran<T, E>(&self, result: &Result<Outcome<T>, RunError<E>>) {
        let engine = self.engine;
        let outcome = match result {
            Ok(outcome) if outcome.is_replayed() => "replayed",
            Ok(_) => "executed",
            Err(RunError::Failed { replayed: true, .. }) => "replayed_failure",
            Err(RunError::Failed { replayed: false, .. }) => "failed",
            Err(RunError::InProgress { .. }) => "in_progress",
            Err(RunError::Unresolved(_)) => "unresolved",
            Err(RunError::Mismatch) => "mismatch",
            Err(RunError::LeaseLost) => "lease_lost",
            Err(RunError::Unreadable { .. }) => "unreadable",
            Err(RunError::Unwritable { .. }) => "unwritable",
            Err(RunError::Engine(_)) => "error",
        };
        count!("nevertwice_runs_total", engine, 1, "outcome" => outcome);
        self.inside(|| {
            self.record(outcome, None, None);
            event!(DEBUG, "nevertwice.ran", engine, { outcome }, "run ended");
        });
    }

    fn record(&self, outcome: &'static str, state: Option<&'static str>, attempt: Option<u32>) {
        #[cfg(feature = "tracing")]
        if !self.op.is_batch() {
            self.span.record("outcome", outcome);
            if let Some(state) = state {
                self.span.record("state", state);
            }
            if let Some(attempt) = attempt {
                self.span.record("attempt", attempt);
            }
        }
    }

    /// What `act` gives, in the span.
    pub(crate) fn inside<T>(&self, act: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        let _entered = self.span.enter();
        act()
    }
}

/// The holder of a lease was told, for the first time, that the key is no longer its own.
pub(crate) fn lease_lost(engine: &Engine, attempt: u32, current: Current) {
    let state = state(current.state);
    count!("nevertwice_leases_lost_total", engine, 1);
    event!(WARN, "nevertwice.lease_lost", engine, { state, attempt }, "lease lost");
}

/// An outcome was written although the record was gone.
pub(crate) fn restored(engine: &Engine, attempt: u32) {
    count!("nevertwice_restored_total", engine, 1);
    event!(WARN, "nevertwice.restored", engine, { attempt }, "the record was gone");
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
        "the store warns"
    );
}

/// Why a store call is repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Trouble {
    Unavailable,
    NoAnswer,
}

/// A store call is repeated, after `tries` of its command.
pub(crate) fn repeated(engine: &Engine, trouble: Trouble, tries: u32) {
    let reason = match trouble {
        Trouble::Unavailable => "unavailable",
        Trouble::NoAnswer => "no_answer",
    };
    count!("nevertwice_store_retries_total", engine, 1, "reason" => reason);
    event!(WARN, "nevertwice.store_retry", engine, { reason, tries }, "store call repeated");
}

/// A call was given up.
pub(crate) fn timed_out(engine: &Engine, tries: u32) {
    count!("nevertwice_timeouts_total", engine, 1);
    event!(WARN, "nevertwice.timed_out", engine, { tries }, "given up");
}

/// A step of a purge was done.
pub(crate) fn purged(engine: &Engine, records: usize) {
    count!("nevertwice_purged_total", engine, records as u64);
    if records > 0 {
        event!(INFO, "nevertwice.purged", engine, { records }, "purged");
    }
}

/// A store was opened whose wall clock is `ahead` of its time, further than is believed.
pub(crate) fn clock_step(store: &'static str, ahead: Duration) {
    #[cfg(feature = "tracing")]
    tracing::event!(
        name: "nevertwice.clock_step",
        target: "nevertwice",
        tracing::Level::WARN,
        store,
        ahead_s = ahead.as_secs(),
        "the wall clock is too far ahead to be believed; time goes on from where it had got to"
    );
}

/// A store was opened whose clock has no boot.
pub(crate) fn clock_without_boot(store: &'static str) {
    #[cfg(feature = "tracing")]
    tracing::event!(
        name: "nevertwice.clock_without_boot",
        target: "nevertwice",
        tracing::Level::WARN,
        store,
        "no boot id: each process that opens the file goes by its own wall clock"
    );
}

/// A purge removed evidence of effects that nobody settled in time.
pub(crate) fn expired_unsettled(engine: &Engine, records: u64) {
    if records > 0 {
        count!("nevertwice_unsettled_expired_total", engine, records);
        event!(WARN, "nevertwice.unsettled_expired", engine, { records }, "evidence expired unsettled");
    }
}

/// So many operations are unresolved.
pub(crate) fn unresolved(engine: &Engine, operations: u64) {
    #[cfg(feature = "metrics")]
    metrics::gauge!("nevertwice_unresolved", "store" => engine.store().name()).set(operations as f64);
}

/// Somebody who waits, until it is dropped.
pub(crate) struct Waiter<'a> {
    engine: &'a Engine,
    since: Moment,
}

impl<'a> Waiter<'a> {
    pub(crate) fn enter(engine: &'a Engine) -> Waiter<'a> {
        #[cfg(feature = "metrics")]
        metrics::gauge!("nevertwice_waiters", "store" => engine.store().name()).increment(1.0);
        Waiter { engine, since: Moment::now(engine) }
    }
}

#[cfg(feature = "metrics")]
impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        metrics::gauge!("nevertwice_waiters", "store" => self.engine.store().name()).decrement(1.0);
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
pub(crate) fn waited(engine: &Engine, waiter: Option<&Waiter<'_>>, end: End) {
    let end = match end {
        End::Changed => "changed",
        End::Timeout => "timeout",
        End::Limit => "limit",
        End::Error => "error",
    };
    count!("nevertwice_waits_total", engine, 1, "end" => end);
    if let Some(waiter) = waiter {
        latency!("nevertwice_wait_seconds", engine, waiter.since, "end" => end);
    }
    event!(DEBUG, "nevertwice.waited", engine, { end }, "wait ended");
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

/// Tells the recorder, when an engine is built, what each metric is.
pub(crate) fn describe() {
    #[cfg(feature = "metrics")]
    {
        use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
        describe_counter!("nevertwice_begins_total", Unit::Count, "Begins by their answer");
        describe_histogram!("nevertwice_begin_seconds", Unit::Seconds, "From asking to a begin's answer");
        describe_counter!("nevertwice_takeovers_total", Unit::Count, "Grants after a lease that ran out");
        describe_counter!("nevertwice_commands_total", Unit::Count, "Commands of leases by their answer");
        describe_histogram!("nevertwice_finish_seconds", Unit::Seconds, "From a finish to its answer");
        describe_counter!("nevertwice_leases_lost_total", Unit::Count, "Holders told that the key is lost");
        describe_counter!("nevertwice_restored_total", Unit::Count, "Outcomes whose record was gone");
        describe_counter!("nevertwice_store_retries_total", Unit::Count, "Store calls that were repeated");
        describe_counter!("nevertwice_timeouts_total", Unit::Count, "Calls that were given up");
        describe_gauge!("nevertwice_waiters", Unit::Count, "Who waits for a duplicate in flight");
        describe_counter!("nevertwice_waits_total", Unit::Count, "Waits by how they ended");
        describe_histogram!("nevertwice_wait_seconds", Unit::Seconds, "How long waits were");
        describe_counter!("nevertwice_runs_total", Unit::Count, "Runs by how they ended");
        describe_counter!("nevertwice_purged_total", Unit::Count, "Records removed by purges");
        describe_counter!(
            "nevertwice_unsettled_expired_total",
            Unit::Count,
            "Evidence that expired unsettled"
        );
        describe_gauge!("nevertwice_unresolved", Unit::Count, "Operations whose effect may have happened");
        describe_counter!(
            "nevertwice_operator_actions_total",
            Unit::Count,
            "What operators resolved or forgot"
        );
    }
}
