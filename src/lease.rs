//! The right to execute: [`Lease`].

mod execute;
mod held;

use std::future::poll_fn;
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;

use crate::clock::Sleep;
use crate::decide::Command;
use crate::engine::Engine;
use crate::error::Error;
use crate::observe::{self, Op};
use crate::record::{Body, Record, Retry, Stamp};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, PoisonError};
use crate::token::LeaseToken;
use crate::wake::ForeignWaker;

use self::held::Held;

/// The right to execute one operation, until it is finished or the lease expires.
///
/// [`Engine::begin`] and its variants grant a lease; [`Engine::resume`] takes one over by its
/// token. There are five kinds of calls:
///
/// * **Reading**, at any time and without a store call: [`attempt`](Lease::attempt),
///   [`fence`](Lease::fence), [`derive_key`](Lease::derive_key), [`remaining`](Lease::remaining)
///   and [`is_lost`](Lease::is_lost). Read [`takeover`](Lease::takeover),
///   [`effect_marked`](Lease::effect_marked) and [`checkpoint`](Lease::checkpoint) before you
///   start: they show what an earlier attempt left. Race the work with [`lost`](Lease::lost) to
///   stop it in time.
/// * **Renewing**, in work that may take longer than the lease: [`renew`](Lease::renew), as often
///   as needed until the lease is finished. [`Engine::run`] and [`Engine::keep_alive`] renew by
///   themselves.
/// * **Marking and saving**, before the effect: [`save_checkpoint`](Lease::save_checkpoint) after a
///   step that the next attempt need not repeat, [`mark_effect`](Lease::mark_effect) right before
///   the effect. Both renew the lease too. If `mark_effect` fails, do not cause the effect.
/// * **Finishing**, once, after the effect: [`complete`](Lease::complete), [`fail`](Lease::fail),
///   or [`release`](Lease::release) if nothing happened. From then on the lease accepts only a
///   repetition of the same finish.
/// * **Handing over by token**, at any time before the finish: [`token`](Lease::token) here,
///   [`Engine::resume`] in the other process. Both leases then stand for one grant. This one stays
///   usable, and the first outcome that is recorded counts.
///
/// The usual order is: begin, prepare and save, `mark_effect`, act, `complete`.
///
/// Methods borrow, so that a call that failed can be repeated; each is safe to repeat after a lost
/// answer.
///
/// Dropping an unfinished lease writes nothing: a panic, a cancelled future or a client that hung
/// up is a crash, and a crash is never taken for "nothing happened". The lease expires, and the
/// next begin finds the record. Operators see a warning ([`observe`](crate::observe):
/// `nevertwice.lease_abandoned`), unless the lease's [`token`](Lease::token) was taken.
#[derive(Debug)]
#[must_use = "a dropped lease blocks its key until it expires"]
pub struct Lease(Box<Inner>);

#[derive(Debug)]
struct Inner {
    engine: Engine,
    token: LeaseToken,
    takeover: bool,
    checkpoint: Option<Bytes>,
    /// True if this lease belongs to the crate itself, so that nothing is reported to operators.
    quiet: bool,
    /// True once a release was sent, whatever its result: nothing may be recorded from then on.
    released: AtomicBool,
    held: Mutex<Held>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        let released = self.released.load(Ordering::SeqCst);
        if held.is_working() && !released && !held.handed_over && !self.quiet {
            observe::lease_abandoned(&self.engine, self.token.attempt);
        }
    }
}

impl Lease {
    /// A lease for `token`, with the record that the store now holds for it (`None` if the record
    /// is gone).
    pub(crate) fn new(
        engine: Engine,
        token: LeaseToken,
        record: Option<Box<Record>>,
        until: Duration,
    ) -> Lease {
        Lease(Box::new(Inner {
            engine,
            token,
            takeover: record.as_ref().is_some_and(|record| record.is_takeover()),
            checkpoint: record.as_ref().and_then(|record| record.checkpoint.clone()),
            quiet: false,
            released: AtomicBool::new(false),
            held: Mutex::new(Held {
                effect: record.as_ref().is_some_and(|record| record.is_effect_marked()),
                record,
                until,
                lost: false,
                closed: false,
                #[cfg(feature = "http")]
                marked: false,
                handed_over: false,
                watchers: Vec::new(),
            }),
        }))
    }

    /// Turns off reports to operators, for a lease that is not the application's.
    pub(crate) fn quietly(mut self) -> Lease {
        self.0.quiet = true;
        self
    }

    /// The number of this execution of the operation, from 1.
    pub fn attempt(&self) -> u32 {
        self.0.token.attempt
    }

    /// The fence of this grant: greater than that of every earlier grant of the key. It does not
    /// change when the lease is renewed. Pass it to systems that can refuse requests with a lower
    /// one.
    pub fn fence(&self) -> Stamp {
        self.0.token.fence
    }

