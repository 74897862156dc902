//! Many callers and one key: one grant.

use std::future::Future;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nevertwice::{Begin, Engine, RedisStore};

use crate::children::Deadline;
use crate::{Server, connect, request};

const PROCESSES: usize = 2;
const TASKS: usize = 100;
const KEYS: usize = 10;
/// Set for the processes that take part in a race: the same test, started again.
const URL: &str = "NEVERTWICE_RACE_URL";
const REPORT: &str = "NEVERTWICE_RACE_REPORT";

#[test]
fn s1_tasks_of_one_process_race_for_one_grant() {
    let server = Server::start(&[]);
    let engine = Engine::builder(block_on_tokio_forever(connect(&server))).build().unwrap();
    for key in 0..KEYS {
        assert_eq!(race(&engine, &format!("{key}")), 1);
    }
}

#[test]
fn s1_tasks_of_two_processes_race_for_one_grant() {
    if let (Ok(url), Ok(report)) = (std::env::var(URL), std::env::var(REPORT)) {
        return racing_process(&url, &report);
    }
    let server = Server::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    let reports: Vec<_> = (0..PROCESSES).map(|number| dir.path().join(number.to_string())).collect();
    let mut children: Vec<_> = reports
        .iter()
        .map(|report| {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "races::s1_tasks_of_two_processes_race_for_one_grant"]);
            child.env(URL, server.url()).env(REPORT, report).spawn().unwrap()
        })
        .collect();
    for child in &mut children {
        let _deadline = Deadline::of(child);
        assert!(child.wait().unwrap().success());
    }
    let read = |report| std::fs::read_to_string(report).expect("every process reports");
    let grants: Vec<Vec<usize>> = reports
        .iter()
        .map(|report| read(report).lines().map(|line| line.parse().unwrap()).collect())
        .collect();
    for key in 0..KEYS {
        assert_eq!(grants.iter().map(|grants| grants[key]).sum::<usize>(), 1, "{grants:?}");
    }
}

/// The work of each racing process.
fn racing_process(url: &str, report: &str) {
    let store = block_on_tokio_forever(RedisStore::connect(url)).unwrap();
    let engine = Engine::builder(store).build().unwrap();
    let mut raw = redis::Client::open(url).unwrap().get_connection().unwrap();
    let grants: Vec<String> = (0..KEYS)
        .map(|key| {
            meet(&mut raw, key);
            race(&engine, &format!("{key}")).to_string()
        })
        .collect();
    std::fs::write(Path::new(&report), grants.join("\n")).unwrap();
}

/// Waits until every process has arrived.
fn meet(raw: &mut redis::Connection, key: usize) {
    let name = format!("present {key}");
    redis::cmd("INCR").arg(&name).exec(raw).unwrap();
    for _ in 0..20_000 {
        if redis::cmd("GET").arg(&name).query::<usize>(raw).unwrap() == PROCESSES {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the other process did not come");
}

/// Returns how many of many tasks are granted a key.
fn race(engine: &Engine, key: &str) -> usize {
    block_on_tokio_forever(async {
        let begins = (0..TASKS).map(|_| {
            let (engine, request) = (engine.clone(), request(key));
            tokio::spawn(async move { matches!(engine.begin(&request).await.unwrap(), Begin::Acquired(_)) })
        });
        let mut grants = 0;
        for begin in begins.collect::<Vec<_>>() {
            grants += usize::from(begin.await.unwrap());
        }
        grants
    })
}

/// Runs a future on a runtime that is never dropped: a connection belongs to the runtime on which
/// it was made.
fn block_on_tokio_forever<F: Future>(future: F) -> F::Output {
    static RUNTIME: std::sync::OnceLock<tokio::runtime::Runtime> = std::sync::OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    });
    runtime.block_on(future)
}
