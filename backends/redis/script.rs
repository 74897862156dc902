//! The scripts: how they are called, and what they answer.

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
/// Stamps from here on are none: Lua's numbers are not exact beyond 2^53 (in microseconds, the year 2255).
pub(super) const STAMP_LIMIT: u64 = 1 << 53;
/// What is to be kept longer, in milliseconds, is kept for ever: Redis refuses an end that is no 64-bit number.
const FOREVER_MS: u128 = 1 << 52;

const TOO_OLD: &str = "it does not know `#!lua` scripts: Redis 7.0 or Valkey is the oldest that does";

/// The scripts of a store. Each has a header, which is what makes the server look at its memory first, and refuse before
/// anything ran; without it the first write of a script is where it looks.
#[derive(Debug)]
pub(super) struct Scripts {
    /// The swap by the server's clock, refused when the server is over `maxmemory`.
    pub(super) refusable: OneScript,
    /// The same, which runs over `maxmemory` too.
    pub(super) always: OneScript,
    /// The replacement of a record of a known stamp by bytes that have theirs already. Runs over `maxmemory` too.
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

    /// Leaves them in the server's cache, and finds out whether this user may run them.
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

    /// The swap in the variant that fits items which may be refused, or may not.
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

    /// What puts it into the server's cache.
    pub(super) fn load(&self) -> Cmd {
        let mut command = cmd("SCRIPT");
        command.arg("LOAD").arg(&self.code);
        command
    }

    /// The start of what runs it, for `count` keys, of which the arguments follow.
    pub(super) fn call(&self, count: usize, bytes: usize) -> Cmd {
        // For each key: its name, three arguments, and what names are long.
        let mut command = Cmd::with_capacity(3 + 4 * count, 64 + bytes + 96 * count);
        command.arg("EVALSHA").arg(&self.hash).arg(count);
        command
    }

    /// What swaps the items.
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
        // It writes to memory.
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
    /// Whether a server that is full may refuse it.
    pub(super) refusable: bool,
    /// Whether the record is one in progress, which will be replaced soon.
    pub(super) grants: bool,
}

/// What must be under a key for a swap to be done.
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
    /// A conflict with this value. What the server's clock showed is not known, only that it was no later than `by`.
    Seen {
        by: Stamp,
        value: Vec<u8>,
    },
    /// The server must not be given another grant, or has no room for one: nothing was written.
    Refused(StoreError),
}

impl Answer {
    /// The swap script's answers to `count` items, in their order.
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
pub(super) fn millis(keep: Duration) -> Option<u64> {
    let millis = keep.as_nanos().div_ceil(1_000_000).max(1);
    u64::try_from(millis).ok().filter(|_| millis <= FOREVER_MS)
}
