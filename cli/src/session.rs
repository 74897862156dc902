//! The store that a command works on: [`Session`].

mod redis;

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nevertwice::sqlite::SqliteReader;
use nevertwice::store::{Cursor, Page, Store};
use nevertwice::{Engine, MemoryStore, PostgresStore, RecordId, RedisStore, SqliteStore, StoreError};

use crate::args::Global;
use crate::failure::Failure;

/// The largest response that an operator may record, in bytes.
const MAX_RESPONSE: usize = 16 << 20;
/// The bounds of `--timeout`. No sum or multiple of what is in them overflows.
const TIMEOUTS: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(86_400);
/// The number of times that a page is read before its error counts.
const TRIES: u32 = 3;

/// An open store and an engine on it.
#[derive(Debug)]
pub struct Session {
    /// The engine.
    pub engine: Engine,
    /// The same store, for what an engine has no call for.
    pub store: Arc<dyn Store>,
    /// The kind of store.
    pub kind: Kind,
    timeout: Duration,
}

/// The store by its kind.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Kind {
    /// A SQLite file, opened for reading.
    SqliteReader(SqliteReader),
    /// A SQLite file, opened for writing.
    Sqlite(SqliteStore),
    /// A Redis server.
    Redis(RedisStore),
    /// A PostgreSQL server.
    Postgres(PostgresStore),
}

/// The use that a command makes of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads. Changes and creates nothing, and needs no right to.
    Read,
    /// Writes to a store that exists.
    Write,
    /// Writes, and creates the file or tables if there are none.
    Create,
}

impl Session {
    /// Opens the store that the options name.
    ///
    /// # Errors [`Failure::Usage`] if they name none, or not one of a known kind;
    /// [`Failure::Unreachable`] if it cannot be reached, or is missing. No error shows the URL.
    pub async fn open(global: &Global, access: Access) -> Result<Session, Failure> {
        if !TIMEOUTS.contains(&global.timeout) {
            return Err(Failure::Usage("--timeout is at least 10ms, and at most 1day".to_owned()));
        }
        let Some(url) = global.store.as_deref().filter(|url| !url.is_empty()) else {
            return Err(Failure::Usage(
                "name the store: --store URL, or NEVERTWICE_STORE (see nevertwice --help)".to_owned(),
            ));
        };
        let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
        let kind = match scheme.as_str() {
            "sqlite" => sqlite(url, global, access)?,
            "redis" | "rediss" | "redis+unix" | "redis+cluster" | "rediss+cluster" | "redis+sentinel"
            | "rediss+sentinel" => redis(&scheme, url, global, access).await?,
            "postgres" | "postgresql" => postgres(url, global, access).await?,
            _ => {
                return Err(Failure::Usage(
                    "the store is none of sqlite:PATH, redis://, rediss://, redis+cluster://, \
                     redis+sentinel:// and postgres:// \
                     (what was given is not repeated, since it may hold a password)"
                        .to_owned(),
                ));
            }
        };
        Session::on(kind, global)
    }

    fn on(kind: Kind, global: &Global) -> Result<Session, Failure> {
        let store: Arc<dyn Store> = match &kind {
            Kind::SqliteReader(store) => Arc::new(store.clone()),
            Kind::Sqlite(store) => Arc::new(store.clone()),
            Kind::Redis(store) => Arc::new(store.clone()),
            Kind::Postgres(store) => Arc::new(store.clone()),
        };
        let engine = Engine::builder(Arc::clone(&store))
            .call_timeout(global.timeout)
            .max_attempts(global.max_attempts.unwrap_or(u32::MAX))
            .max_response(MAX_RESPONSE);
        let engine = engine.build().map_err(|error| Failure::Usage(error.to_string()))?;
        Ok(Session { engine, store, kind, timeout: global.timeout })
    }

