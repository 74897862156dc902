//! A transactional outbox: events that an application commits together with its own writes, and a
//! [`Relay`] that delivers each of them at least once.
//!
//! A service that writes to its database and then publishes an event loses the event if it crashes
//! in between, and publishes a lie if it does so first. With an outbox the event is a row in the
//! same transaction: both or neither. A relay, in any number of processes, later takes the rows and
//! passes each to a closure of the application's, which publishes it.
//!
//! ```text
//!   BEGIN                          relay                            consumer
//!     UPDATE orders ..      ┌─► claim the oldest event of a key ─►  begin(topic, event id)
//!     push_in(event) ───────┘   deliver (your closure)              act once
//!   COMMIT                      remove, retry later, or put aside   complete
//! ```
//!
//! * **At least once.** A relay that is killed after a delivery and before it could record it
//!   delivers again. Every delivery carries the same [`EventId`]. A consumer that begins an
//!   operation under it ([`Event::request`]) acts once: effect, event and deduplication from end to
//!   end.
//! * **In order per key.** An event is not claimed while an earlier one of the same topic and key
//!   is pending, in any process. Different keys do not wait for each other. An **empty
//!   key** has no order. A transaction that pushes to a key waits, until that one ends, for another
//!   that pushed to it before, so that the order of events is that of the commits.
//! * **No event is skipped.** A relay looks for rows, and not for numbers beyond the last one: a
//!   transaction that commits late is delivered late, and not never.
//! * **A claim is a lease.** A closure that takes longer than [`Relay::timeout`] is dropped and its
//!   event retried. The claims of a process that died are taken over half that time later.
//! * **A poison event is put aside** after [`Relay::max_attempts`]. It is a [`DeadLetter`] from
//!   then on, and keeps no other key from being delivered. Later events of its own key follow,
//!   unless [`Relay::hold_keys`] says otherwise. One that kills its relay is too: events that a
//!   crash left behind are delivered one at a time, and a crash counts only then.
//!
//! A delivered event's row is removed. Dead letters stay until they are revived, discarded or
//! [purged](Outbox::purge).
//!
//! # What it does not promise
//!
//! * Exactly one delivery. No outbox can: the closure's effect and the row are in two places.
//! * Order, once an operator revives a dead letter, or if a closure that was dropped has its effect
//!   later all the same: give the broker's client a time limit of its own that is shorter.
//! * Order between keys, or between topics.
//! * Bounded time, if a closure blocks its thread: a future that does not return cannot be dropped.
//!
//! `docs/OUTBOX.md` in the repository has more: crashes, wake-ups, operation and figures.

mod delivery;
mod event;
mod relay;
mod relay_loop;

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::{Error, StoreError};

pub use self::delivery::DeliveryError;
pub use self::event::{DeadLetter, Event, EventId, Stats};
pub use self::relay::{Drained, Relay};

pub(crate) use self::event::NewEvent;

/// The longest payload of an event, in bytes: 1 MiB. Publish a reference to anything longer.
pub const MAX_PAYLOAD_BYTES: usize = 1 << 20;

/// The operations on an outbox that do not depend on its database: `SqliteOutbox` and
/// `PostgresOutbox` implement it, and no other type can. Events are pushed with a method of theirs,
/// since it takes a transaction of that database.
#[async_trait]
pub trait Outbox: sealed::Queue {
    /// Counts pending events and dead letters, and measures the age of the oldest pending event.
    /// Reads all of them: some milliseconds for 10 000.
    ///
    /// # Errors
    /// [`StoreError`] if the database did not answer.
    async fn stats(&self) -> Result<Stats, StoreError>;

    /// Lists the oldest dead letters, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`] if the database did not answer.
    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, StoreError>;

    /// Makes a dead letter pending again, with all its attempts. It takes its old place in the
    /// order of its key, before events of the key that are still pending. Returns false if there is
    /// no such dead letter.
    ///
    /// # Errors
    /// [`StoreError`] if the database did not answer.
    async fn revive(&self, id: EventId) -> Result<bool, StoreError>;

    /// Removes a dead letter. Returns false if there is none with this id.
    ///
    /// # Errors
    /// [`StoreError`] if the database did not answer.
    async fn discard(&self, id: EventId) -> Result<bool, StoreError>;

    /// Removes dead letters that were put aside longer than `age` ago, oldest first, at most
    /// `limit` of them, and returns their number. Call it until it returns fewer than `limit`.
    ///
    /// # Errors
    /// [`StoreError`] if the database did not answer.
    async fn purge(&self, age: Duration, limit: usize) -> Result<u64, StoreError>;
}

/// The part of an outbox that only the relay calls.
pub(crate) mod sealed {
    use super::{Claim, Claims, Duration, Isolation, Settlement, StoreError, async_trait, fmt};
    use crate::clock::Clock;

