//! One pipeline to the server: many swaps in one round trip, or a few.

use std::sync::Arc;
use std::time::Duration;

use ::redis::{Pipeline, ServerErrorKind, Value};

use super::Inner;
use super::connection::Connection;
use super::error::unavailable;
use super::item::{Item, ItemReply};
use super::row::Row;
use super::script::ScriptName;
use super::value::time;
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
    store: &'a Inner,
    connection: Arc<Connection>,
    rows: Vec<Row>,
}

impl Inner {
    /// Sends the items at once. Items may be applied in any order, so no two may share an id unless
    /// they come from concurrent callers. Takes a second round trip for items that the first one
    /// certainly left undone.
    pub(super) async fn deliver(&self, items: Vec<Item>) -> Vec<Result<ItemReply, StoreError>> {
        let connections = &self.records.connections;
        let connection = match connections.get().await {
            Ok(connection) => connection,
            Err(error) => return items.iter().map(|_| Err(error.clone())).collect(),
        };
        let grants = items.iter().any(|item| item.refusable);
        // The reason to give this server no more grants.
        let doubt = if grants { connections.check_grants(&connection).await.err() } else { None };
        Delivery { store: self, connection, rows: Vec::new() }.deliver(items, doubt).await
    }
}

impl Delivery<'_> {
    async fn deliver(
        mut self,
        items: Vec<Item>,
        doubt: Option<StoreError>,
    ) -> Vec<Result<ItemReply, StoreError>> {
        let round_trip = self.connection.time.begin(SystemClock.monotonic());
        let bounds = round_trip.bounds.filter(|_| self.store.clock_slack >= LEAST_SLACK);
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
            if round > 0 && self.rows.iter().all(|row| row.result.is_some()) {
                break;
            }
            let (mut head_replies, replies) = match self.exchange(head).await {
                Ok(replies) => replies,
                Err(failed) => {
                    error = Some(failed);
                    break;
                }
            };
            if round == 0 {
                let shown = time(head_replies.pop()).ok();
                let arrived = self.connection.time.end(&round_trip, shown, SystemClock.monotonic());
                by = arrived.map(|bounds| bounds.upper);
            }
            is_lost |= replies.iter().any(is_lost_script);
            self.decode(replies, by);
            self.rows.iter_mut().for_each(Row::retry);
            head = Pipeline::new();
            if is_lost {
                for name in ScriptName::ALL {
                    head.add_command(self.store.scripts.load_command(name));
                }
            }
        }
        let error =
            error.unwrap_or_else(|| unavailable("it loses scripts as soon as they are loaded (NOSCRIPT)"));
        self.rows.into_iter().map(|row| row.result.unwrap_or_else(|| Err(error.clone()))).collect()
    }

    /// Sends the rows without a result, after the commands in `head`. Returns the replies to those
    /// commands and to the rows.
    async fn exchange(&self, mut head: Pipeline) -> Result<(Vec<Value>, Vec<Value>), StoreError> {
        let count = head.len();
        self.encode(&mut head);
        let connections = &self.store.records.connections;
        let mut replies = connections.send(&self.connection, &head, head.len()).await?;
        let own = replies.split_off(count);
        Ok((replies, own))
    }

    /// Adds one command for each row sent by itself, then one for each script.
    fn encode(&self, commands: &mut Pipeline) {
        let prefix = &self.store.records.prefix;
        for command in self.rows.iter().filter_map(|row| row.command(prefix)) {
            commands.add_command(command);
        }
        for name in ScriptName::ALL {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.script() == Some(name)).collect();
            if rows.is_empty() {
                continue;
            }
            let bytes = rows.iter().map(|row| row.item.bytes.len()).sum();
            let mut call = self.store.scripts.call(name, rows.len(), bytes);
            rows.iter().for_each(|row| row.encode_key(prefix, &mut call));
            rows.iter().for_each(|row| row.encode_arguments(&mut call));
            commands.add_command(call);
        }
    }

    /// Hands each row its reply, in the order of [`encode`](Delivery::encode).
    fn decode(&mut self, replies: Vec<Value>, by: Option<Stamp>) {
        let mut replies = replies.into_iter().map(Value::extract_error);
        for row in self.rows.iter_mut().filter(|row| row.is_single()) {
            let mut reply = replies.next().transpose().map(Option::into_iter);
            row.decode(&mut reply, by, &self.connection);
        }
        for name in ScriptName::ALL {
            let of_script = |row: &&mut Row| row.script() == Some(name);
            let rows: Vec<&mut Row> = self.rows.iter_mut().filter(of_script).collect();
            if rows.is_empty() {
                continue;
            }
            let mut parts =
                replies.next().unwrap_or(Ok(Value::Nil)).map(|reply| name.split(reply, rows.len()));
            rows.into_iter().for_each(|row| row.decode(&mut parts, by, &self.connection));
        }
    }
}

fn is_lost_script(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if error.kind() == Some(ServerErrorKind::NoScript))
}
