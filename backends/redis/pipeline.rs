//! One pipeline to the server: many swaps in one round trip, or a few.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Pipeline, ServerErrorKind, Value};

use super::connection::{Connection, Connections};
use super::error::{store_error, unavailable};
use super::item::{Item, ItemReply};
use super::replication::{Unconfirmed, lets_act, rank_to_touch};
use super::row::Row;
use super::script::ScriptName;
use super::shard::Shard;
use super::value::{next_reply, time};
use crate::clock::{Clock, SystemClock};
use crate::error::StoreError;
use crate::record::Stamp;

/// Least clock slack with which the store gives stamps itself. A late command must still find the
/// stamp of its predecessor, which the server keeps for the clock slack; with less than this, the
/// server gives every stamp.
const LEAST_SLACK: Duration = Duration::from_secs(60);
/// Most round trips: the cheapest writes, then the script that always gives a result, then the same
/// after loading the scripts.
const ROUNDS: usize = 3;

/// The connection of a pipeline, and with it everything assumed about the server.
struct Delivery<'a> {
    shard: &'a Shard,
    connections: &'a Connections,
    connection: Arc<Connection>,
    rows: Vec<Row>,
    /// The number of commands of rows that were answered so far.
    answered: usize,
}

/// The replies to a pipeline.
struct Replies {
    head: Vec<Value>,
    own: Vec<Value>,
    /// The result of waiting for replicas, if there are any to wait for.
    confirmed: Option<Result<(), Unconfirmed>>,
}

impl Shard {
    /// Sends the items at once. Items may be applied in any order, so no two may share an id unless
    /// they come from concurrent callers. Takes a second round trip for items that the first one
    /// certainly left undone.
    pub(super) async fn deliver(&self, items: Vec<Item>) -> Vec<Result<ItemReply, StoreError>> {
        let all = |error: StoreError| items.iter().map(|_| Err(error.clone())).collect();
        let connections = match self.records.lane().await {
            Ok(connections) => connections,
            Err(error) => return all(error),
        };
        let connection = match connections.get().await {
            Ok(connection) => connection,
            Err(error) => return all(error),
        };
        let grants = items.iter().any(|item| item.refusable);
        // The reason to give this server no more grants.
        let doubt = if grants { connections.check_grants(&connection).await.err() } else { None };
        Delivery { shard: self, connections: &connections, connection, rows: Vec::new(), answered: 0 }
            .deliver(items, doubt)
            .await
    }
}

