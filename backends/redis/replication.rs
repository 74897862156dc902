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
    pub(super) fn confirmed(&self, reply: Option<Value>) -> Result<(), StoreError> {
        let reply = reply.ok_or_else(malformed)?.extract_error().map_err(|error| match error.code() {
            Some("NOPERM") => unusable(CANNOT_WAIT),
            _ => store_error(&error),
        })?;
        let Value::Int(confirmed) = reply else { return Err(malformed()) };
        if confirmed >= i64::from(self.replicas) {
            return Ok(());
        }
        observe::redis_too_few_replicas();
        Err(unavailable(format!(
            "it was written, but only {confirmed} of {} replicas confirmed it in time: the same owner may repeat",
            self.replicas
        )))
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
        let mut head = Pipeline::new();
        for _ in 0..2 {
            let mut commands = head;
            if is_asking {
                commands.cmd("ASKING");
            }
            commands.add_command(touch(settings, id)).add_command(self.wait());
            let mut replies = connections.send(connection, &commands, commands.len()).await?;
            let waited = replies.pop();
            match replies.pop().ok_or_else(malformed)?.extract_error() {
                Ok(_) => return self.confirmed(waited),
                Err(error) if is_no_script(&error) => {
                    head = Pipeline::new();
                    head.add_command(settings.scripts.load_touch());
                }
                // A slot that moved between the read and this: the repetition finds it.
                Err(error) if error.redirect_node().is_some() => {
                    return Err(unavailable("a slot moved to another node meanwhile"));
                }
                Err(error) => return Err(store_error(&error)),
            }
        }
        Err(unavailable("it loses scripts as soon as they are loaded (NOSCRIPT)"))
    }
}

/// True if a caller may act, or stop acting, on the result of an item that only read something. Not
/// on the running lease of another caller, under which it waits.
pub(super) fn lets_act(item: &Item, result: &Result<ItemReply, StoreError>) -> bool {
    let (now, value) = match result {
        Ok(ItemReply::Conflict { now, value: Some(value) }) => (*now, value),
        Ok(ItemReply::Seen { by, value }) => (*by, value),
        Ok(ItemReply::Conflict { value: None, .. }) => return true,
        // Either nothing was read, or it is read again.
        Ok(ItemReply::Done { .. } | ItemReply::Refused(_) | ItemReply::Elsewhere(..)) | Err(_) => {
            return false;
        }
    };
    let Ok(Snapshot { record: Some(found), now }) = snapshot(&item.id, now, Some(value.clone())) else {
        return true;
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
