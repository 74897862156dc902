//! Nodes of clusters, and the addresses that they leave to others.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use nevertwice::store::Store;
use nevertwice::{Begin, Engine, Error, RedisStore, StoreError};

use crate::server::{Proxy, Server};
use crate::{acquire, block_on_tokio, request};

/// Attempts to reach a state, one every 10 ms.
const PATIENCE: u32 = 6_000;

/// Starts a cluster of one node, which serves all slots at the address of the proxy.
fn start(proxy: u16) -> Server {
    let bus = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port().to_string();
    let node = Server::start(&[
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
    ]);
    node.ask::<()>("CONFIG SET cluster-announce-ip 127.0.0.1");
    node.ask::<()>(&format!("CONFIG SET cluster-announce-port {proxy}"));
    serve(&node);
    node
}

/// Lets the node serve all slots.
fn serve(node: &Server) {
    node.ask::<()>("CLUSTER ADDSLOTSRANGE 0 16383");
    let is_up = || {
        std::thread::sleep(Duration::from_millis(10));
        node.ask::<String>("CLUSTER INFO").contains("cluster_state:ok")
    };
    assert!((0..PATIENCE).any(|_| is_up()), "the cluster is never up");
}

/// The node is gone, and its address leads to one of another cluster.
#[test]
fn s1_a_node_of_another_cluster_at_a_known_address_grants_nothing() {
    block_on_tokio(async {
        let proxy = Proxy::start(1).await;
        let (mut own, foreign) = (start(proxy.port()), start(proxy.port()));
        proxy.lead_to(own.port());
        let store = RedisStore::cluster([own.url()]).connect().await.unwrap();
        let limit = Duration::from_secs(2);
        let engine = Engine::builder(store.clone()).call_timeout(limit).build().unwrap();
        acquire(&engine, &request("done")).await.complete("done").await.unwrap();
        own.kill();
        proxy.lead_to(foreign.port());
        for key in ["done", "new"] {
            let refused = engine.begin(&request(key)).await;
            let Err(Error::TimedOut { last: Some(StoreError::Unavailable { .. }), .. }) = &refused else {
                panic!("{refused:?}");
            };
            let error = store.load(&request(key).id()).await.unwrap_err().to_string();
            assert!(error.contains("another cluster"), "{error}");
        }
        assert_eq!(foreign.ask::<u64>("DBSIZE"), 0);
        proxy.lead_to(own.port());
        own.restart();
        // A node that starts waits for its cluster first.
        let patient = Engine::builder(store).call_timeout(Duration::from_secs(60)).build().unwrap();
        let begin = patient.begin(&request("done")).await.unwrap();
        assert!(matches!(begin, Begin::Completed(_)), "{begin:?}");
    });
}

/// A cluster that was set up again, as all of its addresses say, is followed.
#[test]
fn a_cluster_that_was_set_up_again_is_followed() {
    block_on_tokio(async {
        let proxy = Proxy::start(1).await;
        let (mut own, again) = (start(proxy.port()), start(proxy.port()));
        proxy.lead_to(own.port());
        let engine = Engine::builder(RedisStore::cluster([proxy.url()]).connect().await.unwrap());
        let engine = engine.call_timeout(Duration::from_secs(60)).build().unwrap();
        let _ = acquire(&engine, &request("before")).await;
        own.kill();
        proxy.lead_to(again.port());
        let _ = acquire(&engine, &request("after")).await;
        assert_eq!(again.ask::<u64>("DBSIZE"), 1);
    });
}

/// The node was set up again as one of another cluster, under the same connection.
#[test]
fn s1_a_node_that_was_set_up_again_under_a_connection_grants_nothing() {
    block_on_tokio(async {
        let proxy = Proxy::start(1).await;
        let node = start(proxy.port());
        proxy.lead_to(node.port());
        let dead = "redis://127.0.0.1:1".to_owned();
        let builder = RedisStore::cluster([node.url(), dead]).recheck_every(Duration::ZERO);
        let engine =
            Engine::builder(builder.connect().await.unwrap()).call_timeout(Duration::from_secs(60)).build();
        let engine = engine.unwrap();
        let _ = acquire(&engine, &request("k")).await;
        let before: String = node.ask("CLUSTER MYID");
        node.ask::<()>("FLUSHALL");
        node.ask::<()>("CLUSTER RESET HARD");
        assert_ne!(node.ask::<String>("CLUSTER MYID"), before);
        serve(&node);
        // It alone tells the new layout, which may be that of another cluster.
        let refused = tokio::time::timeout(Duration::from_secs(2), engine.begin(&request("k"))).await;
        assert!(refused.is_err(), "{refused:?}");
        assert_eq!(node.ask::<u64>("DBSIZE"), 0);
    });
}

/// Without the permission there is no check.
#[test]
fn a_user_who_may_not_ask_nodes_for_their_ids_is_served() {
    block_on_tokio(async {
        let proxy = Proxy::start(1).await;
        let node = start(proxy.port());
        proxy.lead_to(node.port());
        node.ask::<()>("ACL SETUSER rosa on >s3cret ~* &* +@all -cluster|myid");
        let store = RedisStore::cluster([node.url_as("rosa", "s3cret")]).connect().await.unwrap();
        let engine = Engine::builder(store).build().unwrap();
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
    });
}
