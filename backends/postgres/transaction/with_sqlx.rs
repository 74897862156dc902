//! The sessions of sqlx.

use async_trait::async_trait;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Postgres, Row, Transaction};

use super::session::{Cell, Column, Failure, Session, Value};
use crate::backends::postgres::error;

#[async_trait]
impl Session for PgConnection {
    async fn row(
        &mut self,
        sql: &str,
        values: &[Value<'_>],
        columns: &[Column],
    ) -> Result<Option<Vec<Cell>>, Failure> {
        // The table's name is checked, and values are bound.
        let mut query = sqlx::query(AssertSqlSafe(sql.to_owned()));
        for value in values {
            query = bind(query, value);
        }
        let Some(row) = query.fetch_optional(&mut *self).await? else { return Ok(None) };
        Ok(Some(
            columns
                .iter()
                .enumerate()
                .map(|(at, column)| cell(&row, at, *column))
                .collect::<Result<_, _>>()?,
        ))
    }

    async fn batch(&mut self, sql: &str) -> Result<(), Failure> {
        self.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await?;
        Ok(())
    }
}

#[async_trait]
impl Session for Transaction<'_, Postgres> {
    async fn row(
        &mut self,
        sql: &str,
        values: &[Value<'_>],
        columns: &[Column],
    ) -> Result<Option<Vec<Cell>>, Failure> {
        Session::row(&mut **self, sql, values, columns).await
    }

    async fn batch(&mut self, sql: &str) -> Result<(), Failure> {
        Session::batch(&mut **self, sql).await
    }
}

fn bind<'q>(query: Query<'q, Postgres, PgArguments>, value: &Value<'_>) -> Query<'q, Postgres, PgArguments> {
    match *value {
        Value::Int(value) => query.bind(value),
        Value::Bool(value) => query.bind(value),
        Value::Text(value) => query.bind(value.to_owned()),
        Value::Bytes(value) => query.bind(value.to_owned()),
        Value::ArrayOf(value) => query.bind(vec![value.to_owned()]),
    }
}

fn cell(row: &PgRow, at: usize, column: Column) -> Result<Cell, sqlx::Error> {
    Ok(match column {
        Column::Int => row.try_get::<Option<i64>, _>(at)?.map_or(Cell::Null, Cell::Int),
        Column::Text => row.try_get::<Option<String>, _>(at)?.map_or(Cell::Null, Cell::Text),
        Column::Bytes => row.try_get::<Option<Vec<u8>>, _>(at)?.map_or(Cell::Null, Cell::Bytes),
    })
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Failure {
        let code = error.as_database_error().and_then(|error| error.code()).map(|code| code.into_owned());
        let error = match &code {
            Some(code) => error::sql_error(code),
            None => error::unavailable("the connection failed, or its answer cannot be read"),
        };
        Failure { code, error }
    }
}
