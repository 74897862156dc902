//! Swaps by the functions of the schema.

use tokio_postgres::types::Type;
use tokio_postgres::{Error, Row};

use super::{Answer, Answers, Item, PATIENCE, Parameter, Way};
use crate::backends::postgres::connection::{Connection, Named};
use crate::backends::postgres::error::malformed;
use crate::backends::postgres::row::{Statements, snapshot, stamp};
use crate::backends::postgres::schema::Names;
use crate::key::RecordId;
use crate::store::Swap;

/// The statements for swaps.
#[derive(Debug)]
pub(in super::super) struct Swaps {
    one: String,
    together: String,
    each: String,
    /// The schema and table: the last parameter of `one` and `together`.
    name: String,
    statements: Statements,
}

impl Swaps {
    pub(in super::super) fn new(names: &Names) -> Swaps {
        let name = names.path();
        let call = |function: &str| names.qualify(&format!("SELECT * FROM \"nevertwice_{function}\""));
        // The condition is evaluated before the function is called: see `Connection::ask`.
        let checked = |function| format!("{}($1, $2, $3, $4, $5, $6) WHERE $7 = '{name}'", call(function));
        Swaps {
            one: checked("swap_one_v1"),
            together: checked("swap_together_v1"),
            each: format!("{}($1, $2, $3, $4, $5, $6, $7)", call("swap_v1")),
            name,
            statements: Statements::new(names),
        }
    }

    pub(super) async fn send(
        &self,
        connection: &Connection,
        items: &[Item],
        way: Way,
    ) -> Result<Answers, Error> {
        let answers = match (items, way) {
            _ if !connection.has_functions => self.statements.send(connection, items).await?,
            ([item], Way::Together | Way::Each) => vec![self.send_one(connection, item).await?],
            (items, Way::Together) => return self.send_together(connection, items).await,
            (items, way) => self.send_each(connection, items, way == Way::Careful).await?,
        };
        Ok(answers.into_iter().map(Some).collect())
    }

    async fn send_one(&self, connection: &Connection, item: &Item) -> Result<Answer, Error> {
        let (id, expected) = (item.id.as_bytes().as_slice(), item.expected());
        let parameters: [Parameter<'_>; 7] = [
            (&id, Type::BYTEA),
            (&expected, Type::INT8),
            (&item.value.keep, Type::INT8),
            (&item.value.evidence, Type::BOOL),
            (&item.value.record, Type::BYTEA),
            (&PATIENCE[0], Type::TEXT),
            (&self.name, Type::TEXT),
        ];
        let rows = connection.ask(Named::SwapOne, &self.one, &parameters).await?;
        let Some(row) = rows.first() else {
            connection.distrust_names();
            return Ok(Err(malformed()));
        };
        answer(&item.id, row, 0)
    }

    async fn send_together(&self, connection: &Connection, items: &[Item]) -> Result<Answers, Error> {
        let columns = Columns::of(items);
        let parameters = columns.with(&PATIENCE[0], (&self.name, Type::TEXT));
        let rows = connection.ask(Named::SwapTogether, &self.together, &parameters).await?;
        let mut answers: Answers = items.iter().map(|_| None).collect();
        for row in &rows {
            let id: &[u8] = row.try_get(0)?;
            if let Ok(at) = items.binary_search_by(|item| item.id.as_bytes().as_slice().cmp(id)) {
                answers[at] = Some(answer(&items[at].id, row, 1)?);
            }
        }
        Ok(answers)
    }

    async fn send_each(
        &self,
        connection: &Connection,
        items: &[Item],
        careful: bool,
    ) -> Result<Vec<Answer>, Error> {
        let columns = Columns::of(items);
        let parameters = columns.with(&PATIENCE[usize::from(careful)], (&careful, Type::BOOL));
        let rows = connection.client.query_typed(&self.each, &parameters).await?;
        let mut rows = rows.iter();
        items
            .iter()
            .map(|item| rows.next().map_or(Ok(Err(malformed())), |row| answer(&item.id, row, 0)))
            .collect()
    }
}

/// The parameters of many swaps, by column.
struct Columns<'a> {
    ids: Vec<&'a [u8]>,
    expected: Vec<Option<i64>>,
    keeps: Vec<i64>,
    evidence: Vec<bool>,
    records: Vec<Option<&'a [u8]>>,
}

impl<'a> Columns<'a> {
    fn of(items: &'a [Item]) -> Columns<'a> {
        Columns {
            ids: items.iter().map(|item| item.id.as_bytes().as_slice()).collect(),
            expected: items.iter().map(Item::expected).collect(),
            keeps: items.iter().map(|item| item.value.keep).collect(),
            evidence: items.iter().map(|item| item.value.evidence).collect(),
            records: items.iter().map(|item| item.value.record.as_deref()).collect(),
        }
    }

    fn with<'b>(&'b self, patience: &'b &str, last: Parameter<'b>) -> [Parameter<'b>; 7] {
        [
            (&self.ids, Type::BYTEA_ARRAY),
            (&self.expected, Type::INT8_ARRAY),
            (&self.keeps, Type::INT8_ARRAY),
            (&self.evidence, Type::BOOL_ARRAY),
            (&self.records, Type::BYTEA_ARRAY),
            (patience, Type::TEXT),
            last,
        ]
    }
}

/// Reads a row of a function's answer, from this column on.
fn answer(id: &RecordId, row: &Row, from: usize) -> Result<Answer, Error> {
    let Some(is_done) = row.try_get::<_, Option<bool>>(from)? else { return Ok(Ok(None)) };
    let (at, now): (i64, i64) = (row.try_get(from + 1)?, row.try_get(from + 2)?);
    if is_done {
        return Ok(stamp(id, at).map(|at| Some(Swap::Done(at))));
    }
    let present: Option<&[u8]> = row.try_get(from + 3)?;
    Ok(snapshot(id, now, present.map(|bytes| (at, bytes))).map(|found| Some(Swap::Conflict(found))))
}
