//! `kill -9` at any moment.

use std::time::Duration;

use nevertwice::sqlite::Synchronous;
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::acknowledged::{Acknowledged, Ledger, assert_intact};
use super::disks::say;
use super::worker::{self, Orders, Running};
use super::{scaled, seed};

const TEST: &str = "kills::s8_s9_kill_9_loses_nothing_acknowledged_and_repeats_no_effect";
/// The number of kills per file, and the number of workers on it at once.
const FILES: [(u64, u64); 3] = [(100, 1), (100, 1), (50, 2)];
/// The maximum number of acknowledgements before the kill.
const MOST: u64 = 500;

#[test]
fn s8_s9_kill_9_loses_nothing_acknowledged_and_repeats_no_effect() {
    if worker::is_worker() {
        return worker::work();
    }
    let seed = seed();
    let operations: u64 = std::thread::scope(|scope| {
        let files = FILES.iter().zip(0..).map(|((rounds, processes), file)| {
            scope.spawn(move || work_on_a_file(seed ^ file << 48, scaled(*rounds), *processes))
        });
        let files: Vec<_> = files.collect();
        files.into_iter().map(|file| file.join().unwrap()).sum()
    });
    let kills: u64 = FILES.iter().map(|(rounds, processes)| scaled(*rounds) * processes).sum();
    say(&format!(
        "fault: backend=sqlite fault=\"kill -9, one process and two\" kills={kills} acknowledged={operations} lost=0 duplicated=0"
    ));
    assert!(kills >= scaled(300) && operations >= scaled(50_000), "{kills} kills, {operations} operations");
}

/// Kills workers on one file, `processes` at a time. Returns the number of acknowledged operations.
fn work_on_a_file(seed: u64, rounds: u64, processes: u64) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let ledger = dir.path().join("effects");
    let mut acknowledged = Acknowledged::default();
    for round in 0..rounds {
        let run = |process: u64| {
            let orders = Orders {
                test: TEST,
                folder: dir.path(),
                ledger: &ledger,
                seed: seed ^ round << 16 ^ process << 8,
                first: round * 10,
                level: Synchronous::Full,
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
            let workers: Vec<_> = (0..processes).map(|process| scope.spawn(move || run(process))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).collect()
        });
        said.iter().for_each(|said| acknowledged.add(said));
    }
    assert_intact(dir.path());
    assert_eq!(acknowledged.lost(&worker::engine(dir.path(), Synchronous::Full)), [0; 0], "lost");
    let ledger = Ledger::read(&ledger);
    assert_eq!(ledger.duplicated(), [0; 0], "two effects");
    assert_eq!(acknowledged.not_done(&ledger), [0; 0], "no effect");
    acknowledged.operations
}
