//! The commands of a lease: their limits, their execution, and the holder's view afterwards.

use std::future::{Ready, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either};

use super::held::Held;
use super::{Inner, Lease};
use crate::call::{Answer, Execution, Task, View};
use crate::decide::{Command, Current, Reply};
use crate::engine::Engine;
use crate::error::Error;
use crate::observe::{self, Op};
use crate::record::{Body, Retry};
use crate::sync::atomic::Ordering;
use crate::sync::{MutexGuard, PoisonError};
use crate::token::LeaseToken;
use crate::wake::wake_all;

/// A command that was started: answered already, or waiting for its store.
pub(crate) type Started<'a> = Either<Ready<Result<(), Error>>, BoxFuture<'a, Result<(), Error>>>;

impl Lease {
    /// Returns true if this holder is working, as far as it knows: the lease is neither finished,
    /// released nor known to be lost.
    pub(crate) fn is_working(&self) -> bool {
        let held = self.held();
        held.is_working() && !self.is_released()
    }

    /// Returns true if this holder asked to mark the effect itself. An effect that the grant
    /// assumes does not count.
    #[cfg(feature = "http")]
    pub(crate) fn has_marked(&self) -> bool {
        self.held().marked
    }

    /// The time, on the engine's monotonic clock, at which the lease is due for renewal: a third of
    /// its length after the last one.
    pub(crate) fn due(&self) -> Duration {
        let length = self.length();
        self.held().until.saturating_sub(length - length / 3)
    }

    /// Returns true if a release was sent.
    pub(crate) fn is_released(&self) -> bool {
        self.0.released.load(Ordering::SeqCst)
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.0.engine
    }

    /// The duration of one renewal.
    pub(crate) fn length(&self) -> Duration {
        self.held().record.as_ref().and_then(|record| record.lease()).unwrap_or(self.0.engine.policy().lease)
    }

