//! The reference model: the tables of the state machine, written down a second time in another way,
//! to compare every store with. It shares no code with [`decide`](mod@crate::decide).

use std::time::Duration;

use crate::decide::{Reason, StateKind};

use crate::record::{Recovery, Retry};

/// The number of a grant, counted from 1 per key. It corresponds to a store's fence.
pub type Grant = u64;

/// The parameters of a begin, in the model's terms: small numbers instead of random ones, times
/// from the model's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelBegin {
    /// The owner that asks; from [`ModelBegin::KEPT_OWNERS`] on, an owner drawn for this begin.
    pub owner: u64,
    /// The fingerprint of the request.
    pub fingerprint: u8,
    /// The length of the lease.
    pub lease: Duration,
    /// The retention of the record.
    pub retention: Duration,
    /// The retention of the record while it is unknown whether its effect happened, if that is
    /// longer.
    pub unresolved_retention: Duration,
    /// The treatment of a crash.
    pub recovery: Recovery,
    /// True if the grant itself marks the effect.
    pub assumes: bool,
    /// The number of executions allowed.
    pub max_attempts: u32,
}

impl ModelBegin {
    /// The number of owners that begin repeatedly.
    pub const KEPT_OWNERS: u64 = 3;
}

/// The grant of a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The begin that asked for it.
    pub ask: ModelBegin,
    /// The number of the grant.
    pub grant: Grant,
    /// The number of the attempt.
    pub attempt: u32,
    /// True if its holder asked for a release.
    pub released: bool,
}

/// An operator's settlement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settle {
    /// It was done.
    Completed(Vec<u8>),
    /// It failed.
    Failed(Vec<u8>),
    /// It is to run again.
    Rerun,
}

/// The answer of a call, as far as a caller can see it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of the answers they stand for
pub enum Answer {
    Acquired {
        grant: Grant,
        attempt: u32,
        takeover: bool,
        checkpoint: Option<Vec<u8>>,
    },
    Completed(Vec<u8>),
    InProgress {
        attempt: u32,
        retry_after: Duration,
    },
    Failed {
        error: Vec<u8>,
        retry_after: Option<Duration>,
    },
    Unresolved {
        reason: Reason,
        grant: Grant,
        attempt: u32,
        error: Option<Vec<u8>>,
        checkpoint: Option<Vec<u8>>,
    },
    Mismatch,
    Done,
    Forgotten(bool),
    LeaseLost(StateKind),
    AlreadyFinished(StateKind),
    NotResolvable(StateKind),
}

#[derive(Debug, Clone)]
struct Entry {
    fingerprint: u8,
    grant: Grant,
    attempt: u32,
    checkpoint: Option<Vec<u8>>,
    written: Duration,
    /// True if it was written since the grant.
    touched: bool,
    retention: Duration,
    /// The retention while the effect is unknown.
    doubt: Duration,
    phase: Phase,
}

#[derive(Debug, Clone)]
enum Phase {
    Working { owner: u64, lease: Duration, marked: bool, blind: bool, takeover: bool },
    Did(Vec<u8>),
    Broke(Vec<u8>, Retry),
}

/// One key, as it should behave.
#[derive(Debug, Clone, Default)]
pub struct Model {
    entry: Option<Entry>,
    grants: Grant,
}

/// A holder's write during its grant.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of the calls they stand for
pub enum Rewrite {
    Renew,
    Checkpoint(Vec<u8>),
    MarkEffect,
}

/// The end of a grant, by its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of the calls they stand for
pub enum Finish {
    Complete(Vec<u8>),
    Fail(Vec<u8>, Retry),
}

