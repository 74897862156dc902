//! The ledger: every version that every key ever had, and the rules that each write must keep.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nevertwice::store::{Record, Snapshot, State, Swap, SwapRequest};
use nevertwice::{Lease, Owner, RecordId, Recovery, Retry, Stamp, StoreError};

/// The number of a call.
pub(crate) type CallId = usize;

/// The kind of a call, which limits what it may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Begin,
    BeginMany,
    Run,
    Rewrite,
    Finish,
    Release,
    Resolve,
    Amend,
    Forget,
    /// Writes nothing.
    Look,
}

/// A key and the policy that all its callers use.
#[derive(Debug, Clone)]
pub(crate) struct KeySetup {
    pub(crate) scope: &'static str,
    pub(crate) key: &'static str,
    pub(crate) recovery: Recovery,
    /// True if every grant marks the effect.
    pub(crate) assumes: bool,
    pub(crate) max_attempts: u32,
    pub(crate) retention: Duration,
    /// The retention of evidence of an effect.
    pub(crate) unresolved: Duration,
    /// The time for which a response or error is given out, if shorter than the retention.
    pub(crate) response: Option<Duration>,
}

impl KeySetup {
    /// The deadline of a record.
    fn deadline(&self, record: &Record) -> Stamp {
        let (evidence, least) = match &record.state {
            State::InProgress { lease, effect, .. } => (*effect && self.recovery != Recovery::Rerun, *lease),
            State::Failed(_, Retry::After(wait)) => (false, *wait),
            State::Failed(_, retry) => (*retry == Retry::Unresolved, Duration::ZERO),
            State::Completed(_) => (false, Duration::ZERO),
        };
        let kept = if evidence { self.retention.max(self.unresolved) } else { self.retention };
        record.stamp.after(kept + least)
    }
}

/// The content of a store under a key from one write to the next.
#[derive(Debug)]
pub(crate) struct Version {
    pub(crate) stamp: Stamp,
    pub(crate) record: Option<Record>,
}

/// Everything known about a key.
pub(crate) struct Page {
    pub(crate) setup: KeySetup,
    pub(crate) versions: Vec<Version>,
    last_fence: Stamp,
    leases: Vec<(Stamp, Weak<Lease>)>,
    /// The fences whose holders no longer rely on their leases: they sent an outcome or a release,
    /// or their record was forgotten.
    ended: HashSet<Stamp>,
    /// The grants whose only holder has performed its effect.
    acted: HashSet<Stamp>,
    /// The fence of the effect that must remain the only one.
    effect: Option<Stamp>,
    /// Effects under fences up to this one do not count: an operator ordered a rerun or forgot the
    /// key, or its record expired.
    pardoned: Stamp,
    /// The call, and its index in a batch, that each grant was reported to first.
    pub(crate) granted: HashMap<Stamp, (CallId, usize)>,
}

/// A call, in flight or finished.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) kind: Kind,
    /// The store's time when it began.
    pub(crate) since: Stamp,
}

/// Counters of a run.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    pub(crate) seeds: u64,
    pub(crate) calls: u64,
    pub(crate) messages: u64,
    pub(crate) faults: u64,
    pub(crate) kinds: [u64; 10],
    pub(crate) crashes: u64,
    pub(crate) pauses: u64,
    pub(crate) cuts: u64,
    pub(crate) jumps: u64,
    pub(crate) grants: u64,
    pub(crate) takeovers: u64,
    pub(crate) outcomes: u64,
    pub(crate) replays: u64,
    pub(crate) unresolved: u64,
    pub(crate) mismatches: u64,
    pub(crate) lost: u64,
    pub(crate) effects: u64,
    pub(crate) waits: u64,
    /// Grants whose lease was over before the call that asked for them was answered.
    pub(crate) anew: u64,
    /// Begins by an owner kept over a crash that were answered like any other owner's, because its
    /// grant had been written to.
    pub(crate) strangers: u64,
    /// Calls of leases that had already sent a release.
    pub(crate) released: u64,
    /// Resolutions that were amended.
    pub(crate) amended: u64,
    /// Answers from evidence that had outlasted its retention.
    pub(crate) outlasted: u64,
    pub(crate) micros: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Counts) {
        let Counts { kinds, .. } = other;
        self.kinds.iter_mut().zip(kinds).for_each(|(sum, more)| *sum += more);
        for (sum, more) in self.sums().into_iter().zip(other.clone().sums()) {
            *sum += *more;
        }
    }

    fn sums(&mut self) -> [&mut u64; 23] {
        [
            &mut self.seeds,
            &mut self.calls,
            &mut self.messages,
            &mut self.faults,
            &mut self.crashes,
            &mut self.pauses,
            &mut self.cuts,
            &mut self.jumps,
            &mut self.grants,
            &mut self.takeovers,
            &mut self.outcomes,
            &mut self.replays,
            &mut self.unresolved,
            &mut self.mismatches,
            &mut self.lost,
            &mut self.effects,
            &mut self.waits,
            &mut self.anew,
            &mut self.strangers,
            &mut self.released,
            &mut self.amended,
            &mut self.outlasted,
            &mut self.micros,
        ]
    }
}

