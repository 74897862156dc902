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

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::error::Error;
use crate::fingerprint::Fingerprint;
use crate::lease::{LeaseToken, Owner};
use crate::policy::{Recovery, Retry};
use crate::record::{Body, Record, Stamp, State, micros};

/// What somebody wants of a key. `Debug` shows no content.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Command {
    /// The right to execute, or what became of it.
    Begin(Ask),
    /// To go on with a grant in another process.
    Resume(LeaseToken),
    /// The lease from now on.
    Renew(LeaseToken),
    /// Bytes kept for the next attempt.
    Checkpoint(LeaseToken, Bytes),
    /// A mark that the effect may have happened.
    MarkEffect(LeaseToken),
    /// The outcome: done.
    Complete(LeaseToken, Body),
    /// The outcome: failed.
    Fail(LeaseToken, Body, Retry),
    /// As if it never began.
    Release(LeaseToken),
    /// An operator's word on an unresolved operation, if its fence still is this one.
    Resolve(Stamp, Resolution),
    /// An operator's word to remove whatever there is.
    Forget,
    /// Frees the room of a response that is no longer given out.
    DropResponse,
}

/// The particulars of a begin. `Debug` shows no key.
#[derive(Clone, PartialEq, Eq)]
pub struct Ask {
    /// Who asks.
    pub owner: Owner,
    /// What for.
    pub fingerprint: Fingerprint,
    /// How long a grant is to hold.
    pub lease: Duration,
    /// How long the record is to be kept.
    pub retention: Duration,
    /// How long its response is to be kept, if not as long as the record.
    pub response_retention: Option<Duration>,
    /// What may be done about a crashed attempt.
    pub recovery: Recovery,
    /// How many attempts there may be.
    pub max_attempts: u32,
    /// What the asker calls itself, for operators.
    pub holder: Box<str>,
    /// The label of the scope, for operators.
    pub scope: Box<str>,
    /// The key, where the policy lets stores see it.
    pub key: Option<Box<str>>,
}

/// How an operator settles an unresolved operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    /// It was done, with this response.
    Completed(Body),
    /// It failed for good, with this error.
    Failed(Body),
    /// It had no effect: the next begin executes, and attempts are counted from 1 again.
    Rerun,
}

/// What is to be done about a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing changes, and this is the answer.
    Reply(Reply),
    /// The record becomes `next` (`None`: it is removed); once that is done, `reply` is the answer.
    Write {
        /// What takes the place of the record that was decided on.
        next: Option<Record>,
        /// The answer.
        reply: Reply,
    },
}

/// The answer to a command. `Debug` shows no content.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// The asker holds the lease that the record now shows.
    Acquired,
    /// It was done.
    Completed(Body),
    /// Somebody else is at it.
    InProgress {
        /// How long their lease still runs.
        retry_after: Duration,
        /// Which execution theirs is.
        attempt: u32,
    },
    /// It failed.
    Failed {
        /// The recorded error.
        error: Body,
        /// When a begin may execute again; `None`: never.
        retry_after: Option<Duration>,
    },
    /// The effect may have happened, or attempts are used up: somebody has to look.
    Unresolved {
        /// Why nobody may execute.
        reason: Reason,
        /// What to pass to [`Command::Resolve`].
        fence: Stamp,
        /// Which execution was the last.
        attempt: u32,
        /// The error recorded by it, if any.
        error: Option<Body>,
        /// What it left for the next.
        checkpoint: Option<Bytes>,
    },
    /// The key was used for another request.
    Mismatch,
    /// The command has been carried out, now or before.
    Done {
        /// Whether there was a record when it was.
        existed: bool,
    },
    /// The token's grant is not, or no longer, what the record shows.
    LeaseLost(Current),
    /// The token's grant was finished with another outcome, which stands.
    AlreadyFinished(Current),
    /// There is nothing to resolve, or not under this fence.
    NotResolvable(Current),
}

