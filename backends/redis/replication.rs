//! Waiting for replicas: [`Replication`].

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, Pipeline, Value, cmd};
use bytes::Bytes;

use super::connection::{Connection, Connections};
use super::error::{is_no_script, malformed, store_error, unavailable, unusable};
use super::item::{Item, ItemReply};
use super::script::CANNOT_WAIT;
use super::shard::Settings;
use super::value::{millis, snapshot};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::observe;
use crate::record::{Record, Stamp, State};
use crate::store::Snapshot;

/// The number of replicas that must have every write before it is acknowledged.
///
/// `WAIT` counts only what its own connection wrote, and says "replicated" at once on a connection
/// whose last command only read. So it ends every pipeline, and an answer that only read something
/// is given out after a later write on the same connection was confirmed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Replication {
    pub(super) replicas: u8,
    /// Time limit of a `WAIT`, below the response timeout. Never 0, which would mean for ever.
    limit: Duration,
}

/// The reason why a `WAIT` did not confirm what was sent before it.
#[derive(Debug)]
pub(super) enum Unconfirmed {
    TooFew { confirmed: i64, needed: u8 },
    Failed(StoreError),
}

impl From<StoreError> for Unconfirmed {
    fn from(error: StoreError) -> Unconfirmed {
        Unconfirmed::Failed(error)
    }
}

impl Unconfirmed {
    /// Returns the error for what was written or read.
    pub(super) fn error(&self, what: &str) -> StoreError {
        match self {
            Unconfirmed::TooFew { confirmed, needed } => unavailable(format!(
                "{what} only {confirmed} of {needed} replicas confirmed in time: the same owner may repeat"
            )),
            Unconfirmed::Failed(error) => error.clone(),
        }
    }
}

impl Replication {
    pub(super) fn new(replicas: u8, response_timeout: Duration) -> Replication {
        Replication { replicas, limit: (response_timeout / 2).max(Duration::from_millis(1)) }
    }

    /// Builds the `WAIT` for all that was written before on the same connection.
    pub(super) fn wait(&self) -> Cmd {
        let mut wait = cmd("WAIT");
        wait.arg(self.replicas).arg(millis(self.limit));
        wait
    }

    /// Reads the reply to [`wait`](Replication::wait).
    pub(super) fn confirmed(&self, reply: Option<Value>) -> Result<(), Unconfirmed> {
        let reply = reply.ok_or_else(malformed)?.extract_error().map_err(|error| match error.code() {
            Some("NOPERM") => unusable(CANNOT_WAIT),
            _ => store_error(&error),
        })?;
        let Value::Int(confirmed) = reply else { return Err(malformed().into()) };
        if confirmed >= i64::from(self.replicas) {
            return Ok(());
        }
        observe::redis_too_few_replicas();
        Err(Unconfirmed::TooFew { confirmed, needed: self.replicas })
    }

    /// Makes sure that replicas have all that was read on this connection before. It writes the
    /// record back as it is, or where there is none a tombstone, and waits for that.
    pub(super) async fn confirm_reads(
        &self,
        connections: &Connections,
        connection: &Arc<Connection>,
        settings: &Settings,
        id: &RecordId,
        is_asking: bool,
    ) -> Result<(), StoreError> {
        let (mut head, mut failed) = (Pipeline::new(), None);
        for _ in 0..2 {
            let mut commands = head;
            let loads = commands.len();
            if is_asking {
                commands.cmd("ASKING");
            }
            commands.add_command(touch(settings, id)).add_command(self.wait());
            let mut replies = connections.send(connection, &commands, commands.len()).await?;
            let waited = replies.pop();
            match replies.pop().ok_or_else(malformed)?.extract_error() {
                Ok(_) => {
                    return self.confirmed(waited).map_err(|missing| {
                        connection.inspect_soon();
                        missing.error("it was read, but")
                    });
                }
                Err(error) if is_no_script(&error) => {
                    head = Pipeline::new();
                    head.add_command(settings.scripts.load_touch());
                    // It refuses to load the script.
                    failed = replies.into_iter().take(loads).find_map(|reply| reply.extract_error().err());
                }
                // A slot that moved between the read and this: the repetition finds it.
                Err(error) if error.redirect_node().is_some() => {
                    return Err(unavailable("a slot moved to another node meanwhile"));
                }
                Err(error) => return Err(store_error(&error)),
            }
        }
        Err(failed.map_or_else(
            || unavailable("it loses scripts as soon as they are loaded (NOSCRIPT)"),
            |failed| store_error(&failed),
        ))
    }
}

