//! The swap script: how it is called, and what it answers.

use std::time::Duration;

use ::redis::{Cmd, Script, Value, cmd};
use bytes::Bytes;

use super::refusal::{corrupt, nonsense};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::{DecodeError, Record, Stamp};
use crate::store::{Snapshot, Swap};

/// The length of the stamp in front of each value.
const STAMP_BYTES: usize = 8;
/// Stamps from here on are none: Lua's numbers are not exact beyond 2^53 (in microseconds, the year 2255).
const STAMP_LIMIT: u64 = 1 << 53;
/// What is to be kept longer, in milliseconds, is kept for ever: Redis refuses an end that is no 64-bit number.
const FOREVER_MS: u128 = 1 << 52;

/// The script in one of its two variants. The header is what makes the server look at its memory first, and refuse
/// before anything ran; without it the first write of a script is where it looks.
#[derive(Debug)]
pub(super) struct SwapScript {
    pub(super) code: String,
    hash: String,
}

impl SwapScript {
    /// Refused when the server is over `maxmemory`.
    pub(super) fn refusable() -> SwapScript {
        SwapScript::new("#!lua")
    }

    /// Runs over `maxmemory` too.
    pub(super) fn always() -> SwapScript {
        SwapScript::new("#!lua flags=allow-oom")
    }

    fn new(header: &str) -> SwapScript {
        let code = format!("{header}\n{}", include_str!("swap.lua"));
        let hash = Script::new(&code).get_hash().to_owned();
        SwapScript { code, hash }
    }

    /// What runs it for `swaps`.
    pub(super) fn call(&self, swaps: &[Item]) -> Cmd {
        let mut command = cmd("EVALSHA");
        command.arg(&self.hash).arg(swaps.len());
        for swap in swaps {
            command.arg(&swap.key);
        }
        for swap in swaps {
            match &swap.expected {
                Expected::Absent => command.arg(""),
                Expected::Stamp(stamp) => command.arg(&stamp.0.to_be_bytes()),
                Expected::Anything => command.arg("*"),
            };
            command.arg(&swap.bytes);
            match millis(swap.keep) {
                Some(millis) => command.arg(millis),
                None => command.arg(""),
            };
        }
        command
    }

    /// What puts it into the server's cache.
    pub(super) fn load(&self) -> Cmd {
        let mut command = cmd("SCRIPT");
        command.arg("LOAD").arg(&self.code);
        command
    }
}

/// One swap of a call.
pub(super) struct Item {
    pub(super) key: Vec<u8>,
    pub(super) expected: Expected,
    /// The record's bytes; empty for a removal.
    pub(super) bytes: Vec<u8>,
    pub(super) keep: Duration,
}

/// What must be under a key for a swap to be done.
pub(super) enum Expected {
    Absent,
    Stamp(Stamp),
    Anything,
}

impl From<Option<Stamp>> for Expected {
    fn from(stamp: Option<Stamp>) -> Expected {
        stamp.map_or(Expected::Absent, Expected::Stamp)
    }
}

/// The script's answer to one item.
#[derive(Debug)]
pub(super) enum Answer {
    Done { stamp: Stamp, existed: bool },
    Conflict { now: Stamp, value: Option<Vec<u8>> },
}

impl Answer {
    /// The answers to `count` items, in their order.
    pub(super) fn parse(reply: Value, count: usize) -> Result<Vec<Answer>, StoreError> {
        let Value::Array(parts) = reply else { return Err(nonsense()) };
        if parts.len() != 3 * count {
            return Err(nonsense());
        }
        let mut parts = parts.into_iter();
        let mut answers = Vec::with_capacity(count);
        while let (Some(done), Some(time), Some(value)) = (parts.next(), parts.next(), parts.next()) {
            let time = stamp(&time)?;
            let value = bytes(value)?;
            answers.push(if done == Value::Int(1) {
                Answer::Done { stamp: time, existed: value.is_some_and(|found| !found.is_empty()) }
            } else {
                Answer::Conflict { now: time, value }
            });
        }
        Ok(answers)
    }

    /// The answer to a single item.
    pub(super) fn only(reply: Value) -> Result<Answer, StoreError> {
        Answer::parse(reply, 1)?.pop().ok_or_else(nonsense)
    }

    pub(super) fn into_swap(self, id: &RecordId) -> Result<Swap, StoreError> {
        match self {
            Answer::Done { stamp, .. } => Ok(Swap::Done(stamp)),
            Answer::Conflict { now, value } => Ok(Swap::Conflict(snapshot(id, now, value)?)),
        }
    }
}

fn stamp(value: &Value) -> Result<Stamp, StoreError> {
    let Value::Int(stamp) = value else { return Err(nonsense()) };
    u64::try_from(*stamp).map(Stamp).map_err(|_| nonsense())
}

/// A string, or `None` for nil.
pub(super) fn bytes(value: Value) -> Result<Option<Vec<u8>>, StoreError> {
    if value == Value::Nil {
        return Ok(None);
    }
    let Value::BulkString(bytes) = value else { return Err(nonsense()) };
    Ok(Some(bytes))
}

/// What a key's value says: a stamp with a record behind it, or alone, where a record was removed.
pub(super) fn snapshot(id: &RecordId, now: Stamp, value: Option<Vec<u8>>) -> Result<Snapshot, StoreError> {
    let damaged = |what| Err(corrupt(id, DecodeError::Damaged { what }));
    let Some(value) = value.map(Bytes::from) else { return Ok(Snapshot { record: None, now }) };
    let Some(stamp) = value.first_chunk::<STAMP_BYTES>() else {
        return damaged("shorter than a stamp, or no string");
    };
    let stamp = Stamp(u64::from_be_bytes(*stamp));
    if stamp.0 >= STAMP_LIMIT {
        return damaged("no stamp in front");
    }
    let now = now.max(stamp);
    if value.len() == STAMP_BYTES {
        return Ok(Snapshot { record: None, now });
    }
    match Record::decode(id, stamp, Stamp::ZERO, &value.slice(STAMP_BYTES..)) {
        Ok(record) => Ok(Snapshot { record: Some(Box::new(record)), now }),
        Err(error) => Err(corrupt(id, error)),
    }
}

/// Milliseconds, rounded up and at least 1 as Redis wants it; `None`: for ever.
fn millis(keep: Duration) -> Option<u64> {
    let millis = keep.as_nanos().div_ceil(1_000_000).max(1);
    u64::try_from(millis).ok().filter(|_| millis <= FOREVER_MS)
}
