//! Simulation: whole engines, several on each store, in virtual time, with every choice drawn from
//! a seed. Messages are lost, delayed and duplicated, callers crash at any await, processes pause,
//! and their clocks show anything. A ledger checks every write and every answer. A failing seed
//! prints the command that replays it.
#![allow(clippy::wildcard_enum_match_arm)] // whatever else it is, the check fails
#![allow(clippy::print_stdout)] // what a run did is part of its result

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use self::ledger::Counts;
use self::world::{Report, live};

#[path = "simulation/actors.rs"]
mod actors;
#[path = "simulation/answers.rs"]
mod answers;
#[path = "simulation/executor.rs"]
mod executor;
#[path = "simulation/ledger.rs"]
mod ledger;
#[path = "simulation/wire.rs"]
mod wire;
#[path = "simulation/world.rs"]
mod world;

/// The number of seeds for each test: what `tests/run` does, in an optimised build; a tenth without
/// optimisation. `NEVERTWICE_LONG` multiplies it by ten.
const SEEDS: u64 = if cfg!(debug_assertions) { 1_000 } else { 10_000 };

/// Runs seeds 0, 1, 2, .. on all cores, or with a full trace the one that `NEVERTWICE_SEED` names.
fn explore(test: &str, heals: bool) {
    if let Ok(seed) = std::env::var("NEVERTWICE_SEED") {
        let seed = seed.parse().expect("NEVERTWICE_SEED is a number");
        live(seed, heals, true);
        return;
    }
    let seeds = if std::env::var_os("NEVERTWICE_LONG").is_some() { 10 * SEEDS } else { SEEDS };
    let (next, failed, total) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(Counts::default()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let mut sum = Counts::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || failed.load(Ordering::Relaxed) {
                        break;
                    }
                    match catch_unwind(AssertUnwindSafe(|| live(seed, heals, false))) {
                        Ok(report) => sum.add(&report.counts),
                        Err(_) => {
                            failed.store(true, Ordering::Relaxed);
                            println!("replay: NEVERTWICE_SEED={seed} cargo test -p nevertwice-verify --test simulation {test}");
                        }
                    }
                }
                total.lock().unwrap().add(&sum);
            });
        }
    });
    assert!(!failed.load(Ordering::Relaxed), "a seed failed: see the line `replay:` above");
    let total = total.into_inner().unwrap();
    println!("{test}: {}", total.line());
    total.assert_all_happened();
}

#[test]
fn safety_holds_whatever_fails() {
    explore("safety_holds_whatever_fails", false);
}

#[test]
fn once_faults_stop_everything_comes_to_its_end() {
    explore("once_faults_stop_everything_comes_to_its_end", true);
}

/// A failing seed can be replayed: it repeats every event, in the same order and at the same times.
#[test]
fn a_seed_is_always_the_same() {
    for seed in 0..200 {
        let heals = seed % 2 == 0;
        let Report { trace, .. } = live(seed, heals, false);
        assert_eq!(trace, live(seed, heals, false).trace, "seed {seed}");
    }
}