/// Returns the order in which values of these lengths are written back: the shortest first, since
/// it is sent to the replicas and to the file once more. A record that is absent (0) comes last:
/// the tombstone written for it takes memory.
pub(super) fn rank_to_touch(length: usize) -> (bool, usize) {
    (length == 0, length)
}

/// True if a caller may act, or stop acting, on the result of an item that only read something. Not
/// on the running lease of another caller, under which it waits.
pub(super) fn lets_act(item: &Item, result: &Result<ItemReply, StoreError>) -> bool {
    if item.is_probe {
        return false;
    }
    let (now, value) = match result {
        Ok(ItemReply::Conflict { now, value: Some(value) }) => (*now, value),
        Ok(ItemReply::Seen { by, value }) => (*by, value),
        Ok(ItemReply::Conflict { value: None, .. }) => return true,
        // Either nothing was read, or it is read again.
        Ok(ItemReply::Done { .. } | ItemReply::Refused(_) | ItemReply::Elsewhere(..)) | Err(_) => {
            return false;
        }
    };
    let (found, now) = match snapshot(&item.id, now, Some(value.clone())) {
        Ok(Snapshot { record: Some(found), now }) => (found, now),
        Ok(Snapshot { record: None, .. }) => return true,
        // An error, on which no caller acts. It may be no string, which cannot be written back.
        Err(_) => return false,
    };
    let sent = Bytes::copy_from_slice(&item.bytes);
    let Ok(own) = Record::decode(&item.id, Stamp::ZERO, Stamp::ZERO, &sent) else { return true };
    let is_anothers = item.refusable
        && found.is_blocked(now)
        && own.fingerprint == found.fingerprint
        && matches!((&own.state, &found.state),
            (State::InProgress { owner, .. }, State::InProgress { owner: holder, .. }) if owner != holder);
    !is_anothers
}

fn touch(settings: &Settings, id: &RecordId) -> Cmd {
    let mut call = settings.scripts.call_touch();
    call.arg(settings.key(id));
    match millis(settings.clock_slack) {
        Some(millis) => call.arg(millis),
        None => call.arg(""),
    };
    call
}

#[cfg(test)]
mod tests {
    use super::super::item::Expected;
    use super::*;

    #[test]
    fn s10_a_value_that_is_no_record_lets_no_caller_act() {
        let item = |is_probe| Item {
            id: RecordId::from_bytes([1; 32]),
            expected: Expected::Absent,
            bytes: Vec::new(),
            keep: Duration::ZERO,
            refusable: true,
            grants: true,
            is_asking: false,
            is_probe,
        };
        let found = |value: &[u8]| Ok(ItemReply::Conflict { now: Stamp(9), value: Some(value.to_vec()) });
        for damaged in [&b"?"[..], b"\0\0\0\0\0\0\0\x01damaged"] {
            assert!(!lets_act(&item(false), &found(damaged)));
        }
        // A tombstone, or nothing at all: a repeated release stops acting on it.
        let nothing = Ok(ItemReply::Conflict { now: Stamp(9), value: None });
        for found in [found(&1_u64.to_be_bytes()), nothing] {
            assert!(lets_act(&item(false), &found) && !lets_act(&item(true), &found));
        }
    }

    #[test]
    fn s12_a_tombstone_is_written_only_if_nothing_was_found() {
        assert_eq!([0, 300, 8, 0].into_iter().min_by_key(|length| rank_to_touch(*length)), Some(8));
        assert_eq!([0, 0].into_iter().min_by_key(|length| rank_to_touch(*length)), Some(0));
    }

    #[test]
    fn s9_an_error_says_whether_it_was_written() {
        let replication = Replication::new(2, Duration::from_secs(1));
        assert!(replication.confirmed(Some(Value::Int(2))).is_ok());
        let few = replication.confirmed(Some(Value::Int(1))).unwrap_err();
        let text = few.error("it was written, but").to_string();
        assert!(text.contains("it was written, but only 1 of 2 replicas confirmed"), "{text}");
        assert!(replication.confirmed(None).is_err());
    }
}