    /// Returns true if the lease of the previous attempt expired, so that it may have left traces.
    pub fn takeover(&self) -> bool {
        self.0.takeover
    }

    /// The bytes that an earlier attempt saved with [`save_checkpoint`](Lease::save_checkpoint), as
    /// they were when this lease was granted.
    pub fn checkpoint(&self) -> Option<&Bytes> {
        self.0.checkpoint.as_ref()
    }

    /// Returns true if the effect may have happened already: this holder marked it, also before a
    /// [`resume`](Engine::resume), or it took over from an attempt that had marked it (under
    /// [`Recovery::Rerun`](crate::Recovery::Rerun)).
    pub fn effect_marked(&self) -> bool {
        self.held().effect
    }

    /// The time for which this holder may still rely on its lease. It is counted on the holder's
    /// own monotonic clock from before the request was sent, so it is never more than the store
    /// granted. Zero once finished.
    pub fn remaining(&self) -> Duration {
        self.remaining_at(self.0.engine.clock().monotonic())
    }

    /// Returns true if this holder must no longer rely on its lease: the store answered that the
    /// key was taken, or the lease expired and was not renewed. A finished lease is not lost.
    pub fn is_lost(&self) -> bool {
        let held = self.held();
        held.lost || held.is_working() && held.until <= self.0.engine.clock().monotonic()
    }

    /// Completes as soon as [`is_lost`](Lease::is_lost) is true, and never if the lease is finished
    /// first. Race the work with it to stop before another caller starts: a holder counts less time
    /// than the store does.
    ///
    /// ```
    /// use nevertwice::{Begin, Engine, ManualClock, MemoryStore, Request};
    /// use futures_util::FutureExt;
    /// # futures_executor::block_on(async {
    /// let clock = ManualClock::new();
    /// let engine = Engine::builder(MemoryStore::new()).clock(clock.clone()).build()?;
    /// let Begin::Acquired(lease) = engine.begin(&Request::new("scope", "key")?).await? else { panic!() };
    /// assert!(lease.lost().now_or_never().is_none());
    /// clock.advance(engine.policy().lease);
    /// lease.lost().await;
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn lost(&self) {
        let mut timer: Option<(Duration, Sleep)> = None;
        poll_fn(|context| {
            self.watch(context.waker());
            loop {
                if self.is_lost() {
                    return Poll::Ready(());
                }
                let (now, until) = (self.0.engine.clock().monotonic(), self.held().until);
                if until <= now {
                    return Poll::Pending; // finished: nothing is left to lose
                }
                let (_, sleep) = match &mut timer {
                    Some(timer) if timer.0 == until => timer,
                    timer => timer.insert((until, self.0.engine.clock().sleep(until - now))),
                };
                if sleep.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                timer = None;
            }
        })
        .await;
    }

    fn watch(&self, waker: &Waker) {
        let watchers = &mut self.held().watchers;
        if !watchers.iter().any(|known| known.will_wake(waker)) {
            watchers.push(ForeignWaker::of(waker));
        }
    }

    /// The token with which another process continues under this grant: see [`Engine::resume`].
    /// Once it was taken, dropping this lease is not reported as abandoned, since another holder
    /// may finish it.
    pub fn token(&self) -> LeaseToken {
        self.held().handed_over = true;
        self.0.token.clone()
    }

    /// A key for a downstream call: the same for every attempt of this operation, and different for
    /// every other label, scope and key. Pass it to a provider that is itself idempotent (Stripe's
    /// `Idempotency-Key`), and a rerun charges once.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// assert_eq!(lease.derive_key("psp"), lease.derive_key("psp"));
    /// assert_ne!(lease.derive_key("psp"), lease.derive_key("mail"));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// It depends only on scope, key and label. So it is also the same when the key is used again
    /// after its retention or a [`release`](Lease::release), even with another payload.
    pub fn derive_key(&self, label: &str) -> String {
        self.0.token.derive_key(label)
    }

    /// Restarts the lease, also if it has expired and no other caller took the key.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.renew().await?;
    /// assert!(lease.remaining() <= engine.policy().lease);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`Error::LeaseLost`], with nothing written, if another caller took the key or the operation
    /// is finished.
    pub async fn renew(&self) -> Result<(), Error> {
        self.command(Op::Renew, Command::Renew).await
    }

    /// Saves `bytes` for the next attempt, in case this one does not finish, and renews the lease.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.save_checkpoint("page 3 of 9").await?;
    /// lease.fail("the connection broke", Retry::Now).await?;
    /// let Begin::Acquired(next) = engine.begin(&request).await? else { panic!() };
    /// assert_eq!(next.checkpoint().unwrap(), "page 3 of 9");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`Error::TooLarge`] over the policy's `max_checkpoint`; [`Error::LeaseLost`] as for
    /// [`renew`](Lease::renew).
    pub async fn save_checkpoint(&self, bytes: impl Into<Bytes>) -> Result<(), Error> {
        let bytes = bytes.into();
        let limit = self.0.engine.policy().max_checkpoint;
        if bytes.len() > limit {
            return Err(Error::TooLarge { what: "checkpoint", bytes: bytes.len(), limit });
        }
        self.command(Op::SaveCheckpoint, |token| Command::Checkpoint(token, bytes)).await
    }

