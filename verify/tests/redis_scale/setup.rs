//! Bad input and bad states when a store connects, and healing afterwards.

use std::time::Duration;

use nevertwice::store::{Store, SwapRequest};
use nevertwice::{Clock, RedisStore, Stamp, StoreError, SystemClock};

use crate::failovers::more;
use crate::ledger::request;
use crate::nodes::{Network, Node, PORT, until};
use crate::topologies::{SERVICE, Servers, dead_sentinel};
use crate::{acquire, block_on_tokio, engine};

/// Longest time that a failure to connect may take here: its limit is 2 s.
const SOON: Duration = Duration::from_secs(8);

fn refused(builder: nevertwice::backends::redis::RedisStoreBuilder) -> StoreError {
    let started = SystemClock.monotonic();
    let error = block_on_tokio(builder.connect()).unwrap_err();
    assert!(SystemClock.monotonic() - started < SOON, "{error}");
    error
}

#[test]
fn seeds_without_an_answer_are_named() {
    let network = Network::new();
    let seeds = [1, 2].map(|number| format!("redis://:s3cret@{}:{PORT}", network.ip(number)));
    let error = refused(RedisStore::cluster(seeds));
    let text = error.to_string();
    assert!(
        error.is_transient() && text.contains("none of 2 nodes") && text.contains(&network.ip(1)[..6]),
        "{text}"
    );
    assert!(!text.contains("s3cret"), "{text}");
    let error = refused(RedisStore::sentinel([dead_sentinel(&network)], SERVICE));
    assert!(error.is_transient() && error.to_string().contains("none of 1 sentinels"), "{error}");
}

