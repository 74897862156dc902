//! One row of a pipeline: [`Row`].

use std::sync::atomic::Ordering;

use ::redis::{Cmd, RedisError, Value};

use super::address::Redirect;
use super::connection::Connection;
use super::error::{
    corrupt, full, is_no_script, is_oom, is_unknown_option, is_wrong_type, malformed, store_error,
};
use super::grant_cache::CachedGrant;
use super::item::{Expected, Item, ItemReply};
use super::script::ScriptName;
use super::time::Bounds;
use super::value::{STAMP_BYTES, STAMP_LIMIT, bytes, joined, millis};
use crate::error::StoreError;
use crate::record::{DecodeError, Stamp};

/// An item of a pipeline. It encodes itself, as a command or as arguments of a script, and reads
/// its reply.
pub(super) struct Row {
    pub(super) item: Item,
    write: Write,
    /// The result, once it is known. A row that has one is not sent.
    pub(super) result: Option<Result<ItemReply, StoreError>>,
    /// The node that serves the key instead. A row that has one is not sent either.
    redirect: Option<Redirect>,
    /// The number of the command that was answered last for it.
    pub(super) answered: usize,
    /// True if the result only read something that replicas may not have yet.
    pub(super) is_unconfirmed: bool,
}

/// The way in which an item is sent.
enum Write {
    /// `SET .. NX GET`.
    Set { stamp: Stamp, expiry: Expiry },
    /// `SET .. IFEQ`, if the expected stamp is followed by these bytes.
    Compare { last: Stamp, bytes: Vec<u8>, stamp: Stamp, expiry: Expiry },
    /// The script that compares stamps.
    Replace { last: Stamp, stamp: Stamp, expiry: Expiry },
    /// The script that also gives the stamp and reports the present value.
    Swap,
}

/// The expiry that the server applies to the written value.
#[derive(Clone, Copy)]
enum Expiry {
    /// After these milliseconds, or never.
    After(Option<u64>),
    /// Unchanged from the value that is replaced, which saves the server some work.
    Unchanged,
}

impl Row {
    /// Creates a row that is written in the cheapest way that is safe. Without bounds of the
    /// server's time, the server gives the stamp.
    pub(super) fn new(item: Item, connection: &Connection, bounds: Option<Bounds>) -> Row {
        let write = Write::choose(&item, connection, bounds);
        Row { write, item, result: None, redirect: None, answered: 0, is_unconfirmed: false }
    }

    /// Creates a row that is not sent.
    pub(super) fn refused(item: Item, why: StoreError) -> Row {
        let result = Some(Ok(ItemReply::Refused(why)));
        Row { item, write: Write::Swap, result, redirect: None, answered: 0, is_unconfirmed: false }
    }

    /// Leaves the row, if it has no result yet, to the script that always gives one.
    pub(super) fn retry(&mut self) {
        self.write = Write::Swap;
    }

    /// Returns the script by which the row is sent, if any.
    pub(super) fn script(&self) -> Option<ScriptName> {
        match self.write {
            _ if self.is_settled() => None,
            Write::Set { .. } | Write::Compare { .. } => None,
            Write::Replace { .. } => Some(ScriptName::Replace),
            Write::Swap if self.item.refusable => Some(ScriptName::Refusable),
            Write::Swap => Some(ScriptName::Always),
        }
    }

    /// True if the row is sent as a command of its own.
    pub(super) fn is_single(&self) -> bool {
        !self.is_settled() && self.script().is_none()
    }

    /// True if nothing is left to send.
    pub(super) fn is_settled(&self) -> bool {
        self.result.is_some() || self.redirect.is_some()
    }

    /// True if the item was written.
    pub(super) fn is_written(&self) -> bool {
        matches!(self.result, Some(Ok(ItemReply::Done { .. })))
    }

    /// Returns the length of the value that it found.
    pub(super) fn length_found(&self) -> usize {
        match &self.result {
            Some(Ok(ItemReply::Conflict { value: Some(value), .. } | ItemReply::Seen { value, .. })) => {
                value.len()
            }
            _ => 0,
        }
    }

    /// Returns the reply to the item, or `error` if there is none.
    pub(super) fn finish(self, error: &StoreError) -> Result<ItemReply, StoreError> {
        match self.redirect {
            Some(redirect) => Ok(ItemReply::Elsewhere(redirect, Box::new(self.item))),
            None => self.result.unwrap_or_else(|| Err(error.clone())),
        }
    }

    /// Appends the row's key name.
    pub(super) fn encode_key(&self, prefix: &[u8], command: &mut Cmd) {
        joined(command, [prefix, self.item.id.as_bytes()]);
    }

    /// Builds the command by which the row is sent, if not by a script.
    pub(super) fn command(&self, prefix: &[u8]) -> Option<Cmd> {
        let (Write::Set { stamp, expiry } | Write::Compare { stamp, expiry, .. }) = &self.write else {
            return None;
        };
        let mut command = Cmd::with_capacity(8, 128 + 2 * self.item.bytes.len());
        command.arg("SET");
        self.encode_key(prefix, &mut command);
        joined(&mut command, [&stamp.0.to_be_bytes(), &self.item.bytes]);
        if let Write::Compare { last, bytes, .. } = &self.write {
            command.arg("IFEQ");
            joined(&mut command, [&last.0.to_be_bytes(), bytes]);
        } else {
            command.arg("NX").arg("GET");
        }
        match expiry {
            Expiry::After(Some(millis)) => drop(command.arg("PX").arg(millis)),
            Expiry::After(None) => {}
            Expiry::Unchanged => drop(command.arg("KEEPTTL")),
        }
        Some(command)
    }

