//! The corpus of every fuzz target, replayed on stable: inputs that a fuzzer once found interesting
//! or wrong stay tested.
#![cfg(all(feature = "memory", feature = "redis", feature = "sqlite"))]
#![allow(clippy::print_stdout)] // what was replayed is part of the result
#![allow(clippy::wildcard_enum_match_arm)] // whatever else it is, the check fails

use std::path::Path;

#[path = "../fuzz/bodies/faults.rs"]
mod faults;
#[path = "../fuzz/bodies/fingerprint.rs"]
mod fingerprint;
#[path = "../fuzz/bodies/history.rs"]
mod history;
#[path = "../fuzz/bodies/keys.rs"]
mod keys;
#[path = "../fuzz/bodies/record.rs"]
mod record;
#[path = "../fuzz/bodies/redis.rs"]
mod redis;
#[path = "../fuzz/bodies/sqlite.rs"]
mod sqlite;

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let inputs =
        std::fs::read_dir(&folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    let inputs: Vec<Vec<u8>> = inputs.collect();
    assert!(inputs.len() >= 10, "{} holds next to nothing", folder.display());
    inputs.iter().for_each(|input| run(input));
    println!("{target}: {} inputs replayed", inputs.len());
}

#[test]
fn s6_s15_the_corpus_of_histories_with_faults() {
    replay("faults", faults::run);
}

#[test]
fn s4_the_corpus_of_fingerprints() {
    replay("fingerprint", fingerprint::run);
}

#[test]
fn s15_the_corpus_of_histories() {
    replay("history", history::run);
}

#[test]
fn s7_the_corpus_of_keys() {
    replay("keys", keys::run);
}

#[test]
fn s10_the_corpus_of_records() {
    replay("record", record::run);
}

#[test]
fn s10_the_corpus_of_redis_replies() {
    replay("redis", redis::run);
}

#[test]
fn s10_the_corpus_of_sqlite_files() {
    replay("sqlite", sqlite::run);
}