    /// The queue behind a relay. The rules are the relay's; a backend claims and settles rows.
    #[async_trait]
    #[allow(unreachable_pub)] // a supertrait of a public trait
    pub trait Queue: fmt::Debug + Send + Sync + 'static {
        /// Claims due events of a [`Part`](super::Part): pending, and neither claimed nor waiting
        /// for a retry. Counts no attempt: a crash hits all that were claimed with its cause.
        async fn claim(&self, claim: &Claim) -> Result<Claims, StoreError>;

        /// Counts the attempt of an event that is delivered alone, and renews its claim. Returns
        /// false if the owner does not have it any more.
        async fn isolate(&self, alone: &Isolation) -> Result<bool, StoreError>;

        /// Settles events that `claim` returned to the same owner. Returns for each if it was still
        /// claimed by that owner; the others are left as they are. Repeating it does no harm.
        async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<bool>, StoreError>;

        /// Returns a number that differs from `seen` as soon as there may be new events, or after
        /// `within`.
        async fn changed(&self, seen: u64, within: Duration) -> u64;

        /// The clock that the relay measures its leases and pauses with.
        fn clock(&self) -> &dyn Clock;

        /// The name in metrics and events: that of the backend.
        fn name(&self) -> &'static str;
    }
}

/// The terms of a claim.
#[derive(Debug, Clone)]
#[allow(unreachable_pub)] // only the sealed trait names it
pub struct Claim {
    pub(crate) owner: crate::Owner,
    pub(crate) limit: usize,
    pub(crate) lease: Duration,
    /// The topics to claim; empty for all.
    pub(crate) topics: Vec<String>,
    pub(crate) hold_keys: bool,
    pub(crate) part: Part,
    /// The number of keys that it looks at, some 10 µs each.
    pub(crate) keys: usize,
}

/// The events that a claim looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(unreachable_pub)] // only the sealed trait names it
pub enum Part {
    /// Those with an empty key, in the order of their numbers.
    Unordered,
    /// The oldest of each key, in the order of topics and keys: the next keys after this one, at
    /// most `Claim::keys` of them. An event is the oldest if no earlier one of its key is pending
    /// or, with `hold_keys`, a dead letter. The number of events that wait behind it does not
    /// matter.
    After(String, String),
}

impl Part {
    /// The beginning of all keys.
    pub(crate) const START: Part = Part::After(String::new(), String::new());
}

/// The result of a claim.
#[derive(Debug)]
#[allow(unreachable_pub)] // only the sealed trait names it
pub struct Claims {
    pub(crate) events: Vec<Claimed>,
    /// The topic and key to go on after, if there are more keys.
    pub(crate) next: Option<(String, String)>,
}

/// A claimed event.
#[derive(Debug)]
#[allow(unreachable_pub)] // only the sealed trait names it
pub struct Claimed {
    pub(crate) seq: i64,
    pub(crate) event: Event,
    /// The error of the last attempt, if it reported one.
    pub(crate) error: Option<String>,
    /// True if the last claim of it was never settled: its relay died, or was too slow.
    pub(crate) crashed: bool,
}

/// The start of a delivery beside which no other runs.
#[derive(Debug, Clone, Copy)]
#[allow(unreachable_pub)] // only the sealed trait names it
pub struct Isolation {
    pub(crate) seq: i64,
    pub(crate) owner: crate::Owner,
    pub(crate) attempt: u32,
    pub(crate) lease: Duration,
}

/// The end of an attempt.
#[derive(Debug, Clone)]
#[allow(unreachable_pub)] // only the sealed trait names it
pub struct Settlement {
    pub(crate) seq: i64,
    pub(crate) owner: crate::Owner,
    pub(crate) outcome: Settled,
    /// The number of attempts that count, with this one if it does.
    pub(crate) attempts: u32,
    /// True if it was sent before, without an answer.
    pub(crate) repeated: bool,
}

/// The consequence of an attempt for its event.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(unreachable_pub)] // only the sealed trait names it
pub enum Settled {
    /// Delivered: it is removed.
    Delivered,
    /// It is tried again after this time.
    Retry(Duration, String),
    /// It becomes a dead letter.
    Dead(String),
    /// It was not tried: it is due again, and its attempt does not count.
    Released,
    /// The same for an event whose attempt before ended with a crash: it stays one to deliver
    /// alone.
    Suspected,
}

/// Checks an event before it is written, and draws its id.
///
/// # Errors
/// [`Error::Key`] and [`Error::TooLarge`] if a part is invalid, [`Error::Owner`] without random
/// bytes.
#[allow(dead_code)] // without a backend
pub(crate) fn check<'a>(topic: &'a str, key: &'a str, payload: &'a [u8]) -> Result<NewEvent<'a>, Error> {
    NewEvent::new(topic, key, payload)
}
