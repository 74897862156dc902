//! The application's transaction, of any client: [`Session`].

use async_trait::async_trait;
use bytes::BytesMut;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::backends::postgres::error;
use crate::error::{Error, StoreError};

/// A parameter of a statement.
#[derive(Debug, Clone, Copy)]
#[allow(unreachable_pub)] // only the sealed trait names it
pub enum Value<'a> {
    Int(i64),
    Bool(bool),
    Text(&'a str),
    Bytes(&'a [u8]),
    /// An array with this one element.
    ArrayOf(&'a [u8]),
}

/// The type of a column.
#[derive(Debug, Clone, Copy)]
#[allow(unreachable_pub)]
pub enum Column {
    Int,
    Text,
    Bytes,
}

/// A column's value.
#[derive(Debug, Clone)]
#[allow(unreachable_pub)]
pub enum Cell {
    Null,
    Int(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// The reason why a statement failed.
#[derive(Debug)]
#[allow(unreachable_pub)]
pub struct Failure {
    /// The server's SQLSTATE, if it answered.
    pub(super) code: Option<String>,
    /// The meaning, if the transaction cannot simply be repeated.
    pub(super) error: StoreError,
}

/// A session inside a transaction. Statements are single and take the types of their parameters.
#[async_trait]
#[allow(unreachable_pub)]
pub trait Session: Send {
    /// Runs a statement and returns its first row.
    async fn row(
        &mut self,
        sql: &str,
        values: &[Value<'_>],
        columns: &[Column],
    ) -> Result<Option<Vec<Cell>>, Failure>;

    /// Runs statements without parameters and rows.
    async fn batch(&mut self, sql: &str) -> Result<(), Failure>;
}

impl Failure {
    /// Returns true if a lock was not released in time (55P03).
    pub(super) fn is_locked(&self) -> bool {
        self.code.as_deref() == Some("55P03")
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Error {
        let code = match failure.code.as_deref() {
            Some("40001") => "40001",
            Some("40P01") => "40P01",
            Some("55P03") => "55P03",
            Some("25P02") => {
                let detail =
                    "an earlier statement of the transaction failed (25P02): roll it back, and repeat it";
                return Error::Store(error::unavailable(detail));
            }
            Some(_) | None => return Error::Store(failure.error),
        };
        Error::RepeatTransaction { code }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Failure {
        let code = error.code().map(|code| code.code().to_owned());
        Failure { code, error: error::store_error(&error) }
    }
}

#[async_trait]
impl Session for tokio_postgres::Transaction<'_> {
    async fn row(
        &mut self,
        sql: &str,
        values: &[Value<'_>],
        columns: &[Column],
    ) -> Result<Option<Vec<Cell>>, Failure> {
        let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
            values.iter().map(|value| (value as &(dyn ToSql + Sync), value.kind())).collect();
        let rows = self.query_typed(sql, &parameters).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let cell = |(at, column): (usize, &Column)| {
            Ok(match column {
                Column::Int => row.try_get::<_, Option<i64>>(at)?.map_or(Cell::Null, Cell::Int),
                Column::Text => row.try_get::<_, Option<String>>(at)?.map_or(Cell::Null, Cell::Text),
                Column::Bytes => row.try_get::<_, Option<Vec<u8>>>(at)?.map_or(Cell::Null, Cell::Bytes),
            })
        };
        columns.iter().enumerate().map(cell).collect::<Result<_, _>>().map(Some)
    }

    async fn batch(&mut self, sql: &str) -> Result<(), Failure> {
        Ok(self.batch_execute(sql).await?)
    }
}

impl Value<'_> {
    fn kind(&self) -> Type {
        match self {
            Value::Int(_) => Type::INT8,
            Value::Bool(_) => Type::BOOL,
            Value::Text(_) => Type::TEXT,
            Value::Bytes(_) => Type::BYTEA,
            Value::ArrayOf(_) => Type::BYTEA_ARRAY,
        }
    }
}

impl ToSql for Value<'_> {
    fn to_sql(
        &self,
        kind: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Value::Int(value) => value.to_sql(kind, out),
            Value::Bool(value) => value.to_sql(kind, out),
            Value::Text(value) => value.to_sql(kind, out),
            Value::Bytes(value) => value.to_sql(kind, out),
            Value::ArrayOf(value) => [*value].as_slice().to_sql(kind, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true // each is sent with its own type
    }

    to_sql_checked!();
}
