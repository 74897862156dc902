//! What a store keeps for a key: [`Record`], its [`State`], and their bytes.

mod codec;

use std::fmt;
use std::time::Duration;

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};

pub use self::codec::DecodeError;

use crate::fingerprint::Fingerprint;
use crate::label::Label;
use crate::owner::Owner;
use crate::policy::Retry;

/// A moment in a store's time, in microseconds since the Unix epoch as that store counts it.
///
/// Every write is given one by the store, strictly greater than the stamp of what it replaces. So it is the version
/// for the next swap, the base of every deadline and, for the write that granted a lease, that grant's fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamp(pub u64);

impl Stamp {
    /// No write: less than every stamp that a store gives.
    pub const ZERO: Stamp = Stamp(0);

    /// The moment `time` after this one.
    pub fn after(self, time: Duration) -> Stamp {
        Stamp(self.0.saturating_add(micros(time)))
    }

    /// How long after `earlier` this moment is; zero if it is not.
    pub fn since(self, earlier: Stamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// The least stamp greater than this one.
    pub fn next(self) -> Stamp {
        Stamp(self.0.saturating_add(1))
    }
}

/// A duration in whole microseconds, rounded up so that a lease is never shorter than asked; `u64::MAX` stands for
/// everything longer.
pub(crate) fn micros(time: Duration) -> u64 {
    let below = u64::from(time.subsec_nanos().div_ceil(1000));
    time.as_secs().saturating_mul(1_000_000).saturating_add(below)
}

/// What is recorded under one key. Durations count from the record's stamp; no caller's clock is in it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// When this record was written, in the store's time. [`Stamp::ZERO`] until it is written.
    pub stamp: Stamp,
    /// The stamp of the write that made the latest grant. [`Stamp::ZERO`] in a record that is about to make one.
    pub fence: Stamp,
    /// What was asked for.
    pub fingerprint: Fingerprint,
    /// Which execution this is, counted from 1 (0 once an operator ordered a rerun).
    pub attempt: u32,
    /// How long the record is kept from its stamp on.
    pub retention: Duration,
    /// How long a response is kept from the record's stamp on, if not as long as the record.
    pub response_retention: Option<Duration>,
    /// The first 48 bytes of the scope, for operators.
    pub scope: Label,
    /// The key, if the policy says that stores may see it.
    pub key: Option<Box<str>>,
    /// What an attempt left for the next one.
    pub checkpoint: Option<Bytes>,
    /// Where the operation stands.
    pub state: State,
}

/// Where an operation stands. The absence of a record is the fourth state.
#[derive(Clone, PartialEq, Eq)]
pub enum State {
    /// Somebody has, or had, a lease on it.
    InProgress {
        /// Who.
        owner: Owner,
        /// For how long, from the record's stamp on.
        lease: Duration,
        /// Whether the effect may have happened from here on.
        effect: bool,
        /// Whether the attempt before this one ran out of its lease.
        takeover: bool,
        /// What the holder calls itself, for operators.
        holder: Label,
    },
    /// It was done, with this response.
    Completed(Body),
    /// It failed, with this error, and this is what the next begin may do about it.
    Failed(Body, Retry),
}

/// A recorded response or error.
#[derive(Clone, PartialEq, Eq)]
pub enum Body {
    /// The bytes, as they were given.
    Kept(Bytes),
    /// It was longer than the policy's `max_response`: its length and a digest remain.
    Omitted {
        /// Its length in bytes.
        bytes: u64,
        /// The first 64 bits of its BLAKE3 hash, by which a repetition is recognised.
        digest: u64,
    },
}

impl Body {
    /// `bytes` if they are at most `limit` long, else what marks that they were left out.
    pub fn new(bytes: Bytes, limit: usize) -> Body {
        if bytes.len() <= limit { Body::Kept(bytes) } else { Body::omitted(&bytes) }
    }

    /// The bytes, unless they were left out.
    pub fn kept(&self) -> Option<&Bytes> {
        match self {
            Body::Kept(bytes) => Some(bytes),
            Body::Omitted { .. } => None,
        }
    }

    /// Whether it stands for the same bytes, kept or left out.
    pub(crate) fn is_same(&self, other: &Body) -> bool {
        match (self, other) {
            (Body::Kept(bytes), omitted @ Body::Omitted { .. })
            | (omitted @ Body::Omitted { .. }, Body::Kept(bytes)) => Body::omitted(bytes) == *omitted,
            (Body::Kept(_), Body::Kept(_)) | (Body::Omitted { .. }, Body::Omitted { .. }) => self == other,
        }
    }

    /// What marks that the bytes were left out.
    pub(crate) fn without_bytes(&self) -> Body {
        match self {
            Body::Kept(bytes) => Body::omitted(bytes),
            Body::Omitted { .. } => self.clone(),
        }
    }

