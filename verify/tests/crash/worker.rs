//! A process that works on a file until it is killed. It is the test binary, started again.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Lines, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use nevertwice::sqlite::Synchronous;
use nevertwice::{Begin, Engine, Error, PostgresStore, Reason, Request, SqliteStore};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, RngExt, SeedableRng};
use tokio::runtime::Runtime;

use super::children::Deadline;

/// Environment variables of a worker: the folder or the URL of its store, the file for its effects,
/// the seed of its choices, its first key, and its level of syncing.
const STORE: &str = "NEVERTWICE_TEST_CRASH";
const LEDGER: &str = "NEVERTWICE_TEST_LEDGER";
pub(crate) const SEED: &str = "NEVERTWICE_TEST_SEED";
const FIRST: &str = "NEVERTWICE_TEST_FIRST";
const LEVEL: &str = "NEVERTWICE_TEST_LEVEL";

const THREADS: u64 = 8;
/// Time limit of a call, generous even on a busy machine.
const CALL: Duration = Duration::from_secs(60);

/// The store of a worker.
#[derive(Clone, Copy)]
pub(crate) enum Target<'a> {
    /// SQLite, in this folder and at this level.
    File(&'a Path, Synchronous),
    /// PostgreSQL, at this URL.
    Server(&'a str),
}

/// The parameters of a worker.
#[derive(Clone, Copy)]
pub(crate) struct Orders<'a> {
    /// The test that starts the worker, which runs as an instance of it.
    pub(crate) test: &'a str,
    pub(crate) target: Target<'a>,
    pub(crate) ledger: &'a Path,
    pub(crate) seed: u64,
    pub(crate) first: u64,
}

/// A running worker. It does not outlive a failed test.
pub(crate) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    _deadline: Deadline,
}

impl Running {
    pub(crate) fn start(orders: Orders<'_>) -> Running {
        let (store, level) = match orders.target {
            Target::File(folder, Synchronous::Full) => (folder.as_os_str(), "full"),
            Target::File(folder, _) => (folder.as_os_str(), "normal"),
            Target::Server(url) => (OsStr::new(url), "server"),
        };
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", orders.test, "--nocapture", "--test-threads=1"])
            .env(STORE, store)
            .env(LEDGER, orders.ledger)
            .env(SEED, orders.seed.to_string())
            .env(FIRST, orders.first.to_string())
            .env(LEVEL, level)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let _deadline = Deadline::of(&child);
        Running { child, lines, _deadline }
    }

    /// Passes the next `count` acknowledgements to `note`.
    pub(crate) fn follow(&mut self, count: u64, note: &mut dyn FnMut(&str)) {
        let mut seen = 0;
        while seen < count {
            let line = self.lines.next().expect("the worker ended early").unwrap();
            seen += u64::from(tell(&line, note));
        }
    }

    /// Stops the process with SIGSTOP, so that it can report nothing more.
    pub(crate) fn freeze(&self) {
        let pid = self.child.id();
        assert!(Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap().success());
        let state = || std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        while !state().contains("State:\tT") {
            std::thread::yield_now();
        }
    }

    /// Kills it, and passes the acknowledgements it made before that to `note`.
    pub(crate) fn kill(mut self, note: &mut dyn FnMut(&str)) {
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "the worker was to be killed at work: {status}");
        for line in self.lines.by_ref() {
            tell(&line.unwrap(), note);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

/// A pipe takes a line whole or not at all.
fn tell(line: &str, note: &mut dyn FnMut(&str)) -> bool {
    let said = line.strip_prefix("ACK ");
    said.map(note).is_some()
}

pub(crate) fn is_worker() -> bool {
    std::env::var_os(STORE).is_some()
}

/// Works until it is killed.
pub(crate) fn work() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let store = variable(STORE);
    let engine = engine(match variable(LEVEL).as_str() {
        "server" => Target::Server(&store),
        "full" => Target::File(Path::new(&store), Synchronous::Full),
        _ => Target::File(Path::new(&store), Synchronous::Normal),
    });
    let ledger = OpenOptions::new().append(true).create(true).open(variable(LEDGER)).unwrap();
    let worker = Worker { engine, ledger, output: Mutex::new(()) };
    let (seed, first): (u64, u64) = (variable(SEED).parse().unwrap(), variable(FIRST).parse().unwrap());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let worker = &worker;
            scope.spawn(move || {
                let mut random = Xoshiro256PlusPlus::seed_from_u64(seed + thread);
                // The keys of this and of earlier workers, so that threads and processes collide.
                for turn in 0_u64.. {
                    worker.attempt(first + random.random_range(0..50 + turn), &mut random);
                }
            });
        }
    });
}

