//! Finding, comparing and writing the rows of a store's tables. Everything here runs inside a
//! transaction of the caller, except reading a single row, which needs none.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use rusqlite::{CachedStatement, Connection, OptionalExtension, Row, params};

use super::error::{Error, Result};
use super::high_water::HighWater;
use super::{BACKEND, Limits, log};
use crate::clock::Timeline;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::{DecodeError, Record, Stamp};
use crate::store::{Snapshot, Swap, SwapRequest};

/// The statements for one pair of tables.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: String,
    find: String,
    stamp: String,
    pub(super) list: String,
    insert: String,
    update: String,
    update_in_place: String,
    delete: String,
    due: String,
    due_evidence: String,
    pub(super) list_evidence: String,
    count_evidence: String,
    postpone: String,
    pub(super) times: String,
    pub(super) set_high_water: String,
    pub(super) set_anchor: String,
    pub(super) store: String,
}

/// A row as it was found.
struct Found {
    seq: i64,
    due: i64,
    record: Record,
}

/// The counts of a purge, or of one step of it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Purged {
    pub(super) examined: usize,
    pub(super) removed: usize,
    /// The number of removed rows that were evidence and were not settled in time.
    pub(super) unsettled: u64,
}

/// The largest number that a column holds. As a deadline it means never.
const NEVER: i64 = i64::MAX;
/// The unit of deadlines: 2^26 µs, about 67 s. They are rounded up.
const GRAIN: u64 = 1 << 26;
/// The maximum number of evidence rows that a full store counts before it refuses.
const MOST_COUNTED: u64 = 100_000;
/// The number of id bytes that the index contains.
const PREFIX: usize = 6;
/// Matches rows whose ids start like `?1`, by the index: nearly always one or none.
const ALIKE: &str = "substr(id, 1, 6) = substr(?1, 1, 6)";
/// Matches the row with id `?1`.
const OF_ID: &str = "substr(id, 1, 6) = substr(?1, 1, 6) AND id = ?1";

impl Table {
    pub(super) fn new(name: String) -> Table {
        let rows = format!("main.\"{name}\"");
        let meta = format!("main.\"{name}_meta\"");
        Table {
            find: format!("SELECT id, stamp, record, seq, due FROM {rows} WHERE {ALIKE}"),
            stamp: format!("SELECT stamp FROM {rows} WHERE {OF_ID}"),
            list: format!("SELECT seq, id, stamp, record FROM {rows} WHERE seq > ?1 ORDER BY seq LIMIT ?2"),
            insert: format!("INSERT INTO {rows} (id, stamp, due, record) VALUES (?1, ?2, ?3, ?4)"),
            update: format!("UPDATE {rows} SET stamp = ?2, record = ?3, due = ?4 WHERE seq = ?1"),
            update_in_place: format!("UPDATE {rows} SET stamp = ?2, record = ?3 WHERE seq = ?1"),
            delete: format!("DELETE FROM {rows} WHERE seq = ?1"),
            due: format!(
                "SELECT seq, id, stamp, record FROM {rows} \
                 WHERE due BETWEEN 0 AND ?1 AND due < {NEVER} ORDER BY due LIMIT ?2"
            ),
            due_evidence: format!(
                "SELECT seq, id, stamp, record FROM {rows} \
                 WHERE due BETWEEN -?1 AND -1 AND due > -{NEVER} ORDER BY due DESC LIMIT ?2"
            ),
            list_evidence: format!(
                "SELECT seq, id, stamp, record, due FROM {rows} \
                 WHERE due < 0 AND (due, seq) > (?1, ?2) ORDER BY due, seq LIMIT ?3"
            ),
            count_evidence: format!(
                "SELECT count(*) FROM (SELECT 1 FROM {rows} WHERE due < 0 LIMIT {MOST_COUNTED})"
            ),
            postpone: format!("UPDATE {rows} SET due = ?2 WHERE seq = ?1"),
            times: format!("SELECT high_water, anchor FROM {meta} WHERE one = 1 AND mirror = ~high_water"),
            set_high_water: format!(
                "UPDATE {meta} SET high_water = ?1, mirror = ~?1 WHERE one = 1 AND high_water < ?1"
            ),
            set_anchor: format!("UPDATE {meta} SET anchor = ?1 WHERE one = 1"),
            store: format!("SELECT store FROM {meta} WHERE one = 1"),
            name,
        }
    }

