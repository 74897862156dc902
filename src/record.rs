//! What a store keeps for a key: [`Record`], its [`State`], and their bytes.

use std::fmt;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::lease::Owner;
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
    u64::try_from(time.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX)
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
    pub scope: Box<str>,
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
        holder: Box<str>,
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
        self.stamp = stamp;
        if self.fence == Stamp::ZERO {
            self.fence = stamp;
        }
        self
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
        let texts = self.scope.len() + self.key.as_ref().map_or(0, |key| key.len());
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

/// Why stored bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// Written by a later release: it must be neither read nor rewritten.
    #[error("record format {found} is newer than this release's {}", Record::VERSION)]
    NewerVersion {
        /// The format's number.
        found: u8,
    },
    /// Not what any release wrote, or damaged since.
    #[error("not a record: {what}")]
    Damaged {
        /// What was found wrong.
        what: &'static str,
    },
}

const DAMAGED: DecodeError = DecodeError::Damaged { what: "too short" };

/// Bits of the byte behind the version: the state in the low three, then flags.
mod bits {
    pub(super) const STATE: u8 = 0b111;
    pub(super) const IN_PROGRESS: u8 = 0;
    pub(super) const COMPLETED: u8 = 1;
    pub(super) const FAILED_NOW: u8 = 2;
    pub(super) const FAILED_AFTER: u8 = 3;
    pub(super) const FAILED_NEVER: u8 = 4;
    pub(super) const FAILED_UNRESOLVED: u8 = 5;
    pub(super) const EFFECT: u8 = 1 << 3;
    pub(super) const TAKEOVER: u8 = 1 << 4;
    pub(super) const OMITTED: u8 = 1 << 5;
    pub(super) const CHECKPOINT: u8 = 1 << 6;
    pub(super) const KEY: u8 = 1 << 7;
}

/// The stored form: version, checksum, bits, fingerprint, fence, then varints (LEB128) and length-prefixed texts;
/// the body is what is left. The checksum covers the id and, where a backend passes it, the stamp, so that
/// damaged bytes, or a record filed under another id, are noticed instead of believed.
impl Record {
    /// The format that this release writes, and the newest that it reads.
    pub const VERSION: u8 = 1;

    /// The record's bytes, to be stored under `id`. `stamp` is the stamp that is stored beside it, or
    /// [`Stamp::ZERO`] where the backend's server gives it in the same step.
    pub fn encode(&self, id: &RecordId, stamp: Stamp) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.weight());
        out.put_u8(Record::VERSION);
        out.put_u32_le(0);
        out.put_u8(self.bits());
        out.put_slice(self.fingerprint.as_bytes());
        out.put_u64_le(self.fence.0);
        put_varint(&mut out, u64::from(self.attempt));
        put_varint(&mut out, micros(self.retention));
        // 0 stands for none: a response that is not kept at all is left out from the start.
        put_varint(&mut out, self.response_retention.map_or(0, |kept| micros(kept).max(1)));
        put_bytes(&mut out, self.scope.as_bytes());
        if let Some(key) = &self.key {
            put_bytes(&mut out, key.as_bytes());
        }
        if let Some(checkpoint) = &self.checkpoint {
            put_bytes(&mut out, checkpoint);
        }
        match &self.state {
            State::InProgress { owner, lease, holder, .. } => {
                out.put_slice(owner.as_bytes());
                put_varint(&mut out, micros(*lease));
                put_bytes(&mut out, holder.as_bytes());
            }
            State::Completed(body) => put_body(&mut out, body),
            State::Failed(body, retry) => {
                if let Retry::After(wait) = retry {
                    put_varint(&mut out, micros(*wait));
                }
                put_body(&mut out, body);
            }
        }
        let sum = checksum(id, stamp, &out[5..]);
        out[1..5].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The record that `bytes` hold. `stamp` is the stamp stored beside them and becomes the record's; `sealed` is the
    /// stamp that was passed to [`encode`](Record::encode). Never panics, whatever the bytes.
    pub fn decode(id: &RecordId, stamp: Stamp, sealed: Stamp, bytes: &Bytes) -> Result<Record, DecodeError> {
        let mut input = bytes.clone();
        let version = input.try_get_u8().map_err(|_| DAMAGED)?;
        if version > Record::VERSION {
            return Err(DecodeError::NewerVersion { found: version });
        }
        if version == 0 {
            return Err(DecodeError::Damaged { what: "format 0 was never written" });
        }
        let sum = input.try_get_u32_le().map_err(|_| DAMAGED)?;
        if sum != checksum(id, sealed, &input) {
            return Err(DecodeError::Damaged { what: "the checksum does not match" });
        }
        let bits = input.try_get_u8().map_err(|_| DAMAGED)?;
        let mut fingerprint = [0; Fingerprint::BYTES];
        input.try_copy_to_slice(&mut fingerprint).map_err(|_| DAMAGED)?;
        let fence = Stamp(input.try_get_u64_le().map_err(|_| DAMAGED)?);
        let attempt = get_varint(&mut input)?;
        let retention = Duration::from_micros(get_varint(&mut input)?);
        let response_retention = Some(get_varint(&mut input)?).filter(|kept| *kept > 0);
        let scope = get_text(&mut input)?;
        let key = flag(bits, bits::KEY).then(|| get_text(&mut input)).transpose()?;
        let checkpoint = flag(bits, bits::CHECKPOINT).then(|| get_bytes(&mut input)).transpose()?;
        let state = get_state(bits, input)?;
        Ok(Record {
            stamp,
            fence: if fence == Stamp::ZERO { stamp } else { fence },
            fingerprint: Fingerprint::from_bytes(fingerprint),
            attempt: u32::try_from(attempt).map_err(|_| DecodeError::Damaged { what: "attempt" })?,
            retention,
            response_retention: response_retention.map(Duration::from_micros),
            scope,
            key,
            checkpoint,
            state,
        })
    }

    fn bits(&self) -> u8 {
        let set = |on: bool, bit: u8| if on { bit } else { 0 };
        let omitted = |body: &Body| set(body.kept().is_none(), bits::OMITTED);
        let state = match &self.state {
            State::InProgress { effect, takeover, .. } => {
                bits::IN_PROGRESS | set(*effect, bits::EFFECT) | set(*takeover, bits::TAKEOVER)
            }
            State::Completed(body) => bits::COMPLETED | omitted(body),
            State::Failed(body, retry) => {
                let failed = match retry {
                    Retry::Now => bits::FAILED_NOW,
                    Retry::After(_) => bits::FAILED_AFTER,
                    Retry::Never => bits::FAILED_NEVER,
                    Retry::Unresolved => bits::FAILED_UNRESOLVED,
                };
                failed | omitted(body)
            }
        };
        state | set(self.checkpoint.is_some(), bits::CHECKPOINT) | set(self.key.is_some(), bits::KEY)
    }
}

