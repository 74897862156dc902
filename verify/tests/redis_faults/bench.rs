//! A server, a proxy in front of it, an engine on each side of the proxy, and the ledger of their
//! operations.

use std::sync::Arc;
use std::time::Duration;

use nevertwice::backends::redis::RedisStoreBuilder;
use nevertwice::store::Store;
use nevertwice::{Begin, Engine, Lease, RedisStore, Request, Stamp};

use crate::ledger::{Ledger, replayed, request};
use crate::server::{Proxy, Server};

/// Longer than any check.
pub(crate) const LEASE: Duration = Duration::from_secs(3600);

/// Clock slacks. With the longer one a store uses native commands where the server has them; with
/// the shorter one every write uses the script.
pub(crate) const SLACKS: [Duration; 2] = [Duration::from_secs(600), Duration::from_secs(59)];

/// Time limits of the engine behind the proxy, and the clock slack of its store.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// For a call.
    pub(crate) call: Duration,
    /// For an answer of the server, and for a connection.
    pub(crate) response: Duration,
    pub(crate) slack: Duration,
}

impl Limits {
    /// For faults that the engine recovers from by itself.
    pub(crate) const PATIENT: Limits =
        Limits { call: Duration::from_secs(30), response: Duration::from_secs(2), slack: SLACKS[0] };
    /// For faults after which a new connection is needed.
    pub(crate) const ALERT: Limits =
        Limits { call: Duration::from_secs(30), response: Duration::from_millis(150), slack: SLACKS[0] };
    /// For lasting faults.
    pub(crate) const SHORT: Limits =
        Limits { call: Duration::from_millis(500), response: Duration::from_millis(100), slack: SLACKS[0] };
}

/// The setup in which operations are tried.
pub(crate) struct Bench {
    /// The engine that the fault affects.
    pub(crate) through: Engine,
    /// Another process, which it does not affect.
    pub(crate) direct: Engine,
    pub(crate) store: RedisStore,
    pub(crate) proxy: Proxy,
    /// The proxies in front of other nodes, which cause no fault.
    _others: Vec<Proxy>,
    pub(crate) ledger: Arc<Ledger>,
    /// For direct queries to the server.
    pub(crate) raw: redis::aio::MultiplexedConnection,
}

impl Bench {
    /// Creates a bench with a name and password for the engine behind the proxy: `name:password@`.
    pub(crate) async fn of_user(server: &Server, ledger: &Arc<Ledger>, limits: Limits, user: &str) -> Bench {
        let proxy = Proxy::start(server.port()).await;
        let url = proxy.url().replace("redis://", &format!("redis://{user}"));
        let through = RedisStore::builder(&url);
        Bench::with(vec![proxy], through, connect(server).await, server, ledger, limits).await
    }

    /// Creates a bench of two stores. The last proxy is the one that causes faults, in front of
    /// this server.
    pub(crate) async fn with(
        mut proxies: Vec<Proxy>,
        through: RedisStoreBuilder,
        store: RedisStore,
        server: &Server,
        ledger: &Arc<Ledger>,
        limits: Limits,
    ) -> Bench {
        let through = through
            .response_timeout(limits.response)
            .connection_timeout(limits.response)
            .clock_slack(limits.slack)
            .connect();
        let through = Engine::builder(through.await.unwrap())
            .lease(LEASE)
            .call_timeout(limits.call)
            .finish_timeout(limits.call);
        let client = redis::Client::open(server.url()).unwrap();
        Bench {
            through: through.build().unwrap(),
            direct: engine(&store),
            store,
            proxy: proxies.pop().expect("a proxy"),
            _others: proxies,
            ledger: Arc::clone(ledger),
            raw: client.get_multiplexed_async_connection().await.unwrap(),
        }
    }

    /// Makes sure that the engine behind the proxy has a working connection.
    pub(crate) async fn warm(&self) {
        self.through.inspect("faults", "warm").await.unwrap();
    }

    /// Waits until the server was asked to announce changes, or for a while in case that request
    /// never arrives.
    pub(crate) async fn until_waited_for(&self) {
        let mut raw = self.raw.clone();
        for _ in 0..20 {
            let stats: String = redis::cmd("INFO").arg("stats").query_async(&mut raw).await.unwrap();
            if !stats.contains("tracking_total_keys:0\r\n") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Returns the stamp of the record under a key.
    pub(crate) async fn stamp(&self, key: &str) -> Option<Stamp> {
        self.store.load(&request(key).id()).await.unwrap().record.map(|record| record.stamp)
    }

    /// Completes under a lease of the other process. The outcome must be replayed to all.
    pub(crate) async fn finish(&self, key: &str, lease: &Lease) {
        let lease = self.direct.resume(&lease.token()).await.unwrap();
        lease.complete(outcome(key)).await.unwrap();
        self.ledger.acknowledge(key, outcome(key));
        self.hear(key).await;
    }

    /// Asks both processes for the outcome of a key, and records their answers.
    pub(crate) async fn hear(&self, key: &str) {
        for engine in [&self.direct, &self.through] {
            let begin = engine.begin(&request(key)).await.unwrap();
            let Some(told) = replayed(&begin) else { panic!("{key}: {begin:?}") };
            self.ledger.acknowledge(key, told);
        }
    }
}

/// Returns the outcome of the operation under a key.
pub(crate) fn outcome(key: &str) -> String {
    format!("outcome of {key}")
}

pub(crate) async fn connect(server: &Server) -> RedisStore {
    RedisStore::builder(&server.url()).response_timeout(Duration::from_secs(5)).connect().await.unwrap()
}

pub(crate) fn engine(store: &RedisStore) -> Engine {
    Engine::builder(store.clone()).lease(LEASE).call_timeout(Duration::from_secs(30)).build().unwrap()
}

pub(crate) async fn acquire(engine: &Engine, request: &Request) -> Lease {
    match engine.begin(request).await.unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}
