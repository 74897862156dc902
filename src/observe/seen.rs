//! The observation of one call: its span, its latency and its answer.

use std::future::Future;

#[cfg(feature = "tracing")]
use tracing::Instrument;

use super::{Source, purge_failed, reason, state};
use crate::begin::Begin;
use crate::decide::StateKind;
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
    DropResponses,
    BeginIn,
    ResumeIn,
    CompleteIn,
    FailIn,
}

impl Op {
    /// Returns the label of a lease's command, or of an operator's action.
    pub(super) fn label(self) -> &'static str {
        match self {
            Op::Begin | Op::BeginOrWait | Op::BeginMany | Op::BeginIn => "begin",
            Op::Run => "run",
            Op::Resume | Op::ResumeIn => "resume",
            Op::Renew | Op::RenewMany => "renew",
            Op::SaveCheckpoint => "save_checkpoint",
            Op::MarkEffect | Op::MarkEffectMany => "mark_effect",
            Op::Complete | Op::CompleteMany | Op::CompleteIn => "complete",
            Op::Fail | Op::FailMany | Op::FailIn => "fail",
            Op::Release => "release",
            Op::Resolve | Op::ResolveMany => "resolve",
            Op::Amend => "amend",
            Op::Forget | Op::ForgetMany => "forget",
            Op::Purge => "purge",
            Op::DropResponses => "drop_responses",
        }
    }

    /// Returns the state of a key after this command of a lease, where that is certain.
    fn leaves(self) -> Option<&'static str> {
        match self {
            Op::Renew | Op::RenewMany | Op::SaveCheckpoint | Op::MarkEffect | Op::MarkEffectMany => {
                Some(state(StateKind::InProgress))
            }
            Op::Complete | Op::CompleteMany | Op::CompleteIn => Some(state(StateKind::Completed)),
            Op::Fail | Op::FailMany | Op::FailIn => Some(state(StateKind::Failed)),
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
            | Op::Purge
            | Op::DropResponses
            | Op::BeginIn
            | Op::ResumeIn => None,
        }
    }

    /// Returns true if the call has many outcomes, which appear in its events.
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
            | Op::Purge
            | Op::DropResponses
            | Op::BeginIn
            | Op::ResumeIn
            | Op::CompleteIn
            | Op::FailIn => false,
        }
    }
}

/// A reading of a source's clock. It is taken for metrics only.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    #[cfg(feature = "metrics")]
    time: std::time::Duration,
}

impl Moment {
    pub(crate) fn now(source: &dyn Source) -> Moment {
        Moment {
            #[cfg(feature = "metrics")]
            time: source.clock().monotonic(),
        }
    }

    #[cfg(feature = "metrics")]
    pub(super) fn seconds(self, source: &dyn Source) -> f64 {
        source.clock().monotonic().saturating_sub(self.time).as_secs_f64()
    }
}

/// The observation of one call.
pub(crate) struct Seen<'a> {
    source: &'a dyn Source,
    op: Op,
    /// True for a call of this crate's own, which is not reported.
    quiet: bool,
    /// The start of its latency.
    pub(crate) since: Moment,
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

/// Starts the observation of a call. `scope` is called only if there is a span to show it.
pub(crate) fn call<'a>(source: &'a dyn Source, op: Op, scope: &dyn Fn() -> Option<Label>) -> Seen<'a> {
    Seen {
        source,
        op,
        quiet: false,
        since: Moment::now(source),
        #[cfg(feature = "tracing")]
        span: span(source, op, scope),
    }
}

/// Starts the observation of a call of this crate's own, which is no operation of the
/// application's.
pub(crate) fn quiet_call(source: &dyn Source, op: Op) -> Seen<'_> {
    Seen {
        source,
        op,
        quiet: true,
        since: Moment::now(source),
        #[cfg(feature = "tracing")]
        span: tracing::Span::none(),
    }
}

/// Runs `future` in the span of its call.
pub(crate) fn in_span<F: Future>(seen: &Seen<'_>, future: F) -> impl Future<Output = F::Output> + use<F> {
    #[cfg(feature = "tracing")]
    let future = future.instrument(seen.span.clone());
    future
}

