//! The rule of `replicated`: nothing is acknowledged that too few replicas have.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use futures_util::future::{join, join_all};
use nevertwice::backends::redis::TopologyKind;
use nevertwice::store::{Snapshot, Store};
use nevertwice::{
    Begin, Clock, Durability, Engine, Error, Fingerprint, Owner, RedisStore, Request, StoreError, SystemClock,
};

use crate::ledger::request;
use crate::nodes::{Network, Node, PORT, until};
use crate::topologies::{Servers, online};
use crate::{LEASE, acquire, block_on_tokio, engine};

/// A primary and its replica, without sentinels.
struct Pair {
    network: Network,
    primary: Node,
    replica: Node,
}

impl Pair {
    fn start() -> Pair {
        Pair::start_with(&[])
    }

    fn start_with(options: &[&str]) -> Pair {
        let network = Network::new();
        let primary = Node::start(&network.ip(1), options);
        Pair::following(network, primary, 1, options)
    }

    /// Lets the replica's confirmations take so much longer.
    fn late(delay: Duration) -> Pair {
        let network = Network::new();
        let primary = Node::start(&network.ip(1), &[]);
        let (way, to) = (format!("{}:{PORT}", network.ip(9)), format!("{}:{PORT}", primary.ip));
        let listener = TcpListener::bind(way).unwrap();
        std::thread::spawn(move || {
            // Until the pair ends.
            let Ok((replica, _)) = listener.accept() else { return };
            let primary = TcpStream::connect(to).unwrap();
            let (from, to) = (replica.try_clone().unwrap(), primary.try_clone().unwrap());
            std::thread::spawn(move || pass(from, to, delay));
            pass(primary, replica, Duration::ZERO);
        });
        Pair::following(network, primary, 9, &[])
    }

    fn following(network: Network, primary: Node, at: u8, options: &[&str]) -> Pair {
        let follows = ["--replicaof", &network.ip(at), &PORT.to_string()];
        let replica = Node::start(&network.ip(2), &[options, &follows].concat());
        until("the replica is in step", || online(&primary) == 1);
        Pair { network, primary, replica }
    }

    async fn store(&self) -> RedisStore {
        RedisStore::builder(&self.primary.url())
            .replicated(1)
            .accept_no_append_only_file()
            .connect()
            .await
            .unwrap()
    }

    /// Keeps the replica from hearing of writes, without closing its connection.
    fn part(&self) {
        self.network.cut(&self.replica.ip);
    }
}

/// Passes on what comes, after a while.
fn pass(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let mut bytes = [0; 1 << 16];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        std::thread::sleep(delay);
        if to.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}

/// An engine that gives up soon.
fn hasty(store: RedisStore) -> Engine {
    let limit = Duration::from_secs(4);
    Engine::builder(store).lease(LEASE).call_timeout(limit).finish_timeout(limit).build().unwrap()
}

/// The last error is that of the last try. On a busy machine that may have had no answer in time,
/// or have come after the server noticed that its replica is silent.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>) {
    let Err(Error::TimedOut { last: Some(StoreError::Unavailable { detail, .. }), .. }) = &result else {
        panic!("{result:?}");
    };
    let reasons = ["0 of 1 replicas confirmed", "0 replicas are in step", "no answer in time"];
    assert!(reasons.iter().any(|reason| detail.contains(reason)), "{detail}");
}

/// Returns the value of a field of `INFO`, or 0 if there is none.
fn figure(node: &Node, section: &str, field: &str) -> u64 {
    let info: String = node.ask(&format!("INFO {section}"));
    let value = info.lines().find_map(|line| line.strip_prefix(field));
    value.map_or(0, |value| value.split(',').next().unwrap().trim().parse().unwrap())
}

