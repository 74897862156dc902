//! Checks of the answers: each must be explained by a version of the key at some moment of the
//! call.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nevertwice::store::{Record, State};
use nevertwice::{
    Begin, Body, Error, Fingerprint, Lease, Owner, Reason, Resolution, Retry, Stamp, StateKind, StoreError,
};

use super::ledger::{CallId, Kind, Ledger, Page, Version};

/// One begin as its caller made it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    pub(crate) key: usize,
    pub(crate) call: CallId,
    /// Its index in a batch.
    pub(crate) place: usize,
    pub(crate) fingerprint: Fingerprint,
    /// The owner, if the caller chose it.
    pub(crate) owner: Option<Owner>,
}

/// A call of a lease.
#[derive(Debug, Clone)]
pub(crate) enum Told {
    Renew,
    Checkpoint(Bytes),
    Mark,
    Complete(Bytes),
    Fail(Bytes, Retry),
    Release,
    Resume,
}

impl Told {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Told::Renew => "renews",
            Told::Checkpoint(_) => "saves",
            Told::Mark => "marks",
            Told::Complete(_) => "completes",
            Told::Fail(..) => "fails",
            Told::Release => "releases",
            Told::Resume => "resumes",
        }
    }
}

/// An interval of a call in which the record did not change.
struct Moment<'a> {
    /// The record, unless it is absent or expired.
    record: Option<&'a Record>,
    from: Stamp,
    to: Stamp,
}

impl Page {
    /// Returns true if `holds` for some version that was current within the call.
    fn at_some_moment(&self, since: Stamp, now: Stamp, holds: impl Fn(Moment<'_>) -> bool) -> bool {
        let mut to = now;
        for Version { stamp, record, .. } in self.versions.iter().rev() {
            let from = since.max(*stamp);
            if *stamp <= now {
                let record = record.as_ref();
                // If the record expires within the interval, it also counts as absent.
                let kept = record.filter(|record| record.is_kept(from));
                let over = record.is_some_and(|record| !record.is_kept(to));
                if kept.is_some() && holds(Moment { record: kept, from, to })
                    || (kept.is_none() || over) && holds(Moment { record: None, from, to })
                {
                    return true;
                }
            }
            to = to.min(*stamp);
            if *stamp < since {
                break;
            }
        }
        false
    }

    /// The last version of a grant while it was in progress.
    fn grant(&self, fence: Stamp) -> Option<&Record> {
        let is = |record: &&Record| record.fence == fence && matches!(record.state, State::InProgress { .. });
        self.versions.iter().rev().filter_map(|version| version.record.as_ref()).find(is)
    }
}

/// A record that may explain an answer, and its interval within the call.
struct Found<'a> {
    record: &'a Record,
    from: Stamp,
    to: Stamp,
    /// The time for which its body is given out, if shorter than the record's retention.
    shown: Option<Duration>,
}

impl Found<'_> {
    /// Returns true if the record explains the body in an answer: its bytes, or none once they are
    /// no longer given out.
    fn tells(&self, body: &Body, told: Option<&Bytes>) -> bool {
        let over = self.shown.map(|shown| self.record.stamp.after(shown));
        let given = over.is_none_or(|over| self.from < over);
        let left_out = over.is_some_and(|over| self.to >= over);
        given && body.bytes() == told || left_out && told.is_none()
    }

    fn is_untouched(&self) -> bool {
        self.record.stamp == self.record.fence
    }
}

/// A duration longer than every lease.
const LEASES: Duration = Duration::from_secs(60);

