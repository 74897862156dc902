//! Standbys: failover, and those that are gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nevertwice::store::Store;
use nevertwice::{Durability, Engine, Error, PostgresStore};

use crate::outages::{acknowledged, lost};
use crate::proxy::Proxy;
use crate::{Server, acquire, block_on_tokio, connect, engine, request, response, unusable};

/// The settings of a primary that waits for one standby.
const SYNCHRONOUS: &str = "synchronous_standby_names=replica";

/// Waits until a standby streams.
fn until_it_streams(primary: &Server, state: &str) {
    for _ in 0..2000 {
        if primary.sql("SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'") == state {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("no standby streams: {}", primary.sql("SELECT * FROM pg_stat_replication"));
}

#[test]
fn a_standby_is_refused() {
    let primary = Server::start(&["fsync=off"]);
    drop(block_on_tokio(connect(&primary)));
    let standby = primary.standby("replica", &["fsync=off"]);
    block_on_tokio(async {
        assert!(unusable(PostgresStore::connect(&standby.url()).await).contains("standby"));
        let both = format!(
            "postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres?sslmode=disable",
            standby.port(),
            primary.port()
        );
        let engine = Engine::builder(PostgresStore::connect(&both).await.unwrap()).build().unwrap();
        drop(acquire(&engine, &request("k")).await);
    });
}

/// Runs callers, kills the primary, promotes the standby, and returns how many outcomes were
/// acknowledged and how many of them are lost.
fn fail_over(primary: &mut Server, standby: &Server, replicas: u8, cut: bool) -> (usize, usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let proxy = Proxy::start(primary.port()).await;
        let store =
            PostgresStore::builder(&primary.url_at(proxy.port())).replicas(replicas).connect().await.unwrap();
        let expected = if replicas == 0 { Durability::Power } else { Durability::Replicated(replicas) };
        assert_eq!(store.durability(), expected);
        let identity = store.identity();
        let engine = Engine::builder(store.clone())
            .call_timeout(Duration::from_secs(1))
            .finish_timeout(Duration::from_secs(1))
            .require(Durability::Power)
            .build()
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let work = tokio::spawn({
            let (engine, stop) = (engine.clone(), Arc::clone(&stop));
            async move { acknowledged(&engine, 32, stop).await }
        });
        tokio::time::sleep(Duration::from_millis(700)).await;
        if cut {
            // What is committed from here on does not reach the standby.
            standby.sql("ALTER SYSTEM SET primary_conninfo = ''");
            standby.sql("SELECT pg_reload_conf()");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        primary.kill();
        stop.store(true, Ordering::SeqCst);
        let done = work.await.unwrap();
        standby.promote();
        proxy.lead_to(standby.port());
        // Other standbys are to be set up first.
        standby.sql("ALTER SYSTEM SET synchronous_standby_names = ''");
        standby.sql("SELECT pg_reload_conf()");
        let after = Engine::builder(connect(standby).await).build().unwrap();
        let lost = lost(&after, &done).await;
        assert_eq!(connect(standby).await.identity(), identity, "tokens stay valid");
        if replicas == 0 {
            let again = Engine::builder(store).call_timeout(Duration::from_secs(30)).build().unwrap();
            drop(acquire(&again, &request("the same store, on the new primary")).await);
        } else {
            // Less than what the store was set up for: duplicates are answered, nothing is granted.
            let refused = engine.begin(&request("new")).await;
            assert!(refused.is_err(), "{refused:?}");
        }
        (done.len(), lost)
    })
}

#[test]
fn s9_a_failover_to_a_synchronous_standby_loses_nothing_acknowledged() {
    let mut primary = Server::start(&[]);
    drop(block_on_tokio(connect(&primary)));
    let standby = primary.standby("replica", &[]);
    primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'replica'");
    primary.sql("SELECT pg_reload_conf()");
    until_it_streams(&primary, "sync");
    let (done, lost) = fail_over(&mut primary, &standby, 1, false);
    println!("{done} acknowledged, {lost} lost");
    assert!(done > 0);
    assert_eq!(lost, 0);
}

#[test]
fn a_failover_to_an_asynchronous_standby_loses_what_it_had_not_received() {
    let mut primary = Server::start(&[]);
    drop(block_on_tokio(connect(&primary)));
    let standby = primary.standby("replica", &[]);
    until_it_streams(&primary, "async");
    let (done, lost) = fail_over(&mut primary, &standby, 0, true);
    println!("{done} acknowledged, {lost} lost");
    assert!(done > lost);
}

#[test]
fn l1_a_standby_that_is_gone_ends_calls_in_time_and_few_sessions_wait() {
    let primary = Server::start(&["fsync=off"]);
    drop(block_on_tokio(connect(&primary)));
    block_on_tokio(async {
        let free = engine(&primary).await;
        acquire(&free, &request("done")).await.complete("done").await.unwrap();
        primary.sql(&format!("ALTER SYSTEM SET {}", SYNCHRONOUS.replace('=', " = ")));
        primary.sql("SELECT pg_reload_conf()");
        let limit = Duration::from_millis(200);
        let store = PostgresStore::builder(&primary.url()).replicas(1).answer_timeout(limit).connections(6);
        let store = store.connect().await.unwrap();
        let engine = Engine::builder(store.clone()).call_timeout(Duration::from_secs(1)).build().unwrap();
        let started = Instant::now();
        let calls = (0..32).map(|number| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.begin(&request(&format!("{number}"))).await.map(|_| ()) })
        });
        for call in calls.collect::<Vec<_>>() {
            assert!(matches!(call.await.unwrap(), Err(Error::TimedOut { .. })));
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let sessions: usize = primary.sql(waiting).parse().unwrap();
        assert!((1..=6).contains(&sessions), "{sessions}");
        // Reads have connections of their own.
        assert!(store.load(&request("done").id()).await.unwrap().record.is_some());
        // An operator ends the waits: the server calls that success, but no standby has the writes.
        primary.sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = ''");
        primary.sql("SELECT pg_reload_conf()");
        assert_eq!(response(&free, &request("done")).await, b"done");
    });
}

