//! The rule of `replicated`: nothing is acknowledged that too few replicas have.

use std::time::Duration;

use futures_util::future::{join, join_all};
use nevertwice::backends::redis::TopologyKind;
use nevertwice::store::Store;
use nevertwice::{Begin, Durability, Engine, Error, Fingerprint, Owner, RedisStore, Request, StoreError};

use crate::ledger::request;
use crate::nodes::{Network, Node, PORT, until};
use crate::topologies::{Servers, online};
use crate::{LEASE, acquire, block_on_tokio};

/// A primary and its replica, without sentinels.
struct Pair {
    network: Network,
    primary: Node,
    replica: Node,
}

impl Pair {
    fn start() -> Pair {
        let network = Network::new();
        let primary = Node::start(&network.ip(1), &[]);
        let replica = Node::start(&network.ip(2), &["--replicaof", &network.ip(1), &PORT.to_string()]);
        until("the replica is in step", || online(&primary) == 1);
        Pair { network, primary, replica }
    }

    async fn store(&self) -> RedisStore {
        RedisStore::builder(&self.primary.url())
            .response_timeout(Duration::from_millis(300))
            .replicated(1)
            .connect()
            .await
            .unwrap()
    }

    /// Keeps the replica from hearing of writes, without closing its connection.
    fn part(&self) {
        self.network.cut(&self.replica.ip);
    }
}

/// An engine that gives up soon.
fn hasty(store: RedisStore) -> Engine {
    let limit = Duration::from_secs(4);
    Engine::builder(store).lease(LEASE).call_timeout(limit).finish_timeout(limit).build().unwrap()
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>) {
    let Err(Error::TimedOut { last: Some(StoreError::Unavailable { detail, .. }), .. }) = &result else {
        panic!("{result:?}");
    };
    assert!(detail.contains("0 of 1 replicas confirmed"), "{detail}");
}

#[test]
fn s9_without_the_replica_nothing_is_acknowledged() {
    let pair = Pair::start();
    block_on_tokio(async {
        let engine = hasty(pair.store().await);
        let held = acquire(&engine, &request("held")).await;
        let released = acquire(&engine, &request("released")).await;
        let marked = acquire(&engine, &request("marked")).await;
        let done = acquire(&engine, &request("done")).await;
        done.complete("outcome").await.unwrap();
        pair.part();
        refused(engine.begin(&request("new")).await);
        refused(held.complete("outcome").await);
        refused(marked.mark_effect().await);
        refused(released.release().await);
        // It was written, and a repetition finds it: that is no confirmation.
        refused(held.complete("outcome").await);
        refused(released.release().await);
    });
}

/// On Valkey a `WAIT` after a read, or after a `SET NX` that lost, says at once that all is
/// replicated.
#[test]
fn s9_what_is_only_read_is_withheld_until_a_replica_has_it() {
    let pair = Pair::start();
    block_on_tokio(async {
        let engine = hasty(pair.store().await);
        let owner = Owner::random().unwrap();
        let held = acquire(&engine, &request("held")).await;
        pair.part();
        let own = request("own").owner(owner);
        refused(engine.begin(&own).await);
        refused(held.complete("outcome").await);
        // Other processes with connections that never wrote.
        let others = [hasty(connected(&pair).await), hasty(connected(&pair).await)];
        let mismatch = request("held").fingerprint(Fingerprint::of("other"));
        for other in &others {
            let (held, begins) = (request("held"), [&own, &mismatch].map(|request| other.begin(request)));
            let begins = join(other.begin(&held), join_all(begins));
            let ((begun, others), shown) = join(begins, other.inspect("faults", "held")).await;
            // Several of them queue on a connection, so that some have no answer in time.
            assert!(begun.is_err() && shown.is_err(), "{begun:?} {shown:?}");
            assert!(others.iter().all(Result::is_err), "{others:?}");
        }
        pair.network.heal();
        for other in &others {
            assert!(matches!(patient(other, &request("held")).await, Begin::Completed(_)));
            assert!(matches!(patient(other, &mismatch).await, Begin::Mismatch(_)));
        }
        assert!(matches!(patient(&others[0], &own).await, Begin::Acquired(_)));
    });
}

/// Connects while the replica still counts as in step.
async fn connected(pair: &Pair) -> RedisStore {
    pair.store().await
}

async fn patient(engine: &Engine, request: &Request) -> Begin {
    for _ in 0..20 {
        if let Ok(begin) = engine.begin(request).await {
            return begin;
        }
    }
    panic!("never answered");
}

