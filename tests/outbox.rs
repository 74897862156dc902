//! The outbox: one suite for every database, and what is particular to each.
#![cfg(any(feature = "sqlite", feature = "postgres"))]
#![allow(clippy::wildcard_enum_match_arm)] // whatever else it is, the test fails
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "children report, and waits have deadlines"
)]

#[path = "support/children.rs"]
mod children;
#[path = "outbox/crashes.rs"]
mod crashes;
#[cfg(feature = "postgres")]
#[path = "outbox/on_postgres.rs"]
mod on_postgres;
#[cfg(feature = "sqlite")]
#[path = "outbox/on_sqlite.rs"]
mod on_sqlite;
#[cfg(feature = "postgres")]
#[path = "support/postgres.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod server;
#[path = "outbox/suite.rs"]
mod suite;
