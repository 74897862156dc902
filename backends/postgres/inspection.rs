//! The inspection of a server: [`ServerReport`].

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Row};

use super::BACKEND;
use super::error::{unavailable, unusable, wrong_isolation};
use super::schema::{Names, SCHEMA_VERSION};
use super::swap::Parameter;
use crate::durability::Durability;
use crate::error::StoreError;
use crate::store_id::StoreId;

/// The oldest supported server, which has `gen_random_uuid`.
const OLDEST: i32 = 130_000;
/// The columns of the table, and their types. Others are left alone if they need no value.
const COLUMNS: &str = "due integer,evidence boolean,id bytea,keep bigint,record bytea,stamp bigint";

/// The functions, with the types of their parameters.
const FUNCTIONS: [&str; 4] = [
    "\"nevertwice_swap_v1\"(bytea[],bigint[],bigint[],boolean[],bytea[],text,boolean)",
    "\"nevertwice_swap_one_v1\"(bytea,bigint,bigint,boolean,bytea,text)",
    "\"nevertwice_swap_together_v1\"(bytea[],bigint[],bigint[],boolean[],bytea[],text)",
    "\"nevertwice_purge_v1\"(integer)",
];

const SERVER: &str = "SELECT current_setting('server_version_num')::integer, pg_is_in_recovery(), \
     current_setting('transaction_read_only') = 'on', current_setting('default_transaction_isolation'), \
     current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on', \
     current_setting('synchronous_commit'), current_setting('synchronous_standby_names'), \
     concat_ws(' ', pg_postmaster_start_time(), inet_server_addr(), inet_server_port()), \
     current_setting('client_min_messages'), pg_backend_pid()";
const TABLES: &str = "SELECT to_regclass($1)::oid::bigint, to_regclass($2)::oid::bigint, \
     to_regclass($3)::oid::bigint, \
     (SELECT bool_and(coalesce(has_function_privilege(to_regprocedure(f)::oid, 'EXECUTE'), false)) \
     FROM unnest($4) AS f), \
     (SELECT c.relpersistence::text FROM pg_class c WHERE c.oid = to_regclass($1)), \
     (SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, NULL), ',' ORDER BY a.attname COLLATE \"C\") \
     FROM pg_attribute a WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped \
     AND (a.attname IN ('due', 'evidence', 'id', 'keep', 'record', 'stamp') \
     OR a.attnotnull AND NOT a.atthasdef AND a.attidentity = '')), \
     (SELECT system_identifier::text FROM pg_control_system()), \
     (SELECT d.oid::bigint FROM pg_database d WHERE d.datname = current_database())";

/// The facts about a server and its tables that the store depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerReport {
    pub(super) durability: Durability,
    /// The number of synchronous standbys that a commit waits for.
    pub(super) replicas: u8,
    /// The start of the server and its address: another one is another server, or the same after a
    /// restart.
    pub(super) incarnation: String,
    /// True if it is a standby, which only a store for reading accepts.
    pub(super) is_standby: bool,
    /// True if warnings do not arrive, among them that of a cancelled wait for standbys.
    pub(super) hides_warnings: bool,
    /// The process that serves the connection.
    pub(super) backend_pid: i32,
    pub(super) tables: Option<Tables>,
}

/// The tables of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) identity: StoreId,
    /// True if the functions are there and may be called.
    pub(super) has_functions: bool,
}

/// The reason why an inspection failed.
pub(super) enum Failure {
    Client(Error),
    Refused(StoreError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Client(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Refused(error)
    }
}

impl ServerReport {
    /// Inspects the server behind a connection. Refuses one that cannot be used, or that cannot be
    /// written to unless the store is `read_only`; tables that do not exist are for the caller to
    /// create.
    pub(super) async fn ask(
        client: &Client,
        names: &Names,
        read_only: bool,
    ) -> Result<ServerReport, Failure> {
        let row = client.query_typed_one(SERVER, &[]).await?;
        let version: i32 = row.try_get(0)?;
        if version < OLDEST {
            let major = version / 10_000;
            return Err(
                unusable(format!("it is PostgreSQL {major}; 13 is the oldest that is supported")).into()
            );
        }
        if row.try_get(1)? && !read_only {
            return Err(unavailable(REPLICA).into());
        }
        if row.try_get(2)? && !read_only {
            return Err(unavailable(READ_ONLY).into());
        }
        if row.try_get::<_, &str>(3)? != "read committed" {
            return Err(wrong_isolation().into());
        }
        let replicas = standbys(row.try_get(7)?);
        let mut report = ServerReport {
            durability: durability(row.try_get(4)?, row.try_get(5)?, row.try_get(6)?),
            replicas: if is_synchronous(row.try_get(6)?) { replicas } else { 0 },
            incarnation: row.try_get(8)?,
            is_standby: row.try_get(1)?,
            hides_warnings: ["error", "fatal", "panic"].contains(&row.try_get(9)?),
            backend_pid: row.try_get(10)?,
            tables: None,
        };
        report.tables = report.ask_tables(client, names).await?;
        Ok(report)
    }

