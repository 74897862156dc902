//! The contents of a store: [`Record`], its [`State`], and their encoding.

mod codec;
mod retry;

use std::fmt;
use std::time::Duration;

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};

pub use self::codec::DecodeError;
pub use self::retry::{Recovery, Retry};

use crate::fingerprint::Fingerprint;
use crate::label::Label;
use crate::owner::Owner;

/// A point in a store's time, in microseconds since the Unix epoch as that store counts it.
///
/// The store stamps every write, strictly greater than the stamp that the write replaces. A stamp
/// is therefore the version for the next swap, the base of every deadline and, for the write that
/// granted a lease, the fence of that grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stamp(pub u64);

impl Stamp {
    /// The stamp of a record that has not been written: less than every stamp that a store gives.
    pub const ZERO: Stamp = Stamp(0);

    /// Returns the point `time` after this one.
    pub fn after(self, time: Duration) -> Stamp {
        Stamp(self.0.saturating_add(micros(time)))
    }

    /// Returns the time elapsed since `earlier`, or zero if this point is not later.
    pub fn since(self, earlier: Stamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    /// Returns the least stamp greater than this one.
    pub fn next(self) -> Stamp {
        Stamp(self.0.saturating_add(1))
    }
}

/// Returns a duration in whole microseconds, rounded up so that a lease is never shorter than
/// requested. Saturates at `u64::MAX`.
pub(crate) fn micros(time: Duration) -> u64 {
    let below = u64::from(time.subsec_nanos().div_ceil(1000));
    time.as_secs().saturating_mul(1_000_000).saturating_add(below)
}

/// The record of one key. Durations count from the record's stamp; no caller's clock appears in it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// The time of this write, in the store's time. [`Stamp::ZERO`] until it is written.
    pub stamp: Stamp,
    /// The stamp of the write that made the latest grant. [`Stamp::ZERO`] in a record that is about
    /// to make one.
    pub fence: Stamp,
    /// The fingerprint of the request.
    pub fingerprint: Fingerprint,
    /// The number of this attempt, counted from 1 (0 once an operator ordered a rerun).
    pub attempt: u32,
    /// The time for which the record is kept, from its stamp.
    pub retention: Duration,
    /// The time for which a response or error is kept, from the record's stamp, if not as long as
    /// the record.
    pub response_retention: Option<Duration>,
    /// The time for which the record is kept while it is [evidence](Record::is_evidence) of an
    /// effect that may have happened, if that is longer than its retention.
    pub unresolved_retention: Option<Duration>,
    /// The typed form of the [`Scope`](crate::Scope), cut to at most 48 bytes, for operators.
    pub scope: Label,
    /// The key, if the policy allows stores to see it.
    pub key: Option<Box<str>>,
    /// The checkpoint that an attempt left for the next one.
    pub checkpoint: Option<Bytes>,
    /// True if an operator settled the operation. Such an outcome may be amended, so it must not be
    /// cached.
    pub resolved: bool,
    /// Fields of a later release, which this one keeps without reading them: see
    /// [`Record::decode`].
    pub(crate) extra: Option<Bytes>,
    /// The state of the operation.
    pub state: State,
}

/// The state of an operation. The absence of a record is the fourth state.
#[derive(Clone, PartialEq, Eq)]
pub enum State {
    /// A caller has, or had, a lease on it.
    InProgress {
        /// The owner of the lease.
        owner: Owner,
        /// The length of the lease, from the record's stamp.
        lease: Duration,
        /// True if the effect may have happened from here on.
        effect: bool,
        /// True if the lease of the previous attempt expired.
        takeover: bool,
        /// The recovery that the begin asked for.
        recovery: Recovery,
        /// The holder's name for itself, for operators.
        holder: Label,
    },
    /// The operation completed with this response.
    Completed(Body),
    /// The operation failed with this error. The [`Retry`] says what the next begin may do.
    Failed(Body, Retry),
}

/// A recorded response or error: bytes, which may be omitted from the record, and a head, which is
/// always kept. The head holds what a replay must show even without the bytes, such as a status and
/// the location of a created resource.
#[derive(Clone, PartialEq, Eq)]
pub struct Body {
    /// Boxed, since most bodies have none.
    head: Option<Box<[u8]>>,
    content: Content,
}

#[derive(Clone, PartialEq, Eq)]
enum Content {
    Kept(Bytes),
    /// The length in bytes and the first 64 bits of the BLAKE3 hash, enough to recognise a
    /// repetition.
    Omitted {
        bytes: u64,
        digest: u64,
    },
}

impl Body {
    /// The longest head, in bytes. A longer one is refused with
    /// [`Error::TooLarge`](crate::Error::TooLarge).
    pub const MAX_HEAD: usize = 16 * 1024;

    /// Creates a body that keeps `bytes` if they are at most `limit` long, and only their length
    /// and a digest otherwise.
    pub fn new(bytes: Bytes, limit: usize) -> Body {
        let content = if bytes.len() <= limit { Content::Kept(bytes) } else { Content::omitted(&bytes) };
        Body { head: None, content }
    }

