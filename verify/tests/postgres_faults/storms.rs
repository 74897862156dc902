//! 64 workers and keys that are delivered three times each, while the server ends sessions and
//! statements, connections are cut, and the server itself ends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use nevertwice::postgres::tokio_postgres::{self, NoTls};
use nevertwice::{Engine, PostgresStore};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use crate::ledger::Audit;
use crate::proxy::Proxy;
use crate::server::Server;
use crate::storm::Storm;
use crate::{block_on_tokio, length};

const WORKERS: usize = 64;
const KEYS: usize = 500;
/// Number of engines, which stand for processes.
const ENGINES: usize = 3;
/// Longer than any check.
const LEASE: Duration = Duration::from_secs(3600);
const END_SESSIONS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
     WHERE application_name = 'nevertwice' AND state <> 'idle'";
const END_STATEMENTS: &str = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity \
     WHERE application_name = 'nevertwice' AND state = 'active'";
/// Lets stores send single statements.
const NO_FUNCTIONS: &str = "DROP FUNCTION nevertwice_swap_v1, nevertwice_swap_one_v1, nevertwice_swap_together_v1, \
     nevertwice_purge_v1";

async fn engine(url: &str) -> Engine {
    let store = PostgresStore::connect(url).await.unwrap();
    Engine::builder(store).lease(LEASE).call_timeout(Duration::from_secs(30)).build().unwrap()
}

async fn engines(url: &str) -> Vec<Engine> {
    join_all((0..ENGINES).map(|_| engine(url))).await
}

/// Requires that each key was executed once, and that every worker was told its one outcome.
async fn finish(fault: &str, storm: &Storm, server: &Server, faults: usize) -> Audit {
    let audit = storm.ledger().audit(&engine(&server.url()).await).await;
    let (workers, refused) = (WORKERS, storm.refused());
    audit.require(fault, &[("faults", &faults), ("workers", &workers), ("calls_repeated", &refused)]);
    assert_eq!(storm.leases_lost(), 0, "{fault}");
    assert!(faults > 2, "{fault}: {faults}");
    audit
}

/// Runs SQL whenever there are new outcomes, by functions and by single statements. Each row of its
/// answer is a fault.
fn storm_with(fault: &str, name: &'static str, disturb: &str) {
    let server = Server::start(&["fsync=off"]);
    drop(block_on_tokio(engine(&server.url())));
    for (way, prepare) in [("by function", "SELECT 1"), ("by statements", NO_FUNCTIONS)] {
        server.sql(prepare);
        server.sql("TRUNCATE nevertwice");
        let storm = Storm::new(name, KEYS * length());
        block_on_tokio(async {
            let engines = engines(&server.url()).await;
            let (client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
            tokio::spawn(connection);
            let disturbing = async {
                let (mut faults, mut seen) = (0, 0);
                while !storm.is_over() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    let before = std::mem::replace(&mut seen, storm.ledger().acknowledged());
                    if seen > before {
                        faults += client.query(disturb, &[]).await.unwrap().len();
                    }
                }
                faults
            };
            let ((), faults) = futures_util::join!(storm.run(&engines, WORKERS), disturbing);
            let audit = finish(&format!("{fault}, {way}"), &storm, &server, faults).await;
            assert_eq!(audit.acknowledged, KEYS * length());
        });
    }
}

#[test]
fn s6_postgres_sessions_ended_all_the_time_are_one_effect_each() {
    storm_with("sessions ended", "sessions", END_SESSIONS);
}

/// As `statement_timeout` and operators do.
#[test]
fn s6_postgres_statements_ended_all_the_time_are_one_effect_each() {
    storm_with("statements ended", "statements", END_STATEMENTS);
}

async fn storm_of_cuts(server: &Server, fault: &str, name: &'static str, cut: fn(&Proxy, usize)) {
    let storm = Storm::new(name, KEYS * length());
    let proxy = Proxy::start(server.port()).await;
    let engines = engines(&server.url_at(proxy.port())).await;
    let cutting = async {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(0x5eed);
        let mut cuts = 0;
        while !storm.is_over() {
            cut(&proxy, random.random_range(0..20_000));
            tokio::time::sleep(Duration::from_millis(3)).await;
            cuts += usize::from(proxy.heal());
        }
        cuts
    };
    let ((), cuts) = futures_util::join!(storm.run(&engines, WORKERS), cutting);
    let audit = finish(fault, &storm, server, cuts).await;
    assert_eq!(audit.acknowledged, KEYS * length());
}

/// The answers to many callers share a connection that is cut anywhere: each caller gets its own,
/// once.
#[test]
fn s6_postgres_connections_of_many_callers_cut_anywhere_are_one_effect_each() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        storm_of_cuts(&server, "answers to 64 callers cut", "answers", Proxy::cut_reply_after).await;
        storm_of_cuts(&server, "requests of 64 callers cut", "requests", Proxy::cut_request_after).await;
    });
}

/// Ends the server again and again under the workers, and starts it again.
fn restart_under_a_storm(fault: &str, name: &'static str, end: fn(&mut Server)) {
    let mut server = Server::start(&[]);
    let storm = Storm::endless(name);
    let mut random = Xoshiro256PlusPlus::seed_from_u64(0x5eed);
    block_on_tokio(async {
        let engines = engines(&server.url()).await;
        let working = tokio::spawn({
            let storm = Arc::clone(&storm);
            async move { storm.run(&engines, WORKERS).await }
        });
        let kills = 4 * length();
        for _ in 0..kills {
            let before = storm.ledger().acknowledged();
            while storm.ledger().acknowledged() < before + 50 && !working.is_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            // At a random moment.
            tokio::time::sleep(Duration::from_micros(random.random_range(0..20_000))).await;
            tokio::task::block_in_place(|| {
                end(&mut server);
                server.restart();
            });
        }
        storm.end();
        working.await.unwrap();
        finish(fault, &storm, &server, kills).await;
    });
}

#[test]
fn s9_a_postgres_server_killed_under_many_callers_loses_and_doubles_nothing() {
    restart_under_a_storm("server kill -9", "killed", Server::kill);
}

#[test]
fn s9_a_postgres_server_restarted_under_many_callers_loses_and_doubles_nothing() {
    restart_under_a_storm("server restarted", "restarted", Server::stop);
}