    fn omitted(bytes: &Bytes) -> Body {
        let digest = (&blake3::hash(bytes).as_bytes()[..8]).get_u64();
        Body::Omitted { bytes: bytes.len() as u64, digest }
    }

    fn stored_len(&self) -> usize {
        self.kept().map_or(0, Bytes::len)
    }
}

impl Record {
    /// How long the record must be kept from its stamp on: for its retention, which counts from the end of a lease, and
    /// from when a failed operation may be retried. So what a crash leaves is there when others may act on it.
    pub fn keep(&self) -> Duration {
        let least = match &self.state {
            State::InProgress { lease, .. } => *lease,
            State::Failed(_, Retry::After(wait)) => *wait,
            State::Failed(_, Retry::Now | Retry::Never | Retry::Unresolved) | State::Completed(_) => {
                Duration::ZERO
            }
        };
        self.retention.saturating_add(least)
    }

    /// How long the lease is that the record grants from its stamp on; `None` once the operation is finished.
    pub(crate) fn lease(&self) -> Option<Duration> {
        match &self.state {
            State::InProgress { lease, .. } => Some(*lease),
            State::Completed(_) | State::Failed(..) => None,
        }
    }

    /// Whether it grants a lease that was taken over from an attempt that ran out of its own.
    pub(crate) fn is_takeover(&self) -> bool {
        matches!(self.state, State::InProgress { takeover: true, .. })
    }

    /// The moment from which on the record counts as absent and may be removed.
    /// A record that is kept for ever has [`Stamp`]`(u64::MAX)`.
    pub fn deadline(&self) -> Stamp {
        self.stamp.after(self.keep())
    }

    /// Whether the record still counts at `now`.
    pub fn is_kept(&self, now: Stamp) -> bool {
        now < self.deadline() || self.deadline() == Stamp(u64::MAX)
    }

    /// Whether the response, if there is one, is no longer given out at `now`.
    pub fn is_response_over(&self, now: Stamp) -> bool {
        self.response_retention.is_some_and(|kept| now >= self.stamp.after(kept))
    }

    /// Whether a store that is full may refuse to write this record. Only a new grant may be refused: what
    /// was done must be recorded.
    pub fn may_be_refused(&self) -> bool {
        self.fence == Stamp::ZERO
    }

    /// The record as it stands once a store has written it under `stamp`.
    pub fn stamped(mut self, stamp: Stamp) -> Record {
        self.stamp_with(stamp);
        self
    }

    pub(crate) fn stamp_with(&mut self, stamp: Stamp) {
        self.stamp = stamp;
        if self.fence == Stamp::ZERO {
            self.fence = stamp;
        }
    }

    /// Copies what is small, so that it does not keep the large buffer alive that it may be a slice of: for stores that
    /// keep records in memory.
    pub fn detach(&mut self) {
        const SMALL: usize = 4096;
        let copy = |bytes: &mut Bytes| {
            if bytes.len() <= SMALL {
                *bytes = Bytes::copy_from_slice(bytes);
            }
        };
        self.checkpoint.iter_mut().for_each(copy);
        match &mut self.state {
            State::Completed(Body::Kept(bytes)) | State::Failed(Body::Kept(bytes), _) => copy(bytes),
            State::InProgress { .. }
            | State::Completed(Body::Omitted { .. })
            | State::Failed(Body::Omitted { .. }, _) => {}
        }
    }

    /// About how many bytes of memory the record takes, for stores that count them.
    pub fn weight(&self) -> usize {
        let body = match &self.state {
            State::InProgress { .. } => 0,
            State::Completed(body) | State::Failed(body, _) => body.stored_len(),
        };
        let texts = self.scope.as_bytes().len() + self.key.as_ref().map_or(0, |key| key.len());
        size_of::<Record>() + body + texts + self.checkpoint.as_ref().map_or(0, Bytes::len)
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("stamp", &self.stamp.0)
            .field("fence", &self.fence.0)
            .field("attempt", &self.attempt)
            .field("retention", &self.retention)
            .field("scope", &self.scope)
            .field("checkpoint_bytes", &self.checkpoint.as_ref().map(Bytes::len))
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::InProgress { lease, effect, takeover, .. } => f
                .debug_struct("InProgress")
                .field("lease", lease)
                .field("effect", effect)
                .field("takeover", takeover)
                .finish_non_exhaustive(),
            State::Completed(body) => f.debug_tuple("Completed").field(body).finish(),
            State::Failed(body, retry) => f.debug_tuple("Failed").field(body).field(retry).finish(),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Kept(bytes) => write!(f, "<{} bytes>", bytes.len()),
            Body::Omitted { bytes, .. } => write!(f, "<{bytes} bytes, omitted>"),
        }
    }
}
