//! The result of one schedule: [`Row`].

use std::fmt::{self, Debug};

use super::Size;

/// One schedule of an audit, and what became of it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Row {
    /// The fault, in words.
    pub schedule: String,
    /// The number of effects.
    pub effects: u64,
    /// The outcome that stands.
    pub end: End,
    /// The fault of the handler, if it does not survive the schedule.
    pub finding: Option<Finding>,
}

/// The outcome of an operation after all deliveries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum End {
    /// The last delivery was answered with an outcome.
    Answered,
    /// An operator has to decide: the effect may have happened. This is the right end of a crash
    /// after the mark.
    Unresolved,
    /// A failure is recorded.
    Failed,
    /// None of these.
    Open,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            End::Answered => "answered",
            End::Unresolved => "unresolved",
            End::Failed => "failed",
            End::Open => "open",
        })
    }
}

/// The fault of a handler. Its `Display` says what to change.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// One delivery has more effects under one key than it should.
    SeveralEffects,
    /// An effect happened twice: it is not marked.
    Unmarked,
    /// An effect happened twice: it is marked, but afterwards.
    MarkedAfterwards,
    /// An effect happened twice: it does not need the lease, or is tried again whatever the answer.
    Unguarded,
    /// The operation completed without its effect.
    CompletedBefore,
    /// A delivery was answered with an outcome, and there was none: the operation was in progress.
    AnsweredEarly,
    /// Two deliveries got different outcomes, in this order.
    OtherAnswer(String, String),
    /// No delivery got an outcome, and nothing says that an operator has to decide.
    NeverEnds,
}

impl Finding {
    /// Returns a short name for tables.
    pub fn name(&self) -> &'static str {
        match self {
            Finding::SeveralEffects => "several effects under one key",
            Finding::Unmarked => "doubled: the effect is not marked",
            Finding::MarkedAfterwards => "doubled: the effect is marked afterwards",
            Finding::Unguarded => "doubled: the effect is not guarded",
            Finding::CompletedBefore => "lost: completed before the effect",
            Finding::AnsweredEarly => "answered before there was an outcome",
            Finding::OtherAnswer(..) => "answers differ",
            Finding::NeverEnds => "never ends",
        }
    }

    fn advice(&self) -> &'static str {
        match self {
            Finding::SeveralEffects => {
                "give each effect a key of its own, or record a checkpoint between them: a crash between two \
                 effects cannot be told from one after both (`Lease::checkpoint`, `Lease::derive_key`); then \
                 state their number (`Auditor::effects`)"
            }
            Finding::Unmarked => {
                "call `Lease::mark_effect` right before the effect, so that a crash from there on is unresolved \
                 and not run again; or give the provider `Lease::derive_key`, so that it knows a repetition"
            }
            Finding::MarkedAfterwards => {
                "call `Lease::mark_effect` before the effect: a crash between the two runs it again"
            }
            Finding::Unguarded => {
                "act only under `Begin::Acquired`, and stop at the first error of the lease: \
                 `Begin::Unresolved` and `Error::LeaseLost` mean that somebody else may have acted"
            }
            Finding::CompletedBefore => {
                "call `Lease::complete` after the effect: a crash between the two loses it, and every repetition \
                 is told that it happened"
            }
            Finding::AnsweredEarly => {
                "acknowledge nothing at `Begin::InProgress`, nor after an error of `Lease::complete`: whoever holds \
                 the lease may have crashed, and the message would be gone"
            }
            Finding::OtherAnswer(..) => {
                "answer with what was recorded, the first time too: values made anew (a time, a random id, a \
                 field that is not recorded) differ in the replay"
            }
            Finding::NeverEnds => {
                "repetitions must end in an outcome once faults stop: finish the lease with `complete`, `fail` or \
                 `release` on every path, and deal with every `Begin`"
            }
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name(), self.advice())?;
        if let Finding::OtherAnswer(first, other) = self {
            write!(f, " ({first}, then {other})")?;
        }
        Ok(())
    }
}

/// The record at the moment of the first effect of a schedule, and later.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sighting {
    pub(super) at_effect: Option<Seen>,
    pub(super) was_marked_later: bool,
    /// True if a delivery was answered while the operation was in progress.
    pub(super) was_answered_early: bool,
}

/// A record as an audit sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Absent,
    Unmarked,
    Marked,
    Completed,
    Failed,
}

/// Judges a schedule by its effects, its outcomes and the record.
pub(super) fn judge<T: PartialEq + Debug>(
    is_undisturbed: bool,
    [effects, expected]: [u64; 2],
    answers: &[T],
    end: End,
    sighting: Sighting,
) -> Option<Finding> {
    let differs = answers.iter().find(|answer| **answer != answers[0]);
    if effects > expected && is_undisturbed {
        Some(Finding::SeveralEffects)
    } else if effects > expected {
        Some(match sighting.at_effect {
            Some(Seen::Unmarked) if sighting.was_marked_later => Finding::MarkedAfterwards,
            Some(Seen::Unmarked) => Finding::Unmarked,
            _ => Finding::Unguarded,
        })
    } else if sighting.was_answered_early {
        Some(Finding::AnsweredEarly)
    } else if effects < expected && end == End::Answered {
        Some(Finding::CompletedBefore)
    } else if let Some(other) = differs {
        Some(Finding::OtherAnswer(format!("{:?}", answers[0]), format!("{other:?}")))
    } else {
        (end == End::Open).then_some(Finding::NeverEnds)
    }
}

/// Checks that there is something to audit.
///
/// # Panics
/// If there is not.
#[allow(clippy::panic)] // a check fails by panicking
pub(super) fn check(undisturbed: &Row, size: Size) {
    if undisturbed.end != End::Answered {
        panic!("a delivery that nothing disturbs ends without an outcome: the handler returned no `Ok`");
    }
    if undisturbed.effects == 0 {
        panic!("a delivery that nothing disturbs has no effect: does `effects` count what the handler does?");
    }
    if size.calls == 0 && size.awaits == 0 {
        panic!(
            "there is nothing to disturb: the handler awaits nothing and does not use the engine it is given"
        );
    }
}
