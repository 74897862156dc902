//! One server and everything that a store keeps for it: [`Shard`].

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ::redis::{Client, ConnectionAddr};

use super::address::Address;
use super::connection::Connections;
use super::error::{unavailable, unusable};
use super::grant_cache::SharedGrants;
use super::item::{Item, ItemReply};
use super::lanes::Lanes;
use super::listener::RedisListener;
use super::reads::Reads;
use super::records::{Read, Records, Wanted};
use super::replication::Replication;
use super::script::Scripts;
use super::watch::ServerWatch;
use crate::backends::shared::batcher::{Batcher, Transport};
use crate::backends::shared::waiters::Waiters;
use crate::error::StoreError;
use crate::key::RecordId;

/// Connections of a shard that waits for replicas: a `WAIT` blocks all that follows on its own.
const LANES: usize = 2;
/// Response timeouts for which a pipeline waits for a connection of its own.
pub(super) const PATIENCE: u32 = 3;
/// Most items of one pipeline that ends with a `WAIT`: fewer and longer ones are cheaper.
const MAX_REPLICATED: usize = 512;

/// One server: its batcher, connections, waiters, and through the connections all that is assumed
/// about it. A store has one, or one for each primary of a cluster.
pub(super) struct Shard {
    pub(super) address: Address,
    pub(super) records: Arc<Records>,
    pub(super) waiters: Waiters<RedisListener>,
    pub(super) settings: Arc<Settings>,
    /// The id of the node of a cluster, once it is known.
    node_id: Arc<OnceLock<String>>,
    batcher: Batcher<Shard>,
    /// With replicas to wait for.
    reads: Option<Arc<Reads>>,
}

/// The settings and findings that all shards of a store share.
pub(super) struct Settings {
    pub(super) prefix: Vec<u8>,
    pub(super) clock_slack: Duration,
    /// Timeouts for connecting and for an answer.
    pub(super) limits: [Duration; 2],
    pub(super) scripts: Scripts,
    pub(super) watch: Arc<ServerWatch>,
    /// True if the servers are nodes of a cluster, which answer with redirects and take one key for
    /// each script call.
    pub(super) is_cluster: bool,
    pub(super) replication: Option<Replication>,
}

impl Settings {
    #[cfg(test)]
    pub(super) fn for_tests(is_cluster: bool) -> Arc<Settings> {
        Arc::new(Settings {
            prefix: b"nevertwice:".to_vec(),
            clock_slack: Duration::from_secs(600),
            limits: [Duration::from_secs(1); 2],
            scripts: Scripts::new(),
            watch: Arc::new(ServerWatch::new(super::watch::Demands::default())),
            is_cluster,
            replication: None,
        })
    }

    /// Upper bound on the time to open a connection and get a first answer.
    pub(super) fn opening(&self) -> Duration {
        let [connect, answer] = self.limits;
        connect.saturating_add(answer)
    }

    /// Returns the key name of a record.
    pub(super) fn key(&self, id: &RecordId) -> Vec<u8> {
        [&self.prefix, &id.as_bytes()[..]].concat()
    }
}

impl Shard {
    /// Creates a shard, unconnected.
    pub(super) fn new(client: &Client, settings: &Arc<Settings>) -> Arc<Shard> {
        let address = Address::of(client.get_connection_info().addr());
        let (is_replicated, grants) = (settings.replication.is_some(), Arc::new(SharedGrants::default()));
        let node_id = Arc::new(OnceLock::new());
        let connections = || Connections::new(client.clone(), &address, settings, &grants, &node_id);
        let patience = settings.limits[1].saturating_mul(PATIENCE);
        let exclusive = |count| Lanes::exclusive((0..count).map(|_| connections()).collect(), patience);
        let lanes = if is_replicated { exclusive(LANES) } else { Lanes::shared(vec![connections()]) };
        let records = Arc::new(Records::new(lanes, is_replicated.then(|| exclusive(1)), settings));
        let reads = is_replicated.then(|| Arc::new(Reads::new(&records)));
        let listener =
            RedisListener { records: Arc::clone(&records), client: client.clone(), limits: settings.limits };
        Arc::new(Shard {
            address,
            records,
            waiters: Waiters::new(Arc::new(listener)),
            settings: Arc::clone(settings),
            node_id,
            batcher: Batcher::default(),
            reads,
        })
    }

    /// True if it is the node with this id, which becomes that of the shard if none is known yet.
    pub(super) fn is_node(&self, id: &str) -> bool {
        if self.node_id.get().is_none() && self.node_id.set(id.to_owned()).is_ok() {
            self.records.all_connections().for_each(Connections::recheck_node);
        }
        self.node_id.get().is_some_and(|own| own == id)
    }

    /// Reads the records. With replicas to wait for, these have all that was found.
    pub(super) async fn read(&self, wanted: &[Wanted]) -> Result<Vec<Result<Read, StoreError>>, StoreError> {
        match (&self.reads, wanted) {
            // Together with those of other callers.
            (Some(reads), &[wanted]) => Ok(vec![Batcher::send(reads, wanted).await]),
            _ => self.records.read(wanted).await,
        }
    }

    /// Returns the number of the database.
    pub(super) fn database(&self) -> i64 {
        self.records.client().get_connection_info().redis_settings().db()
    }
}

impl Transport for Shard {
    type Item = Item;
    type Answer = ItemReply;

    /// Limits of one pipeline. It blocks the server for some 3 µs per swap.
    const MAX_ITEMS: usize = 128;
    const MAX_BYTES: usize = 256 << 10;

    fn bytes(item: &Item) -> usize {
        item.bytes.len()
    }

    fn unanswered(detail: &'static str) -> StoreError {
        unavailable(detail)
    }

    fn batcher(&self) -> &Batcher<Shard> {
        &self.batcher
    }

    fn max_items(&self) -> usize {
        if self.settings.replication.is_some() { MAX_REPLICATED } else { Self::MAX_ITEMS }
    }

    fn delivery_limit(&self) -> Duration {
        let [connect, answer] = self.settings.limits;
        // A lane, opening a connection, an inspection, and up to three rounds of a pipeline.
        connect.saturating_add(answer.saturating_mul(PATIENCE + 5))
    }

    /// One that replicas confirm holds a connection, and the first one opens it for all.
    fn may_send_alone(&self) -> bool {
        self.settings.replication.is_none() && self.records.connections().is_open()
    }

    fn deliver(
        self: &Arc<Self>,
        items: Vec<Item>,
    ) -> impl Future<Output = Vec<Result<ItemReply, StoreError>>> + Send {
        Shard::deliver(self, items)
    }
}

/// A client that leads to any node of a cluster, or to any server that sentinels name: login,
/// database and TLS are those of the template.
#[derive(Clone)]
pub(super) struct Connector(pub(super) Client);

impl Connector {
    pub(super) fn client(&self, address: &Address) -> Result<Client, StoreError> {
        let info = self.0.get_connection_info();
        let (host, port) = (address.host.to_string(), address.port);
        let addr = if let ConnectionAddr::TcpTls { insecure, tls_params, .. } = info.addr() {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        Client::open(info.clone().set_addr(addr)).map_err(|_| unusable(NO_TLS))
    }
}

/// Detail of the error for an address that this build cannot connect to.
pub(super) const NO_TLS: &str = "the URL is not one of a Redis server, or asks for TLS, for which one of the features \
                                 redis-rustls and redis-native-tls is needed";
