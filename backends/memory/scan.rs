//! Listing of all records, page by page, in the order of shards and ids.

use super::shard::Shard;
use super::{BACKEND, MemoryStore, SHARDS};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::{Record, Stamp};
use crate::store::{Cursor, Page};

/// Lists up to the given number of a shard's records with their ids, in id order after an id.
type Listing = fn(&Shard, Option<RecordId>, usize) -> Vec<(RecordId, Record)>;

impl MemoryStore {
    /// Collects one page, calling `list` on each shard.
    pub(super) fn page(
        &self,
        after: Option<&Cursor>,
        limit: usize,
        list: Listing,
    ) -> Result<Page, StoreError> {
        let after = after.map(ScanPosition::decode).transpose()?;
        let mut page = Page { records: Vec::new(), unreadable: Vec::new(), next: None, now: Stamp::ZERO };
        for number in after.map_or(0, |position| position.shard)..SHARDS {
            let passed = after.filter(|position| position.shard == number).map(|position| position.id);
            let room = limit.max(1) - page.records.len();
            // One more than fits, to detect the end of the shard.
            let mut records = list(&self.0.shards[number].lock(), passed, room.saturating_add(1));
            let more = records.len() > room;
            records.truncate(room);
            page.records.append(&mut records);
            if more || page.records.len() >= limit.max(1) && number + 1 < SHARDS {
                let last = page.records.last();
                page.next = last.map(|(id, _)| ScanPosition { shard: number, id: *id }.encode());
                break;
            }
        }
        page.now = self.0.timeline.now();
        Ok(page)
    }
}

/// The position after which a listing resumes: the last listed record and its shard.
#[derive(Clone, Copy)]
struct ScanPosition {
    shard: usize,
    id: RecordId,
}

impl ScanPosition {
    fn decode(cursor: &Cursor) -> Result<ScanPosition, StoreError> {
        let position = cursor.0.split_first().and_then(|(shard, id)| {
            Some(ScanPosition { shard: usize::from(*shard), id: RecordId::from_bytes(id.try_into().ok()?) })
        });
        position.ok_or_else(|| StoreError::unusable(BACKEND, "the cursor is not one of this store's"))
    }

    fn encode(self) -> Cursor {
        let mut bytes = vec![self.shard as u8]; // less than SHARDS
        bytes.extend_from_slice(self.id.as_bytes());
        Cursor(bytes)
    }
}
