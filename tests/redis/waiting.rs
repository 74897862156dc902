//! Who waits for a record to change.

use std::future::Future;
use std::time::Duration;

use nevertwice::{Lease, RecordId, RedisStore, Stamp, Store};
use tokio::task::JoinHandle;

use crate::server::Server;
use crate::{acquire, block_on_tokio, calls, connect, engine, name, request, set};

/// Longer than a test may take: who waits so long was not woken.
pub(crate) const LONG: Duration = Duration::from_secs(60);
/// Less than the second after which every record is looked at again: who wakes so soon was told.
pub(crate) const TOLD: Duration = Duration::from_millis(600);

pub(crate) async fn stamp(store: &RedisStore, id: &RecordId) -> Stamp {
    loop {
        match store.load(id).await {
            Ok(found) => return found.record.expect("there is a record").stamp,
            // The connection stayed on a runtime that is gone.
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
}

/// A task that waits for the record of a key to change from what it is now.
pub(crate) async fn waiter(store: &RedisStore, key: &str) -> JoinHandle<()> {
    let (store, id) = (store.clone(), request(key).id());
    let stamp = stamp(&store, &id).await;
    tokio::spawn(async move { store.changed(&id, stamp, LONG).await.unwrap() })
}

pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> F::Output {
    tokio::time::timeout(limit, future).await.expect("it was not woken")
}

/// Asks until it is so: for what a server or a task does in its own time.
pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    // Less than the 10 s after which what is idle ends anyway.
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

pub(crate) fn subscribers(server: &Server, key: &str) -> u64 {
    let channel = name(&request(key));
    let reply: (Vec<u8>, u64) =
        redis::cmd("PUBSUB").arg("NUMSUB").arg(channel).query(&mut server.raw()).unwrap();
    reply.1
}

fn connections(server: &Server) -> usize {
    let list: String = server.ask("CLIENT LIST");
    list.lines().count()
}

/// A store with a waiter that listens, and the lease that it waits for, on another connection.
pub(crate) async fn waiting(server: &Server) -> (RedisStore, JoinHandle<()>, Lease) {
    let (store, other) = (connect(server).await, engine(server).await);
    let lease = acquire(&other, &request("k")).await;
    let waiter = waiter(&store, "k").await;
    until("subscribed", || subscribers(server, "k") == 1).await;
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
                until("subscribed", || subscribers(&server, "k") > 0).await;
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
        // The second time there is a connection, and the third a subscription already.
        for round in 0..3 {
            let id = request("k").id();
            let lease = acquire(&other, &request("k")).await;
            let seen = stamp(&store, &id).await;
            let first = if round == 2 { Some(waiter(&store, "k").await) } else { None };
            if first.is_some() {
                until("subscribed", || subscribers(&server, "k") == 1).await;
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
fn the_first_write_of_a_key_is_published_to_nobody() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = engine(&server).await;
        server.ask::<()>("CONFIG RESETSTAT");
        let lease = acquire(&engine, &request("k")).await;
        assert_eq!(calls(&server, "publish"), 0);
        lease.release().await.unwrap();
        assert_eq!(calls(&server, "publish"), 1);
        let _ = acquire(&engine, &request("k")).await;
        assert_eq!(calls(&server, "publish"), 1, "nobody waits at a tombstone");
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
        until("subscribed", || subscribers(&server, "k") == 1).await;
        until("looked", || calls(&server, "get") > 0).await;
        lease.complete("done").await.unwrap();
        for waiter in waiters {
            within(TOLD, waiter).await.unwrap();
        }
        let looks = calls(&server, "get");
        // One in the script; a slow machine adds one each second.
        assert!(looks <= 6 && calls(&server, "subscribe") == 1, "{looks}");
    });
}

#[test]
fn who_comes_when_the_stamp_is_known_costs_no_look() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, first, lease) = waiting(&server).await;
        let id = request("k").id();
        let stamp = stamp(&store, &id).await;
        let looks = calls(&server, "time");
        let mut waiters = vec![first];
        for _ in 0..50 {
            let waiting = store.clone();
            waiters.push(tokio::spawn(async move { waiting.changed(&id, stamp, LONG).await.unwrap() }));
            // Lets the tasks run.
            store.load(&id).await.unwrap();
        }
        let more = calls(&server, "time") - looks - 50;
        assert!(more < 10, "{more}");
        lease.complete("done").await.unwrap();
        for waiter in waiters {
            within(TOLD, waiter).await.unwrap();
        }
    });
}

#[test]
fn waiters_that_are_dropped_end_their_subscription() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, first, _lease) = waiting(&server).await;
        let second = waiter(&store, "k").await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let looks = calls(&server, "get");
        until("two looks more", || calls(&server, "get") > looks + 1).await;
        assert_eq!(subscribers(&server, "k"), 1, "one still waits");
        second.abort();
        until("unsubscribed", || subscribers(&server, "k") == 0).await;
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
