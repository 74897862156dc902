//! The specification of a key for callers of the engine, after the tables of the state machine. It
//! knows no time, so it is no second `decide`. A lease is either long and outlasts the test, or
//! short and may end at any moment.

use crate::spec::Spec;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Token {
    pub(crate) owner: u32,
    pub(crate) fence: u64,
    pub(crate) attempt: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Now,
    Never,
    Unresolved,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    Begin { owner: u32, short: bool, rerun: bool },
    Renew(Token),
    Mark(Token),
    Complete(Token, u32),
    Fail(Token, u32, Kind),
    Release(Token),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Acquired { fence: u64, attempt: u32, takeover: bool },
    Completed(u32),
    InProgress,
    Failed(u32),
    Unresolved,
    Mismatch,
    Done,
    LeaseLost,
    AlreadyFinished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Working { short: bool, marked: bool, takeover: bool },
    Did(u32),
    Broke(u32, Kind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Row {
    owner: u32,
    /// `None` if the begin that made the grant was never answered.
    fence: Option<u64>,
    attempt: u32,
    /// True if it was written since the grant.
    touched: bool,
    phase: Phase,
}

/// A key and the greatest fence that any caller was shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    row: Option<Row>,
    last: u64,
}

impl Spec for Key {
    type Call = Call;
    type Answer = Answer;

    fn after(&self, call: &Call, answer: Option<&Answer>) -> Vec<Key> {
        let mut ways = Vec::new();
        match *call {
            Call::Begin { owner, short, rerun } => self.begin(owner, short, rerun, answer, &mut ways),
            Call::Renew(token) => ways.push(self.rewrite(token, false)),
            Call::Mark(token) => ways.push(self.rewrite(token, true)),
            Call::Complete(token, body) => ways.push(self.finish(token, Phase::Did(body))),
            Call::Fail(token, body, kind) => ways.push(self.finish(token, Phase::Broke(body, kind))),
            Call::Release(token) => ways.push(match self.row {
                None => (*self, Answer::Done),
                Some(row) if row.is_held_by(token) => (Key { row: None, ..*self }, Answer::Done),
                Some(_) => (*self, Answer::LeaseLost),
            }),
        }
        ways.retain(|(_, given)| answer.is_none_or(|answer| answer == given));
        ways.into_iter().map(|(next, _)| next).collect()
    }
}

impl Key {
    fn begin(
        &self,
        owner: u32,
        short: bool,
        rerun: bool,
        answer: Option<&Answer>,
        ways: &mut Vec<(Key, Answer)>,
    ) {
        // The store chooses the fence; it only has to increase.
        let shown = match answer {
            Some(Answer::Acquired { fence, .. }) => Some(*fence),
            _ => None,
        };
        let mut grant = |attempt: u32, marked: bool, takeover: bool| {
            if shown.is_some_and(|fence| fence <= self.last) {
                return;
            }
            let phase = Phase::Working { short, marked, takeover };
            let row = Some(Row { owner, fence: shown, attempt, touched: false, phase });
            let fence = shown.unwrap_or(0);
            let last = self.last.max(fence);
            ways.push((Key { row, last }, Answer::Acquired { fence, attempt, takeover }));
        };
        let Some(row) = self.row else { return grant(1, false, false) };
        match row.phase {
            Phase::Working { short: over, marked, takeover } => {
                if over {
                    if marked && !rerun {
                        ways.push((*self, Answer::Unresolved));
                    } else {
                        grant(row.attempt + 1, marked, true);
                    }
                }
                // An owner that has written may have acted, so its begin is answered like any other
                // owner's.
                if row.owner != owner || row.touched {
                    ways.push((*self, Answer::InProgress));
                } else if row.fence.is_none_or(|fence| Some(fence) == shown) {
                    let (attempt, fence) = (row.attempt, shown.unwrap_or(0));
                    if row.fence.is_some() || fence > self.last || shown.is_none() {
                        let row = Some(Row { fence: shown.or(row.fence), ..row });
                        let next = Key { row, last: self.last.max(fence) };
                        ways.push((next, Answer::Acquired { fence, attempt, takeover }));
                    }
                }
            }
            Phase::Did(body) => ways.push((*self, Answer::Completed(body))),
            Phase::Broke(body, Kind::Never) => ways.push((*self, Answer::Failed(body))),
            Phase::Broke(_, Kind::Unresolved) => ways.push((*self, Answer::Unresolved)),
            Phase::Broke(_, Kind::Now) => grant(row.attempt + 1, false, false),
        }
    }

    fn rewrite(&self, token: Token, mark: bool) -> (Key, Answer) {
        match self.row {
            Some(row) if row.is_held_by(token) => {
                let phase = match row.phase {
                    Phase::Working { short, marked, takeover } => {
                        Phase::Working { short, marked: marked || mark, takeover }
                    }
                    other @ (Phase::Did(_) | Phase::Broke(..)) => other,
                };
                (Key { row: Some(Row { phase, touched: true, ..row }), ..*self }, Answer::Done)
            }
            _ => (*self, Answer::LeaseLost),
        }
    }

    fn finish(&self, token: Token, phase: Phase) -> (Key, Answer) {
        let Token { owner, fence, attempt } = token;
        let written = Row { owner, fence: Some(fence), attempt, touched: true, phase };
        match self.row {
            None => (Key { row: Some(written), ..*self }, Answer::Done),
            Some(row) if row.is_held_by(token) => (Key { row: Some(written), ..*self }, Answer::Done),
            Some(Row { phase: Phase::Working { .. }, .. }) => (*self, Answer::LeaseLost),
            Some(row) if row.fence == Some(token.fence) && row.phase == phase => (*self, Answer::Done),
            Some(row) if row.fence == Some(token.fence) => (*self, Answer::AlreadyFinished),
            Some(_) => (*self, Answer::LeaseLost),
        }
    }
}

impl Row {
    fn is_held_by(&self, token: Token) -> bool {
        self.fence == Some(token.fence)
            && self.owner == token.owner
            && matches!(self.phase, Phase::Working { .. })
    }
}
