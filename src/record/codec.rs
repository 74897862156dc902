//! The encoding of a record.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use thiserror::Error;

use super::{Body, Record, Stamp, State, micros};
use crate::fingerprint::Fingerprint;
use crate::key::RecordId;
use crate::label::Label;
use crate::owner::Owner;

use crate::record::{Recovery, Retry};
use crate::varint;

/// The reason why stored bytes are not a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A later release wrote it: it must be neither read nor rewritten.
    #[error("record format {found} is newer than this release's {}", Record::VERSION)]
    NewerVersion {
        /// The number of the format.
        found: u8,
    },
    /// No release wrote this, or it was damaged later.
    #[error("not a record: {what}")]
    Damaged {
        /// The fault that was found.
        what: &'static str,
    },
}

const DAMAGED: DecodeError = DecodeError::Damaged { what: "too short" };

/// The formats that a release reads, and the one that it writes.
///
/// A rolling upgrade to a new format takes two steps, so that processes of two neighbouring
/// releases can share a store. First, a new release reads both formats and keeps writing the old
/// one. Once every process runs it, it is configured to write the new one. A release that does not
/// know a format refuses the record as [`DecodeError::NewerVersion`] and never rewrites it. A field
/// that older releases may ignore needs no new format: see [`EXTRA_REQUIRED`].
#[derive(Clone, Copy)]
struct Formats {
    oldest: u8,
    newest: u8,
    written: u8,
}

/// The formats of this release. Format 1 was never released.
const FORMATS: Formats = Formats { oldest: 2, newest: Record::VERSION, written: 2 };

/// The bit of a later field's tag that requires a release to know the field: one that does not must
/// leave the record alone. Other unknown fields are preserved when the record is rewritten.
const EXTRA_REQUIRED: u64 = 1;

/// Bits of the two bytes after the checksum: the state in the low three, then flags.
mod bits {
    pub(super) const STATE: u16 = 0b111;
    pub(super) const IN_PROGRESS: u16 = 0;
    pub(super) const COMPLETED: u16 = 1;
    pub(super) const FAILED_NOW: u16 = 2;
    pub(super) const FAILED_AFTER: u16 = 3;
    pub(super) const FAILED_NEVER: u16 = 4;
    pub(super) const FAILED_UNRESOLVED: u16 = 5;
    pub(super) const EFFECT: u16 = 1 << 3;
    pub(super) const TAKEOVER: u16 = 1 << 4;
    pub(super) const OMITTED: u16 = 1 << 5;
    pub(super) const CHECKPOINT: u16 = 1 << 6;
    pub(super) const KEY: u16 = 1 << 7;
    /// The recovery of a grant, in two bits: 0 is the default.
    pub(super) const RECOVERY: u16 = 0b11 << 8;
    pub(super) const RERUN: u16 = 1 << 8;
    pub(super) const NEVER: u16 = 2 << 8;
    pub(super) const RESOLVED: u16 = 1 << 10;
    pub(super) const HEAD: u16 = 1 << 11;
    pub(super) const RESPONSE_RETENTION: u16 = 1 << 12;
    pub(super) const UNRESOLVED_RETENTION: u16 = 1 << 13;
    /// Fields of a later release follow.
    pub(super) const EXTRA: u16 = 1 << 14;
    /// Not used by any release yet.
    pub(super) const UNUSED: u16 = 1 << 15;
}

/// The stored form: version, checksum, bits, fingerprint and fence, then varints (LEB128) and
/// length-prefixed texts in the order of [`Record`]'s fields, the optional ones only where their
/// bit is set. The rest is the body. The checksum covers the id and, where a backend passes it, the
/// stamp, so that damaged bytes, or a record stored under another id, are detected.
impl Record {
    /// The newest format that this release reads.
    pub const VERSION: u8 = 2;

    /// Encodes the record, to be stored under `id`. `stamp` is the stamp that is stored beside it,
    /// or [`Stamp::ZERO`] where the backend's server assigns it in the same step.
    pub fn encode(&self, id: &RecordId, stamp: Stamp) -> Vec<u8> {
        FORMATS.encode(self, id, stamp)
    }

    /// Decodes a record. `stamp` is the stamp stored beside `bytes` and becomes the record's;
    /// `sealed` is the stamp that was passed to [`encode`](Record::encode). Never panics, for any
    /// bytes. Fields of a later release are kept and written again with the record, where that
    /// release allows it.
    ///
    /// # Errors
    /// [`DecodeError`], which tells a damaged record from one of a later release.
    pub fn decode(id: &RecordId, stamp: Stamp, sealed: Stamp, bytes: &Bytes) -> Result<Record, DecodeError> {
        FORMATS.decode(id, (stamp, sealed), bytes.clone())
    }