impl Ledger {
    fn explain(&self, key: usize, call: CallId, now: Stamp, holds: impl Fn(Moment<'_>) -> bool) -> bool {
        self.pages[key].at_some_moment(self.calls[call].since, now, holds)
    }

    fn explained(&self, asked: &Asked, now: Stamp, what: &str, holds: impl Fn(&Found<'_>) -> bool) {
        let single = self.calls[asked.call].kind != Kind::BeginMany;
        // A call recognises a grant that it wrote itself, so that record explains no other answer.
        // Two exceptions: an operator settled it meanwhile; or its lease is over, or it marks the
        // effect, and the owner was kept from call to call, so that an earlier life may have been
        // granted it and have acted. The latter cannot be told apart and is handled as a crash.
        let wrote = |record: &Record| {
            let over = record.lease_end().is_none_or(|end| end <= now);
            let lost = (over || record.is_evidence()) && asked.owner.is_some();
            single
                && record.lease_end().is_some()
                && !lost
                && self.wrote.contains(&(asked.call, record.fence))
        };
        let shown = self.pages[asked.key].setup.response;
        let found = self.explain(asked.key, asked.call, now, |moment| {
            let matches = |record: &&Record| record.fingerprint == asked.fingerprint;
            let Moment { from, to, .. } = moment;
            let found = |record| holds(&Found { record, from, to, shown });
            moment.record.filter(matches).is_some_and(|record| found(record) && !wrote(record))
        });
        let (since, versions) = (self.calls[asked.call].since, &self.pages[asked.key].versions);
        assert!(
            found,
            "S2, S4, S6, S10: a begin was answered {what}, and from {since:?} to {now:?} the key never stood so, or by this \
             very call: {versions:#?}"
        );
    }

    /// Checks the answer to a begin.
    pub(crate) fn begun(
        &mut self,
        asked: &Asked,
        answer: &Result<Begin<Arc<Lease>>, Error>,
        now: Stamp,
        calm: bool,
    ) {
        match answer {
            Err(error) => self.failed(error, calm, true),
            Ok(Begin::Acquired(lease)) => self.acquired(asked, lease, now),
            Ok(Begin::Completed(done)) => {
                self.counts.replays += 1;
                self.explained(asked, now, "completed", |found| {
                    matches!(&found.record.state, State::Completed(body) if found.tells(body, done.response()))
                });
            }
            Ok(Begin::InProgress(busy)) => {
                let single = self.calls[asked.call].kind != Kind::BeginMany;
                let owned = |record: &Record| matches!(record.state, State::InProgress { owner, .. } if asked.owner == Some(owner));
                self.explained(asked, now, "in progress", |found| {
                    let State::InProgress { lease, .. } = &found.record.state else { return false };
                    let left = found.record.stamp.after(*lease).since(found.from);
                    let unacted = found.is_untouched() && !found.record.is_evidence();
                    let own = owned(found.record) && unacted && single;
                    !own && !left.is_zero()
                        && busy.lease_remaining() <= left
                        && found.record.attempt == busy.attempt()
                });
                let last = self.pages[asked.key].last().record.as_ref();
                self.counts.strangers += u64::from(last.is_some_and(owned));
            }
            Ok(Begin::Failed(failed)) => {
                self.explained(asked, now, "failed", |found| match &found.record.state {
                    State::Failed(body, Retry::Never) => {
                        found.tells(body, failed.error()) && failed.retry_after().is_none()
                    }
                    State::Failed(body, Retry::After(wait)) => {
                        let left = found.record.stamp.after(*wait).since(found.from);
                        found.tells(body, failed.error())
                            && failed.retry_after().is_some_and(|wait| !wait.is_zero() && wait <= left)
                    }
                    _ => false,
                });
            }
            Ok(Begin::Unresolved(unknown)) => {
                self.counts.unresolved += 1;
                let attempts = self.pages[asked.key].setup.max_attempts;
                self.explained(asked, now, "unresolved", |found| {
                    let record = found.record;
                    let stands = match (&record.state, unknown.reason()) {
                        (State::InProgress { effect, .. }, Reason::EffectMarked) => *effect,
                        (State::InProgress { .. }, Reason::CrashedAttempt) => true,
                        (_, Reason::AttemptsExhausted) => record.attempt >= attempts,
                        (State::Failed(_, retry), Reason::Reported) => *retry == Retry::Unresolved,
                        _ => false,
                    };
                    let told = match &record.state {
                        State::Failed(error, _) => found.tells(error, unknown.error()),
                        _ => unknown.error().is_none(),
                    };
                    let over = record.lease_end().is_none_or(|end| end <= now);
                    stands
                        && over
                        && told
                        && (unknown.fence(), unknown.attempt()) == (record.fence, record.attempt)
                        && unknown.checkpoint() == record.checkpoint.as_ref()
                });
                let page = &self.pages[asked.key];
                let old = |record: &Record| record.stamp.after(page.setup.retention + LEASES) < now;
                self.counts.outlasted += u64::from(page.last().record.as_ref().is_some_and(old));
            }
            Ok(Begin::Mismatch(_)) => {
                self.counts.mismatches += 1;
                let other = |moment: Moment<'_>| {
                    moment.record.is_some_and(|record| record.fingerprint != asked.fingerprint)
                };
                assert!(
                    self.explain(asked.key, asked.call, now, other),
                    "S4: a mismatch with what was not there"
                );
            }
        }
    }

    fn acquired(&mut self, asked: &Asked, lease: &Arc<Lease>, now: Stamp) {
        let fence = lease.fence();
        let found = self.explain(asked.key, asked.call, now, |moment| {
            let Some(record) = moment.record.filter(|record| record.fence == fence) else { return false };
            let State::InProgress { owner, takeover, .. } = &record.state else { return false };
            // Nothing was written since the grant, and its lease is running.
            let runs = record.lease_end().is_some_and(|end| end > moment.from);
            runs && record.stamp == fence
                && record.fingerprint == asked.fingerprint
                && asked.owner.is_none_or(|asked| asked == *owner)
                && (lease.attempt(), lease.takeover()) == (record.attempt, *takeover)
                && lease.checkpoint() == record.checkpoint.as_ref()
        });
        assert!(found, "S1, S10: a lease that the store did not grant, fence {fence:?}");
        let by = (asked.call, asked.place);
        let known = *self.pages[asked.key].granted.entry(fence).or_insert(by);
        assert!(known == by || asked.owner.is_some(), "S1: one grant to two callers, fence {fence:?}");
        self.hold(asked.key, lease);
        self.believes(asked.key, lease, now);
    }

    /// Checks that a holder never believes in more time than the store granted.
    pub(crate) fn believes(&self, key: usize, lease: &Lease, now: Stamp) {
        let granted = self.pages[key].grant(lease.fence()).and_then(Record::lease_end);
        let left = granted.map_or(Duration::ZERO, |end| end.since(now));
        let believed = lease.remaining();
        assert!(
            believed <= left + Duration::from_micros(100),
            "S1: a holder believes in {believed:?} of {left:?}"
        );
    }

    /// Checks the answer to a call of a lease.
    pub(crate) fn told(
        &mut self,
        (key, fence): (usize, Stamp),
        call: CallId,
        told: &Told,
        answer: &Result<(), Error>,
        now: Stamp,
        calm: bool,
    ) {
        let since = self.calls[call].since;
        let mine = |version: &Version| version.record.as_ref().is_some_and(|record| record.fence == fence);
        let page = &self.pages[key];
        match answer {
            Ok(()) => {
                let shown = |version: &Version| {
                    let Some(record) = version.record.as_ref().filter(|record| record.fence == fence) else {
                        return false;
                    };
                    let renewed = record.stamp >= since;
                    match (&record.state, told) {
                        (State::InProgress { .. }, Told::Renew) => renewed,
                        (State::InProgress { .. }, Told::Checkpoint(bytes)) => {
                            renewed && record.checkpoint.as_ref() == Some(bytes)
                        }
                        (State::InProgress { effect, .. }, Told::Mark) => renewed && *effect,
                        (State::Completed(body), Told::Complete(bytes)) => is_body(body, bytes),
                        (State::Failed(body, retry), Told::Fail(bytes, told)) => {
                            is_body(body, bytes) && retry == told
                        }
                        _ => false,
                    }
                };
                let done = match told {
                    Told::Resume => true,
                    Told::Release => self.explain(key, call, now, |moment| moment.record.is_none()),
                    _ => page.versions.iter().rev().any(shown),
                };
                assert!(done, "S2, S6: acknowledged, and never recorded: {told:?}");
            }
            Err(Error::LeaseLost { .. }) => {
                self.counts.lost += 1;
                let lost = |moment: Moment<'_>| match (moment.record, told) {
                    (None, told) => matches!(told, Told::Renew | Told::Checkpoint(_) | Told::Mark),
                    (Some(record), _) if record.fence != fence || record.attempt == 0 => true,
                    (Some(_), Told::Complete(_) | Told::Fail(..) | Told::Resume) => false,
                    (Some(record), _) => !matches!(record.state, State::InProgress { .. }),
                };
                assert!(
                    self.explain(key, call, now, lost),
                    "S3: a lease is said to be lost and was not: {told:?}"
                );
                if let Told::Complete(bytes) = told {
                    let forgotten = |version: &Version| version.record.is_none() && version.stamp > fence;
                    let written = page.versions.iter().filter(|version| mine(version)).any(|version| {
                        matches!(version.record.as_ref().map(|record| &record.state),
                            Some(State::Completed(body)) if is_body(body, bytes))
                    });
                    let excused = page.versions.iter().any(forgotten) || page.was_over(fence);
                    assert!(!written || excused, "S3: written, and said to be lost");
                }
            }
            Err(Error::AlreadyFinished { .. }) => {
                let other = |moment: Moment<'_>| {
                    moment.record.is_some_and(|record| {
                        record.fence == fence
                            && match (&record.state, told) {
                                (State::Completed(body), Told::Complete(bytes)) => !is_body(body, bytes),
                                (State::Failed(body, retry), Told::Fail(bytes, told)) => {
                                    !is_body(body, bytes) || retry != told
                                }
                                (State::InProgress { .. }, _) => false,
                                _ => true,
                            }
                    })
                };
                assert!(
                    self.explain(key, call, now, other),
                    "S2: said to be finished otherwise, and was not"
                );
            }
            Err(error) => self.failed(error, calm, false),
        }
    }

    /// Checks that a `run` returned what was recorded: under `fence` if it executed its handler.
    pub(crate) fn ran(
        &mut self,
        asked: &Asked,
        fence: Option<Stamp>,
        body: &Bytes,
        retry: Option<Retry>,
        now: Stamp,
    ) {
        let outcome = |record: &Record| match (&record.state, retry) {
            (State::Completed(recorded), None) => is_body(recorded, body),
            (State::Failed(recorded, recorded_retry), Some(retry)) => {
                is_body(recorded, body) && *recorded_retry == retry
            }
            _ => false,
        };
        match fence {
            None => {
                self.counts.replays += 1;
                self.explained(asked, now, "run", |found| outcome(found.record));
            }
            Some(fence) => {
                let mut records =
                    self.pages[asked.key].versions.iter().filter_map(|version| version.record.as_ref());
                let recorded = records.any(|record| record.fence == fence && outcome(record));
                assert!(recorded, "S2, S6: run acknowledged what was never recorded");
            }
        }
    }

    /// Returns true if a grant has, or once had, an outcome.
    pub(crate) fn is_finished(&self, key: usize, fence: Stamp) -> bool {
        let mut records = self.pages[key].versions.iter().filter_map(|version| version.record.as_ref());
        records.any(|record| record.fence == fence && record.lease_end().is_none())
    }

    /// Returns true if a key's record was removed since the call began.
    pub(crate) fn was_removed(&self, asked: &Asked) -> bool {
        let since = self.calls[asked.call].since;
        let removed = |version: &Version| version.record.is_none() && version.stamp >= since;
        self.pages[asked.key].versions.iter().any(removed)
    }

    /// Checks the answer to an operator's resolution.
    pub(crate) fn resolved(
        &mut self,
        (key, fence): (usize, Stamp),
        call: CallId,
        word: &Resolution,
        answer: &Result<(), Error>,
        now: Stamp,
        calm: bool,
    ) {
        let stands = |record: &Record| {
            record.fence == fence
                && match (&record.state, word) {
                    (State::Completed(is), Resolution::Completed(word)) => is == word,
                    (State::Failed(is, Retry::Never), Resolution::Failed(word)) => is == word,
                    (State::Failed(_, Retry::Now), Resolution::Rerun) => record.attempt == 0,
                    _ => false,
                }
        };
        let shown = self.shown.get(&call).copied();
        match answer {
            Ok(()) => {
                let mut records =
                    self.pages[key].versions.iter().filter_map(|version| version.record.as_ref());
                assert!(records.any(stands), "S6: an operator's word that is not recorded");
            }
            Err(Error::NotResolvable { .. }) => {
                let refused = self.explain(key, call, now, |moment| {
                    moment.record.is_none_or(|record| {
                        record.fence != fence
                            || shown.is_some_and(|stamp| record.stamp != stamp)
                            || match &record.state {
                                State::InProgress { .. } => {
                                    record.lease_end().is_some_and(|end| end > moment.from)
                                }
                                State::Completed(_) | State::Failed(_, Retry::Never) => true,
                                State::Failed(..) => false,
                            }
                    })
                });
                assert!(refused, "L6: an operator was refused what is unresolved");
            }
            Err(error) => self.failed(error, calm, false),
        }
    }

    /// Checks what an inspection showed.
    pub(crate) fn looked(&self, key: usize, call: CallId, seen: Option<(StateKind, u32, Stamp)>, now: Stamp) {
        let stood = self.explain(key, call, now, |moment| match (moment.record, seen) {
            (None, None) => true,
            (Some(record), Some(seen)) => {
                let state = match &record.state {
                    State::InProgress { .. } => StateKind::InProgress,
                    State::Completed(_) => StateKind::Completed,
                    State::Failed(..) => StateKind::Failed,
                };
                (state, record.attempt, record.fence) == seen
            }
            (None, Some(_)) | (Some(_), None) => false,
        });
        assert!(stood, "S10: an operator was shown what never was");
    }

    /// Checks an error: only those that the drawn faults explain may be returned.
    pub(crate) fn failed(&self, error: &Error, calm: bool, may_be_full: bool) {
        match error {
            Error::Store(StoreError::Full { .. }) => {
                assert!(may_be_full, "S12: a full store refused what is no begin");
            }
            Error::TimedOut { .. } | Error::Store(StoreError::Corrupt { .. }) => {
                assert!(!calm, "L1: an error where nothing fails: {error}");
            }
            Error::Store(StoreError::Unavailable { .. }) => {
                assert!(!calm, "L1: an error where nothing fails: {error}");
            }
            other => panic!("S10: an error that no drawn fault explains: {other}"),
        }
    }
}

impl Page {
    /// Returns true if a record of the key expired after this grant.
    fn was_over(&self, fence: Stamp) -> bool {
        self.versions
            .windows(2)
            .filter(|pair| pair[0].stamp >= fence)
            .any(|pair| pair[0].record.as_ref().is_some_and(|record| !record.is_kept(pair[1].stamp)))
    }
}

fn is_body(recorded: &Body, bytes: &Bytes) -> bool {
    match recorded.bytes() {
        Some(kept) => kept == bytes,
        None => *recorded == Body::new(bytes.clone(), 0),
    }
}

/// The end of a lease, which the public record type does not offer.
pub(crate) trait LeaseEnd {
    fn lease_end(&self) -> Option<Stamp>;
}

impl LeaseEnd for Record {
    fn lease_end(&self) -> Option<Stamp> {
        match &self.state {
            State::InProgress { lease, .. } => Some(self.stamp.after(*lease)),
            State::Completed(_) | State::Failed(..) => None,
        }
    }
}
