//! The scripts: their calls and their replies.

use std::io::Write;
use std::time::Duration;

use ::redis::{Cmd, Pipeline, RedisWrite, Script, Value, cmd};
use bytes::Bytes;

use super::connection::Connections;
use super::refusal::{corrupt, meaning, nonsense, unusable};
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

const TOO_OLD: &str = "it does not know `#!lua` scripts: Redis 7.0 or Valkey is the oldest that does";

/// The scripts of a store. Each has a `#!lua` header. With it the server checks its memory before
/// the script starts and can refuse it as a whole; without it, only at the first write of the
/// script.
#[derive(Debug)]
pub(super) struct Scripts {
    /// The swap by the server's clock, refused while the server is over `maxmemory`.
    pub(super) refusable: OneScript,
    /// The same, allowed over `maxmemory`.
    pub(super) always: OneScript,
    /// The replacement of a record with a known stamp by bytes that already contain theirs. Allowed
    /// over `maxmemory`.
    pub(super) replace: OneScript,
}

#[derive(Debug)]
pub(super) struct OneScript {
    code: String,
    hash: String,
}

impl Scripts {
    pub(super) fn new() -> Scripts {
        let swap = include_str!("swap.lua");
        Scripts {
            refusable: OneScript::new("#!lua", swap),
            always: OneScript::new("#!lua flags=allow-oom", swap),
            replace: OneScript::new("#!lua flags=allow-oom", include_str!("replace.lua")),
        }
    }

    pub(super) fn all(&self) -> [&OneScript; 3] {
        [&self.refusable, &self.always, &self.replace]
    }

    /// Loads them into the server's cache, and checks that this user may run them.
    pub(super) async fn load(&self, connections: &Connections) -> Result<(), StoreError> {
        let mut commands = Pipeline::new();
        for script in self.all() {
            commands.add_command(script.load()).add_command(script.call(0, 0));
        }
        for reply in connections.call(&commands, commands.len()).await? {
            if let Err(error) = reply.extract_error() {
                let is_old = error.detail().is_some_and(|detail| detail.contains("compiling"));
                return Err(if is_old { unusable(TOO_OLD) } else { meaning(&error) });
            }
        }
        Ok(())
    }

    /// Returns the variant of the swap for items that may or may not be refused.
    pub(super) fn swap(&self, refusable: bool) -> &OneScript {
        if refusable { &self.refusable } else { &self.always }
    }
}

impl OneScript {
    fn new(header: &str, code: &str) -> OneScript {
        let code = format!("{header}\n{code}");
        let hash = Script::new(&code).get_hash().to_owned();
        OneScript { code, hash }
    }

    /// Builds the command that loads the script into the server's cache.
    pub(super) fn load(&self) -> Cmd {
        let mut command = cmd("SCRIPT");
        command.arg("LOAD").arg(&self.code);
        command
    }

    /// Builds the start of a call for `count` keys, whose arguments follow.
    pub(super) fn call(&self, count: usize, bytes: usize) -> Cmd {
        // Each key takes its name and three arguments, and 96 bytes besides those of the record.
        let mut command = Cmd::with_capacity(3 + 4 * count, 64 + bytes + 96 * count);
        command.arg("EVALSHA").arg(&self.hash).arg(count);
        command
    }

    /// Builds the call that swaps the items.
    pub(super) fn swap(&self, prefix: &[u8], items: &[&Item]) -> Cmd {
        let bytes = items.iter().map(|item| item.bytes.len()).sum();
        let mut command = self.call(items.len(), bytes);
        for item in items {
            joined(&mut command, [prefix, item.id.as_bytes()]);
        }
        for item in items {
            match item.expected {
                Expected::Absent => command.arg(""),
                Expected::Stamp(stamp) => command.arg(&stamp.0.to_be_bytes()),
                Expected::Anything => command.arg("*"),
            };
            command.arg(&item.bytes);
            match millis(item.keep) {
                Some(millis) => command.arg(millis),
                None => command.arg(""),
            };
        }
        command
    }
}

/// Appends one argument made of two parts.
pub(super) fn joined(command: &mut Cmd, parts: [&[u8]; 2]) {
    let mut writer = command.writer_for_next_arg();
    for part in parts {
        // Writing to memory cannot fail.
        let _ = writer.write_all(part);
    }
}

/// One swap.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) id: RecordId,
    pub(super) expected: Expected,
    /// The record's bytes; empty for a removal.
    pub(super) bytes: Vec<u8>,
    pub(super) keep: Duration,
    /// True if a full server may refuse it.
    pub(super) refusable: bool,
    /// True if the record is in progress and will be replaced soon.
    pub(super) grants: bool,
}

/// The required state of a key for its swap to be done.
#[derive(Debug, Clone, Copy)]
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

/// The answer to one item.
#[derive(Debug)]
pub(super) enum Answer {
    Done {
        stamp: Stamp,
        existed: bool,
    },
    Conflict {
        now: Stamp,
        value: Option<Vec<u8>>,
    },
    /// A conflict with this value. The server's time is unknown, except that it was no later than
    /// `by`.
    Seen {
        by: Stamp,
        value: Vec<u8>,
    },
    /// The server must not be given another grant, or has no room for one. Nothing was written.
    Refused(StoreError),
}

impl Answer {
    /// Parses the swap script's answers to `count` items, in their order.
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
}

fn stamp(value: &Value) -> Result<Stamp, StoreError> {
    let Value::Int(stamp) = value else { return Err(nonsense()) };
    u64::try_from(*stamp).map(Stamp).map_err(|_| nonsense())
}

/// Returns the bytes of a string, or `None` for nil.
pub(super) fn bytes(value: Value) -> Result<Option<Vec<u8>>, StoreError> {
    if value == Value::Nil {
        return Ok(None);
    }
    let Value::BulkString(bytes) = value else { return Err(nonsense()) };
    Ok(Some(bytes))
}

/// Parses a key's value: a stamp followed by a record, or a bare stamp where a record was removed.
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

/// Converts to milliseconds, rounded up and at least 1 as Redis requires; `None` means for ever.
pub(super) fn millis(keep: Duration) -> Option<u64> {
    let millis = keep.as_nanos().div_ceil(1_000_000).max(1);
    u64::try_from(millis).ok().filter(|_| millis <= FOREVER_MS)
}
