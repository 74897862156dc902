//! Values on the wire: stored ones (a stamp followed by an encoded record), times, and expiries.

use std::io::Write;
use std::time::Duration;

use ::redis::{Cmd, RedisError, RedisWrite, Value, from_redis_value};
use bytes::{Buf, Bytes};

use super::error::{corrupt, is_wrong_type, malformed, store_error};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::{DecodeError, Record, Stamp};
use crate::store::Snapshot;

/// The length of the stamp in front of each value.
pub(super) const STAMP_BYTES: usize = 8;
/// The first invalid stamp: Lua's numbers are not exact beyond 2^53 (in microseconds, the year
/// 2255).
pub(super) const STAMP_LIMIT: u64 = 1 << 53;
/// Longest time to keep a record, in milliseconds. A longer one never expires: Redis refuses an
/// expiry beyond 64 bits.
const FOREVER_MS: u128 = 1 << 52;

/// Appends one argument made of two parts.
pub(super) fn joined(command: &mut Cmd, parts: [&[u8]; 2]) {
    let mut writer = command.writer_for_next_arg();
    for part in parts {
        // Writing to memory cannot fail.
        let _ = writer.write_all(part);
    }
}

/// Returns the bytes of a string, or `None` for nil.
pub(super) fn bytes(value: Value) -> Result<Option<Vec<u8>>, StoreError> {
    if value == Value::Nil {
        return Ok(None);
    }
    let Value::BulkString(bytes) = value else { return Err(malformed()) };
    Ok(Some(bytes))
}

/// Parses a key's value: a stamp followed by a record, or a bare stamp where a record was removed.
pub(super) fn snapshot(id: &RecordId, now: Stamp, value: Option<Vec<u8>>) -> Result<Snapshot, StoreError> {
    let damaged = |what| Err(corrupt(id, DecodeError::Damaged { what }));
    let Some(mut value) = value.map(Bytes::from) else { return Ok(Snapshot { record: None, now }) };
    let Some(stamp) = value.first_chunk::<STAMP_BYTES>() else {
        return damaged("shorter than a stamp, or not a string");
    };
    let stamp = Stamp(u64::from_be_bytes(*stamp));
    if stamp.0 >= STAMP_LIMIT {
        return damaged("no stamp in front");
    }
    let now = now.max(stamp);
    if value.len() == STAMP_BYTES {
        return Ok(Snapshot { record: None, now });
    }
    value.advance(STAMP_BYTES);
    match Record::decode_owned(id, stamp, Stamp::ZERO, value) {
        Ok(record) => Ok(Snapshot { record: Some(Box::new(record)), now }),
        Err(error) => Err(corrupt(id, error)),
    }
}

/// Returns the next reply, after that to an `ASKING`, which may be an error.
pub(super) fn next_reply(
    replies: &mut impl Iterator<Item = Result<Value, RedisError>>,
    is_asking: bool,
) -> Result<Option<Value>, RedisError> {
    let asked = if is_asking { replies.next().transpose() } else { Ok(None) };
    let reply = replies.next().transpose();
    asked.and(reply)
}

/// Parses the reply to `TIME`.
pub(super) fn time(reply: Option<Value>) -> Result<Stamp, StoreError> {
    let reply = reply.ok_or_else(malformed)?.extract_error().map_err(|error| store_error(&error))?;
    let (seconds, micros): (u64, u64) = from_redis_value(reply).map_err(|_| malformed())?;
    Ok(Stamp(seconds.saturating_mul(1_000_000).saturating_add(micros)))
}

/// Parses the reply to `GET`.
pub(super) fn found(
    id: &RecordId,
    now: Stamp,
    reply: Result<Value, RedisError>,
) -> Result<Snapshot, StoreError> {
    match reply {
        Ok(value) => snapshot(id, now, bytes(value)?),
        Err(error) if is_wrong_type(&error) => {
            Err(corrupt(id, DecodeError::Damaged { what: "not a string" }))
        }
        Err(error) => Err(store_error(&error)),
    }
}

/// Converts to milliseconds, rounded up and at least 1 as Redis requires; `None` means for ever.
pub(super) fn millis(keep: Duration) -> Option<u64> {
    let millis = keep.as_nanos().div_ceil(1_000_000).max(1);
    u64::try_from(millis).ok().filter(|_| millis <= FOREVER_MS)
}
