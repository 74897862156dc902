//! The swaps of a pipeline and the replies to them: [`Item`], [`ItemReply`].

use std::time::Duration;

use ::redis::Value;

use super::address::Redirect;
use super::error::malformed;
use super::value::bytes;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::Stamp;

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
    /// True if it is sent to a node to which its slot is still on the way.
    pub(super) is_asking: bool,
    /// True if it finds out whether the server serves such an item at all, and no caller acts on
    /// the reply.
    pub(super) is_probe: bool,
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

/// The reply to one item.
#[derive(Debug)]
pub(super) enum ItemReply {
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
    /// Another node serves the key. Nothing was written.
    Elsewhere(Redirect, Box<Item>),
}

impl ItemReply {
    /// Parses the swap script's reply to one item: three values.
    pub(super) fn parse(parts: &mut impl Iterator<Item = Value>) -> Result<ItemReply, StoreError> {
        let (Some(done), Some(Value::Int(time)), Some(value)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(malformed());
        };
        let time = u64::try_from(time).map(Stamp).map_err(|_| malformed())?;
        let value = bytes(value)?;
        Ok(if done == Value::Int(1) {
            ItemReply::Done { stamp: time, existed: value.is_some_and(|found| !found.is_empty()) }
        } else {
            ItemReply::Conflict { now: time, value }
        })
    }
}
