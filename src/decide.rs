//! The state machine: every rule of this crate, in one pure and total function.
//!
//! ```text
//!                   begin                        complete
//!   ┌────────┐ ───────────────► ┌─────────────┐ ───────────► ┌───────────┐
//!   │ absent │                  │ in progress │              │ completed │  replayed
//!   └────────┘ ◄─────────────── └─────────────┘              └───────────┘
//!        ▲          release      │  ▲  │     ▲                     ▲
//!        │                  fail │  │  │     │ begin, when the     │ resolve
//!        │ retention over,       ▼  │  └─────┘ lease is over and   │
//!        │ forget           ┌────────┐         recovery allows     │
//!        └───────────────── │ failed │ ────────────────────────────┘
//!                           └────────┘ begin, if its `Retry` says so: in progress again
//! ```
//!
//! It does no I/O, reads no clock and draws no random number: [`Store`](crate::store::Store)s only
//! swap records by version. It can therefore be fuzzed and checked in isolation, and a backend
//! cannot get a rule wrong. Applications use [`Engine`](crate::Engine).

mod command;

use std::time::Duration;

use bytes::Bytes;

pub use self::command::{BeginParams, Command, Current, Decision, Reason, Reply, Resolution, StateKind};

pub use crate::record::Recovery;
use crate::record::{Body, Record, Retry, Stamp, State, micros};
use crate::token::LeaseToken;

/// Decides what `command` does at `now`, given the recorded state.
///
/// A record whose retention is over is treated as absent, whether or not its store has removed it.
pub fn decide(now: Stamp, record: Option<&Record>, command: &Command) -> Decision {
    let record = record.filter(|record| record.is_kept(now));
    match command {
        Command::Begin(params) => begin(now, record, params),
        Command::Resume(token) => resume(record, token),
        Command::Renew(token) => rewrite(record, token, |_| ()),
        Command::Checkpoint(token, bytes) => {
            rewrite(record, token, |next| next.checkpoint = Some(bytes.clone()))
        }
        Command::MarkEffect(token) => rewrite(record, token, |next| {
            if let State::InProgress { effect, .. } = &mut next.state {
                *effect = true;
            }
            next.unresolved_retention = Some(whole_micros(token.unresolved_retention));
        }),
        Command::Complete(token, response) => finish(record, token, State::Completed(response.clone())),
        Command::Fail(token, error, retry) => {
            let retry = match retry {
                Retry::After(wait) => Retry::After(whole_micros(*wait)),
                Retry::Now | Retry::Never | Retry::Unresolved => *retry,
            };
            finish(record, token, State::Failed(error.clone(), retry))
        }
        Command::Release(token) => release(record, token),
        Command::Resolve { fence, stamp, resolution } => resolve(now, record, *fence, *stamp, resolution),
        Command::Amend { stamp, resolution, may_rerun } => amend(record, *stamp, resolution, *may_rerun),
        Command::Forget => {
            let reply = Reply::Done { existed: record.is_some() };
            if record.is_some() { Decision::Write { next: None, reply } } else { Decision::Reply(reply) }
        }
        Command::DropResponse => drop_response(now, record),
    }
}

/// Decides anew after a swap found this record instead of the expected one. If the swap was to
/// remove the record and there is none, it counts as done: most likely an earlier try removed it
/// and its answer was lost. Other writes whose answer was lost are recognised by [`decide`], from
/// the record.
pub(crate) fn decide_again(
    now: Stamp,
    record: Option<&Record>,
    command: &Command,
    was_removal: bool,
) -> Decision {
    if was_removal && record.is_none() {
        return Decision::Reply(Reply::Done { existed: true });
    }
    decide(now, record, command)
}

fn begin(now: Stamp, record: Option<&Record>, params: &BeginParams) -> Decision {
    let Some(record) = record else {
        return grant(params, 1, None, Traces { effect: false, takeover: false });
    };
    if !params.accepts(&record.fingerprint) {
        return Decision::Reply(Reply::Mismatch);
    }
    match &record.state {
        State::InProgress { owner, effect, takeover, recovery, .. } => {
            let lease_remaining = record.blocked_for(now);
            // The owner's own grant, with nothing written since: its answer may have been lost. An
            // owner kept over a restart may have acted on a grant that marks the effect.
            let unacted = params.owner_is_new || !*effect || *recovery == Recovery::Rerun;
            let is_own = *owner == params.owner && record.stamp == record.fence && unacted;
            if !lease_remaining.is_zero() {
                let (retry_after, attempt) = (retry_hint(lease_remaining), record.attempt);
                let busy = Reply::InProgress { retry_after, lease_remaining, attempt };
                return Decision::Reply(if is_own { Reply::Acquired } else { busy });
            }
            if is_own && params.owner_is_new {
                let traces = Traces { effect: *effect, takeover: *takeover };
                return grant(params, record.attempt, record.checkpoint.clone(), traces);
            }
            match crash(params.recovery, *effect) {
                Some(reason) => unresolved(now, record, reason),
                None => rerun(now, record, params, Traces { effect: *effect, takeover: true }),
            }
        }
        State::Completed(response) if record.is_response_over(now) => {
            Decision::Reply(Reply::Completed(response.without_bytes()))
        }
        State::Completed(_) => Decision::Replay,
        State::Failed(error, Retry::Never) => {
            Decision::Reply(Reply::Failed { error: shown(now, record, error), retry_after: None })
        }
        State::Failed(error, Retry::After(_)) if record.is_blocked(now) => {
            let retry_after = Some(record.blocked_for(now));
            Decision::Reply(Reply::Failed { error: shown(now, record, error), retry_after })
        }
        State::Failed(_, Retry::Now | Retry::After(_)) => {
            rerun(now, record, params, Traces { effect: false, takeover: false })
        }
        State::Failed(_, Retry::Unresolved) => unresolved(now, record, Reason::Reported),
    }
}