impl Model {
    /// The table "begin".
    pub fn begin(&mut self, now: Duration, ask: &ModelBegin) -> Answer {
        self.lapse(now);
        let Some(entry) = self.entry.clone() else {
            return self.grant(now, ask, 1, None, false, false);
        };
        if entry.fingerprint != ask.fingerprint {
            return Answer::Mismatch;
        }
        let since = now.saturating_sub(entry.written);
        let left = ask.max_attempts > entry.attempt;
        match entry.phase.clone() {
            // The answer of that owner's begin was lost: it has done nothing with the grant.
            Phase::Working { owner, takeover, lease, marked, blind }
                if owner == ask.owner
                    && owner < ModelBegin::KEPT_OWNERS
                    && !entry.touched
                    && (!marked || blind)
                    && since < lease =>
            {
                Answer::Acquired {
                    grant: entry.grant,
                    attempt: entry.attempt,
                    takeover,
                    checkpoint: entry.checkpoint,
                }
            }
            Phase::Working { lease, .. } if since < lease => {
                Answer::InProgress { attempt: entry.attempt, retry_after: lease - since }
            }
            Phase::Working { marked, .. } => {
                let allowed = match ask.recovery {
                    Recovery::Rerun => true,
                    Recovery::RerunUnlessEffect => !marked,
                    Recovery::Never => false,
                };
                if allowed && left {
                    return self.grant(now, ask, entry.attempt + 1, entry.checkpoint, marked, true);
                }
                let reason = match (allowed, ask.recovery) {
                    (true, _) => Reason::AttemptsExhausted,
                    (false, Recovery::Never) => Reason::CrashedAttempt,
                    (false, Recovery::Rerun | Recovery::RerunUnlessEffect) => Reason::EffectMarked,
                };
                unresolved(entry, reason, None)
            }
            Phase::Did(response) => Answer::Completed(response),
            Phase::Broke(error, Retry::Never) => Answer::Failed { error, retry_after: None },
            Phase::Broke(error, Retry::Unresolved) => unresolved(entry, Reason::Reported, Some(error)),
            Phase::Broke(error, Retry::After(wait)) if since < wait => {
                Answer::Failed { error, retry_after: Some(wait - since) }
            }
            Phase::Broke(error, Retry::Now | Retry::After(_)) if !left => {
                unresolved(entry, Reason::AttemptsExhausted, Some(error))
            }
            Phase::Broke(_, Retry::Now | Retry::After(_)) => {
                self.grant(now, ask, entry.attempt + 1, entry.checkpoint, false, false)
            }
        }
    }

    /// The row "renew, checkpoint, mark_effect".
    pub fn rewrite(&mut self, now: Duration, token: &Token, rewrite: &Rewrite) -> Answer {
        self.lapse(now);
        if token.released {
            return Answer::LeaseLost(StateKind::Absent);
        }
        if !self.works(token) {
            return Answer::LeaseLost(self.state());
        }
        if let Some(entry) = &mut self.entry {
            entry.written = now;
            entry.touched = true;
            match (rewrite, &mut entry.phase) {
                (Rewrite::Checkpoint(bytes), _) => entry.checkpoint = Some(bytes.clone()),
                (Rewrite::MarkEffect, Phase::Working { marked, .. }) => *marked = true,
                (Rewrite::Renew | Rewrite::MarkEffect, _) => {}
            }
        }
        Answer::Done
    }

    /// The column "complete / fail".
    pub fn finish(&mut self, now: Duration, token: &Token, finish: &Finish) -> Answer {
        self.lapse(now);
        if token.released {
            return Answer::LeaseLost(StateKind::Absent);
        }
        let state = self.state();
        let checkpoint = match &self.entry {
            None => None,
            Some(entry) if self.works(token) => entry.checkpoint.clone(),
            Some(entry) if entry.attempt == 0 => return Answer::LeaseLost(kind(entry)),
            Some(entry) if entry.grant == token.grant && state != StateKind::InProgress => {
                let same = match (&entry.phase, finish) {
                    (Phase::Did(is), Finish::Complete(new)) => is == new,
                    (Phase::Broke(is, retry), Finish::Fail(new, again)) => is == new && retry == again,
                    (Phase::Did(_) | Phase::Broke(..) | Phase::Working { .. }, _) => false,
                };
                return if same { Answer::Done } else { Answer::AlreadyFinished(state) };
            }
            Some(_) => return Answer::LeaseLost(state),
        };
        let (phase, checkpoint) = match finish.clone() {
            Finish::Complete(response) => (Phase::Did(response), None),
            Finish::Fail(error, Retry::Never) => (Phase::Broke(error, Retry::Never), None),
            Finish::Fail(error, retry) => (Phase::Broke(error, retry), checkpoint),
        };
        self.entry = Some(Entry {
            fingerprint: token.ask.fingerprint,
            grant: token.grant,
            attempt: token.attempt,
            checkpoint,
            written: now,
            touched: true,
            retention: token.ask.retention,
            doubt: token.ask.unresolved_retention,
            phase,
        });
        Answer::Done
    }

    /// The column "release".
    pub fn release(&mut self, now: Duration, token: &Token) -> Answer {
        self.lapse(now);
        if self.entry.is_some() && !self.works(token) {
            return Answer::LeaseLost(self.state());
        }
        self.entry = None;
        Answer::Done
    }

    /// Continues with a token elsewhere: fails only if the key belongs to another grant.
    pub fn resume(&mut self, now: Duration, token: &Token) -> Answer {
        self.lapse(now);
        let own = self.entry.as_ref().is_none_or(|entry| entry.grant == token.grant && entry.attempt > 0);
        if own { Answer::Done } else { Answer::LeaseLost(self.state()) }
    }

    /// Returns what an operator who looks at the key is shown of it: the grant, and the time of the
    /// last write, which is its version.
    pub fn shown(&mut self, now: Duration) -> Option<(Grant, Duration)> {
        self.lapse(now);
        self.entry.as_ref().map(|entry| (entry.grant, entry.written))
    }

