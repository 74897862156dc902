//! Code that an application writes without a library: the least that answers a duplicate. None of
//! it notices another payload under a used key, a worker whose lease was taken over, or a crash
//! between the two steps.

mod memory;
mod postgres;
mod redis;
mod sqlite;

pub(crate) use self::memory::HandMemory;
pub(crate) use self::postgres::HandPostgres;
pub(crate) use self::redis::{HandCluster, HandRedis};
pub(crate) use self::sqlite::{Calls, HandSqlite};
