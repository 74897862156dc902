//! The delivery of events: [`Relay`].

use std::fmt;
use std::future::{Future, pending};
use std::time::Duration;

use super::delivery::DeliveryError;
use super::event::Event;
use super::relay_loop::{Mode, RelayLoop};
use super::{EventId, Outbox};
use crate::error::StoreError;

/// The pauses between the attempts of an event.
#[derive(Debug, Clone, Copy)]
pub(super) struct BackOff {
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

impl BackOff {
    /// Returns the pause after the attempt with this number. Events differ by up to a quarter, so
    /// that those which failed together are not retried together.
    pub(super) fn after(&self, attempt: u32, id: &EventId) -> Duration {
        let doubled = 1_u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX);
        let pause = self.first.saturating_mul(doubled).min(self.longest);
        pause.mul_f64(1.0 - f64::from(id.as_bytes()[0]) / 1024.0)
    }
}

/// The numbers of a [`Relay::drain`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Drained {
    /// Events that were delivered.
    pub delivered: u64,
    /// Attempts that failed and are retried later.
    pub retried: u64,
    /// Events that became dead letters.
    pub dead: u64,
    /// Attempts that were not recorded in time: another relay has the event, or will.
    pub lost: u64,
}

/// Delivers the events of an [`Outbox`] through a closure of the application's. Run one or more, in
/// any number of processes: they share the work.
///
/// ```
/// use nevertwice::SqliteOutbox;
/// use nevertwice::outbox::{DeliveryError, Event, Relay};
/// # futures_executor::block_on(async {
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("app.db");
/// let mut db = rusqlite::Connection::open(&path)?;
/// db.execute_batch("CREATE TABLE orders (id TEXT)")?;
/// let outbox = SqliteOutbox::open(&path)?;
///
/// let tx = db.transaction()?;
/// tx.execute("INSERT INTO orders VALUES ('7')", [])?;
/// outbox.push_in(&tx, "orders", "order-7", br#"{"placed":"7"}"#)?;
/// tx.commit()?; // the order and its event, both or neither
///
/// // In a task of its own: `relay.run(..)`.
/// let relay = Relay::new(outbox);
/// let drained = relay.drain(|event: Event| async move {
///     publish(event.topic(), event.key(), event.id(), event.payload()).await?;
///     Ok::<(), DeliveryError>(())
/// });
/// assert_eq!(drained.await?.delivered, 1);
/// # use nevertwice::outbox::EventId;
/// # async fn publish(_: &str, _: &str, _: EventId, _: &[u8]) -> std::io::Result<()> { Ok(()) }
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Relay<O> {
    pub(super) outbox: O,
    pub(super) topics: Vec<String>,
    pub(super) concurrency: usize,
    pub(super) timeout: Duration,
    pub(super) poll: Duration,
    pub(super) back_off: BackOff,
    pub(super) max_attempts: u32,
    pub(super) hold_keys: bool,
    pub(super) stats_every: Duration,
}

impl<O: Outbox> Relay<O> {
    /// A relay for all topics, with the default settings.
    pub fn new(outbox: O) -> Relay<O> {
        Relay {
            outbox,
            topics: Vec::new(),
            concurrency: 64,
            timeout: Duration::from_secs(30),
            poll: Duration::from_secs(1),
            back_off: BackOff { first: Duration::from_secs(1), longest: Duration::from_secs(300) },
            max_attempts: 15,
            hold_keys: false,
            stats_every: Duration::from_secs(15),
        }
    }

    /// Delivers only events of these topics. **Default: all.** An event whose topic no relay
    /// delivers waits for ever.
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> Relay<O> {
        self.topics = topics.into_iter().map(Into::into).collect();
        self
    }

    /// Sets how many events are delivered at the same time, each of another key. **Default 64.**
    /// At least 1. *Higher* hides the latency of a slow broker, and leaves more claims behind when
    /// the process dies.
    pub fn concurrency(mut self, events: usize) -> Relay<O> {
        self.concurrency = events.max(1);
        self
    }

    /// Sets the time after which the closure's future is dropped and its event retried. **Default
    /// 30 s.** A claim is held for half as long again, so a process that died delays the events it
    /// had by at most that. *Too short*: slow deliveries are repeated. *Too long*: a crash delays
    /// the keys that it hit.
    pub fn timeout(mut self, timeout: Duration) -> Relay<O> {
        self.timeout = timeout.max(Duration::from_millis(1));
        self
    }

    /// Sets how long an idle relay waits for a wake-up before it looks by itself. **Default 1 s.**
    /// A wake-up can be missing: PostgreSQL's notifications are lost with a connection, and only
    /// come if the application asks for them.
    pub fn poll(mut self, poll: Duration) -> Relay<O> {
        self.poll = poll.max(Duration::from_millis(1));
        self
    }