fn calls(node: &Node, command: &str) -> u64 {
    figure(node, "commandstats", &format!("cmdstat_{command}:calls="))
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
        let waits = calls(&pair.primary, "wait");
        refused(engine.begin(&request("new")).await);
        refused(held.complete("outcome").await);
        refused(marked.mark_effect().await);
        refused(released.release().await);
        assert!(calls(&pair.primary, "wait") > waits + 3, "it was tried");
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
        // Other processes with connections that never wrote.
        let others = [hasty(pair.store().await), hasty(pair.store().await)];
        pair.part();
        let own = request("own").owner(owner);
        refused(engine.begin(&own).await);
        refused(held.complete("outcome").await);
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

/// Loads a record, and again where a replica of a busy machine is late.
async fn loaded(store: &RedisStore, request: &Request) -> Snapshot {
    for _ in 0..20 {
        if let Ok(found) = store.load(&request.id()).await {
            return found;
        }
    }
    panic!("never loaded");
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
        // What a script writes is replicated as this. The replica has confirmed the grant.
        let written = calls(&pair.replica, "set");
        assert!(matches!(other.begin(&request("held")).await.unwrap(), Begin::InProgress(_)));
        assert_eq!(calls(&pair.replica, "set"), written, "a poll was answered with a write");
    });
}

/// A value that is written back to confirm reads is sent to the replicas and to the file again.
#[test]
fn l1_a_confirmation_costs_as_much_as_the_shortest_value_of_its_trip() {
    const LONG: usize = 400_000;
    let pair = Pair::start();
    block_on_tokio(async {
        let store = pair.store().await;
        let engine = Engine::builder(store.clone()).build().unwrap();
        let requests = ["a", "b", "c"].map(request);
        for (request, length) in requests.iter().zip([LONG, 10, LONG]) {
            acquire(&engine, request).await.complete("x".repeat(length)).await.unwrap();
        }
        let replicated = || figure(&pair.primary, "replication", "master_repl_offset:");
        for _ in 0..3 {
            let before = replicated();
            for begun in engine.begin_many(&requests).await {
                assert!(matches!(begun.unwrap(), Begin::Completed(_)));
            }
            assert!(replicated() - before < LONG as u64, "a long value was written again");
        }
        // One page of a listing: one pipeline, and one wait.
        let (before, waits) = (replicated(), calls(&pair.primary, "wait"));
        assert_eq!(store.scan(None, 100).await.unwrap().records.len(), 3);
        assert!(replicated() - before < LONG as u64, "a long value was written again");
        assert_eq!(calls(&pair.primary, "wait") - waits, 1);
    });
}

/// A replica that is cut off counts as connected for a minute.
#[test]
fn health_tells_of_a_replica_that_is_silent() {
    let pair = Pair::start();
    block_on_tokio(async {
        let store = pair.store().await;
        assert!(store.health().await.is_ready());
        pair.part();
        until_ready(&store, false).await;
        assert_eq!(online(&pair.primary), 1, "the server counts it in");
        pair.network.heal();
        until_ready(&store, true).await;
    });
}

