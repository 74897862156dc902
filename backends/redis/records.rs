//! Reading of the records under a prefix: [`Records`].

use std::collections::HashSet;

use ::redis::{Value, cmd, from_redis_value, pipe};

use super::connection::Connections;
use super::error::{is_forbidden, malformed, store_error, unusable};
use super::value::{found, time};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::store::{Cursor, Page, Snapshot};

/// Records read in one round trip. They can be long.
pub(super) const READ_AT_ONCE: usize = 64;
/// Names that the server may visit in one `SCAN`, which blocks it.
const SCAN_AT_MOST: usize = 256;
/// Number of `SCAN`s after which a page is returned even if empty.
const SCANS_A_PAGE: usize = 16;

/// The connections, and the prefix of all key names.
pub(super) struct Records {
    pub(super) connections: Connections,
    pub(super) prefix: Vec<u8>,
}

impl Records {
    /// Returns the key name of a record.
    pub(super) fn key(&self, id: &RecordId) -> Vec<u8> {
        [&self.prefix, &id.as_bytes()[..]].concat()
    }

    /// Returns the id in a key name, if it is the name of a record.
    pub(super) fn id(&self, key: &[u8]) -> Option<RecordId> {
        let id = key.strip_prefix(self.prefix.as_slice())?;
        Some(RecordId::from_bytes(id.try_into().ok()?))
    }

    pub(super) async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        self.load_some(&[*id]).await?.pop().ok_or_else(malformed)?
    }

    /// Loads the record under each of the ids.
    pub(super) async fn load_many(
        &self,
        ids: &[RecordId],
    ) -> Result<Vec<Result<Snapshot, StoreError>>, StoreError> {
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(READ_AT_ONCE) {
            found.append(&mut self.load_some(ids).await?);
        }
        Ok(found)
    }

    /// Loads in one round trip. Does not use `MGET`, which reports a key that is not a string as
    /// absent.
    async fn load_some(&self, ids: &[RecordId]) -> Result<Vec<Result<Snapshot, StoreError>>, StoreError> {
        // The time is read first, so that it is never later than the records it is compared with:
        // no lease appears expired too early.
        let mut commands = pipe();
        commands.cmd("TIME");
        for id in ids {
            commands.cmd("GET").arg(self.key(id));
        }
        let count = ids.len() + 1;
        let mut replies = self.connections.call(&commands, count).await?.into_iter();
        let now = time(replies.next())?;
        Ok(ids.iter().zip(replies).map(|(id, reply)| found(id, now, reply)).collect())
    }

    /// Returns one page from `SCAN`, which yields each key at least once and may yield none before
    /// it is done.
    pub(super) async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        let mut cursor = after.map_or(Ok(0), position)?;
        let mut page = Page { records: Vec::new(), unreadable: Vec::new(), next: None, now: Stamp::ZERO };
        for _ in 0..SCANS_A_PAGE {
            let (now, next, ids) = self.names(cursor, limit.clamp(1, SCAN_AT_MOST)).await?;
            page.now = page.now.max(now);
            for (id, found) in ids.iter().zip(self.load_many(&ids).await?) {
                match found {
                    Ok(Snapshot { record: Some(record), .. }) => {
                        page.now = page.now.max(record.stamp);
                        page.records.push((*id, *record));
                    }
                    Ok(Snapshot { record: None, .. }) => {}
                    Err(StoreError::Corrupt { .. }) => page.unreadable.push(*id),
                    Err(error) => return Err(error),
                }
            }
            cursor = next;
            if cursor == 0 || !page.records.is_empty() || !page.unreadable.is_empty() {
                break;
            }
        }
        page.next = (cursor != 0).then(|| Cursor(cursor.to_string().into_bytes()));
        Ok(page)
    }

    /// Sends one `SCAN`. Returns the time, the position of the next `SCAN` (0 at the end), and the
    /// ids without duplicates.
    async fn names(&self, cursor: u64, count: usize) -> Result<(Stamp, u64, Vec<RecordId>), StoreError> {
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(pattern(&self.prefix)).arg("COUNT").arg(count);
        let mut commands = pipe();
        commands.cmd("TIME").add_command(scan);
        let replies = self.connections.call(&commands, 2).await?;
        let [now, names] = <[Value; 2]>::try_from(replies).map_err(|_| malformed())?;
        let names = names.extract_error().map_err(|error| {
            if is_forbidden(&error) {
                return unusable("listing the records requires +scan, which the user lacks");
            }
            store_error(&error)
        })?;
        let (next, names): (u64, Vec<Vec<u8>>) = from_redis_value(names).map_err(|_| malformed())?;
        let mut seen = HashSet::new();
        let ids = names.iter().filter_map(|name| self.id(name)).filter(|id| seen.insert(*id)).collect();
        Ok((time(Some(now))?, next, ids))
    }
}

fn position(cursor: &Cursor) -> Result<u64, StoreError> {
    let text = std::str::from_utf8(&cursor.0).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| unusable("the cursor is not one of this store's"))
}

/// Returns the pattern that matches all names with this prefix.
fn pattern(prefix: &[u8]) -> Vec<u8> {
    let mut pattern = Vec::with_capacity(prefix.len() + 1);
    for &byte in prefix {
        if b"*?[]\\^-".contains(&byte) {
            pattern.push(b'\\');
        }
        pattern.push(byte);
    }
    pattern.push(b'*');
    pattern
}
