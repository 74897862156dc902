//! The settings of a store: [`RedisStoreBuilder`].

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use futures_util::future::join_all;

use super::cluster::{Cluster, at};
use super::error::{is_forbidden, unusable};
use super::replication::Replication;
use super::script::Scripts;
use super::sentinel::Sentinels;
use super::shard::{NO_TLS, Settings, Shard};
use super::topology::Topology;
use super::tracking::TrackingConnection;
use super::watch::{Demands, ServerWatch};
use super::{Inner, RedisStore, Warning, in_tokio, is_exposed, store_id};
use crate::durability::Durability;
use crate::error::StoreError;
use crate::process::Process;

/// Sets up a [`RedisStore`]; made by [`RedisStore::builder`], [`RedisStore::cluster`] and
/// [`RedisStore::sentinel`].
#[must_use = "a builder does nothing until `connect` is called"]
pub struct RedisStoreBuilder {
    target: Result<Target, StoreError>,
    login: Option<(String, String)>,
    database: Option<i64>,
    node_tls: Option<bool>,
    #[cfg(any(feature = "redis-rustls", feature = "redis-native-tls"))]
    root_certificate: Option<Vec<u8>>,
    #[cfg(any(feature = "redis-rustls", feature = "redis-native-tls"))]
    client_certificate: Option<[Vec<u8>; 2]>,
    replicas: Option<u8>,
    accepts_no_file: bool,
    prefix: String,
    response_timeout: Duration,
    connection_timeout: Duration,
    clock_slack: Duration,
    assumed: Option<Durability>,
    recheck_every: Duration,
    read_only: bool,
}

/// The servers to connect to.
#[derive(Clone)]
enum Target {
    Client(Client),
    Server(ConnectionInfo),
    Cluster(Vec<ConnectionInfo>),
    Sentinel { sentinels: Vec<ConnectionInfo>, service: String },
}

#[cfg(feature = "redis-rustls")]
impl Target {
    /// True if a connection begins with TLS.
    fn expects_tls(&self) -> bool {
        let is_tls = |info: &ConnectionInfo| matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        match self {
            Target::Client(client) => is_tls(client.get_connection_info()),
            Target::Server(info) => is_tls(info),
            Target::Cluster(infos) | Target::Sentinel { sentinels: infos, .. } => infos.iter().any(is_tls),
        }
    }
}

impl RedisStoreBuilder {
    /// Waits until this many replicas have a write before it is acknowledged, and with that makes
    /// the store [`Durability::Replicated`]. **Default: none.** 0 is the same.
    ///
    /// What is acknowledged is then in the memory of the primary and of `replicas` replicas. It
    /// survives the loss of the primary if one of those that confirmed it is promoted. With 1 and
    /// two replicas or more, a single failure neither loses an acknowledged outcome nor stops the
    /// service. `WAIT`, which it uses, is no consensus: see the guide.
    ///
    /// A write that fewer replicas confirm in time fails as [`StoreError::Unavailable`], although
    /// it stands on the primary; the same owner may repeat it. A server with too few replicas is
    /// refused when connecting, and gets no grants later. So is one that is known to have no
    /// append-only file.
    pub fn replicated(mut self, replicas: u8) -> RedisStoreBuilder {
        self.replicas = Some(replicas).filter(|&replicas| replicas > 0);
        self
    }

    /// Allows [`replicated`](RedisStoreBuilder::replicated) on servers without an append-only file.
    /// **Default: refused.** A primary that restarts by itself before a replica is promoted comes
    /// back empty, its replicas copy that, and everything that was acknowledged is lost. So this is
    /// only for servers that nothing restarts. The store then keeps no more than
    /// [`Durability::Memory`] where [`Durability::Process`] is
    /// [required](crate::EngineBuilder::require).
    pub fn accept_no_append_only_file(mut self) -> RedisStoreBuilder {
        self.accepts_no_file = true;
        self
    }

    /// Sets the user name and password of the data nodes, instead of those in the URLs. With
    /// sentinels the URLs hold the login of the sentinels, so this is the only way to set one.
    /// **Default: of the URLs; with sentinels none.** An empty name is the default user.
    pub fn login(mut self, name: impl Into<String>, password: impl Into<String>) -> RedisStoreBuilder {
        self.login = Some((name.into(), password.into()));
        self
    }

    /// Sets the number of the database. **Default: that of the URL; with sentinels 0.** Clusters
    /// have only 0.
    pub fn database(mut self, number: i64) -> RedisStoreBuilder {
        self.database = Some(number);
        self
    }

    /// Sets whether the data nodes behind sentinels expect TLS. **Default: as the sentinels do**
    /// (`rediss://`). Other stores ignore it.
    pub fn node_tls(mut self, is_on: bool) -> RedisStoreBuilder {
        self.node_tls = Some(is_on);
        self
    }

