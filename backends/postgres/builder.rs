//! The settings of a store: [`PostgresStoreBuilder`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rustls::ClientConfig;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};

use super::connection::{Connections, Settings};
use super::error::{store_error, unusable};
use super::inspection::{Failure, READ_ONLY, REPLICA};
use super::listener::PostgresListener;
use super::loads::Loads;
use super::notifier::Notifier;
use super::purge::Purges;
use super::reads::Reads;
use super::schema::Names;
use super::swap::Swaps;
use super::transaction::Own;
use super::{Inner, PostgresStore, Warning, in_tokio, migration, tls};
use crate::backends::shared::batcher::Batcher;
use crate::backends::shared::waiters::Waiters;
use crate::error::StoreError;
use crate::process::Process;

/// The value of `keepalives_idle` that the client has by itself, under which a dead server is
/// noticed after two hours.
const CLIENTS_KEEPALIVE: Duration = Duration::from_secs(2 * 60 * 60);
const KEEPALIVE: Duration = Duration::from_secs(10);
/// The time after which a server that acknowledges nothing is given up.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// Sets up a [`PostgresStore`]; made by [`PostgresStore::builder`].
#[must_use = "a builder does nothing until `connect` is called"]
pub struct PostgresStoreBuilder {
    config: Result<Config, StoreError>,
    names: Result<Names, StoreError>,
    tls: Option<ClientConfig>,
    creates: bool,
    read_only: bool,
    connect_timeout: Duration,
    answer_timeout: Duration,
    recheck_every: Duration,
    connections: usize,
    replicas: u8,
}

impl PostgresStoreBuilder {
    pub(super) fn new(config: Result<Config, StoreError>) -> PostgresStoreBuilder {
        PostgresStoreBuilder {
            config,
            names: Ok(Names::default()),
            tls: None,
            creates: true,
            read_only: false,
            connect_timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(2),
            recheck_every: Duration::from_secs(60),
            connections: 8,
            replicas: 0,
        }
    }

    /// Sets the database schema, which must exist, and the table. **Default `public` and
    /// `nevertwice`.** The names of a store's other tables and of its functions start with the
    /// table's. Stores of different tables do not see each other's records.
    pub fn table(mut self, schema: &str, table: &str) -> PostgresStoreBuilder {
        self.names = Names::new(schema, table);
        self
    }

    /// Chooses between creating the tables, where there are none, and refusing to connect then.
    /// **Default true.** The role needs `CREATE` on the schema for it. Applications that run
    /// [`schema`](super::schema) in migrations of their own set this to false.
    pub fn create_tables(mut self, creates: bool) -> PostgresStoreBuilder {
        self.creates = creates;
        self
    }

    /// Opens the store for reading only, as an operator's tool does: `load`, `scan` and `unsettled`
    /// work, and every write fails with [`StoreError::Unusable`]. **Default: for writing too.**
    ///
    /// Nothing is created. The role needs `SELECT` on the table and on the one ending in `_meta`,
    /// and no more. A standby and a server that is read-only are accepted.
    pub fn read_only(mut self) -> PostgresStoreBuilder {
        self.read_only = true;
        self.creates = false;
        self
    }

    /// Sets the TLS settings, such as the certificate of a private authority. **Default**: the root
    /// certificates of the system. `sslmode` in the URL decides if TLS is used: with `prefer`, its
    /// default, it is used if the server offers it, and then its certificate is verified.
    pub fn tls(mut self, config: ClientConfig) -> PostgresStoreBuilder {
        self.tls = Some(config);
        self
    }

    /// Bounds the time for opening a connection. **Default 2 s.**
    pub fn connect_timeout(mut self, limit: Duration) -> PostgresStoreBuilder {
        self.connect_timeout = limit;
        self
    }

    /// Bounds the time that the server may take to answer. **Default 2 s.** An engine repeats an
    /// unanswered call until its [`call_timeout`](crate::Policy::call_timeout), of which this
    /// should be less than half. Nothing is cancelled on the server.
    pub fn answer_timeout(mut self, limit: Duration) -> PostgresStoreBuilder {
        self.answer_timeout = limit;
        self
    }

    /// Bounds the time for which a connection is used. **Default 60 s.** The next one inspects its
    /// server again, so this is how long a changed setting can go unnoticed, or a server that was
    /// replaced but still answers. `Duration::ZERO` connects anew for each batch.
    pub fn recheck_every(mut self, time: Duration) -> PostgresStoreBuilder {
        self.recheck_every = time;
        self
    }

    /// Bounds the number of connections. **Default 8**, at least 3. Up to a third of them read; of
    /// the others two write at a time as long as the server answers. One more is open while there
    /// are waiters.
    pub fn connections(mut self, most: usize) -> PostgresStoreBuilder {
        self.connections = most.max(3);
        self
    }

    /// Requires that this many standbys have each write before it is acknowledged. **Default 0.**
    /// The server has to be set up for it (`synchronous_standby_names`), and is refused otherwise.
    /// The [`durability`](crate::store::Store::durability) is then `Replicated`.
    pub fn replicas(mut self, count: u8) -> PostgresStoreBuilder {
        self.replicas = count;
        self
    }