pub(crate) struct Ledger {
    pub(crate) pages: Vec<Page>,
    ids: HashMap<RecordId, usize>,
    pub(crate) calls: Vec<Call>,
    /// The version that an operator was shown who settles it by a call.
    pub(crate) shown: HashMap<CallId, Stamp>,
    /// The fences of the grants that a call has written.
    pub(crate) wrote: HashSet<(CallId, Stamp)>,
    pub(crate) counts: Counts,
    pub(crate) last_finish: Vec<u64>,
    /// The owners that callers keep from call to call.
    pub(crate) kept_owners: HashSet<Owner>,
    /// The leases that have sent a release, by fence and address.
    released: HashSet<(Stamp, usize)>,
    trace: DefaultHasher,
    aloud: bool,
}

/// The maximum lead of a store's time over the world's: two writes at one moment set it forward by
/// a microsecond.
const AHEAD: Duration = Duration::from_micros(100);

impl Ledger {
    pub(crate) fn new(setups: &[KeySetup], ids: &[RecordId], aloud: bool) -> Ledger {
        let page = |setup: &KeySetup| Page {
            setup: setup.clone(),
            versions: vec![Version { stamp: Stamp::ZERO, record: None }],
            last_fence: Stamp::ZERO,
            leases: Vec::new(),
            ended: HashSet::new(),
            acted: HashSet::new(),
            effect: None,
            pardoned: Stamp::ZERO,
            granted: HashMap::new(),
        };
        Ledger {
            pages: setups.iter().map(page).collect(),
            ids: ids.iter().enumerate().map(|(number, id)| (*id, number)).collect(),
            // Call 0 stands for requests that no call sent, such as a load by a watch whose waiter
            // has left: they may write nothing.
            calls: vec![Call { kind: Kind::Look, since: Stamp::ZERO }],
            shown: HashMap::new(),
            wrote: HashSet::new(),
            counts: Counts::default(),
            last_finish: vec![0; setups.len()],
            kept_owners: HashSet::new(),
            released: HashSet::new(),
            trace: DefaultHasher::new(),
            aloud,
        }
    }

    /// Adds an event to the trace, which must be the same in every run of a seed.
    #[allow(clippy::print_stdout)] // for the reader of a replay
    pub(crate) fn note(&mut self, at: u64, what: &str, numbers: [u64; 3]) {
        (at, what, numbers).hash(&mut self.trace);
        if self.aloud {
            println!("{:>14} {what:<10} {numbers:?}", at);
        }
    }

    pub(crate) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    pub(crate) fn number_of(&self, id: &RecordId) -> Option<usize> {
        self.ids.get(id).copied()
    }

    /// Checks a snapshot: it must show what was written last, or nothing once that has expired.
    pub(crate) fn read(&self, id: &RecordId, shown: &Snapshot) {
        let Some(page) = self.number_of(id).map(|key| &self.pages[key]) else { return };
        let last = page.last();
        match (&shown.record, &last.record) {
            (Some(shown), Some(record)) => {
                assert_eq!(**shown, *record, "the store shows what was never written")
            }
            (None, None) => {}
            (None, Some(record)) => assert!(
                !record.is_kept(shown.now),
                "S13: removed {:?} before its deadline",
                record.deadline().since(shown.now)
            ),
            (Some(_), None) => panic!("the store shows what was removed"),
        }
    }

