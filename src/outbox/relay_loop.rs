//! The loop of a relay: it claims, delivers and settles, all at the same time.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::delivery::{DeliveryError, Then};
use super::event::Event;
use super::relay::{Drained, Relay};
use super::{Claim, Claimed, Isolation, Outbox, Part, Settled, Settlement};
use crate::clock::Clock;
use crate::error::StoreError;
use crate::observe;
use crate::owner::Owner;

/// The pause after the database failed.
const PAUSE: Duration = Duration::from_secs(1);
/// The pause after a claim that looked at some of very many keys and found none that is due.
const REST: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Waits for events until it is stopped; a failing database is tried again.
    Forever,
    /// Ends once nothing is due; ends at the first error.
    Drain,
}

/// The state of a running relay.
pub(super) struct RelayLoop<'a, O, F> {
    relay: &'a Relay<O>,
    deliver: &'a F,
    mode: Mode,
    steps: FuturesUnordered<BoxFuture<'a, Step>>,
    /// Events that are claimed and not settled.
    open: usize,
    /// Outcomes that are to be written.
    settlements: Vec<Settlement>,
    /// Claimed events that a crash left behind. Each is delivered alone: it may be the cause.
    suspects: VecDeque<(Claimed, Owner)>,
    /// True while one of them is delivered.
    alone: bool,
    /// True while such a step is under way.
    claims: bool,
    settles: bool,
    waits: bool,
    measures: bool,
    /// True if there may be events to claim.
    hungry: bool,
    /// The key that the next claim starts after.
    after: Part,
    /// True if something changed since the walk through the keys began: it is followed by another.
    again: bool,
    rests: bool,
    stopping: bool,
    seen: u64,
    failed: Option<StoreError>,
    drained: Drained,
}

/// The end of something that the relay does.
enum Step {
    Claimed(Result<Found, StoreError>),
    Delivered(Settlement),
    /// A suspect that could not be delivered: false if another owner has it.
    Kept(Result<bool, StoreError>),
    Settled(Vec<Settlement>, Result<Vec<bool>, StoreError>),
    /// A wake-up, or the end of a pause.
    Changed(Option<u64>),
    Rested,
    Measured,
}

/// The result of a claim.
struct Found {
    owner: Owner,
    /// The time, on the outbox's clock, at which the claim ends.
    until: Duration,
    events: Vec<Claimed>,
    /// True if there may be more unordered events, or a limit cut the claim short.
    more: bool,
    next: Option<(String, String)>,
}

