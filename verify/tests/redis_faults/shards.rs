//! Cuts in front of a node of a cluster: at every byte, with replicas to wait for, and while all
//! slots are on their way to another node.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use nevertwice::RedisStore;
use nevertwice::backends::redis::RedisStoreBuilder;

use crate::bench::{Bench, Limits, SLACKS};
use crate::cuts::{Side, Target, cut_all};
use crate::ledger::Ledger;
use crate::operations::Operation;
use crate::server::{Proxy, Server};
use crate::{block_on_tokio, length, until};

const SLOTS: u16 = 16_384;
/// The nodes tell their ports only, so that each is found at the address of the node that was
/// asked: the proxies' or their own.
const OPTIONS: [&str; 8] = [
    "--cluster-enabled",
    "yes",
    "--cluster-preferred-endpoint-type",
    "unknown-endpoint",
    "--cluster-replica-no-failover",
    "yes",
    "--repl-diskless-sync-delay",
    "0",
];

/// Addresses of proxies so far.
static COUNT: AtomicU16 = AtomicU16::new(0);

/// A cluster. Connections to the last of the nodes in `path` are cut.
struct Cluster {
    name: &'static str,
    path: Vec<Server>,
    replica: Option<Server>,
}

impl Cluster {
    /// Starts a node that serves all slots.
    async fn alone() -> Cluster {
        let node = Server::start(&OPTIONS);
        node.ask::<()>(&format!("CLUSTER ADDSLOTSRANGE 0 {}", SLOTS - 1));
        until("the cluster is well", async || is_well(&node)).await;
        Cluster { name: "cluster", path: vec![node], replica: None }
    }

    /// The same with a replica to wait for.
    async fn with_replica() -> Cluster {
        let cluster = Cluster { name: "cluster with a replica", ..Cluster::alone().await };
        let replica = cluster.joined().await;
        let primary: String = cluster.path[0].ask("CLUSTER MYID");
        replica.ask::<()>(&format!("CLUSTER REPLICATE {primary}"));
        let info = || cluster.path[0].ask::<String>("INFO replication");
        until("the replica is in step", async || info().contains("state=online")).await;
        Cluster { replica: Some(replica), ..cluster }
    }

    /// Starts a node that serves all slots and passes each key that it does not have on to another
    /// one, to which the slots are on their way.
    async fn on_its_way() -> Cluster {
        let mut cluster = Cluster { name: "cluster with slots on their way", ..Cluster::alone().await };
        let target = cluster.joined().await;
        let source = &cluster.path[0];
        let [source_id, target_id]: [String; 2] = [source, &target].map(|node| node.ask("CLUSTER MYID"));
        until("the target knows the slots", async || is_well(&target)).await;
        for (node, state, other) in [(&target, "IMPORTING", source_id), (source, "MIGRATING", target_id)] {
            let mut set = redis::pipe();
            for slot in 0..SLOTS {
                set.cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(state).arg(&other).ignore();
            }
            set.exec(&mut node.raw()).unwrap();
        }
        cluster.path.push(target);
        cluster
    }

    /// Starts one more node that knows the others.
    async fn joined(&self) -> Server {
        let (first, node) = (&self.path[0], Server::start(&OPTIONS));
        node.ask::<()>(&format!("CLUSTER MEET 127.0.0.1 {}", first.port()));
        let know_each_other =
            || [first, &node].iter().all(|node| node.ask::<String>("CLUSTER INFO").contains("known_nodes:2"));
        until("the nodes know each other", async || know_each_other()).await;
        node
    }

    fn builder(&self, url: &str) -> RedisStoreBuilder {
        let replicas = u8::from(self.replica.is_some());
        RedisStore::cluster([url]).replicated(replicas).accept_no_append_only_file()
    }
}

fn is_well(node: &Server) -> bool {
    node.ask::<String>("CLUSTER INFO").contains("cluster_state:ok")
}

impl Target for Cluster {
    // Several connections, and the layout of the cluster is asked for over some more.
    const DIFFERENCE: usize = 96;

    fn tries(&self, operation: Operation) -> bool {
        use Operation::{
            BeginDone, BeginFresh, BeginMany, Complete, CompleteMany, FailUnresolved, MarkEffect, Release,
            Run, Takeover,
        };
        let [begins, finishes] = [
            [BeginFresh, BeginDone, BeginMany, Takeover, Run],
            [MarkEffect, Complete, CompleteMany, FailUnresolved, Release],
        ];
        length() > 1 || begins.contains(&operation) || finishes.contains(&operation)
    }

    fn name(&self) -> &'static str {
        self.name
    }

    async fn bench(&self, ledger: &Arc<Ledger>, limits: Limits) -> Bench {
        let [high, low] = COUNT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        let ip = Ipv4Addr::new(127, 60, high, low);
        let proxies = join_all(self.path.iter().map(|node| Proxy::start_on(ip, node.port()))).await;
        let (first, last) = (&self.path[0], self.path.last().expect("a node"));
        let through = self.builder(&proxies[0].url());
        let direct = self.builder(&first.url()).response_timeout(Duration::from_secs(5));
        Bench::with(proxies, through, direct.connect().await.unwrap(), last, ledger, limits).await
    }
}

#[test]
fn s6_an_answer_of_a_node_cut_at_every_byte_of_every_operation() {
    block_on_tokio(async { cut_all(&Cluster::alone().await, Side::Answer, SLACKS[0]).await });
}

#[test]
fn s6_a_request_to_a_node_cut_at_every_byte_of_every_operation() {
    block_on_tokio(async { cut_all(&Cluster::alone().await, Side::Request, SLACKS[0]).await });
}

#[test]
fn s6_an_answer_that_replicas_confirm_cut_at_every_byte_of_every_operation() {
    block_on_tokio(async { cut_all(&Cluster::with_replica().await, Side::Answer, SLACKS[0]).await });
}

#[test]
fn s6_a_request_that_replicas_confirm_cut_at_every_byte_of_every_operation() {
    block_on_tokio(async { cut_all(&Cluster::with_replica().await, Side::Request, SLACKS[0]).await });
}

#[test]
fn s6_an_answer_of_a_node_that_receives_slots_cut_at_every_byte_of_every_operation() {
    block_on_tokio(async { cut_all(&Cluster::on_its_way().await, Side::Answer, SLACKS[0]).await });
}

#[test]
fn s6_a_request_to_a_node_that_receives_slots_cut_at_every_byte_of_every_operation() {
    block_on_tokio(async { cut_all(&Cluster::on_its_way().await, Side::Request, SLACKS[0]).await });
}