    /// Checks the store's answer to a swap and records the write.
    pub(crate) fn swapped(
        &mut self,
        call: CallId,
        swap: &SwapRequest,
        answer: &Result<Swap, StoreError>,
        at: u64,
    ) {
        let Some(key) = self.number_of(&swap.id) else { return };
        match answer {
            Err(StoreError::Full { .. }) => {
                let refusable = swap.next.as_ref().is_none_or(|next| next.may_be_refused());
                assert!(swap.next.is_some() && refusable, "S12: a full store refused what is no new grant");
            }
            Err(error) => panic!("a memory store that fails: {error}"),
            Ok(Swap::Conflict(shown)) => {
                self.read(&swap.id, shown);
                let found = shown.record.as_ref().map(|record| record.stamp);
                assert_ne!(found, swap.expected, "the store refused a swap that was in order");
            }
            Ok(Swap::Done(stamp)) => {
                let last = self.pages[key].last();
                let expected = last.record.as_ref().map(|record| record.stamp);
                let gone = swap.expected.is_none()
                    && last.record.as_ref().is_none_or(|record| !record.is_kept(*stamp));
                assert!(swap.expected == expected || gone, "S3: a swap by a version that is not the last");
                let next = swap.next.clone().map(|next| stamped(*next, *stamp));
                if let Some(next) = &next {
                    let deadline = self.pages[key].setup.deadline(next);
                    assert_eq!(
                        next.deadline(),
                        deadline,
                        "S13: kept for another time than its own: {next:?}"
                    );
                }
                self.written(key, call, next, *stamp, at);
            }
        }
    }

    /// Records that a store removed a record that could not be read.
    pub(crate) fn discarded(&mut self, call: CallId, id: &RecordId, now: u64, at: u64) {
        let Some(key) = self.number_of(id) else { return };
        let stamp = self.pages[key].last().stamp.next().max(Stamp(now));
        self.written(key, call, None, stamp, at);
    }

    /// Notes that a call of an operator settles only the version with this stamp.
    pub(crate) fn goes_by(&mut self, call: CallId, shown: Stamp) {
        self.shown.insert(call, shown);
    }

    fn written(&mut self, key: usize, call: CallId, next: Option<Record>, stamp: Stamp, at: u64) {
        let kind = self.calls[call].kind;
        self.note(at, "written", [key as u64, kind as u64, stamp.0 % 1_000_000_000_000]);
        let page = &mut self.pages[key];
        let last = page.last();
        assert!(stamp > last.stamp, "S5: the stamp {stamp:?} after {:?}", last.stamp);
        let kept = last.record.as_ref().filter(|record| record.is_kept(stamp)).cloned();
        let before = last.record.clone();
        if let Some(shown) = self.shown.get(&call) {
            assert_eq!(last.stamp, *shown, "S2: an operator settled another version than the shown one");
        }
        if kept.is_none() && before.is_some() {
            page.pardon(); // its time was over: what was known of it is forgotten
        }
        match &next {
            None => page.removed(kind, kept.as_ref()),
            Some(next) if next.fence == stamp => {
                self.counts.grants += 1;
                self.counts.takeovers += u64::from(next.attempt > 1);
                self.counts.anew +=
                    u64::from(page.granted(kind, before.as_ref(), kept.as_ref(), next, &self.kept_owners));
                self.wrote.insert((call, next.fence));
            }
            Some(next) => match &next.state {
                State::InProgress { .. } => page.rewritten(kind, before.as_ref(), next),
                State::Completed(_) | State::Failed(..) => {
                    page.finished(kind, before.as_ref(), kept.as_ref(), next);
                    self.counts.outcomes += 1;
                    self.counts.amended += u64::from(kind == Kind::Amend);
                    self.last_finish[key] = at;
                }
            },
        }
        self.pages[key].versions.push(Version { stamp, record: next });
    }

    /// Records the holder of a lease: while it relies on the lease, no other caller may be granted
    /// one.
    pub(crate) fn hold(&mut self, key: usize, lease: &Arc<Lease>) {
        self.released.remove(&named(lease));
        self.pages[key].leases.push((lease.fence(), Arc::downgrade(lease)));
    }

    /// Records that a holder is about to send its outcome: from then on it does not rely on its
    /// lease.
    pub(crate) fn end(&mut self, key: usize, fence: Stamp) {
        self.pages[key].ended.insert(fence);
    }

    /// Returns true if a lease has sent a release.
    pub(crate) fn is_released(&self, lease: &Lease) -> bool {
        self.released.contains(&named(lease))
    }

    /// Records that a lease is about to send a release: from then on it records nothing.
    pub(crate) fn release(&mut self, lease: &Lease) {
        self.released.insert(named(lease));
    }

