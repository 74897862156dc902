//! The outbox in a PostgreSQL database: [`PostgresOutbox`].

mod connection;
mod statements;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Config, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

pub use self::connection::outbox_schema;

use self::connection::{OutboxConnection, Parameters, SESSIONS};
use self::statements::Statements;
use super::builder::normalise;
use super::error::{store_error, unusable};
use super::schema::Names;
use super::tls;
use super::transaction::Value;
use super::{OwnTransaction, PostgresStore};
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, StoreError};
use crate::outbox::sealed::Queue;
use crate::outbox::{
    self, Claim, Claimed, Claims, DeadLetter, Event, EventId, Isolation, Outbox, Part, Settled, Settlement,
    Stats,
};

const PENDING: i16 = 0;
const DEAD: i16 = 1;
const SUSPECTED: i16 = 2;

/// An [outbox](crate::outbox) in the application's own PostgreSQL database.
///
/// It takes two tables there and one connection, which it opens again when it was lost. It needs a
/// tokio runtime.
///
/// # Wake-ups
///
/// An idle relay is woken by a notification: call [`wake`](PostgresOutbox::wake) after the commit.
/// Without it, the relay finds the events when it looks by itself
/// ([`Relay::poll`](crate::outbox::Relay::poll)). A notification *inside* the transaction
/// ([`notify_on_push`](PostgresOutboxBuilder::notify_on_push)) needs no call, but PostgreSQL makes
/// all commits with one wait for each other: measured with many writers, they were ten times
/// slower.
///
/// # Isolation and locks
///
/// [`push_in`](PostgresOutbox::push_in) works at every isolation level. With a key it takes an
/// advisory lock until the end of the transaction, so that the events of a key are numbered in the
/// order of the commits. There are 1024 of these locks for an outbox, so a push may wait for one to
/// another key. Push as late in the transaction as you can, and to several keys always in
/// the same order: otherwise PostgreSQL may find a deadlock
/// ([`Error::RepeatTransaction`](crate::Error::RepeatTransaction)).
///
/// Through a connection pooler that multiplexes transactions, notifications do not arrive.
///
/// Clones share everything.
#[derive(Clone)]
pub struct PostgresOutbox(Arc<Inner>);

struct Inner {
    connection: OutboxConnection,
    notify_on_push: bool,
    clock: Arc<dyn Clock>,
}

/// The settings of a [`PostgresOutbox`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `connect` is called"]
pub struct PostgresOutboxBuilder {
    config: Result<Config, StoreError>,
    schema: String,
    table: String,
    create: bool,
    notify_on_push: bool,
    answer_timeout: Duration,
    tls: Option<MakeRustlsConnect>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for PostgresOutboxBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { schema, table, create, notify_on_push, answer_timeout, .. } = self;
        f.debug_struct("PostgresOutboxBuilder")
            .field("schema", schema)
            .field("table", table)
            .field("create", create)
            .field("notify_on_push", notify_on_push)
            .field("answer_timeout", answer_timeout)
            .finish_non_exhaustive()
    }
}

impl PostgresOutbox {
    /// Connects to the database at `url` (`postgres://user:password@host/database`), and creates
    /// the tables if there are none.
    ///
    /// # Errors
    /// The same as for [`PostgresOutboxBuilder::connect`].
    pub async fn connect(url: &str) -> Result<PostgresOutbox, StoreError> {
        PostgresOutbox::builder(url).connect().await
    }

    /// Starts building an outbox in the database at `url`.
    pub fn builder(url: &str) -> PostgresOutboxBuilder {
        // The detail leaves out the parse error, which could quote a password.
        let config = url.parse().map_err(|_| {
            unusable("the URL cannot be read: it looks like postgres://user:password@host:5432/database")
        });
        PostgresOutbox::building(config, None)
    }

    /// Starts building an outbox in the database of a store, with its address and TLS
    /// configuration, and in its database schema.
    pub fn beside(store: &PostgresStore) -> PostgresOutboxBuilder {
        let settings = &store.0.connections.settings;
        let builder = PostgresOutbox::building(Ok(settings.config.clone()), Some(settings.tls.clone()));
        builder.table(settings.names.schema.clone(), "nevertwice_outbox")
    }

