//! The schedules of an audit: [`Case`].

use std::fmt;

use crate::testing::Fault;

/// The faults of a single store call.
pub(super) const FAULTS: [Fault; 5] =
    [Fault::FailBefore, Fault::FailAfter, Fault::RequestLost, Fault::AnswerLost, Fault::Duplicate];

/// One schedule. Awaits and store calls are counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Undisturbed,
    /// The handler is dropped.
    Dropped {
        at: usize,
    },
    /// The same, and the next delivery comes while its lease runs.
    DroppedThenAtOnce {
        at: usize,
    },
    /// The handler is dropped after its begin, and the one that takes over is dropped too.
    DroppedTwice {
        at: usize,
    },
    Fault {
        call: u64,
        fault: Fault,
    },
    /// The store is away from this call on, until the next delivery.
    Away {
        call: u64,
    },
    /// Another delivery is dealt with at the same time.
    Twice {
        at: usize,
    },
    /// The handler stops until its lease is over and another delivery was dealt with.
    Zombie {
        at: usize,
    },
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Case::Undisturbed => write!(f, "undisturbed"),
            Case::Dropped { at } => write!(f, "dropped at await {at}"),
            Case::DroppedThenAtOnce { at } => write!(f, "dropped at await {at}, delivered again at once"),
            Case::DroppedTwice { at } => write!(f, "dropped after its begin, then at await {at}"),
            Case::Fault { call, fault } => {
                let what = match fault {
                    Fault::FailBefore => "fails before it is done",
                    Fault::FailAfter => "fails after it is done",
                    Fault::RequestLost => "is lost",
                    Fault::AnswerLost => "is done, its answer lost",
                    Fault::Duplicate => "is done twice",
                    Fault::Delay(_) => "is late",
                };
                write!(f, "store call {call} {what}")
            }
            Case::Away { call } => write!(f, "store away from call {call} on"),
            Case::Twice { at } => write!(f, "second delivery at await {at}"),
            Case::Zombie { at } => write!(f, "stopped at await {at}, resumed after a second delivery"),
        }
    }
}
