//! Sequences of calls, decoded from bytes so that proptest and fuzzers can shrink them. A history
//! runs on an engine and on the [`Model`], whose answers must be the same.
#![allow(clippy::panic)] // a history that differs from the model fails by panicking

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::model::{Answer, Finish, Grant, Model, ModelBegin, Rewrite, Settle, Token};
use crate::begin::Begin;
use crate::clock::ManualClock;
use crate::decide::Resolution;
use crate::engine::Engine;
use crate::error::Error;
use crate::fingerprint::Fingerprint;
use crate::inspect::Inspection;
use crate::lease::Lease;
use crate::owner::Owner;
use crate::record::{Body, Recovery, Retry, Stamp};
use crate::request::Request;
use crate::store::Store;

/// The passage of time during a history.
#[derive(Debug, Clone)]
pub enum Pace {
    /// The store keeps real time: durations either expire by the next call (1 µs) or outlast the
    /// test (an hour).
    Real,
    /// Store and engine share this clock, and durations of all lengths are tried.
    Manual(ManualClock),
}

/// One call on one key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the names are those of the calls they stand for
pub enum Op {
    Begin(ModelBegin),
    Rewrite(usize, Rewrite),
    Finish(usize, Finish),
    Release(usize),
    Resume(usize),
    Resolve(usize, Settle),
    /// By what the operator was shown when time passed last.
    ResolveShown(Settle),
    Forget,
    Purge,
    Pass(Duration),
}

/// A duration that expires by the next call.
const SHORT: Duration = Duration::from_micros(1);
/// A duration that outlasts the test.
const LONG: Duration = Duration::from_secs(3600);
/// The retention of evidence: longer than `LONG`, and short enough to expire within a history.
const UNRESOLVED: Duration = Duration::from_secs(3 * 3600);
/// The step of a manual clock before each call.
const TICK: Duration = Duration::from_micros(100);

/// Decodes a history from `bytes`. Any bytes are valid.
pub fn parse(bytes: &[u8], pace: &Pace) -> Vec<Op> {
    bytes.chunks_exact(4).map(|chunk| op([chunk[0], chunk[1], chunk[2], chunk[3]], pace)).collect()
}

fn op([kind, a, b, c]: [u8; 4], pace: &Pace) -> Op {
    let time = |byte: u8| match (pace, byte % 4) {
        (_, 0 | 1) => LONG,
        (Pace::Real, _) | (Pace::Manual(_), 2) => SHORT,
        (Pace::Manual(_), _) => Duration::from_secs(10),
    };
    let payload = |byte: u8| vec![byte % 3; usize::from(byte % 3)];
    let retry = match a % 4 {
        0 => Retry::Now,
        1 => Retry::After(time(c)),
        2 => Retry::Never,
        _ => Retry::Unresolved,
    };
    let slot = usize::from(b % 4);
    match kind % 16 {
        0..=4 => {
            let lease = time(a);
            let recovery = match (c >> 2) % 4 {
                0 | 1 => Recovery::RerunUnlessEffect,
                2 => Recovery::Rerun,
                _ => Recovery::Never,
            };
            Op::Begin(ModelBegin {
                owner: u64::from(b % 4), // the last is drawn for each begin
                fingerprint: u8::from(b > 230),
                lease,
                retention: time(c).max(lease),
                unresolved_retention: UNRESOLVED,
                recovery,
                assumes: (c >> 4) % 4 == 3,
                max_attempts: if a > 200 { 2 } else { u32::MAX },
            })
        }
        5 => Op::Rewrite(slot, Rewrite::Renew),
        6 => Op::Rewrite(slot, Rewrite::Checkpoint(payload(c))),
        7 => Op::Rewrite(slot, Rewrite::MarkEffect),
        8 | 9 => Op::Finish(slot, Finish::Complete(payload(c))),
        10 | 11 => Op::Finish(slot, Finish::Fail(payload(c >> 4), retry)),
        12 => Op::Release(slot),
        13 => Op::Resume(slot),
        14 => match a % 5 {
            0 => Op::Forget,
            1 => Op::Purge,
            settle => {
                let settle = match settle {
                    2 => Settle::Completed(payload(c)),
                    3 => Settle::Failed(payload(c)),
                    _ => Settle::Rerun,
                };
                if b & 4 == 0 { Op::Resolve(slot, settle) } else { Op::ResolveShown(settle) }
            }
        },
        _ => match pace {
            Pace::Real => Op::Pass(SHORT),
            Pace::Manual(_) => {
                Op::Pass([SHORT, Duration::from_secs(1), Duration::from_secs(11), LONG][usize::from(a % 4)])
            }
        },
    }
}

