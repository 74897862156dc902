//! The ledger: the payments that happened. In a real application this is the provider.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};

use crate::payment::Payment;

/// The payments that happened, in a SQLite file.
#[derive(Debug, Clone)]
pub(crate) struct Ledger(Arc<Mutex<Connection>>);

/// The answer to a booking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Booked {
    /// The payment is booked, now or before.
    Done,
    /// Another payment is booked under this id.
    Refused,
}

/// A commit is on the disk before it is acknowledged.
const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS ledger (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        amount INTEGER NOT NULL,
        currency TEXT NOT NULL,
        metadata TEXT NOT NULL,
        caller TEXT NOT NULL
    ) STRICT;";

impl Ledger {
    pub(crate) fn open(path: &Path) -> rusqlite::Result<Ledger> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.execute_batch(SCHEMA)?;
        Ok(Ledger(Arc::new(Mutex::new(connection))))
    }

    /// Books a payment: the effect. As at a provider, an id is booked once.
    pub(crate) async fn book(&self, id: String, caller: String, payment: Payment) -> Result<Booked, Failure> {
        self.with(move |connection| {
            let metadata = json!(payment.metadata).to_string();
            let row = params![id, payment.amount, payment.currency, metadata, caller];
            let insert = "INSERT INTO ledger (id, amount, currency, metadata, caller)
                VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO NOTHING";
            if connection.execute(insert, row)? == 1 {
                return Ok(Booked::Done);
            }
            let same = "SELECT 1 FROM ledger WHERE id = ?1 AND amount = ?2 AND currency = ?3
                AND metadata = ?4 AND caller = ?5";
            let same = connection.query_row(same, row, |_| Ok(())).optional()?;
            Ok(same.map_or(Booked::Refused, |()| Booked::Done))
        })
        .await
    }

    /// Returns all payments, in the order in which they happened.
    pub(crate) async fn payments(&self) -> Result<Vec<Value>, Failure> {
        self.with(|connection| {
            let select = "SELECT id, amount, currency, metadata, caller FROM ledger ORDER BY number";
            let mut statement = connection.prepare(select)?;
            let rows = statement.query_map([], |row| {
                let metadata: BTreeMap<String, String> =
                    serde_json::from_str(&row.get::<_, String>(3)?).unwrap_or_default();
                Ok(json!({
                    "id": row.get::<_, String>(0)?,
                    "amount": row.get::<_, i64>(1)?,
                    "currency": row.get::<_, String>(2)?,
                    "metadata": metadata,
                    "caller": row.get::<_, String>(4)?,
                }))
            })?;
            rows.collect()
        })
        .await
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let connection = self.0.clone();
        // A panic leaves no transaction behind: each statement is one.
        let task = move || work(&connection.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(tokio::task::spawn_blocking(task).await??)
    }
}

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;