    /// Appends the row's three arguments to the call of its script.
    pub(super) fn encode_arguments(&self, call: &mut Cmd) {
        let item = &self.item;
        let expiry = if let Write::Replace { last, stamp, expiry } = &self.write {
            call.arg(&last.0.to_be_bytes());
            joined(call, [&stamp.0.to_be_bytes(), &item.bytes]);
            *expiry
        } else {
            match item.expected {
                Expected::Absent => call.arg(""),
                Expected::Stamp(stamp) => call.arg(&stamp.0.to_be_bytes()),
                Expected::Anything => call.arg("*"),
            };
            call.arg(&item.bytes);
            Expiry::After(millis(item.keep))
        };
        match expiry {
            Expiry::After(Some(millis)) => call.arg(millis),
            Expiry::After(None) => call.arg(""),
            Expiry::Unchanged => call.arg("="),
        };
    }

    /// Reads the reply to the row, from its own command or from its place among the replies of the
    /// script. Leaves the result open if the row was certainly not written and the reply does not
    /// tell why.
    pub(super) fn decode(
        &mut self,
        reply: &mut Result<impl Iterator<Item = Value>, RedisError>,
        by: Option<Stamp>,
        connection: &Connection,
        number: usize,
    ) {
        self.answered = number;
        self.result = match reply {
            Ok(parts) => self.answer(parts, by).transpose(),
            Err(error) => self.failure(error, connection),
        };
        if let Some(Ok(ItemReply::Done { stamp, .. })) = self.result
            && self.item.grants
        {
            let compares = connection.compares.load(Ordering::Relaxed);
            let bytes = if compares { std::mem::take(&mut self.item.bytes) } else { Vec::new() };
            let grant = CachedGrant { stamp, keep: self.item.keep, bytes };
            connection.grants.remember(self.item.id, grant);
        }
    }

    fn answer(
        &self,
        parts: &mut impl Iterator<Item = Value>,
        by: Option<Stamp>,
    ) -> Result<Option<ItemReply>, StoreError> {
        let mut next = || parts.next().ok_or_else(malformed);
        Ok(match self.write {
            Write::Set { stamp, .. } => match bytes(next()?)? {
                None => Some(ItemReply::Done { stamp, existed: false }),
                // Only the stamp of a removed record: the script then gives a greater one.
                Some(value) if value.len() == STAMP_BYTES => None,
                Some(value) => by.map(|by| ItemReply::Seen { by, value }),
            },
            Write::Compare { stamp, .. } => {
                (next()? == Value::Okay).then_some(ItemReply::Done { stamp, existed: true })
            }
            Write::Replace { stamp, .. } => match next()? {
                mark if mark == Value::Int(b'1'.into()) => Some(ItemReply::Done { stamp, existed: true }),
                mark if mark == Value::Int(b'0'.into()) => None,
                _ => return Err(malformed()),
            },
            Write::Swap => Some(ItemReply::parse(parts)?),
        })
    }

    fn failure(
        &mut self,
        error: &RedisError,
        connection: &Connection,
    ) -> Option<Result<ItemReply, StoreError>> {
        self.redirect = connection.redirect(error);
        if self.redirect.is_some() {
            return None;
        }
        match self.write {
            Write::Set { .. } | Write::Swap if is_oom(error) && self.item.refusable => {
                Some(Ok(ItemReply::Refused(full())))
            }
            Write::Set { .. } if is_wrong_type(error) => {
                Some(Err(corrupt(&self.item.id, DecodeError::Damaged { what: "not a string" })))
            }
            // Over `maxmemory` the script can still finish.
            Write::Compare { .. } if is_oom(error) || is_wrong_type(error) => None,
            Write::Compare { .. } if is_unknown_option(error) => {
                connection.compares.store(false, Ordering::Relaxed);
                None
            }
            Write::Replace { .. } | Write::Swap if is_no_script(error) => None,
            Write::Set { .. } | Write::Compare { .. } | Write::Replace { .. } | Write::Swap => {
                Some(Err(store_error(error)))
            }
        }
    }
}

impl Write {
    fn choose(item: &Item, connection: &Connection, bounds: Option<Bounds>) -> Write {
        let Some(Bounds { lower, upper }) = bounds else { return Write::Swap };
        // Counted from the write: the stamp may be ahead of the server's clock at that moment.
        let own = |stamp: Stamp| Expiry::After(millis(item.keep.saturating_add(stamp.since(lower))));
        match item.expected {
            Expected::Absent if item.refusable && upper.0 < STAMP_LIMIT => {
                Write::Set { stamp: upper, expiry: own(upper) }
            }
            Expected::Stamp(last) if !item.refusable && upper.max(last.next()).0 < STAMP_LIMIT => {
                let stamp = upper.max(last.next());
                let Some(grant) = connection.grants.take(&item.id, last) else {
                    return Write::Replace { last, stamp, expiry: own(stamp) };
                };
                let expiry = if grant.lasts(stamp, item.keep) { Expiry::Unchanged } else { own(stamp) };
                if connection.compares.load(Ordering::Relaxed) && !grant.bytes.is_empty() {
                    return Write::Compare { last, bytes: grant.bytes, stamp, expiry };
                }
                Write::Replace { last, stamp, expiry }
            }
            Expected::Absent | Expected::Stamp(_) | Expected::Anything => Write::Swap,
        }
    }
}