/// Why a key is unresolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// An attempt ran out of its lease after it had marked its effect.
    EffectMarked,
    /// An attempt ran out of its lease, and the policy lets no crashed attempt be rerun.
    CrashedAttempt,
    /// An attempt failed and said that its effect may have happened.
    Reported,
    /// Every attempt that the policy allows was made.
    AttemptsExhausted,
}

/// What a key shows at present, without any of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Current {
    /// Its state.
    pub state: StateKind,
    /// The fence of its latest grant; zero if absent.
    pub fence: Stamp,
    /// Which execution that was; zero if absent.
    pub attempt: u32,
}

/// The name of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StateKind {
    /// There is no record, or its retention is over.
    Absent,
    /// Somebody has, or had, a lease.
    InProgress,
    /// Done.
    Completed,
    /// Failed.
    Failed,
}

impl Reply {
    /// The answer to a command that is either carried out or refused.
    pub(crate) fn into_done(self) -> Result<(), Error> {
        match self {
            Reply::Done { .. } => Ok(()),
            Reply::LeaseLost(current) => Err(Error::LeaseLost { current }),
            Reply::AlreadyFinished(current) => Err(Error::AlreadyFinished { current }),
            Reply::NotResolvable(current) => Err(Error::NotResolvable { current }),
            // Only a begin is answered so; should another command be, it was not carried out.
            Reply::Acquired
            | Reply::Completed(_)
            | Reply::InProgress { .. }
            | Reply::Failed { .. }
            | Reply::Unresolved { .. }
            | Reply::Mismatch => Err(Error::LeaseLost { current: Current::of(None) }),
        }
    }
}

impl Current {
    fn of(record: Option<&Record>) -> Current {
        record.map_or(Current { state: StateKind::Absent, fence: Stamp::ZERO, attempt: 0 }, |record| {
            let state = match &record.state {
                State::InProgress { .. } => StateKind::InProgress,
                State::Completed(_) => StateKind::Completed,
                State::Failed(..) => StateKind::Failed,
            };
            Current { state, fence: record.fence, attempt: record.attempt }
        })
    }
}

/// What is to be done about `command` at `now`, given what is recorded.
///
/// A record whose retention is over is treated as absent, whether or not its store has removed it.
pub fn decide(now: Stamp, record: Option<&Record>, command: &Command) -> Decision {
    let record = record.filter(|record| record.is_kept(now));
    match command {
        Command::Begin(ask) => begin(now, record, ask),
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
    }
}

fn begin(now: Stamp, record: Option<&Record>, ask: &Ask) -> Decision {
    let Some(record) = record else {
        return grant(ask, 1, None, Traces { effect: false, takeover: false });
    };
    if record.fingerprint != ask.fingerprint {
        return Decision::Reply(Reply::Mismatch);
    }
    match &record.state {
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
                return Decision::Reply(Reply::InProgress { retry_after, attempt: record.attempt });
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
        State::Completed(response) => Decision::Reply(Reply::Completed(response.clone())),
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
    }
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
    let next = Record {
        stamp: Stamp::ZERO,
        fence: Stamp::ZERO,
        fingerprint: ask.fingerprint,
        attempt,
        retention: whole_micros(ask.retention),
        response_retention: ask.response_retention.map(whole_micros),
        scope: ask.scope.clone(),
        key: ask.key.clone(),
        checkpoint,
        state: State::InProgress {
            owner: ask.owner,
            lease: whole_micros(ask.lease),
            effect: traces.effect,
            takeover: traces.takeover,
            holder: ask.holder.clone(),
        },
    };
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
            let mut next = record.clone();
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
            let mut next = held.clone();
            change(&mut next);
            Decision::Write { next: Some(next), reply: Reply::Done { existed: true } }
        }
        Standing::Absent | Standing::Finished(_) | Standing::Foreign => lost(record),
    }
}