    /// Resolves, on an operator's order, a key that no caller may execute. `version` is the one
    /// that the operator was shown; `None` compares the grant only.
    pub fn resolve(
        &mut self,
        now: Duration,
        grant: Grant,
        version: Option<Duration>,
        settle: &Settle,
    ) -> Answer {
        self.lapse(now);
        let state = self.state();
        let Some(entry) = self.entry.as_mut().filter(|entry| entry.grant == grant) else {
            return Answer::NotResolvable(state);
        };
        let open = match &entry.phase {
            Phase::Working { lease, .. } => now.saturating_sub(entry.written) >= *lease,
            Phase::Did(response) => {
                let again = matches!(settle, Settle::Completed(same) if same == response);
                return if again { Answer::Done } else { Answer::NotResolvable(state) };
            }
            Phase::Broke(error, Retry::Never) => {
                let again = matches!(settle, Settle::Failed(same) if same == error);
                return if again { Answer::Done } else { Answer::NotResolvable(state) };
            }
            Phase::Broke(_, Retry::Now) if entry.attempt == 0 && *settle == Settle::Rerun => {
                return Answer::Done;
            }
            Phase::Broke(_, Retry::Now | Retry::After(_) | Retry::Unresolved) => true,
        };
        if !open || version.is_some_and(|shown| shown != entry.written) {
            return Answer::NotResolvable(state);
        }
        entry.written = now;
        entry.phase = match settle {
            Settle::Completed(response) => Phase::Did(response.clone()),
            Settle::Failed(error) => Phase::Broke(error.clone(), Retry::Never),
            Settle::Rerun => {
                entry.attempt = 0;
                match &entry.phase {
                    Phase::Broke(error, _) => Phase::Broke(error.clone(), Retry::Now),
                    Phase::Working { .. } | Phase::Did(_) => Phase::Broke(Vec::new(), Retry::Now),
                }
            }
        };
        if *settle != Settle::Rerun {
            entry.checkpoint = None;
        }
        Answer::Done
    }

    /// Removes any record, on an operator's order.
    pub fn forget(&mut self, now: Duration) -> Answer {
        self.lapse(now);
        Answer::Forgotten(self.entry.take().is_some())
    }

    /// Returns the state of the key.
    pub fn state(&self) -> StateKind {
        self.entry.as_ref().map_or(StateKind::Absent, kind)
    }

    /// Removes an expired record.
    fn lapse(&mut self, now: Duration) {
        let over = self.entry.as_ref().is_some_and(|entry| {
            let in_doubt = entry.retention.max(entry.doubt);
            let kept = match entry.phase {
                Phase::Working { lease, marked: true, blind: false, .. } => in_doubt.saturating_add(lease),
                Phase::Working { lease, .. } => entry.retention.saturating_add(lease),
                Phase::Broke(_, Retry::Unresolved) => in_doubt,
                Phase::Broke(_, Retry::After(wait)) => entry.retention.saturating_add(wait),
                Phase::Broke(_, Retry::Now | Retry::Never) | Phase::Did(_) => entry.retention,
            };
            now.saturating_sub(entry.written) >= kept
        });
        if over {
            self.entry = None;
        }
    }

    fn works(&self, token: &Token) -> bool {
        self.entry
            .as_ref()
            .is_some_and(|entry| entry.grant == token.grant && matches!(entry.phase, Phase::Working { .. }))
    }

    fn grant(
        &mut self,
        now: Duration,
        ask: &ModelBegin,
        attempt: u32,
        checkpoint: Option<Vec<u8>>,
        marked: bool,
        takeover: bool,
    ) -> Answer {
        self.grants += 1;
        self.entry = Some(Entry {
            fingerprint: ask.fingerprint,
            grant: self.grants,
            attempt,
            checkpoint: checkpoint.clone(),
            written: now,
            touched: false,
            retention: ask.retention,
            doubt: ask.unresolved_retention,
            phase: Phase::Working {
                owner: ask.owner,
                lease: ask.lease,
                marked: marked || ask.assumes,
                blind: ask.recovery == Recovery::Rerun,
                takeover,
            },
        });
        Answer::Acquired { grant: self.grants, attempt, takeover, checkpoint }
    }
}

fn kind(entry: &Entry) -> StateKind {
    match entry.phase {
        Phase::Working { .. } => StateKind::InProgress,
        Phase::Did(_) => StateKind::Completed,
        Phase::Broke(..) => StateKind::Failed,
    }
}

fn unresolved(entry: Entry, reason: Reason, error: Option<Vec<u8>>) -> Answer {
    let Entry { grant, attempt, checkpoint, .. } = entry;
    Answer::Unresolved { reason, grant, attempt, error, checkpoint }
}