    #[must_use = "a command that has to wait for its store is sent only if it is awaited"]
    pub(super) fn command(&self, op: Op, command: impl FnOnce(LeaseToken) -> Command) -> Started<'_> {
        let Inner { engine, .. } = &*self.0;
        self.command_at(engine.clock().monotonic(), engine.policy().call_timeout, op, command)
    }

    /// Renews with a time limit, so that other renewals get their time too.
    pub(crate) async fn renew_within(&self, limit: Duration) -> Result<(), Error> {
        let limit = limit.min(self.0.engine.policy().call_timeout);
        self.command_at(self.engine().clock().monotonic(), limit, Op::Renew, Command::Renew).await
    }

    /// Records an outcome: a response, or an error and its [`Retry`]. It is retried for as long as
    /// [`finish_limit`](Lease::finish_limit) allows.
    #[must_use = "a command that has to wait for its store is sent only if it is awaited"]
    pub(crate) fn finish(&self, body: Body, failed: Option<Retry>) -> Started<'_> {
        let now = self.engine().clock().monotonic();
        let limit = self.finish_limit(now);
        match failed {
            None => self.command_at(now, limit, Op::Complete, |token| Command::Complete(token, body)),
            Some(retry) => self.command_at(now, limit, Op::Fail, |token| Command::Fail(token, body, retry)),
        }
    }

    /// The time for which a finish is retried. A lease whose store is unavailable cannot
    /// be renewed, so by default retries end with the lease, although the store still accepts the
    /// finish afterwards, as long as no other caller took the key.
    pub(crate) fn finish_limit(&self, now: Duration) -> Duration {
        let policy = self.0.engine.policy();
        match policy.finish_timeout {
            Some(limit) => limit,
            None => self.remaining_at(now).max(policy.call_timeout),
        }
    }

    /// [`remaining`](Lease::remaining) at a time on the engine's monotonic clock.
    pub(super) fn remaining_at(&self, now: Duration) -> Duration {
        let held = self.held();
        if held.is_working() { held.until.saturating_sub(now) } else { Duration::ZERO }
    }

    /// Executes the command that `command` makes from the token, started at `now`: at once, if the
    /// store can. The future of one that waits is boxed, since its state is large to move.
    #[must_use = "a command that has to wait for its store is sent only if it is awaited"]
    fn command_at(
        &self,
        now: Duration,
        limit: Duration,
        op: Op,
        command: impl FnOnce(LeaseToken) -> Command,
    ) -> Started<'_> {
        let Inner { engine, token, .. } = &*self.0;
        let seen = match self.0.quiet {
            false => observe::call(engine, op, &|| Some(token.scope)),
            true => observe::quiet_call(engine, op),
        };
        let started = seen.inside(|| {
            let command = command(token.clone());
            self.open_for(&command)?;
            let task = self.task(&command, limit, now);
            if let Some(answer) = engine.core().update_now(&task)? {
                return self.learn(answer).map(|()| None);
            }
            let view = self.view(&task);
            let mut execution = Execution::new(engine.core(), &task, view);
            match execution.now(&task)? {
                Some(answer) => self.learn(answer).map(|()| None),
                None => Ok(Some(Box::new((command, execution)))),
            }
        });
        let result = match started {
            Ok(None) => Ok(()),
            Err(error) => Err(error),
            Ok(Some(mut waits)) => {
                return Either::Right(Box::pin(async move {
                    let (command, execution) = &mut *waits;
                    let result = observe::in_span(&seen, async {
                        self.learn(execution.run(&self.task(command, limit, now)).await?)
                    });
                    let result = result.await;
                    seen.answered(self.attempt(), &result);
                    result
                }));
            }
        };
        seen.answered(self.attempt(), &result);
        Either::Left(ready(result))
    }

    pub(crate) fn completion(&self, response: Bytes) -> Result<Command, Error> {
        let body = self.body("response", response)?;
        self.ready(|token| Command::Complete(token, body))
    }

    pub(crate) fn failure(&self, error: Bytes, retry: Retry) -> Result<Command, Error> {
        let body = self.body("error", error)?;
        self.ready(|token| Command::Fail(token, body, retry))
    }

    /// The command that `command` makes from the token, unless a release was sent.
    pub(crate) fn ready(&self, command: impl FnOnce(LeaseToken) -> Command) -> Result<Command, Error> {
        let command = command(self.0.token.clone());
        self.open_for(&command).map(|()| command)
    }

    /// Refuses every command but another release once a release was sent. The record may be gone,
    /// and a finish would take that for a record that the store lost.
    pub(crate) fn open_for(&self, command: &Command) -> Result<(), Error> {
        if let Command::Release(_) = command {
            self.0.released.store(true, Ordering::SeqCst);
        } else if self.is_released() {
            return Err(Error::LeaseLost { current: Current::of(None) });
        }
        Ok(())
    }

    pub(super) fn body(&self, what: &'static str, bytes: Bytes) -> Result<Body, Error> {
        self.0.engine.policy().body(what, bytes)
    }

    /// Updates this holder's view with the answer to a command.
    pub(crate) fn learn(&self, answer: Answer) -> Result<(), Error> {
        let Answer { reply, record, until, .. } = answer;
        let restored = matches!(reply, Reply::Done { existed: false }) && record.is_some();
        let mut held = self.held();
        let first = !held.closed;
        if matches!(reply, Reply::Done { .. }) {
            held.remember(record, until);
        } else {
            held.give_up(&reply);
        }
        let watchers = std::mem::take(&mut held.watchers);
        drop(held); // a waker may run anything
        wake_all(watchers);
        if restored && !self.0.quiet {
            observe::restored(self.engine(), self.attempt());
        }
        if let (Reply::LeaseLost(current), true) = (&reply, first && !self.0.quiet) {
            observe::lease_lost(self.engine(), self.attempt(), *current);
        }
        reply.into_done()
    }

    /// Returns `command`, started at `now`, with its limits.
    pub(crate) fn task<'a>(&'a self, command: &'a Command, limit: Duration, now: Duration) -> Task<'a> {
        let Inner { token, released, .. } = &*self.0;
        Task { id: token.id, command, started: now, limit, released: Some(released) }
    }

    /// Returns the record that the store most likely holds. Once the lease may have expired, the
    /// record is loaded first.
    pub(crate) fn view(&self, task: &Task<'_>) -> View {
        let held = self.held();
        match held.record.as_deref().filter(|_| held.until > task.started) {
            Some(record) => View::expecting(&task.id, record.stamp, Some(record), task.command),
            None => View::Unknown,
        }
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