/// Runs `ops` on the key `key` of `store` and on the model.
///
/// # Panics
/// If an answer differs from the model's, a fence does not increase, or a call fails. The message
/// shows the history so far.
pub async fn run(store: Arc<dyn Store>, key: &str, ops: &[Op], pace: &Pace) {
    let mut builder = Engine::builder(store.clone())
        .max_response(usize::MAX)
        .retention(LONG)
        .unresolved_retention(UNRESOLVED);
    if let Pace::Manual(clock) = pace {
        builder = builder.clock(clock.clone());
    }
    let Ok(engine) = builder.build() else { panic!("the default policy builds") };
    let mut run = Run {
        store,
        engine,
        key,
        pace,
        now: Duration::ZERO,
        model: Model::default(),
        owners: [(); 3].map(|()| Owner::random().unwrap_or_else(|error| panic!("{error}"))),
        held: Vec::new(),
        fences: Vec::new(),
        shown: None,
    };
    for (at, op) in ops.iter().enumerate() {
        run.pass(TICK).await;
        let expected = run.expect(op);
        let answered = run.call(op).await;
        if let (Some(expected), Some(answered)) = (expected, answered) {
            run.compare(&expected, &answered, || {
                ops[..=at].iter().map(|op| format!("\n    {op:?}")).collect()
            });
        }
    }
}

struct Run<'a> {
    store: Arc<dyn Store>,
    engine: Engine,
    key: &'a str,
    pace: &'a Pace,
    now: Duration,
    model: Model,
    owners: [Owner; 3],
    /// Every lease that was granted, with the model's token for it.
    held: Vec<(Lease, Token)>,
    /// The fence of every grant, in order.
    fences: Vec<Stamp>,
    /// The latest inspection by an operator, and the model's version at that time.
    shown: Option<(Inspection, (Grant, Duration))>,
}