    async fn ask_tables(&mut self, client: &Client, names: &Names) -> Result<Option<Tables>, Failure> {
        let [table, meta, mark] =
            ["", "_meta", "_mark"].map(|suffix| names.qualify(&format!("\"nevertwice{suffix}\"")));
        let functions = FUNCTIONS.map(|function| names.qualify(function)).to_vec();
        let parameters: [Parameter<'_>; 4] =
            [(&table, Type::TEXT), (&meta, Type::TEXT), (&mark, Type::TEXT), (&functions, Type::TEXT_ARRAY)];
        let row = client.query_typed_one(TABLES, &parameters).await?;
        let found: [Option<i64>; 3] = [row.try_get(0)?, row.try_get(1)?, row.try_get(2)?];
        if found == [None; 3] {
            return Ok(None);
        }
        if found[1].is_none() {
            return Err(strange(names).into());
        }
        // First, since tables of a newer release may look different. An error that advised other
        // tables would have everything executed again.
        let store = version(client, &meta, names).await?;
        let [Some(table_oid), _, Some(_)] = found else { return Err(strange(names).into()) };
        if row.try_get::<_, Option<&str>>(5)? != Some(COLUMNS) {
            return Err(strange(names).into());
        }
        if row.try_get::<_, Option<&str>>(4)? != Some("p") {
            // An unlogged table is emptied after a crash.
            self.durability = Durability::Memory;
        }
        Ok(Some(Tables { identity: identity(&store, &row, table_oid)?, has_functions: row.try_get(3)? }))
    }
}

/// The details of the errors for servers that cannot be written to.
pub(super) const REPLICA: &str = "it is a standby, which takes no writes: connect to the primary";
pub(super) const READ_ONLY: &str = "its transactions are read-only: see default_transaction_read_only";

/// Checks the version of the tables and returns the random id of the store.
async fn version(client: &Client, meta: &str, names: &Names) -> Result<String, Failure> {
    let sql = format!("SELECT version, store::text FROM {meta}");
    let rows = client.query_typed(&sql, &[]).await.map_err(|error| {
        if super::error::is_missing(&error) { Failure::from(strange(names)) } else { error.into() }
    })?;
    let [row] = rows.as_slice() else { return Err(strange(names).into()) };
    let (version, store): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
    if version > SCHEMA_VERSION {
        return Err(unusable(format!(
            "its tables are of version {version}, this release knows {SCHEMA_VERSION}; they are left as they are: use \
             the release that wrote them, or a later one"
        ))
        .into());
    }
    if version != SCHEMA_VERSION {
        return Err(unusable(format!("its tables name version {version}, which was never released")).into());
    }
    Ok(store)
}

/// Returns the identity of the store: the random id that its tables were created with, and the
/// cluster, database and table that they are in. Replicas of a server share it. A dump that is
/// restored is another store, since the original may still be in use.
fn identity(store: &str, row: &Row, table: i64) -> Result<StoreId, Error> {
    let system: String = row.try_get(6)?;
    let database: i64 = row.try_get(7)?;
    let parts = [store.as_bytes(), system.as_bytes(), &database.to_le_bytes(), &table.to_le_bytes()];
    Ok(StoreId::of(BACKEND, &parts))
}

fn strange(names: &Names) -> StoreError {
    let Names { schema, table } = names;
    unusable(format!(
        "the tables {schema}.{table}, {table}_meta and {table}_mark are not all there, or are not those of a store: \
         name another table or schema; nothing was changed"
    ))
}

/// The failures that a commit survives. Without `synchronous_commit`, even a crash of the server
/// alone loses the last commits.
fn durability(fsync: bool, full_page_writes: bool, synchronous_commit: &str) -> Durability {
    match (synchronous_commit, fsync && full_page_writes) {
        ("off", _) => Durability::Memory,
        (_, false) => Durability::Process,
        (_, true) => Durability::Power,
    }
}

/// Returns true if a commit with this setting waits until standbys have it on their disks.
fn is_synchronous(synchronous_commit: &str) -> bool {
    ["on", "remote_apply"].contains(&synchronous_commit)
}

/// Returns the number of standbys that a commit waits for by `synchronous_standby_names`:
/// `FIRST 2 (a, b, c)`, `ANY 1 (a, b)`, `2 (a, b)`, or a list, which waits for one.
fn standbys(names: &str) -> u8 {
    let names = names.trim();
    if names.is_empty() {
        return 0;
    }
    let Some((method, _)) = names.split_once('(') else { return 1 };
    let number = method.split_whitespace().last().and_then(|number| number.parse().ok());
    number.unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s9_the_number_of_standbys_is_what_a_commit_waits_for() {
        let cases = [("", 0), ("a", 1), ("*", 1), ("a, b", 1), ("FIRST 2 (a, b, c)", 2), ("any 1 (a,b)", 1)];
        for (names, number) in cases.into_iter().chain([("3 (a, b, c)", 3), (" 2(a,b)", 2)]) {
            assert_eq!(standbys(names), number, "{names}");
        }
    }

    #[test]
    fn s9_the_level_is_that_of_the_weakest_setting() {
        assert_eq!(durability(true, true, "on"), Durability::Power);
        assert_eq!(durability(true, true, "local"), Durability::Power);
        assert_eq!(durability(true, false, "on"), Durability::Process);
        assert_eq!(durability(false, true, "remote_apply"), Durability::Process);
        assert_eq!(durability(true, true, "off"), Durability::Memory);
    }
}