    fn building(config: Result<Config, StoreError>, tls: Option<MakeRustlsConnect>) -> PostgresOutboxBuilder {
        PostgresOutboxBuilder {
            config,
            schema: "public".to_owned(),
            table: "nevertwice_outbox".to_owned(),
            create: true,
            notify_on_push: false,
            answer_timeout: Duration::from_secs(30),
            tls,
            clock: Arc::new(SystemClock),
        }
    }

    /// Writes an event inside `transaction`, to be delivered once that is committed. Returns the
    /// event's id.
    ///
    /// Events of one `topic` and `key` are delivered in the order in which they are pushed; an
    /// empty key has no order. Topic and key have at most 255 bytes and no control characters. A
    /// push waits while another transaction is open that pushed to the same key.
    ///
    /// # Errors
    /// [`Error::Key`] and [`Error::TooLarge`] if a part is invalid. [`Error::RepeatTransaction`] if
    /// PostgreSQL gave up the transaction for another one. [`Error::Store`] if it is on a database
    /// without this outbox, failed before, or PostgreSQL refused. **Roll back**: the effect would
    /// be committed without its event.
    pub async fn push_in<T: OwnTransaction + ?Sized>(
        &self,
        transaction: &mut T,
        topic: &str,
        key: &str,
        payload: impl AsRef<[u8]>,
    ) -> Result<EventId, Error> {
        let event = outbox::check(topic, key, payload.as_ref())?;
        let Inner { connection, notify_on_push, .. } = &*self.0;
        let row = [
            Value::Bytes(event.id.as_bytes()),
            Value::Text(topic),
            Value::Text(key),
            Value::Bytes(event.payload),
            Value::Int(turn(&connection.names, topic, key)),
        ];
        if key.is_empty() {
            transaction.row(&connection.statements.push, &row[..4], &[]).await?;
        } else {
            transaction.row(&connection.statements.push_in_order, &row, &[]).await?;
        }
        if *notify_on_push {
            transaction.batch(&format!("NOTIFY \"{}\"", connection.channel())).await?;
        }
        Ok(event.id)
    }

    /// Wakes idle relays, in all processes. Call it after the commit. It may be left out or fail:
    /// the relays then find the events when they look by themselves.
    ///
    /// # Errors
    /// [`StoreError`] if the database did not answer.
    pub async fn wake(&self) -> Result<(), StoreError> {
        let connection = &self.0.connection;
        let channel = connection.channel();
        connection.rows("SELECT pg_notify($1, '')", &[(&channel, Type::TEXT)]).await?;
        Ok(())
    }
}

/// The number of advisory locks of an outbox: a transaction that pushes to very many keys takes no
/// more, since the server's table of locks is small.
const TURNS: u16 = 1024;

/// Returns the number of the advisory lock for a key, one of [`TURNS`] of the outbox.
fn turn(names: &Names, topic: &str, key: &str) -> i64 {
    let mut hasher = blake3::Hasher::new_derive_key("nevertwice 2026-11 outbox turn v1");
    let mut part = |part: &str| {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        hasher.finalize()
    };
    part(&names.schema);
    let outbox = part(&names.table);
    part(topic);
    let key = part(key);
    let slot = u16::from_le_bytes([key.as_bytes()[0], key.as_bytes()[1]]) % TURNS;
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&slot.to_le_bytes());
    bytes[2..].copy_from_slice(&outbox.as_bytes()[..6]);
    i64::from_le_bytes(bytes)
}

impl PostgresOutboxBuilder {
    /// Sets the database schema and the table; a second table has `_meta` added. **Default:
    /// `public`, `nevertwice_outbox`.**
    pub fn table(mut self, schema: impl Into<String>, table: impl Into<String>) -> PostgresOutboxBuilder {
        (self.schema, self.table) = (schema.into(), table.into());
        self
    }

