//! The actual history of a key, recorded beside the store, and the rules that it must obey. Nothing
//! here calls `decide`: the rules are stated in terms of what was written, answered and
//! acknowledged.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::client::ends;
use crate::row::{Again, Cmd, Phase, Reply, Rerun, Role, Row, Settle, Time, Token, Why};

/// A rule that can be broken; its discriminant is its bit in [`Rules`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rule {
    S1,
    S2,
    S3,
    S4,
    S5,
    S6,
    S7,
    S8,
    S10,
    S11,
    S13,
    L2,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Rules(u16);

impl Rules {
    pub(crate) fn add(&mut self, rule: Rule) {
        self.0 |= 1 << rule as u16;
    }

    pub(crate) fn has(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u16) != 0
    }

    fn unless(&mut self, holds: bool, rule: Rule) {
        if !holds {
            self.add(rule);
        }
    }
}

/// An event that a check must reach, since otherwise it proves nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    Granted,
    Takeover,
    Retried,
    Replayed,
    FailureReplayed,
    Mismatch,
    Busy,
    UnresolvedMark,
    UnresolvedCrash,
    UnresolvedReport,
    AttemptsExhausted,
    StaleTokenRefused,
    SecondOutcomeRefused,
    LostGrantRecognised,
    LostFinishRecognised,
    Restored,
    LateWrite,
    ResumedElsewhere,
    Settled,
    Forgotten,
    Purged,
    Effect,
    Crashed,
    Dropped,
    OwnerKept,
    GrantedAnew,
    OverButEvidence,
    RolledBack,
    RolledBackRefused,
    Amended,
    AmendRefused,
    /// An operator was refused an open operation that changed since it was shown.
    SettleRefused,
}

impl Event {
    pub(crate) const ALL: [Event; 32] = [
        Event::Granted,
        Event::Takeover,
        Event::Retried,
        Event::Replayed,
        Event::FailureReplayed,
        Event::Mismatch,
        Event::Busy,
        Event::UnresolvedMark,
        Event::UnresolvedCrash,
        Event::UnresolvedReport,
        Event::AttemptsExhausted,
        Event::StaleTokenRefused,
        Event::SecondOutcomeRefused,
        Event::LostGrantRecognised,
        Event::LostFinishRecognised,
        Event::Restored,
        Event::LateWrite,
        Event::ResumedElsewhere,
        Event::Settled,
        Event::Forgotten,
        Event::Purged,
        Event::Effect,
        Event::Crashed,
        Event::Dropped,
        Event::OwnerKept,
        Event::GrantedAnew,
        Event::OverButEvidence,
        Event::RolledBack,
        Event::RolledBackRefused,
        Event::Amended,
        Event::AmendRefused,
        Event::SettleRefused,
    ];
}

#[derive(Default)]
pub(crate) struct Count([AtomicU64; Event::ALL.len()]);

impl Count {
    pub(crate) fn add(&self, event: Event) {
        self.0[event as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn of(&self, event: Event) -> u64 {
        self.0[event as usize].load(Ordering::Relaxed)
    }
}

/// The history of a key, as far as a rule needs it.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Ghost {
    /// Every grant's fence and owner, in the order of the writes.
    grants: Vec<(Time, u8)>,
    /// The fence of the grant that is neither finished nor released, and the end of its lease.
    open: Option<(Time, Time)>,
    /// The fence of the grant that was released last.
    released: Option<Time>,
    /// Every outcome that was written, with the fence of its grant.
    outcomes: Vec<(Time, Phase)>,
    /// The final outcome, which must stand until its retention is over.
    standing: Option<Standing>,
    /// The number of final outcomes that are no longer in force.
    epoch: u8,
    /// The number of times the side effect happened.
    pub(crate) effects: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Standing {
    fence: Time,
    phase: Phase,
    payload: u8,
    deadline: u16,
    acknowledged: bool,
}

/// A write as the store executes it.
pub(crate) struct Write<'a> {
    pub(crate) role: &'a Role,
    pub(crate) cmd: Cmd,
    pub(crate) before: Option<Row>,
    pub(crate) asked: Option<Row>,
    pub(crate) next: Option<Row>,
    pub(crate) now: Time,
    pub(crate) stamp: Time,
}

/// An answer as a client receives it: `row` is the record at `now`, or the one that the client
/// wrote.
pub(crate) struct Answered<'a> {
    pub(crate) role: &'a Role,
    pub(crate) cmd: Cmd,
    pub(crate) reply: Reply,
    pub(crate) row: Option<Row>,
    pub(crate) now: Time,
    pub(crate) wrote: bool,
    pub(crate) owed: Option<u8>,
}