impl Delivery<'_> {
    async fn deliver(
        mut self,
        items: Vec<Item>,
        doubt: Option<StoreError>,
    ) -> Vec<Result<ItemReply, StoreError>> {
        let settings = &*self.shard.settings;
        let round_trip = self.connection.time.begin(SystemClock.monotonic());
        let bounds = round_trip.bounds.filter(|_| settings.clock_slack >= LEAST_SLACK);
        let row = |item: Item| match &doubt {
            Some(doubt) if item.refusable => Row::refused(item, doubt.clone()),
            _ => Row::new(item, &self.connection, bounds),
        };
        self.rows = items.into_iter().map(row).collect();

        let mut head = Pipeline::with_capacity(self.rows.len() + 4);
        if round_trip.wants_time {
            head.cmd("TIME");
        }
        let (mut by, mut error, mut is_lost) = (None, None, false);
        for round in 0..ROUNDS {
            if round > 0 && self.rows.iter().all(Row::is_settled) {
                break;
            }
            // Boxed, so that the whole future stays below the size that allocators are slow for.
            let mut replies = match Box::pin(self.exchange(head)).await {
                Ok(replies) => replies,
                Err(failed) => {
                    error = Some(failed);
                    break;
                }
            };
            if round == 0 {
                let shown = time(replies.head.pop()).ok();
                let now = SystemClock.monotonic();
                if let Some(shown) = shown.filter(|_| round_trip.is_precise(now)) {
                    settings.watch.clock(&self.shard.address, shown, now);
                }
                by = self.connection.time.end(&round_trip, shown, now).map(|bounds| bounds.upper);
            } else if let Some(failed) =
                replies.head.into_iter().find_map(|reply| reply.extract_error().err())
            {
                // It refuses to load a script.
                error.get_or_insert(store_error(&failed));
            }
            is_lost |= replies.own.iter().any(is_lost_script);
            let before = self.answered;
            self.decode(replies.own, by);
            if let Some(confirmed) = replies.confirmed {
                self.cover(before, &confirmed);
                if let Err(missing) = confirmed {
                    // Of rows that were left undone.
                    error = Some(missing.error("it was not written, since"));
                    self.connection.inspect_soon();
                    break;
                }
            }
            self.rows.iter_mut().for_each(Row::retry);
            head = Pipeline::new();
            if is_lost {
                for name in ScriptName::ALL {
                    head.add_command(settings.scripts.load_command(name));
                }
            }
        }
        if settings.replication.is_some() {
            // Boxed, since it would make the futures of other pipelines large to move.
            Box::pin(self.confirm_reads()).await;
        }
        let error =
            error.unwrap_or_else(|| unavailable("it loses scripts as soon as they are loaded (NOSCRIPT)"));
        self.rows.into_iter().map(|row| row.finish(&error)).collect()
    }

    /// Sends the rows without a result, after the commands in `head`.
    async fn exchange(&self, mut head: Pipeline) -> Result<Replies, StoreError> {
        let count = head.len();
        self.encode(&mut head);
        let replication = self.shard.settings.replication.filter(|_| head.len() > count);
        if let Some(replication) = &replication {
            head.add_command(replication.wait());
        }
        let mut replies = self.connections.send(&self.connection, &head, head.len()).await?;
        let confirmed = replication.map(|replication| replication.confirmed(replies.pop()));
        let own = replies.split_off(count);
        Ok(Replies { head: replies, own, confirmed })
    }

    /// Makes sure that replicas have what rows only read. One write serves them all.
    async fn confirm_reads(&mut self) {
        let Some(replication) = &self.shard.settings.replication else { return };
        let unconfirmed = self.rows.iter().filter(|row| row.is_unconfirmed);
        let Some(row) = unconfirmed.min_by_key(|row| rank_to_touch(row.length_found())) else { return };
        let item = &row.item;
        let (connections, settings) = (self.connections, &self.shard.settings);
        let confirmed =
            replication.confirm_reads(connections, &self.connection, settings, &item.id, item.is_asking);
        if let Err(error) = confirmed.await {
            for row in self.rows.iter_mut().filter(|row| row.is_unconfirmed) {
                row.result = Some(Err(error.clone()));
            }
        }
    }

    /// The most keys of one script call: nodes of a cluster take one.
    fn keys_at_once(&self) -> usize {
        if self.shard.settings.is_cluster { 1 } else { usize::MAX }
    }

    /// Adds one command for each row sent by itself, then one for each script call.
    fn encode(&self, commands: &mut Pipeline) {
        let (prefix, scripts) = (&self.shard.settings.prefix, &self.shard.settings.scripts);
        for row in self.rows.iter().filter(|row| row.is_single()) {
            if row.item.is_asking {
                commands.cmd("ASKING");
            }
            if let Some(command) = row.command(prefix) {
                commands.add_command(command);
            }
        }
        for name in ScriptName::ALL {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.script() == Some(name)).collect();
            for rows in rows.chunks(self.keys_at_once()) {
                if rows.iter().any(|row| row.item.is_asking) {
                    commands.cmd("ASKING");
                }
                let bytes = rows.iter().map(|row| row.item.bytes.len()).sum();
                let mut call = scripts.call(name, rows.len(), bytes);
                rows.iter().for_each(|row| row.encode_key(prefix, &mut call));
                rows.iter().for_each(|row| row.encode_arguments(&mut call));
                commands.add_command(call);
            }
        }
    }

    /// Hands each row its reply, in the order of [`encode`](Delivery::encode).
    fn decode(&mut self, replies: Vec<Value>, by: Option<Stamp>) {
        let keys_at_once = self.keys_at_once();
        let connection = &self.connection;
        let mut replies = replies.into_iter().map(Value::extract_error);
        for row in self.rows.iter_mut().filter(|row| row.is_single()) {
            let mut reply = next_reply(&mut replies, row.item.is_asking).map(Option::into_iter);
            self.answered += 1;
            row.decode(&mut reply, by, connection, self.answered);
        }
        for name in ScriptName::ALL {
            let of_script = |row: &&mut Row| row.script() == Some(name);
            let mut rows: Vec<&mut Row> = self.rows.iter_mut().filter(of_script).collect();
            for rows in rows.chunks_mut(keys_at_once) {
                let is_asking = rows.iter().any(|row| row.item.is_asking);
                let reply = next_reply(&mut replies, is_asking);
                let mut parts = reply.map(|reply| name.split(reply.unwrap_or(Value::Nil), rows.len()));
                self.answered += 1;
                rows.iter_mut().for_each(|row| row.decode(&mut parts, by, connection, self.answered));
            }
        }
    }

    /// Applies the result of the `WAIT` that followed the commands after number `before`. It covers
    /// what they wrote, and what was read no later than the last of these writes.
    fn cover(&mut self, before: usize, confirmed: &Result<(), Unconfirmed>) {
        let is_new = |row: &Row| row.answered > before && row.result.is_some();
        if let Err(missing) = confirmed {
            for row in self.rows.iter_mut().filter(|row| is_new(row)) {
                let what = if row.is_written() { "it was written, but" } else { "it was read, but" };
                row.result = Some(Err(missing.error(what)));
            }
            return;
        }
        let written = self.rows.iter().filter(|row| is_new(row) && row.is_written());
        let covered = written.map(|row| row.answered).max();
        for row in &mut self.rows {
            if covered.is_some_and(|covered| row.answered <= covered) {
                row.is_unconfirmed = false;
            } else if is_new(row) {
                row.is_unconfirmed = row.result.as_ref().is_some_and(|result| lets_act(&row.item, result));
            }
        }
    }
}

fn is_lost_script(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::NoScript))
}
