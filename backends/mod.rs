//! The stores that ship with the crate, one per cargo feature.
//!
//! | feature | store | acknowledged writes survive | runs on |
//! |---|---|---|---|
//! | `memory` | `memory::MemoryStore` | nothing ([`Durability::Memory`](crate::Durability::Memory)) | any executor |
//! | `sqlite` | `sqlite::SqliteStore` | power cuts ([`Durability::Power`](crate::Durability::Power)); with `synchronous=NORMAL` only `kill -9` | any executor |
//! | `postgres` | `postgres::PostgresStore` | power cuts, with `fsync`, `full_page_writes` and `synchronous_commit` on; the loss of the primary with synchronous standbys | tokio |
//! | `redis` | `redis::RedisStore` | depends on the server's AOF: `always` survives power cuts, `everysec` `kill -9`, off nothing | tokio |
//!
//! A backend implements [`Store`](crate::store::Store), contains no rules, and passes
//! `conformance!` (feature `testing`).

#[cfg(feature = "memory")]
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(any(feature = "memory", feature = "sqlite", feature = "redis", feature = "postgres"))]
mod shared;
#[cfg(feature = "sqlite")]
pub mod sqlite;

#[cfg(feature = "memory")]
pub use self::memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use self::postgres::{PostgresOutbox, PostgresStore};
#[cfg(feature = "redis")]
pub use self::redis::RedisStore;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use self::shared::tx_lease::TxLease;
#[cfg(feature = "sqlite")]
pub use self::sqlite::{SqliteOutbox, SqliteStore};
