//! Lost answers, lost connections and lost servers.

use std::time::Duration;

use nevertwice::store::Store;
use nevertwice::{Begin, Durability, Engine, Error, RedisStore};

use crate::{Proxy, Server, acquire, block_on_tokio, connect, engine, get, name, request, response};

async fn through(proxy: &Proxy) -> Engine {
    through_with(proxy, LONG_SLACK).await
}

/// Clock slack with which the store gives stamps itself where it can. With less, every swap uses
/// the script.
const LONG_SLACK: Duration = Duration::from_secs(600);
const SHORT_SLACK: Duration = Duration::from_secs(59);

async fn through_with(proxy: &Proxy, slack: Duration) -> Engine {
    let store = RedisStore::builder(&proxy.url()).response_timeout(Duration::from_millis(300));
    Engine::builder(store.clock_slack(slack).connect().await.unwrap()).build().unwrap()
}

/// Begins and completes a fresh key for each number of bytes after which `cut` cuts the connection,
/// until that exceeds what is sent. Returns that number.
async fn cut_everywhere(server: &Server, slack: Duration, cut: fn(&Proxy, usize)) -> usize {
    let proxy = Proxy::start(server.port()).await;
    let (cut_off, direct) = (through_with(&proxy, slack).await, engine(server).await);
    for bytes in 0.. {
        let request = request(&format!("{bytes}"));
        cut(&proxy, bytes);
        let lease = acquire(&cut_off, &request).await;
        let begin_was_cut = proxy.heal();
        assert_eq!(lease.attempt(), 1, "after {bytes} bytes");
        let seen = direct.inspect("scope", format!("{bytes}")).await.unwrap().unwrap();
        assert_eq!((seen.fence, seen.attempt), (lease.fence(), 1), "after {bytes} bytes");
        let busy = direct.begin(&request).await.unwrap();
        assert!(matches!(busy, Begin::InProgress(_)), "after {bytes} bytes: {busy:?}");

        cut(&proxy, bytes);
        lease.complete(format!("outcome {bytes}")).await.unwrap();
        let complete_was_cut = proxy.heal();
        let stored = get(server, &name(&request));
        assert_eq!(response(&direct, &request).await, format!("outcome {bytes}").into_bytes());
        // The repetition recognised its own write and wrote nothing more.
        lease.complete(format!("outcome {bytes}")).await.unwrap();
        assert_eq!(get(server, &name(&request)), stored);
        if !begin_was_cut && !complete_was_cut {
            return bytes;
        }
    }
    unreachable!()
}

#[test]
fn l1_who_lost_a_connection_does_not_fail_at_the_next_dead_one() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, id) = (connect(&server).await, request("k").id());
        for _ in 0..20 {
            server.ask::<u64>("CLIENT KILL TYPE normal SKIPME yes");
            assert!(store.load(&id).await.unwrap_err().is_transient());
            // There is no connection left to lose while the caller pauses.
            server.ask::<u64>("CLIENT KILL TYPE normal SKIPME yes");
            store.load(&id).await.unwrap();
        }
    });
}

#[test]
fn s6_an_answer_cut_after_any_byte_is_one_grant_and_one_outcome() {
    // Both replies: that of a command that only confirms, and that of the script.
    for (slack, least) in [(LONG_SLACK, 5), (SHORT_SLACK, 20)] {
        let server = Server::start(&[]);
        let bytes = block_on_tokio(cut_everywhere(&server, slack, Proxy::cut_reply_after));
        assert!(bytes >= least, "only {bytes} bytes were cut");
    }
}

#[test]
fn s6_a_request_cut_after_any_byte_is_one_grant_and_one_outcome() {
    for slack in [LONG_SLACK, SHORT_SLACK] {
        let server = Server::start(&[]);
        let bytes = block_on_tokio(cut_everywhere(&server, slack, Proxy::cut_request_after));
        assert!(bytes > 150, "only {bytes} bytes were cut");
    }
}

#[test]
fn s6_the_same_with_a_release() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        let (cut_off, direct) = (through(&proxy).await, engine(&server).await);
        for bytes in 0.. {
            let request = request(&format!("{bytes}"));
            let lease = acquire(&cut_off, &request).await;
            proxy.cut_reply_after(bytes);
            lease.release().await.unwrap();
            let cut = proxy.heal();
            let again = acquire(&direct, &request).await;
            assert!(again.attempt() == 1 && again.fence() > lease.fence(), "after {bytes} bytes");
            if !cut {
                return;
            }
        }
    });
}

#[test]
fn l1_a_connection_that_stays_silent_is_replaced() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        let engine = through(&proxy).await;
        proxy.stall();
        let lease = acquire(&engine, &request("k")).await;
        lease.complete("done").await.unwrap();
        assert_eq!(response(&engine, &request("k")).await, b"done");
    });
}

