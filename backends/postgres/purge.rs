//! The removal of expired rows.

use std::sync::Arc;

use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row};

use super::Inner;
use super::connection::{Connection, Lane};
use super::schema::{NOW, Names};
use super::swap::Parameter;
use crate::error::StoreError;
use crate::store::Purge;

/// The rows that a purge examines in one transaction.
const STEP: usize = 500;

/// The statements of a purge: one call of a function, or what it does in single statements.
#[derive(Debug)]
pub(super) struct Purges {
    function: String,
    lock: String,
    due: String,
    mark: String,
    remove: String,
    postpone: String,
}

/// The counts of one step: rows examined, records removed, and evidence among those.
type Counts = [i64; 3];

impl Purges {
    pub(super) fn new(names: &Names) -> Purges {
        // A damaged row overflows nothing.
        let end = "least(t.stamp, 1::bigint << 61) + least(t.keep, 1::bigint << 61)";
        let at = format!("least(({end}) / 67108864 + 1, 2147483647)");
        Purges {
            function: names.qualify("SELECT * FROM \"nevertwice_purge_v1\"($1)"),
            due: names.qualify(&format!(
                "SELECT t.id, t.stamp, t.keep < 2305843009213693951 AND {end} <= {NOW}, t.record <> '', \
                 t.evidence FROM \"nevertwice\" AS t WHERE t.due <= {NOW} / 67108864 ORDER BY t.due LIMIT $1 \
                 FOR UPDATE SKIP LOCKED"
            )),
            lock: names.qualify(
                "SELECT pg_try_advisory_xact_lock(1853187702, '\"nevertwice\"'::regclass::oid::integer)",
            ),
            mark: names.qualify(
                "SELECT setval('\"nevertwice_mark\"', $1) FROM \"nevertwice_mark\" WHERE last_value < $1",
            ),
            remove: names.qualify("DELETE FROM \"nevertwice\" WHERE id = ANY ($1)"),
            postpone: names
                .qualify(&format!("UPDATE \"nevertwice\" AS t SET due = {at} WHERE t.id = ANY ($1)")),
        }
    }

    async fn step(&self, connection: &Connection, step: i32) -> Result<Counts, Error> {
        let client = &connection.client;
        if connection.has_functions {
            let row = client.query_typed_one(&self.function, &[(&step, Type::INT4)]).await?;
            return Ok([row.try_get(0)?, row.try_get(1)?, row.try_get(2)?]);
        }
        client
            .batch_execute(
                "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '1s'; \
                 SET LOCAL enable_seqscan = off; SET LOCAL jit = off",
            )
            .await?;
        let counts = self.step_in_transaction(connection, step).await;
        client.batch_execute(if counts.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
        counts
    }

    async fn step_in_transaction(&self, connection: &Connection, step: i32) -> Result<Counts, Error> {
        let client = &connection.client;
        // One purge at a time, so that none lowers the mark. In a statement of its own, since the
        // one that raises the mark has to read it under the lock.
        if !client.query_typed_one(&self.lock, &[]).await?.try_get(0)? {
            return Ok([0; 3]);
        }
        let rows = client.query_typed(&self.due, &[(&i64::from(step), Type::INT8)]).await?;
        let (mut gone, mut later, mut last) = (Vec::new(), Vec::new(), 0_i64);
        let mut counts = [rows.len() as i64, 0, 0];
        for row in &rows {
            let (id, stamp) = (row.try_get::<_, &[u8]>(0)?, row.try_get(1)?);
            let [is_over, is_record, is_evidence] = flags(row)?;
            if !is_over {
                later.push(id);
                continue;
            }
            gone.push(id);
            last = last.max(stamp);
            counts[1] += i64::from(is_record);
            counts[2] += i64::from(is_record && is_evidence);
        }
        let many = |ids| -> [Parameter<'_>; 1] { [(ids, Type::BYTEA_ARRAY)] };
        if !gone.is_empty() {
            client.query_typed(&self.mark, &[(&last, Type::INT8)]).await?;
            client.execute_typed(&self.remove, &many(&gone)).await?;
        }
        if !later.is_empty() {
            client.execute_typed(&self.postpone, &many(&later)).await?;
        }
        Ok(counts)
    }
}

fn flags(row: &Row) -> Result<[bool; 3], Error> {
    Ok([row.try_get(2)?, row.try_get(3)?, row.try_get(4)?])
}

impl Inner {
    /// Removes expired rows, a step in each transaction, so that no other call waits for long.
    /// Leaves them to another purge of the store while one is at work.
    pub(super) async fn purge(self: &Arc<Self>, limit: usize) -> Result<Purge, StoreError> {
        let mut purge = Purge::default();
        loop {
            let left = limit.saturating_sub(usize::try_from(purge.removed).unwrap_or(usize::MAX));
            let step = left.min(STEP) as i32; // at most STEP
            if step == 0 {
                return Ok(purge);
            }
            let inner = Arc::clone(self);
            let work = async move |connection: Arc<Connection>| inner.purges.step(&connection, step).await;
            let [examined, removed, unsettled] = self.connections.run(Lane::Write, work).await?;
            purge.removed += removed.unsigned_abs();
            purge.unsettled += unsettled.unsigned_abs();
            if examined < i64::from(step) {
                return Ok(purge);
            }
        }
    }
}
