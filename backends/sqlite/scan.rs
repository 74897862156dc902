//! Listing of all records, page by page, in the order they were inserted.

use rusqlite::{Connection, Row, params_from_iter};

use super::error::{Error, Result};
use super::rows::{Table, blob, decode, prepare};
use crate::clock::Timeline;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::store::{Cursor, Page};

/// The approximate maximum of record bytes per page. Reading one occupies a caller's thread and one
/// of a few connections.
const PAGE_BYTES: usize = 4 << 20;

impl Table {
    /// Returns up to `limit` rows after the cursor. A row keeps its number while it exists, so
    /// concurrent inserts and removals do not shift others.
    pub(super) fn page(
        &self,
        db: &Connection,
        timeline: &Timeline,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page> {
        let place = |row: &Row<'_>| Ok([row.get(0)?]);
        page(db, &self.list, place, timeline, after, limit)
    }

    /// Returns up to `limit` rows that are evidence of an effect, after the cursor, those kept
    /// longest first. They are found by their column, without scanning other rows.
    pub(super) fn evidence_page(
        &self,
        db: &Connection,
        timeline: &Timeline,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page> {
        let place = |row: &Row<'_>| Ok([row.get(4)?, row.get(0)?]);
        let mut page = page(db, &self.list_evidence, place, timeline, after, limit)?;
        // The column carries no checksum.
        page.records.retain(|(_, record)| record.is_evidence());
        Ok(page)
    }
}

/// Up to `limit` rows of `statement` after the place that `after` names.
fn page<const NUMBERS: usize>(
    db: &Connection,
    statement: &str,
    place: impl Fn(&Row<'_>) -> rusqlite::Result<[i64; NUMBERS]>,
    timeline: &Timeline,
    after: Option<&Cursor>,
    limit: usize,
) -> Result<Page> {
    let after = after.map_or(Ok([i64::MIN; NUMBERS]), numbers)?;
    // One more than asked for, to know whether there is a next page.
    let one_more = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
    let mut statement = prepare(db, statement)?;
    let mut rows = statement.query(params_from_iter(after.into_iter().chain([one_more])))?;
    let mut page = Page { records: Vec::new(), unreadable: Vec::new(), next: None, now: Stamp::ZERO };
    let (mut last, mut seen, mut bytes) = ([i64::MIN; NUMBERS], 0, 0);
    while let Some(row) = rows.next()? {
        if seen == limit || bytes >= PAGE_BYTES {
            page.next = Some(Cursor(last.iter().flat_map(|number| number.to_be_bytes()).collect()));
            break;
        }
        last = place(row)?;
        seen += 1;
        bytes += add(&mut page, row, timeline)?;
    }
    page.now = timeline.now();
    Ok(page)
}

/// Adds the record of `row` to `page` and returns its approximate size. Skips a malformed id, since
/// no key leads to it.
fn add(page: &mut Page, row: &Row<'_>, timeline: &Timeline) -> rusqlite::Result<usize> {
    const ROW: usize = 200;
    let (id, stamp, record) = (blob(row, 1)?, row.get(2)?, blob(row, 3)?);
    let Ok(id) = <[u8; 32]>::try_from(id.as_ref()).map(RecordId::from_bytes) else { return Ok(ROW) };
    match decode(&id, stamp, &record) {
        Ok(decoded) => {
            timeline.observe(decoded.stamp);
            page.records.push((id, decoded));
        }
        Err(_) => page.unreadable.push(id),
    }
    Ok(ROW + record.len())
}

/// Reads the numbers of a cursor.
fn numbers<const NUMBERS: usize>(cursor: &Cursor) -> Result<[i64; NUMBERS]> {
    let (numbers, rest) = cursor.0.as_chunks::<8>();
    let numbers: Vec<i64> = numbers.iter().map(|bytes| i64::from_be_bytes(*bytes)).collect();
    let foreign = || Error::unusable("the cursor is not one of this store's");
    if rest.is_empty() { numbers.try_into().map_err(|_| foreign()) } else { Err(foreign()) }
}