impl Run<'_> {
    async fn pass(&mut self, time: Duration) {
        self.now += time;
        match self.pace {
            Pace::Manual(clock) => clock.advance(time),
            Pace::Real => super::until_over(&*self.store, &self.request().id(), SHORT).await,
        }
    }

    fn request(&self) -> Request {
        match Request::new("history", self.key) {
            Ok(request) => request,
            Err(error) => panic!("{error}"),
        }
    }

    fn slot(&self, slot: usize) -> Option<&(Lease, Token)> {
        // The latest grants are the most interesting.
        self.held.iter().rev().nth(slot)
    }

    /// Returns the model's answer; `None` if the call has nothing to act on.
    fn expect(&mut self, op: &Op) -> Option<Answer> {
        let now = self.now;
        let token = |run: &Run<'_>, slot: usize| run.slot(slot).map(|(_, token)| token.clone());
        Some(match op {
            Op::Begin(ask) => self.model.begin(now, ask),
            Op::Rewrite(slot, rewrite) => {
                let token = token(self, *slot)?;
                self.model.rewrite(now, &token, rewrite)
            }
            Op::Finish(slot, finish) => {
                let token = token(self, *slot)?;
                self.model.finish(now, &token, finish)
            }
            Op::Release(slot) => {
                let at = self.held.len().checked_sub(slot + 1)?;
                self.held[at].1.released = true;
                self.model.release(now, &self.held[at].1)
            }
            Op::Resume(slot) => {
                let at = self.held.len().checked_sub(slot + 1)?;
                let answer = self.model.resume(now, &self.held[at].1);
                self.held[at].1.released &= answer != Answer::Done;
                answer
            }
            Op::Resolve(slot, settle) => {
                let token = token(self, *slot)?;
                self.model.resolve(now, token.grant, None, settle)
            }
            Op::ResolveShown(settle) => {
                let (_, (grant, version)) = self.shown.as_ref()?;
                self.model.resolve(now, *grant, Some(*version), settle)
            }
            Op::Forget => self.model.forget(now),
            Op::Purge | Op::Pass(_) => return None,
        })
    }

    /// Returns the engine's answer, in the model's terms.
    async fn call(&mut self, op: &Op) -> Option<Answer> {
        match op {
            Op::Begin(ask) => return Some(self.begin(ask).await),
            Op::Pass(time) => {
                self.pass(*time).await;
                self.look().await;
                return None;
            }
            Op::Purge => {
                return match self.engine.purge(100).await {
                    Err(Error::Store(error)) if error.is_transient() => None,
                    Err(error) => panic!("purge: {error}"),
                    Ok(_) => None,
                };
            }
            Op::Forget => {
                return match self.engine.forget("history", self.key).await {
                    Ok(existed) => Some(Answer::Forgotten(existed)),
                    Err(error) => panic!("forget: {error}"),
                };
            }
            Op::ResolveShown(settle) => {
                let (shown, _) = self.shown.as_ref()?;
                let id = self.request().id();
                let result = self.engine.resolve_shown(&id, shown, resolution(settle)).await;
                return Some(answer(op, result));
            }
            Op::Rewrite(..) | Op::Finish(..) | Op::Release(_) | Op::Resume(_) | Op::Resolve(..) => {}
        }
        let slot = match op {
            Op::Rewrite(slot, _) | Op::Finish(slot, _) | Op::Release(slot) => *slot,
            Op::Resume(slot) | Op::Resolve(slot, _) => *slot,
            Op::Begin(_) | Op::ResolveShown(_) | Op::Forget | Op::Purge | Op::Pass(_) => return None,
        };
        let (lease, token) = self.slot(slot)?;
        let result = match op {
            Op::Rewrite(_, Rewrite::Renew) => lease.renew().await,
            Op::Rewrite(_, Rewrite::Checkpoint(bytes)) => lease.save_checkpoint(bytes.clone()).await,
            Op::Rewrite(_, Rewrite::MarkEffect) => lease.mark_effect().await,
            Op::Finish(_, Finish::Complete(response)) => lease.complete(response.clone()).await,
            Op::Finish(_, Finish::Fail(error, retry)) => lease.fail(error.clone(), *retry).await,
            Op::Release(_) => lease.release().await,
            Op::Resume(_) => match self.engine.resume(&lease.token()).await {
                Ok(resumed) => {
                    let at = self.held.len() - 1 - slot;
                    self.held[at].0 = resumed;
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Op::Resolve(_, settle) => {
                let fence = self.fences[usize::try_from(token.grant).ok()? - 1];
                self.engine.resolve("history", self.key, fence, resolution(settle)).await
            }
            Op::Begin(_) | Op::ResolveShown(_) | Op::Forget | Op::Purge | Op::Pass(_) => return None,
        };
        Some(answer(op, result))
    }

    /// Looks at the key as an operator, who decides by it later.
    async fn look(&mut self) {
        let seen = match self.engine.inspect("history", self.key).await {
            Ok(seen) => seen,
            Err(error) => panic!("inspect: {error}"),
        };
        let expected = self.model.shown(self.now);
        assert_eq!(seen.is_some(), expected.is_some(), "an operator is shown what the model has");
        self.shown = seen.zip(expected);
    }

    async fn begin(&mut self, ask: &ModelBegin) -> Answer {
        let request = self
            .request()
            .fingerprint(Fingerprint::of([ask.fingerprint]))
            .lease(ask.lease)
            .retention(ask.retention)
            .recovery(ask.recovery)
            .max_attempts(ask.max_attempts);
        let request = if ask.assumes { request.assume_effect() } else { request };
        let kept = self.owners.get(usize::try_from(ask.owner).unwrap_or(usize::MAX));
        let request = kept.into_iter().fold(request, |request, owner| request.owner(*owner));
        let body = |bytes: Option<&Bytes>| bytes.map(|bytes| bytes.to_vec()).unwrap_or_default();
        match self.engine.begin(&request).await {
            Ok(Begin::Acquired(lease)) => self.acquired(ask, lease),
            Ok(Begin::Completed(done)) => Answer::Completed(body(done.response())),
            Ok(Begin::InProgress(busy)) => {
                Answer::InProgress { attempt: busy.attempt(), retry_after: busy.lease_remaining() }
            }
            Ok(Begin::Failed(failed)) => {
                Answer::Failed { error: body(failed.error()), retry_after: failed.retry_after() }
            }
            Ok(Begin::Unresolved(unknown)) => Answer::Unresolved {
                reason: unknown.reason(),
                grant: self.grant_of(unknown.fence()),
                attempt: unknown.attempt(),
                error: unknown.error().map(|error| error.to_vec()),
                checkpoint: unknown.checkpoint().map(|bytes| bytes.to_vec()),
            },
            Ok(Begin::Mismatch(_)) => Answer::Mismatch,
            Err(error) => panic!("begin: {error}"),
        }
    }

    fn acquired(&mut self, ask: &ModelBegin, lease: Lease) -> Answer {
        let fence = lease.fence();
        let grant = match self.grant_of(fence) {
            0 => self.fences.len() as Grant + 1,
            known => known,
        };
        let answer = Answer::Acquired {
            grant,
            attempt: lease.attempt(),
            takeover: lease.takeover(),
            checkpoint: lease.checkpoint().map(|bytes| bytes.to_vec()),
        };
        if grant > self.fences.len() as Grant {
            if let Some(last) = self.fences.last().filter(|last| **last >= fence) {
                panic!("S5: fence {fence:?} after {last:?}");
            }
            self.fences.push(fence);
            let token = Token { ask: ask.clone(), grant, attempt: lease.attempt(), released: false };
            self.held.push((lease, token));
        }
        answer
    }

    fn grant_of(&self, fence: Stamp) -> Grant {
        self.fences.iter().position(|known| *known == fence).map_or(0, |at| at as Grant + 1)
    }

    fn compare(&self, expected: &Answer, answered: &Answer, history: impl FnOnce() -> String) {
        let real = matches!(self.pace, Pace::Real);
        if about(expected, real) != about(answered, real) {
            panic!("S15: the model says {expected:?}, the store {answered:?}, after{}", history());
        }
    }
}

/// Returns the answer without the parts that real time makes uncertain. On a manual clock, times
/// are compared in whole milliseconds, since a stamp may be forced some microseconds ahead.
fn about(answer: &Answer, real: bool) -> Answer {
    let round = |time: Duration| match real {
        true => Duration::ZERO,
        false => Duration::from_millis((time.as_micros() as u64).div_ceil(1000)),
    };
    match answer.clone() {
        Answer::InProgress { attempt, retry_after } => {
            Answer::InProgress { attempt, retry_after: round(retry_after) }
        }
        Answer::Failed { error, retry_after } => {
            Answer::Failed { error, retry_after: retry_after.map(round) }
        }
        other @ (Answer::Acquired { .. }
        | Answer::Completed(_)
        | Answer::Unresolved { .. }
        | Answer::Mismatch
        | Answer::Done
        | Answer::Forgotten(_)
        | Answer::LeaseLost(_)
        | Answer::AlreadyFinished(_)
        | Answer::NotResolvable(_)) => other,
    }
}

/// Returns the answer to a call of a holder or an operator, in the model's terms.
fn answer(op: &Op, result: Result<(), Error>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(Error::LeaseLost { current }) => Answer::LeaseLost(current.state),
        Err(Error::AlreadyFinished { current }) => Answer::AlreadyFinished(current.state),
        Err(Error::NotResolvable { current }) => Answer::NotResolvable(current.state),
        Err(error) => panic!("{op:?}: {error}"),
    }
}

fn resolution(settle: &Settle) -> Resolution {
    match settle {
        Settle::Completed(response) => Resolution::Completed(Body::kept(response.clone().into())),
        Settle::Failed(error) => Resolution::Failed(Body::kept(error.clone().into())),
        Settle::Rerun => Resolution::Rerun,
    }
}
