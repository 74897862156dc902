//! Swaps by single statements, sent together in one transaction.

use futures_util::future::join_all;
use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row};

use super::{Answer, Item, PATIENCE, Parameter, loaded};
use crate::backends::postgres::connection::Connection;
use crate::backends::postgres::row::{Statements, stamp};
use crate::store::Swap;

/// Statements that are sent together. The order in which more futures are polled first is not
/// specified.
const TOGETHER: usize = 30;
/// The rounds that a batch takes at most. Each further one means that a row was inserted or purged
/// in between.
const ROUNDS: usize = 8;

/// The next step of an item.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Insert the row, or replace the record.
    Write,
    /// Replace a removed record.
    Revive,
}

impl Statements {
    /// Does the swaps in one transaction, and reads the records of those that hit nothing after
    /// it, since a statement of its own sees what they ran into.
    pub(super) async fn send(&self, connection: &Connection, items: &[Item]) -> Result<Vec<Answer>, Error> {
        let mut answers: Vec<Option<Answer>> = items.iter().map(|_| None).collect();
        let mut steps = vec![Step::Write; items.len()];
        for _ in 0..ROUNDS {
            let open: Vec<usize> = (0..items.len()).filter(|&at| answers[at].is_none()).collect();
            if open.is_empty() {
                break;
            }
            let written = self.write(connection, items, &open, &steps).await;
            if let Err(error) = written {
                // The connection is used again, so its transaction must not stay open.
                connection.client.batch_execute("ROLLBACK").await?;
                return Err(error);
            }
            let mut missed = Vec::new();
            for (at, found) in open.into_iter().zip(written?) {
                match found {
                    Some(at_stamp) => {
                        answers[at] = Some(stamp(&items[at].id, at_stamp).map(|at| Some(Swap::Done(at))))
                    }
                    None => missed.push(at),
                }
            }
            let rows = self.read(connection, items, &missed).await?;
            for (at, row) in missed.into_iter().zip(rows) {
                (answers[at], steps[at]) = judge(&items[at], &row)?;
            }
        }
        Ok(answers.into_iter().map(|answer| answer.unwrap_or(Ok(None))).collect())
    }

    /// Writes what is open in one transaction, and returns the stamp of each write.
    async fn write(
        &self,
        connection: &Connection,
        items: &[Item],
        open: &[usize],
        steps: &[Step],
    ) -> Result<Vec<Option<i64>>, Error> {
        let client = &connection.client;
        client
            .batch_execute(&format!(
                "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = '{}'; SET LOCAL enable_seqscan = off; SET LOCAL jit = off",
                PATIENCE[0]
            ))
            .await?;
        let mut stamps = Vec::with_capacity(open.len());
        for some in open.chunks(TOGETHER) {
            for written in
                join_all(some.iter().map(|&at| self.write_one(connection, &items[at], steps[at]))).await
            {
                stamps.push(written?);
            }
        }
        let inserted: Vec<&[u8]> = open
            .iter()
            .zip(&stamps)
            .filter(|(at, stamp)| stamp.is_some() && items[**at].expected.is_none())
            .map(|(at, _)| items[*at].id.as_bytes().as_slice())
            .collect();
        if !inserted.is_empty() {
            for row in client.query_typed(&self.raise, &[(&inserted, Type::BYTEA_ARRAY)]).await? {
                let (id, raised): (&[u8], i64) = (row.try_get(0)?, row.try_get(1)?);
                for (at, stamp) in open.iter().zip(&mut stamps) {
                    if items[*at].id.as_bytes() == id && stamp.is_some() {
                        *stamp = Some(raised);
                    }
                }
            }
        }
        client.batch_execute("COMMIT").await?;
        Ok(stamps)
    }

    async fn write_one(
        &self,
        connection: &Connection,
        item: &Item,
        step: Step,
    ) -> Result<Option<i64>, Error> {
        let (id, expected) = (item.id.as_bytes().as_slice(), item.expected().unwrap_or(-1));
        let record = item.value.record.as_deref().unwrap_or_default();
        let sql = match (item.expected, step) {
            (Some(_), _) => &self.update,
            (None, _) if record.is_empty() => return Ok(None),
            (None, Step::Write) => &self.insert,
            (None, Step::Revive) => &self.revive,
        };
        let [a, b, c, d, e] = Statements::TYPES;
        let parameters: [Parameter<'_>; 5] =
            [(&id, a), (&item.value.keep, b), (&item.value.evidence, c), (&record, d), (&expected, e)];
        let count = if item.expected.is_some() { 5 } else { 4 };
        let row = connection.client.query_typed_opt(sql, &parameters[..count]).await?;
        row.map(|row| row.try_get(0)).transpose()
    }

    async fn read(
        &self,
        connection: &Connection,
        items: &[Item],
        missed: &[usize],
    ) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::with_capacity(missed.len());
        for some in missed.chunks(TOGETHER) {
            let reads = some.iter().map(|&at| async move {
                let id = items[at].id.as_bytes().as_slice();
                connection.client.query_typed_one(&self.load, &[(&id, Type::BYTEA)]).await
            });
            for row in join_all(reads).await {
                rows.push(row?);
            }
        }
        Ok(rows)
    }
}

/// Judges the row that is there after an item hit nothing: its answer, or what to try next.
fn judge(item: &Item, row: &Row) -> Result<(Option<Answer>, Step), Error> {
    let is_tombstone = row.try_get::<_, Option<&[u8]>>(2)?.is_some_and(<[u8]>::is_empty);
    let found = match loaded(&item.id, row, 0)? {
        Ok(found) => found,
        Err(error) => return Ok((Some(Err(error)), Step::Write)),
    };
    let present = found.record.as_ref().map(|record| record.stamp);
    let answer = match (present, item.expected, &item.value.record) {
        (None, None, None) => Some(Ok(Some(Swap::Done(found.now)))),
        // What the insert ran into is gone, or was removed.
        (None, None, Some(_)) => None,
        (present, expected, _) if present == expected => None,
        _ => Some(Ok(Some(Swap::Conflict(found)))),
    };
    Ok((answer, if is_tombstone { Step::Revive } else { Step::Write }))
}