    /// Connects, inspects the server, and creates the tables if there are none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the server does not answer, or cannot serve at present.
    /// [`StoreError::Unusable`] if the URL is invalid, the login is refused, the role lacks a
    /// right, the tables are missing and not to be created, belong to another application or to a
    /// newer release, or the server is a standby, read-only, or has too few standbys of its own.
    pub async fn connect(self) -> Result<PostgresStore, StoreError> {
        in_tokio()?;
        let (mut config, names) = (self.config?, self.names?);
        normalise(&mut config);
        if self.read_only {
            config.target_session_attrs(TargetSessionAttrs::Any);
        }
        let mut warnings = Vec::new();
        if is_exposed(&config) {
            warnings.push(Warning::PlainTcp);
        }
        let settings = Settings {
            config,
            tls: tls::connector(self.tls)?,
            names,
            connect_timeout: self.connect_timeout,
            answer_timeout: self.answer_timeout,
            recheck_every: self.recheck_every,
            replicas: if self.read_only { 0 } else { self.replicas },
            read_only: self.read_only,
        };
        let reads = (self.connections / 3).max(1);
        let connections = Arc::new(Connections::new(settings, [reads, self.connections - reads]));
        let has_functions = connections.first(self.creates).await?;
        if !has_functions && !self.read_only {
            warnings.push(Warning::NoFunctions);
        }
        let identity = connections.identity().ok_or_else(super::error::malformed)?;
        let names = &connections.settings.names;
        let (swaps, reads, own) = (Swaps::new(names), Reads::new(names), Own::new(names));
        let purges = Purges::new(names);
        // Waiting for a connection, opening it, and the repetitions of a batch.
        let delivery_limit = (self.connect_timeout.saturating_add(self.answer_timeout)).saturating_mul(5);
        let loads = Arc::new(Loads::new(&connections, delivery_limit));
        Ok(PostgresStore(Arc::new_cyclic(|inner| Inner {
            waiters: Waiters::new(Arc::new(PostgresListener::new(
                inner.clone(),
                self.connect_timeout,
                self.answer_timeout,
            ))),
            notifier: Notifier::new(&identity),
            swaps,
            reads,
            loads,
            purges,
            own,
            connections: Arc::clone(&connections),
            identity,
            batcher: Batcher::default(),
            delivery_limit,
            locked_at: AtomicU64::new(0),
            warnings,
            process: Process::current(),
        })))
    }
}

/// Sets what a URL left open so that a dead or demoted server is noticed.
pub(super) fn normalise(config: &mut Config) {
    if config.get_keepalives_idle() == CLIENTS_KEEPALIVE {
        config.keepalives_idle(KEEPALIVE).keepalives_interval(KEEPALIVE / 2).keepalives_retries(3);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(USER_TIMEOUT);
    }
    if config.get_application_name().is_none() {
        config.application_name("nevertwice");
    }
    if config.get_hosts().len() > 1 {
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
    }
}

impl Connections {
    /// Opens the first connection, and creates the tables if there are none and `creates`. Returns
    /// true if the functions are there.
    async fn first(&self, creates: bool) -> Result<bool, StoreError> {
        let unsuitable = |error: StoreError| match error {
            // A store that is open waits for the primary; a new one was given the wrong address.
            StoreError::Unavailable { detail, .. } if [REPLICA, READ_ONLY].contains(&detail.as_str()) => {
                unusable(detail)
            }
            StoreError::Unavailable { .. }
            | StoreError::Full { .. }
            | StoreError::Corrupt { .. }
            | StoreError::Unusable { .. } => error,
        };
        let (connection, report) = self.dial(None).await.map_err(unsuitable)?;
        if self.settings.replicas > report.replicas {
            return Err(unusable(format!(
                "its commits wait for {} standbys, not for {}: see synchronous_standby_names and synchronous_commit",
                report.replicas, self.settings.replicas
            )));
        }
        if report.tables.is_none() {
            let Names { schema, table } = &self.settings.names;
            if !creates {
                return Err(unusable(format!(
                    "there is no table {schema}.{table}: run the SQL of nevertwice::postgres::schema, or let the store \
                     create its tables"
                )));
            }
            let created = migration::create(&connection.client, &self.settings.names);
            match tokio::time::timeout(self.settings.answer_timeout * 5, created).await {
                Ok(Ok(())) => {}
                Ok(Err(Failure::Client(error))) => return Err(store_error(&error)),
                Ok(Err(Failure::Refused(error))) => return Err(error),
                Err(_) => {
                    return Err(super::error::unavailable("no answer in time while creating the tables"));
                }
            }
        }
        drop(connection);
        self.open_first().await
    }
}

/// True if traffic to one of the hosts can be read on the way.
fn is_exposed(config: &Config) -> bool {
    let is_remote = |host: &Host| match host {
        Host::Tcp(name) => {
            name.parse::<std::net::IpAddr>().map_or(name != "localhost", |ip| !ip.is_loopback())
        }
        #[cfg(unix)]
        Host::Unix(_) => false,
    };
    config.get_ssl_mode() != SslMode::Require && config.get_hosts().iter().any(is_remote)
}

impl fmt::Debug for PostgresStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Leaves out the URL, which may hold a password.
        f.debug_struct("PostgresStoreBuilder")
            .field("names", &self.names)
            .field("read_only", &self.read_only)
            .field("connect_timeout", &self.connect_timeout)
            .field("answer_timeout", &self.answer_timeout)
            .field("connections", &self.connections)
            .field("replicas", &self.replicas)
            .finish_non_exhaustive()
    }
}
