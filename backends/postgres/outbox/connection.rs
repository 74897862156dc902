//! The connection of an outbox: [`OutboxConnection`].

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::timeout;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::statements::Statements;
use crate::backends::postgres::connection::is_gone;
use crate::backends::postgres::error::{is_missing, store_error, unavailable, unusable};
use crate::backends::postgres::schema::Names;
use crate::error::StoreError;
use crate::wake::guarded;

/// The most sessions on the server, counting abandoned ones whose last statement is unanswered (as
/// all are while a synchronous standby is gone).
pub(super) const SESSIONS: usize = 3;
const VERSION: i32 = 1;
const SCHEMA: &str = include_str!("schema.sql");
/// Reads the catalog itself: `to_regclass` may answer from before another creator committed.
const TABLES: &str = "SELECT coalesce(bool_or(c.relname = $2), false), coalesce(bool_or(c.relname = $3), false) \
     FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = $1";
/// The columns by which a table is recognised.
const COLUMNS: &str = "SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass($1) AND attname IN \
     ('seq', 'topic', 'key', 'pushed', 'owner', 'payload') AND NOT attisdropped";

/// A connection that is opened when it is needed, and again after it was lost. It carries
/// notifications too.
pub(super) struct OutboxConnection {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    pub(super) names: Names,
    pub(super) create: bool,
    pub(super) answer_timeout: Duration,
    pub(super) statements: Statements,
    pub(super) client: Mutex<Option<Arc<Client>>>,
    /// A permit for each session, until the server answered its last statement.
    pub(super) sessions: Arc<Semaphore>,
    /// Counts notifications, and ends of connections.
    pub(super) changes: watch::Sender<u64>,
}

