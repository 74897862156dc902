//! Waiting for a record to change.

use std::future::Future;
use std::time::Duration;

use nevertwice::store::Store;
use nevertwice::{Lease, RecordId, RedisStore, Stamp};
use tokio::task::JoinHandle;

use crate::server::Server;
use crate::{acquire, block_on_tokio, calls, connect, engine, name, request, set};

/// Longer than any test takes: a waiter that waits this long was not woken.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Shorter than the second after which every record is read again: a waiter that wakes this soon
/// was notified.
pub(crate) const TOLD: Duration = Duration::from_millis(600);

pub(crate) async fn stamp(store: &RedisStore, id: &RecordId) -> Stamp {
    loop {
        match store.load(id).await {
            Ok(found) => return found.record.expect("there is a record").stamp,
            // The connection belonged to a runtime that is gone.
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
}

/// Spawns a task that waits for the record of a key to change from its present stamp.
pub(crate) async fn waiter(store: &RedisStore, key: &str) -> JoinHandle<()> {
    let (store, id) = (store.clone(), request(key).id());
    let stamp = stamp(&store, &id).await;
    tokio::spawn(async move { store.changed(&id, stamp, LONG).await.unwrap() })
}

pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> F::Output {
    tokio::time::timeout(limit, future).await.expect("it was not woken")
}

/// Polls until the condition holds, for actions that a server or a task takes in its own time.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    // Less than the 10 s after which an idle connection closes anyway.
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

/// Returns the connections with tracking that have read a record, as `CLIENT LIST` shows them.
fn lines(server: &Server) -> Vec<String> {
    let list: String = server.ask("CLIENT LIST");
    let shows = |line: &str, name, value| field(line, name) == Some(value);
    let is_one = |line: &&str| shows(line, "flags", "t") && shows(line, "cmd", "get");
    list.lines().filter(is_one).map(str::to_owned).collect()
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|field| field.strip_prefix(name)?.strip_prefix('='))
}

/// Returns the ids of these connections.
pub(crate) fn listeners(server: &Server) -> Vec<String> {
    lines(server).iter().map(|line| field(line, "id").unwrap().to_owned()).collect()
}

/// Returns the number of records whose changes the server will announce.
pub(crate) fn tracked(server: &Server) -> u64 {
    let text: String = server.ask("INFO stats");
    let count = text.lines().find_map(|line| line.strip_prefix("tracking_total_keys:"));
    count.unwrap().parse().unwrap()
}

fn connections(server: &Server) -> usize {
    let list: String = server.ask("CLIENT LIST");
    list.lines().count()
}

/// Returns a store with a listening waiter, and the lease that it waits for, held over another
/// connection.
pub(crate) async fn waiting(server: &Server) -> (RedisStore, JoinHandle<()>, Lease) {
    let (store, other) = (connect(server).await, engine(server).await);
    let lease = acquire(&other, &request("k")).await;
    let waiter = waiter(&store, "k").await;
    until("listening", || tracked(server) == 1).await;
    (store, waiter, lease)
}

#[test]
fn l2_a_waiter_is_told_of_everything_that_ends_a_wait() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        for url in [server.url(), format!("{}/?protocol=resp3", server.url())] {
            let store = RedisStore::connect(&url).await.unwrap();
            let other = engine(&server).await;
            for end in ["complete", "release", "forget", "discard"] {
                let lease = acquire(&other, &request("k")).await;
                let waiter = waiter(&store, "k").await;
                until("listening", || tracked(&server) == 1).await;
                match end {
                    "complete" => lease.complete("done").await.unwrap(),
                    "release" => lease.release().await.unwrap(),
                    "forget" => assert!(other.forget("scope", "k").await.unwrap()),
                    _ => assert!(connect(&server).await.discard(&request("k").id()).await.unwrap()),
                }
                within(TOLD, waiter).await.unwrap();
                other.forget("scope", "k").await.unwrap();
            }
        }
    });
}

#[test]
fn l2_a_change_between_the_look_and_the_call_is_not_missed() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let other = engine(&server).await;
        // In the second round there is a connection already; in the third it has also read the
        // record.
        for round in 0..3 {
            let id = request("k").id();
            let lease = acquire(&other, &request("k")).await;
            let seen = stamp(&store, &id).await;
            let first = if round == 2 { Some(waiter(&store, "k").await) } else { None };
            if first.is_some() {
                until("listening", || tracked(&server) == 1).await;
            }
            lease.complete("done").await.unwrap();
            within(TOLD, store.changed(&id, seen, LONG)).await.unwrap();
            other.forget("scope", "k").await.unwrap();
        }
    });
}

