//! 64 workers and keys that are delivered three times each, while connections break and the server
//! loses its scripts.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use nevertwice::{Engine, RedisStore};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::bench::{LEASE, SLACKS, connect, engine};
use crate::server::{Proxy, Server};
use crate::storm::{Disturbance, Storm};
use crate::{block_on_tokio, length};

const WORKERS: usize = 64;
const KEYS: usize = 2000;
/// Number of engines, which stand for processes.
const ENGINES: usize = 4;

async fn engines(url: &str) -> Vec<Engine> {
    let stores = join_all((0..ENGINES).map(|number| {
        let slack = SLACKS[number % SLACKS.len()];
        RedisStore::builder(url).clock_slack(slack).connect()
    }));
    let stores = stores.await;
    let build =
        |store| Engine::builder(store).lease(LEASE).call_timeout(Duration::from_secs(20)).build().unwrap();
    stores.into_iter().map(|store| build(store.unwrap())).collect()
}

/// Disturbs the server whenever there are new outcomes. A timer would not do: on a busy machine it
/// could kill connections faster than they are opened.
fn storm_with(fault: &'static str, disturb: impl Fn(&mut redis::Connection) -> u64 + Send + 'static) {
    let server = Server::start(&[]);
    let storm = Storm::new(fault, KEYS * length());
    block_on_tokio(async {
        let engines = engines(&server.url()).await;
        let (mut raw, mut seen, progress) = (server.raw(), 0, Arc::clone(&storm));
        let disturbance = Disturbance::start(move || {
            std::thread::sleep(Duration::from_micros(100));
            let before = std::mem::replace(&mut seen, progress.ledger().acknowledged());
            if seen > before { disturb(&mut raw) } else { 0 }
        });
        storm.run(&engines, WORKERS).await;
        finish(fault, &storm, &server, disturbance.stop()).await;
    });
}

async fn finish(fault: &str, storm: &Storm, server: &Server, faults: u64) {
    let audit = storm.ledger().audit(&engine(&connect(server).await)).await;
    let (workers, refused, leases_lost) = (WORKERS, storm.refused(), storm.leases_lost());
    audit.require(fault, &[("faults", &faults), ("workers", &workers), ("calls_repeated", &refused)]);
    assert_eq!((audit.acknowledged, leases_lost), (KEYS * length(), 0));
    assert!(faults > 5, "{faults}");
}

#[test]
fn s6_connections_killed_all_the_time_are_one_effect_each() {
    storm_with("connections killed", |raw| {
        redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]).query(raw).unwrap()
    });
}

#[test]
fn s6_scripts_flushed_all_the_time_are_one_effect_each() {
    storm_with("scripts flushed", |raw| {
        redis::cmd("SCRIPT").arg("FLUSH").exec(raw).unwrap();
        1
    });
}

/// The answers to many callers share a connection that is cut anywhere: each caller gets its own,
/// once.
fn storm_of_cuts(fault: &'static str, cut: fn(&Proxy, usize)) {
    let server = Server::start(&[]);
    let storm = Storm::new(fault, KEYS * length());
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        let engines = engines(&proxy.url()).await;
        let cutting = async {
            let mut random = Xoshiro256PlusPlus::seed_from_u64(0x5eed);
            let mut cuts = 0;
            loop {
                cut(&proxy, random.random_range(0..20_000));
                tokio::time::sleep(Duration::from_millis(3)).await;
                cuts += u64::from(proxy.heal());
                if storm.is_over() {
                    return cuts;
                }
            }
        };
        let ((), cuts) = futures_util::join!(storm.run(&engines, WORKERS), cutting);
        finish(fault, &storm, &server, cuts).await;
    });
}

#[test]
fn s6_answers_to_many_callers_cut_anywhere_are_one_effect_each() {
    storm_of_cuts("answers to 64 callers cut", Proxy::cut_reply_after);
}

#[test]
fn s6_requests_of_many_callers_cut_anywhere_are_one_effect_each() {
    storm_of_cuts("requests of 64 callers cut", Proxy::cut_request_after);
}
