//! The check and the creation of the tables.

use rand::TryRng;
use rand::rngs::SysRng;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::anchor::sealed;
use super::error::{Error, Result};

/// The version of the tables that this release creates, and the only one it uses.
const VERSION: i64 = 3;
/// The first released version. A later release migrates tables from this version on, in [`make`],
/// in the same transaction that finds them. Earlier versions are refused.
const FIRST_RELEASED: i64 = 3;
const SCHEMA: &str = include_str!("schema.sql");

/// Returns true if there are tables of a version that this release uses. Reads a consistent
/// snapshot: another process may be creating them.
pub(super) fn is_there(db: &Connection, table: &str) -> Result<bool> {
    check(&Transaction::new_unchecked(db, TransactionBehavior::Deferred)?, table)
}

/// Creates the tables in one transaction, unless another process already did.
pub(super) fn make(db: &Connection, table: &str) -> Result<()> {
    let transaction = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    if !check(&transaction, table)? {
        // From the operating system: a machine copied while running would draw the same bytes
        // twice.
        let mut store = vec![0; 16];
        SysRng
            .try_fill_bytes(&mut store)
            .map_err(|error| Error::unusable(format!("no random bytes: {error}")))?;
        let sql = SCHEMA.replace("{table}", table).replace("{version}", &VERSION.to_string());
        transaction.execute_batch(&sql.replace("{store}", &hex::encode(sealed(store))))?;
    }
    Ok(transaction.commit()?)
}

/// Checks that the tables exist and have a known version. Refuses any partial state.
fn check(db: &Transaction<'_>, table: &str) -> Result<bool> {
    let meta = format!("{table}_meta");
    let exists = |name: &str| -> Result<bool> {
        let sql = "SELECT count(*) FROM main.sqlite_schema WHERE name = ?1 COLLATE NOCASE";
        Ok(db.query_row(sql, [name], |row| row.get::<_, i64>(0))? > 0)
    };
    match (exists(table)?, exists(&meta)?) {
        (false, false) => return nothing_lost(db).map(|()| false),
        (true, true) => {}
        (true, false) => {
            return Err(Error::unusable(format!("it has a table {table} that is not a store's")));
        }
        (false, true) => return Err(Error::unusable(format!("it has a table {meta} but no {table}"))),
    }
    let sql = format!("SELECT version FROM main.\"{meta}\" WHERE one = 1");
    let version: Option<i64> = db.query_row(&sql, [], |row| row.get(0)).optional()?;
    let detail = match version {
        Some(VERSION) => return Ok(true),
        Some(newer) if newer > VERSION => format!(
            "its tables are of version {newer}, this release knows {VERSION}; they are left as they are"
        ),
        Some(older) if (1..FIRST_RELEASED).contains(&older) => format!(
            "its tables are of version {older}, from before the first release, and cannot be read; they are left as \
             they are: take another file or table"
        ),
        Some(_) | None => format!("table {meta} names no version that was ever written"),
    };
    Err(Error::unusable(detail))
}

/// Refuses a file with pages in use but an empty schema: the schema is damaged.
fn nothing_lost(db: &Transaction<'_>) -> Result<()> {
    let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0));
    let tables = number("SELECT count(*) FROM main.sqlite_schema")?;
    let pages = number("PRAGMA main.page_count")? - number("PRAGMA main.freelist_count")?;
    // The first page holds the schema. In a file with auto-vacuum the second is a pointer map.
    if tables == 0 && pages > 2 {
        return Err(Error::unusable("its schema is empty, but its pages are in use"));
    }
    Ok(())
}