/// Returns the reason why an attempt whose lease expired is not executed again under `recovery`;
/// `None` if it may be.
fn crash(recovery: Recovery, effect: bool) -> Option<Reason> {
    match recovery {
        Recovery::Never => Some(Reason::CrashedAttempt),
        Recovery::RerunUnlessEffect if effect => Some(Reason::EffectMarked),
        Recovery::Rerun | Recovery::RerunUnlessEffect => None,
    }
}

/// Returns how long a caller should wait before it retries an operation in progress: an eighth of
/// the remaining lease, in whole seconds from 1 to 30. The outcome usually arrives long before the
/// lease ends, and a lease that is renewed does not predict when.
fn retry_hint(lease_remaining: Duration) -> Duration {
    let eighth = lease_remaining / 8;
    Duration::from_secs((eighth.as_secs() + u64::from(eighth.subsec_millis() > 0)).clamp(1, 30))
}

/// Returns the recorded error, without its bytes once they have expired.
fn shown(now: Stamp, record: &Record, error: &Body) -> Body {
    if record.is_response_over(now) { error.without_bytes() } else { error.clone() }
}

/// Rounds to what stores can keep, so that a record is the same before and after it is stored.
fn whole_micros(time: Duration) -> Duration {
    Duration::from_micros(micros(time))
}

/// Returns true if no holder is working on the operation and it is not settled either: the lease of
/// an attempt expired, or the attempt failed without knowing whether its effect happened, or the
/// operation could be executed again and was not. These are the operations that operators look for.
pub fn is_unfinished(now: Stamp, record: &Record) -> bool {
    record.is_kept(now)
        && match &record.state {
            State::InProgress { .. } | State::Failed(_, Retry::After(_)) => !record.is_blocked(now),
            State::Failed(_, Retry::Now | Retry::Unresolved) => true,
            State::Completed(_) | State::Failed(_, Retry::Never) => false,
        }
}

/// Returns the reason that a begin under `recovery` and `max_attempts` would give for an unresolved
/// operation; `None` if the begin would not answer so.
pub fn unresolved_reason(
    now: Stamp,
    record: &Record,
    recovery: Recovery,
    max_attempts: u32,
) -> Option<Reason> {
    let used_up = (record.attempt >= max_attempts).then_some(Reason::AttemptsExhausted);
    match &record.state {
        _ if !is_unfinished(now, record) => None,
        State::InProgress { effect, .. } => crash(recovery, *effect).or(used_up),
        State::Failed(_, Retry::Unresolved) => Some(Reason::Reported),
        State::Failed(_, Retry::Now | Retry::After(_) | Retry::Never) => used_up,
        State::Completed(_) => None,
    }
}

/// Marks that an earlier attempt may have left behind.
struct Traces {
    /// The effect may have happened. It stays marked, since the next attempt may crash as well.
    effect: bool,
    /// The lease of the attempt expired.
    takeover: bool,
}

fn rerun(now: Stamp, record: &Record, params: &BeginParams, traces: Traces) -> Decision {
    if record.attempt >= params.max_attempts {
        return unresolved(now, record, Reason::AttemptsExhausted);
    }
    grant(params, record.attempt.saturating_add(1), record.checkpoint.clone(), traces)
}

fn grant(params: &BeginParams, attempt: u32, checkpoint: Option<Bytes>, traces: Traces) -> Decision {
    let effect = traces.effect || params.assume_effect;
    let next = Box::new(Record {
        stamp: Stamp::ZERO,
        fence: Stamp::ZERO,
        fingerprint: params.fingerprint,
        attempt,
        retention: whole_micros(params.retention),
        response_retention: params.response_retention.map(whole_micros),
        unresolved_retention: effect.then(|| whole_micros(params.unresolved_retention)),
        scope: params.scope,
        key: params.key.clone(),
        checkpoint,
        resolved: false,
        extra: None,
        state: State::InProgress {
            owner: params.owner,
            lease: whole_micros(params.lease),
            effect,
            takeover: traces.takeover,
            recovery: params.recovery,
            holder: params.holder,
        },
    });
    Decision::Write { next: Some(next), reply: Reply::Acquired }
}

