//! Playing one schedule: [`World`].

use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::task::AtomicWaker;

use super::case::Case;
use super::verdict::{End, Row, Seen, Sighting, judge};
use super::{AWAY, BLOCKED, IDLE, PATIENCE, Size};
use crate::clock::{Clock, ManualClock, SystemClock};
use crate::engine::Engine;
use crate::key::RecordId;
use crate::record::{Record, Retry, State};
use crate::store::Store;
use crate::testing::{Fault, FaultyStore};

/// The repetitions after which an operation has to have an end.
const DELIVERIES: usize = 6;
/// The await after the store call of a begin: the lease is granted.
const AFTER_BEGIN: usize = 2;

/// One schedule's engine, store, clock and key.
pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) store: FaultyStore<Arc<dyn Store>>,
    pub(super) clock: ManualClock,
    pub(super) id: RecordId,
    pub(super) key: String,
    pub(super) effects: u64,
}

type Delivery<'a, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + 'a>>;

/// Some deliveries under one key, as they go on.
struct Play<'a, T, E, H, C> {
    world: &'a World,
    handler: &'a H,
    count: &'a C,
    before: u64,
    sighting: Sighting,
    /// The outcomes so far.
    answers: Vec<T>,
    awaits: usize,
    alarm: Arc<Alarm>,
    error: PhantomData<E>,
}

impl World {
    pub(super) async fn play<T, E, H, C>(self, case: Case, handler: &H, count: &C) -> (Row, Size)
    where
        T: PartialEq + Debug,
        H: AsyncFn(Engine, String) -> Result<T, E>,
        C: AsyncFn() -> u64,
    {
        let before = count().await;
        let mut play = Play {
            world: &self,
            handler,
            count,
            before,
            sighting: Sighting::default(),
            answers: Vec::new(),
            awaits: 0,
            alarm: Arc::default(),
            error: PhantomData,
        };
        play.disturbed(case).await;
        let size = Size { calls: self.store.calls(), awaits: play.awaits };
        self.store.heal();
        let end = play.repeat().await;
        let effects = count().await.saturating_sub(before);
        let finding =
            judge(case == Case::Undisturbed, [effects, self.effects], &play.answers, end, play.sighting);
        (Row { schedule: case.to_string(), effects, end, finding }, size)
    }

    async fn record(&self) -> Option<Box<Record>> {
        self.store.inner().load(&self.id).await.ok()?.record
    }

    async fn seen(&self) -> Seen {
        let record = self.record().await;
        match record.as_deref().map(|record| &record.state) {
            None => Seen::Absent,
            Some(State::InProgress { effect: false, .. }) => Seen::Unmarked,
            Some(State::InProgress { .. }) => Seen::Marked,
            Some(State::Completed(_)) => Seen::Completed,
            Some(State::Failed(..)) => Seen::Failed,
        }
    }

    /// Advances the clock past any lease and delay of a retry.
    async fn outlast_lease(&self) {
        let Ok(found) = self.store.inner().load(&self.id).await else { return };
        if let Some(record) = &found.record {
            self.clock.advance(record.blocked_for(found.now) + Duration::from_secs(1));
        }
    }
}