    /// Creates a body that keeps all of `bytes`.
    pub fn kept(bytes: Bytes) -> Body {
        Body { head: None, content: Content::Kept(bytes) }
    }

    /// Creates a body without bytes, from their length and the first 64 bits of their BLAKE3 hash.
    pub fn omitted(bytes: u64, digest: u64) -> Body {
        Body { head: None, content: Content::Omitted { bytes, digest } }
    }

    /// Sets the head, which is kept even if the bytes are omitted. An empty head counts as none.
    pub fn with_head(mut self, head: &[u8]) -> Body {
        self.head = if head.is_empty() { None } else { Some(head.into()) };
        self
    }

    /// Returns the head; empty if there is none.
    pub fn head(&self) -> &[u8] {
        self.head.as_deref().unwrap_or_default()
    }

    /// Returns the bytes, unless they were omitted.
    pub fn bytes(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Kept(bytes) => Some(bytes),
            Content::Omitted { .. } => None,
        }
    }

    /// Returns true if the bytes were omitted.
    pub fn is_omitted(&self) -> bool {
        self.bytes().is_none()
    }

    /// Returns the length of the bytes, kept or omitted.
    pub fn length(&self) -> u64 {
        match &self.content {
            Content::Kept(bytes) => bytes.len() as u64,
            Content::Omitted { bytes, .. } => *bytes,
        }
    }

    /// Returns the length and digest of omitted bytes.
    pub(crate) fn marker(&self) -> Option<(u64, u64)> {
        match &self.content {
            Content::Kept(_) => None,
            Content::Omitted { bytes, digest } => Some((*bytes, *digest)),
        }
    }

    /// Returns true if both have the same head and represent the same bytes, kept or omitted.
    pub(crate) fn is_same(&self, other: &Body) -> bool {
        self.head == other.head && self.content.is_same(&other.content)
    }

    /// Returns the same body with the bytes omitted.
    pub(crate) fn without_bytes(&self) -> Body {
        let content = match &self.content {
            Content::Kept(bytes) => Content::omitted(bytes),
            omitted @ Content::Omitted { .. } => omitted.clone(),
        };
        Body { head: self.head.clone(), content }
    }

    fn stored_len(&self) -> usize {
        self.head().len() + self.bytes().map_or(0, Bytes::len)
    }
}

impl Content {
    fn omitted(bytes: &Bytes) -> Content {
        let digest = (&blake3::hash(bytes).as_bytes()[..8]).get_u64();
        Content::Omitted { bytes: bytes.len() as u64, digest }
    }

    fn is_same(&self, other: &Content) -> bool {
        match (self, other) {
            (Content::Kept(bytes), omitted @ Content::Omitted { .. })
            | (omitted @ Content::Omitted { .. }, Content::Kept(bytes)) => {
                Content::omitted(bytes) == *omitted
            }
            (Content::Kept(_), Content::Kept(_)) | (Content::Omitted { .. }, Content::Omitted { .. }) => {
                self == other
            }
        }
    }
}

impl Record {
    /// Returns the time for which the record must be kept, from its stamp. This is its retention,
    /// counted from the end of the lease or from the time at which a failed operation may be
    /// retried, so that what a crash leaves is still there when others may act on it.
    /// [Evidence](Record::is_evidence) is kept for its `unresolved_retention` if that is longer.
    pub fn keep(&self) -> Duration {
        let evidence = self.unresolved_retention.filter(|_| self.is_evidence()).unwrap_or_default();
        self.retention.max(evidence).saturating_add(self.wait())
    }

    /// The time, from the record's stamp on, for which other callers cannot execute: a lease, or
    /// the delay of a retry.
    fn wait(&self) -> Duration {
        match &self.state {
            State::InProgress { lease, .. } => *lease,
            State::Failed(_, Retry::After(delay)) => *delay,
            State::Failed(_, Retry::Now | Retry::Never | Retry::Unresolved) | State::Completed(_) => {
                Duration::ZERO
            }
        }
    }

    /// Returns true if at `now` a lease runs or a retry is not due.
    pub(crate) fn is_blocked(&self, now: Stamp) -> bool {
        now < self.stamp.after(self.wait())
    }

    /// Returns the time from `now` until the lease ends or the retry is due; zero if that is over.
    pub(crate) fn blocked_for(&self, now: Stamp) -> Duration {
        self.stamp.after(self.wait()).since(now)
    }

    /// Returns the remaining lease at `now`; `None` once the operation is finished.
    pub(crate) fn lease_remaining(&self, now: Stamp) -> Option<Duration> {
        self.lease().map(|_| self.blocked_for(now))
    }

    /// Returns the first moment at which time alone changes the answer to a begin: the end of the
    /// lease, the time at which a retry is due, the end of the time that a response is kept, or the
    /// record's [`deadline`](Record::deadline). A store that only estimates its time must not
    /// answer from the record once the estimate has reached it.
    pub fn settled_until(&self) -> Stamp {
        let blocked = Some(self.wait()).filter(|wait| !wait.is_zero());
        let response = self.response_retention.filter(|_| self.lease().is_none());
        let first = [blocked, response].into_iter().flatten().min();
        first.map_or(self.deadline(), |first| self.deadline().min(self.stamp.after(first)))
    }