    /// Marks that the effect may happen from now on, and renews the lease. If this attempt does not
    /// finish, the default [`Recovery`](crate::Recovery) does not rerun the operation.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.mark_effect().await?; // an error: do not charge
    /// let receipt = "charged"; // the effect
    /// lease.complete(receipt).await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`Error::LeaseLost`] as for [`renew`](Lease::renew). Do not cause the effect after any
    /// error.
    pub async fn mark_effect(&self) -> Result<(), Error> {
        #[cfg(feature = "http")]
        {
            self.held().marked = true;
        }
        self.command(Op::MarkEffect, Command::MarkEffect).await
    }

    /// Records that the operation is done: every duplicate within the retention gets `response`.
    /// The store accepts it after the lease has expired too, as long as no other caller took the
    /// key. A record that is gone is written anew, unless this lease released it, or its grant was
    /// made in a transaction of the application's.
    ///
    /// A response over the policy's `max_response` is not kept; duplicates get `Completed` without
    /// one ([`Oversized::Marker`](crate::Oversized::Marker)). If the store is unavailable, the call
    /// is retried until the lease ends and at least for the policy's `call_timeout`, so that
    /// finished work is not lost. A [`finish_timeout`](crate::Policy::finish_timeout) replaces that
    /// limit.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.complete("receipt 7").await?;
    /// lease.complete("receipt 7").await?; // an answer that was lost can be asked for again
    /// assert!(matches!(lease.complete("receipt 8").await, Err(Error::AlreadyFinished { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a response over `max_response` under
    /// [`Oversized::Refuse`](crate::Oversized::Refuse), with nothing written; [`Error::LeaseLost`],
    /// with nothing written, if another caller took the key, or the record is gone and is not
    /// written anew; [`Error::AlreadyFinished`] if this lease was finished with another outcome,
    /// which remains.
    pub async fn complete(&self, response: impl Into<Bytes>) -> Result<(), Error> {
        let body = self.body("response", response.into())?;
        self.finish(body, None).await
    }

    /// [`complete`](Lease::complete) with a head: up to [`Body::MAX_HEAD`] bytes that duplicates
    /// get even if the response is too long to be kept or is no longer kept
    /// ([`Completed::head`](crate::Completed::head)).
    ///
    /// # Errors
    /// As for [`complete`](Lease::complete); [`Error::TooLarge`] for the head too.
    pub async fn complete_with_head(&self, head: &[u8], response: impl Into<Bytes>) -> Result<(), Error> {
        let body = self.body("response", response.into())?.with_head(checked(head)?);
        self.finish(body, None).await
    }

    /// Records that the operation failed, and what the next begin may do: see [`Retry`].
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.fail("card declined", Retry::Never).await?;
    /// let Begin::Failed(failed) = engine.begin(&request).await? else { panic!() };
    /// assert_eq!(failed.error().unwrap(), "card declined");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`complete`](Lease::complete).
    pub async fn fail(&self, error: impl Into<Bytes>, retry: Retry) -> Result<(), Error> {
        let body = self.body("error", error.into())?;
        self.finish(body, Some(retry)).await
    }

    /// [`fail`](Lease::fail) with a head: see [`complete_with_head`](Lease::complete_with_head).
    ///
    /// # Errors
    /// As for [`complete_with_head`](Lease::complete_with_head).
    pub async fn fail_with_head(
        &self,
        head: &[u8],
        error: impl Into<Bytes>,
        retry: Retry,
    ) -> Result<(), Error> {
        let body = self.body("error", error.into())?.with_head(checked(head)?);
        self.finish(body, Some(retry)).await
    }

    /// Removes the record, because nothing happened: the key is absent again, and the next begin
    /// may have another payload.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.release().await?;
    /// assert!(matches!(engine.begin(&request).await?, Begin::Acquired(_)));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// Once it was called, whatever it returned, this lease records nothing any more: every other
    /// call returns [`Error::LeaseLost`]. Repeating the release is safe.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] if another caller took the key or the operation is finished.
    pub async fn release(&self) -> Result<(), Error> {
        self.command(Op::Release, Command::Release).await
    }
}

impl observe::Granted for Lease {
    fn attempt(&self) -> u32 {
        Lease::attempt(self)
    }

    fn takeover(&self) -> bool {
        Lease::takeover(self)
    }
}

/// Returns `head` if it is short enough.
fn checked(head: &[u8]) -> Result<&[u8], Error> {
    let (bytes, limit) = (head.len(), Body::MAX_HEAD);
    if bytes > limit { Err(Error::TooLarge { what: "head", bytes, limit }) } else { Ok(head) }
}
