//! The execution of a command inside a transaction of the application's.

use std::time::Duration;

use super::session::{Cell, Column, Failure, Session, Value};
use crate::backends::postgres::error::{malformed, unavailable, unusable};
use crate::backends::postgres::row::{RowValue, Statements, snapshot, stamp};
use crate::backends::postgres::schema::{NOW, Names};
use crate::call::NOT_COMPLETED;
use crate::clock::{Clock, SystemClock};
use crate::decide::{Command, Decision, Reply, decide};
use crate::error::{Error, StoreError};
use crate::key::RecordId;
use crate::record::{Record, Stamp};

/// The number of times that a command is decided anew because another transaction was faster. Each
/// of them committed a change of the key.
const TRIES: usize = 32;
/// The shortest wait for a lock: shorter than it, a lock that PostgreSQL takes for a moment to
/// extend the table would look like a transaction that has the key.
const SHORTEST_WAIT: u128 = 20;
/// The longest wait for a lock that PostgreSQL accepts.
const LONGEST_WAIT: u128 = i32::MAX as u128;

/// The statements that run inside a transaction of the application's.
#[derive(Debug)]
pub(super) struct OwnStatements {
    statements: Statements,
    /// `($1 id)`: time, stamp and record of the row, the store's random id, and the session's
    /// `lock_timeout`.
    load: String,
}

/// The row of a key.
struct Found {
    now: Stamp,
    /// The record, if it was not removed.
    record: Option<Box<Record>>,
    /// True if there is a row, of a record or of a removed one.
    exists: bool,
    lock_timeout: String,
}

/// The result of a write.
enum Written {
    Done(Stamp),
    /// Another transaction changed the row, and committed.
    Missed,
    /// Another transaction holds the row.
    Locked,
}

impl OwnStatements {
    pub(super) fn new(names: &Names) -> OwnStatements {
        let load = names.qualify(&format!(
            "SELECT greatest({NOW}, t.stamp), t.stamp, t.record, \
             (SELECT m.store::text FROM \"nevertwice_meta\" AS m), current_setting('lock_timeout') \
             FROM (SELECT $1::bytea AS id) AS k LEFT JOIN \"nevertwice\" AS t ON t.id = k.id"
        ));
        OwnStatements { statements: Statements::new(names), load }
    }

    /// Loads, decides and writes, until no other transaction interferes. `wait` bounds the waits
    /// for rows that other transactions hold, together.
    ///
    /// A begin that ends its wait is answered as being in progress, and the transaction can go on.
    pub(super) async fn execute<S: Session + ?Sized>(
        &self,
        session: &mut S,
        store: &str,
        id: &RecordId,
        command: &Command,
        wait: Duration,
    ) -> Result<(Reply, Option<Box<Record>>), Error> {
        let start = SystemClock.monotonic();
        for _ in 0..TRIES {
            let found = self.load(session, store, id).await?;
            let (next, reply) = match decide(found.now, found.record.as_deref(), command) {
                Decision::Reply(reply) => return Ok((reply, found.record)),
                Decision::Replay => return Ok((Reply::replay(found.record).ok_or(NOT_COMPLETED)?, None)),
                Decision::Write { next, reply } => (next, reply),
            };
            let value = RowValue::of(id, next.as_deref());
            let left = wait.saturating_sub(SystemClock.monotonic().saturating_sub(start));
            match self.write_within(session, id, &found, &value, left).await? {
                Written::Done(stamp) => return Ok((reply, next.map(|next| Box::new(next.stamped(stamp))))),
                Written::Missed => {}
                Written::Locked if matches!(command, Command::Begin(_)) => return Ok((in_progress(), None)),
                Written::Locked => return Err(Error::RepeatTransaction { code: "55P03" }),
            }
        }
        Err(unavailable("the key keeps changing under the transaction: repeat it").into())
    }

