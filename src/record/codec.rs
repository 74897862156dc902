//! The bytes of a record.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use thiserror::Error;

use super::{Body, Record, Stamp, State, micros};
use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::label::Label;
use crate::owner::Owner;
use crate::policy::Retry;

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
        let scope = get_label(&mut input)?;
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

fn get_length(input: &mut Bytes) -> Result<usize, DecodeError> {
    let length = usize::try_from(get_varint(input)?).ok();
    length.filter(|length| *length <= input.len()).ok_or(DAMAGED)
}

fn get_bytes(input: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = get_length(input)?;
    Ok(input.split_to(length))
}

fn get_text(input: &mut Bytes) -> Result<Box<str>, DecodeError> {
    let length = get_length(input)?;
    let text = std::str::from_utf8(&input[..length]).map(Box::from);
    input.advance(length);
    text.map_err(|_| DecodeError::Damaged { what: "text is not UTF-8" })
}

fn get_label(input: &mut Bytes) -> Result<Label, DecodeError> {
    let length = get_length(input)?;
    let label = Label::from_bytes(&input[..length]);
    input.advance(length);
    label.ok_or(DecodeError::Damaged { what: "no label" })
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
            let holder = get_label(&mut input)?;
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