async fn until_ready(store: &RedisStore, is_ready: bool) {
    let started = SystemClock.monotonic();
    while store.health().await.is_ready() != is_ready {
        assert!(SystemClock.monotonic() - started < Duration::from_secs(30), "never: {is_ready}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
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
        let two = RedisStore::builder(&pair.primary.url()).replicated(2).accept_no_append_only_file();
        let two = two.connect().await.unwrap_err();
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

/// Such a primary restarts empty, and its replicas copy that.
#[test]
fn s9_replicas_of_a_primary_without_a_file_are_refused_unless_accepted() {
    let pair = Pair::start();
    let builder = || RedisStore::builder(&pair.primary.url()).replicated(1);
    let build = |store, level| Engine::builder(store).require(level).build();
    block_on_tokio(async {
        let error = builder().connect().await.unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("set appendonly yes"), "{error}");
        let store = builder().accept_no_append_only_file().connect().await.unwrap();
        assert!(build(store.clone(), Durability::Replicated(1)).is_ok());
        for level in [Durability::Process, Durability::Power] {
            assert!(build(store.clone(), level).is_err(), "{level}");
        }
        pair.primary.ask::<()>("CONFIG SET appendonly yes appendfsync always");
        let store = builder().connect().await.unwrap();
        for level in [Durability::Process, Durability::Power, Durability::Replicated(1)] {
            assert!(build(store.clone(), level).is_ok(), "{level}");
        }
        // It may lose its file while the store runs.
        let engine = hasty(builder().recheck_every(Duration::ZERO).connect().await.unwrap());
        let held = acquire(&engine, &request("k")).await;
        pair.primary.ask::<()>("CONFIG SET appendonly no");
        let Err(Error::Store(StoreError::Unusable { detail, .. })) = engine.begin(&request("new")).await
        else {
            panic!("it is refused");
        };
        assert!(detail.contains("set appendonly yes"), "{detail}");
        held.complete("done").await.unwrap();
        assert!(matches!(engine.begin(&request("k")).await.unwrap(), Begin::Completed(_)));
    });
}

/// One `WAIT` serves all reads that came meanwhile, and none holds up another for long.
#[test]
fn l1_many_reads_share_their_confirmations() {
    let pair = Pair::start();
    block_on_tokio(async {
        let store = pair.store().await;
        let engine = Engine::builder(store.clone()).build().unwrap();
        let requests: Vec<_> = (0..400).map(|number| request(&format!("{number}"))).collect();
        for begun in engine.begin_many(&requests).await {
            let _ = begun.unwrap();
        }
        let waits = || calls(&pair.primary, "wait");
        let before = waits();
        let reads = join_all(requests.iter().map(async |request| loaded(&store, request).await)).await;
        assert!(reads.into_iter().all(|read| read.record.is_some()));
        assert!(waits() - before < 100, "{} pipelines for 400 reads", waits() - before);
    });
}

/// Each pipeline waits for its turn before its time to answer begins, so that none is taken for
/// lost because those before it took long.
#[test]
fn l1_batches_that_wait_for_a_late_replica_lose_no_connection() {
    let pair = Pair::late(Duration::from_millis(200));
    block_on_tokio(async {
        let engine = engine(pair.store().await);
        let opened = || figure(&pair.primary, "stats", "total_connections_received:");
        let before = opened();
        let begin = async |batch: usize| {
            let requests: Vec<_> = (0..5).map(|number| request(&format!("{batch}/{number}"))).collect();
            engine.begin_many(&requests).await.into_iter().for_each(|begun| drop(begun.unwrap()));
        };
        join_all((0..20).map(begin)).await;
        assert_eq!(opened(), before + 1, "more connections than that of this question");
    });
}

/// A caller may stop acting because there is no record.
#[test]
fn s9_that_there_is_no_record_is_withheld_until_a_replica_knows() {
    let pair = Pair::start();
    block_on_tokio(async {
        let store = pair.store().await;
        assert!(loaded(&store, &request("absent")).await.record.is_none());
        pair.part();
        let error = store.load(&request("absent").id()).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("replicas confirmed"), "{error}");
    });
}

/// It cannot be written back, so another read of the pipeline is.
#[test]
fn s10_a_value_that_is_no_string_fails_its_own_key_only() {
    let pair = Pair::start();
    block_on_tokio(async {
        let store = pair.store().await;
        let engine = hasty(store.clone());
        acquire(&engine, &request("done")).await.complete("done").await.unwrap();
        let list = request("list").id();
        let name = [b"nevertwice:", &list.as_bytes()[..]].concat();
        redis::cmd("RPUSH").arg(name).arg("x").exec(&mut pair.primary.raw().unwrap()).unwrap();
        let (list, done) = (request("list"), request("done"));
        let requests = [done.clone(), list.clone(), done, list];
        for (number, begun) in engine.begin_many(&requests).await.into_iter().enumerate() {
            if number % 2 == 0 {
                assert!(matches!(begun.unwrap(), Begin::Completed(_)), "{number}");
            } else {
                assert!(matches!(begun, Err(Error::Store(StoreError::Corrupt { .. }))), "{begun:?}");
            }
        }
    });
}

#[test]
fn a_user_who_may_not_wait_is_refused() {
    let pair = Pair::start();
    pair.primary.ask::<()>("ACL SETUSER rosa on >s3cret ~* +@all -wait");
    let url = pair.primary.url().replace("redis://", "redis://rosa:s3cret@");
    let error =
        block_on_tokio(RedisStore::builder(&url).replicated(1).accept_no_append_only_file().connect())
            .unwrap_err();
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