    /// Returns true if the record shows an effect that may or may not have happened: the effect was
    /// marked under a grant that must not be rerun blindly, or the operation failed unresolved.
    /// Such a record is kept until it is settled, at most for its `unresolved_retention`.
    pub fn is_evidence(&self) -> bool {
        match &self.state {
            State::InProgress { effect, recovery, .. } => *effect && *recovery != Recovery::Rerun,
            State::Failed(_, Retry::Unresolved) => true,
            State::Failed(_, Retry::Now | Retry::After(_) | Retry::Never) | State::Completed(_) => false,
        }
    }

    /// Returns true if the record is unresolved evidence at `now`:
    /// [`is_evidence`](Record::is_evidence) holds, and no lease is running under which it may still
    /// be settled.
    pub fn is_unsettled(&self, now: Stamp) -> bool {
        self.is_evidence() && self.is_kept(now) && !self.is_blocked(now)
    }

    /// Returns true if the record grants a lease whose holder marked the effect, or which inherited
    /// such a mark.
    pub(crate) fn is_effect_marked(&self) -> bool {
        matches!(self.state, State::InProgress { effect: true, .. })
    }

    /// Returns the length of the lease that the record grants, from its stamp; `None` once the
    /// operation is finished.
    pub(crate) fn lease(&self) -> Option<Duration> {
        match &self.state {
            State::InProgress { lease, .. } => Some(*lease),
            State::Completed(_) | State::Failed(..) => None,
        }
    }

    /// Returns true if the record grants a lease that was taken over from an attempt whose own
    /// lease expired.
    pub(crate) fn is_takeover(&self) -> bool {
        matches!(self.state, State::InProgress { takeover: true, .. })
    }

    /// Returns the time from which the record counts as absent and may be removed. A record that is
    /// kept for ever returns [`Stamp`]`(u64::MAX)`.
    pub fn deadline(&self) -> Stamp {
        self.stamp.after(self.keep())
    }

    /// Returns true if the record still counts at `now`.
    pub fn is_kept(&self, now: Stamp) -> bool {
        now < self.deadline() || self.deadline() == Stamp(u64::MAX)
    }

    /// Returns true if the response or error, if there is one, is no longer returned at `now`.
    pub fn is_response_over(&self, now: Stamp) -> bool {
        self.response_retention.is_some_and(|kept| now >= self.stamp.after(kept))
    }

    /// Returns true if a full store may refuse to write this record. Only a new grant may be
    /// refused: completed work must be recorded.
    pub fn may_be_refused(&self) -> bool {
        self.fence == Stamp::ZERO
    }

    /// Returns the record as it is once a store has written it under `stamp`.
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

    /// Copies small buffers, so that they do not keep alive the large buffer that they may be
    /// slices of. For stores that keep records in memory.
    pub fn detach(&mut self) {
        const SMALL: usize = 4096;
        let copy = |bytes: &mut Bytes| {
            if bytes.len() <= SMALL {
                *bytes = Bytes::copy_from_slice(bytes);
            }
        };
        self.checkpoint.iter_mut().for_each(copy);
        self.extra.iter_mut().for_each(copy);
        match &mut self.state {
            State::Completed(Body { content: Content::Kept(bytes), .. })
            | State::Failed(Body { content: Content::Kept(bytes), .. }, _) => copy(bytes),
            State::InProgress { .. }
            | State::Completed(Body { content: Content::Omitted { .. }, .. })
            | State::Failed(Body { content: Content::Omitted { .. }, .. }, _) => {}
        }
    }

    /// Returns roughly how many bytes of memory the record takes, for stores that count them.
    pub fn weight(&self) -> usize {
        let body = match &self.state {
            State::InProgress { .. } => 0,
            State::Completed(body) | State::Failed(body, _) => body.stored_len(),
        };
        let texts = self.scope.as_bytes().len() + self.key.as_ref().map_or(0, |key| key.len());
        let others = [&self.checkpoint, &self.extra].map(|bytes| bytes.as_ref().map_or(0, Bytes::len));
        size_of::<Record>() + body + texts + others[0] + others[1]
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
            .field("resolved", &self.resolved)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::InProgress { lease, effect, takeover, recovery, .. } => f
                .debug_struct("InProgress")
                .field("lease", lease)
                .field("effect", effect)
                .field("takeover", takeover)
                .field("recovery", recovery)
                .finish_non_exhaustive(),
            State::Completed(body) => f.debug_tuple("Completed").field(body).finish(),
            State::Failed(body, retry) => f.debug_tuple("Failed").field(body).field(retry).finish(),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.head().len();
        let omitted = if self.is_omitted() { ", omitted" } else { "" };
        match head {
            0 => write!(f, "<{} bytes{omitted}>", self.length()),
            head => write!(f, "<{} bytes{omitted}, head of {head}>", self.length()),
        }
    }
}
