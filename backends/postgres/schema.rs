//! The tables' names, versions and definition.

use super::error::unusable;
use crate::error::StoreError;

/// The tables, index, sequence and functions of a store, as plain SQL for applications that run
/// their own migrations: those of a store with the default name, `public.nevertwice`.
/// [`schema`] returns them under another name.
///
/// A store that finds them creates nothing, so that its role needs no right to.
pub const SCHEMA: &str = include_str!("schema.sql");

/// The version of [`SCHEMA`], and the only one that this release uses. A later release migrates
/// from this version on.
pub const SCHEMA_VERSION: i32 = 1;

/// The server's time in microseconds, as an expression in every statement that asks for it.
pub(super) const NOW: &str = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint";

/// The line of [`SCHEMA`] after which the functions follow.
const FUNCTIONS: &str = "-- Functions.";
/// The name of a table in [`SCHEMA`], up to its end.
const PLACEHOLDER: &str = "\"nevertwice";
/// The longest name of a schema or table. PostgreSQL cuts names at 63 bytes, and the other names
/// are longer than the table's.
const LONGEST: usize = 40;

/// Returns [`SCHEMA`] for a store of this `table` in this database schema, which must exist.
///
/// ```
/// let sql = nevertwice::postgres::schema("orders", "idempotency")?;
/// assert!(sql.contains(r#"CREATE TABLE "orders"."idempotency" ("#));
/// # Ok::<(), nevertwice::StoreError>(())
/// ```
///
/// # Errors
/// [`StoreError::Unusable`] if a name is not 1 to 40 letters, digits and underscores.
pub fn schema(schema: &str, table: &str) -> Result<String, StoreError> {
    Ok(Names::new(schema, table)?.qualify(SCHEMA))
}

/// The checked names of a store's schema and table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) schema: String,
    pub(super) table: String,
}

impl Names {
    /// The characters are restricted, so that the names need no escaping in any statement.
    pub(super) fn new(schema: &str, table: &str) -> Result<Names, StoreError> {
        for name in [schema, table] {
            let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if !is_plain || name.is_empty() || name.len() > LONGEST {
                return Err(unusable(format!(
                    "the name of its schema or table is not 1 to {LONGEST} letters, digits and underscores"
                )));
            }
        }
        Ok(Names { schema: schema.to_owned(), table: table.to_owned() })
    }

    /// Returns the definition of the tables, and the same with the functions.
    pub(super) fn definitions(&self) -> (String, String) {
        let tables = SCHEMA.split(FUNCTIONS).next().unwrap_or_default();
        (self.qualify(tables), self.qualify(SCHEMA))
    }

    /// Returns both in one text, without quotes.
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.schema, self.table)
    }

    /// Replaces `"nevertwice` in `sql`, at the start of each name, by these names.
    pub(super) fn qualify(&self, sql: &str) -> String {
        sql.replace(PLACEHOLDER, &format!("\"{}\".\"{}", self.schema, self.table))
    }
}

impl Default for Names {
    fn default() -> Names {
        Names { schema: "public".to_owned(), table: "nevertwice".to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_need_no_escaping() {
        for bad in ["", "a b", "a\"b", "a'b", "a;b", "é", &"a".repeat(41)] {
            assert!(Names::new(bad, "t").is_err() && Names::new("s", bad).is_err(), "{bad}");
        }
        assert!(Names::new("Orders_1", "user").is_ok());
    }

    #[test]
    fn every_name_is_qualified() {
        let sql = schema("s", "t").unwrap();
        assert!(!sql.contains("\"nevertwice"));
        assert!(sql.contains(r#"CREATE TABLE "s"."t_meta" ("#) && sql.contains(r#"'"s"."t"'::regclass"#));
    }
}