fn checksum(id: &RecordId, stamp: Stamp, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(id.as_bytes());
    hasher.update(&stamp.0.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

fn flag(bits: u8, flag: u8) -> bool {
    bits & flag != 0
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn put_body(out: &mut Vec<u8>, body: &Body) {
    match body {
        Body::Kept(bytes) => out.put_slice(bytes),
        Body::Omitted { bytes, digest } => {
            out.put_u64_le(*bytes);
            out.put_u64_le(*digest);
        }
    }
}

fn get_varint(input: &mut Bytes) -> Result<u64, DecodeError> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = input.try_get_u8().map_err(|_| DAMAGED)?;
        let part = u64::from(byte & 0x7f);
        if part.leading_zeros() < shift {
            break;
        }
        number |= part << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(DecodeError::Damaged { what: "number too large" })
}

fn get_bytes(input: &mut Bytes) -> Result<Bytes, DecodeError> {
    match usize::try_from(get_varint(input)?) {
        Ok(length) if length <= input.len() => Ok(input.split_to(length)),
        Ok(_) | Err(_) => Err(DAMAGED),
    }
}

fn get_text(input: &mut Bytes) -> Result<Box<str>, DecodeError> {
    let bytes = get_bytes(input)?;
    std::str::from_utf8(&bytes).map(Box::from).map_err(|_| DecodeError::Damaged { what: "text is not UTF-8" })
}

fn get_body(bits: u8, mut input: Bytes) -> Result<Body, DecodeError> {
    if !flag(bits, bits::OMITTED) {
        return Ok(Body::Kept(input));
    }
    let bytes = input.try_get_u64_le().map_err(|_| DAMAGED)?;
    let digest = input.try_get_u64_le().map_err(|_| DAMAGED)?;
    at_end(&input)?;
    Ok(Body::Omitted { bytes, digest })
}

fn get_state(bits: u8, mut input: Bytes) -> Result<State, DecodeError> {
    let retry = match bits & bits::STATE {
        bits::IN_PROGRESS => {
            let mut owner = [0; Owner::BYTES];
            input.try_copy_to_slice(&mut owner).map_err(|_| DAMAGED)?;
            let owner = Owner::from_bytes(owner);
            let lease = Duration::from_micros(get_varint(&mut input)?);
            let holder = get_text(&mut input)?;
            at_end(&input)?;
            let (effect, takeover) = (flag(bits, bits::EFFECT), flag(bits, bits::TAKEOVER));
            return Ok(State::InProgress { owner, lease, effect, takeover, holder });
        }
        bits::COMPLETED => return Ok(State::Completed(get_body(bits, input)?)),
        bits::FAILED_NOW => Retry::Now,
        bits::FAILED_AFTER => Retry::After(Duration::from_micros(get_varint(&mut input)?)),
        bits::FAILED_NEVER => Retry::Never,
        bits::FAILED_UNRESOLVED => Retry::Unresolved,
        _ => return Err(DecodeError::Damaged { what: "unknown state" }),
    };
    Ok(State::Failed(get_body(bits, input)?, retry))
}

fn at_end(input: &Bytes) -> Result<(), DecodeError> {
    if input.is_empty() { Ok(()) } else { Err(DecodeError::Damaged { what: "bytes behind the end" }) }
}
