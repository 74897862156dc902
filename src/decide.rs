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
//! It does no I/O, reads no clock and draws no random number: [`Store`](crate::Store)s only swap records by version. So it can be
//! fuzzed and checked alone, and a backend cannot get a rule wrong. Applications use [`Engine`](crate::Engine).

mod command;

use std::time::Duration;

use bytes::Bytes;

pub use self::command::{Ask, Command, Current, Decision, Reason, Reply, Resolution, StateKind};

use crate::policy::{Recovery, Retry};
use crate::record::{Body, Record, Stamp, State, micros};
use crate::token::LeaseToken;

/// What is to be done about `command` at `now`, given what is recorded.
///
/// A record whose retention is over is treated as absent, whether or not its store has removed it.
pub fn decide(now: Stamp, record: Option<&Record>, command: &Command) -> Decision {
    rule(now, record, command).unwrap_or_else(|| replay(record.map(|record| record.state.clone())))
}

/// The same about a record that is of no other use: a response is taken out of it, which is cheaper than a copy.
pub(crate) fn decide_last(now: Stamp, record: &mut Option<Box<Record>>, command: &Command) -> Decision {
    let decision = rule(now, record.as_deref(), command);
    decision.unwrap_or_else(|| replay(record.take().map(|record| record.state)))
}

fn replay(state: Option<State>) -> Decision {
    match state {
        Some(State::Completed(response)) => Decision::Reply(Reply::Completed(response)),
        Some(State::InProgress { .. } | State::Failed(..)) | None => {
            unreachable!("only what is completed is replayed")
        }
    }
}