impl<'a, O, F, R, E> RelayLoop<'a, O, F>
where
    O: Outbox,
    F: Fn(Event) -> R + Send + Sync,
    R: Future<Output = Result<(), E>> + Send + 'a,
    E: Into<DeliveryError> + Send,
{
    pub(super) fn new(relay: &'a Relay<O>, deliver: &'a F, mode: Mode) -> RelayLoop<'a, O, F> {
        RelayLoop {
            relay,
            deliver,
            mode,
            steps: FuturesUnordered::new(),
            open: 0,
            settlements: Vec::new(),
            suspects: VecDeque::new(),
            alone: false,
            claims: false,
            settles: false,
            waits: false,
            measures: false,
            hungry: true,
            after: Part::START,
            again: false,
            rests: false,
            stopping: false,
            seen: 0,
            failed: None,
            drained: Drained::default(),
        }
    }

    pub(super) async fn run(
        mut self,
        mut stop: Pin<&mut (impl Future<Output = ()> + Send)>,
    ) -> Result<Drained, StoreError> {
        observe::describe();
        loop {
            self.start();
            if self.open == 0 && !self.claims && (self.stopping || self.mode == Mode::Drain && !self.hungry) {
                return self.failed.map_or(Ok(self.drained), Err);
            }
            if self.stopping {
                match self.steps.next().await {
                    Some(step) => self.take(step),
                    None => return self.failed.map_or(Ok(self.drained), Err),
                }
                continue;
            }
            match select(stop.as_mut(), self.steps.next()).await {
                Either::Left(((), _)) => self.stopping = true,
                Either::Right((Some(step), _)) => self.take(step),
                Either::Right((None, _)) => return self.failed.map_or(Ok(self.drained), Err),
            }
        }
    }

    /// Starts what can be started.
    fn start(&mut self) {
        let outbox = &self.relay.outbox;
        if !self.settlements.is_empty() && !self.settles {
            self.settles = true;
            let settlements = std::mem::take(&mut self.settlements);
            self.steps.push(Box::pin(async move {
                let settled = outbox.settle(&settlements).await;
                Step::Settled(settlements, settled)
            }));
        }
        if self.stopping {
            let suspects = std::mem::take(&mut self.suspects);
            self.settlements.extend(suspects.into_iter().map(|(claimed, owner)| released(&claimed, owner)));
            return;
        }
        self.isolate();
        if self.mode == Mode::Forever && !self.waits {
            self.waits = true;
            let (seen, poll) = (self.seen, self.relay.poll);
            self.steps.push(Box::pin(async move { Step::Changed(Some(outbox.changed(seen, poll).await)) }));
        }
        if cfg!(feature = "metrics") && self.mode == Mode::Forever && !self.measures {
            self.measures = true;
            self.steps.push(Box::pin(measure(self.relay)));
        }
        let room = self.relay.concurrency.saturating_sub(self.open);
        if self.hungry && !self.claims && !self.rests && !self.alone && self.suspects.is_empty() && room > 0 {
            if self.after == Part::START {
                self.again = false;
            }
            (self.hungry, self.claims) = (false, true);
            self.steps.push(Box::pin(claim(self.relay, room, self.after.clone())));
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Claimed(Ok(found)) => {
                self.claims = false;
                self.open += found.events.len();
                self.walk(&found);
                let Found { owner, until, events, .. } = found;
                for claimed in events {
                    if self.stopping {
                        self.settlements.push(released(&claimed, owner));
                    } else {
                        self.begin(claimed, owner, until);
                    }
                }
                // One that killed a relay alone comes last, and delays no other.
                self.suspects.make_contiguous().sort_by_key(|(claimed, _)| claimed.event.attempt);
            }
            Step::Claimed(Err(error)) => {
                self.claims = false;
                self.fail(error);
            }
            Step::Delivered(settlement) => {
                self.alone = false;
                self.settlements.push(settlement);
            }
            Step::Kept(held) => {
                (self.alone, self.open) = (false, self.open - 1);
                self.look_again();
                match held {
                    Ok(_) => self.drained.lost += 1,
                    Err(error) => self.fail(error),
                }
            }
            Step::Settled(settlements, Ok(held)) => {
                self.settles = false;
                self.open -= settlements.len();
                // The next events of their keys are due.
                self.look_again();
                for (settlement, held) in settlements.iter().zip(held) {
                    // The row of a delivery that was recorded without an answer is gone.
                    let recorded = settlement.repeated && settlement.outcome == Settled::Delivered;
                    self.count(&settlement.outcome, held || recorded);
                }
            }
            Step::Settled(settlements, Err(error)) => {
                self.settles = false;
                if self.mode == Mode::Drain || self.stopping || !error.is_transient() {
                    // The claims run out, and the events are delivered again.
                    self.open -= settlements.len();
                } else {
                    // What was delivered must be recorded, or it is delivered again.
                    let repeated = |settlement| Settlement { repeated: true, ..settlement };
                    self.settlements.extend(settlements.into_iter().map(repeated));
                    self.settles = true;
                    let clock = self.relay.outbox.clock();
                    self.steps.push(Box::pin(
                        clock.sleep(PAUSE).map(|()| Step::Settled(Vec::new(), Ok(Vec::new()))),
                    ));
                }
                self.fail(error);
            }
            Step::Rested => self.rests = false,
            Step::Changed(seen) => {
                self.look_again();
                if let Some(seen) = seen {
                    (self.waits, self.seen) = (false, seen);
                }
            }
            Step::Measured => self.measures = false,
        }
    }

    /// Notes that events may have become due, also of keys that the present walk has passed.
    fn look_again(&mut self) {
        (self.hungry, self.again) = (true, true);
    }

    /// Decides where the next claim goes on.
    fn walk(&mut self, found: &Found) {
        self.hungry |= found.more;
        match &found.next {
            Some((topic, key)) => {
                self.after = Part::After(topic.clone(), key.clone());
                self.hungry = true;
                if found.events.is_empty() && self.mode == Mode::Forever {
                    // Very many keys wait for their retries.
                    self.rests = true;
                    let clock = self.relay.outbox.clock();
                    self.steps.push(Box::pin(clock.sleep(REST).map(|()| Step::Rested)));
                }
            }
            None => {
                self.after = Part::START;
                self.hungry |= self.again;
            }
        }
    }

    /// Starts the delivery of a claimed event.
    fn begin(&mut self, claimed: Claimed, owner: Owner, until: Duration) {
        let attempts = claimed.event.attempt - 1;
        // The attempts before may have ended with crashes.
        if attempts >= self.relay.max_attempts {
            observe::outbox_dead(self.relay.outbox.name(), attempts);
            let (seq, outcome) = (claimed.seq, Settled::Dead(claimed.error.unwrap_or_default()));
            self.settlements.push(Settlement { seq, owner, outcome, attempts, repeated: false });
            return;
        }
        if claimed.crashed {
            self.suspects.push_back((claimed, owner));
            return;
        }
        let (relay, deliver) = (self.relay, self.deliver);
        self.steps.push(Box::pin(async move {
            Step::Delivered(settle_after(relay, deliver, claimed, owner, until).await)
        }));
    }

    /// Starts the delivery of a suspect once nothing else is delivered, and counts it beforehand.
    fn isolate(&mut self) {
        if self.claims || self.settles || self.alone || self.open != self.suspects.len() {
            return;
        }
        let Some((claimed, owner)) = self.suspects.pop_front() else { return };
        self.alone = true;
        let (relay, deliver) = (self.relay, self.deliver);
        self.steps.push(Box::pin(async move {
            let until = relay.outbox.clock().monotonic().saturating_add(relay.lease());
            let Claimed { seq, ref event, .. } = claimed;
            let alone = Isolation { seq, owner, attempt: event.attempt, lease: relay.lease() };
            match relay.outbox.isolate(&alone).await {
                Ok(true) => Step::Delivered(settle_after(relay, deliver, claimed, owner, until).await),
                kept => Step::Kept(kept),
            }
        }));
    }

    fn count(&mut self, outcome: &Settled, held: bool) {
        let name = self.relay.outbox.name();
        let (counter, outcome) = match outcome {
            _ if !held => (&mut self.drained.lost, "lost"),
            Settled::Delivered => (&mut self.drained.delivered, "delivered"),
            Settled::Retry(..) => (&mut self.drained.retried, "retried"),
            Settled::Dead(_) => (&mut self.drained.dead, "dead"),
            Settled::Released | Settled::Suspected => return,
        };
        *counter += 1;
        observe::outbox_delivery(name, outcome);
    }

    /// Stops because of an error that does not pass, and pauses after another.
    fn fail(&mut self, error: StoreError) {
        observe::outbox_error(self.relay.outbox.name());
        if self.mode == Mode::Drain || !error.is_transient() {
            self.stopping = true;
            self.failed.get_or_insert(error);
            return;
        }
        let clock = self.relay.outbox.clock();
        self.steps.push(Box::pin(clock.sleep(PAUSE).map(|()| Step::Changed(None))));
    }
}