    /// Records the effect of a holder whose mark was acknowledged. If it is `alone`, its token is
    /// not shared and its grant must have no other effect.
    pub(crate) fn effect(&mut self, key: usize, fence: Stamp, alone: bool) {
        self.counts.effects += 1;
        let page = &mut self.pages[key];
        assert!(!alone || page.acted.insert(fence), "S8: two effects of one grant, {fence:?}");
        if fence > page.pardoned && page.setup.recovery != Recovery::Rerun {
            let alone = page.effect.is_none_or(|known| known == fence);
            assert!(alone, "S8: two effects, under the fences {:?} and {fence:?}", page.effect);
            page.effect = Some(fence);
        }
    }
}

/// The identity of a lease among those that are alive.
fn named(lease: &Lease) -> (Stamp, usize) {
    (lease.fence(), std::ptr::from_ref(lease).addr())
}

fn stamped(mut record: Record, stamp: Stamp) -> Record {
    record.stamp = stamp;
    if record.fence == Stamp::ZERO {
        record.fence = stamp;
    }
    record
}

impl Page {
    pub(crate) fn last(&self) -> &Version {
        self.versions.last().expect("there is one from the start")
    }

    fn pardon(&mut self) {
        (self.effect, self.pardoned) = (None, self.last_fence);
    }

    fn removed(&mut self, kind: Kind, kept: Option<&Record>) {
        assert!(matches!(kind, Kind::Release | Kind::Forget), "S13: a {kind:?} removed a record");
        if let (Kind::Release, Some(kept)) = (kind, kept) {
            assert!(matches!(kept.state, State::InProgress { .. }), "S2: an outcome was released");
            assert!(self.ended.contains(&kept.fence), "S3: released what its holder did not release");
        } else {
            self.pardon();
            self.ended.extend(kept.map(|record| record.fence));
            self.ended.extend(self.leases.iter().map(|(fence, _)| *fence));
        }
    }

    /// Checks a grant. Returns true if it renews a grant that an earlier attempt of the same call
    /// wrote.
    fn granted(
        &mut self,
        kind: Kind,
        before: Option<&Record>,
        kept: Option<&Record>,
        next: &Record,
        kept_owners: &HashSet<Owner>,
    ) -> bool {
        assert!(matches!(kind, Kind::Begin | Kind::BeginMany | Kind::Run), "S8: a {kind:?} granted a lease");
        assert!(next.fence > self.last_fence, "S5: fence {:?} after {:?}", next.fence, self.last_fence);
        self.last_fence = next.fence;
        self.leases.retain(|(_, lease)| lease.strong_count() > 0);
        for (fence, lease) in self.leases.iter().filter(|(fence, _)| !self.ended.contains(fence)) {
            let left = lease.upgrade().map_or(Duration::ZERO, |lease| lease.remaining());
            assert!(left <= AHEAD, "L3, S1: granted while the holder of {fence:?} still relies on {left:?}");
        }
        let State::InProgress { owner: by, effect, takeover, .. } = next.state else {
            panic!("S8: a grant that is an outcome")
        };
        let new = (next.attempt, next.checkpoint.clone(), effect, takeover);
        let assumes = self.setup.assumes;
        if kept.is_none() && new == (1, None, assumes, false) {
            return false;
        }
        // It may have been decided just before the record expired.
        let record = kept.or(before).expect("S8: a grant that goes on from nothing");
        assert_eq!(record.fingerprint, next.fingerprint, "S4: granted to another request");
        let is_own = matches!(record.state, State::InProgress { owner, .. } if owner == by);
        let anew = is_own && record.stamp == record.fence && !kept_owners.contains(&by);
        assert!(anew || record.attempt < self.setup.max_attempts, "S8: more attempts than allowed");
        let again = record.attempt.saturating_add(1);
        let (attempt, checkpoint, marked, takeover) = match &record.state {
            State::InProgress { lease, effect, takeover, .. } if anew => {
                let left = record.stamp.after(*lease).since(next.stamp);
                assert!(left.is_zero(), "S1: granted anew while it runs for {left:?}");
                (record.attempt, record.checkpoint.clone(), *effect, *takeover)
            }
            State::InProgress { lease, effect, .. } => {
                let left = record.stamp.after(*lease).since(next.stamp);
                assert!(left.is_zero(), "S1: granted while a lease runs for {left:?}");
                let allowed = match self.setup.recovery {
                    Recovery::Rerun => true,
                    Recovery::RerunUnlessEffect => !effect,
                    Recovery::Never => false,
                };
                assert!(allowed, "S8: granted after a crash, against {:?}", self.setup.recovery);
                (again, record.checkpoint.clone(), *effect, true)
            }
            State::Completed(_) => panic!("S2: granted over a response"),
            State::Failed(_, Retry::Never) => panic!("S2: granted over a definite failure"),
            State::Failed(_, Retry::Unresolved) => panic!("S8: granted over an unresolved failure"),
            State::Failed(_, retry) => {
                let wait = if let Retry::After(wait) = retry { *wait } else { Duration::ZERO };
                let left = record.stamp.after(wait).since(next.stamp);
                assert!(left.is_zero(), "S8: granted {left:?} before a failure is due");
                (again, record.checkpoint.clone(), false, false)
            }
        };
        let expected = (attempt, checkpoint, marked || assumes, takeover);
        assert_eq!(new, expected, "S15: what a grant takes over");
        anew
    }

