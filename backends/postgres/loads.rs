//! Reading single records, many in one statement: [`Loads`].

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Error;
use tokio_postgres::types::Type;

use super::connection::{CallError, Connection, Connections, Lane, Named, is_gone};
use super::error::{malformed, unavailable};
use super::schema::{NOW, Names};
use super::swap::{Parameter, loaded};
use crate::backends::shared::batcher::{Batcher, Transport};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::store::Snapshot;

/// The records that are read in one statement: each may be large.
const MAX_ITEMS: usize = 64;

/// The answer to one read.
type Answer = Result<Snapshot, StoreError>;

/// Reads records, concurrent reads together. Waiters of many keys wake at once and read theirs.
pub(super) struct Loads {
    connections: Arc<Connections>,
    sql: String,
    /// The schema and table: the last parameter.
    name: String,
    batcher: Batcher<Loads>,
    delivery_limit: Duration,
}

impl Loads {
    pub(super) fn new(connections: &Arc<Connections>, delivery_limit: Duration) -> Loads {
        let names: &Names = &connections.settings.names;
        let name = names.path();
        // The condition at the end: see `Connection::ask`.
        let sql = names.qualify(&format!(
            "SELECT k.at, greatest({NOW}, t.stamp), t.stamp, t.record \
             FROM unnest($1::bytea[]) WITH ORDINALITY AS k(id, at) LEFT JOIN \"nevertwice\" AS t ON t.id = k.id \
             WHERE $2 = '{name}'"
        ));
        let connections = Arc::clone(connections);
        Loads { connections, sql, name, batcher: Batcher::default(), delivery_limit }
    }

    /// Reads a record together with those of other callers.
    pub(super) async fn load(self: &Arc<Self>, id: &RecordId) -> Answer {
        Batcher::send(self, *id).await
    }

    async fn read(self: &Arc<Self>, ids: &Arc<Vec<RecordId>>) -> Result<Vec<Answer>, CallError> {
        let (loads, ids) = (Arc::clone(self), Arc::clone(ids));
        self.connections
            .run(Lane::Read, async move |connection: Arc<Connection>| loads.ask(&connection, &ids).await)
            .await
    }

    async fn ask(&self, connection: &Connection, ids: &[RecordId]) -> Result<Vec<Answer>, Error> {
        let keys: Vec<&[u8]> = ids.iter().map(|id| id.as_bytes().as_slice()).collect();
        let parameters: [Parameter<'_>; 2] = [(&keys, Type::BYTEA_ARRAY), (&self.name, Type::TEXT)];
        let rows = connection.ask(Named::Load, &self.sql, &parameters).await?;
        if rows.is_empty() {
            connection.distrust_names();
        }
        let mut answers: Vec<Answer> = ids.iter().map(|_| Err(malformed())).collect();
        for row in &rows {
            // Numbered from 1.
            let at = usize::try_from(row.try_get::<_, i64>(0)? - 1).unwrap_or(usize::MAX);
            if let (Some(answer), Some(id)) = (answers.get_mut(at), ids.get(at)) {
                *answer = loaded(id, row, 1)?;
            }
        }
        Ok(answers)
    }
}

impl Transport for Loads {
    type Item = RecordId;
    type Answer = Snapshot;

    const MAX_ITEMS: usize = MAX_ITEMS;
    const MAX_BYTES: usize = usize::MAX;

    fn bytes(_: &RecordId) -> usize {
        0
    }

    fn unanswered(detail: &'static str) -> StoreError {
        unavailable(detail)
    }

    fn batcher(&self) -> &Batcher<Loads> {
        &self.batcher
    }

    fn delivery_limit(&self) -> Duration {
        self.delivery_limit
    }

    async fn deliver(self: &Arc<Self>, ids: Vec<RecordId>) -> Vec<Answer> {
        let ids = Arc::new(ids);
        let error = match self.read(&ids).await {
            Ok(answers) => return answers,
            // One damaged row is not the others' fault.
            Err(CallError::Client(error)) if ids.len() > 1 && error.code().is_some() && !is_gone(&error) => {
                let mut answers = Vec::with_capacity(ids.len());
                for &id in ids.iter() {
                    let answer = self.read(&Arc::new(vec![id])).await;
                    answers.push(
                        answer
                            .map_err(StoreError::from)
                            .and_then(|mut one| one.pop().unwrap_or_else(|| Err(malformed()))),
                    );
                }
                return answers;
            }
            Err(error) => StoreError::from(error),
        };
        ids.iter().map(|_| Err(error.clone())).collect()
    }
}
