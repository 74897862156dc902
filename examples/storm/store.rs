//! The choice of the engine's store.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use nevertwice::{Engine, EngineBuilder};

#[derive(Debug, Clone)]
pub(crate) enum StoreArg {
    Memory,
    Sqlite(PathBuf),
    Redis(String),
}

impl FromStr for StoreArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<StoreArg, Self::Err> {
        match text.split_once(':') {
            None if text == "memory" => Ok(StoreArg::Memory),
            Some(("sqlite", path)) if !path.is_empty() => Ok(StoreArg::Sqlite(path.into())),
            Some((scheme, _)) if scheme.starts_with("redis") => Ok(StoreArg::Redis(text.to_owned())),
            Some(_) | None => Err("a store is memory, sqlite:PATH or redis://HOST"),
        }
    }
}

impl fmt::Display for StoreArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreArg::Memory => f.write_str("memory"),
            StoreArg::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            // A URL may have a password before the host.
            StoreArg::Redis(url) => match (url.split_once("://"), url.rsplit_once('@')) {
                (Some((scheme, _)), Some((_, host))) => write!(f, "{scheme}://***@{host}"),
                (_, _) => f.write_str(url),
            },
        }
    }
}

/// Opens a store. Every backend is a cargo feature, absent unless enabled.
pub(crate) async fn open(store: &StoreArg) -> Result<EngineBuilder, Box<dyn Error>> {
    #[cfg(any(feature = "sqlite", feature = "redis"))]
    let trouble = |error: nevertwice::StoreError| format!("cannot open the store {store}: {error}");
    Ok(match store {
        #[cfg(feature = "memory")]
        StoreArg::Memory => {
            let unbounded = nevertwice::MemoryStore::builder().max_records(usize::MAX).max_bytes(usize::MAX);
            Engine::builder(unbounded.build())
        }
        #[cfg(feature = "sqlite")]
        StoreArg::Sqlite(path) => Engine::builder(nevertwice::SqliteStore::open(path).map_err(trouble)?),
        #[cfg(feature = "redis")]
        StoreArg::Redis(url) => Engine::builder(nevertwice::RedisStore::connect(url).await.map_err(trouble)?),
        #[allow(unreachable_patterns, reason = "unless every backend is built in")]
        StoreArg::Memory | StoreArg::Sqlite(_) | StoreArg::Redis(_) => {
            let feature = match store {
                StoreArg::Memory => "memory",
                StoreArg::Sqlite(_) => "sqlite",
                StoreArg::Redis(_) => "redis",
            };
            return Err(format!(
                "this was built without the feature `{feature}`; \
                 try: cargo run --features {feature} --example storm -- --store {store}"
            )
            .into());
        }
    })
}
