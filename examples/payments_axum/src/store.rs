//! The choice of the store of the keys.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nevertwice::{Engine, EngineBuilder, MemoryStore, PostgresStore, RedisStore, SqliteStore};

#[derive(Debug, Clone)]
pub(crate) enum StoreArg {
    Memory,
    Sqlite(PathBuf),
    Redis(String),
    Postgres(String),
}

impl StoreArg {
    /// The default: a file of its own, `payments.keys.db` beside `payments.db`.
    pub(crate) fn beside(ledger: &Path) -> StoreArg {
        StoreArg::Sqlite(ledger.with_extension("keys.db"))
    }
}

impl FromStr for StoreArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<StoreArg, Self::Err> {
        match text.split_once(':') {
            None if text == "memory" => Ok(StoreArg::Memory),
            Some(("sqlite", path)) if !path.is_empty() => Ok(StoreArg::Sqlite(path.into())),
            Some(("redis" | "rediss" | "valkey" | "valkeys", _)) => Ok(StoreArg::Redis(text.to_owned())),
            Some(("postgres" | "postgresql", _)) => Ok(StoreArg::Postgres(text.to_owned())),
            Some(_) | None => {
                Err("a store is sqlite:PATH, redis://HOST:PORT, postgres://USER@HOST/DATABASE or memory")
            }
        }
    }
}

pub(crate) async fn open(store: &StoreArg) -> Result<EngineBuilder, Box<dyn Error>> {
    let failed = |error: nevertwice::StoreError| format!("cannot open the store: {error}");
    Ok(match store {
        StoreArg::Memory => Engine::builder(MemoryStore::new()),
        StoreArg::Sqlite(path) => Engine::builder(SqliteStore::open(path).map_err(failed)?),
        StoreArg::Postgres(url) => Engine::builder(PostgresStore::connect(url).await.map_err(failed)?),
        StoreArg::Redis(url) => Engine::builder(RedisStore::connect(url).await.map_err(failed)?),
    })
}
