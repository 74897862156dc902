//! Waiting for a record to change.

use std::future::Future;
use std::time::{Duration, Instant};

use nevertwice::store::Store;
use nevertwice::{PostgresStore, RecordId, Stamp};
use tokio::task::JoinHandle;

use crate::{Server, acquire, block_on_tokio, connect, engine, request};

/// Longer than any test takes: a waiter that waits this long was not woken.
const LONG: Duration = Duration::from_secs(60);
/// Shorter than the second after which every record is read again: a waiter that wakes this soon
/// was notified.
const TOLD: Duration = Duration::from_millis(700);

async fn stamp(store: &PostgresStore, id: &RecordId) -> Stamp {
    store.load(id).await.unwrap().record.expect("there is a record").stamp
}

/// Spawns a task that waits for the record of a key to change from its present stamp.
async fn waiter(store: &PostgresStore, key: &str) -> JoinHandle<()> {
    let (store, id) = (store.clone(), request(key).id());
    let stamp = stamp(&store, &id).await;
    tokio::spawn(async move { store.changed(&id, stamp, LONG).await.unwrap() })
}

async fn within<F: Future>(limit: Duration, future: F) -> F::Output {
    tokio::time::timeout(limit, future).await.expect("it was not woken")
}

/// Waits until so many sessions listen.
pub(crate) async fn until_listening(server: &Server, count: usize) {
    // The last statement of a session that listens reads stamps.
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT id, stamp FROM%'";
    for _ in 0..1000 {
        if server.sql(sql).parse::<usize>().unwrap() >= count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("nothing listens");
}

#[test]
fn l4_a_waiter_is_told_of_everything_that_ends_a_wait() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let other = engine(&server).await;
        for end in ["complete", "release", "forget", "discard"] {
            let lease = acquire(&other, &request("k")).await;
            let waiter = waiter(&store, "k").await;
            until_listening(&server, 1).await;
            match end {
                "complete" => lease.complete("done").await.unwrap(),
                "release" => lease.release().await.unwrap(),
                "forget" => assert!(other.forget("scope", "k").await.unwrap()),
                _ => assert!(connect(&server).await.discard(&request("k").id()).await.unwrap()),
            }
            within(TOLD, waiter).await.unwrap();
            other.forget("scope", "k").await.unwrap();
        }
    });
}

/// The waiter would otherwise read the record again within a second, which is not always too late
/// for a test: hence several.
#[test]
fn l4_a_store_that_is_dropped_after_a_change_still_announces_it() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        for _ in 0..6 {
            let lease = acquire(&engine(&server).await, &request("k")).await;
            let waiter = waiter(&store, "k").await;
            until_listening(&server, 1).await;
            lease.release().await.unwrap();
            drop(lease);
            within(TOLD, waiter).await.unwrap();
        }
    });
}

#[test]
fn l4_a_change_by_the_same_store_wakes_at_once() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let own = nevertwice::Engine::builder(store.clone()).build().unwrap();
        let lease = acquire(&own, &request("k")).await;
        let waiter = waiter(&store, "k").await;
        until_listening(&server, 1).await;
        lease.complete("done").await.unwrap();
        within(TOLD, waiter).await.unwrap();
    });
}

#[test]
fn l4_a_lost_notification_and_a_lost_connection_delay_a_waiter_by_seconds_at_most() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let lease = acquire(&engine(&server).await, &request("k")).await;
        let waiting = waiter(&store, "k").await;
        until_listening(&server, 1).await;
        // Changed by hand, which announces nothing.
        server.sql("UPDATE nevertwice SET stamp = stamp + 1");
        within(Duration::from_secs(20), waiting).await.unwrap();
        let waiting = waiter(&store, "k").await;
        until_listening(&server, 1).await;
        server.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nevertwice'",
        );
        server.sql("UPDATE nevertwice SET stamp = stamp + 1");
        within(Duration::from_secs(20), waiting).await.unwrap();
        drop(lease);
    });
}

#[test]
fn l4_a_thousand_waiters_on_a_thousand_keys_wake_in_time() {
    const KEYS: usize = 1000;
    let server = Server::start(&[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = connect(&server).await;
        let other = engine(&server).await;
        let leases = (0..KEYS).map(|key| {
            let other = other.clone();
            tokio::spawn(async move { acquire(&other, &request(&format!("{key}"))).await })
        });
        let leases = futures_util::future::join_all(leases).await;
        let mut waiters = Vec::new();
        for key in 0..KEYS {
            let (store, id) = (store.clone(), request(&format!("{key}")).id());
            let stamp = stamp(&store, &id).await;
            waiters.push(tokio::spawn(async move {
                store.changed(&id, stamp, LONG).await.unwrap();
                Instant::now()
            }));
        }
        until_listening(&server, 1).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let finishes = leases.into_iter().map(|lease| {
            tokio::spawn(async move {
                lease.unwrap().complete("done").await.unwrap();
                Instant::now()
            })
        });
        let finishes = futures_util::future::join_all(finishes).await;
        let mut delays = Vec::new();
        for (waiter, finished) in waiters.into_iter().zip(finishes) {
            let woken = within(LONG, waiter).await.unwrap();
            delays.push(woken.saturating_duration_since(finished.unwrap()));
        }
        // `benches/run waiters` measures it. A busy machine takes its time, but no wait ends
        // without a change before its limit.
        let last = delays.into_iter().max().unwrap();
        assert!(last < LONG / 3, "{last:?}");
    });
}