    /// Returns the row under `id`. An unreadable row is an error, never an absent record. That
    /// includes a row that the index leads to but that shows another id, unless it is intact under
    /// that id.
    fn find(&self, db: &Connection, id: &RecordId) -> Result<Option<Found>> {
        self.first(db, id, |row, record| Ok(Found { seq: row.get(3)?, due: row.get(4)?, record }))
    }

    /// Returns the record under `id`, with the same checks.
    fn read(&self, db: &Connection, id: &RecordId) -> Result<Option<Record>> {
        self.first(db, id, |_, record| Ok(record))
    }

    fn first<T>(
        &self,
        db: &Connection,
        id: &RecordId,
        take: impl FnOnce(&Row<'_>, Record) -> rusqlite::Result<T>,
    ) -> Result<Option<T>> {
        let mut statement = prepare(db, &self.find)?;
        let mut rows = statement.query([id.as_bytes().as_slice()])?;
        while let Some(row) = rows.next()? {
            if let Some(record) = shown(row, id)? {
                return Ok(Some(take(row, record)?));
            }
        }
        Ok(None)
    }

    /// Returns the stamp of the row under `id`, if there is one.
    pub(super) fn stamp(&self, db: &Connection, id: &RecordId) -> Result<Option<Stamp>> {
        let stamp: Option<i64> =
            prepare(db, &self.stamp)?.query_row([id.as_bytes().as_slice()], |row| row.get(0)).optional()?;
        Ok(stamp.and_then(|stamp| u64::try_from(stamp).ok()).map(Stamp))
    }

    /// Checks that the table has the expected columns.
    pub(super) fn probe(&self, db: &Connection) -> Result<()> {
        self.find(db, &RecordId::from_bytes([0; 32])).map(|_| ())
    }

    /// Returns the record under `id`, and the time.
    pub(super) fn snapshot(&self, db: &Connection, id: &RecordId, timeline: &Timeline) -> Result<Snapshot> {
        let record = self.read(db, id)?;
        let mut now = timeline.now();
        if let Some(ahead) = record.as_ref().map(|record| record.stamp).filter(|stamp| *stamp > now) {
            timeline.observe(ahead);
            now = timeline.now().max(ahead);
        }
        Ok(Snapshot { record: record.map(Box::new), now })
    }

    /// Compares and writes. The id column is not unique: only the lookup keeps an id from being
    /// inserted twice. So `db` must have the write lock, which `high_water` shows; otherwise SQLite
    /// refuses it if another writer committed since its first read.
    pub(super) fn swap(
        &self,
        db: &Connection,
        SwapRequest { id, expected, next }: &SwapRequest,
        high_water: &mut HighWater<'_>,
        limits: &Limits,
    ) -> Result<Swap> {
        let next = next.as_deref();
        let found = self.find(db, id)?;
        let present = found.as_ref().map(|found| found.record.stamp);
        if present != *expected {
            let record = found.map(|found| Box::new(found.record));
            return Ok(Swap::Conflict(Snapshot { record, now: high_water.next(present) }));
        }
        let may_be_refused = next.is_some_and(Record::may_be_refused);
        if found.is_none() && may_be_refused {
            self.room(db, high_water, limits)?;
        }
        let stamp = high_water.next(present);
        match (found, next) {
            (Some(found), Some(next)) => self.update(db, (id, &found), (next, stamp), high_water),
            (Some(found), None) => self.delete(db, found.seq, stamp, high_water),
            (None, Some(next)) => self.insert(db, id, (next, stamp), high_water),
            (None, None) => Ok(()),
        }
        .map_err(|error| error.for_call(may_be_refused))?;
        Ok(Swap::Done(stamp))
    }

    fn insert(
        &self,
        db: &Connection,
        id: &RecordId,
        (next, stamp): (&Record, Stamp),
        high_water: &mut HighWater<'_>,
    ) -> Result<()> {
        high_water.cover(db, self, stamp)?;
        let (due, bytes) = (column(stamp.after(next.keep()), next), next.encode(id, stamp));
        let id = id.as_bytes().as_slice();
        prepare(db, &self.insert)?.execute(params![id, signed(stamp)?, due, bytes])?;
        Ok(())
    }

    fn update(
        &self,
        db: &Connection,
        (id, found): (&RecordId, &Found),
        (next, stamp): (&Record, Stamp),
        high_water: &mut HighWater<'_>,
    ) -> Result<()> {
        high_water.cover(db, self, stamp)?;
        let (number, bytes) = (signed(stamp)?, next.encode(id, stamp));
        let deadline = stamp.after(next.keep());
        if found.due.is_negative() == next.is_evidence()
            && may_stay(found.due.saturating_abs(), deadline, next.keep())
        {
            prepare(db, &self.update_in_place)?.execute(params![found.seq, number, bytes])?;
        } else {
            let due = column(deadline, next);
            prepare(db, &self.update)?.execute(params![found.seq, number, bytes, due])?;
        }
        Ok(())
    }

    fn delete(&self, db: &Connection, seq: i64, stamp: Stamp, high_water: &mut HighWater<'_>) -> Result<()> {
        high_water.raise(db, self, stamp)?;
        prepare(db, &self.delete)?.execute([seq])?;
        Ok(())
    }

    /// Returns an error if the file is over its limit, after removing expired rows to make room.
    fn room(&self, db: &Connection, high_water: &mut HighWater<'_>, limits: &Limits) -> Result<()> {
        let Some(most) = limits.bytes else { return Ok(()) };
        let log = limits.log.load(Ordering::Relaxed).saturating_sub(log::USUAL);
        if used_bytes(db)?.saturating_add(log) < most {
            return Ok(());
        }
        let unsettled = self.purge(db, high_water, super::PURGE_STEP)?.unsettled;
        limits.unsettled.fetch_add(unsettled, Ordering::Relaxed);
        match used_bytes(db)? {
            used if used.saturating_add(log) < most => Ok(()),
            used => {
                let mut detail = format!("{used} bytes in use of {most}");
                if log > 0 {
                    detail = format!("{detail}, and {log} more in its log, which a reader holds open");
                }
                match self.evidence(db)? {
                    0 => {}
                    unresolved => detail = format!("{detail}; {unresolved} of its records are unresolved"),
                }
                Err(StoreError::full(BACKEND, detail).into())
            }
        }
    }

    /// Returns the number of rows that are evidence of an effect and not yet settled, up to
    /// [`MOST_COUNTED`].
    fn evidence(&self, db: &Connection) -> Result<i64> {
        Ok(prepare(db, &self.count_evidence)?.query_row([], |row| row.get(0))?)
    }

    /// Examines up to `limit` due rows, oldest first and evidence last, and removes those whose
    /// deadline has passed. The column that finds them has no checksum, so it is corrected if the
    /// record shows that it has not expired, or is not evidence. An unreadable row counts as
    /// expired.
    pub(super) fn purge(
        &self,
        db: &Connection,
        high_water: &mut HighWater<'_>,
        limit: usize,
    ) -> Result<Purged> {
        let now = high_water.now();
        let mut found = self.due_rows(db, &self.due, now, limit)?;
        let room = limit - found.len();
        if room > 0 {
            found.append(&mut self.due_rows(db, &self.due_evidence, now, room)?);
        }
        let mut purged = Purged { examined: found.len(), ..Purged::default() };
        for (seq, record) in found {
            match record.as_ref().map(|record| (column(record.deadline(), record), record)) {
                Some((due, _)) if due.saturating_abs() > over(now) => {
                    prepare(db, &self.postpone)?.execute([seq, due])?;
                }
                record => {
                    purged.removed += 1;
                    purged.unsettled += u64::from(record.is_some_and(|(_, record)| record.is_evidence()));
                    prepare(db, &self.delete)?.execute([seq])?;
                }
            }
        }
        if purged.removed > 0 {
            // No deadline is before its row's stamp.
            high_water.raise(db, self, now)?;
        }
        Ok(purged)
    }

    /// Returns up to `limit` rows that `sql` finds due at `now`: their numbers, and their records
    /// if they can be read.
    fn due_rows(
        &self,
        db: &Connection,
        sql: &str,
        now: Stamp,
        limit: usize,
    ) -> Result<Vec<(i64, Option<Record>)>> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let row = |row: &Row<'_>| -> rusqlite::Result<(i64, Option<Record>)> {
            let id = row.get_ref(1)?.as_blob().ok().and_then(|id| <[u8; 32]>::try_from(id).ok());
            let record = id
                .and_then(|id| decode(&RecordId::from_bytes(id), row.get(2).ok()?, &blob(row, 3).ok()?).ok());
            Ok((row.get(0)?, record))
        };
        Ok(prepare(db, sql)?.query_map([over(now), limit], row)?.collect::<Result<_, _>>()?)
    }

    /// Removes whatever is under `id`, readable or not.
    pub(super) fn discard(
        &self,
        db: &Connection,
        id: &RecordId,
        high_water: &mut HighWater<'_>,
    ) -> Result<bool> {
        let mut statement = prepare(db, &self.find)?;
        let mut rows = statement.query([id.as_bytes().as_slice()])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let stamp = match shown(row, id) {
                Ok(Some(record)) => high_water.next(Some(record.stamp)),
                Ok(None) => continue,
                Err(Error::Store(StoreError::Corrupt { .. })) => high_water.above_all(),
                Err(error) => return Err(error),
            };
            found.push((row.get(3)?, stamp));
        }
        for (seq, stamp) in &found {
            self.delete(db, *seq, *stamp, high_water)?;
        }
        Ok(!found.is_empty())
    }
}

