//! Servers that die: data kept at each level of durability.

use std::sync::Arc;
use std::time::Duration;

use nevertwice::store::Store;
use nevertwice::{Durability, Engine, RedisStore};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::bench::{LEASE, connect, engine};
use crate::ledger::Audit;
use crate::server::{Proxy, Server};
use crate::storm::Storm;
use crate::{block_on_tokio, length, until};

const WORKERS: usize = 16;
const ALWAYS: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Kills the server repeatedly while workers run, restarts it at once, and returns the final audit.
fn kill_and_restart(name: &'static str, options: &[&str], kills: usize) -> (Audit, Arc<Storm>, Durability) {
    let mut server = Server::start(options);
    let is_strict = options == ALWAYS;
    let storm = if is_strict { Storm::endless(name) } else { Storm::on_weak_server(name) };
    let mut random = Xoshiro256PlusPlus::seed_from_u64(0x5eed);
    block_on_tokio(async {
        let store = RedisStore::connect(&server.url()).await.unwrap();
        let durability = store.durability();
        let engines =
            [Engine::builder(store).lease(LEASE).call_timeout(Duration::from_secs(30)).build().unwrap()];
        let working = tokio::spawn({
            let storm = Arc::clone(&storm);
            async move { storm.run(&engines, WORKERS).await }
        });
        for _ in 0..kills {
            let before = storm.ledger().acknowledged();
            until("outcomes", async || storm.ledger().acknowledged() >= before + 20 || working.is_finished())
                .await;
            // At a random moment.
            tokio::time::sleep(Duration::from_micros(random.random_range(0..20_000))).await;
            tokio::task::block_in_place(|| {
                server.kill();
                server.restart();
            });
        }
        storm.end();
        working.await.unwrap();
        let audit = storm.ledger().audit(&engine(&connect(&server).await)).await;
        (audit, storm, durability)
    })
}

#[test]
fn s9_a_server_that_syncs_always_loses_nothing_when_killed() {
    let kills = 30 * length();
    let (audit, storm, durability) = kill_and_restart("always", &ALWAYS, kills);
    let repeated = storm.refused();
    audit.require(
        "server kill -9",
        &[("level", &durability), ("aof", &"always"), ("kills", &kills), ("calls_repeated", &repeated)],
    );
    assert_eq!((durability, storm.leases_lost()), (Durability::Power, 0));
}

/// These levels promise less: the test prints figures, and checks that the store reports the level.
#[test]
fn s9_what_weaker_servers_lose_when_killed_is_shown() {
    let everysec: &[&str] = &["--appendonly", "yes", "--appendfsync", "everysec"];
    for (aof, options, level) in
        [("everysec", everysec, Durability::Process), ("none", &[], Durability::Memory)]
    {
        let kills = 5 * length();
        let (audit, storm, durability) = kill_and_restart(aof, options, kills);
        let lost = storm.leases_lost();
        audit.report(
            "server kill -9",
            &[("level", &durability), ("aof", &aof), ("kills", &kills), ("leases_lost", &lost)],
        );
        assert_eq!(durability, level);
        if durability == Durability::Memory {
            assert!(audit.lost > 0, "a server without a file kept everything: the check sees nothing");
        }
    }
}

/// A replica replaces a primary that was cut off, or killed while it worked. No promise is made
/// here: the store does not wait for replicas.
#[test]
fn s9_what_a_failover_loses_is_shown() {
    for is_cut_off in [false, true] {
        block_on_tokio(fail_over(is_cut_off));
    }
}

async fn fail_over(is_cut_off: bool) {
    let at_once = ["--repl-diskless-sync-delay", "0"];
    let options = [&ALWAYS[..], &at_once].concat();
    // A less durable replica would be given no grants.
    let (mut primary, replica) = (Server::start(&options), Server::start(&ALWAYS));
    let (link, name) = (Proxy::start(primary.port()).await, Proxy::start(primary.port()).await);
    replica.ask::<()>(&format!("REPLICAOF 127.0.0.1 {}", link.port()));
    let in_step = async || replica.ask::<String>("INFO replication").contains("master_link_status:up");
    until("the replica is in step", in_step).await;

    let store = RedisStore::builder(&name.url()).response_timeout(Duration::from_millis(300));
    let store = store.connect().await.unwrap();
    let engines =
        [Engine::builder(store).lease(LEASE).call_timeout(Duration::from_secs(30)).build().unwrap()];
    let storm = Storm::on_weak_server("failover");
    let working = tokio::spawn({
        let storm = Arc::clone(&storm);
        async move { storm.run(&engines, WORKERS).await }
    });
    let more = async |outcomes| {
        let before = storm.ledger().acknowledged();
        until("outcomes", async || storm.ledger().acknowledged() >= before + outcomes).await;
    };
    more(200).await;
    if is_cut_off {
        link.silence();
        more(200).await;
    }
    tokio::task::block_in_place(|| primary.kill());
    replica.ask::<()>("REPLICAOF NO ONE");
    name.lead_to(replica.port());
    more(200).await;
    storm.end();
    working.await.unwrap();
    let audit = storm.ledger().audit(&engine(&connect(&replica).await)).await;
    let (cut_off, lost) = (if is_cut_off { "200 outcomes long" } else { "no" }, storm.leases_lost());
    let fault = if is_cut_off { "failover, primary cut off before" } else { "failover, primary killed" };
    audit.report(
        fault,
        &[("waits_for_replicas", &"no"), ("cut_off", &format!("\"{cut_off}\"")), ("leases_lost", &lost)],
    );
    assert!(
        !is_cut_off || audit.lost > 0,
        "nothing of what the replica never heard was lost: the check sees nothing"
    );
}
