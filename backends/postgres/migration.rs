//! The creation of the tables.

use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error};

use super::error::is_forbidden;
use super::inspection::{Failure, ServerReport};
use super::schema::Names;

/// The class of the advisory lock that creators take: the first bytes of `nevertwice`.
const LOCK: &str = "SELECT pg_advisory_xact_lock(1853187702, hashtext($1))";

/// Creates the tables in one transaction, unless another process already did.
pub(super) async fn create(client: &Client, names: &Names) -> Result<(), Failure> {
    client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
    let created = create_in_transaction(client, names).await;
    client.batch_execute(if created.is_ok() { "COMMIT" } else { "ROLLBACK" }).await?;
    created
}

async fn create_in_transaction(client: &Client, names: &Names) -> Result<(), Failure> {
    let name = names.qualify("\"nevertwice\"");
    let name: &(dyn ToSql + Sync) = &name;
    client.query_typed(LOCK, &[(name, Type::TEXT)]).await?;
    if ServerReport::ask(client, names, false).await?.tables.is_some() {
        return Ok(());
    }
    let (tables, all) = names.definitions();
    match attempt(client, &all).await {
        // The role may create tables, but no functions.
        Err(error) if is_forbidden(&error) => Ok(attempt(client, &tables).await?),
        created => Ok(created?),
    }
}

/// Runs the definitions, and leaves nothing of them if one fails.
async fn attempt(client: &Client, sql: &str) -> Result<(), Error> {
    client.batch_execute("SAVEPOINT nevertwice").await?;
    let created = client.batch_execute(sql).await;
    if created.is_err() {
        client.batch_execute("ROLLBACK TO SAVEPOINT nevertwice").await?;
    }
    created
}