    /// Sets the pause after the first failure of an event, doubled after each further one up to
    /// `longest`. **Default 1 s, 5 min.** Each event's are up to a quarter shorter.
    pub fn back_off(mut self, first: Duration, longest: Duration) -> Relay<O> {
        self.back_off = BackOff { first, longest };
        self
    }

    /// Sets the number of attempts after which an event becomes a dead letter. **Default 15**:
    /// about half an hour of pauses by the default back-off. At least 1. An event whose relay died
    /// is delivered alone the next time, and deaths count from then on: one that kills its relay is
    /// put aside too, and those beside it are not.
    pub fn max_attempts(mut self, attempts: u32) -> Relay<O> {
        self.max_attempts = attempts.max(1);
        self
    }

    /// Keeps later events of a key waiting while the key has a dead letter, until an operator
    /// revives or discards it. **Default: they follow**, and the consumer sees a gap. Use the same
    /// setting in all relays of a topic.
    pub fn hold_keys(mut self, hold: bool) -> Relay<O> {
        self.hold_keys = hold;
        self
    }

    /// Sets how often the gauges of depth, lag and dead letters are measured (feature `metrics`).
    /// **Default 15 s.**
    pub fn stats_every(mut self, every: Duration) -> Relay<O> {
        self.stats_every = every;
        self
    }

    /// Delivers events until the future is dropped, which counts as a crash: claims are taken over
    /// after one and a half [`timeout`](Relay::timeout)s. [`run_until`](Relay::run_until) ends
    /// without that delay.
    ///
    /// A closure that panics counts as a failure. While the database is unavailable the relay
    /// retries; deliveries that it could not record yet are recorded then.
    ///
    /// # Errors
    /// [`StoreError`] that does not pass by itself: the table is gone or of a newer release, or a
    /// right is missing.
    pub async fn run<F, R, E>(&self, deliver: F) -> Result<(), StoreError>
    where
        F: Fn(Event) -> R + Send + Sync,
        R: Future<Output = Result<(), E>> + Send,
        E: Into<DeliveryError> + Send,
    {
        self.run_until(deliver, pending()).await
    }

    /// Delivers events until `stop` completes. Then finishes the deliveries in progress, records
    /// them, and returns. That takes at most [`timeout`](Relay::timeout), if the database answers.
    ///
    /// # Errors
    /// The same as for [`run`](Relay::run).
    pub async fn run_until<F, R, E>(
        &self,
        deliver: F,
        stop: impl Future<Output = ()> + Send,
    ) -> Result<(), StoreError>
    where
        F: Fn(Event) -> R + Send + Sync,
        R: Future<Output = Result<(), E>> + Send,
        E: Into<DeliveryError> + Send,
    {
        let stop = std::pin::pin!(stop);
        RelayLoop::new(self, &deliver, Mode::Forever).run(stop).await.map(|_| ())
    }

    /// Delivers what is due now, with the events that follow it in the order of their keys, and
    /// returns: for scheduled jobs and tests.
    ///
    /// # Errors
    /// [`StoreError`] if the database did not answer. Events that were claimed and could not be
    /// settled are delivered again later.
    pub async fn drain<F, R, E>(&self, deliver: F) -> Result<Drained, StoreError>
    where
        F: Fn(Event) -> R + Send + Sync,
        R: Future<Output = Result<(), E>> + Send,
        E: Into<DeliveryError> + Send,
    {
        let never = std::pin::pin!(pending());
        RelayLoop::new(self, &deliver, Mode::Drain).run(never).await
    }

    /// Returns the outbox.
    pub fn outbox(&self) -> &O {
        &self.outbox
    }

    /// Returns how long a claim is held.
    pub(super) fn lease(&self) -> Duration {
        self.timeout.saturating_add(self.timeout / 2)
    }
}

impl<O: fmt::Debug> fmt::Debug for Relay<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay")
            .field("outbox", &self.outbox)
            .field("topics", &self.topics)
            .field("concurrency", &self.concurrency)
            .field("timeout", &self.timeout)
            .field("max_attempts", &self.max_attempts)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_back_off_doubles_up_to_its_longest_and_never_overflows() {
        let back_off = BackOff { first: Duration::from_secs(1), longest: Duration::from_secs(300) };
        let id = EventId::from_bytes([0; 16]);
        let seconds: Vec<_> =
            [1, 2, 3, 9, 10, 33, u32::MAX].map(|at| back_off.after(at, &id).as_secs()).into();
        assert_eq!(seconds, [1, 2, 4, 256, 300, 300, 300]);
        let late = EventId::from_bytes([255; 16]);
        assert!(back_off.after(1, &late) >= Duration::from_millis(750));
    }
}