impl Ghost {
    /// The epoch of the outcome that a begin sent now must replay: one that is already
    /// acknowledged.
    pub(crate) fn owes(&self, role: &Role, now: Time) -> Option<u8> {
        let standing = self.standing.filter(|standing| standing.acknowledged)?;
        (standing.payload == role.payload && u16::from(now) < standing.deadline).then_some(self.epoch)
    }

    pub(crate) fn last_fence(&self) -> Time {
        self.grants.iter().map(|(fence, _)| *fence).max().unwrap_or(0)
    }

    /// Returns true if the grant was written for this owner.
    pub(crate) fn granted(&self, token: Token) -> bool {
        self.grants.contains(&(token.fence, token.owner))
    }

    /// Returns true if `row` is the outcome that must stand, or if none must.
    pub(crate) fn stands(&self, row: Option<Row>, now: Time) -> bool {
        self.standing.is_none_or(|standing| {
            u16::from(now) >= standing.deadline
                || row.is_some_and(|row| row.fence == standing.fence && row.phase == standing.phase)
        })
    }

    fn settle(&mut self, row: &Row) {
        self.outcomes.push((row.fence, row.phase));
        if row.is_final() {
            self.standing = Some(Standing {
                fence: row.fence,
                phase: row.phase,
                payload: row.payload,
                deadline: row.deadline(),
                acknowledged: false,
            });
        }
    }

    pub(crate) fn wrote(&mut self, write: &Write<'_>, broken: &mut Rules, count: &Count) {
        let kept = write.before.filter(|row| row.is_kept(write.now));
        if kept.is_none() || write.cmd == Cmd::Forget {
            self.epoch += u8::from(self.standing.take().is_some());
        } else if let (Cmd::Amend(stamp, settle, may_rerun), Some(row)) = (write.cmd, kept) {
            // A resolution may be amended by an operator that was shown it.
            broken.unless(row.resolved && row.stamp == stamp, Rule::S2);
            broken.unless(settle != Settle::Rerun || may_rerun, Rule::S2);
            self.epoch += u8::from(self.standing.take().is_some());
        } else if kept.is_some_and(|row| row.is_final()) {
            broken.add(Rule::S2);
        }
        if let Some(next) = write.next {
            broken.unless(next.payload == write.role.payload || write.cmd.token().is_none(), Rule::S4);
        }
        match (write.cmd, write.next) {
            (Cmd::Begin { owner, is_new }, Some(next)) => {
                self.granting(write, kept, (owner, is_new), next, broken, count);
            }
            (Cmd::Renew(token) | Cmd::Checkpoint(token, _) | Cmd::Mark(token), Some(next)) => {
                let before = write.before.filter(|row| row.is_held_by(token));
                broken.unless(before.is_some(), Rule::S3);
                broken.unless(
                    before.is_some_and(|row| rewritten(row, write.role, write.cmd) == at(next, row.stamp)),
                    Rule::S11,
                );
                self.open = self.open.map(|(fence, _)| (fence, next.until().unwrap_or(0)));
            }
            (Cmd::Complete(token, _) | Cmd::Fail(token, ..), Some(next)) => {
                broken.unless(kept.is_none_or(|row| row.is_held_by(token)), Rule::S3);
                broken.unless(next.fence == token.fence && next.attempt == token.attempt, Rule::S5);
                broken.unless(next.phase == outcome(write.cmd), Rule::S11);
                broken.unless(next.unresolved == evidence(write.role, next.phase), Rule::S13);
                if kept.is_none() {
                    // No restoring by a holder that released the grant or whose grant was rolled
                    // back.
                    let gave_back = self.released == Some(token.fence);
                    broken.unless(!gave_back && !token.in_transaction, Rule::S3);
                    count.add(Event::Restored);
                }
                self.open = None;
                self.settle(&next);
            }
            (Cmd::Release(token), None) => {
                broken.unless(write.before.is_some_and(|row| row.is_held_by(token)), Rule::S3);
                self.open = None;
                self.released = Some(token.fence);
            }
            (Cmd::Resolve(fence, shown, _), Some(next)) => {
                let looked_at =
                    |row: Row| row.fence == fence && row.until().is_none_or(|until| until <= write.now);
                broken.unless(write.before.is_some_and(looked_at), Rule::S3);
                let is_shown = |row: Row| shown.is_none_or(|stamp| stamp == row.stamp);
                broken.unless(write.before.is_some_and(is_shown), Rule::S2);
                broken.unless(next.fence == fence, Rule::S5);
                broken.unless(next.resolved && next.unresolved.is_none(), Rule::S13);
                count.add(Event::Settled);
                self.open = None;
                self.settle(&next);
            }
            (Cmd::Amend(..), Some(next)) => {
                broken.unless(write.before.is_some_and(|row| row.fence == next.fence), Rule::S5);
                broken.unless(next.resolved, Rule::S2);
                count.add(Event::Amended);
                self.settle(&next);
            }
            (Cmd::Forget, None) => {
                count.add(Event::Forgotten);
                self.open = None;
            }
            // No other command writes or removes.
            _ => broken.add(Rule::S3),
        }
    }