#[test]
fn s9_a_running_lease_of_another_caller_is_reported_without_the_replica() {
    let pair = Pair::start();
    block_on_tokio(async {
        let engine = hasty(pair.store().await);
        let _held = acquire(&engine, &request("held")).await;
        let other = hasty(pair.store().await);
        let writes = || online_offset(&pair.primary);
        let before = writes();
        assert!(matches!(other.begin(&request("held")).await.unwrap(), Begin::InProgress(_)));
        assert!(writes() - before < 100, "a poll was answered with a write");
    });
}

fn online_offset(node: &Node) -> u64 {
    let info: String = node.ask("INFO replication");
    let offset = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:")).unwrap();
    offset.trim().parse().unwrap()
}

#[test]
fn s9_the_replica_has_all_that_was_acknowledged() {
    let pair = Pair::start();
    block_on_tokio(async {
        let store = pair.store().await;
        assert_eq!(store.durability(), Durability::Replicated(1));
        let engine = Engine::builder(store).require(Durability::Replicated(1)).build().unwrap();
        for number in 0..200 {
            let lease = acquire(&engine, &request(&format!("{number}"))).await;
            lease.complete(format!("outcome {number}")).await.unwrap();
        }
        let keys: u64 = pair.replica.ask("DBSIZE");
        assert_eq!(keys, 200);
    });
}

#[test]
fn a_primary_with_too_few_replicas_is_refused_and_later_gets_no_grants() {
    let pair = Pair::start();
    block_on_tokio(async {
        let two = RedisStore::builder(&pair.primary.url()).replicated(2).connect().await.unwrap_err();
        assert!(!two.is_transient() && two.to_string().contains("1 replicas are in step"), "{two}");
        let store = pair.store().await;
        let health = store.health().await;
        assert!(health.is_ready(), "{health:?}");
        assert_eq!((health.topology, health.nodes[0].replicas), (TopologyKind::Server, Some(1)));
        let engine = hasty(store.clone());
        let held = acquire(&engine, &request("held")).await;
        pair.replica.ask::<()>("REPLICAOF NO ONE");
        until("the replica is gone", || online(&pair.primary) == 0);
        let health = store.health().await;
        assert!(!health.is_ready() && health.nodes[0].replicas.is_none(), "{health:?}");
        assert!(engine.begin(&request("new")).await.is_err());
        refused(held.complete("outcome").await);
        pair.replica.ask::<()>(&format!("REPLICAOF {} {PORT}", pair.primary.ip));
        until("the replica is back", || online(&pair.primary) == 1);
        assert!(matches!(patient(&engine, &request("new")).await, Begin::Acquired(_)));
        held.complete("outcome").await.unwrap();
    });
}

#[test]
fn a_user_who_may_not_wait_is_refused() {
    let pair = Pair::start();
    pair.primary.ask::<()>("ACL SETUSER rosa on >s3cret ~* +@all -wait");
    let url = pair.primary.url().replace("redis://", "redis://rosa:s3cret@");
    let error = block_on_tokio(RedisStore::builder(&url).replicated(1).connect()).unwrap_err();
    assert!(!error.is_transient() && error.to_string().contains("+wait"), "{error}");
}

#[test]
fn s9_a_service_with_a_log_of_its_own_can_be_assumed() {
    let pair = Pair::start();
    block_on_tokio(async {
        let builder = RedisStore::builder(&pair.primary.url()).assume_durability(Durability::Replicated(2));
        let store = builder.connect().await.unwrap();
        assert_eq!(store.durability(), Durability::Replicated(2));
    });
}

#[test]
fn s5_a_replicated_cluster_answers_as_a_server_does() {
    let servers = Servers::cluster(&[]);
    block_on_tokio(async {
        let store = servers.store().replicated(1).connect().await.unwrap();
        let engine = Engine::builder(store.clone()).build().unwrap();
        for number in 0..50 {
            let request = request(&format!("{number}"));
            let lease = acquire(&engine, &request).await;
            lease.renew().await.unwrap();
            lease.complete("done").await.unwrap();
            assert!(matches!(engine.begin(&request).await.unwrap(), Begin::Completed(_)));
        }
        let health = store.health().await;
        assert!(health.is_ready(), "{health:?}");
        assert_eq!((health.topology, health.nodes.len()), (TopologyKind::Cluster, 3));
        assert!(health.nodes.iter().all(|node| node.replicas == Some(1)), "{health:?}");
    });
}