/// Returns the settlement of an event that is not tried.
fn released(claimed: &Claimed, owner: Owner) -> Settlement {
    let outcome = if claimed.crashed { Settled::Suspected } else { Settled::Released };
    Settlement { seq: claimed.seq, owner, outcome, attempts: claimed.event.attempt - 1, repeated: false }
}

/// Delivers an event and returns the settlement.
async fn settle_after<O, F, R, E>(
    relay: &Relay<O>,
    deliver: &F,
    claimed: Claimed,
    owner: Owner,
    until: Duration,
) -> Settlement
where
    O: Outbox,
    F: Fn(Event) -> R + Send + Sync,
    R: Future<Output = Result<(), E>> + Send,
    E: Into<DeliveryError> + Send,
{
    let (unsettled, attempts) = (released(&claimed, owner), claimed.event.attempt);
    match attempt(relay, deliver, claimed.event, until).await {
        Settled::Released | Settled::Suspected => unsettled,
        outcome @ (Settled::Delivered | Settled::Retry(..) | Settled::Dead(_)) => {
            Settlement { outcome, attempts, ..unsettled }
        }
    }
}

/// Claims events for `room` deliveries: up to half of them unordered, so that neither kind waits
/// for the other.
async fn claim<O: Outbox>(relay: &Relay<O>, room: usize, after: Part) -> Step {
    let claim = async {
        let owner = Owner::random().map_err(|error| StoreError::unavailable("outbox", error.to_string()))?;
        let until = relay.outbox.clock().monotonic().saturating_add(relay.lease());
        let part = |part, limit| Claim {
            owner,
            limit,
            lease: relay.lease(),
            topics: relay.topics.clone(),
            hold_keys: relay.hold_keys,
            part,
            keys: (4 * room).clamp(16, 256),
        };
        let half = room.div_ceil(2);
        let unordered = relay.outbox.claim(&part(Part::Unordered, half)).await?;
        let (mut events, mut next) = (unordered.events, None);
        let mut more = events.len() >= half;
        let left = room - events.len();
        if left > 0 {
            let ordered = relay.outbox.claim(&part(after.clone(), left)).await;
            // Those that are claimed are delivered, whatever happens to the others.
            match ordered {
                Ok(ordered) => {
                    more |= ordered.events.len() >= left;
                    next = ordered.next;
                    events.extend(ordered.events);
                }
                Err(error) if events.is_empty() => return Err(error),
                Err(_) => more = true,
            }
        } else if let Part::After(topic, key) = after {
            next = Some((topic, key));
        }
        Ok(Found { owner, until, events, more, next })
    };
    Step::Claimed(claim.await)
}

