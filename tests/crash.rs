//! `kill -9` at any moment: what was acknowledged is there, and nothing was done twice.
#![cfg(all(feature = "sqlite", unix))]
#![allow(clippy::wildcard_enum_match_arm)] // whatever else it is, the test fails

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use futures_executor::block_on;
use nevertwice::{Begin, Engine, Error, Reason, Request, SqliteStore};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};

/// The one test here. Its children are the same test, started again.
const TEST: &str = "s8_s9_60_times_kill_9_loses_nothing_acknowledged_and_repeats_no_effect";
/// The folder that a [`child`] is to work in, and the seed of its choices.
const FOLDER: &str = "NEVERTWICE_TEST_CRASH";
const SEED: &str = "NEVERTWICE_TEST_SEED";

const KILLS: u64 = 60;
const THREADS: u64 = 4;

#[test]
fn s8_s9_60_times_kill_9_loses_nothing_acknowledged_and_repeats_no_effect() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return child(Path::new(&folder));
    }
    let dir = tempfile::tempdir().unwrap();
    let seed = std::env::var(SEED).map_or(0x5eed, |seed| seed.parse().unwrap());
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut acknowledged = HashMap::new();
    for round in 0..KILLS {
        let after = Duration::from_micros(random.random_range(0..60_000));
        for (key, response) in run_and_kill(dir.path(), seed ^ round << 32, after) {
            let known = acknowledged.entry(key.clone()).or_insert_with(|| response.clone());
            assert_eq!(*known, response, "seed {seed}, round {round}, key {key}: two outcomes");
        }
    }
    assert!(acknowledged.len() > KILLS as usize, "seed {seed}: only {} outcomes", acknowledged.len());
    verify(dir.path(), &acknowledged, seed);
}

/// What a child acknowledged before it was killed, `after` it had begun to work.
fn run_and_kill(folder: &Path, seed: u64, after: Duration) -> Vec<(String, String)> {
    let mut child = Running(
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", TEST, "--nocapture", "--test-threads=1"])
            .env(FOLDER, folder)
            .env(SEED, seed.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut output = BufReader::new(child.0.stdout.take().unwrap());
    let mut line = String::new();
    while line.trim() != "READY" {
        line.clear();
        assert!(output.read_line(&mut line).unwrap() > 0, "the child ended early");
    }
    std::thread::sleep(after);
    child.0.kill().unwrap();
    let status = child.0.wait().unwrap();
    assert_eq!(status.signal(), Some(9), "the child was to be killed at work: {status}");
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    // A pipe takes a line whole or not at all.
    rest.lines().filter_map(|line| line.strip_prefix("ACK ")?.split_once(' ')).map(owned).collect()
}

/// A child that does not outlive a test that failed.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

fn owned((key, response): (&str, &str)) -> (String, String) {
    (key.to_owned(), response.to_owned())
}

/// Works until it is killed.
fn child(folder: &Path) {
    let seed: u64 = std::env::var(SEED).unwrap().parse().unwrap();
    let engine = engine(folder);
    let effects = OpenOptions::new().append(true).create(true).open(folder.join("effects")).unwrap();
    let worker = Worker { engine, effects, output: Mutex::new(()) };
    worker.say("\nREADY\n");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let worker = &worker;
            scope.spawn(move || {
                let mut random = Xoshiro256PlusPlus::seed_from_u64(seed + thread);
                // Keys of this and of earlier children, so that threads and children meet.
                for turn in 0_u64.. {
                    worker.attempt(random.random_range(0..50 + turn), &mut random);
                }
            });
        }
    });
}

/// A lease so short that the next child finds it over.
fn engine(folder: &Path) -> Engine {
    let store = SqliteStore::open(folder.join("keys.db")).unwrap();
    Engine::builder(store).lease(Duration::from_millis(2)).build().unwrap()
}

fn request(key: &str) -> Request {
    Request::new("crash", key).unwrap()
}

struct Worker {
    engine: Engine,
    effects: File,
    output: Mutex<()>,
}

impl Worker {
    fn attempt(&self, key: u64, random: &mut impl Rng) {
        let key = key.to_string();
        match block_on(self.engine.begin(&request(&key))).unwrap() {
            Begin::Acquired(lease) => {
                match block_on(lease.mark_effect()) {
                    Ok(()) => {}
                    // The lease ran out and somebody took it: no effect.
                    Err(Error::LeaseLost { .. }) => return,
                    Err(error) => panic!("{error}"),
                }
                // What somebody else would write is another number.
                let response = format!("{key}-{:016x}", random.next_u64());
                (&self.effects).write_all(format!("{key} {response}\n").as_bytes()).unwrap();
                block_on(lease.complete(response.clone())).unwrap();
                self.acknowledge(&key, &response);
            }
            Begin::Completed(done) => {
                self.acknowledge(&key, std::str::from_utf8(done.response().unwrap()).unwrap());
            }
            Begin::InProgress(_) => {}
            // Killed after its mark: whether its effect happened is for somebody to look.
            Begin::Unresolved(unknown) => assert_eq!(unknown.reason(), Reason::EffectMarked),
            other => panic!("{other:?}"),
        }
    }

    fn acknowledge(&self, key: &str, response: &str) {
        self.say(&format!("\nACK {key} {response}\n"));
    }

    fn say(&self, line: &str) {
        let _alone = self.output.lock().unwrap();
        let mut output = std::io::stdout();
        output.write_all(line.as_bytes()).and_then(|()| output.flush()).unwrap();
    }
}

fn verify(folder: &Path, acknowledged: &HashMap<String, String>, seed: u64) {
    let db = rusqlite::Connection::open(folder.join("keys.db")).unwrap();
    let intact: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(intact, "ok", "seed {seed}");
    let engine = engine(folder);
    for (key, response) in acknowledged {
        match block_on(engine.begin(&request(key))).unwrap() {
            Begin::Completed(done) => {
                assert_eq!(done.response().unwrap(), response, "seed {seed}, key {key}")
            }
            other => panic!("seed {seed}, key {key}: {other:?}"),
        }
    }
    let effects = fs::read_to_string(folder.join("effects")).unwrap();
    let mut done = HashMap::new();
    for (key, response) in effects.lines().map(|line| line.split_once(' ').unwrap()) {
        assert!(done.insert(key, response).is_none(), "seed {seed}, key {key}: two effects");
    }
    for (key, response) in acknowledged {
        assert_eq!(done.get(key.as_str()), Some(&response.as_str()), "seed {seed}, key {key}: no effect");
    }
}