/// Returns an engine with a lease so short that the next worker finds it expired.
pub(crate) fn engine(target: Target<'_>) -> Engine {
    let (builder, lease) = match target {
        Target::File(folder, level) => {
            let file = folder.join("keys.db");
            (Engine::builder(SqliteStore::builder(file).synchronous(level).open().unwrap()), 2)
        }
        // Its calls take longer.
        Target::Server(url) => (Engine::builder(block_on(PostgresStore::connect(url)).unwrap()), 10),
    };
    let builder = builder.lease(Duration::from_millis(lease)).max_attempts(u32::MAX);
    builder.call_timeout(CALL).finish_timeout(CALL).build().unwrap()
}

/// Runs a future on a runtime that all threads share, which the PostgreSQL store needs.
pub(crate) fn block_on<F: Future>(future: F) -> F::Output {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let start = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    RUNTIME.get_or_init(|| start().unwrap()).block_on(future)
}

pub(crate) fn request(key: u64) -> Request {
    Request::new("crash", key.to_string()).unwrap()
}

/// Returns the response of `effect`, a unique number. Some responses are so long that the log fills
/// up soon.
pub(crate) fn response(effect: u64) -> String {
    let times = if effect.is_multiple_of(8) { 256 } else { 4 };
    format!("{effect:016x}").repeat(times)
}

struct Worker {
    engine: Engine,
    ledger: File,
    output: Mutex<()>,
}

impl Worker {
    fn attempt(&self, key: u64, random: &mut impl Rng) {
        match block_on(self.engine.begin(&request(key))).unwrap() {
            Begin::Acquired(lease) => {
                self.acknowledge(&format!("granted {key} 0"));
                match block_on(lease.mark_effect()) {
                    Ok(()) => self.acknowledge(&format!("marked {key} 0")),
                    // The lease ran out and another worker took it: no effect.
                    Err(Error::LeaseLost { .. }) => return,
                    Err(error) => panic!("{error}"),
                }
                let effect = random.next_u64();
                // A kill can tear a write between two pages: lines of 64 bytes never cross one.
                let line = format!("{:<63}\n", format!("{key} {effect}"));
                (&self.ledger).write_all(line.as_bytes()).unwrap();
                block_on(lease.complete(response(effect))).unwrap();
                self.acknowledge(&format!("completed {key} {effect}"));
            }
            Begin::Completed(done) => {
                let text = std::str::from_utf8(done.response().unwrap()).unwrap();
                let effect = u64::from_str_radix(&text[..16], 16).unwrap();
                assert_eq!(text, response(effect), "key {key}");
                self.acknowledge(&format!("completed {key} {effect}"));
            }
            Begin::InProgress(_) => {}
            // Killed after its mark: only an operator can tell whether its effect happened.
            Begin::Unresolved(unknown) => assert_eq!(unknown.reason(), Reason::EffectMarked),
            other => panic!("{other:?}"),
        }
    }

    fn acknowledge(&self, what: &str) {
        let _alone = self.output.lock().unwrap();
        let mut output = std::io::stdout();
        output.write_all(format!("\nACK {what}\n").as_bytes()).and_then(|()| output.flush()).unwrap();
    }
}