#[test]
fn no_urls_and_bad_urls_are_refused() {
    let none: [&str; 0] = [];
    for builder in [RedisStore::cluster(none), RedisStore::sentinel(none, SERVICE)] {
        let error = refused(builder);
        assert!(!error.is_transient() && error.to_string().contains("no URL"), "{error}");
    }
    for builder in
        [RedisStore::cluster(["http://:s3cret@host"]), RedisStore::sentinel(["nonsense s3cret"], SERVICE)]
    {
        let error = refused(builder);
        assert!(!error.is_transient() && error.to_string().contains("URL"), "{error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}

#[test]
fn a_server_that_is_no_cluster_or_no_sentinel_is_named() {
    let network = Network::new();
    let single = Node::start(&network.ip(1), &[]);
    let error = refused(RedisStore::cluster([single.url()]));
    assert!(!error.is_transient() && error.to_string().contains("RedisStore::connect"), "{error}");
    let error = refused(RedisStore::sentinel([single.url()], SERVICE));
    assert!(!error.is_transient() && error.to_string().contains("not a sentinel"), "{error}");
}

#[test]
fn a_cluster_that_covers_not_all_slots_is_refused_until_it_does() {
    let network = Network::new();
    let node = Node::start(&network.ip(1), &["--cluster-enabled", "yes"]);
    node.ask::<()>("CLUSTER ADDSLOTSRANGE 0 16000");
    let error = refused(RedisStore::cluster([node.url()]));
    assert!(error.is_transient() && error.to_string().contains("383 of its 16384 slots"), "{error}");
    node.ask::<()>("CLUSTER ADDSLOTSRANGE 16001 16383");
    until("the cluster is well", || node.ask::<String>("CLUSTER INFO").contains("cluster_state:ok"));
    block_on_tokio(async {
        let engine = engine(RedisStore::cluster([node.url()]).connect().await.unwrap());
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
    });
}

#[test]
fn a_service_that_sentinels_do_not_know_is_named() {
    let servers = Servers::watched(&[]);
    let error = refused(RedisStore::sentinel(servers.sentinels.iter().map(Node::url), "refunds"));
    assert!(!error.is_transient() && error.to_string().contains("\"refunds\""), "{error}");
    let error = refused(RedisStore::builder(&servers.sentinels[0].url()));
    assert!(error.to_string().contains("RedisStore::sentinel"), "{error}");
    let error = refused(RedisStore::builder(&servers.nodes[1].url()));
    assert!(error.to_string().contains("replica"), "{error}");
}

#[test]
fn a_service_outlives_the_sentinels_that_were_named() {
    let mut servers = Servers::watched(&[]);
    block_on_tokio(async {
        // Only one is named; it tells the others.
        let builder = RedisStore::sentinel([servers.sentinels[0].url()], SERVICE);
        let store = builder.connect().await.unwrap();
        let engine = engine(store.clone());
        acquire(&engine, &request("before")).await.complete("done").await.unwrap();
        tokio::task::block_in_place(|| servers.sentinels[0].kill());
        let failed = servers.primary();
        tokio::task::block_in_place(|| servers.nodes[failed].kill());
        acquire(&engine, &request("after")).await.complete("done").await.unwrap();
        tokio::task::block_in_place(|| until("another primary", || servers.primary() != failed));
        let health = store.health().await;
        assert!(health.is_ready(), "{health:?}");
    });
}

/// A sentinel is gone, and its address is given to one that watches a service of the same name
/// elsewhere, which had more failovers.
#[test]
fn s9_a_sentinel_of_another_deployment_at_a_known_address_is_not_followed() {
    // Only one is named; it tells the others.
    another_sentinel_is_not_followed(1);
}

#[test]
fn s9_a_sentinel_of_another_deployment_at_an_address_that_was_named_is_not_followed() {
    another_sentinel_is_not_followed(3);
}

/// Replaces the last sentinel, where so many were named.
fn another_sentinel_is_not_followed(named: usize) {
    let mut servers = Servers::watched(&[]);
    let elsewhere = Node::start(&servers.network.ip(21), &[]);
    block_on_tokio(async {
        let named = servers.sentinels[..named].iter().map(Node::url);
        let store = RedisStore::sentinel(named, SERVICE).connect().await.unwrap();
        let engine = engine(store.clone());
        let address = store.health().await.nodes[0].address.clone();
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
        let lines = [
            format!("sentinel monitor {SERVICE} {} {PORT} 1", elsewhere.ip),
            format!("sentinel config-epoch {SERVICE} 99"),
            // Otherwise the sentinels of both would become one group, and follow it themselves.
            "user default on nopass ~* &* +@all -publish".to_owned(),
        ];
        tokio::task::block_in_place(|| {
            let ip = servers.sentinels[2].ip.clone();
            servers.sentinels[2].kill();
            servers.sentinels[2] = Node::sentinel(&ip, &lines);
        });
        // All of them are asked every second.
        let started = SystemClock.monotonic();
        while SystemClock.monotonic() - started < Duration::from_secs(4) {
            let begin = engine.begin(&request("k")).await.unwrap();
            assert!(matches!(begin, nevertwice::Begin::Completed(_)), "{begin:?}");
            assert_eq!(store.health().await.nodes[0].address, address);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // It is still told of failovers by the others.
        let failed = servers.primary();
        tokio::task::block_in_place(|| servers.nodes[failed].kill());
        acquire(&engine, &request("after")).await.complete("done").await.unwrap();
    });
}

#[test]
fn a_service_goes_on_without_any_sentinel_and_finds_them_again() {
    let mut servers = Servers::watched(&[]);
    block_on_tokio(async {
        let engine = engine(servers.store().replicated(1).connect().await.unwrap());
        tokio::task::block_in_place(|| servers.sentinels.iter_mut().for_each(Node::kill));
        acquire(&engine, &request("without")).await.complete("done").await.unwrap();
        tokio::task::block_in_place(|| servers.sentinels.iter_mut().for_each(Node::restart));
        let failed = servers.primary();
        tokio::task::block_in_place(|| servers.nodes[failed].kill());
        acquire(&engine, &request("again")).await.complete("done").await.unwrap();
        tokio::task::block_in_place(|| until("another primary", || servers.primary() != failed));
    });
}

#[test]
fn a_cluster_that_was_down_as_a_whole_is_found_again() {
    let mut servers = Servers::cluster(&["--appendonly", "yes", "--appendfsync", "always"]);
    block_on_tokio(async {
        let store = servers.store().replicated(1).connect().await.unwrap();
        let engine = engine(store.clone());
        let held = acquire(&engine, &request("k")).await;
        tokio::task::block_in_place(|| servers.nodes.iter_mut().for_each(Node::kill));
        let health = store.health().await;
        assert!(!health.is_ready() && health.nodes.iter().all(|node| node.fault.is_some()), "{health:?}");
        tokio::task::block_in_place(|| servers.nodes.iter_mut().for_each(Node::restart));
        held.complete("done").await.unwrap();
        tokio::task::block_in_place(|| servers.until_whole());
        assert!(store.health().await.is_ready());
    });
}

#[test]
fn users_of_nodes_and_of_sentinels_are_told_apart() {
    let servers = Servers::watched(&[]);
    let needed =
        "~nevertwice:* -@all +evalsha +script|load +get +set +time +hello +wait +info +client|tracking";
    for node in &servers.nodes {
        node.ask::<()>(&format!("ACL SETUSER dora on >n0des {needed}"));
        node.ask::<()>("ACL SETUSER default +@all -evalsha");
    }
    for sentinel in &servers.sentinels {
        sentinel.ask::<()>("ACL SETUSER otto on >w4tch +@all");
        sentinel.ask::<()>("ACL SETUSER default off");
    }
    let urls: Vec<_> =
        servers.sentinels.iter().map(|node| node.url().replace("redis://", "redis://otto:w4tch@")).collect();
    block_on_tokio(async {
        let store = RedisStore::sentinel(&urls, SERVICE).login("dora", "n0des").connect().await.unwrap();
        let engine = engine(store);
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
        let error = RedisStore::sentinel(&urls, SERVICE).connect().await.unwrap_err();
        assert!(error.to_string().contains("permission") || error.to_string().contains("EVALSHA"), "{error}");
        let error = RedisStore::sentinel(servers.sentinels.iter().map(Node::url), SERVICE).connect().await;
        assert!(!error.unwrap_err().is_transient());
    });
}

#[test]
fn the_permissions_in_the_documentation_are_enough_for_a_cluster() {
    let servers = Servers::cluster(&[]);
    let needed =
        "~nevertwice:* -@all +evalsha +script|load +get +set +time +hello +cluster|slots +asking +wait";
    servers.nodes.iter().for_each(|node| node.ask::<()>(&format!("ACL SETUSER dora on >n0des {needed}")));
    block_on_tokio(async {
        let store = servers.store().login("dora", "n0des").replicated(1).connect().await.unwrap();
        let engine = engine(store.clone());
        for number in 0..20 {
            acquire(&engine, &request(&format!("{number}"))).await.complete("done").await.unwrap();
        }
        assert!(store.discard(&request("1").id()).await.unwrap());
    });
}

/// Otherwise keys of slots that move would be unavailable for no reason that is shown.
#[test]
fn a_user_who_may_not_ask_for_slots_on_their_way_is_refused() {
    let network = Network::new();
    let node = Node::start(&network.ip(1), &["--cluster-enabled", "yes"]);
    node.ask::<()>("CLUSTER ADDSLOTSRANGE 0 16383");
    until("the cluster is well", || node.ask::<String>("CLUSTER INFO").contains("cluster_state:ok"));
    node.ask::<()>("ACL SETUSER rosa on >s3cret ~* +@all -asking");
    let error = refused(RedisStore::cluster([node.url()]).login("rosa", "s3cret"));
    assert!(!error.is_transient() && error.to_string().contains("+asking"), "{error}");
}

/// As in a rolling deployment while one server is down.
#[test]
fn a_process_can_start_while_one_node_is_down() {
    let options = ["--cluster-node-timeout", "60000", "--cluster-require-full-coverage", "no"];
    let mut servers = Servers::cluster(&options);
    block_on_tokio(async {
        tokio::task::block_in_place(|| servers.nodes[0].kill());
        let store = servers.store().connect().await.unwrap();
        let health = store.health().await;
        assert_eq!(health.nodes.iter().filter(|node| node.fault.is_some()).count(), 1, "{health:?}");
        let limit = Duration::from_secs(2);
        let hasty = nevertwice::Engine::builder(store.clone()).call_timeout(limit).build().unwrap();
        let requests: Vec<_> = (0..60).map(|number| request(&format!("{number}"))).collect();
        let begun = hasty.begin_many(&requests).await;
        let granted = begun.iter().filter(|begun| begun.is_ok()).count();
        assert!((20..=55).contains(&granted), "{granted}: two of three shards answer");
        tokio::task::block_in_place(|| servers.nodes[0].restart());
        // Their scripts were never loaded there.
        let engine = engine(store.clone());
        for number in 100..130 {
            acquire(&engine, &request(&format!("{number}"))).await.complete("done").await.unwrap();
        }
        tokio::task::block_in_place(|| servers.nodes[..3].iter_mut().for_each(Node::kill));
        let error = servers.store().connect().await.unwrap_err();
        assert!(error.is_transient(), "{error}");
    });
}

#[test]
fn nodes_are_asked_for_the_layout_over_the_same_connections() {
    let servers = Servers::cluster(&[]);
    block_on_tokio(async {
        let store = servers.store().connect().await.unwrap();
        let opened = || -> usize {
            let opened = |node: &Node| {
                let info: String = node.ask("INFO stats");
                let count = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
                count.unwrap().trim().parse::<usize>().unwrap()
            };
            servers.nodes.iter().map(opened).sum()
        };
        for _ in 0..5 {
            store.scan(None, 10).await.unwrap();
        }
        let before = opened();
        for _ in 0..30 {
            store.scan(None, 10).await.unwrap();
        }
        // The second question is one more to each.
        let more = opened() - before - servers.nodes.len();
        assert!(more <= 12, "{more} connections for 30 questions or more");
    });
}

/// A store that is cut off together with the primary gets no error that would tell of a failover.
#[test]
fn a_failover_is_noticed_without_an_error_also_where_the_runtime_of_connect_is_gone() {
    let servers = Servers::watched(&[]);
    let store = block_on_tokio(servers.store().connect()).unwrap();
    block_on_tokio(async {
        let failed = servers.primary();
        // Its connection was of the other runtime.
        while !store.health().await.is_ready() {}
        servers.network.cut(&servers.nodes[failed].ip);
        tokio::task::block_in_place(|| until("another primary", || servers.primary() != failed));
        let address = format!("{}:{PORT}", servers.nodes[servers.primary()].ip);
        let started = SystemClock.monotonic();
        while store.health().await.nodes[0].address != address {
            assert!(SystemClock.monotonic() - started < Duration::from_secs(20), "it never follows");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

/// The parts of a batch for one shard follow each other; those of other shards do not wait.
#[test]
fn l1_a_stopped_shard_holds_back_no_other_shard_of_a_batch() {
    let servers = Servers::cluster(&["--cluster-node-timeout", "60000"]);
    block_on_tokio(async {
        let store = servers.store().connect().await.unwrap();
        let swaps: Vec<_> = (0..4000)
            .map(|number| SwapRequest::new(&request(&format!("{number}")).id(), Some(Stamp(1)), None))
            .collect();
        servers.nodes[0].signal("STOP");
        let started = SystemClock.monotonic();
        let answers = store.swap_many(&swaps).await;
        let took = SystemClock.monotonic() - started;
        servers.nodes[0].signal("CONT");
        let answered = answers.iter().filter(|answer| answer.is_ok()).count();
        assert!((2000..3500).contains(&answered), "{answered}: two of three shards answer");
        // One answer of the stopped node is waited for, and not one for each part.
        assert!(took < Duration::from_secs(4), "{took:?}");
    });
}

#[test]
fn l1_no_call_is_late_while_one_node_is_stopped() {
    let servers = Servers::cluster(&["--cluster-node-timeout", "60000"]);
    block_on_tokio(async {
        let store = servers.store().connect().await.unwrap();
        let limit = Duration::from_secs(2);
        let engine =
            nevertwice::Engine::builder(store).call_timeout(limit).finish_timeout(limit).build().unwrap();
        servers.nodes[0].signal("STOP");
        let begins = (0..120).map(async |number| {
            let started = SystemClock.monotonic();
            let begun = engine.begin(&request(&format!("{number}"))).await;
            (begun.is_ok(), SystemClock.monotonic() - started)
        });
        let answers = futures_util::future::join_all(begins).await;
        servers.nodes[0].signal("CONT");
        let granted = answers.iter().filter(|(is_granted, _)| *is_granted).count();
        assert!((40..=110).contains(&granted), "{granted}: two of three shards answer");
        // Those of other nodes are not delayed, and none ends after its time, but for what a busy
        // machine takes.
        for (is_granted, took) in answers {
            assert!(took < limit * if is_granted { 3 } else { 6 } / 4, "{is_granted}: {took:?}");
        }
    });
}

#[test]
fn a_cluster_restarted_node_by_node_is_one_effect_each() {
    let options = ["--appendonly", "yes", "--appendfsync", "always"];
    let mut servers = Servers::cluster(&options);
    let storm = crate::storm::Storm::endless("restarts");
    block_on_tokio(async {
        let engine = engine(servers.store().replicated(1).connect().await.unwrap());
        let working = tokio::spawn({
            let (storm, engine) = (std::sync::Arc::clone(&storm), engine.clone());
            async move { storm.run(&[engine], 16).await }
        });
        tokio::task::block_in_place(|| {
            for node in 0..servers.nodes.len() {
                servers.nodes[node].kill();
                servers.nodes[node].restart();
                servers.until_whole();
                more(&storm, 100);
            }
        });
        storm.end();
        working.await.unwrap();
        let audit = storm.ledger().audit(&engine).await;
        audit.require(
            "cluster restarted node by node",
            &[("nodes", &6), ("calls_repeated", &storm.refused())],
        );
        assert_eq!(storm.leases_lost(), 0);
    });
}
