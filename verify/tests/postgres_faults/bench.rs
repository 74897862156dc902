//! A server, a proxy in front of it, an engine on each side of the proxy, and the ledger of their
//! operations.

use std::sync::Arc;
use std::time::Duration;

use nevertwice::store::Store;
use nevertwice::{Begin, Engine, Lease, PostgresStore, Request, Stamp};

use crate::ledger::{Ledger, replayed, request};
use crate::proxy::Proxy;
use crate::server::Server;

/// Longer than any check.
const LEASE: Duration = Duration::from_secs(3600);
/// Time limit of a call, within which it recovers from every fault.
const CALL: Duration = Duration::from_secs(60);

/// The setup in which operations are tried.
pub(crate) struct Bench {
    /// The engine that the fault affects.
    pub(crate) through: Engine,
    /// Another process, which it does not affect.
    pub(crate) direct: Engine,
    pub(crate) store: PostgresStore,
    pub(crate) proxy: Proxy,
    pub(crate) ledger: Arc<Ledger>,
}

impl Bench {
    pub(crate) async fn new(server: &Server, ledger: &Arc<Ledger>) -> Bench {
        let proxy = Proxy::start(server.port()).await;
        let through = PostgresStore::connect(&server.url_at(proxy.port())).await.unwrap();
        let store = PostgresStore::connect(&server.url()).await.unwrap();
        Bench { through: engine(&through), direct: engine(&store), store, proxy, ledger: Arc::clone(ledger) }
    }

    /// Makes sure that the engine behind the proxy has a working connection.
    pub(crate) async fn warm(&self) {
        self.through.inspect("faults", "warm").await.unwrap();
    }

    /// Gives a waiter some time to subscribe.
    pub(crate) async fn until_waited_for(&self) {
        tokio::time::sleep(Duration::from_millis(20)).await;
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

fn engine(store: &PostgresStore) -> Engine {
    let engine = Engine::builder(store.clone()).lease(LEASE);
    engine.call_timeout(CALL).finish_timeout(CALL).build().unwrap()
}

pub(crate) async fn acquire(engine: &Engine, request: &Request) -> Lease {
    match engine.begin(request).await.unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}
