//! The rows of the table: what a record is written as, and what is read back.

use std::time::Duration;

use bytes::Bytes;
use tokio_postgres::types::Type;

use super::error::corrupt;
use super::schema::{NOW, Names};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::{DecodeError, Record, Stamp, micros};
use crate::store::Snapshot;

/// The value of `keep` of a row that is kept for ever.
const FOREVER: u64 = (1 << 61) - 1;

/// The columns of a record, except for the id and the stamp, which the server assigns.
#[derive(Debug, Clone)]
pub(super) struct RowValue {
    /// The time to keep the row for, from its stamp, in microseconds.
    pub(super) keep: i64,
    pub(super) evidence: bool,
    /// The encoded record; `None` for a removal.
    pub(super) record: Option<Vec<u8>>,
}

impl RowValue {
    pub(super) fn of(id: &RecordId, next: Option<&Record>) -> RowValue {
        let keep = micros(next.map_or(Duration::ZERO, Record::keep)).min(FOREVER);
        RowValue {
            keep: keep as i64, // 61 bits
            evidence: next.is_some_and(Record::is_evidence),
            record: next.map(|next| next.encode(id, Stamp::ZERO)),
        }
    }
}

/// The greatest stamp that is believed, in the far future: a greater one is damage.
const LAST: u64 = 1 << 60;

/// Writes the stamp that a swap expects. No row has a negative one.
pub(super) fn expected(stamp: Stamp) -> i64 {
    if stamp.0 <= LAST { stamp.0 as i64 } else { -1 } // 60 bits
}

/// Reads a stamp or a time.
pub(super) fn stamp(id: &RecordId, value: i64) -> Result<Stamp, StoreError> {
    let believed = u64::try_from(value).ok().filter(|&value| value <= LAST);
    believed.map(Stamp).ok_or_else(|| corrupt(id, DecodeError::Damaged { what: "an impossible stamp" }))
}

/// Reads the row under `id`: its stamp, and its record, which is empty if it was removed.
pub(super) fn snapshot(id: &RecordId, now: i64, row: Option<(i64, &[u8])>) -> Result<Snapshot, StoreError> {
    let now = stamp(id, now)?;
    let Some((at, bytes)) = row else { return Ok(Snapshot { record: None, now }) };
    let now = now.max(stamp(id, at)?);
    Ok(Snapshot { record: record(id, at, bytes)?.map(Box::new), now })
}

/// Decodes a record; `None` if the row is that of a removed one.
pub(super) fn record(id: &RecordId, at: i64, bytes: &[u8]) -> Result<Option<Record>, StoreError> {
    let at = stamp(id, at)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let record = Record::decode(id, at, Stamp::ZERO, &Bytes::copy_from_slice(bytes));
    record.map(Some).map_err(|error| corrupt(id, error))
}

/// The statements on single rows, which do what the function `nevertwice_swap_one_v1` does where it
/// may not be created or used. Each is to be sent with the types of its parameters
/// (`query_typed`), so that it needs no named statement.
///
/// An insert or update that hits nothing is to be followed by [`load`](Statements::load) as a
/// statement of its own, which sees what they ran into. All of it is repeated if that shows no
/// reason.
#[derive(Debug)]
pub(super) struct Statements {
    /// `($1 id)`: one row of the time, the stamp and the record, the latter two null without a row.
    pub(super) load: String,
    /// `($1 id, $2 keep, $3 evidence, $4 record)`: inserts the row unless there is one, and returns
    /// its stamp. To be followed by [`raise`](Statements::raise).
    pub(super) insert: String,
    /// `($1 ids)`: raises stamps that are not above those of purged rows, and returns id and stamp
    /// of each. It must run after the inserts, since a purge raises the mark before it removes.
    pub(super) raise: String,
    /// `($1 id, $2 keep, $3 evidence, $4 record, $5 expected)`: replaces the record, or removes it
    /// if `$4` is empty, and returns the stamp.
    pub(super) update: String,
    /// `($1 id, $2 keep, $3 evidence, $4 record)`: the same for the row of a removed record.
    pub(super) revive: String,
}

impl Statements {
    /// The types of the parameters `$1` to `$5`.
    pub(super) const TYPES: [Type; 5] = [Type::BYTEA, Type::INT8, Type::BOOL, Type::BYTEA, Type::INT8];

    pub(super) fn new(names: &Names) -> Statements {
        let at = format!("greatest({NOW}, t.stamp + 1)");
        let due = "67108864 + 1, 2147483647)";
        Statements {
            load: names.qualify(&format!(
                "SELECT greatest({NOW}, t.stamp), t.stamp, t.record \
                 FROM (SELECT $1::bytea AS id) AS k LEFT JOIN \"nevertwice\" AS t ON t.id = k.id"
            )),
            insert: names.qualify(&format!(
                "INSERT INTO \"nevertwice\" (stamp, keep, due, evidence, id, record) \
                 SELECT c.now, $2, least((c.now + $2) / {due}, $3, $1, $4 FROM (SELECT {NOW} AS now) AS c \
                 ON CONFLICT (id) DO NOTHING RETURNING stamp"
            )),
            // Sub-selects, since the rows of a sequence cannot be locked, as those of a join are.
            raise: names.qualify(
                "UPDATE \"nevertwice\" AS t SET stamp = (SELECT last_value FROM \"nevertwice_mark\") + 1 \
                 WHERE t.id = ANY ($1) AND t.stamp <= (SELECT last_value FROM \"nevertwice_mark\") \
                 RETURNING t.id, t.stamp",
            ),
            update: names.qualify(&format!(
                "UPDATE \"nevertwice\" AS t SET stamp = {at}, keep = $2, evidence = $3, record = $4, due = CASE \
                 WHEN $4 <> '' AND t.due <= ({NOW} + $2 + $2 / 16) / 67108864 + 3 THEN t.due \
                 ELSE least(({at} + $2) / {due} END \
                 WHERE t.id = $1 AND t.stamp = $5 AND t.record <> '' RETURNING t.stamp"
            )),
            revive: names.qualify(&format!(
                "UPDATE \"nevertwice\" AS t SET stamp = {at}, keep = $2, evidence = $3, record = $4, \
                 due = least(({at} + $2) / {due} WHERE t.id = $1 AND t.record = '' RETURNING t.stamp"
            )),
        }
    }
}