#[test]
fn s9_replicas_count_only_if_each_copy_is_on_disk() {
    let mut server = Server::start(&["fsync=off"]);
    drop(block_on_tokio(connect(&server)));
    let cases = [
        ("fsync=off", Some(Durability::Process)),
        ("full_page_writes=off", Some(Durability::Process)),
        ("synchronous_commit=remote_write", None),
        ("synchronous_commit=remote_apply", Some(Durability::Replicated(1))),
    ];
    for (setting, level) in cases {
        server.stop();
        server.restart_with(&[SYNCHRONOUS, setting], &[]);
        let connected = block_on_tokio(PostgresStore::builder(&server.url()).replicas(1).connect());
        match level {
            Some(level) => {
                let store = connected.unwrap();
                assert_eq!(store.durability(), level, "{setting}");
                let synced = matches!(level, Durability::Replicated(_));
                assert_eq!(store.is_as_durable_as(Durability::Power), synced, "{setting}");
            }
            None => assert!(unusable(connected).contains("synchronous_commit"), "{setting}"),
        }
    }
}

#[test]
fn s9_a_cancelled_wait_for_a_standby_is_no_acknowledgement() {
    let primary = Server::start(&["fsync=off"]);
    drop(block_on_tokio(connect(&primary)));
    block_on_tokio(async {
        primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'replica'");
        primary.sql("SELECT pg_reload_conf()");
        let store =
            PostgresStore::builder(&primary.url()).replicas(1).answer_timeout(Duration::from_secs(60));
        let engine = Engine::builder(store.connect().await.unwrap())
            .call_timeout(Duration::from_secs(3))
            .build()
            .unwrap();
        let begin = tokio::spawn({
            let engine = engine.clone();
            async move { engine.begin(&request("k")).await.map(|_| ()) }
        });
        let cancel =
            "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let mut cancelled = 0;
        while !begin.is_finished() {
            cancelled += primary.sql(cancel).parse::<usize>().unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(cancelled > 0);
        let refused = begin.await.unwrap();
        assert!(matches!(refused, Err(Error::TimedOut { .. })), "{refused:?}");
    });
}