    /// Decodes a record from bytes that nothing else refers to, which saves their reference count.
    #[cfg(feature = "redis")]
    pub(crate) fn decode_owned(
        id: &RecordId,
        stamp: Stamp,
        sealed: Stamp,
        bytes: Bytes,
    ) -> Result<Record, DecodeError> {
        FORMATS.decode(id, (stamp, sealed), bytes)
    }

    fn bits(&self) -> u16 {
        let set = |on: bool, bit: u16| if on { bit } else { 0 };
        let body =
            |body: &Body| set(body.is_omitted(), bits::OMITTED) | set(!body.head().is_empty(), bits::HEAD);
        let state = match &self.state {
            State::InProgress { effect, takeover, recovery, .. } => {
                let recovery = match recovery {
                    Recovery::RerunUnlessEffect => 0,
                    Recovery::Rerun => bits::RERUN,
                    Recovery::Never => bits::NEVER,
                };
                bits::IN_PROGRESS | set(*effect, bits::EFFECT) | set(*takeover, bits::TAKEOVER) | recovery
            }
            State::Completed(response) => bits::COMPLETED | body(response),
            State::Failed(error, retry) => {
                let failed = match retry {
                    Retry::Now => bits::FAILED_NOW,
                    Retry::After(_) => bits::FAILED_AFTER,
                    Retry::Never => bits::FAILED_NEVER,
                    Retry::Unresolved => bits::FAILED_UNRESOLVED,
                };
                failed | body(error)
            }
        };
        state
            | set(self.checkpoint.is_some(), bits::CHECKPOINT)
            | set(self.key.is_some(), bits::KEY)
            | set(self.resolved, bits::RESOLVED)
            | set(self.response_retention.is_some(), bits::RESPONSE_RETENTION)
            | set(self.unresolved_retention.is_some(), bits::UNRESOLVED_RETENTION)
            | set(self.extra.is_some(), bits::EXTRA)
    }
}

impl Formats {
    fn encode(self, record: &Record, id: &RecordId, stamp: Stamp) -> Vec<u8> {
        let mut out = Vec::with_capacity(record.weight());
        out.put_u8(self.written);
        out.put_u32_le(0);
        out.put_u16_le(record.bits());
        out.put_slice(record.fingerprint.as_bytes());
        out.put_u64_le(record.fence.0);
        varint::put(&mut out, u64::from(record.attempt));
        varint::put(&mut out, micros(record.retention));
        for kept in [record.response_retention, record.unresolved_retention].into_iter().flatten() {
            varint::put(&mut out, micros(kept));
        }
        put_bytes(&mut out, record.scope.as_bytes());
        if let Some(key) = &record.key {
            put_bytes(&mut out, key.as_bytes());
        }
        for bytes in [&record.checkpoint, &record.extra].into_iter().flatten() {
            put_bytes(&mut out, bytes);
        }
        match &record.state {
            State::InProgress { owner, lease, holder, .. } => {
                out.put_slice(owner.as_bytes());
                varint::put(&mut out, micros(*lease));
                put_bytes(&mut out, holder.as_bytes());
            }
            State::Completed(body) => put_body(&mut out, body),
            State::Failed(body, retry) => {
                if let Retry::After(wait) = retry {
                    varint::put(&mut out, micros(*wait));
                }
                put_body(&mut out, body);
            }
        }
        let sum = checksum(id, stamp, &out[5..]);
        out[1..5].copy_from_slice(&sum.to_le_bytes());
        out
    }

