//! Waiters while the connection that receives changes is lost, silent or forbidden, or a runtime is
//! gone.

use std::time::Duration;

use nevertwice::backends::redis::Warning;
use nevertwice::store::Store;
use nevertwice::{Engine, RedisStore};

use crate::server::{Proxy, Server};
use crate::waiting::{LONG, TOLD, listeners, stamp, tracked, until, waiter, waiting, within};
use crate::{acquire, block_on_tokio, connect, engine, request};

/// Kills the connection that receives changes.
fn cut(server: &Server) -> String {
    let [number] = <[String; 1]>::try_from(listeners(server)).unwrap();
    assert_eq!(server.ask::<u64>(&format!("CLIENT KILL ID {number}")), 1);
    number
}

#[test]
fn a_killed_connection_is_made_again() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (_store, waiter, lease) = waiting(&server).await;
        let before = [cut(&server)];
        until("another", || listeners(&server).len() == 1 && listeners(&server) != before).await;
        assert!(!waiter.is_finished(), "nothing changed");
        lease.complete("done").await.unwrap();
        within(TOLD, waiter).await.unwrap();
    });
}

#[test]
fn a_change_while_there_is_no_line_is_not_missed() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (_store, waiter, lease) = waiting(&server).await;
        cut(&server);
        lease.complete("done").await.unwrap();
        within(TOLD, waiter).await.unwrap();
    });
}

#[test]
fn a_silent_line_does_not_keep_a_waiter() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        let builder = RedisStore::builder(&proxy.url()).response_timeout(Duration::from_millis(200));
        let (store, other) = (builder.connect().await.unwrap(), engine(&server).await);
        let lease = acquire(&other, &request("k")).await;
        let waiter = waiter(&store, "k").await;
        until("listening", || !listeners(&server).is_empty()).await;
        proxy.stall();
        lease.complete("done").await.unwrap();
        within(TOLD * 10, waiter).await.unwrap();
    });
}

#[test]
fn a_line_that_alone_is_silent_is_replaced() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        let builder = RedisStore::builder(&proxy.url()).response_timeout(Duration::from_millis(200));
        let (store, other) = (builder.connect().await.unwrap(), engine(&server).await);
        let (_first, second) = (acquire(&other, &request("k")).await, acquire(&other, &request("l")).await);
        let _waiters = [waiter(&store, "k").await, waiter(&store, "l").await];
        until("listening", || tracked(&server) == 2).await;
        let before = listeners(&server);
        proxy.stall();
        second.complete("done").await.unwrap();
        for _ in 0..10 {
            // Gives the proxy time to swallow the message.
            other.inspect("scope", "k").await.unwrap();
        }
        assert!(!proxy.heal());
        until("another", || listeners(&server).len() == 1 && listeners(&server) != before).await;
    });
}

#[test]
fn a_restarted_server_is_listened_to_again() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    block_on_tokio(async {
        let (_store, waiter, lease) = waiting(&server).await;
        server.kill();
        server.restart();
        until("listening again", || !listeners(&server).is_empty()).await;
        assert!(!waiter.is_finished(), "nothing changed");
        lease.complete("done").await.unwrap();
        within(TOLD, waiter).await.unwrap();
    });
}

#[test]
fn without_the_permissions_waiters_look_and_swaps_work() {
    let server = Server::start(&[]);
    for (user, rules) in [
        ("anna", "~nevertwice:* +@all -client|tracking"),
        ("bert", "~nevertwice:* +@all -client"),
        ("cleo", "~nevertwice:* +@all -@connection"),
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
fn the_runtime_of_the_first_waiter_may_go() {
    let server = Server::start(&[]);
    let (store, lease) = block_on_tokio(async {
        let (store, _waiter, lease) = waiting(&server).await;
        (store, lease.token())
    });
    block_on_tokio(async {
        let waiter = waiter(&store, "k").await;
        until("listening", || !listeners(&server).is_empty()).await;
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