    /// Sets if the tables are created if there are none. **Default: they are.** Otherwise run the
    /// SQL of [`outbox_schema`] in a migration.
    pub fn create(mut self, create: bool) -> PostgresOutboxBuilder {
        self.create = create;
        self
    }

    /// Sends a notification in every transaction that pushes, so that no call of
    /// [`wake`](PostgresOutbox::wake) is needed. **Default: off**, since it slows concurrent
    /// commits down.
    pub fn notify_on_push(mut self, notify: bool) -> PostgresOutboxBuilder {
        self.notify_on_push = notify;
        self
    }

    /// Sets how long a statement of the relay may take. **Default 30 s.** After that its connection
    /// is given up, and the statement repeated on another. While the server answers none of them,
    /// as when its synchronous standby is gone, it is given no more than three.
    pub fn answer_timeout(mut self, limit: Duration) -> PostgresOutboxBuilder {
        self.answer_timeout = limit;
        self
    }

    /// Sets the TLS configuration. **Default: the system's root certificates**, if the URL or the
    /// server asks for TLS.
    pub fn tls(mut self, config: rustls::ClientConfig) -> PostgresOutboxBuilder {
        self.tls = Some(MakeRustlsConnect::new(config));
        self
    }

    /// Sets the clock that relays measure their time limits with, for tests. **Default: the
    /// system's.** Claims are timed by the server.
    pub fn clock(mut self, clock: impl Clock) -> PostgresOutboxBuilder {
        self.clock = Arc::new(clock);
        self
    }

    /// Connects, and creates the tables if there are none. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if the URL or a name is invalid, the login or a right is refused,
    /// or the tables are not an outbox's or of a newer release; they are then left unchanged.
    /// [`StoreError::Unavailable`] if the server cannot be reached.
    pub async fn connect(self) -> Result<PostgresOutbox, StoreError> {
        super::in_tokio()?;
        let names = Names::new(&self.schema, &self.table)?;
        let mut config = self.config?;
        normalise(&mut config);
        let connection = OutboxConnection {
            config,
            tls: match self.tls {
                Some(tls) => tls,
                None => tls::connector(None)?,
            },
            statements: Statements::new(&names),
            names,
            create: self.create,
            answer_timeout: self.answer_timeout,
            client: Mutex::new(None),
            sessions: Arc::new(Semaphore::new(SESSIONS)),
            changes: watch::Sender::new(0),
        };
        connection.rows("SELECT", &[]).await?;
        Ok(PostgresOutbox(Arc::new(Inner {
            connection,
            notify_on_push: self.notify_on_push,
            clock: self.clock,
        })))
    }
}

impl fmt::Debug for PostgresOutbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresOutbox").field("connection", &self.0.connection).finish_non_exhaustive()
    }
}

#[async_trait]
impl Queue for PostgresOutbox {
    async fn claim(&self, claim: &Claim) -> Result<Claims, StoreError> {
        let connection = &self.0.connection;
        let owner = claim.owner.as_bytes().as_slice();
        let (lease, limit) = (micros(claim.lease), i64::try_from(claim.limit).unwrap_or(i64::MAX));
        let keys = i64::try_from(claim.keys).unwrap_or(i64::MAX);
        let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> = vec![
            (&owner, Type::BYTEA),
            (&lease, Type::INT8),
            (&claim.topics, Type::TEXT_ARRAY),
            (&limit, Type::INT8),
        ];
        let sql = match &claim.part {
            Part::Unordered => &connection.statements.claim_free,
            Part::After(topic, key) => {
                parameters.extend::<[(&(dyn ToSql + Sync), Type); 4]>([
                    (&claim.hold_keys, Type::BOOL),
                    (topic, Type::TEXT),
                    (key, Type::TEXT),
                    (&keys, Type::INT8),
                ]);
                &connection.statements.claim_heads
            }
        };
        let rows = connection.rows(sql, &parameters).await?;
        let mut events = Vec::with_capacity(rows.len());
        let mut walked = None;
        for row in &rows {
            if get::<Option<i64>>(row, 0)?.is_some() {
                let mut claimed = read(row)?;
                claimed.event.attempt = claimed.event.attempt.saturating_add(1);
                claimed.crashed = get(row, 8)?;
                events.push(claimed);
            }
            if claim.part != Part::Unordered && walked.is_none() {
                walked = Some((get::<Option<i64>>(row, 9)?, get(row, 10)?, get(row, 11)?));
            }
        }
        events.sort_by_key(|claimed| claimed.seq);
        let next = match walked {
            // The limit on events may have left some of these keys out.
            Some((Some(_), ..)) if events.len() >= claim.limit => {
                events.iter().map(|claimed| (&claimed.event.topic, &claimed.event.key)).max().map(cloned)
            }
            Some((Some(number), Some(topic), Some(key))) if number >= keys => Some((topic, key)),
            Some(_) | None => None,
        };
        Ok(Claims { events, next })
    }