/// `None`: the recorded response is the answer, as it is.
fn rule(now: Stamp, record: Option<&Record>, command: &Command) -> Option<Decision> {
    let record = record.filter(|record| record.is_kept(now));
    Some(match command {
        Command::Begin(ask) => return begin(now, record, ask),
        Command::Resume(token) => resume(record, token),
        Command::Renew(token) => rewrite(record, token, |_| ()),
        Command::Checkpoint(token, bytes) => {
            rewrite(record, token, |next| next.checkpoint = Some(bytes.clone()))
        }
        Command::MarkEffect(token) => rewrite(record, token, |next| {
            if let State::InProgress { effect, .. } = &mut next.state {
                *effect = true;
            }
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
        Command::Resolve(fence, resolution) => resolve(now, record, *fence, resolution),
        Command::Forget => {
            let reply = Reply::Done { existed: record.is_some() };
            if record.is_some() { Decision::Write { next: None, reply } } else { Decision::Reply(reply) }
        }
        Command::DropResponse => drop_response(now, record),
    })
}

fn begin(now: Stamp, record: Option<&Record>, ask: &Ask) -> Option<Decision> {
    let Some(record) = record else {
        return Some(grant(ask, 1, None, Traces { effect: false, takeover: false }));
    };
    if record.fingerprint != ask.fingerprint {
        return Some(Decision::Reply(Reply::Mismatch));
    }
    Some(match &record.state {
        // A begin whose answer was lost. Once an effect is marked it was not lost, and once the lease is over as well,
        // it is a crash like any other.
        State::InProgress { owner, lease, effect, .. }
            if *owner == ask.owner && (!effect || now < record.stamp.after(*lease)) =>
        {
            Decision::Reply(Reply::Acquired)
        }
        State::InProgress { lease, effect, .. } => {
            let retry_after = record.stamp.after(*lease).since(now);
            if !retry_after.is_zero() {
                return Some(Decision::Reply(Reply::InProgress { retry_after, attempt: record.attempt }));
            }
            match ask.recovery {
                Recovery::Never => unresolved(record, Reason::CrashedAttempt),
                Recovery::RerunUnlessEffect if *effect => unresolved(record, Reason::EffectMarked),
                Recovery::Rerun | Recovery::RerunUnlessEffect => {
                    rerun(record, ask, Traces { effect: *effect, takeover: true })
                }
            }
        }
        State::Completed(response) if record.is_response_over(now) => {
            Decision::Reply(Reply::Completed(response.without_bytes()))
        }
        State::Completed(_) => return None,
        State::Failed(error, Retry::Never) => {
            Decision::Reply(Reply::Failed { error: error.clone(), retry_after: None })
        }
        State::Failed(error, Retry::After(wait)) if !record.stamp.after(*wait).since(now).is_zero() => {
            let retry_after = Some(record.stamp.after(*wait).since(now));
            Decision::Reply(Reply::Failed { error: error.clone(), retry_after })
        }
        State::Failed(_, Retry::Now | Retry::After(_)) => {
            rerun(record, ask, Traces { effect: false, takeover: false })
        }
        State::Failed(_, Retry::Unresolved) => unresolved(record, Reason::Reported),
    })
}

/// What stores can keep, so that a record is the same before and after it was stored.
fn whole_micros(time: Duration) -> Duration {
    Duration::from_micros(micros(time))
}

/// Whether nobody is at work on the operation and it is not settled either: an attempt ran out of its lease, or failed
/// without knowing whether its effect happened, or could be executed again and was not. What operators look for.
pub fn is_unfinished(now: Stamp, record: &Record) -> bool {
    record.is_kept(now)
        && match &record.state {
            State::InProgress { lease, .. } => now >= record.stamp.after(*lease),
            State::Failed(_, Retry::After(wait)) => now >= record.stamp.after(*wait),
            State::Failed(_, Retry::Now | Retry::Unresolved) => true,
            State::Completed(_) | State::Failed(_, Retry::Never) => false,
        }
}

/// What an earlier attempt may have left behind.
struct Traces {
    /// The effect may have happened. It stays marked: the next attempt may crash as well.
    effect: bool,
    /// The attempt ran out of its lease.
    takeover: bool,
}

fn rerun(record: &Record, ask: &Ask, traces: Traces) -> Decision {
    if record.attempt >= ask.max_attempts {
        return unresolved(record, Reason::AttemptsExhausted);
    }
    grant(ask, record.attempt.saturating_add(1), record.checkpoint.clone(), traces)
}

fn grant(ask: &Ask, attempt: u32, checkpoint: Option<Bytes>, traces: Traces) -> Decision {
    let next = Box::new(Record {
        stamp: Stamp::ZERO,
        fence: Stamp::ZERO,
        fingerprint: ask.fingerprint,
        attempt,
        retention: whole_micros(ask.retention),
        response_retention: ask.response_retention.map(whole_micros),
        scope: ask.scope,
        key: ask.key.clone(),
        checkpoint,
        state: State::InProgress {
            owner: ask.owner,
            lease: whole_micros(ask.lease),
            effect: traces.effect,
            takeover: traces.takeover,
            holder: ask.holder,
        },
    });
    Decision::Write { next: Some(next), reply: Reply::Acquired }
}

fn unresolved(record: &Record, reason: Reason) -> Decision {
    let error = match &record.state {
        State::Failed(error, _) => Some(error.clone()),
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

/// The record without its response, for as long as it was to be kept anyway.
fn drop_response(now: Stamp, record: Option<&Record>) -> Decision {
    let over = record.filter(|record| record.is_response_over(now));
    match over.map(|record| (record, &record.state)) {
        Some((record, State::Completed(response @ Body::Kept(_)))) => {
            let mut next = Box::new(record.clone());
            next.state = State::Completed(response.without_bytes());
            next.retention = record.deadline().since(now);
            next.response_retention = None;
            Decision::Write { next: Some(next), reply: Reply::Done { existed: true } }
        }
        Some((_, State::Completed(Body::Omitted { .. }) | State::Failed(..) | State::InProgress { .. }))
        | None => Decision::Reply(Reply::Done { existed: false }),
    }
}

/// How a record stands to a token.
enum Standing<'a> {
    /// There is none.
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
        // An operator ordered a rerun: the grant counts no more.
        State::Completed(_) | State::Failed(..) if record.attempt == 0 => Standing::Foreign,
        // A key's fences never repeat, so the fence alone names the grant that finished it.
        State::Completed(_) | State::Failed(..) => Standing::Finished(record),
    }
}

fn lost(record: Option<&Record>) -> Decision {
    Decision::Reply(Reply::LeaseLost(Current::of(record)))
}

fn resume(record: Option<&Record>, token: &LeaseToken) -> Decision {
    match standing(record, token) {
        Standing::Held(_) | Standing::Finished(_) => Decision::Reply(Reply::Done { existed: true }),
        Standing::Absent => Decision::Reply(Reply::Done { existed: false }),
        Standing::Foreign => lost(record),
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
        // The work is done all the same: a duplicate must not do it again.
        Standing::Absent => (None, false),
        Standing::Finished(finished) if is_same(&finished.state, &outcome) => {
            return Decision::Reply(Reply::Done { existed: true });
        }
        Standing::Finished(_) => return Decision::Reply(Reply::AlreadyFinished(Current::of(record))),
        Standing::Foreign => return lost(record),
    };
    let next = Box::new(Record {
        stamp: Stamp::ZERO,
        fence: token.fence,
        fingerprint: token.fingerprint,
        attempt: token.attempt,
        retention: token.retention,
        response_retention: token.response_retention,
        scope: token.scope,
        key: token.key.clone(),
        checkpoint,
        state: outcome,
    });
    Decision::Write { next: Some(next), reply: Reply::Done { existed } }
}

/// Whether two outcomes are one: a repetition may come from an engine that keeps longer responses.
fn is_same(recorded: &State, outcome: &State) -> bool {
    match (recorded, outcome) {
        (State::Completed(one), State::Completed(other)) => one.is_same(other),
        (State::Failed(one, retry), State::Failed(other, again)) => one.is_same(other) && retry == again,
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

fn release(record: Option<&Record>, token: &LeaseToken) -> Decision {
    match standing(record, token) {
        Standing::Held(_) => Decision::Write { next: None, reply: Reply::Done { existed: true } },
        Standing::Absent => Decision::Reply(Reply::Done { existed: false }),
        Standing::Finished(_) | Standing::Foreign => lost(record),
    }
}

fn resolve(now: Stamp, record: Option<&Record>, fence: Stamp, resolution: &Resolution) -> Decision {
    let refused = Decision::Reply(Reply::NotResolvable(Current::of(record)));
    let Some(record) = record.filter(|record| record.fence == fence) else { return refused };
    let mut next = Box::new(record.clone());
    next.state = match resolution {
        Resolution::Completed(response) => State::Completed(response.clone()),
        Resolution::Failed(error) => State::Failed(error.clone(), Retry::Never),
        Resolution::Rerun => {
            next.attempt = 0;
            let error = match &record.state {
                State::Failed(error, _) => error.clone(),
                State::InProgress { .. } | State::Completed(_) => Body::Kept(Bytes::new()),
            };
            State::Failed(error, Retry::Now)
        }
    };
    if is_final(&next.state) {
        next.checkpoint = None;
    }
    let settled = match &record.state {
        State::InProgress { lease, .. } => now < record.stamp.after(*lease),
        State::Completed(_) | State::Failed(_, Retry::Never) => true,
        State::Failed(_, Retry::Now | Retry::After(_) | Retry::Unresolved) => false,
    };
    let reply = Reply::Done { existed: true };
    if *next == *record || settled && is_same(&record.state, &next.state) {
        Decision::Reply(reply)
    } else if settled {
        refused
    } else {
        Decision::Write { next: Some(next), reply }
    }
}