fn unresolved(now: Stamp, record: &Record, reason: Reason) -> Decision {
    let error = match &record.state {
        State::Failed(error, _) => Some(shown(now, record, error)),
        State::InProgress { .. } | State::Completed(_) => None,
    };
    Decision::Reply(Reply::Unresolved {
        reason,
        fence: record.fence,
        attempt: record.attempt,
        error,
        checkpoint: record.checkpoint.clone(),
    })
}

/// Drops the record's response or error. The record's deadline stays the same.
fn drop_response(now: Stamp, record: Option<&Record>) -> Decision {
    let nothing = Decision::Reply(Reply::Done { existed: false });
    let Some(record) = record.filter(|record| record.is_response_over(now)) else { return nothing };
    let mut wait = Duration::ZERO;
    let state = match &record.state {
        State::Completed(response) if !response.is_omitted() => State::Completed(response.without_bytes()),
        State::Failed(error, retry) if !error.is_omitted() => {
            let retry = match retry {
                Retry::After(_) => {
                    wait = record.blocked_for(now);
                    Retry::After(wait)
                }
                Retry::Now | Retry::Never | Retry::Unresolved => *retry,
            };
            State::Failed(error.without_bytes(), retry)
        }
        State::Completed(_) | State::Failed(..) | State::InProgress { .. } => return nothing,
    };
    let left = record.deadline().since(now).saturating_sub(wait);
    let next = Box::new(Record {
        retention: left,
        response_retention: None,
        unresolved_retention: record.unresolved_retention.map(|kept| kept.min(left)),
        state,
        ..record.clone()
    });
    Decision::Write { next: Some(next), reply: Reply::Done { existed: true } }
}

/// The relation of a record to a token.
enum Standing<'a> {
    /// There is no record.
    Absent,
    /// In progress by the token's grant.
    Held(&'a Record),
    /// Finished by the token's grant.
    Finished(&'a Record),
    /// Anything else.
    Foreign,
}

fn standing<'a>(record: Option<&'a Record>, token: &LeaseToken) -> Standing<'a> {
    let Some(record) = record else { return Standing::Absent };
    match &record.state {
        _ if record.fence != token.fence || record.fingerprint != token.fingerprint => Standing::Foreign,
        State::InProgress { owner, .. } if *owner == token.owner => Standing::Held(record),
        State::InProgress { .. } => Standing::Foreign,
        // An operator ordered a rerun: the grant no longer counts.
        State::Completed(_) | State::Failed(..) if record.attempt == 0 => Standing::Foreign,
        // A key's fences never repeat, so the fence alone identifies the grant that finished it.
        State::Completed(_) | State::Failed(..) => Standing::Finished(record),
    }
}

fn lost(record: Option<&Record>) -> Decision {
    Decision::Reply(Reply::LeaseLost(Current::of(record)))
}

fn resume(record: Option<&Record>, token: &LeaseToken) -> Decision {
    match standing(record, token) {
        Standing::Held(_) | Standing::Finished(_) => Decision::Reply(Reply::Done { existed: true }),
        Standing::Absent if !token.origin.in_transaction => Decision::Reply(Reply::Done { existed: false }),
        Standing::Absent | Standing::Foreign => lost(record),
    }
}

fn rewrite(record: Option<&Record>, token: &LeaseToken, change: impl FnOnce(&mut Record)) -> Decision {
    match standing(record, token) {
        Standing::Held(held) => {
            let mut next = Box::new(held.clone());
            change(&mut next);
            Decision::Write { next: Some(next), reply: Reply::Done { existed: true } }
        }
        Standing::Absent | Standing::Finished(_) | Standing::Foreign => lost(record),
    }
}

fn finish(record: Option<&Record>, token: &LeaseToken, outcome: State) -> Decision {
    let (checkpoint, existed) = match standing(record, token) {
        Standing::Held(held) => (held.checkpoint.clone().filter(|_| !is_final(&outcome)), true),
        // The work is done all the same: a duplicate must not do it again. A grant that was made in
        // a transaction and is absent was rolled back, and the work with it.
        Standing::Absent if !token.origin.in_transaction => (None, false),
        Standing::Absent => return lost(record),
        Standing::Finished(finished) if is_same(&finished.state, &outcome) => {
            return Decision::Reply(Reply::Done { existed: true });
        }
        Standing::Finished(_) => return Decision::Reply(Reply::AlreadyFinished(Current::of(record))),
        Standing::Foreign => return lost(record),
    };
    let extra = record.and_then(|record| record.extra.clone());
    let next = Box::new(Record {
        stamp: Stamp::ZERO,
        fence: token.fence,
        fingerprint: token.fingerprint,
        attempt: token.attempt,
        retention: token.retention,
        response_retention: token.response_retention,
        unresolved_retention: is_unresolved(&outcome).then(|| whole_micros(token.unresolved_retention)),
        scope: token.scope,
        key: token.key.clone(),
        checkpoint,
        resolved: false,
        extra,
        state: outcome,
    });
    Decision::Write { next: Some(next), reply: Reply::Done { existed } }
}

