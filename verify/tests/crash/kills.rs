//! `kill -9` of processes that use a store, at any moment.

use std::path::Path;
use std::time::Duration;

use nevertwice::sqlite::Synchronous;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::acknowledged::{Acknowledged, Ledger, assert_intact};
use super::disks::say;
use super::server::Server;
use super::worker::{self, Orders, Running, Target};
use super::{scaled, seed};

const FILE_TEST: &str = "kills::s8_s9_kill_9_loses_nothing_acknowledged_and_repeats_no_effect";
const SERVER_TEST: &str = "kills::s8_s9_kill_9_of_clients_of_postgres_loses_nothing_and_repeats_no_effect";
/// The number of rounds per file, and the number of workers on it at once.
const FILES: [(u64, u64); 3] = [(100, 1), (100, 1), (50, 2)];
/// The same for each server.
const SERVERS: [(u64, u64); 2] = [(30, 1), (20, 2)];
/// The maximum number of acknowledgements before the kill.
const MOST: u64 = 500;

/// The workers that are killed on one store.
#[derive(Clone, Copy)]
struct Kills {
    test: &'static str,
    seed: u64,
    rounds: u64,
    /// The number of workers at once.
    processes: u64,
}

#[test]
fn s8_s9_kill_9_loses_nothing_acknowledged_and_repeats_no_effect() {
    if worker::is_worker() {
        return worker::work();
    }
    let (kills, operations) = on_each(FILE_TEST, FILES, |kills| {
        let dir = tempfile::tempdir().unwrap();
        let operations = kills.run(Target::File(dir.path(), Synchronous::Full), dir.path());
        assert_intact(dir.path());
        operations
    });
    report("sqlite", kills, operations);
    assert!(kills >= scaled(300) && operations >= scaled(50_000), "{kills} kills, {operations} operations");
}

/// The server may still commit what a client sent before it was killed.
#[test]
fn s8_s9_kill_9_of_clients_of_postgres_loses_nothing_and_repeats_no_effect() {
    if worker::is_worker() {
        return worker::work();
    }
    let (kills, operations) = on_each(SERVER_TEST, SERVERS, |kills| {
        let server = Server::start(&[]);
        let dir = tempfile::tempdir().unwrap();
        let operations = kills.run(Target::Server(&server.url()), dir.path());
        until_only_one_client_is_left(&server);
        operations
    });
    report("postgres", kills, operations);
    assert!(kills >= scaled(70) && operations >= scaled(5_000), "{kills} kills, {operations} operations");
}

/// Waits until the sessions of the killed clients are gone; the test's own engine keeps its own.
fn until_only_one_client_is_left(server: &Server) {
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nevertwice'";
    for _ in 0..600 {
        if server.sql(sessions).parse::<usize>().unwrap() <= 10 {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("{} sessions are left", server.sql(sessions));
}

/// Works on all stores at once. Returns the numbers of kills and of acknowledged operations.
fn on_each<const N: usize>(
    test: &'static str,
    stores: [(u64, u64); N],
    work: impl Fn(Kills) -> u64 + Sync,
) -> (u64, u64) {
    let (work, mut seeds) = (&work, (0..).map(|store| seed() ^ store << 48));
    let operations = std::thread::scope(|scope| {
        let running = stores.map(|(rounds, processes)| {
            let seed = seeds.next().unwrap();
            scope.spawn(move || work(Kills { test, seed, rounds: scaled(rounds), processes }))
        });
        running.map(|store| store.join().unwrap()).iter().sum()
    });
    (stores.iter().map(|(rounds, processes)| scaled(*rounds) * processes).sum(), operations)
}

fn report(backend: &str, kills: u64, operations: u64) {
    say(&format!(
        "fault: backend={backend} fault=\"kill -9, one process and two\" kills={kills} acknowledged={operations} lost=0 duplicated=0"
    ));
}

impl Kills {
    /// Kills workers on one store. Returns the number of acknowledged operations.
    fn run(self, target: Target<'_>, dir: &Path) -> u64 {
        let ledger = dir.join("effects");
        let mut acknowledged = Acknowledged::default();
        for round in 0..self.rounds {
            let run = |process: u64| {
                let orders = Orders {
                    test: self.test,
                    target,
                    ledger: &ledger,
                    seed: self.seed ^ round << 16 ^ process << 8,
                    first: round * 10,
                };
                let mut random = Xoshiro256PlusPlus::seed_from_u64(orders.seed);
                let (most, after) = (random.random_range(0..MOST), random.random_range(0..2000));
                let mut said = Acknowledged::default();
                let mut worker = Running::start(orders);
                worker.follow(most, &mut |line| said.note(line));
                // The kill should not always come right after an acknowledgement.
                std::thread::sleep(Duration::from_micros(after));
                worker.kill(&mut |line| said.note(line));
                said
            };
            let said: Vec<Acknowledged> = std::thread::scope(|scope| {
                let workers: Vec<_> =
                    (0..self.processes).map(|process| scope.spawn(move || run(process))).collect();
                workers.into_iter().map(|worker| worker.join().unwrap()).collect()
            });
            said.iter().for_each(|said| acknowledged.add(said));
        }
        assert_eq!(acknowledged.lost(&worker::engine(target)), [0; 0], "lost");
        let ledger = Ledger::read(&ledger);
        assert_eq!(ledger.duplicated(), [0; 0], "two effects");
        assert_eq!(acknowledged.not_done(&ledger), [0; 0], "no effect");
        acknowledged.operations
    }
}