    /// Checks a written grant: the rows that it may come from, and what it takes over.
    fn granting(
        &mut self,
        write: &Write<'_>,
        kept: Option<Row>,
        (owner, is_new): (u8, bool),
        next: Row,
        broken: &mut Rules,
        count: &Count,
    ) {
        let role = write.role;
        let recovery = role.recovery;
        count.add(Event::Granted);
        // A row that was kept when the grant was decided but has expired when it is written may
        // count as present or absent.
        let lease = role.lease;
        let first = Phase::Working { owner, lease, effect: role.assumes, takeover: false, recovery };
        let fresh = next.attempt == 1 && next.checkpoint.is_none() && next.phase == first;
        // The grant of this very call, which has not been reported to any caller.
        let is_anew = |row: Row| is_new && row.is_untouched() && row.is_granted_to(owner);
        let evidence = kept.is_some_and(|row| row.is_evidence() && !is_anew(row));
        broken.unless(!(fresh && evidence), Rule::S13);
        let kept = if fresh { kept } else { write.before };
        broken.unless(write.asked.is_some_and(|asked| asked.fence == 0), Rule::S5);
        broken.unless(write.stamp > self.last_fence(), Rule::S5);
        broken.unless(self.open.is_none_or(|(_, until)| until <= write.now), Rule::S1);
        let (attempt, checkpoint, marked, takeover) = match kept {
            None => (1, None, false, false),
            Some(row) => {
                broken.unless(row.payload == role.payload, Rule::S4);
                let anew = is_anew(row);
                broken.unless(anew || row.attempt < role.max_attempts, Rule::S8);
                let (marked, takeover) = match row.phase {
                    Phase::Working { effect, takeover, .. } if anew => {
                        broken.unless(row.until().is_some_and(|until| until <= write.now), Rule::S1);
                        count.add(Event::GrantedAnew);
                        (effect, takeover)
                    }
                    Phase::Working { effect, .. } => {
                        broken.unless(row.until().is_some_and(|until| until <= write.now), Rule::S1);
                        broken.unless(role.recovery != Rerun::Never, Rule::S8);
                        broken.unless(role.recovery == Rerun::Always || !effect, Rule::S8);
                        count.add(Event::Takeover);
                        (effect, true)
                    }
                    Phase::Broke(_, Again::Now) => (false, false),
                    Phase::Broke(_, Again::After(wait)) => {
                        broken.unless(write.now >= row.stamp + wait, Rule::S8);
                        (false, false)
                    }
                    Phase::Did(_) | Phase::Broke(_, Again::Never | Again::Unresolved) => {
                        broken.add(Rule::S8);
                        (false, false)
                    }
                };
                if !takeover && !anew {
                    count.add(Event::Retried);
                }
                (row.attempt + u8::from(!anew), row.checkpoint, marked, takeover)
            }
        };
        let marked = marked || role.assumes;
        let phase = Phase::Working { owner, lease, effect: marked, takeover, recovery };
        broken.unless(next.unresolved == marked.then_some(role.unresolved), Rule::S13);
        let whole =
            !next.resolved && next.attempt == attempt && next.checkpoint == checkpoint && next.phase == phase;
        broken.unless(whole, Rule::S8);
        broken.unless(next.fence == write.stamp, Rule::S5);
        self.grants.push((next.fence, owner));
        self.open = Some((next.fence, write.stamp + lease));
    }