    /// Checks a rewrite. One that was decided in time may be written after the record's deadline,
    /// as long as no other grant was made.
    fn rewritten(&self, kind: Kind, before: Option<&Record>, next: &Record) {
        assert!(matches!(kind, Kind::Rewrite | Kind::Run), "S3: a {kind:?} rewrote a lease");
        let held =
            before.filter(|record| record.fence == next.fence).expect("S3: a lost lease was rewritten");
        match (&held.state, &next.state) {
            (State::InProgress { owner, effect, .. }, State::InProgress { owner: by, effect: now, .. }) => {
                assert!(owner == by, "S3: a lease was rewritten by another");
                assert!(!effect || *now, "S8: a marked effect was unmarked");
            }
            _ => panic!("S2: a lease was written over an outcome"),
        }
        assert_eq!(
            (held.attempt, held.retention),
            (next.attempt, next.retention),
            "S15: what a renewal keeps"
        );
    }

    fn finished(&mut self, kind: Kind, before: Option<&Record>, kept: Option<&Record>, next: &Record) {
        let amended = kind == Kind::Amend;
        let resolved = kind == Kind::Resolve || amended;
        assert_eq!(next.resolved, resolved, "S2: whose word it is");
        assert!(resolved || matches!(kind, Kind::Finish | Kind::Run), "S3: a {kind:?} finished");
        let rerun = resolved && next.attempt == 0;
        if rerun {
            self.pardon();
        }
        let late = before.filter(|record| resolved && record.fence == next.fence);
        let Some(held) = kept.or(late) else {
            assert!(!resolved, "S10: resolved what is not there");
            return; // the work is done all the same
        };
        assert_eq!(held.fence, next.fence, "S3: finished with a stale token");
        assert_eq!(held.fingerprint, next.fingerprint, "S4: finished as another request");
        match &held.state {
            _ if amended => assert!(held.resolved, "S2: an operator corrected what no operator said"),
            State::InProgress { lease, .. } if resolved => {
                let left = held.stamp.after(*lease).since(next.stamp);
                assert!(left.is_zero(), "S1: an operator settled a lease that runs for {left:?}");
            }
            State::InProgress { .. } => {}
            State::Completed(_) => panic!("S2: an outcome after a response"),
            State::Failed(_, Retry::Never) => panic!("S2: an outcome after a definite failure"),
            State::Failed(..) => assert!(resolved, "S2: an outcome after a failure"),
        }
    }
}

impl Counts {
    /// A one-line summary of the run.
    pub(crate) fn line(&self) -> String {
        format!(
            "{} seeds, {} calls, {} messages, {} faults, {} crashes, {} pauses, {} partitions, {} clock jumps, {} grants, \
             {} takeovers and reruns, {} outcomes, {} replays, {} unresolved, {} mismatches, {} leases lost, {} effects, \
             {} waits, {} granted anew, {} kept owners answered as any other, {} calls after a release, {} amended, {} answers by \
             evidence past its retention, {} virtual hours",
            self.seeds,
            self.calls,
            self.messages,
            self.faults,
            self.crashes,
            self.pauses,
            self.cuts,
            self.jumps,
            self.grants,
            self.takeovers,
            self.outcomes,
            self.replays,
            self.unresolved,
            self.mismatches,
            self.lost,
            self.effects,
            self.waits,
            self.anew,
            self.strangers,
            self.released,
            self.amended,
            self.outlasted,
            self.micros / 3_600_000_000,
        )
    }

    /// Fails if some event never happened, since the simulation then proves nothing about it.
    pub(crate) fn assert_all_happened(mut self) {
        assert!(self.kinds.iter().all(|kind| *kind > 0), "a kind of fault never happened: {:?}", self.kinds);
        let line = self.line();
        assert!(self.sums().into_iter().all(|sum| *sum > 0), "something never happened: {line}");
    }
}