/// Returns true if two outcomes are the same. A repetition may come from an engine with a larger
/// limit on responses.
fn is_same(recorded: &State, outcome: &State) -> bool {
    match (recorded, outcome) {
        (State::Completed(one), State::Completed(other)) => one.is_same(other),
        (State::Failed(one, retry), State::Failed(other, again)) => {
            // Dropping the bytes of an error restarts the time of a retry.
            let after = |retry: &Retry| matches!(retry, Retry::After(_));
            one.is_same(other) && (retry == again || one.is_omitted() && after(retry) && after(again))
        }
        (State::InProgress { .. } | State::Completed(_) | State::Failed(..), _) => false,
    }
}

fn is_final(outcome: &State) -> bool {
    match outcome {
        State::Completed(_) | State::Failed(_, Retry::Never) => true,
        State::Failed(_, Retry::Now | Retry::After(_) | Retry::Unresolved) | State::InProgress { .. } => {
            false
        }
    }
}

fn is_unresolved(outcome: &State) -> bool {
    matches!(outcome, State::Failed(_, Retry::Unresolved))
}

fn release(record: Option<&Record>, token: &LeaseToken) -> Decision {
    match standing(record, token) {
        Standing::Held(_) => Decision::Write { next: None, reply: Reply::Done { existed: true } },
        Standing::Absent => Decision::Reply(Reply::Done { existed: false }),
        Standing::Finished(_) | Standing::Foreign => lost(record),
    }
}

/// Settles an unresolved operation. The fence says that it was not executed since it was shown. A
/// record changes under its fence too (a holder renews, marks or fails, another operator settles),
/// which only the stamp says.
fn resolve(
    now: Stamp,
    record: Option<&Record>,
    fence: Stamp,
    stamp: Option<Stamp>,
    resolution: &Resolution,
) -> Decision {
    let refused = Decision::Reply(Reply::NotResolvable(Current::of(record)));
    let Some(record) = record.filter(|record| record.fence == fence) else { return refused };
    let settled = match &record.state {
        State::InProgress { .. } => record.is_blocked(now),
        State::Completed(_) | State::Failed(_, Retry::Never) => true,
        State::Failed(_, Retry::Now | Retry::After(_) | Retry::Unresolved) => false,
    };
    let (reply, next) = (Reply::Done { existed: true }, settle(record, resolution));
    if *next == *record || settled && is_same(&record.state, &next.state) {
        Decision::Reply(reply)
    } else if settled || stamp.is_some_and(|shown| shown != record.stamp) {
        refused
    } else {
        Decision::Write { next: Some(next), reply }
    }
}

/// Corrects an operator's resolution. Repeated calls may get different answers before and after.
fn amend(record: Option<&Record>, stamp: Stamp, resolution: &Resolution, may_rerun: bool) -> Decision {
    let refused = Decision::Reply(Reply::NotResolvable(Current::of(record)));
    let Some(record) = record.filter(|record| record.resolved) else { return refused };
    let (reply, next) = (Reply::Done { existed: true }, settle(record, resolution));
    if *resolution == Resolution::Rerun && !may_rerun {
        refused
    } else if *next == *record || is_same(&record.state, &next.state) {
        Decision::Reply(reply)
    } else if record.stamp == stamp {
        Decision::Write { next: Some(next), reply }
    } else {
        refused
    }
}

/// Returns the record as the operator's resolution leaves it.
fn settle(record: &Record, resolution: &Resolution) -> Box<Record> {
    let mut next = Box::new(record.clone());
    (next.resolved, next.unresolved_retention) = (true, None);
    next.state = match resolution {
        Resolution::Completed(response) => State::Completed(response.clone()),
        Resolution::Failed(error) => State::Failed(error.clone(), Retry::Never),
        Resolution::Rerun => {
            next.attempt = 0;
            let error = match &record.state {
                State::Failed(error, _) => error.clone(),
                State::InProgress { .. } | State::Completed(_) => Body::kept(Bytes::new()),
            };
            State::Failed(error, Retry::Now)
        }
    };
    if is_final(&next.state) {
        next.checkpoint = None;
    }
    next
}