    pub(crate) fn answered(&mut self, answer: &Answered<'_>, broken: &mut Rules, count: &Count) {
        let kept = answer.row.filter(|row| row.is_kept(answer.now));
        match answer.cmd {
            Cmd::Begin { owner, is_new } => self.begun(answer, kept, (owner, is_new), broken, count),
            Cmd::Resume(token) => {
                let own = |row: Row| row.fence == token.fence && row.attempt > 0;
                let own = kept.map_or(!token.in_transaction, own);
                broken.unless(answer.reply == if own { Reply::Done } else { Reply::LeaseLost }, Rule::S3);
                count.add(Event::ResumedElsewhere);
            }
            Cmd::Renew(token) | Cmd::Checkpoint(token, _) | Cmd::Mark(token) => match answer.reply {
                Reply::Done => broken.unless(answer.wrote, Rule::S3),
                Reply::LeaseLost => {
                    broken.unless(!kept.is_some_and(|row| row.is_held_by(token)), Rule::S11);
                    count.add(Event::StaleTokenRefused);
                }
                _ => broken.add(Rule::S3),
            },
            Cmd::Complete(token, _) | Cmd::Fail(token, ..) => {
                self.finished(answer, kept, token, broken, count);
            }
            Cmd::Release(token) => match answer.reply {
                Reply::Done => broken.unless(answer.wrote || kept.is_none(), Rule::S6),
                Reply::LeaseLost => {
                    broken.unless(kept.is_some_and(|row| !row.is_held_by(token)), Rule::S11);
                    count.add(Event::StaleTokenRefused);
                }
                _ => broken.add(Rule::S3),
            },
            Cmd::Resolve(fence, shown, _) => {
                broken.unless(matches!(answer.reply, Reply::Done | Reply::NotResolvable), Rule::S3);
                let other = |row: Row| row.fence == fence && shown.is_some_and(|stamp| stamp != row.stamp);
                if answer.reply == Reply::NotResolvable
                    && kept.is_some_and(|row| other(row) && !row.is_final() && row.until().is_none())
                {
                    count.add(Event::SettleRefused);
                }
            }
            Cmd::Amend(stamp, settle, may_rerun) => match answer.reply {
                Reply::Done => broken.unless(kept.is_some_and(|row| row.resolved), Rule::S2),
                Reply::NotResolvable => {
                    let open = kept.is_some_and(|row| row.resolved && row.stamp == stamp);
                    broken.unless(!open || settle == Settle::Rerun && !may_rerun, Rule::L2);
                    count.add(Event::AmendRefused);
                }
                _ => broken.add(Rule::S3),
            },
            Cmd::Forget => broken.unless(answer.reply == Reply::Done, Rule::S3),
        }
    }

