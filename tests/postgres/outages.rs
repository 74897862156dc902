//! Servers that end, hang, or end sessions and statements.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nevertwice::store::Store;
use nevertwice::{Begin, Engine, Error, PostgresStore};

use crate::proxy::Proxy;
use crate::{Server, acquire, block_on_tokio, connect, engine, request, response};

/// Completes keys until a call fails or `stop` is set, and returns those that were acknowledged.
pub(crate) async fn acknowledged(engine: &Engine, callers: usize, stop: Arc<AtomicBool>) -> Vec<String> {
    let work = (0..callers).map(|caller| {
        let (engine, stop) = (engine.clone(), Arc::clone(&stop));
        tokio::spawn(async move {
            let mut done = Vec::new();
            for number in 0.. {
                let key = format!("{caller} {number}");
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(Begin::Acquired(lease)) = engine.begin(&request(&key)).await else { break };
                if lease.complete(key.clone()).await.is_err() {
                    break;
                }
                done.push(key);
            }
            done
        })
    });
    let mut all = Vec::new();
    for work in work.collect::<Vec<_>>() {
        all.append(&mut work.await.unwrap());
    }
    all
}

/// Returns how many of the keys a server does not know, or not as they were completed.
pub(crate) async fn lost(engine: &Engine, keys: &[String]) -> usize {
    let mut lost = 0;
    for keys in keys.chunks(500) {
        let requests: Vec<_> = keys.iter().map(|key| request(key)).collect();
        for (key, begin) in keys.iter().zip(engine.begin_many(&requests).await) {
            match begin.unwrap() {
                Begin::Completed(done) if done.response().unwrap() == key => {}
                Begin::Acquired(_) | Begin::InProgress(_) => lost += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    lost
}

/// A commit that fails is no grant, although the insert succeeded.
#[test]
fn s10_nothing_is_believed_before_the_commit() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        drop(connect(&server).await);
        server.sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END'; \
             CREATE CONSTRAINT TRIGGER refuse AFTER INSERT OR UPDATE ON nevertwice DEFERRABLE INITIALLY DEFERRED \
             FOR EACH ROW EXECUTE FUNCTION refuse()",
        );
        for _ in 0..2 {
            let engine = Engine::builder(connect(&server).await)
                .call_timeout(Duration::from_millis(500))
                .build()
                .unwrap();
            let refused = engine.begin(&request("k")).await;
            assert!(matches!(refused, Err(Error::TimedOut { .. })), "{refused:?}");
            assert_eq!(server.sql("SELECT count(*) FROM nevertwice"), "0");
            server.sql("DROP FUNCTION IF EXISTS nevertwice_swap_v1");
        }
    });
}

#[test]
fn s9_kill_9_of_the_server_loses_nothing_acknowledged() {
    let mut server = Server::start(&[]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut all = Vec::new();
    for round in 0..3 {
        let store = runtime.block_on(connect(&server));
        let engine = Engine::builder(store)
            .call_timeout(Duration::from_millis(500))
            .finish_timeout(Duration::from_millis(500))
            .build()
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let work = runtime.spawn({
            let stop = Arc::clone(&stop);
            async move {
                let scoped = acknowledged(&engine, 32, stop).await;
                drop(engine);
                scoped
            }
        });
        std::thread::sleep(Duration::from_millis(700));
        server.kill();
        stop.store(true, Ordering::SeqCst);
        let done = runtime.block_on(work).unwrap();
        assert!(!done.is_empty(), "round {round}");
        server.restart();
        let after = runtime.block_on(crate::engine(&server));
        assert_eq!(runtime.block_on(lost(&after, &done)), 0);
        println!("{} acknowledged, none lost", done.len());
        all.extend(done);
        server.sql("TRUNCATE nevertwice");
    }
}

#[test]
fn a_restart_of_the_server_is_survived_by_the_calls_under_way() {
    let mut server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let engine =
            Engine::builder(connect(&server).await).call_timeout(Duration::from_secs(60)).build().unwrap();
        let lease = acquire(&engine, &request("k")).await;
        server.stop();
        let work = tokio::spawn({
            let engine = engine.clone();
            async move { acquire(&engine, &request("new")).await.complete("new").await }
        });
        tokio::task::spawn_blocking(move || {
            server.restart();
            server
        })
        .await
        .map(|server| async move {
            work.await.unwrap().unwrap();
            lease.complete("done").await.unwrap();
            assert_eq!(response(&engine, &request("k")).await, b"done");
            drop(server);
        })
        .unwrap()
        .await;
    });
}