    /// Reads a page of all records, or of those that may be evidence.
    ///
    /// # Errors
    /// The store's, after some tries if they may pass.
    pub async fn page(&self, evidence: bool, after: Option<&Cursor>, limit: usize) -> Result<Page, Failure> {
        let mut tries = 1;
        loop {
            let call =
                if evidence { self.store.unsettled(after, limit) } else { self.store.scan(after, limit) };
            match tokio::time::timeout(self.timeout, call).await {
                Ok(Ok(page)) => return Ok(page),
                Ok(Err(error)) if error.is_transient() && tries < TRIES => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_) if tries < TRIES => {}
                Err(_) => return Err(Failure::Unreachable("no answer in time: see --timeout".to_owned())),
            }
            tries += 1;
        }
    }

    /// The longest time that a call of the store may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// Returns the key that `label` derives from an operation, which needs no store.
pub(crate) fn derived_key(id: &RecordId, label: &str) -> Result<String, Failure> {
    let engine = Engine::builder(MemoryStore::new()).build();
    let engine = engine.map_err(|error| Failure::Refused(error.to_string()))?;
    Ok(engine.derive_key(id, label))
}

fn sqlite(url: &str, global: &Global, access: Access) -> Result<Kind, Failure> {
    unused(&global.prefix, "--prefix", "Redis")?;
    unused(&(global.replicas > 0).then_some(()), "--replicas", "Redis")?;
    let path = url.split_once(':').map_or("", |(_, path)| path);
    // `sqlite:///var/keys.db` is the same as `sqlite:/var/keys.db`.
    let path = path.strip_prefix("//").unwrap_or(path);
    if path.is_empty() {
        return Err(Failure::Usage(
            "sqlite: needs the path of a file: sqlite:/var/lib/app/keys.db".to_owned(),
        ));
    }
    let builder = || {
        let builder = SqliteStore::builder(Path::new(path)).busy_timeout(global.timeout / 3);
        match &global.table {
            Some(table) => builder.table(table),
            None => builder,
        }
    };
    Ok(match access {
        Access::Read => Kind::SqliteReader(builder().open_read_only()?),
        Access::Write => {
            // A store that is opened for writing would make what is missing.
            drop(builder().open_read_only()?);
            Kind::Sqlite(builder().open()?)
        }
        Access::Create => Kind::Sqlite(builder().open()?),
    })
}

async fn redis(scheme: &str, url: &str, global: &Global, access: Access) -> Result<Kind, Failure> {
    unused(&global.table, "--table", "SQLite and PostgreSQL")?;
    let builder = redis::builder(scheme, url)?
        .connection_timeout(global.timeout / 2)
        .response_timeout(global.timeout / 2)
        .replicated(global.replicas);
    let builder = match &global.prefix {
        Some(prefix) => builder.prefix(prefix),
        None => builder,
    };
    let builder = if access == Access::Read { builder.read_only() } else { builder };
    Ok(Kind::Redis(in_time(global, builder.connect()).await?))
}

async fn postgres(url: &str, global: &Global, access: Access) -> Result<Kind, Failure> {
    unused(&global.prefix, "--prefix", "Redis")?;
    unused(&(global.replicas > 0).then_some(()), "--replicas", "Redis")?;
    let builder =
        PostgresStore::builder(url).connect_timeout(global.timeout / 2).answer_timeout(global.timeout / 2);
    let builder = match global.table.as_deref().map(|name| name.split_once('.').unwrap_or(("public", name))) {
        Some((schema, table)) => builder.table(schema, table),
        None => builder,
    };
    let builder = match access {
        Access::Read => builder.read_only(),
        Access::Write => builder.create_tables(false),
        Access::Create => builder,
    };
    Ok(Kind::Postgres(in_time(global, builder.connect()).await?))
}

/// Bounds opening a store: connecting, and several questions about the server.
async fn in_time<T>(
    global: &Global,
    opening: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(global.timeout.saturating_mul(5), opening).await {
        Ok(opened) => Ok(opened?),
        Err(_) => Err(Failure::Unreachable("the store does not answer: see --timeout".to_owned())),
    }
}

fn unused<T>(option: &Option<T>, name: &str, stores: &str) -> Result<(), Failure> {
    match option {
        Some(_) => Err(Failure::Usage(format!("{name} is for {stores}"))),
        None => Ok(()),
    }
}