impl<'a, T, E, H, C> Play<'a, T, E, H, C>
where
    T: PartialEq + Debug,
    H: AsyncFn(Engine, String) -> Result<T, E>,
    C: AsyncFn() -> u64,
{
    /// Delivers the request as the schedule says.
    async fn disturbed(&mut self, case: Case) {
        match case {
            Case::Undisturbed => {
                let mut first = self.deliver();
                self.finish(&mut first).await;
            }
            Case::Fault { call, fault } => {
                self.world.store.on_call(call, fault);
                let mut first = self.deliver();
                self.finish(&mut first).await;
            }
            Case::Away { call } => {
                self.world.store.from_call(call, Fault::FailBefore);
                let mut first = self.deliver();
                self.finish(&mut first).await;
            }
            Case::Dropped { at } => {
                let mut first = self.deliver();
                self.advance(&mut first, at).await;
            }
            Case::DroppedThenAtOnce { at } => {
                let mut first = self.deliver();
                self.advance(&mut first, at).await;
                drop(first);
                let mut second = self.deliver();
                self.finish(&mut second).await;
            }
            Case::DroppedTwice { at } => {
                let mut first = self.deliver();
                self.advance(&mut first, AFTER_BEGIN).await;
                drop(first);
                self.world.outlast_lease().await;
                let mut second = self.deliver();
                self.advance(&mut second, at).await;
            }
            Case::Twice { at } => {
                let mut first = self.deliver();
                let is_over = self.advance(&mut first, at).await;
                let mut second = self.deliver();
                match is_over {
                    true => self.finish(&mut second).await,
                    false => self.finish_both(&mut first, &mut second).await,
                }
            }
            Case::Zombie { at } => {
                let mut first = self.deliver();
                let is_over = self.advance(&mut first, at).await;
                self.world.outlast_lease().await;
                let mut second = self.deliver();
                if is_over {
                    self.finish(&mut second).await;
                } else if self.finish_unless_blocked(&mut second).await {
                    self.finish(&mut first).await;
                } else {
                    self.finish_both(&mut first, &mut second).await;
                }
            }
        }
    }

    /// Delivers the request again, each time after the last lease, until its end is known.
    async fn repeat(&mut self) -> End {
        for _ in 0..DELIVERIES {
            self.world.outlast_lease().await;
            let before = self.answers.len();
            let mut again = self.deliver();
            self.finish(&mut again).await;
            if self.answers.len() > before {
                return End::Answered;
            }
        }
        let record = self.world.record().await;
        match record.as_deref() {
            Some(record) if record.is_evidence() => End::Unresolved,
            Some(record) if matches!(record.state, State::Failed(_, Retry::Never)) => End::Failed,
            _ => End::Open,
        }
    }

    fn deliver(&self) -> Delivery<'a, T, E> {
        let handler = self.handler;
        Box::pin(handler(self.world.engine.clone(), self.world.key.clone()))
    }

    /// Polls a delivery once. Returns true at its end.
    async fn poll(&mut self, delivery: &mut Delivery<'_, T, E>) -> bool {
        let waker = Waker::from(Arc::clone(&self.alarm));
        let polled = delivery.as_mut().poll(&mut Context::from_waker(&waker));
        if let Poll::Ready(Ok(answer)) = polled {
            self.answers.push(answer);
            self.look().await;
            let is_open = matches!(self.world.seen().await, Seen::Unmarked | Seen::Marked);
            self.sighting.was_answered_early |= is_open;
            return true;
        }
        self.look().await;
        polled.is_ready()
    }

    /// Notes the record at the first effect. A poll ends before and after each store call, so
    /// nothing comes between the two.
    async fn look(&mut self) {
        if self.sighting.at_effect.is_some() {
            self.sighting.was_marked_later |= self.world.seen().await == Seen::Marked;
        } else if (self.count)().await > self.before {
            self.sighting.at_effect = Some(self.world.seen().await);
        }
    }

    /// Polls a delivery up to the `at`-th await. Returns true if it ended before.
    async fn advance(&mut self, delivery: &mut Delivery<'_, T, E>, at: usize) -> bool {
        for n in 1..=at {
            if self.poll(delivery).await {
                return true;
            }
            if n < at {
                self.wait().await;
            }
        }
        false
    }

    /// Polls a delivery to its end.
    ///
    /// # Panics
    /// If that takes too long: see [`Limit`].
    async fn finish(&mut self, delivery: &mut Delivery<'_, T, E>) {
        let limit = Limit::new();
        while !self.poll(delivery).await {
            self.awaits += 1;
            limit.check(self.world);
            self.wait().await;
        }
    }

    /// The same, unless the delivery waits for something that neither it nor the clock brings, such
    /// as a lock that another delivery holds. Returns false then.
    async fn finish_unless_blocked(&mut self, delivery: &mut Delivery<'_, T, E>) -> bool {
        let limit = Limit::new();
        while !self.poll(delivery).await {
            limit.check(self.world);
            if !self.moves_on(BLOCKED).await {
                return false;
            }
        }
        true
    }

    async fn finish_both(&mut self, first: &mut Delivery<'_, T, E>, second: &mut Delivery<'_, T, E>) {
        let limit = Limit::new();
        let (mut first_is_over, mut second_is_over) = (false, false);
        while !(first_is_over && second_is_over) {
            second_is_over = second_is_over || self.poll(second).await;
            first_is_over = first_is_over || self.poll(first).await;
            if !(first_is_over && second_is_over) {
                limit.check(self.world);
                self.wait().await;
            }
        }
    }

    /// Returns once a delivery may go on.
    ///
    /// # Panics
    /// If nothing lets one go on for too long.
    #[allow(clippy::panic)] // a check fails by panicking
    async fn wait(&self) {
        if !self.moves_on(PATIENCE).await {
            panic!("the handler waits for more than {PATIENCE:?}, and not for the engine or its clock");
        }
    }

    /// Returns true once a delivery was woken. If nothing wakes one for a moment, the clock goes on
    /// to the next time that something waits for. Returns false if there is no such time, and
    /// nothing wakes one within `patience`.
    async fn moves_on(&self, patience: Duration) -> bool {
        let until = SystemClock.monotonic() + patience;
        loop {
            if self.alarm.rings(IDLE).await {
                return true;
            }
            if let Some(left) = self.world.clock.next_sleeper() {
                self.world.clock.advance(left);
                return true;
            }
            if SystemClock.monotonic() >= until {
                return false;
            }
        }
    }
}

/// The limit of the real time that a delivery takes. The store is back before, for a handler that
/// tries again until it is.
struct Limit(Duration);

impl Limit {
    fn new() -> Limit {
        Limit(SystemClock.monotonic())
    }

    /// # Panics
    /// If the time is over.
    #[allow(clippy::panic)] // a check fails by panicking
    fn check(&self, world: &World) {
        let taken = SystemClock.monotonic().saturating_sub(self.0);
        if taken > AWAY {
            world.store.heal();
        }
        if taken > PATIENCE {
            panic!("a delivery takes more than {PATIENCE:?}: does the handler repeat for ever?");
        }
    }
}

/// Notes that a delivery was woken, and wakes the task that waits for that. The audit awaits other
/// things in between, for which the task is woken too.
#[derive(Default)]
struct Alarm {
    rang: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.rang.store(true, Ordering::SeqCst);
        self.task.wake();
    }
}

impl Alarm {
    /// Returns true once it rang, or false if it did not within this real time.
    async fn rings(&self, within: Duration) -> bool {
        let mut timer = SystemClock.sleep(within);
        poll_fn(|context| {
            self.task.register(context.waker());
            if self.rang.swap(false, Ordering::SeqCst) {
                return Poll::Ready(true);
            }
            timer.as_mut().poll(context).map(|()| false)
        })
        .await
    }
}
