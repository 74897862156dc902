//! The PostgreSQL store.

mod error;
mod row;
mod schema;

pub use self::schema::{SCHEMA, SCHEMA_VERSION, schema};
/// The `tokio-postgres` that the store is built with.
pub use ::tokio_postgres;
