//! [`Engine::begin_or_wait`]: waits for a duplicate in flight.

mod room;
#[cfg(all(test, feature = "memory", nevertwice_shuttle))]
mod schedules;

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either, Shared, select};

use crate::begin::Begin;
use crate::call::{View, within};
use crate::decide::{Command, Reply};
use crate::engine::{Engine, Start, Started};
use crate::error::Error;
use crate::key::RecordId;
use crate::observe::{self, End, Moment, Op, Waiter as Observed};
use crate::record::Stamp;
use crate::request::Request;
use crate::store::Snapshot;
use crate::wake::{Contained, guarded};

use room::RENEWAL;
pub(crate) use room::WaitingRoom;

/// The result of a watch over a record: the snapshot and the time at which it was requested, or
/// `None` if the store could not be read.
type Watch = Shared<Look>;
type Look = BoxFuture<'static, Option<(Snapshot, Duration)>>;
/// A waiter's share in a watch. Dropping it, also with its future, removes a watch that has ended
/// or has no other waiter.
struct Waiter<'a> {
    engine: &'a Engine,
    known: (RecordId, Stamp),
    watch: Option<Watch>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.take() {
            self.engine.waiting().leave(self.known, watch);
        }
    }
}

impl Engine {
    /// [`begin`](Engine::begin), but it waits up to `limit` for a duplicate in flight. It returns
    /// [`Begin::InProgress`] after that time, or at once if there are already
    /// [`max_waiters`](crate::Policy::max_waiters) waiters, or as many on [one
    /// key](crate::Policy::max_waiters_per_key) or in [one
    /// scope](crate::Policy::max_waiters_per_scope) as the policy allows.
    ///
    /// A waiter wakes when the other caller finishes (memory, Redis and PostgreSQL push this,
    /// SQLite notices within some milliseconds) or its lease expires. It then reads the record
    /// again and is answered by the rules like any begin. The end of the wait is never a reason to
    /// act. Only `Acquired` is, for example after the other attempt crashed or failed with
    /// [`Retry::Now`](crate::Retry::Now).
    ///
    /// ```
    /// use nevertwice::{Begin, Engine, MemoryStore, Request};
    /// use std::time::Duration;
    /// # futures_executor::block_on(async {
    /// let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let request = Request::new("scope", "key")?;
    /// let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// let duplicate = engine.begin_or_wait(&request, Duration::from_secs(5));
    /// let (duplicate, completed) = futures_util::join!(duplicate, lease.complete("receipt"));
    /// completed?;
    /// assert!(matches!(duplicate?, Begin::Completed(done) if done.response().unwrap() == "receipt"));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`begin`](Engine::begin).
    pub async fn begin_or_wait(&self, request: &Request, limit: Duration) -> Result<Begin, Error> {
        let mut seen = observe::call(self, Op::BeginOrWait, &|| Some(request.label()));
        let begin = match seen.inside(|| self.start(request)) {
            Ok(Start::Answered { id, owner, answer })
                if !matches!(answer.reply, Reply::InProgress { .. }) =>
            {
                self.begun(id, owner, answer)
            }
            Ok(start) => {
                let mut asked = seen.since;
                // Boxed, since few calls wait, and the rest is large to move.
                let wait = self.begin_until(request, limit, start, &mut asked);
                let begin = Box::pin(observe::in_span(&seen, wait)).await;
                seen.since = asked;
                begin
            }
            Err(error) => Err(error),
        };
        seen.begun(&begin);
        begin
    }

    /// Continues a begin that is not answered for good; `asked` is set to the time of its last
    /// request to the store.
    async fn begin_until(
        &self,
        request: &Request,
        limit: Duration,
        start: Start<'_>,
        asked: &mut Moment,
    ) -> Result<Begin, Error> {
        let until = self.clock().monotonic().saturating_add(limit);
        let (id, owner, mut command, mut answer) = match start {
            Start::Answered { id, owner, answer } => (id, owner, None, Ok(answer)),
            Start::Waits(mut started) => {
                let answer = started.answer(self).await;
                let Started { id, owner, command, .. } = *started;
                (id, owner, Some(command), answer)
            }
        };
        let mut place = None;
        loop {
            let waiter = place.as_ref().map(|(_, waiter)| waiter);
            let answered = answer.inspect_err(|_| {
                if waiter.is_some() {
                    observe::waited(self, waiter, End::Error);
                }
            })?;
            let left = until.saturating_sub(self.clock().monotonic());
            let (Reply::InProgress { lease_remaining, .. }, Some(stamp)) = (&answered.reply, answered.stamp)
            else {
                if waiter.is_some() {
                    observe::waited(self, waiter, End::Changed);
                }
                return self.begun(id, owner, answered);
            };
            if place.is_none() {
                let free = self.waiting().enter(self.policy(), id, request.scope_id());
                place = free.map(|place| (place, Observed::enter(self)));
            }
            let end = match &place {
                None => End::Limit,
                Some(_) if left.is_zero() => End::Timeout,
                Some(_) => {
                    let view = self.wait((id, stamp), *lease_remaining, left).await;
                    *asked = Moment::now(self);
                    let command = match &mut command {
                        Some(command) => command,
                        none => none.insert(Command::Begin(request.params(self.policy(), || Ok(owner))?)),
                    };
                    answer = self.execute(&id, command, view).await;
                    continue;
                }
            };
            observe::waited(self, place.as_ref().map(|(_, waiter)| waiter), end);
            return self.begun(id, owner, answered);
        }
    }