    fn begun(
        &self,
        answer: &Answered<'_>,
        kept: Option<Row>,
        (owner, is_new): (u8, bool),
        broken: &mut Rules,
        count: &Count,
    ) {
        let (now, reply) = (answer.now, answer.reply);
        let foreign = kept.is_some_and(|row| row.payload != answer.role.payload);
        broken.unless(foreign == (reply == Reply::Mismatch), Rule::S4);
        if foreign {
            return count.add(Event::Mismatch);
        }
        if let Some(standing) = self.standing.filter(|_| answer.owed == Some(self.epoch)) {
            let replayed = match standing.phase {
                Phase::Did(response) => reply == Reply::Completed(response),
                Phase::Broke(error, _) => reply == Reply::Failed(error, None),
                Phase::Working { .. } => false,
            };
            broken.unless(replayed || u16::from(now) >= standing.deadline, Rule::S2);
        }
        let working = kept.and_then(|row| match row.phase {
            Phase::Working { .. } => Some((row, row.until().unwrap_or(0))),
            Phase::Did(_) | Phase::Broke(..) => None,
        });
        // A begin whose answer was lost: nothing was written since its grant, and the lease is
        // running. A kept owner may have acted on a grant that marks the effect, so it gets that
        // grant only from the begin that writes it.
        let own =
            working.filter(|(row, until)| row.is_granted_to(owner) && row.is_untouched() && now < *until);
        let own = own.filter(|(row, _)| answer.wrote || is_new || !row.is_evidence());
        broken.unless(own.is_none() || reply == Reply::Acquired, Rule::S6);
        let shown = kept.map(|row| row.phase);
        match reply {
            Reply::Acquired => {
                let granted = own.is_some_and(|(row, ..)| self.grants.contains(&(row.fence, owner)));
                broken.unless(granted, Rule::S8);
            }
            Reply::InProgress(wait) => {
                let until = working.map(|(_, until)| until);
                broken.unless(wait > 0 && until == Some(now + wait), Rule::L2);
                count.add(Event::Busy);
            }
            Reply::Completed(response) => {
                broken.unless(shown == Some(Phase::Did(response)), Rule::S2);
                broken.unless(self.outcomes.iter().any(|(_, it)| *it == Phase::Did(response)), Rule::S7);
                count.add(Event::Replayed);
            }
            Reply::Failed(error, None) => {
                broken.unless(shown == Some(Phase::Broke(error, Again::Never)), Rule::S2);
                count.add(Event::FailureReplayed);
            }
            Reply::Failed(error, Some(wait)) => {
                let due = kept.and_then(|row| match row.phase {
                    Phase::Broke(same, Again::After(wait)) if same == error => Some(row.stamp + wait),
                    _ => None,
                });
                broken.unless(wait > 0 && due == Some(now + wait), Rule::L2);
                count.add(Event::FailureReplayed);
            }
            Reply::Unresolved(why, fence) => {
                broken.unless(kept.is_some_and(|row| row.fence == fence), Rule::S8);
                broken.unless(working.is_none_or(|(_, until)| until <= now), Rule::S8);
                let short = |row: Row| u16::from(row.stamp) + u16::from(row.retention) <= u16::from(now);
                if kept.is_some_and(|row| row.is_evidence() && short(row)) {
                    count.add(Event::OverButEvidence);
                }
                count.add(match why {
                    Why::EffectMarked => Event::UnresolvedMark,
                    Why::CrashedAttempt => Event::UnresolvedCrash,
                    Why::Reported => Event::UnresolvedReport,
                    Why::AttemptsExhausted => Event::AttemptsExhausted,
                });
            }
            Reply::Mismatch
            | Reply::Done
            | Reply::LeaseLost
            | Reply::AlreadyFinished
            | Reply::NotResolvable => broken.add(Rule::S10),
        }
    }

    fn finished(
        &mut self,
        answer: &Answered<'_>,
        kept: Option<Row>,
        token: Token,
        broken: &mut Rules,
        count: &Count,
    ) {
        let phase = outcome(answer.cmd);
        let finisher =
            kept.filter(|row| row.fence == token.fence && row.attempt > 0 && row.until().is_none());
        match answer.reply {
            Reply::Done => {
                broken.unless(self.outcomes.contains(&(token.fence, phase)), Rule::S6);
                broken.unless(finisher.is_none_or(|row| row.phase == phase), Rule::S6);
                if let Some(standing) = &mut self.standing {
                    standing.acknowledged |= standing.fence == token.fence && standing.phase == phase;
                }
            }
            Reply::AlreadyFinished => {
                broken.unless(finisher.is_some_and(|row| row.phase != phase), Rule::S6);
                count.add(Event::SecondOutcomeRefused);
            }
            Reply::LeaseLost => {
                let rolled_back = token.in_transaction && kept.is_none();
                if rolled_back {
                    count.add(Event::RolledBackRefused);
                }
                broken.unless(rolled_back || kept.is_some_and(|row| !row.is_held_by(token)), Rule::S11);
                broken.unless(finisher.is_none(), Rule::S6);
                count.add(Event::StaleTokenRefused);
            }
            _ => broken.add(Rule::S3),
        }
    }
}

/// The record that a holder's rewrite must produce.
fn rewritten(mut row: Row, role: &Role, cmd: Cmd) -> Row {
    match (cmd, &mut row.phase) {
        (Cmd::Mark(_), Phase::Working { effect, .. }) => {
            *effect = true;
            row.unresolved = Some(role.unresolved);
        }
        (Cmd::Checkpoint(_, left), _) => row.checkpoint = Some(left),
        _ => {}
    }
    row
}

fn at(mut row: Row, stamp: Time) -> Row {
    row.stamp = stamp;
    row
}

/// The retention that an outcome must have as evidence, if it is evidence.
fn evidence(role: &Role, phase: Phase) -> Option<Time> {
    matches!(phase, Phase::Broke(_, Again::Unresolved)).then_some(role.unresolved)
}

/// The phase that a finish must leave.
fn outcome(cmd: Cmd) -> Phase {
    debug_assert!(ends(&cmd));
    match cmd {
        Cmd::Complete(_, response) => Phase::Did(response),
        Cmd::Fail(_, error, again) => Phase::Broke(error, again),
        _ => unreachable!("only a finish has an outcome"),
    }
}
