//! Many callers and one key: one grant. Rows that other transactions hold.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nevertwice::postgres::tokio_postgres::{self, Client, NoTls};
use nevertwice::store::{Store, Swap, SwapRequest};
use nevertwice::{Begin, Engine, Error, PostgresStore, StoreError};

use crate::children::Deadline;
use crate::{Server, acquire, block_on_tokio, connect, request};

const PROCESSES: usize = 2;
const TASKS: usize = 200;
const KEYS: usize = 10;
/// Set for the processes that take part in a race: the same test, started again.
const URL: &str = "NEVERTWICE_RACE_URL";
const NUMBER: &str = "NEVERTWICE_RACE_NUMBER";
const FOLDER: &str = "NEVERTWICE_RACE_FOLDER";

#[test]
fn s1_tasks_of_two_processes_race_for_one_grant() {
    if let (Ok(url), Ok(number), Ok(folder)) =
        (std::env::var(URL), std::env::var(NUMBER), std::env::var(FOLDER))
    {
        return racing_process(&url, &number, Path::new(&folder));
    }
    let server = Server::start(&["fsync=off"]);
    drop(block_on_tokio(connect(&server)));
    let folder = tempfile::tempdir().unwrap();
    let mut children: Vec<_> = (0..PROCESSES)
        .map(|number| {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "races::s1_tasks_of_two_processes_race_for_one_grant"]);
            let child =
                child.env(URL, server.url()).env(NUMBER, number.to_string()).env(FOLDER, folder.path());
            child.spawn().unwrap()
        })
        .collect();
    for child in &mut children {
        let _deadline = Deadline::of(child);
        assert!(child.wait().unwrap().success());
    }
    let read = |number: usize| std::fs::read_to_string(folder.path().join(number.to_string())).unwrap();
    let grants: Vec<Vec<usize>> = (0..PROCESSES)
        .map(|number| read(number).lines().map(|line| line.parse().unwrap()).collect())
        .collect();
    for key in 0..KEYS {
        assert_eq!(grants.iter().map(|grants| grants[key]).sum::<usize>(), 1, "{grants:?}");
    }
}

/// The work of each racing process.
fn racing_process(url: &str, number: &str, folder: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = runtime.block_on(PostgresStore::connect(url)).unwrap();
    let engine = Engine::builder(store).call_timeout(Duration::from_secs(60)).build().unwrap();
    let grants: Vec<String> = (0..KEYS)
        .map(|key| {
            std::fs::write(folder.join(format!("{number} at {key}")), "").unwrap();
            meet(folder, key);
            runtime.block_on(race(&engine, &format!("{key}"))).to_string()
        })
        .collect();
    std::fs::write(folder.join(number), grants.join("\n")).unwrap();
}

/// Waits until every process has arrived.
fn meet(folder: &Path, key: usize) {
    for _ in 0..60_000 {
        if (0..PROCESSES).all(|number| folder.join(format!("{number} at {key}")).exists()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the other process did not come");
}

/// Returns how many of many tasks are granted a key.
async fn race(engine: &Engine, key: &str) -> usize {
    let begins = (0..TASKS).map(|_| {
        let (engine, request) = (engine.clone(), request(key));
        tokio::spawn(async move { matches!(engine.begin(&request).await.unwrap(), Begin::Acquired(_)) })
    });
    let mut grants = 0;
    for begin in begins.collect::<Vec<_>>() {
        grants += usize::from(begin.await.unwrap());
    }
    grants
}

/// Every duplicate of a race sees the record, although it was inserted while its own statement ran.
#[test]
fn s1_a_conflict_always_shows_the_record() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let stores: [PostgresStore; 4] =
            [connect(&server).await, connect(&server).await, connect(&server).await, connect(&server).await];
        let record = record();
        for round in 0..300 {
            let id = request(&format!("{round}")).id();
            let swap = SwapRequest::new(&id, None, Some(&record));
            let answers = futures_util::future::join_all(stores.iter().map(|store| store.swap(&swap))).await;
            let mut grants = 0;
            for answer in answers {
                match answer.unwrap() {
                    Swap::Done(_) => grants += 1,
                    Swap::Conflict(found) => assert!(found.record.is_some(), "round {round}"),
                }
            }
            assert_eq!(grants, 1);
        }
    });
}

pub(crate) fn record() -> nevertwice::store::Record {
    let store = nevertwice::MemoryStore::new();
    let engine = Engine::builder(store.clone()).build().unwrap();
    let request = request("any");
    nevertwice::testing::block_on(async {
        let Begin::Acquired(_lease) = engine.begin(&request).await.unwrap() else { panic!() };
        let mut record = *store.load(&request.id()).await.unwrap().record.unwrap();
        record.fence = nevertwice::Stamp::ZERO;
        record
    })
}

#[test]
fn batches_that_share_keys_do_not_deadlock() {
    // Looks for a deadlock before the store gives up waiting.
    let server = Server::start(&["fsync=off", "deadlock_timeout=1ms"]);
    block_on_tokio(async {
        let stores = [connect(&server).await, connect(&server).await, connect(&server).await];
        let record = record();
        let ids: Vec<_> = (0..64).map(|key| request(&format!("{key}")).id()).collect();
        for store in &stores[..1] {
            let swaps: Vec<_> = ids.iter().map(|id| SwapRequest::new(id, None, Some(&record))).collect();
            store.swap_many(&swaps).await.into_iter().for_each(|swap| drop(swap.unwrap()));
        }
        let work = stores.iter().enumerate().map(|(number, store)| {
            let (store, record, mut ids) = (store.clone(), record.clone(), ids.clone());
            tokio::spawn(async move {
                for round in 0..60 {
                    let length = ids.len();
                    ids.rotate_left((number * 17 + round) % length);
                    if (number + round) % 2 == 0 {
                        ids.reverse();
                    }
                    let mut swaps = Vec::new();
                    for loaded in futures_util::future::join_all(ids.iter().map(|id| store.load(id))).await {
                        let stamp = loaded.unwrap().record.unwrap().stamp;
                        swaps.push(SwapRequest::new(&ids[swaps.len()], Some(stamp), Some(&record)));
                    }
                    store.swap_many(&swaps).await.into_iter().for_each(|swap| drop(swap.unwrap()));
                }
            })
        });
        for work in work.collect::<Vec<_>>() {
            work.await.unwrap();
        }
    });
    // Counted in the server's own time.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(server.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'"), "0");
}

