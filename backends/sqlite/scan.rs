//! All that a store holds, page by page, in the order in which it came in.

use rusqlite::{Connection, Row};

use super::rows::{Table, blob, decode, prepare};
use super::trouble::{Trouble, unusable};
use crate::clock::Timeline;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::store::{Cursor, Page};

/// About the most bytes of records in one page: reading it takes a thread of the caller's, and one of a few connections.
const PAGE_BYTES: usize = 4 << 20;

impl Table {
    /// Up to `limit` rows after the one that `after` names. A row keeps its number as long as it is there, so
    /// what comes and goes meanwhile moves no other.
    pub(super) fn page(
        &self,
        db: &Connection,
        timeline: &Timeline,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let mut last = after.map_or(Ok(i64::MIN), number)?;
        let mut page = Page { records: Vec::new(), unreadable: Vec::new(), next: None, now: Stamp::ZERO };
        let (mut seen, mut bytes) = (0, 0);
        let mut statement = prepare(db, &self.list)?;
        // One more, to know whether there is a next page.
        let most = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let mut rows = statement.query([last, most]).map_err(Trouble::from)?;
        while let Some(row) = rows.next().map_err(Trouble::from)? {
            if seen == limit || bytes >= PAGE_BYTES {
                page.next = Some(Cursor(last.to_be_bytes().to_vec()));
                break;
            }
            last = row.get(0).map_err(Trouble::from)?;
            seen += 1;
            bytes += add(&mut page, row, timeline).map_err(Trouble::from)?;
        }
        page.now = timeline.now();
        Ok(page)
    }
}

/// Adds the record of `row` to `page`, and says about how much it weighs. An id that is none is passed over: no
/// key leads to it.
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

fn number(cursor: &Cursor) -> Result<i64, StoreError> {
    let bytes = <[u8; 8]>::try_from(cursor.0.as_slice());
    bytes.map(i64::from_be_bytes).map_err(|_| unusable("the cursor is not one of its own"))
}