/// Runs the closure on an event, at most until its claim ends.
async fn attempt<O, F, R, E>(relay: &Relay<O>, deliver: &F, event: Event, until: Duration) -> Settled
where
    O: Outbox,
    F: Fn(Event) -> R + Send + Sync,
    R: Future<Output = Result<(), E>> + Send,
    E: Into<DeliveryError> + Send,
{
    let clock: &dyn Clock = relay.outbox.clock();
    // An answer to the claim that came late leaves less time, or none.
    let limit = until.saturating_sub(clock.monotonic()).min(relay.timeout);
    if limit < relay.timeout / 2 {
        return Settled::Released;
    }
    let (number, id) = (event.attempt, event.id);
    // The text of the error and the drop of the future are the application's code too.
    let delivery = async { deliver(event).await.map_err(Into::<DeliveryError>::into) };
    let delivery = Box::pin(AssertUnwindSafe(delivery).catch_unwind());
    let error = match select(delivery, clock.sleep(limit)).await {
        Either::Left((Ok(Ok(())), _)) => return Settled::Delivered,
        Either::Left((Ok(Err(error)), _)) => error,
        Either::Left((Err(_), _)) => DeliveryError::retry("the delivery panicked"),
        Either::Right(((), delivery)) => match catch_unwind(AssertUnwindSafe(|| drop(delivery))) {
            Ok(()) => DeliveryError::retry(format!("not delivered within {limit:?}")),
            Err(_) => DeliveryError::retry(format!("not delivered within {limit:?}, and its drop panicked")),
        },
    };
    if error.then == Then::Reject || number >= relay.max_attempts {
        observe::outbox_dead(relay.outbox.name(), number);
        return Settled::Dead(error.text);
    }
    let pause = match error.then {
        Then::After(pause) => pause,
        Then::BackOff | Then::Reject => relay.back_off.after(number, &id),
    };
    Settled::Retry(pause, error.text)
}

/// Sets the gauges, and waits until they are due again.
async fn measure<O: Outbox>(relay: &Relay<O>) -> Step {
    if let Ok(stats) = relay.outbox.stats().await {
        observe::outbox_stats(relay.outbox.name(), &stats);
    }
    relay.outbox.clock().sleep(relay.stats_every).await;
    Step::Measured
}
