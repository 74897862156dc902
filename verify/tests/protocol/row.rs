//! Records, commands and answers as small numbers, so that millions of states fit in memory, and
//! their conversion to and from the real types. Every decision is made by [`nevertwice::decide`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use nevertwice::decide::{self, BeginParams, Command, Decision};
use nevertwice::store::{Label, Record, State};
use nevertwice::{
    Body, Fingerprint, LeaseToken, Owner, Reason, RecordId, Recovery, Request, Resolution, Retry, Stamp,
};

/// A time or duration of the store, in microseconds.
pub(crate) type Time = u8;

/// A record. Numbers stand for its payload, owner and response.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Row {
    pub(crate) stamp: Time,
    pub(crate) fence: Time,
    pub(crate) payload: u8,
    pub(crate) attempt: u8,
    pub(crate) retention: Time,
    /// Its retention as evidence, if it has one.
    pub(crate) unresolved: Option<Time>,
    pub(crate) checkpoint: Option<u8>,
    /// True if an operator settled it.
    pub(crate) resolved: bool,
    pub(crate) phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Phase {
    Working { owner: u8, lease: Time, effect: bool, takeover: bool, recovery: Rerun },
    Did(u8),
    Broke(u8, Again),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Again {
    Now,
    After(Time),
    Never,
    Unresolved,
}

/// A client's key, payload and policy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Role {
    /// The key that it works on.
    pub(crate) place: u8,
    pub(crate) payload: u8,
    pub(crate) lease: Time,
    pub(crate) retention: Time,
    /// The retention of evidence.
    pub(crate) unresolved: Time,
    pub(crate) recovery: Rerun,
    /// True if its grants mark the effect.
    pub(crate) assumes: bool,
    pub(crate) max_attempts: u8,
}

/// [`Recovery`] with an order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Rerun {
    Always,
    UnlessEffect,
    Never,
}

