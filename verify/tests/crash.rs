//! Crashes of a process and of a machine: acknowledged writes survive, and no effect happens twice.
#![allow(clippy::wildcard_enum_match_arm)] // whatever else it is, the test fails

#[path = "crash/acknowledged.rs"]
mod acknowledged;
#[path = "../../tests/support/children.rs"]
mod children;
#[path = "support/disks.rs"]
mod disks;
#[path = "crash/kills.rs"]
mod kills;
#[path = "crash/power.rs"]
mod power;
#[path = "../../tests/support/postgres.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod server;
#[path = "crash/worker.rs"]
mod worker;

/// Returns `few`, or ten times that in a long run.
fn scaled(few: u64) -> u64 {
    if std::env::var_os("NEVERTWICE_LONG").is_some() { 10 * few } else { few }
}

/// Returns the seed of a test. `NEVERTWICE_TEST_SEED` sets it, to repeat a failed run.
fn seed() -> u64 {
    std::env::var(worker::SEED).map_or(0x5eed, |seed| seed.parse().unwrap())
}
