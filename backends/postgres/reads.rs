//! Reading stamps, listing and removing rows.

use std::sync::Arc;

use tokio_postgres::Error;
use tokio_postgres::types::Type;

use super::Inner;
use super::connection::{Connection, Lane};
use super::error::malformed;
use super::schema::{NOW, Names};
use super::swap::{id_of, listed};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::store::{Cursor, Page};

/// The rows of one page at most.
const PAGE: usize = 1000;

/// The statements that read and remove.
#[derive(Debug)]
pub(super) struct Reads {
    pub(super) stamps: String,
    list: String,
    discard: String,
}

impl Reads {
    pub(super) fn new(names: &Names) -> Reads {
        Reads {
            stamps: names.qualify("SELECT id, stamp FROM \"nevertwice\" WHERE id = ANY ($1) AND record <> ''"),
            list: names.qualify(&format!(
                "SELECT {NOW}, id, stamp, CASE WHEN evidence OR NOT $3 THEN record ELSE '' END \
                 FROM \"nevertwice\" WHERE id > $1 ORDER BY id LIMIT $2"
            )),
            // A stamp that is damaged may be far ahead; it must not stay there.
            discard: names.qualify(&format!(
                "UPDATE \"nevertwice\" AS t SET stamp = greatest({NOW}, least(t.stamp, 1::bigint << 59) + 1), keep = 0, \
                 evidence = false, due = {NOW} / 67108864 + 1, record = '' WHERE t.id = $1 AND t.record <> ''"
            )),
        }
    }
}

impl Inner {
    /// Returns the stamps of the records that there are.
    pub(super) async fn stamps(
        self: &Arc<Self>,
        ids: &[RecordId],
    ) -> Result<Vec<(RecordId, Stamp)>, StoreError> {
        let (inner, keys) = (Arc::clone(self), ids.to_vec());
        let rows = self.read(async move |connection: Arc<Connection>| {
            let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes().as_slice()).collect();
            connection.client.query_typed(&inner.reads.stamps, &[(&keys, Type::BYTEA_ARRAY)]).await
        });
        stamps_of(&rows.await?)
    }

    /// Lists the rows after a position by id: all, or only the contents of those that are evidence.
    pub(super) async fn list(
        self: &Arc<Self>,
        after: Option<&Cursor>,
        limit: usize,
        only_evidence: bool,
    ) -> Result<Page, StoreError> {
        let limit = limit.clamp(1, PAGE);
        let (inner, start) = (Arc::clone(self), after.map_or_else(Vec::new, |cursor| cursor.0.clone()));
        let rows = self.read(async move |connection: Arc<Connection>| {
            let limit = limit as i64; // at most PAGE
            let parameters: [super::swap::Parameter<'_>; 3] =
                [(&start, Type::BYTEA), (&limit, Type::INT8), (&only_evidence, Type::BOOL)];
            connection.client.query_typed(&inner.reads.list, &parameters).await
        });
        let rows = rows.await?;
        let mut page = Page { records: Vec::new(), unreadable: Vec::new(), next: None, now: Stamp::ZERO };
        for row in &rows {
            let (now, id): (i64, &[u8]) = (get(row, 0)?, get(row, 1)?);
            if rows.len() == limit {
                page.next = Some(Cursor(id.to_vec()));
            }
            page.now = page.now.max(super::row::stamp(&RecordId::from_bytes([0; 32]), now)?);
            // Rows of others: no call reaches them.
            let Ok(id) = id_of(id) else { continue };
            match listed(&id, get(row, 2)?, get(row, 3)?) {
                Ok(Some(record)) => {
                    page.now = page.now.max(record.stamp);
                    page.records.push((id, record));
                }
                Ok(None) => {}
                Err(_) => page.unreadable.push(id),
            }
        }
        if rows.is_empty() {
            page.now = self.loads.load(&RecordId::from_bytes([0; 32])).await?.now;
        }
        Ok(page)
    }

    pub(super) async fn discard(self: &Arc<Self>, id: &RecordId) -> Result<bool, StoreError> {
        let (inner, key) = (Arc::clone(self), *id);
        let removed = self.connections.run(Lane::Write, async move |connection: Arc<Connection>| {
            let key = key.as_bytes().as_slice();
            connection.client.execute_typed(&inner.reads.discard, &[(&key, Type::BYTEA)]).await
        });
        let is_removed = removed.await.map_err(StoreError::from)? > 0;
        if is_removed {
            self.announce_one(*id);
        }
        Ok(is_removed)
    }

    async fn read<T, F, W>(self: &Arc<Self>, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
        W: FnOnce(Arc<Connection>) -> F + Send + 'static,
    {
        self.connections.run(Lane::Read, work).await.map_err(StoreError::from)
    }
}

/// Reads the rows of ids and stamps.
pub(super) fn stamps_of(rows: &[tokio_postgres::Row]) -> Result<Vec<(RecordId, Stamp)>, StoreError> {
    let read = |row: &tokio_postgres::Row| {
        let (id, at): (&[u8], i64) = (get(row, 0)?, get(row, 1)?);
        let id = id_of(id)?;
        Ok((id, super::row::stamp(&id, at)?))
    };
    rows.iter().map(read).collect()
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a tokio_postgres::Row,
    at: usize,
) -> Result<T, StoreError> {
    row.try_get(at).map_err(|_| malformed())
}
