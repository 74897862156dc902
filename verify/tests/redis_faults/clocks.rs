//! Wrong clocks: those of callers, which decide nothing, and the server's.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nevertwice::clock::Sleep;
use nevertwice::{Begin, Clock, Engine, Error, Reason, RedisStore, SystemClock};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use crate::bench::{LEASE, acquire, connect, engine};
use crate::children;
use crate::ledger::{Ledger, replayed, request};
use crate::server::Server;
use crate::storm::{Disturbance, Storm};
use crate::{block_on_tokio, length, until};

const HOUR: i64 = 3600;
const WORKERS: usize = 64;

/// A wall clock for other processes that can be set. Their monotonic clock is unchanged.
struct Clocks(TempDir);

impl Clocks {
    fn new() -> Clocks {
        let folder = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/clock.c");
        let library = folder.path().join("clock.so");
        let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", source, "-o"]).arg(library).status();
        assert!(built.expect("these tests need a C compiler").success(), "it compiles");
        Clocks(folder)
    }

    /// Returns the environment of a process whose clock is so many seconds off, until [`set`]
    /// changes it.
    fn off_by(&self, name: &str, seconds: i64) -> [(&'static str, String); 2] {
        set(&self.path(name), seconds);
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        [("LD_PRELOAD", text(self.path("clock.so"))), ("NEVERTWICE_TEST_CLOCK", text(self.path(name)))]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Sets the clock by one write of fixed length, so that no reader sees half of it.
fn set(clock: &Path, seconds: i64) {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(clock).unwrap();
    file.write_all_at(format!("{seconds:+08}\n").as_bytes(), 0).unwrap();
}

/// A clock whose wall time is wrong.
#[derive(Debug)]
struct Wrong {
    by: i64,
}

impl Clock for Wrong {
    fn wall(&self) -> Duration {
        let wall = i64::try_from(SystemClock.wall().as_secs()).unwrap() + self.by;
        Duration::from_secs(u64::try_from(wall).unwrap())
    }

    fn monotonic(&self) -> Duration {
        SystemClock.monotonic()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        SystemClock.sleep(time)
    }
}

#[test]
fn s13_engines_with_wrong_clocks_decide_the_same() {
    let server = Server::start(&[]);
    let storm = Storm::new("clocks of engines", 1000 * length());
    block_on_tokio(async {
        let mut engines = Vec::new();
        for by in [-HOUR, 0, HOUR] {
            let engine = Engine::builder(connect(&server).await).lease(LEASE).clock(Wrong { by });
            engines.push(engine.build().unwrap());
        }
        storm.run(&engines, WORKERS).await;
        let audit = storm.ledger().audit(&engine(&connect(&server).await)).await;
        audit.require("clock of the engine an hour off", &[("engines", &3), ("workers", &WORKERS)]);
        assert_eq!((audit.acknowledged, storm.leases_lost()), (1000 * length(), 0));
    });
}

/// The URL of the server, for a [`child`].
const SERVER: &str = "NEVERTWICE_TEST_REDIS";
/// A lease whose remaining time must look alike to all processes.
const SHORT_LEASE: Duration = Duration::from_secs(60);

/// Processes whose clocks are an hour slow, right and an hour fast work through the same keys. The
/// children are this test, started again.
#[test]
fn s13_processes_with_wrong_clocks_decide_the_same() {
    if let Ok(url) = std::env::var(SERVER) {
        return block_on_tokio(child(&url));
    }
    let server = Server::start(&[]);
    let ledger = Ledger::default();
    block_on_tokio(async {
        let direct = engine(&connect(&server).await);
        let held = acquire(&direct, &request("held").lease(SHORT_LEASE)).await;
        let now = SystemClock.wall().as_secs();
        let clocks = Clocks::new();
        let children = [-HOUR, 0, HOUR].map(|by| (by, start_child(&server, &clocks, by)));
        let mut seen = HashSet::new();
        for (by, child) in children {
            let output = children::end(child);
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{by}: {text}\n{}", String::from_utf8_lossy(&output.stderr));
            for line in text.lines() {
                match line.split_once(' ') {
                    Some(("EFFECT", key)) => ledger.effect(key),
                    Some(("TOLD", told)) => {
                        let (key, outcome) = told.split_once(' ').unwrap();
                        ledger.acknowledge(key, outcome);
                    }
                    Some(("CLOCK", seconds)) => {
                        let off = seconds.parse::<i64>().unwrap() - i64::try_from(now).unwrap();
                        seen.insert((off + HOUR / 2).div_euclid(HOUR));
                    }
                    _ => {}
                }
            }
        }
        assert_eq!(seen, HashSet::from([-1, 0, 1]), "the clocks are not wrong");
        ledger.effect("held");
        held.complete("outcome of held").await.unwrap();
        ledger.acknowledge("held", "outcome of held");
        let audit = ledger.audit(&direct).await;
        audit.require("clock of the process an hour off", &[("processes", &3)]);
    });
}

fn start_child(server: &Server, clocks: &Clocks, by: i64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "clocks::s13_processes_with_wrong_clocks_decide_the_same", "--nocapture"])
        .env(SERVER, server.url())
        .envs(clocks.off_by(&format!("{by}"), by))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[allow(clippy::print_stdout)] // the parent reads it
async fn child(url: &str) {
    println!("\nCLOCK {}", SystemClock.wall().as_secs());
    let store = RedisStore::connect(url).await.unwrap();
    let engine = Engine::builder(store).lease(SHORT_LEASE).build().unwrap();
    for number in 0..300 * length() {
        let key = format!("process-{number}");
        loop {
            // The lease of another process lasts as long as its holder needs, whatever the local
            // time is.
            let begin = engine.begin(&request("held")).await.unwrap();
            let Begin::InProgress(busy) = begin else { panic!("{begin:?}") };
            assert!(!busy.retry_after().is_zero() && busy.retry_after() <= SHORT_LEASE, "{busy:?}");
            match engine.begin(&request(&key)).await.unwrap() {
                Begin::Acquired(lease) => {
                    assert!(!lease.remaining().is_zero() && lease.remaining() <= SHORT_LEASE);
                    println!("EFFECT {key}");
                    let outcome = format!("by-{}", std::process::id());
                    lease.complete(outcome.clone()).await.unwrap();
                    println!("TOLD {key} {outcome}");
                    break;
                }
                begin @ Begin::Completed(_) => {
                    println!("TOLD {key} {}", String::from_utf8(replayed(&begin).unwrap()).unwrap());
                    break;
                }
                Begin::InProgress(busy) => assert!(busy.retry_after() <= SHORT_LEASE, "{busy:?}"),
                other => panic!("{other:?}"),
            }
        }
    }
}

/// A server whose clock can be set.
struct Stepped {
    server: Server,
    clocks: Clocks,
}

impl Stepped {
    fn start() -> Stepped {
        let clocks = Clocks::new();
        let variables = clocks.off_by("server", 0);
        let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
        Stepped { server: Server::start_with(&[], &variables), clocks }
    }

    /// Sets the server's clock so many seconds off the right time, and starts an engine that has
    /// seen no other time.
    async fn at(&self, seconds: i64) -> Engine {
        set(&self.clock(), seconds);
        let off = || {
            let (now, _): (i64, i64) = self.server.ask("TIME");
            now - i64::try_from(SystemClock.wall().as_secs()).unwrap()
        };
        // Some servers read the clock only now and then.
        until("the server's clock is set", async || (off() - seconds).abs() < 60).await;
        engine_with(&self.server, Duration::from_secs(600)).await
    }

    fn clock(&self) -> PathBuf {
        self.clocks.path("server")
    }
}

/// Builds an engine with this lease, which may or may not outlast a step.
async fn engine_with(server: &Server, lease: Duration) -> Engine {
    let engine = Engine::builder(connect(server).await)
        .lease(lease)
        .retention(100 * lease)
        .unresolved_retention(100 * lease);
    engine.call_timeout(Duration::from_secs(20)).build().unwrap()
}

#[test]
fn s13_a_servers_clock_that_is_stepped_while_leases_last_changes_no_decision() {
    let stepped = Stepped::start();
    let storm = Storm::endless("clock of the server");
    block_on_tokio(async {
        let engines = [engine_with(&stepped.server, 24 * LEASE).await];
        let (clock, ending) = (stepped.clock(), Arc::clone(&storm));
        let mut random = Xoshiro256PlusPlus::seed_from_u64(0x5eed);
        let least = 50 * length() as u64;
        let mut left = least;
        let steps = Disturbance::start(move || {
            set(&clock, random.random_range(-HOUR..=HOUR));
            std::thread::sleep(Duration::from_millis(10));
            left = left.saturating_sub(1);
            if left == 0 {
                ending.end();
            }
            1
        });
        storm.run(&engines, WORKERS).await;
        let (steps, audit) = (steps.stop(), storm.ledger().audit(&engines[0]).await);
        audit.require("clock of the server stepped", &[("steps", &steps), ("workers", &WORKERS)]);
        assert!(audit.acknowledged > 0 && storm.leases_lost() == 0);
        assert!(steps >= least, "{steps}");
    });
}

/// A clock set forward ends leases early; fences and effect marks then protect. A clock set back
/// revives no lease.
#[test]
fn s13_a_servers_clock_that_is_stepped_over_leases_repeats_no_effect_and_no_fence() {
    let stepped = Stepped::start();
    let ledger = Ledger::default();
    let rounds = 8 * length();
    block_on_tokio(async {
        for round in 0..rounds {
            let [marked, unmarked, released] =
                ["marked", "unmarked", "released"].map(|name| format!("{name} {round}"));
            let engine = stepped.at(0).await;
            let acting = acquire(&engine, &request(&marked)).await;
            acting.mark_effect().await.unwrap();
            ledger.effect(&marked);
            let slow = acquire(&engine, &request(&unmarked)).await;
            let first = acquire(&engine, &request(&released)).await;

            let engine = stepped.at(HOUR).await;
            let begin = engine.begin(&request(&marked)).await.unwrap();
            let Begin::Unresolved(unknown) = begin else { panic!("{begin:?}") };
            assert_eq!(unknown.reason(), Reason::EffectMarked);
            // No other holder took over, so the outcome is recorded.
            acting.complete("done").await.unwrap();
            ledger.acknowledge(&marked, "done");
            let taken = acquire(&engine, &request(&unmarked)).await;
            assert!(taken.takeover() && taken.fence() > slow.fence());
            let refused = slow.mark_effect().await;
            assert!(matches!(refused, Err(Error::LeaseLost { .. })), "{refused:?}");
            first.release().await.unwrap();
            let second = acquire(&engine, &request(&released)).await;
            assert!(second.fence() > first.fence());
            second.release().await.unwrap();

            let engine = stepped.at(0).await;
            // By the clock, the first holder's lease would be running again.
            let refused = slow.complete("stale").await;
            assert!(matches!(refused, Err(Error::LeaseLost { .. })), "{refused:?}");
            let begin = engine.begin(&request(&unmarked)).await.unwrap();
            assert!(matches!(begin, Begin::InProgress(_)), "{begin:?}");
            for (key, lease) in
                [(&unmarked, &taken), (&released, &acquire(&engine, &request(&released)).await)]
            {
                assert!(lease.fence() > slow.fence() && (key == &unmarked || lease.fence() > second.fence()));
                ledger.effect(key);
                lease.complete("done").await.unwrap();
                ledger.acknowledge(key, "done");
            }
            for key in [&marked, &unmarked, &released] {
                let begin = engine.begin(&request(key)).await.unwrap();
                ledger.acknowledge(key, replayed(&begin).unwrap_or_else(|| panic!("{key}: {begin:?}")));
            }
        }
        let audit = ledger.audit(&stepped.at(0).await).await;
        audit.require(
            "clock of the server stepped over leases",
            &[("rounds", &rounds), ("steps", &(3 * rounds))],
        );
    });
}
