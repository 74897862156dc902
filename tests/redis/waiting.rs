//! Who waits for a record to change.

use std::future::Future;
use std::time::Duration;

use nevertwice::backends::redis::Warning;
use nevertwice::{Engine, Lease, RecordId, RedisStore, Stamp, Store};
use tokio::task::JoinHandle;

use crate::server::{Proxy, Server};
use crate::{acquire, block_on_tokio, calls, connect, engine, name, request, set};

/// Longer than a test may take: who waits so long was not woken.
const LONG: Duration = Duration::from_secs(60);
/// Less than the second after which every record is looked at again: who wakes so soon was told.
const TOLD: Duration = Duration::from_millis(600);

async fn stamp(store: &RedisStore, id: &RecordId) -> Stamp {
    loop {
        match store.load(id).await {
            Ok(found) => return found.record.expect("there is a record").stamp,
            // The connection stayed on a runtime that is gone.
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
}

/// A task that waits for the record of a key to change from what it is now.
async fn waiter(store: &RedisStore, key: &str) -> JoinHandle<()> {
    let (store, id) = (store.clone(), request(key).id());
    let stamp = stamp(&store, &id).await;
    tokio::spawn(async move { store.changed(&id, stamp, LONG).await.unwrap() })
}

async fn within<F: Future>(limit: Duration, future: F) -> F::Output {
    tokio::time::timeout(limit, future).await.expect("it was not woken")
}

/// Asks until it is so: for what a server or a task does in its own time.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    // Less than the 10 s after which what is idle ends anyway.
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

fn subscribers(server: &Server, key: &str) -> u64 {
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
async fn waiting(server: &Server) -> (RedisStore, JoinHandle<()>, Lease) {
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
fn a_killed_subscription_is_made_again() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (_store, waiter, lease) = waiting(&server).await;
        assert_eq!(server.ask::<u64>("CLIENT KILL TYPE pubsub"), 1);
        until("subscribed again", || subscribers(&server, "k") == 1).await;
        assert!(!waiter.is_finished(), "nothing changed");
        lease.complete("done").await.unwrap();
        within(TOLD, waiter).await.unwrap();
    });
}

#[test]
fn a_change_while_there_is_no_subscription_is_not_missed() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (_store, waiter, lease) = waiting(&server).await;
        server.ask::<u64>("CLIENT KILL TYPE pubsub");
        lease.complete("done").await.unwrap();
        within(TOLD, waiter).await.unwrap();
    });
}

#[test]
fn a_message_that_was_never_sent_is_made_up_for() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (_store, waiter, _lease) = waiting(&server).await;
        set(&server, &name(&request("k")), &7_u64.to_be_bytes());
        within(TOLD * 5, waiter).await.unwrap();
    });
}

#[test]
fn a_silent_subscription_does_not_keep_a_waiter() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        let builder = RedisStore::builder(&proxy.url()).response_timeout(Duration::from_millis(200));
        let (store, other) = (builder.connect().await.unwrap(), engine(&server).await);
        let lease = acquire(&other, &request("k")).await;
        let waiter = waiter(&store, "k").await;
        until("subscribed", || subscribers(&server, "k") == 1).await;
        proxy.stall();
        lease.complete("done").await.unwrap();
        within(TOLD * 10, waiter).await.unwrap();
    });
}

#[test]
fn a_subscription_that_alone_is_silent_is_replaced() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        let builder = RedisStore::builder(&proxy.url()).response_timeout(Duration::from_millis(200));
        let (store, other) = (builder.connect().await.unwrap(), engine(&server).await);
        let _lease = acquire(&other, &request("k")).await;
        let _waiter = waiter(&store, "k").await;
        until("subscribed", || subscribers(&server, "k") == 1).await;
        let number = || server.ask::<String>("CLIENT LIST TYPE pubsub").split(' ').next().map(str::to_owned);
        let before = number();
        proxy.stall();
        let message = name(&request("k"));
        redis::cmd("PUBLISH").arg(message).arg("").exec(&mut server.raw()).unwrap();
        for _ in 0..10 {
            // Lets the proxy swallow the message.
            other.inspect("scope", "k").await.unwrap();
        }
        assert!(!proxy.heal());
        until("replaced", || subscribers(&server, "k") == 1 && number() != before).await;
    });
}

#[test]
fn a_restarted_server_is_listened_to_again() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    block_on_tokio(async {
        let (_store, waiter, lease) = waiting(&server).await;
        server.kill();
        server.restart();
        until("subscribed again", || subscribers(&server, "k") == 1).await;
        assert!(!waiter.is_finished(), "nothing changed");
        lease.complete("done").await.unwrap();
        within(TOLD, waiter).await.unwrap();
    });
}

#[test]
fn without_the_permissions_waiters_look_and_swaps_work() {
    let server = Server::start(&[]);
    for (user, rules) in [
        ("anna", "~nevertwice:* +@all resetchannels"),
        ("bert", "~nevertwice:* &nevertwice:* +@all -publish"),
        ("cleo", "~nevertwice:* &nevertwice:* +@all -subscribe"),
    ] {
        server.ask::<()>(&format!("ACL SETUSER {user} on >s3cret {rules}"));
        block_on_tokio(async {
            let store = RedisStore::connect(&server.url_as(user, "s3cret")).await.unwrap();
            assert!(store.warnings().contains(&Warning::ChangesUnannounced), "{user}");
            let engine = Engine::builder(store.clone()).build().unwrap();
            let lease = acquire(&engine, &request(user)).await;
            let waiter = waiter(&store, user).await;
            lease.renew().await.unwrap();
            within(TOLD * 5, waiter).await.unwrap();
            lease.complete("done").await.unwrap();
            assert_eq!(crate::response(&engine, &request(user)).await, b"done");
            assert!(engine.forget("scope", user).await.unwrap());
        });
    }
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

#[test]
fn the_runtime_of_the_first_waiter_may_go() {
    let server = Server::start(&[]);
    let (store, lease) = block_on_tokio(async {
        let (store, _waiter, lease) = waiting(&server).await;
        (store, lease.token())
    });
    block_on_tokio(async {
        let waiter = waiter(&store, "k").await;
        until("subscribed", || subscribers(&server, "k") == 1).await;
        let other = engine(&server).await;
        other.resume(&lease).await.unwrap().complete("done").await.unwrap();
        within(TOLD, waiter).await.unwrap();
    });
}

#[test]
fn a_runtime_that_goes_in_mid_wait_lets_the_waiters_of_others_go() {
    let server = Server::start(&[]);
    let first = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (store, _waiter, _lease) = first.block_on(waiting(&server));
    block_on_tokio(async {
        let here = connect(&server).await;
        let stamp = stamp(&here, &request("k").id()).await;
        let id = request("k").id();
        let second = tokio::spawn(async move { store.changed(&id, stamp, LONG).await.unwrap() });
        tokio::task::yield_now().await;
        first.shutdown_background();
        within(TOLD, second).await.unwrap();
    });
}

#[test]
fn a_runtime_that_stands_still_does_not_keep_the_waiters_of_others() {
    let server = Server::start(&[]);
    let first = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (store, _waiter, _lease) = first.block_on(waiting(&server));
    block_on_tokio(async {
        let here = connect(&server).await;
        let stamp = stamp(&here, &request("k").id()).await;
        within(TOLD * 20, store.changed(&request("k").id(), stamp, LONG)).await.unwrap();
    });
}
