//! The specification of a record for callers of a store: a value that is replaced if it is the
//! expected one. Every written value is unique, so it identifies its stamp.

use crate::spec::Spec;

/// A value that is written only once.
pub(crate) type Value = u32;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    Load,
    Swap { expected: Option<Value>, next: Option<Value> },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Found(Option<Value>),
    /// The stamp of the write, or the time of a removal.
    Done(u64),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Register {
    value: Option<Value>,
    /// The greatest stamp that any caller was shown.
    last: u64,
}

impl Spec for Register {
    type Call = Call;
    type Answer = Answer;

    fn after(&self, call: &Call, answer: Option<&Answer>) -> Vec<Register> {
        let found = answer.is_none_or(|answer| *answer == Answer::Found(self.value));
        match *call {
            Call::Load => found.then_some(*self).into_iter().collect(),
            Call::Swap { expected, next } => {
                // Removing an absent record succeeds; a store may also report a conflict that shows
                // it absent.
                let gone = next.is_none() && self.value.is_none();
                if self.value != expected && !(gone && matches!(answer, Some(Answer::Done(_)))) {
                    return found.then_some(*self).into_iter().collect();
                }
                match answer {
                    Some(Answer::Found(_)) => Vec::new(),
                    Some(Answer::Done(stamp)) if next.is_some() && *stamp <= self.last => Vec::new(),
                    Some(Answer::Done(stamp)) if next.is_some() => {
                        vec![Register { value: next, last: *stamp }]
                    }
                    Some(Answer::Done(_)) | None => vec![Register { value: next, ..*self }],
                }
            }
        }
    }
}