#[test]
fn l1_a_server_that_does_not_answer_ends_calls_in_time_and_gets_few_connections() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        let store = PostgresStore::builder(&server.url_at(proxy.port()))
            .connect_timeout(Duration::from_secs(1))
            .answer_timeout(Duration::from_millis(700))
            .connections(6)
            .connect()
            .await
            .unwrap();
        let engine = Engine::builder(store).call_timeout(Duration::from_secs(4)).build().unwrap();
        drop(acquire(&engine, &request("before")).await);
        proxy.silence();
        let before = proxy.connections();
        let started = Instant::now();
        let calls = (0..64).map(|number| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.begin(&request(&format!("{number}"))).await.map(|_| ()) })
        });
        for call in calls.collect::<Vec<_>>() {
            assert!(matches!(call.await.unwrap(), Err(Error::TimedOut { .. })));
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        assert!(proxy.connections() - before < 100, "{}", proxy.connections() - before);
        proxy.heal();
        drop(acquire(&engine, &request("after")).await);
    });
}

/// Many reads wait for longer than an answer may take, while each of them is answered in time.
#[test]
fn reads_that_queue_on_a_slow_server_are_all_answered() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        drop(connect(&server).await);
        // Each read takes 20 ms.
        server.sql(
            "CREATE ROLE app LOGIN; GRANT ALL ON nevertwice, nevertwice_meta, nevertwice_mark TO app; \
             ALTER TABLE nevertwice ENABLE ROW LEVEL SECURITY; \
             CREATE POLICY slow ON nevertwice USING ((SELECT true FROM pg_sleep(0.02)))",
        );
        let store = PostgresStore::builder(&server.url_as("app", "", "postgres"));
        let limit = Duration::from_millis(700);
        let store = store.connections(3).answer_timeout(limit).connect().await.unwrap();
        drop(acquire(&Engine::builder(store.clone()).build().unwrap(), &request("k")).await);
        let started = Instant::now();
        // Each listing is a statement of its own; loads would be sent together.
        let pages = futures_util::future::join_all((0..100).map(|_| store.scan(None, 10))).await;
        pages.into_iter().for_each(|page| assert_eq!(page.unwrap().records.len(), 1));
        assert!(started.elapsed() > 2 * limit, "the queue was short: the check sees nothing");
    });
}

#[test]
fn a_call_that_is_dropped_cancels_nothing_and_its_connection_is_used_again() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        let store = PostgresStore::connect(&server.url_at(proxy.port())).await.unwrap();
        let engine = Engine::builder(store).build().unwrap();
        drop(acquire(&engine, &request("first")).await);
        for number in 0..50 {
            let (key, mut polls) = (request(&format!("{number}")), number % 3);
            let mut call = Box::pin(engine.begin(&key));
            std::future::poll_fn(|context| {
                let ready = call.as_mut().poll(context).is_ready();
                polls -= i32::from(!ready);
                if ready || polls < 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
            .await;
            drop(call);
        }
        drop(acquire(&engine, &request("last")).await);
        assert!(proxy.connections() <= 8, "{}", proxy.connections());
    });
}

#[test]
fn sessions_and_statements_that_the_server_ends_are_repeated() {
    let server = Server::start(&[
        "fsync=off",
        "statement_timeout=2000ms",
        "idle_in_transaction_session_timeout=100ms",
        "idle_session_timeout=50ms",
    ]);
    block_on_tokio(async {
        let engine = engine(&server).await;
        for number in 0..10 {
            let lease = acquire(&engine, &request(&format!("{number}"))).await;
            // Longer than the server keeps an idle session.
            tokio::time::sleep(Duration::from_millis(80)).await;
            server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nevertwice'");
            lease.complete("done").await.unwrap();
        }
    });
}