/// The parameters of a statement, with their types.
pub(super) type Parameters<'a> = &'a [(&'a (dyn ToSql + Sync), Type)];

impl OutboxConnection {
    /// Runs a statement, within the time limit.
    pub(super) async fn rows(&self, sql: &str, parameters: Parameters<'_>) -> Result<Vec<Row>, StoreError> {
        // The task that reads the connection wakes this one.
        let answer = guarded(timeout(self.answer_timeout, async {
            let client = self.client().await?;
            let rows = client.query_typed(sql, parameters).await;
            if rows.as_ref().is_err_and(is_gone) {
                self.give_up(&client).await;
            }
            rows.map_err(|error| store_error(&error))
        }));
        match answer.await {
            Ok(Err(error @ StoreError::Unavailable { .. })) => {
                self.drop_closed().await;
                Err(error)
            }
            Ok(rows) => rows,
            Err(_) => {
                // Whatever it is doing, the next statement does not wait for it.
                *self.client.lock().await = None;
                Err(unavailable("no answer in time"))
            }
        }
    }

    /// Returns the name of the channel for notifications.
    pub(super) fn channel(&self) -> String {
        let Names { schema, table } = &self.names;
        let mut hasher = blake3::Hasher::new_derive_key("nevertwice 2026-11 outbox channel v1");
        hasher
            .update(&(schema.len() as u64).to_le_bytes())
            .update(schema.as_bytes())
            .update(table.as_bytes());
        format!("nevertwice_{}", hex::encode(&hasher.finalize().as_bytes()[..8]))
    }

    /// Drops this client, so that the next statement connects anew.
    async fn give_up(&self, gone: &Arc<Client>) {
        let mut client = self.client.lock().await;
        if client.as_ref().is_some_and(|client| Arc::ptr_eq(client, gone)) {
            *client = None;
        }
    }

    async fn drop_closed(&self) {
        let mut client = self.client.lock().await;
        if client.as_ref().is_some_and(|client| client.is_closed()) {
            *client = None;
        }
    }

    async fn client(&self) -> Result<Arc<Client>, StoreError> {
        let mut slot = self.client.lock().await;
        if let Some(client) = slot.as_ref().filter(|client| !client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let Ok(session) = Arc::clone(&self.sessions).try_acquire_owned() else {
            return Err(unavailable("all sessions wait for answers: a synchronous standby may be gone"));
        };
        let (client, mut connection) =
            self.config.connect(self.tls.clone()).await.map_err(|error| store_error(&error))?;
        let changes = self.changes.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(_) = message {
                    changes.send_modify(|count| *count += 1);
                }
            }
            // It ends once the client is dropped and its last statement answered.
            drop(session);
            // A relay that waits looks for itself, and connects anew.
            changes.send_modify(|count| *count += 1);
        });
        self.check(&client).await?;
        let listen = format!("LISTEN \"{}\"", self.channel());
        client.batch_execute(&listen).await.map_err(|error| store_error(&error))?;
        let client = Arc::new(client);
        *slot = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Checks the tables, and creates them if there are none and it may.
    async fn check(&self, client: &Client) -> Result<(), StoreError> {
        if self.version(client).await? {
            return Ok(());
        }
        if !self.create {
            let Names { schema, table } = &self.names;
            return Err(unusable(format!(
                "there is no outbox {schema}.{table}: run the SQL of nevertwice::postgres::outbox_schema, or let it be \
                 created"
            )));
        }
        // The same lock for all creators: it is held for a moment.
        let sql = format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock(1853187702, hashtext('{}.{}'))",
            self.names.schema, self.names.table
        );
        let created = async {
            client.batch_execute(&sql).await.map_err(|error| store_error(&error))?;
            if !self.version(client).await? {
                let sql = self.names.qualify(SCHEMA);
                client.batch_execute(&sql).await.map_err(|error| store_error(&error))?;
            }
            client.batch_execute("COMMIT").await.map_err(|error| store_error(&error))
        };
        let created = created.await;
        if created.is_err() {
            let _ = client.batch_execute("ROLLBACK").await;
        }
        created
    }

    /// Returns true if the tables exist, with the version that this release uses.
    async fn version(&self, client: &Client) -> Result<bool, StoreError> {
        let Names { schema, table } = &self.names;
        let name = format!("\"{schema}\".\"{table}\"");
        let meta = format!("{table}_meta");
        let parameters: Parameters<'_> = &[(schema, Type::TEXT), (table, Type::TEXT), (&meta, Type::TEXT)];
        let rows = client.query_typed(TABLES, parameters).await.map_err(|error| store_error(&error))?;
        let found = rows.first().map(|row| Ok((row.try_get::<_, bool>(0)?, row.try_get::<_, bool>(1)?)));
        let strange = || {
            unusable(format!(
                "{schema}.{table} and {table}_meta are not both there, or are not an outbox's: name another table or \
                 schema; nothing was changed"
            ))
        };
        match found.transpose().map_err(|error| store_error(&error))? {
            Some((false, false)) => return Ok(false),
            Some((true, true)) => {}
            Some(_) | None => return Err(strange()),
        }
        let columns = client.query_typed(COLUMNS, &[(&name, Type::TEXT)]).await;
        let columns = columns.map_err(|error| store_error(&error))?;
        let known = columns.first().and_then(|row| row.try_get::<_, i64>(0).ok());
        let versions = client.query_typed(&self.statements.version, &[]).await;
        let versions = match versions {
            Err(error) if is_missing(&error) => return Err(strange()),
            versions => versions.map_err(|error| store_error(&error))?,
        };
        match (known, versions.first().and_then(|row| row.try_get::<_, i32>(0).ok())) {
            (Some(6), Some(VERSION)) => Ok(true),
            (_, Some(version)) if version > VERSION => Err(unusable(format!(
                "its tables are of version {version}, this release knows {VERSION}; they are left as they are: use the \
                 release that wrote them, or a later one"
            ))),
            _ => Err(strange()),
        }
    }
}

/// Returns the tables of an outbox, as plain SQL for applications that run their own migrations.
///
/// # Errors
/// [`StoreError::Unusable`] if a name is not 1 to 40 letters, digits and underscores.
pub fn outbox_schema(schema: &str, table: &str) -> Result<String, StoreError> {
    Ok(Names::new(schema, table)?.qualify(SCHEMA))
}

impl fmt::Debug for OutboxConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutboxConnection").field("names", &self.names).finish_non_exhaustive()
    }
}