    fn decode(
        self,
        id: &RecordId,
        (stamp, sealed): (Stamp, Stamp),
        mut input: Bytes,
    ) -> Result<Record, DecodeError> {
        let version = input.try_get_u8().map_err(|_| DAMAGED)?;
        if version > self.newest {
            return Err(DecodeError::NewerVersion { found: version });
        }
        if version < self.oldest {
            return Err(DecodeError::Damaged { what: "a format that was never released" });
        }
        let sum = input.try_get_u32_le().map_err(|_| DAMAGED)?;
        if sum != checksum(id, sealed, &input) {
            return Err(DecodeError::Damaged { what: "the checksum does not match" });
        }
        let bits = input.try_get_u16_le().map_err(|_| DAMAGED)?;
        if flag(bits, bits::UNUSED) {
            return Err(DecodeError::Damaged { what: "a flag that no release sets" });
        }
        let mut fingerprint = [0; Fingerprint::BYTES];
        input.try_copy_to_slice(&mut fingerprint).map_err(|_| DAMAGED)?;
        let fence = Stamp(input.try_get_u64_le().map_err(|_| DAMAGED)?);
        let attempt = get_number(&mut input)?;
        let retention = get_duration(&mut input)?;
        let mut optional = |bit| flag(bits, bit).then(|| get_duration(&mut input)).transpose();
        let response_retention = optional(bits::RESPONSE_RETENTION)?;
        let unresolved_retention = optional(bits::UNRESOLVED_RETENTION)?;
        let scope = get_label(&mut input)?;
        let key = flag(bits, bits::KEY).then(|| get_text(&mut input)).transpose()?;
        let checkpoint = flag(bits, bits::CHECKPOINT).then(|| get_bytes(&mut input)).transpose()?;
        let extra = flag(bits, bits::EXTRA).then(|| get_extra(version, &mut input)).transpose()?;
        let state = get_state(bits, input)?;
        Ok(Record {
            stamp,
            fence: if fence == Stamp::ZERO { stamp } else { fence },
            fingerprint: Fingerprint::from_bytes(fingerprint),
            attempt: u32::try_from(attempt).map_err(|_| DecodeError::Damaged { what: "attempt" })?,
            retention,
            response_retention,
            unresolved_retention,
            scope,
            key,
            checkpoint,
            resolved: flag(bits, bits::RESOLVED),
            extra,
            state,
        })
    }
}