#[test]
fn a_refused_log_in_is_tried_again() {
    let server = Server::start(&[]);
    server.ask::<()>("ACL SETUSER fritz on >old ~nevertwice:* &nevertwice:* +@all");
    block_on_tokio(async {
        let store = RedisStore::connect(&server.url_as("fritz", "old")).await.unwrap();
        let engine = Engine::builder(store).build().unwrap();
        server.ask::<()>("ACL SETUSER fritz <old >new");
        server.ask::<()>("CLIENT KILL USER fritz");
        let refused = loop {
            match engine.begin(&request("k")).await {
                Err(error) => break error,
                Ok(begun) => drop(begun), // it noticed nothing yet
            }
        };
        assert!(refused.to_string().contains("password"), "{refused}");
        server.ask::<()>("ACL SETUSER fritz >old");
        let _ = acquire(&engine, &request("another")).await;
    });
}

#[test]
fn a_script_flush_is_not_noticed() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = engine(&server).await;
        server.ask::<()>("SCRIPT FLUSH");
        let lease = acquire(&engine, &request("k")).await;
        server.ask::<()>("SCRIPT FLUSH");
        lease.complete("done").await.unwrap();
        server.ask::<()>("SCRIPT FLUSH");
        assert_eq!(response(&engine, &request("k")).await, b"done");
        server.ask::<()>("SCRIPT FLUSH");
        assert!(engine.forget("scope", "k").await.unwrap());
        // A begin that uses no script at first, but finds the stamp of a removed record.
        let _ = acquire(&engine, &request("another")).await;
        server.ask::<()>("SCRIPT FLUSH");
        let _ = acquire(&engine, &request("k")).await;
    });
}

#[test]
fn a_primary_that_becomes_a_replica_grants_nothing() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store).call_timeout(Duration::from_millis(200)).build().unwrap();
        server.ask::<()>("REPLICAOF 127.0.0.1 1");
        let refused = engine.begin(&request("k")).await;
        assert!(matches!(refused, Err(Error::TimedOut { .. })), "{refused:?}");
        server.ask::<()>("REPLICAOF NO ONE");
        let _ = acquire(&engine, &request("k")).await;
    });
}

#[test]
fn after_a_failover_the_name_is_followed_to_the_new_primary() {
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    block_on_tokio(async {
        let proxy = Proxy::start(old.port()).await;
        let engine = through(&proxy).await;
        let _ = acquire(&engine, &request("k")).await;
        proxy.lead_to(new.port());
        old.ask::<()>("REPLICAOF 127.0.0.1 1");
        acquire(&engine, &request("another")).await.complete("done").await.unwrap();
        assert!(get(&new, &name(&request("another"))).is_some());
    });
}

#[test]
fn a_server_busy_with_another_clients_script_is_waited_for() {
    let server = Server::start(&["--busy-reply-threshold", "1"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store).call_timeout(Duration::from_millis(200)).build().unwrap();
        let mut raw = server.raw();
        let script = std::thread::spawn(move || {
            redis::cmd("EVAL").arg("while true do end").arg(0).exec(&mut raw).unwrap_err()
        });
        // Until the script runs, begins are granted.
        let mut number = 0;
        let refused = loop {
            number += 1;
            match engine.begin(&request(&format!("{number}"))).await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, Error::TimedOut { .. }), "{refused:?}");
        server.ask::<()>("SCRIPT KILL");
        script.join().unwrap();
        let _ = acquire(&engine, &request("k")).await;
    });
}

#[test]
fn l1_a_server_that_is_gone_is_an_error_in_time() {
    let mut server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store).call_timeout(Duration::from_millis(200)).build().unwrap();
        server.kill();
        let refused = engine.begin(&request("k")).await;
        assert!(matches!(refused, Err(Error::TimedOut { .. })), "{refused:?}");
        server.restart();
        let _ = acquire(&engine, &request("k")).await;
    });
}

#[test]
fn s9_a_server_killed_in_mid_run_loses_no_outcome() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = runtime.block_on(connect(&server));
    assert_eq!(store.durability(), Durability::Power);
    let engine = Engine::builder(store).call_timeout(Duration::from_secs(30)).build().unwrap();
    let (sender, mut acknowledged) = tokio::sync::mpsc::unbounded_channel();
    for task in 0..8 {
        let (engine, sender) = (engine.clone(), sender.clone());
        runtime.spawn(async move {
            for number in 0.. {
                let key = format!("{task}/{number}");
                let lease = acquire(&engine, &request(&key)).await;
                lease.complete(key.clone()).await.unwrap();
                if sender.send(key).is_err() {
                    return;
                }
            }
        });
    }
    drop(sender);
    let mut done = Vec::new();
    for _ in 0..3 {
        let more = done.len() + 40;
        while done.len() < more {
            done.push(acknowledged.blocking_recv().expect("it goes on"));
        }
        server.kill();
        server.restart();
    }
    drop(acknowledged);
    runtime.block_on(async {
        for key in &done {
            assert_eq!(response(&engine, &request(key)).await, key.as_bytes());
        }
    });
}

#[test]
fn s11_a_dropped_begin_is_found_again_by_its_owner() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = engine(&server).await;
        for key in 0..20 {
            let request = request(&format!("{key}")).owner(nevertwice::Owner::random().unwrap());
            // Polled once: the begin is sent, and its answer never read.
            tokio::select! {
                biased;
                _ = engine.begin(&request) => panic!("it answered at once"),
                () = std::future::ready(()) => {}
            }
            assert_eq!(acquire(&engine, &request).await.attempt(), 1);
        }
    });
}