/// Opens a connection of the application's own.
pub(crate) async fn raw(server: &Server) -> Client {
    raw_at(&server.url()).await
}

pub(crate) async fn raw_at(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

#[test]
fn l1_a_row_that_another_transaction_holds_delays_only_its_own_key() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        for has_functions in [true, false] {
            let store = PostgresStore::builder(&server.url()).answer_timeout(Duration::from_millis(300));
            let engine = Engine::builder(store.connect().await.unwrap());
            let engine = engine.call_timeout(Duration::from_millis(1500)).build().unwrap();
            let key = format!("held {has_functions}");
            let own = raw(&server).await;
            let id = hex::encode(request(&key).id().as_bytes());
            own.batch_execute(&format!(
                "BEGIN; SELECT nevertwice_swap_one_v1('\\x{id}', NULL, 3600000000, false, 'not yet', NULL)"
            ))
            .await
            .unwrap();
            let started = Instant::now();
            let held = tokio::spawn({
                let (engine, request) = (engine.clone(), request(&key));
                async move { engine.begin(&request).await.map(|_| ()) }
            });
            for number in 0..20 {
                let start = Instant::now();
                drop(acquire(&engine, &request(&format!("{has_functions} {number}"))).await);
                assert!(start.elapsed() < Duration::from_millis(700), "{:?}", start.elapsed());
            }
            let Err(Error::TimedOut { last: Some(last), .. }) = held.await.unwrap() else {
                panic!("it is held")
            };
            assert!(last.to_string().contains("locked"), "{last}");
            assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
            own.batch_execute("ROLLBACK").await.unwrap();
            // The last try of the call that timed out may still have been granted.
            let begin = engine.begin(&request(&key)).await.unwrap();
            assert!(matches!(begin, Begin::Acquired(_) | Begin::InProgress(_)), "{begin:?}");
            server.sql("DROP FUNCTION IF EXISTS nevertwice_swap_v1");
        }
    });
}

/// A session that a hung application or the network keeps from ending holds its key until the
/// server ends it.
#[test]
fn l2_a_session_that_idles_with_a_key_is_ended_by_the_server_and_its_key_is_free() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let engine = Engine::builder(connect(&server).await).call_timeout(Duration::from_secs(60));
        let engine = engine.build().unwrap();
        let own = raw(&server).await;
        own.batch_execute("SET idle_in_transaction_session_timeout = '300ms'").await.unwrap();
        let id = hex::encode(request("k").id().as_bytes());
        let begun = format!(
            "BEGIN; SELECT nevertwice_swap_one_v1('\\x{id}', NULL, 3600000000, false, 'never', NULL)"
        );
        own.batch_execute(&begun).await.unwrap();
        let lease = acquire(&engine, &request("k")).await;
        assert_eq!(lease.attempt(), 1, "what the session wrote is gone");
        assert!(own.batch_execute("COMMIT").await.is_err());
        lease.complete("done").await.unwrap();
    });
}

/// Expects from now on what the swaps wrote.
fn take(swaps: &mut [SwapRequest], done: Vec<Result<Swap, StoreError>>) {
    assert_eq!(swaps.len(), done.len());
    for (swap, done) in swaps.iter_mut().zip(done) {
        let Swap::Done(stamp) = done.unwrap() else { panic!("a conflict") };
        swap.expected = Some(stamp);
    }
}

/// An application that locks two keys in another order than the store does is one of two that the
/// server can end. If it ends the store's batch, that is sent again.
#[test]
fn deadlocks_with_an_applications_transaction_end_and_the_batch_is_done() {
    let server = Server::start(&["fsync=off", "deadlock_timeout=1ms"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let record = record();
        let mut ids: Vec<_> = (0..2).map(|key| request(&format!("{key}")).id()).collect();
        ids.sort();
        let mut swaps: Vec<_> = ids.iter().map(|id| SwapRequest::new(id, None, Some(&record))).collect();
        let lock = "SELECT stamp FROM nevertwice WHERE id = $1 FOR UPDATE";
        let mut ended = 0;
        for _ in 0..40 {
            let done = store.swap_many(&swaps).await;
            take(&mut swaps, done);
            let mut client = raw(&server).await;
            let own = client.transaction().await.unwrap();
            own.query(lock, &[&ids[1].as_bytes().as_slice()]).await.unwrap();
            let batch = tokio::spawn({
                let (store, swaps) = (store.clone(), swaps.clone());
                async move { store.swap_many(&swaps).await }
            });
            tokio::time::sleep(Duration::from_millis(5)).await;
            let locked = own.query(lock, &[&ids[0].as_bytes().as_slice()]).await;
            ended += usize::from(locked.is_err());
            own.rollback().await.unwrap();
            take(&mut swaps, batch.await.unwrap());
        }
        println!("the application was ended {ended} times");
    });
    // Counted in the server's own time.
    std::thread::sleep(Duration::from_millis(1500));
    let deadlocks = server.sql("SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'");
    assert_ne!(deadlocks, "0");
}