fn checksum(id: &RecordId, stamp: Stamp, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(id.as_bytes());
    hasher.update(&stamp.0.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

fn flag(bits: u16, flag: u16) -> bool {
    bits & flag != 0
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    varint::put(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn put_body(out: &mut Vec<u8>, body: &Body) {
    if !body.head().is_empty() {
        put_bytes(out, body.head());
    }
    if let Some(bytes) = body.bytes() {
        out.put_slice(bytes);
    }
    if let Some((bytes, digest)) = body.marker() {
        out.put_u64_le(bytes);
        out.put_u64_le(digest);
    }
}

fn get_number(input: &mut Bytes) -> Result<u64, DecodeError> {
    varint::get(input).map_err(|what| DecodeError::Damaged { what })
}

fn get_length(input: &mut Bytes) -> Result<usize, DecodeError> {
    let length = usize::try_from(get_number(input)?).ok();
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
    label.ok_or(DecodeError::Damaged { what: "invalid label" })
}

fn get_duration(input: &mut Bytes) -> Result<Duration, DecodeError> {
    get_number(input).map(Duration::from_micros)
}

/// Reads the fields of a later release, each a tag, a length and that many bytes. Returns them
/// unchanged if none of them is required.
fn get_extra(version: u8, input: &mut Bytes) -> Result<Bytes, DecodeError> {
    let extra = get_bytes(input)?;
    let mut fields = extra.clone();
    while !fields.is_empty() {
        if get_number(&mut fields)? & EXTRA_REQUIRED != 0 {
            return Err(DecodeError::NewerVersion { found: version });
        }
        get_bytes(&mut fields)?;
    }
    Ok(extra)
}

fn get_body(bits: u16, mut input: Bytes) -> Result<Body, DecodeError> {
    let head = if flag(bits, bits::HEAD) { get_bytes(&mut input)? } else { Bytes::new() };
    if flag(bits, bits::HEAD) && head.is_empty() {
        return Err(DecodeError::Damaged { what: "an empty head" });
    }
    if !flag(bits, bits::OMITTED) {
        return Ok(Body::kept(input).with_head(&head));
    }
    let bytes = input.try_get_u64_le().map_err(|_| DAMAGED)?;
    let digest = input.try_get_u64_le().map_err(|_| DAMAGED)?;
    at_end(&input)?;
    Ok(Body::omitted(bytes, digest).with_head(&head))
}

fn get_state(bits: u16, mut input: Bytes) -> Result<State, DecodeError> {
    let retry = match bits & bits::STATE {
        bits::IN_PROGRESS => {
            let mut owner = [0; Owner::BYTES];
            input.try_copy_to_slice(&mut owner).map_err(|_| DAMAGED)?;
            let owner = Owner::from_bytes(owner);
            let lease = get_duration(&mut input)?;
            let holder = get_label(&mut input)?;
            at_end(&input)?;
            let (effect, takeover) = (flag(bits, bits::EFFECT), flag(bits, bits::TAKEOVER));
            let recovery = match bits & bits::RECOVERY {
                0 => Recovery::RerunUnlessEffect,
                bits::RERUN => Recovery::Rerun,
                bits::NEVER => Recovery::Never,
                _ => return Err(DecodeError::Damaged { what: "unknown recovery" }),
            };
            return Ok(State::InProgress { owner, lease, effect, takeover, recovery, holder });
        }
        bits::COMPLETED => return Ok(State::Completed(get_body(bits, input)?)),
        bits::FAILED_NOW => Retry::Now,
        bits::FAILED_AFTER => Retry::After(get_duration(&mut input)?),
        bits::FAILED_NEVER => Retry::Never,
        bits::FAILED_UNRESOLVED => Retry::Unresolved,
        _ => return Err(DecodeError::Damaged { what: "unknown state" }),
    };
    Ok(State::Failed(get_body(bits, input)?, retry))
}

fn at_end(input: &Bytes) -> Result<(), DecodeError> {
    if input.is_empty() { Ok(()) } else { Err(DecodeError::Damaged { what: "trailing bytes" }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, Scope};
    use crate::label::Label;

    const NEXT_READS_BOTH: Formats = Formats { oldest: 2, newest: 3, written: 2 };
    const NEXT_WRITES_NEW: Formats = Formats { written: 3, ..NEXT_READS_BOTH };

    fn id() -> RecordId {
        RecordId::new(&Scope::try_from("scope").unwrap(), &Key::try_from("key").unwrap())
    }

    fn record() -> Record {
        Record {
            stamp: Stamp(9),
            fence: Stamp(7),
            fingerprint: Fingerprint::of("payload"),
            attempt: 1,
            retention: Duration::from_secs(60),
            response_retention: None,
            unresolved_retention: None,
            scope: Label::new("scope"),
            key: None,
            checkpoint: None,
            resolved: false,
            extra: None,
            state: State::Completed(Body::kept(Bytes::from_static(b"done"))),
        }
    }

    fn read(formats: Formats, bytes: Vec<u8>) -> Result<Record, DecodeError> {
        formats.decode(&id(), (Stamp(9), Stamp(9)), bytes.into())
    }

    /// Releases of two neighbouring formats share a store: the newer one writes the older format
    /// until it is configured to write the new one.
    #[test]
    fn s14_a_rolling_upgrade_reads_both_formats_and_writes_the_old_one_until_it_is_told() {
        let write = |formats: Formats| formats.encode(&record(), &id(), Stamp(9));
        for (writer, reader) in [
            (FORMATS, NEXT_READS_BOTH),
            (NEXT_READS_BOTH, FORMATS),
            (NEXT_READS_BOTH, NEXT_WRITES_NEW),
            (NEXT_WRITES_NEW, NEXT_READS_BOTH),
            (FORMATS, NEXT_WRITES_NEW),
        ] {
            assert_eq!(read(reader, write(writer)), Ok(record()));
        }
        // The new format is enabled too early: the older release refuses and leaves the record
        // alone.
        let newer = DecodeError::NewerVersion { found: 3 };
        assert_eq!(read(FORMATS, write(NEXT_WRITES_NEW)), Err(newer));
    }

    /// Returns a record with a field of a later release: a tag, a length and its bytes.
    fn with_field(tag: u64) -> Record {
        let mut extra = Vec::new();
        varint::put(&mut extra, tag);
        put_bytes(&mut extra, b"later");
        Record { extra: Some(extra.into()), ..record() }
    }

    #[test]
    fn s14_a_later_field_is_kept_or_refuses_the_record_as_its_tag_says() {
        let write = |record: &Record| FORMATS.encode(record, &id(), Stamp(9));
        for tag in [2, 600] {
            let record = with_field(tag);
            let again = read(FORMATS, write(&record)).unwrap();
            assert_eq!(again, record);
            assert_eq!(write(&again), write(&record));
        }
        for tag in [1, 601] {
            let newer = DecodeError::NewerVersion { found: 2 };
            assert_eq!(read(FORMATS, write(&with_field(tag))), Err(newer));
        }
        for torn in [vec![2], vec![2, 9], vec![2, 9, 1], vec![0x80]] {
            let torn = Record { extra: Some(torn.into()), ..record() };
            assert_eq!(read(FORMATS, write(&torn)), Err(DAMAGED));
        }
    }
}