#[cfg(feature = "tracing")]
fn span(source: &dyn Source, op: Op, scope: &dyn Fn() -> Option<Label>) -> tracing::Span {
    macro_rules! spans {
        ($($op:ident $name:literal),+) => {
            match op {
                $(Op::$op => tracing::debug_span!(
                    target: "nevertwice",
                    $name,
                    store = source.name(),
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
        Purge "nevertwice.purge",
        DropResponses "nevertwice.drop_responses",
        BeginIn "nevertwice.begin_in",
        ResumeIn "nevertwice.resume_in",
        CompleteIn "nevertwice.complete_in",
        FailIn "nevertwice.fail_in"
    )
}

/// A grant that is observed.
pub(crate) trait Granted {
    fn attempt(&self) -> u32;
    fn takeover(&self) -> bool;
}

impl Seen<'_> {
    /// Reports the answer to a begin.
    pub(crate) fn begun<L: Granted>(&self, begin: &Result<Begin<L>, Error>) {
        if self.quiet {
            return;
        }
        let source = self.source;
        let (outcome, attempt) = match begin {
            Ok(Begin::Acquired(lease)) => ("acquired", Some(lease.attempt())),
            Ok(Begin::Completed(_)) => ("completed", None),
            Ok(Begin::InProgress(busy)) => ("in_progress", Some(busy.attempt())),
            Ok(Begin::Failed(_)) => ("failed", None),
            Ok(Begin::Unresolved(unknown)) => ("unresolved", Some(unknown.attempt())),
            Ok(Begin::Mismatch(_)) => ("mismatch", None),
            Err(_) => ("error", None),
        };
        count!("nevertwice_begins_total", source.name(), 1, "outcome" => outcome);
        latency!("nevertwice_begin_seconds", source, self.since, "outcome" => outcome);
        self.inside(|| {
            self.record(outcome, None, attempt);
            event!(DEBUG, "nevertwice.begun", source.name(), { outcome, attempt }, "begin answered");
            match begin {
                Ok(Begin::Acquired(lease)) if lease.takeover() => {
                    count!("nevertwice_takeovers_total", source.name(), 1);
                    event!(INFO, "nevertwice.takeover", source.name(), { attempt }, "taken over");
                }
                Ok(Begin::Unresolved(unknown)) => {
                    let reason = reason(unknown.reason());
                    event!(WARN, "nevertwice.unresolved", source.name(), { reason, attempt }, "an operator must resolve it");
                }
                Ok(_) | Err(_) => {}
            }
        });
    }

    /// Reports the answer to a command of this attempt's lease.
    pub(crate) fn answered<T>(&self, attempt: u32, result: &Result<T, Error>) {
        if self.quiet {
            return;
        }
        let (source, command) = (self.source, self.op.label());
        let (outcome, state) = match result {
            Ok(_) => ("ok", self.op.leaves()),
            Err(Error::LeaseLost { current }) => ("lease_lost", Some(state(current.state))),
            Err(Error::AlreadyFinished { current }) => ("already_finished", Some(state(current.state))),
            Err(_) => ("error", None),
        };
        count!("nevertwice_commands_total", source.name(), 1, "command" => command, "outcome" => outcome);
        if let "complete" | "fail" = command {
            latency!("nevertwice_finish_seconds", source, self.since, "command" => command);
        }
        self.inside(|| {
            self.record(outcome, state, Some(attempt));
            event!(DEBUG, "nevertwice.answered", source.name(), { command, outcome, state, attempt }, "command answered"
            );
        });
    }

    /// Reports an operator's action: carried out, without anything to do, or refused.
    pub(crate) fn operated(&self, result: Result<bool, &Error>) {
        let (source, action) = (self.source, self.op.label());
        let outcome = match result {
            Ok(true) => "ok",
            Ok(false) => "nothing",
            Err(Error::NotResolvable { .. }) => "not_resolvable",
            Err(Error::NotAmendable { .. }) => "not_amendable",
            Err(_) => "error",
        };
        count!("nevertwice_operator_actions_total", source.name(), 1, "action" => action, "outcome" => outcome);
        self.inside(|| {
            self.record(outcome, None, None);
            event!(INFO, "nevertwice.operated", source.name(), { action, outcome }, "an operator acted");
        });
    }

    /// Reports the end of a purge or of a dropping of responses.
    pub(crate) fn purged<T>(&self, result: &Result<T, Error>) {
        if result.is_err() {
            self.inside(|| purge_failed(self.source, self.op));
        }
    }

    /// Reports the end of a run.
    pub(crate) fn ran<T, E>(&self, result: &Result<Outcome<T>, RunError<T, E>>) {
        let source = self.source;
        let outcome = match result {
            Ok(outcome) if outcome.is_replayed() => "replayed",
            Ok(_) => "executed",
            Err(RunError::Failed { replayed: true, .. }) => "replayed_failure",
            Err(RunError::Failed { replayed: false, .. }) => "failed",
            Err(RunError::InProgress { .. }) => "in_progress",
            Err(RunError::Unresolved(_)) => "unresolved",
            Err(RunError::Mismatch) => "mismatch",
            Err(RunError::LeaseLost { .. }) => "lease_lost",
            Err(RunError::Unreadable { .. }) => "unreadable",
            Err(RunError::Unwritable { .. }) => "unwritable",
            Err(RunError::Unrecorded { .. }) => "unrecorded",
            Err(RunError::NoThread(_) | RunError::Engine(_)) => "error",
        };
        count!("nevertwice_runs_total", source.name(), 1, "outcome" => outcome);
        self.inside(|| {
            self.record(outcome, None, None);
            event!(DEBUG, "nevertwice.ran", source.name(), { outcome }, "run ended");
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

    /// Calls `act` in the span.
    pub(crate) fn inside<T>(&self, act: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        let _entered = self.span.enter();
        act()
    }
}
