//! Events, and the numbers of an outbox: [`Event`], [`EventId`], [`DeadLetter`], [`Stats`].

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::MAX_PAYLOAD_BYTES;
use crate::error::Error;
use crate::fingerprint::Fingerprint;
use crate::key::{KeyError, check};
use crate::owner::Owner;
use crate::request::Request;

/// The identity of an event: 128 random bits, drawn when it is pushed and the same in every
/// delivery. Consumers deduplicate by it. Its text has 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventId(#[serde(with = "hex::serde")] [u8; EventId::BYTES]);

impl EventId {
    pub(crate) const BYTES: usize = Owner::BYTES;

    #[allow(dead_code)] // without a backend
    pub(crate) fn from_bytes(bytes: [u8; EventId::BYTES]) -> EventId {
        EventId(bytes)
    }

    /// Returns its 16 bytes.
    pub fn as_bytes(&self) -> &[u8; EventId::BYTES] {
        &self.0
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EventId({self})")
    }
}

impl FromStr for EventId {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<EventId, KeyError> {
        let mut bytes = [0; EventId::BYTES];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| KeyError::EventId)?;
        Ok(EventId(bytes))
    }
}

/// An event, as a relay passes it to the application's closure. `Debug` shows neither key nor
/// payload.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    pub(crate) id: EventId,
    pub(crate) topic: String,
    pub(crate) key: String,
    pub(crate) payload: Bytes,
    pub(crate) attempt: u32,
    pub(crate) age: Duration,
}

impl Event {
    /// Returns the id: send it along, for consumers to deduplicate by.
    pub fn id(&self) -> EventId {
        self.id
    }

    /// Returns the topic that it was pushed to.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Returns the key within which events are delivered in order; empty if it has none.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Returns the payload, byte for byte.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Returns the number of this attempt, from 1. An attempt that ended with a crash counts only
    /// if no other event was delivered beside it, so a first attempt may be a repetition too.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Returns the time between its push and its claim, by the database's clock.
    pub fn age(&self) -> Duration {
        self.age
    }

    /// Returns the request under which `consumer` processes this event once, however often it is
    /// delivered: the event's id under the scope of consumer and topic, with the fingerprint of the
    /// payload. A consumer behind a broker builds the same from the id, topic and payload that it
    /// receives.
    ///
    /// # Errors
    /// [`KeyError`] if `consumer` is empty, over 255 bytes, or has control characters.
    pub fn request(&self, consumer: &str) -> Result<Request, KeyError> {
        let request = Request::new([consumer, &self.topic], self.id.to_string())?;
        Ok(request.fingerprint(Fingerprint::of(&self.payload)))
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event")
            .field("id", &self.id)
            .field("topic", &self.topic)
            .field("attempt", &self.attempt)
            .field("age", &self.age)
            .finish_non_exhaustive()
    }
}

/// An event that was given up: after too many attempts, or because the closure rejected it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The event. Its age is counted until now.
    pub event: Event,
    /// The text of the last error; empty if every attempt ended with a crash.
    pub error: String,
}

/// The numbers of an outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The number of events that are to be delivered.
    pub pending: u64,
    /// The number of dead letters.
    pub dead: u64,
    /// The age of the oldest pending event; zero if there is none.
    pub lag: Duration,
}

/// An event about to be written.
#[derive(Clone, Copy)]
#[allow(dead_code)] // without a backend
pub(crate) struct NewEvent<'a> {
    pub(crate) id: EventId,
    pub(crate) topic: &'a str,
    pub(crate) key: &'a str,
    pub(crate) payload: &'a [u8],
}

impl<'a> NewEvent<'a> {
    pub(crate) fn new(topic: &'a str, key: &'a str, payload: &'a [u8]) -> Result<NewEvent<'a>, Error> {
        check("topic", topic)?;
        if !key.is_empty() {
            check("key", key)?;
        }
        if payload.len() > MAX_PAYLOAD_BYTES {
            let (bytes, limit) = (payload.len(), MAX_PAYLOAD_BYTES);
            return Err(Error::TooLarge { what: "payload", bytes, limit });
        }
        let id = EventId(*Owner::random()?.as_bytes());
        Ok(NewEvent { id, topic, key, payload })
    }
}