    /// Trusts only the certificate authorities in this PEM text. **Default: those of the system.**
    /// Ignored with [`builder_with`](RedisStore::builder_with).
    #[cfg(any(feature = "redis-rustls", feature = "redis-native-tls"))]
    pub fn root_certificate(mut self, pem: impl Into<Vec<u8>>) -> RedisStoreBuilder {
        self.root_certificate = Some(pem.into());
        self
    }

    /// Shows this certificate to servers that ask for one: two PEM texts. **Default: none.**
    /// Ignored with [`builder_with`](RedisStore::builder_with).
    #[cfg(any(feature = "redis-rustls", feature = "redis-native-tls"))]
    pub fn client_certificate(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> RedisStoreBuilder {
        self.client_certificate = Some([certificate.into(), key.into()]);
        self
    }

    /// Sets the prefix of all key names. **Default `nevertwice:`.** Stores with different prefixes
    /// do not see each other's records.
    pub fn prefix(mut self, prefix: impl AsRef<str>) -> RedisStoreBuilder {
        prefix.as_ref().clone_into(&mut self.prefix);
        self
    }

    /// Bounds the time that the server may take to answer. **Default 1 s.** An engine repeats an
    /// unanswered call until its [`call_timeout`](crate::Policy::call_timeout), of which this
    /// should be less than a third.
    pub fn response_timeout(mut self, limit: Duration) -> RedisStoreBuilder {
        self.response_timeout = limit;
        self
    }

    /// Bounds the time to connect and log in. **Default 1 s.**
    pub fn connection_timeout(mut self, limit: Duration) -> RedisStoreBuilder {
        self.connection_timeout = limit;
        self
    }

    /// Sets how far the server's clock may be set back, or the clock of a new primary be behind,
    /// without harm. **Default 10 min.** The server keeps every record, and the stamp of every
    /// removed one, for that much longer. With less than a minute every write uses the script,
    /// which is slower.
    pub fn clock_slack(mut self, slack: Duration) -> RedisStoreBuilder {
        self.clock_slack = slack;
        self
    }

    /// Assumes this durability where the server does not reveal its settings
    /// ([`Warning::DurabilityUnverified`](super::Warning::DurabilityUnverified)). It is not
    /// checked, and ignored where the server does reveal them. **Default: the weakest level
    /// consistent with what is known.**
    ///
    /// [`Durability::Replicated`] is for services that keep a log of their own in several places
    /// and answer only once a write is in it, such as MemoryDB in one region. It is assumed
    /// whatever the settings say.
    pub fn assume_durability(mut self, durability: Durability) -> RedisStoreBuilder {
        self.assumed = Some(durability);
        self
    }

    /// Bounds the age of the inspection on which a grant relies. **Default 30 s.** A begin that
    /// finds it older inspects the server first, which takes one round trip of three commands;
    /// without begins there are no such inspections. Reads make one a second.
    ///
    /// For this long after the server is configured to evict, begins may still be granted. The
    /// shorter, the fewer of them can repeat an operation whose record was evicted.
    /// `Duration::ZERO` inspects before every pipeline that contains a begin.
    pub fn recheck_every(mut self, time: Duration) -> RedisStoreBuilder {
        self.recheck_every = time;
        self
    }

    /// Opens the store for reading only, as an operator's tool does: `load`, `scan` and `unsettled`
    /// work, and every write fails with [`StoreError::Unusable`]. **Default: for writing too.**
    ///
    /// No scripts are loaded. The user needs `+get +time` on the keys under the prefix, and `+scan`
    /// to list them. A replica is accepted.
    pub fn read_only(mut self) -> RedisStoreBuilder {
        self.read_only = true;
        self
    }

    /// Connects and inspects the server within the timeouts. Of a cluster, some primaries may be
    /// away: theirs are the keys that cannot be served until they, or others in their place, are
    /// back.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the server does not answer, or cannot serve at present.
    /// [`StoreError::Unusable`] if the URL is invalid or names a database that the server does not
    /// have, the login is refused, or the server's configuration makes it unsafe to use.
    pub async fn connect(self) -> Result<RedisStore, StoreError> {
        in_tokio()?;
        let target = self.target.clone()?;
        #[cfg(feature = "redis-rustls")]
        if target.expects_tls() || self.node_tls == Some(true) {
            provide_crypto();
        }
        let is_cluster = matches!(target, Target::Cluster(_));
        // What is only read waits for no replica.
        let replicas = self.replicas.filter(|_| !self.read_only);
        let settings = Arc::new(Settings {
            prefix: self.prefix.clone().into_bytes(),
            clock_slack: self.clock_slack,
            limits: [self.connection_timeout, self.response_timeout],
            scripts: Scripts::new(),
            watch: Arc::new(ServerWatch::new(Demands {
                assumed: self.assumed,
                every: self.recheck_every,
                is_cluster,
                replicas,
                accepts_no_file: self.accepts_no_file,
                is_read_only: self.read_only,
            })),
            is_cluster,
            replication: replicas.map(|replicas| Replication::new(replicas, self.response_timeout)),
        });
        let topology = self.topology(target, &settings).await?;
        let (_, shards) = topology.shards();
        let inspected = join_all(shards.iter().map(|shard| self.inspect(shard))).await;
        // The others are judged when they are there, by the level of these.
        let may_be_away = is_cluster && inspected.iter().any(Result::is_ok);
        let mut warnings = Vec::new();
        for inspected in inspected {
            match inspected {
                Ok(found) => warnings.extend(found),
                Err(error) if may_be_away && error.is_transient() => {}
                Err(error) => return Err(error),
            }
        }
        let mut seen = HashSet::new();
        warnings.retain(|&warning| seen.insert(warning));
        settings.watch.settle();
        let database = shards.first().map_or(0, |shard| shard.database());
        Ok(RedisStore(Arc::new(Inner {
            topology,
            identity: store_id(database, &self.prefix),
            settings,
            warnings,
            read_only: self.read_only,
            process: Process::current(),
        })))
    }

    /// Inspects a server before its first use, and returns the warnings that later inspections do
    /// not change.
    async fn inspect(&self, shard: &Shard) -> Result<Vec<Warning>, StoreError> {
        let is_cluster = shard.settings.is_cluster;
        let named = |error| if is_cluster { at(&shard.address, error) } else { error };
        for connections in shard.records.lanes() {
            if let Some(doubt) = connections.get().await.map_err(named)?.doubt() {
                return Err(named(unusable(doubt.detail())));
            }
        }
        let (client, limits) = (shard.records.client(), shard.settings.limits);
        let mut warnings = Vec::new();
        if is_exposed(client.get_connection_info().addr()) {
            warnings.push(Warning::PlainTcp);
        }
        if self.read_only {
            return Ok(warnings);
        }
        let waits = shard.settings.replication.is_some();
        shard.settings.scripts.load(shard.records.connections(), waits, is_cluster).await.map_err(named)?;
        // Other failures of this extra connection do not prevent using the store.
        if TrackingConnection::open(client, limits).await.is_err_and(|error| is_forbidden(&error)) {
            warnings.push(Warning::ChangesUnannounced);
        }
        Ok(warnings)
    }

    /// Finds the servers.
    async fn topology(&self, target: Target, settings: &Arc<Settings>) -> Result<Topology, StoreError> {
        Ok(match target {
            Target::Client(client) if self.login.is_none() && self.database.is_none() => {
                Topology::One(Shard::new(&client, settings))
            }
            // The address keeps the client's certificates.
            Target::Client(client) => {
                let info = self.of_node(client.get_connection_info().clone());
                let client = Client::open(info).map_err(|_| unusable(NO_TLS))?;
                Topology::One(Shard::new(&client, settings))
            }
            Target::Server(info) => Topology::One(Shard::new(&self.client(self.of_node(info))?, settings)),
            Target::Cluster(infos) => {
                let seeds = infos.into_iter().map(|info| self.client(self.of_node(info)));
                Topology::Cluster(Cluster::connect(seeds.collect::<Result<_, _>>()?, settings).await?)
            }
            Target::Sentinel { sentinels, service } => {
                let node = sentinels.first().map(|info| self.client(self.of_node(self.behind(info))));
                let node = node.unwrap_or_else(|| Err(unusable("no URL of a sentinel was given")))?;
                let sentinels = sentinels.into_iter().map(|info| self.client(info));
                let sentinels = sentinels.collect::<Result<_, _>>()?;
                Topology::Sentinels(Sentinels::connect(sentinels, service, node, settings).await?)
            }
        })
    }

    /// Applies the login and the database of the data nodes.
    fn of_node(&self, info: ConnectionInfo) -> ConnectionInfo {
        let mut settings = info.redis_settings().clone();
        if let Some((name, password)) = &self.login {
            if !name.is_empty() {
                settings = settings.set_username(name);
            }
            settings = settings.set_password(password);
        }
        if let Some(database) = self.database {
            settings = settings.set_db(database);
        }
        info.set_redis_settings(settings)
    }

    /// Derives the settings of data nodes from those of a sentinel, without its login.
    fn behind(&self, sentinel: &ConnectionInfo) -> ConnectionInfo {
        let protocol = sentinel.redis_settings().protocol();
        let settings = ::redis::RedisConnectionInfo::default().set_protocol(protocol);
        let info = sentinel.clone().set_redis_settings(settings);
        match (sentinel.addr(), self.node_tls) {
            (ConnectionAddr::Tcp(host, port), Some(true)) => {
                let addr = ConnectionAddr::TcpTls {
                    host: host.clone(),
                    port: *port,
                    insecure: false,
                    tls_params: None,
                };
                info.set_addr(addr)
            }
            (ConnectionAddr::TcpTls { host, port, .. }, Some(false)) => {
                info.set_addr(ConnectionAddr::Tcp(host.clone(), *port))
            }
            _ => info,
        }
    }

    fn client(&self, info: ConnectionInfo) -> Result<Client, StoreError> {
        let settings = info.tcp_settings().clone().set_nodelay(true);
        self.open(info.set_tcp_settings(settings))
    }

    #[cfg(any(feature = "redis-rustls", feature = "redis-native-tls"))]
    fn open(&self, info: ConnectionInfo) -> Result<Client, StoreError> {
        if !matches!(info.addr(), ConnectionAddr::TcpTls { .. }) {
            return Client::open(info).map_err(|_| unusable(NO_TLS));
        }
        let client_tls = self.client_certificate.clone();
        let certificates = ::redis::TlsCertificates {
            client_tls: client_tls
                .map(|[client_cert, client_key]| ::redis::ClientTlsConfig { client_cert, client_key }),
            root_cert: self.root_certificate.clone(),
        };
        // The error could quote what was given.
        Client::build_with_tls(info, certificates)
            .map_err(|_| unusable("a certificate or its key is not readable: PEM is expected"))
    }

    #[cfg(not(any(feature = "redis-rustls", feature = "redis-native-tls")))]
    #[allow(clippy::unused_self)] // as with TLS
    fn open(&self, info: ConnectionInfo) -> Result<Client, StoreError> {
        Client::open(info).map_err(|_| unusable(NO_TLS))
    }

    /// Starts with a client.
    pub(super) fn with_client(client: Client) -> RedisStoreBuilder {
        RedisStoreBuilder::new(Ok(Target::Client(client)))
    }

    /// Starts with the URL of a server.
    pub(super) fn server(url: &str) -> RedisStoreBuilder {
        RedisStoreBuilder::new(parsed(url).map(Target::Server))
    }

    /// Starts with the URLs of nodes of a cluster.
    pub(super) fn cluster<U: AsRef<str>>(urls: impl IntoIterator<Item = U>) -> RedisStoreBuilder {
        let infos = urls.into_iter().map(|url| parsed(url.as_ref()));
        RedisStoreBuilder::new(infos.collect::<Result<_, _>>().map(Target::Cluster))
    }

    /// Starts with the URLs of sentinels.
    pub(super) fn sentinel<U: AsRef<str>>(
        urls: impl IntoIterator<Item = U>,
        service: &str,
    ) -> RedisStoreBuilder {
        let (infos, service) = (urls.into_iter().map(|url| parsed(url.as_ref())), service.to_owned());
        let infos: Result<_, _> = infos.collect();
        RedisStoreBuilder::new(infos.map(|sentinels| Target::Sentinel { sentinels, service }))
    }

    fn new(target: Result<Target, StoreError>) -> RedisStoreBuilder {
        RedisStoreBuilder {
            target,
            login: None,
            database: None,
            node_tls: None,
            #[cfg(any(feature = "redis-rustls", feature = "redis-native-tls"))]
            root_certificate: None,
            #[cfg(any(feature = "redis-rustls", feature = "redis-native-tls"))]
            client_certificate: None,
            replicas: None,
            accepts_no_file: false,
            prefix: "nevertwice:".to_owned(),
            response_timeout: Duration::from_secs(1),
            connection_timeout: Duration::from_secs(1),
            clock_slack: Duration::from_secs(600),
            assumed: None,
            recheck_every: Duration::from_secs(30),
            read_only: false,
        }
    }
}

/// Parses a URL. The error leaves out the parser's, which could quote a password.
fn parsed(url: &str) -> Result<ConnectionInfo, StoreError> {
    url.into_connection_info().map_err(|_| unusable(NO_TLS))
}

/// Makes sure that rustls has a crypto provider. It chooses none by itself in a build that enables
/// two of them, and panics at the first connection.
#[cfg(feature = "redis-rustls")]
fn provide_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // Fails only if another thread was faster.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

impl fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Leaves out the target and the login, which hold passwords.
        f.debug_struct("RedisStoreBuilder")
            .field("replicas", &self.replicas)
            .field("response_timeout", &self.response_timeout)
            .field("connection_timeout", &self.connection_timeout)
            .field("clock_slack", &self.clock_slack)
            .field("assumed", &self.assumed)
            .field("recheck_every", &self.recheck_every)
            .field("read_only", &self.read_only)
            .finish_non_exhaustive()
    }
}