#[test]
fn l2_changes_at_any_moment_of_a_wait_are_not_missed() {
    let server = Server::start(&[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, other) = (connect(&server).await, engine(&server).await);
        for number in 0..300 {
            let key = format!("{}", number % 7);
            let lease = acquire(&other, &request(&key)).await;
            let waiter = waiter(&store, &key).await;
            for _ in 0..number % 50 {
                tokio::task::yield_now().await;
            }
            lease.release().await.unwrap();
            within(TOLD, waiter).await.unwrap();
        }
    });
}

#[test]
fn l2_every_change_of_a_record_wakes() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, other) = (connect(&server).await, engine(&server).await);
        let name = name(&request("k"));
        for end in ["SET", "DEL", "PEXPIRE", "FLUSHALL", "SWAPDB"] {
            let _ = acquire(&other, &request("k")).await;
            let waiter = waiter(&store, "k").await;
            until("listening", || tracked(&server) == 1).await;
            let mut change = redis::cmd(end);
            match end {
                "SET" => change.arg(&name).arg(&7_u64.to_be_bytes()),
                "DEL" => change.arg(&name),
                "PEXPIRE" => change.arg(&name).arg(1),
                "FLUSHALL" => &mut change,
                _ => change.arg(0).arg(1),
            };
            change.exec(&mut server.raw()).unwrap();
            // The server itself takes a while to notice an expired key.
            within(TOLD * 5, waiter).await.unwrap();
            server.ask::<()>("FLUSHALL");
        }
    });
}

#[test]
fn a_key_without_waiters_is_not_tracked() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, engine) = (connect(&server).await, engine(&server).await);
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
        stamp(&store, &request("k").id()).await;
        assert_eq!((tracked(&server), listeners(&server)), (0, Vec::new()));
    });
}

#[test]
fn l2_a_thousand_waiters_cost_a_handful_of_commands() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, other) = (connect(&server).await, engine(&server).await);
        let lease = acquire(&other, &request("k")).await;
        let (id, stamp) = (request("k").id(), stamp(&store, &request("k").id()).await);
        server.ask::<()>("CONFIG RESETSTAT");
        let waiters: Vec<_> = (0..1000)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { store.changed(&id, stamp, LONG).await.unwrap() })
            })
            .collect();
        until("listening", || tracked(&server) == 1).await;
        until("looked", || calls(&server, "get") > 0).await;
        lease.complete("done").await.unwrap();
        for waiter in waiters {
            within(TOLD, waiter).await.unwrap();
        }
        let looks = calls(&server, "get");
        // A slow machine adds one read each second.
        assert!(looks <= 6 && calls(&server, "client|tracking") == 1, "{looks}");
    });
}

#[test]
fn who_comes_when_the_stamp_is_known_costs_no_look() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, first, lease) = waiting(&server).await;
        let id = request("k").id();
        let stamp = stamp(&store, &id).await;
        let looks = calls(&server, "get");
        let mut waiters = vec![first];
        for _ in 0..50 {
            let waiting = store.clone();
            waiters.push(tokio::spawn(async move { waiting.changed(&id, stamp, LONG).await.unwrap() }));
            // Gives the tasks time to run.
            store.load(&id).await.unwrap();
        }
        let more = calls(&server, "get") - looks - 50;
        assert!(more < 10, "{more}");
        lease.complete("done").await.unwrap();
        for waiter in waiters {
            within(TOLD, waiter).await.unwrap();
        }
    });
}

#[test]
fn for_waiters_that_are_dropped_nothing_is_looked_at() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, first, _lease) = waiting(&server).await;
        let second = waiter(&store, "k").await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let looks = calls(&server, "get");
        until("two looks more", || calls(&server, "get") > looks + 1).await;
        second.abort();
        let idle = |line: &String| field(line, "idle").unwrap().parse::<u64>().unwrap();
        until("no looks", || lines(&server).iter().all(|line| idle(line) > 2)).await;
        assert_eq!(listeners(&server).len(), 1, "it stays for a while");
    });
}

#[test]
fn a_store_that_is_gone_listens_to_nothing() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, waiter, _lease) = waiting(&server).await;
        waiter.abort();
        let _ = waiter.await;
        let before = connections(&server);
        drop(store);
        until("both closed", || connections(&server) == before - 2).await;
    });
}

#[test]
fn the_time_of_a_wait_is_limited() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, _first, _lease) = waiting(&server).await;
        let id = request("k").id();
        let stamp = stamp(&store, &id).await;
        for limit in [0, 1, 50] {
            within(TOLD, store.changed(&id, stamp, Duration::from_millis(limit))).await.unwrap();
        }
    });
}

#[test]
fn a_damaged_record_ends_a_wait() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (_store, waiter, _lease) = waiting(&server).await;
        set(&server, &name(&request("k")), b"garbage");
        within(TOLD * 5, waiter).await.unwrap();
    });
}