/// The proof of a grant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) struct Token {
    pub(crate) owner: u8,
    pub(crate) fence: Time,
    pub(crate) attempt: u8,
    /// True if the grant was made in a transaction of the application.
    pub(crate) in_transaction: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Cmd {
    Begin {
        owner: u8,
        /// True if the owner was drawn for this call.
        is_new: bool,
    },
    Resume(Token),
    Renew(Token),
    Checkpoint(Token, u8),
    Mark(Token),
    Complete(Token, u8),
    Fail(Token, u8, Again),
    Release(Token),
    /// The fence and, to refuse any other version, the stamp that were shown, and the resolution.
    Resolve(Time, Option<Time>, Settle),
    /// The stamp that was shown, the new resolution, and whether it may order a rerun.
    Amend(Time, Settle, bool),
    Forget,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Settle {
    Completed(u8),
    Failed(u8),
    Rerun,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Reply {
    Acquired,
    Completed(u8),
    InProgress(Time),
    Failed(u8, Option<Time>),
    Unresolved(Why, Time),
    Mismatch,
    Done,
    LeaseLost,
    AlreadyFinished,
    NotResolvable,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(crate) enum Why {
    EffectMarked,
    CrashedAttempt,
    Reported,
    AttemptsExhausted,
}

pub(crate) enum Verdict {
    Reply(Reply),
    Write(Option<Row>, Reply),
}

impl Row {
    /// Returns true if an effect may have happened and its outcome is unknown.
    pub(crate) fn is_evidence(&self) -> bool {
        match self.phase {
            Phase::Working { effect, recovery, .. } => effect && recovery != Rerun::Always,
            Phase::Broke(_, again) => again == Again::Unresolved,
            Phase::Did(_) => false,
        }
    }

    /// The time from which it counts as absent.
    pub(crate) fn deadline(&self) -> u16 {
        let evidence = self.unresolved.filter(|_| self.is_evidence()).unwrap_or(0);
        let least = match self.phase {
            Phase::Working { lease, .. } => lease,
            Phase::Broke(_, Again::After(wait)) => wait,
            Phase::Did(_) | Phase::Broke(..) => 0,
        };
        u16::from(self.stamp) + u16::from(self.retention.max(evidence)) + u16::from(least)
    }

    pub(crate) fn is_kept(&self, now: Time) -> bool {
        u16::from(now) < self.deadline()
    }

    /// The end of its lease, if it is in progress.
    pub(crate) fn until(&self) -> Option<Time> {
        match self.phase {
            Phase::Working { lease, .. } => Some(self.stamp + lease),
            Phase::Did(_) | Phase::Broke(..) => None,
        }
    }

    /// Returns true if nothing was written since the grant.
    pub(crate) fn is_untouched(&self) -> bool {
        self.stamp == self.fence
    }

    pub(crate) fn is_granted_to(&self, who: u8) -> bool {
        matches!(self.phase, Phase::Working { owner, .. } if owner == who)
    }

    pub(crate) fn is_held_by(&self, token: Token) -> bool {
        self.fence == token.fence && self.is_granted_to(token.owner)
    }

    /// Returns true if only expiry or an operator can change it.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self.phase, Phase::Did(_) | Phase::Broke(_, Again::Never))
    }

    pub(crate) fn stamped(mut self, stamp: Time) -> Row {
        self.stamp = stamp;
        if self.fence == 0 {
            self.fence = stamp;
        }
        self
    }
}

impl Cmd {
    pub(crate) fn token(&self) -> Option<Token> {
        match *self {
            Cmd::Resume(token)
            | Cmd::Renew(token)
            | Cmd::Checkpoint(token, _)
            | Cmd::Mark(token)
            | Cmd::Complete(token, _)
            | Cmd::Fail(token, ..)
            | Cmd::Release(token) => Some(token),
            Cmd::Begin { .. } | Cmd::Resolve(..) | Cmd::Amend(..) | Cmd::Forget => None,
        }
    }
}

/// The number of the empty body.
pub(crate) const NOTHING: u8 = 255;

/// The number of owners that can be named.
const OWNERS: usize = 24;
const PLACES: [[&str; 2]; 2] = [["a", "bc"], ["ab", "c"]];

struct Real {
    owners: Vec<Owner>,
    payloads: [Fingerprint; 2],
    ids: [RecordId; 2],
    scopes: [Label; 2],
    template: Record,
}

static REAL: LazyLock<Real> = LazyLock::new(|| {
    let owners: Vec<Owner> = (0..OWNERS).map(|_| Owner::random().unwrap()).collect();
    let payloads = [Fingerprint::of("one"), Fingerprint::of("other")];
    let ids = PLACES.map(|scope| Request::new(scope, "key").unwrap().id());
    let params = BeginParams {
        owner: owners[0],
        owner_is_new: false,
        fingerprint: payloads[0],
        also: None,
        lease: Duration::ZERO,
        retention: Duration::ZERO,
        response_retention: None,
        unresolved_retention: Duration::ZERO,
        recovery: Recovery::Rerun,
        assume_effect: false,
        max_attempts: 1,
        holder: "".into(),
        scope: "".into(),
        key: None,
    };
    let Decision::Write { next: Some(template), .. } =
        decide::decide(Stamp::ZERO, None, &Command::Begin(params))
    else {
        panic!("an absent key is granted")
    };
    Real { owners, payloads, ids, scopes: ["a".into(), "b".into()], template: *template }
});

/// The store's slot for a place's key. Slots are told apart by the real [`RecordId`] alone.
pub(crate) fn slot_of(place: u8) -> usize {
    let id = REAL.ids[usize::from(place)];
    REAL.ids.iter().position(|known| *known == id).unwrap()
}

/// The decision of the real state machine.
pub(crate) fn decide(now: Time, row: Option<&Row>, role: &Role, cmd: &Cmd) -> Verdict {
    let place = usize::from(role.place);
    let record = row.map(|row| record(row, place));
    match decide::decide(Stamp(now.into()), record.as_ref(), &command(role, cmd)) {
        Decision::Reply(reply) => Verdict::Reply(answer(reply)),
        Decision::Replay => Verdict::Reply(answer(decide::Reply::replay(record.map(Box::new)).unwrap())),
        Decision::Write { next, reply } => {
            let next = next.map(|next| {
                let small = small(&next);
                assert!(
                    record_is(&small, place, &next),
                    "S7: {cmd:?} writes what the model cannot: {next:?}"
                );
                small
            });
            Verdict::Write(next, answer(reply))
        }
    }
}

fn record_is(row: &Row, place: usize, written: &Record) -> bool {
    record(row, place) == *written
}

/// Returns true if a store would remove the row, by the real record's deadline.
pub(crate) fn is_purged(row: &Row, now: Time) -> bool {
    !record(row, 0).is_kept(Stamp(now.into()))
}

fn time(time: Time) -> Duration {
    Duration::from_micros(time.into())
}

fn count(time: Duration) -> Time {
    Time::try_from(time.as_micros()).unwrap()
}

fn bytes(of: u8) -> Bytes {
    static ALL: [u8; 256] = {
        let mut all = [0; 256];
        let mut at = 0;
        while at < 256 {
            all[at] = at as u8;
            at += 1;
        }
        all
    };
    if of == NOTHING { Bytes::new() } else { Bytes::from_static(&ALL[usize::from(of)..=usize::from(of)]) }
}

fn body(of: u8) -> Body {
    Body::kept(bytes(of))
}

fn byte(body: &Body) -> u8 {
    body.bytes().unwrap().first().copied().unwrap_or(NOTHING)
}

fn retry(again: Again) -> Retry {
    match again {
        Again::Now => Retry::Now,
        Again::After(wait) => Retry::After(time(wait)),
        Again::Never => Retry::Never,
        Again::Unresolved => Retry::Unresolved,
    }
}

fn record(row: &Row, place: usize) -> Record {
    let mut record = REAL.template.clone();
    record.stamp = Stamp(row.stamp.into());
    record.fence = Stamp(row.fence.into());
    record.fingerprint = REAL.payloads[usize::from(row.payload)];
    record.attempt = row.attempt.into();
    record.retention = time(row.retention);
    record.unresolved_retention = row.unresolved.map(time);
    record.resolved = row.resolved;
    record.scope = REAL.scopes[place];
    record.checkpoint = row.checkpoint.map(bytes);
    record.state = match row.phase {
        Phase::Working { owner, lease, effect, takeover, recovery } => State::InProgress {
            owner: REAL.owners[usize::from(owner)],
            lease: time(lease),
            effect,
            takeover,
            recovery: real(recovery),
            holder: "".into(),
        },
        Phase::Did(response) => State::Completed(body(response)),
        Phase::Broke(error, again) => State::Failed(body(error), retry(again)),
    };
    record
}

fn small(record: &Record) -> Row {
    let find = |owner: &Owner| REAL.owners.iter().position(|known| known == owner).unwrap() as u8;
    let phase = match &record.state {
        State::InProgress { owner, lease, effect, takeover, recovery, .. } => Phase::Working {
            owner: find(owner),
            lease: count(*lease),
            effect: *effect,
            takeover: *takeover,
            recovery: match recovery {
                Recovery::Rerun => Rerun::Always,
                Recovery::RerunUnlessEffect => Rerun::UnlessEffect,
                Recovery::Never => Rerun::Never,
            },
        },
        State::Completed(response) => Phase::Did(byte(response)),
        State::Failed(error, retry) => {
            let again = match retry {
                Retry::Now => Again::Now,
                Retry::After(wait) => Again::After(count(*wait)),
                Retry::Never => Again::Never,
                Retry::Unresolved => Again::Unresolved,
            };
            Phase::Broke(byte(error), again)
        }
    };
    Row {
        stamp: Time::try_from(record.stamp.0).unwrap(),
        fence: Time::try_from(record.fence.0).unwrap(),
        payload: REAL.payloads.iter().position(|known| *known == record.fingerprint).unwrap() as u8,
        attempt: u8::try_from(record.attempt).unwrap(),
        retention: count(record.retention),
        unresolved: record.unresolved_retention.map(count),
        resolved: record.resolved,
        checkpoint: record.checkpoint.as_ref().map(|bytes| bytes[0]),
        phase,
    }
}

/// Makes a real token from JSON, since only a lease or JSON yields one.
fn token(role: &Role, token: Token) -> LeaseToken {
    thread_local!(static MADE: RefCell<HashMap<(Role, Token), LeaseToken>> = RefCell::default());
    MADE.with_borrow_mut(|made| {
        let make = || {
            let place = usize::from(role.place);
            let json = serde_json::json!({
                "version": 2,
                "store": "00".repeat(16),
                "unresolved_retention": time(role.unresolved),
                "in_transaction": token.in_transaction,
                "id": REAL.ids[place],
                "owner": REAL.owners[usize::from(token.owner)],
                "fence": u64::from(token.fence),
                "attempt": token.attempt,
                "fingerprint": REAL.payloads[usize::from(role.payload)],
                "retention": time(role.retention),
                "scope": &*REAL.scopes[place],
            });
            serde_json::from_value(json).unwrap()
        };
        made.entry((*role, token)).or_insert_with(make).clone()
    })
}

fn real(recovery: Rerun) -> Recovery {
    match recovery {
        Rerun::Always => Recovery::Rerun,
        Rerun::UnlessEffect => Recovery::RerunUnlessEffect,
        Rerun::Never => Recovery::Never,
    }
}

fn resolution(settle: Settle) -> Resolution {
    match settle {
        Settle::Completed(response) => Resolution::Completed(body(response)),
        Settle::Failed(error) => Resolution::Failed(body(error)),
        Settle::Rerun => Resolution::Rerun,
    }
}

fn command(role: &Role, cmd: &Cmd) -> Command {
    let token = |small: Token| token(role, small);
    match *cmd {
        Cmd::Begin { owner, is_new } => Command::Begin(BeginParams {
            owner: REAL.owners[usize::from(owner)],
            owner_is_new: is_new,
            fingerprint: REAL.payloads[usize::from(role.payload)],
            also: None,
            lease: time(role.lease),
            retention: time(role.retention),
            response_retention: None,
            unresolved_retention: time(role.unresolved),
            recovery: real(role.recovery),
            assume_effect: role.assumes,
            max_attempts: role.max_attempts.into(),
            holder: "".into(),
            scope: REAL.scopes[usize::from(role.place)],
            key: None,
        }),
        Cmd::Resume(held) => Command::Resume(token(held)),
        Cmd::Renew(held) => Command::Renew(token(held)),
        Cmd::Checkpoint(held, left) => Command::Checkpoint(token(held), bytes(left)),
        Cmd::Mark(held) => Command::MarkEffect(token(held)),
        Cmd::Complete(held, response) => Command::Complete(token(held), body(response)),
        Cmd::Fail(held, error, again) => Command::Fail(token(held), body(error), retry(again)),
        Cmd::Release(held) => Command::Release(token(held)),
        Cmd::Resolve(fence, stamp, settle) => Command::Resolve {
            fence: Stamp(fence.into()),
            stamp: stamp.map(|stamp| Stamp(stamp.into())),
            resolution: resolution(settle),
        },
        Cmd::Amend(stamp, settle, may_rerun) => {
            let (stamp, resolution) = (Stamp(stamp.into()), resolution(settle));
            Command::Amend { stamp, resolution, may_rerun }
        }
        Cmd::Forget => Command::Forget,
    }
}

fn answer(reply: decide::Reply) -> Reply {
    match reply {
        decide::Reply::Acquired => Reply::Acquired,
        decide::Reply::Completed(response) => Reply::Completed(byte(&response)),
        decide::Reply::InProgress { lease_remaining, .. } => Reply::InProgress(count(lease_remaining)),
        decide::Reply::Failed { error, retry_after } => Reply::Failed(byte(&error), retry_after.map(count)),
        decide::Reply::Unresolved { reason, fence, .. } => {
            let why = match reason {
                Reason::EffectMarked => Why::EffectMarked,
                Reason::CrashedAttempt => Why::CrashedAttempt,
                Reason::Reported => Why::Reported,
                Reason::AttemptsExhausted => Why::AttemptsExhausted,
                _ => panic!("a reason that the model does not know"),
            };
            Reply::Unresolved(why, Time::try_from(fence.0).unwrap())
        }
        decide::Reply::Mismatch => Reply::Mismatch,
        decide::Reply::Done { .. } => Reply::Done,
        decide::Reply::LeaseLost(_) => Reply::LeaseLost,
        decide::Reply::AlreadyFinished(_) => Reply::AlreadyFinished,
        decide::Reply::NotResolvable(_) => Reply::NotResolvable,
        _ => panic!("an answer that the model does not know"),
    }
}