/// A statement that the server ends did nothing, so it is repeated, and each call ends in time.
#[test]
fn l1_a_statement_timeout_is_an_error_that_names_it() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        server.sql("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NEW; END'; \
             CREATE TRIGGER slow BEFORE INSERT ON nevertwice FOR EACH ROW EXECUTE FUNCTION slow(); \
             ALTER ROLE postgres SET statement_timeout = '50ms'");
        drop(store);
        let engine =
            Engine::builder(connect(&server).await).call_timeout(Duration::from_secs(1)).build().unwrap();
        let Err(Error::TimedOut { last: Some(last), .. }) = engine.begin(&request("k")).await else {
            panic!()
        };
        assert!(last.to_string().contains("statement_timeout"), "{last}");
        server.sql("DROP TRIGGER slow ON nevertwice");
        drop(acquire(&engine, &request("k")).await);
    });
}

#[test]
fn a_server_that_became_read_only_is_left_for_its_successor() {
    let (old, new) = (Server::start(&["fsync=off"]), Server::start(&["fsync=off"]));
    block_on_tokio(async {
        let proxy = Proxy::start(old.port()).await;
        let store = PostgresStore::builder(&old.url_at(proxy.port())).recheck_every(Duration::ZERO);
        let store = store.connect().await.unwrap();
        let engine = Engine::builder(store.clone()).call_timeout(Duration::from_secs(1)).build().unwrap();
        drop(acquire(&engine, &request("k")).await);
        old.sql("ALTER SYSTEM SET default_transaction_read_only = on");
        old.sql("SELECT pg_reload_conf()");
        for _ in 0..2000 {
            if old.sql("SHOW default_transaction_read_only") == "on" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let Err(Error::TimedOut { last: Some(last), .. }) = engine.begin(&request("other")).await else {
            panic!()
        };
        assert!(last.to_string().contains("read-only"), "{last}");
        // An unrelated server, to which the name leads by mistake.
        proxy.lead_to(new.port());
        drop(connect(&new).await);
        let refused = engine.begin(&request("other")).await;
        assert!(refused.unwrap_err().to_string().contains("another store"));
        assert!(store.load(&request("k").id()).await.is_err());
    });
}

#[test]
fn s12_a_full_disk_refuses_begins_with_full_and_loses_nothing() {
    let disk = Disk::new("48m");
    let mut server =
        Server::start_in(disk.0.path().to_owned(), &["max_wal_size=4MB", "min_wal_size=2MB"], &[], None);
    let mut acknowledged = Vec::new();
    block_on_tokio(async {
        let engine = engine(&server).await;
        let keys = |name: &'static str| (0..15).map(move |number| format!("{name} {number}"));
        for key in keys("done") {
            acquire(&engine, &request(&key)).await.complete(key.clone()).await.unwrap();
            acknowledged.push(key);
        }
        let mut held = Vec::new();
        for key in keys("held") {
            held.push((acquire(&engine, &request(&key)).await, key));
        }
        let ballast = disk.0.path().join("ballast");
        // The log is preallocated; the tables are what is to grow no more.
        let fill = std::process::Command::new("dd")
            .args(["if=/dev/zero", "bs=4k"])
            .arg(format!("of={}", ballast.display()))
            .output();
        fill.unwrap();
        let mut granted = 0;
        let refused = loop {
            match engine.begin(&request(&format!("new {granted}"))).await {
                Ok(Begin::Acquired(_)) => granted += 1,
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
            assert!(granted < 1000, "the disk is not full: the check sees nothing");
        };
        assert!(refused.to_string().contains("is full"), "{refused}");
        // The pages have room for the finishes, and for no rows more.
        for (lease, key) in held.drain(..10) {
            lease.complete(key.clone()).await.unwrap();
            acknowledged.push(key);
        }
        for key in &acknowledged {
            assert_eq!(response(&engine, &request(key)).await, key.as_bytes());
        }
        std::fs::remove_file(ballast).unwrap();
        for (lease, key) in held {
            lease.complete(key.clone()).await.unwrap();
            acknowledged.push(key);
        }
        acquire(&engine, &request("room")).await.complete("room").await.unwrap();
    });
    server.kill();
    server.restart();
    let after = block_on_tokio(engine(&server));
    assert_eq!(block_on_tokio(lost(&after, &acknowledged)), 0);
    println!("{} acknowledged, none lost", acknowledged.len());
    drop(server);
}

/// A small file system in memory, unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(size: &str) -> Disk {
        let folder = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .status();
        assert!(mounted.unwrap().success(), "this test has to mount a file system, which needs root");
        Disk(folder)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}