    async fn isolate(&self, alone: &Isolation) -> Result<bool, StoreError> {
        let connection = &self.0.connection;
        let owner = alone.owner.as_bytes().as_slice();
        let (attempts, lease) = (count(alone.attempt), micros(alone.lease));
        let parameters: Parameters<'_> =
            &[(&alone.seq, Type::INT8), (&owner, Type::BYTEA), (&attempts, Type::INT4), (&lease, Type::INT8)];
        Ok(!connection.rows(&connection.statements.isolate, parameters).await?.is_empty())
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<Vec<bool>, StoreError> {
        let connection = &self.0.connection;
        let (delivered, others): (Vec<_>, Vec<_>) =
            settlements.iter().partition(|settlement| settlement.outcome == Settled::Delivered);
        let mut held = Vec::new();
        if !delivered.is_empty() {
            let (seqs, owners) = keys(&delivered);
            let sql = &connection.statements.deliver;
            held.extend(
                connection.rows(sql, &[(&seqs, Type::INT8_ARRAY), (&owners, Type::BYTEA_ARRAY)]).await?,
            );
        }
        if !others.is_empty() {
            let (seqs, owners) = keys(&others);
            let states: Vec<i16> = others
                .iter()
                .map(|settlement| match settlement.outcome {
                    Settled::Dead(_) => DEAD,
                    Settled::Suspected => SUSPECTED,
                    Settled::Delivered | Settled::Retry(..) | Settled::Released => PENDING,
                })
                .collect();
            let (pauses, errors): (Vec<Option<i64>>, Vec<Option<&str>>) = others
                .iter()
                .map(|settlement| match &settlement.outcome {
                    Settled::Retry(pause, error) => (Some(micros(*pause)), Some(error.as_str())),
                    Settled::Dead(error) => (Some(0), Some(error.as_str())),
                    Settled::Delivered | Settled::Released | Settled::Suspected => (None, None),
                })
                .unzip();
            let attempts: Vec<i32> = others.iter().map(|settlement| count(settlement.attempts)).collect();
            let parameters: Parameters<'_> = &[
                (&seqs, Type::INT8_ARRAY),
                (&owners, Type::BYTEA_ARRAY),
                (&states, Type::INT2_ARRAY),
                (&pauses, Type::INT8_ARRAY),
                (&errors, Type::TEXT_ARRAY),
                (&attempts, Type::INT4_ARRAY),
            ];
            held.extend(connection.rows(&connection.statements.settle, parameters).await?);
        }
        let held: Vec<i64> = held.iter().map(|row| get(row, 0)).collect::<Result<_, _>>()?;
        Ok(settlements.iter().map(|settlement| held.contains(&settlement.seq)).collect())
    }

    async fn changed(&self, seen: u64, within: Duration) -> u64 {
        let mut changes = self.0.connection.changes.subscribe();
        let changed = async { changes.wait_for(|count| *count != seen).await.map_or(seen, |count| *count) };
        let sleep = self.0.clock.sleep(within);
        match futures_util::future::select(std::pin::pin!(changed), sleep).await {
            futures_util::future::Either::Left((count, _)) => count,
            futures_util::future::Either::Right(_) => seen,
        }
    }

    fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    fn name(&self) -> &'static str {
        super::BACKEND
    }
}

#[async_trait]
impl Outbox for PostgresOutbox {
    async fn stats(&self) -> Result<Stats, StoreError> {
        let connection = &self.0.connection;
        let rows = connection.rows(&connection.statements.stats, &[]).await?;
        let row = rows.first().ok_or_else(super::error::malformed)?;
        let count = |at| get::<i64>(row, at).map(i64::unsigned_abs);
        let lag = get::<Option<i64>>(row, 2)?.unwrap_or_default();
        Ok(Stats { pending: count(0)?, dead: count(1)?, lag: Duration::from_micros(lag.unsigned_abs()) })
    }

    async fn dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        let connection = &self.0.connection;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let rows = connection.rows(&connection.statements.dead, &[(&limit, Type::INT8)]).await?;
        let letter = |row| {
            let Claimed { event, error, .. } = read(row)?;
            Ok(DeadLetter { event, error: error.unwrap_or_default() })
        };
        rows.iter().map(letter).collect()
    }

    async fn revive(&self, id: EventId) -> Result<bool, StoreError> {
        let connection = &self.0.connection;
        let id = id.as_bytes().as_slice();
        Ok(!connection.rows(&connection.statements.revive, &[(&id, Type::BYTEA)]).await?.is_empty())
    }

    async fn discard(&self, id: EventId) -> Result<bool, StoreError> {
        let connection = &self.0.connection;
        let id = id.as_bytes().as_slice();
        Ok(!connection.rows(&connection.statements.discard, &[(&id, Type::BYTEA)]).await?.is_empty())
    }

    async fn purge(&self, age: Duration, limit: usize) -> Result<u64, StoreError> {
        let connection = &self.0.connection;
        let (age, limit) = (micros(age), i64::try_from(limit).unwrap_or(i64::MAX));
        let parameters: Parameters<'_> = &[(&age, Type::INT8), (&limit, Type::INT8)];
        Ok(connection.rows(&connection.statements.purge, parameters).await?.len() as u64)
    }
}

fn cloned((topic, key): (&String, &String)) -> (String, String) {
    (topic.clone(), key.clone())
}

fn count(attempts: u32) -> i32 {
    i32::try_from(attempts).unwrap_or(i32::MAX)
}

fn keys<'a>(settlements: &[&'a Settlement]) -> (Vec<i64>, Vec<&'a [u8]>) {
    settlements.iter().map(|settlement| (settlement.seq, settlement.owner.as_bytes().as_slice())).unzip()
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, at: usize) -> Result<T, StoreError> {
    row.try_get(at).map_err(|error| store_error(&error))
}

fn read(row: &Row) -> Result<Claimed, StoreError> {
    let id: &[u8] = get(row, 1)?;
    let event = Event {
        id: EventId::from_bytes(id.try_into().map_err(|_| super::error::malformed())?),
        topic: get(row, 2)?,
        key: get(row, 3)?,
        payload: get::<Vec<u8>>(row, 4)?.into(),
        attempt: get::<i32>(row, 5)?.unsigned_abs(),
        age: Duration::from_micros(get::<i64>(row, 6)?.unsigned_abs()),
    };
    Ok(Claimed { seq: get(row, 0)?, event, error: get(row, 7)?, crashed: false })
}

/// Returns a time as the server counts it; at most about 146 000 years, so that sums do not
/// overflow.
fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX).min(i64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_of_an_outbox_are_few_and_those_of_another_are_others() -> Result<(), StoreError> {
        let names = [Names::new("public", "one")?, Names::new("public", "other")?];
        let turns = |names: &Names| -> std::collections::BTreeSet<i64> {
            (0..20_000).map(|key| turn(names, "orders", &key.to_string())).collect()
        };
        let [one, other] = [turns(&names[0]), turns(&names[1])];
        assert_eq!((one.len(), other.len()), (1024, 1024));
        assert!(one.is_disjoint(&other));
        Ok(())
    }
}