fn finish(record: Option<&Record>, token: &LeaseToken, outcome: State) -> Decision {
    let next = |checkpoint: Option<Bytes>| Record {
        stamp: Stamp::ZERO,
        fence: token.fence,
        fingerprint: token.fingerprint,
        attempt: token.attempt,
        retention: token.retention,
        response_retention: token.response_retention,
        scope: token.scope.clone(),
        key: token.key.clone(),
        checkpoint,
        state: outcome.clone(),
    };
    match standing(record, token) {
        Standing::Held(held) => {
            let checkpoint = if is_final(&outcome) { None } else { held.checkpoint.clone() };
            Decision::Write { next: Some(next(checkpoint)), reply: Reply::Done { existed: true } }
        }
        // The work is done all the same: a duplicate must not do it again.
        Standing::Absent => Decision::Write { next: Some(next(None)), reply: Reply::Done { existed: false } },
        Standing::Finished(finished) if is_same(&finished.state, &outcome) => {
            Decision::Reply(Reply::Done { existed: true })
        }
        Standing::Finished(_) => Decision::Reply(Reply::AlreadyFinished(Current::of(record))),
        Standing::Foreign => lost(record),
    }
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
    let mut next = record.clone();
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
    if next == *record || settled && is_same(&record.state, &next.state) {
        Decision::Reply(reply)
    } else if settled {
        refused
    } else {
        Decision::Write { next: Some(next), reply }
    }
}

/// Bytes that must not show.
struct Hidden<'a>(&'a Bytes);

impl fmt::Debug for Hidden<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Begin(ask) => f.debug_tuple("Begin").field(ask).finish(),
            Command::Resume(token) => f.debug_tuple("Resume").field(token).finish(),
            Command::Renew(token) => f.debug_tuple("Renew").field(token).finish(),
            Command::Checkpoint(token, bytes) => {
                f.debug_tuple("Checkpoint").field(token).field(&Hidden(bytes)).finish()
            }
            Command::MarkEffect(token) => f.debug_tuple("MarkEffect").field(token).finish(),
            Command::Complete(token, body) => f.debug_tuple("Complete").field(token).field(body).finish(),
            Command::Fail(token, body, retry) => {
                f.debug_tuple("Fail").field(token).field(body).field(retry).finish()
            }
            Command::Release(token) => f.debug_tuple("Release").field(token).finish(),
            Command::Resolve(fence, resolution) => {
                f.debug_tuple("Resolve").field(fence).field(resolution).finish()
            }
            Command::Forget => f.write_str("Forget"),
            Command::DropResponse => f.write_str("DropResponse"),
        }
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ask")
            .field("fingerprint", &self.fingerprint)
            .field("lease", &self.lease)
            .field("retention", &self.retention)
            .field("recovery", &self.recovery)
            .field("max_attempts", &self.max_attempts)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Acquired => f.write_str("Acquired"),
            Reply::Completed(body) => f.debug_tuple("Completed").field(body).finish(),
            Reply::InProgress { retry_after, attempt } => f
                .debug_struct("InProgress")
                .field("retry_after", retry_after)
                .field("attempt", attempt)
                .finish(),
            Reply::Failed { error, retry_after } => {
                f.debug_struct("Failed").field("error", error).field("retry_after", retry_after).finish()
            }
            Reply::Unresolved { reason, fence, attempt, error, checkpoint } => f
                .debug_struct("Unresolved")
                .field("reason", reason)
                .field("fence", &fence.0)
                .field("attempt", attempt)
                .field("error", error)
                .field("checkpoint", &checkpoint.as_ref().map(Hidden))
                .finish(),
            Reply::Mismatch => f.write_str("Mismatch"),
            Reply::Done { existed } => f.debug_struct("Done").field("existed", existed).finish(),
            Reply::LeaseLost(current) => f.debug_tuple("LeaseLost").field(current).finish(),
            Reply::AlreadyFinished(current) => f.debug_tuple("AlreadyFinished").field(current).finish(),
            Reply::NotResolvable(current) => f.debug_tuple("NotResolvable").field(current).finish(),
        }
    }
}