pub(super) fn prepare<'a>(db: &'a Connection, sql: &str) -> Result<CachedStatement<'a>> {
    Ok(db.prepare_cached(sql)?)
}

/// Returns true if the column would have the record removed before its deadline.
pub(super) fn is_due_early(column: i64, record: &Record) -> bool {
    column.unsigned_abs() < due(record.deadline()).unsigned_abs()
}

/// Returns the bytes of the database's pages in use, including its other tables.
fn used_bytes(db: &Connection) -> Result<u64> {
    let number = |pragma: &str| -> Result<u64> {
        Ok(prepare(db, pragma)?.query_row([], |row| row.get::<_, i64>(0))?.unsigned_abs())
    };
    let pages = number("PRAGMA main.page_count")?.saturating_sub(number("PRAGMA main.freelist_count")?);
    Ok(pages.saturating_mul(number("PRAGMA main.page_size")?))
}

/// Converts a stamp to the type of its column.
pub(super) fn signed(stamp: Stamp) -> rusqlite::Result<i64> {
    i64::try_from(stamp.0).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn sound(id: &RecordId, stamp: i64, bytes: &Bytes) -> Result<Record> {
    decode(id, stamp, bytes).map_err(|source| Error::corrupt(id, source))
}

/// Returns the record of a row that the index found for `id`, or `None` if it belongs to another
/// id.
fn shown(row: &Row<'_>, id: &RecordId) -> Result<Option<Record>> {
    let columns = || -> rusqlite::Result<_> { Ok((row.get_ref(0)?.as_blob()?, row.get(1)?, blob(row, 2)?)) };
    let (own, stamp, bytes): (&[u8], i64, Bytes) = columns()?;
    if own == id.as_bytes() {
        return sound(id, stamp, &bytes).map(Some);
    }
    let is_others = <[u8; 32]>::try_from(own).is_ok_and(|own| {
        own[..PREFIX] == id.as_bytes()[..PREFIX] && decode(&RecordId::from_bytes(own), stamp, &bytes).is_ok()
    });
    let source = DecodeError::Damaged { what: "the row's id is not its own" };
    if is_others { Ok(None) } else { Err(Error::corrupt(id, source)) }
}

pub(super) fn decode(id: &RecordId, stamp: i64, bytes: &Bytes) -> Result<Record, DecodeError> {
    let stamp = u64::try_from(stamp).map_err(|_| DecodeError::Damaged { what: "negative stamp" })?;
    Record::decode(id, Stamp(stamp), Stamp(stamp), bytes)
}

pub(super) fn blob(row: &Row<'_>, column: usize) -> rusqlite::Result<Bytes> {
    Ok(Bytes::copy_from_slice(row.get_ref(column)?.as_blob()?))
}

/// Returns true if the column may keep its value for a row kept until `deadline`: it is not before
/// the deadline, and not much later in proportion to the retention. A finish makes the deadline
/// earlier by a lease, which does not justify writing another page.
fn may_stay(column: i64, deadline: Stamp, keep: Duration) -> bool {
    let spare = Duration::from_micros(2 * GRAIN).saturating_add(keep / 16);
    match (due(deadline), due(deadline.after(spare))) {
        (NEVER, _) => column == NEVER,
        (soonest, latest) => (soonest..=latest).contains(&column) && column < NEVER,
    }
}

/// Returns the column value of a record kept until `deadline`. Evidence gets a negative value, so
/// that it is found without scanning other rows and purged at its own deadline.
fn column(deadline: Stamp, record: &Record) -> i64 {
    let due = due(deadline);
    if record.is_evidence() { -due } else { due }
}

/// Converts a deadline to the column's unit, rounded up so that nothing is removed early.
fn due(deadline: Stamp) -> i64 {
    if deadline.0 > i64::MAX as u64 { NEVER } else { deadline.0.div_ceil(GRAIN) as i64 }
}

/// Returns the greatest column value that has expired at `now`.
fn over(now: Stamp) -> i64 {
    (now.0 / GRAIN) as i64 // 38 bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s13_a_rounded_deadline_is_never_early() {
        for deadline in [0, 1, GRAIN - 1, GRAIN, GRAIN + 1, i64::MAX as u64 - 1, i64::MAX as u64] {
            let (column, deadline) = (due(Stamp(deadline)), u128::from(deadline));
            let rounded = u128::from(column.unsigned_abs()) * u128::from(GRAIN);
            assert!((deadline..deadline + u128::from(GRAIN)).contains(&rounded));
        }
        assert_eq!([due(Stamp(i64::MAX as u64 + 1)), due(Stamp(u64::MAX))], [NEVER; 2]);
        assert_eq!([over(Stamp(GRAIN - 1)), over(Stamp(GRAIN)), over(Stamp(2 * GRAIN - 1))], [0, 1, 1]);
    }

    #[test]
    fn s13_a_row_stays_only_where_it_is_kept_long_enough_and_not_much_longer() {
        let keep = Duration::from_secs(86_400);
        let deadline = Stamp(1 << 50);
        assert!(may_stay(1 << 24, deadline, keep));
        assert!(!may_stay((1 << 24) - 1, deadline, keep));
        assert!(may_stay((1 << 24) + 80, deadline, keep)); // a lease of an hour and a half
        assert!(!may_stay((1 << 24) + 107, deadline, keep));
        assert!(!may_stay(NEVER, deadline, keep) && !may_stay(-1, deadline, keep));
        assert!(may_stay(NEVER, Stamp(u64::MAX), Duration::MAX) && !may_stay(1 << 62, Stamp(u64::MAX), keep));
        assert!(!may_stay(NEVER, Stamp(NEVER as u64 - 2 * GRAIN), Duration::MAX));
    }

    #[test]
    fn l5_evidence_is_found_by_its_column_without_a_walk_or_a_sort() {
        let db = Connection::open_in_memory().unwrap();
        let sql = include_str!("schema.sql").replace("{table}", "t").replace("{version}", "3");
        db.execute_batch(&sql.replace("{store}", "00")).unwrap();
        let table = Table::new("t".to_owned());
        for (sql, numbers) in
            [(&table.due, 2), (&table.due_evidence, 2), (&table.list_evidence, 3), (&table.count_evidence, 0)]
        {
            let mut plan = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let numbers = rusqlite::params_from_iter(vec![1; numbers]);
            let plan: Vec<String> =
                plan.query_map(numbers, |row| row.get("detail")).unwrap().collect::<Result<_, _>>().unwrap();
            assert!(plan.iter().any(|step| step.contains("INDEX t_due (due")), "{sql}: {plan:?}");
            assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{sql}: {plan:?}");
        }
    }

    #[test]
    fn a_row_is_found_by_how_its_id_starts() {
        let db = Connection::open_in_memory().unwrap();
        let sql = include_str!("schema.sql")
            .replace("{table}", "t")
            .replace("{version}", "3")
            .replace("{store}", "");
        db.execute_batch(&sql).unwrap();
        let table = Table::new("t".to_owned());
        for sql in [&table.find, &table.stamp] {
            let mut plan = db.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let plan: String = plan.query_row([[0; 32].as_slice()], |row| row.get("detail")).unwrap();
            assert!(plan.contains("USING INDEX t_id (<expr>=?)"), "{sql}: {plan}");
        }
    }
}