    async fn load<S: Session + ?Sized>(
        &self,
        session: &mut S,
        store: &str,
        id: &RecordId,
    ) -> Result<Found, Error> {
        const COLUMNS: [Column; 5] = [Column::Int, Column::Int, Column::Bytes, Column::Text, Column::Text];
        let row = session.row(&self.load, &[Value::Bytes(id.as_bytes())], &COLUMNS).await?;
        let Some([Cell::Int(now), at, bytes, Cell::Text(there), Cell::Text(lock_timeout)]) = row.as_deref()
        else {
            return Err(malformed().into());
        };
        if there != store {
            return Err(unusable("the transaction is on another database than the store").into());
        }
        let row = match (at, bytes) {
            (Cell::Int(at), Cell::Bytes(bytes)) => Some((*at, &bytes[..])),
            _ => None,
        };
        let snapshot = snapshot(id, *now, row)?;
        let exists = row.is_some();
        // It becomes part of a statement.
        if !lock_timeout.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(malformed().into());
        }
        Ok(Found { now: snapshot.now, record: snapshot.record, exists, lock_timeout: lock_timeout.clone() })
    }

    /// Writes inside a savepoint, so that a wait that is over leaves the transaction usable.
    async fn write_within<S: Session + ?Sized>(
        &self,
        session: &mut S,
        id: &RecordId,
        found: &Found,
        value: &RowValue,
        wait: Duration,
    ) -> Result<Written, Error> {
        let wait = wait.as_millis().clamp(SHORTEST_WAIT, LONGEST_WAIT);
        session.batch(&format!("SAVEPOINT nevertwice; SET LOCAL lock_timeout = {wait}")).await?;
        match self.write(session, id, found, value).await {
            Ok(written) => {
                let old = &found.lock_timeout;
                let end = format!("SET LOCAL lock_timeout = '{old}'; RELEASE SAVEPOINT nevertwice");
                session.batch(&end).await?;
                Ok(written)
            }
            Err(failure) if failure.is_locked() => {
                // Restores the setting too.
                session.batch("ROLLBACK TO SAVEPOINT nevertwice; RELEASE SAVEPOINT nevertwice").await?;
                Ok(Written::Locked)
            }
            Err(failure) => Err(failure.into()),
        }
    }

    async fn write<S: Session + ?Sized>(
        &self,
        session: &mut S,
        id: &RecordId,
        found: &Found,
        value: &RowValue,
    ) -> Result<Written, Failure> {
        let bytes = value.record.as_deref().unwrap_or_default();
        let row = [
            Value::Bytes(id.as_bytes()),
            Value::Int(value.keep),
            Value::Bool(value.evidence),
            Value::Bytes(bytes),
        ];
        let statements = &self.statements;
        let written = match &found.record {
            Some(record) => {
                let [id, keep, evidence, bytes] = row;
                let expected = Value::Int(record.stamp.0.cast_signed());
                session
                    .row(&statements.update, &[id, keep, evidence, bytes, expected], &[Column::Int])
                    .await?
            }
            None if found.exists => session.row(&statements.revive, &row, &[Column::Int]).await?,
            None => {
                let inserted = session.row(&statements.insert, &row, &[Column::Int]).await?;
                if inserted.is_some() { self.raise(session, id).await?.or(inserted) } else { None }
            }
        };
        match written.as_deref() {
            None => Ok(Written::Missed),
            Some([.., Cell::Int(at)]) => Ok(Written::Done(stamp(id, *at)?)),
            Some(_) => Err(malformed().into()),
        }
    }

    /// Raises the stamp of an inserted row above those that a purge removed.
    async fn raise<S: Session + ?Sized>(
        &self,
        session: &mut S,
        id: &RecordId,
    ) -> Result<Option<Vec<Cell>>, Failure> {
        let columns = [Column::Bytes, Column::Int];
        session.row(&self.statements.raise, &[Value::ArrayOf(id.as_bytes())], &columns).await
    }
}

/// The answer to a begin while another transaction is open that has the key. It has no lease that
/// runs out: it ends with its session.
fn in_progress() -> Reply {
    Reply::InProgress { retry_after: Duration::from_secs(1), lease_remaining: Duration::ZERO, attempt: 1 }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure { code: None, error }
    }
}
