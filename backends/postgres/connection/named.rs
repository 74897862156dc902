//! Statements that are prepared, where no pooler is in between.

use std::sync::atomic::Ordering;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, Row};

use super::Connection;
use crate::backends::postgres::swap::Parameter;

/// The statements that are sent often enough to be prepared.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Named {
    Load,
    SwapOne,
    SwapTogether,
}

impl Named {
    pub(super) const COUNT: usize = Named::SwapTogether as usize + 1;
}

impl Connection {
    /// Sends a statement: by its name if the connection seems to lead to one process of the server,
    /// and with its whole text if a pooler may lend it another process for each transaction, where
    /// the name is unknown or that of another client's statement. So that the latter writes
    /// nothing, `sql` has to compare its last parameter with a constant of its own.
    pub(in super::super) async fn ask(
        &self,
        name: Named,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Error> {
        if self.is_direct && !self.is_pooled.load(Ordering::Relaxed) {
            match self.ask_by_name(name, sql, parameters).await {
                Err(error) if is_misnamed(&error) => self.distrust_names(),
                // The tables or functions were made anew. Nothing was done.
                Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {}
                answer => return answer,
            }
        }
        self.client.query_typed(sql, parameters).await
    }

    /// Sends no more names: the answer to one was another statement's.
    pub(in super::super) fn distrust_names(&self) {
        self.is_pooled.store(true, Ordering::Relaxed);
    }

    async fn ask_by_name(
        &self,
        name: Named,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Error> {
        let prepare = async || {
            let types: Vec<Type> = parameters.iter().map(|(_, kind)| kind.clone()).collect();
            self.client.prepare_typed(sql, &types).await
        };
        let statement = self.named[name as usize].get_or_try_init(prepare).await?;
        let values: Vec<&(dyn ToSql + Sync)> = parameters.iter().map(|(value, _)| *value).collect();
        self.client.query(statement, &values).await
    }
}

/// True if the name of a statement is unknown, in use, or that of a statement with other
/// parameters: a pooler is in between. Nothing was done.
fn is_misnamed(error: &Error) -> bool {
    error.code().is_some_and(|code| {
        [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT, SqlState::PROTOCOL_VIOLATION]
            .contains(code)
    })
}