    /// Waits until the record changes or its lease expires, at most for `limit`. Returns what is
    /// known then.
    async fn wait(&self, known: (RecordId, Stamp), lease_left: Duration, limit: Duration) -> View {
        let until = self.clock().monotonic().saturating_add(limit);
        loop {
            let now = self.clock().monotonic();
            let watch = self.waiting().join(known, now, || self.watch(known, lease_left));
            let waiter = Waiter { engine: self, known, watch: Some(watch.clone()) };
            let patience = until.saturating_sub(now).min(RENEWAL);
            // The watch is polled in the task of one waiter and wakes all of them.
            let found = match guarded(select(watch, self.clock().sleep(patience))).await {
                Either::Left((found, _)) => Some(found),
                Either::Right(_) => None,
            };
            drop(waiter);
            match found {
                Some(Some(found)) => return View::Found(Box::new(found)),
                Some(None) => return View::Unknown,
                None if self.clock().monotonic() >= until => return View::Unknown,
                None => {}
            }
        }
    }

    fn watch(&self, (id, stamp): (RecordId, Stamp), lease_left: Duration) -> Watch {
        /// The pause between two reads of a store that reports a change too early, or cannot report
        /// one.
        const PAUSE: Duration = Duration::from_millis(50);
        let engine = self.clone();
        let look = async move {
            let clock = engine.clock();
            let until = clock.monotonic().saturating_add(lease_left);
            loop {
                let left = until.saturating_sub(clock.monotonic());
                let changed = Contained::new(async { engine.store().changed(&id, stamp, left).await });
                if let Some(None | Some(Err(_))) = within(clock, left, changed).await {
                    clock.sleep(left.min(PAUSE)).await;
                }
                let asked = clock.monotonic();
                let snapshot = engine.load(&id).await.ok()?;
                let same = snapshot.record.as_ref().is_some_and(|record| record.stamp == stamp);
                if !same || asked >= until {
                    return Some((snapshot, asked));
                }
                clock.sleep(PAUSE).await;
            }
        };
        // If a store or a clock panics in it, each waiter reads the store itself.
        Contained::new(look).map(Option::flatten).boxed().shared()
    }
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use super::*;
    use crate::backends::memory::MemoryStore;
    use crate::clock::ManualClock;

    #[derive(Clone, Copy, PartialEq)]
    enum Ending {
        Dropped,
        Timeout,
        Outcome,
    }

    /// L5: however a wait ends, it leaves nothing behind.
    #[test]
    fn l5_waits_leave_nothing_behind() {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        for ending in [Ending::Dropped, Ending::Timeout, Ending::Outcome] {
            let clock = ManualClock::new();
            let store = MemoryStore::builder().clock(clock.clone()).build();
            let engine = Engine::builder(store).clock(clock.clone()).build().unwrap();
            let request = Request::new("waits", "key").unwrap();
            let Some(Ok(Begin::Acquired(lease))) = engine.begin(&request).now_or_never() else { panic!() };
            let wait = || engine.begin_or_wait(&request, Duration::from_secs(12)).boxed();
            let mut waits = [wait(), wait(), wait()];
            waits.iter_mut().for_each(|wait| assert!(wait.poll_unpin(&mut context).is_pending()));
            assert_eq!(engine.waiting().watches().len(), 1);
            match ending {
                Ending::Dropped => {}
                Ending::Timeout => {
                    // The waiters start new watches meanwhile.
                    for _ in 0..11 {
                        clock.advance(Duration::from_secs(1));
                        waits.iter_mut().for_each(|wait| assert!(wait.poll_unpin(&mut context).is_pending()));
                    }
                    clock.advance(Duration::from_secs(1));
                }
                Ending::Outcome => lease.complete("done").now_or_never().unwrap().unwrap(),
            }
            if ending != Ending::Dropped {
                waits.iter_mut().for_each(|wait| assert!(wait.poll_unpin(&mut context).is_ready()));
            }
            drop(waits);
            assert!(engine.waiting().is_empty());
        }
    }
}
