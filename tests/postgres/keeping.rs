//! Records that are kept, rows that are purged, and stamps that never repeat.

use std::time::Duration;

use nevertwice::store::Store;
use nevertwice::{Begin, Engine, PostgresStore, Retry, Stamp};

use crate::races::raw;
use crate::{Server, acquire, block_on_tokio, connect, engine, request, response};

/// Marks all rows as due by now, as they are some time after their deadline.
const ALL_DUE: &str = "UPDATE nevertwice SET due = 1";
const SHORT: Duration = Duration::from_micros(1);
/// Lets damage in.
const UNCHECKED: &str = "ALTER TABLE nevertwice DROP CONSTRAINT nevertwice_stamp_check, \
     DROP CONSTRAINT nevertwice_keep_check, DROP CONSTRAINT nevertwice_id_check";
pub(crate) const NO_FUNCTIONS: &str = "DROP FUNCTION nevertwice_swap_v1, nevertwice_swap_one_v1, nevertwice_swap_together_v1, \
     nevertwice_purge_v1";
const LIBRARY: &str = "libfaketime.so.1";

fn rows(server: &Server) -> usize {
    server.sql("SELECT count(*) FROM nevertwice").parse().unwrap()
}

fn mark(server: &Server) -> u64 {
    server.sql("SELECT last_value FROM nevertwice_mark").parse().unwrap()
}

#[test]
fn s13_a_purge_removes_what_is_over_and_postpones_the_rest() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store.clone()).build().unwrap();
        for key in ["kept", "completed"] {
            let lease = acquire(&engine, &request(key)).await;
            if key == "completed" {
                lease.complete("done").await.unwrap();
            }
        }
        let over = |key: &str| request(key).lease(SHORT).retention(SHORT);
        for number in 0..30 {
            acquire(&engine, &over(&format!("over {number}"))).await.complete("over").await.unwrap();
        }
        let marked = acquire(&engine, &request("marked").lease(SHORT)).await;
        marked.mark_effect().await.unwrap();
        acquire(&engine, &request("failed").lease(SHORT)).await.fail("?", Retry::Unresolved).await.unwrap();
        acquire(&engine, &request("released")).await.release().await.unwrap();
        assert_eq!(rows(&server), 35);
        assert_eq!(store.purge(1000).await.unwrap().removed, 0, "no row is due before its time, rounded up");
        server.sql(ALL_DUE);
        let purged = store.purge(7).await.unwrap();
        assert!(purged.removed <= 7, "{purged:?}");
        let rest = store.purge(1000).await.unwrap();
        assert_eq!((purged.removed + rest.removed, rest.unsettled), (30, 0));
        assert_eq!(rows(&server), 4, "tombstones are gone too, and evidence is not");
        for key in ["marked", "failed"] {
            assert!(matches!(engine.begin(&request(key)).await.unwrap(), Begin::Unresolved(_)), "{key}");
        }
        assert_eq!(response(&engine, &request("completed")).await, b"done");
        assert_eq!(server.sql("SELECT count(*) FROM nevertwice WHERE due <= 1"), "0");
    });
}

#[test]
fn s13_evidence_that_was_not_settled_in_time_is_counted() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store.clone()).lease(SHORT).retention(SHORT).unresolved_retention(SHORT);
        let engine = engine.build().unwrap();
        acquire(&engine, &request("k")).await.fail("?", Retry::Unresolved).await.unwrap();
        server.sql(ALL_DUE);
        let purged = store.purge(10).await.unwrap();
        assert_eq!((purged.removed, purged.unsettled), (1, 1));
    });
}

#[test]
fn l5_a_purge_takes_more_than_one_step_and_skips_locked_rows() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        server.sql(
            "INSERT INTO nevertwice SELECT 1000 + n, 1, 1, false, decode(lpad(to_hex(n), 64, '0'), 'hex'), 'x' \
             FROM generate_series(1, 3000) AS n",
        );
        let own = raw(&server).await;
        own.batch_execute("BEGIN; SELECT * FROM nevertwice WHERE stamp = 1100 FOR UPDATE").await.unwrap();
        assert_eq!(store.purge(2500).await.unwrap().removed, 2500);
        assert_eq!(store.purge(2500).await.unwrap().removed, 499);
        assert_eq!(rows(&server), 1);
        own.batch_execute("COMMIT").await.unwrap();
        assert_eq!(store.purge(2500).await.unwrap().removed, 1);
        assert!(mark(&server) >= 4000, "{}", mark(&server));
    });
}

#[test]
fn s5_one_purge_works_at_a_time_and_raises_the_mark_with_and_without_functions() {
    let server = Server::start(&["fsync=off"]);
    drop(block_on_tokio(connect(&server)));
    for sql in ["SELECT 1", NO_FUNCTIONS] {
        server.sql(sql);
        block_on_tokio(async {
            let store = connect(&server).await;
            let over = request(sql).lease(SHORT).retention(SHORT);
            let engine = Engine::builder(store.clone()).build().unwrap();
            let lease = acquire(&engine, &over).await;
            let fence = lease.fence();
            lease.complete("over").await.unwrap();
            server.sql(ALL_DUE);
            let other = raw(&server).await;
            other
                .batch_execute("SELECT pg_advisory_lock(1853187702, 'nevertwice'::regclass::oid::integer)")
                .await
                .unwrap();
            assert_eq!(store.purge(10).await.unwrap().removed, 0);
            assert_eq!(rows(&server), 1);
            other.batch_execute("SELECT pg_advisory_unlock_all()").await.unwrap();
            // The mark may be ahead already, and stays there.
            let ahead = fence.0 + 3_600_000_000;
            server.sql(&format!("SELECT setval('nevertwice_mark', {ahead})"));
            let purges = [store.clone(), connect(&server).await, connect(&server).await]
                .map(|store| tokio::spawn(async move { store.purge(10).await.unwrap().removed }));
            let mut removed = 0;
            for purge in purges {
                removed += purge.await.unwrap();
            }
            assert_eq!((removed, rows(&server), mark(&server)), (1, 0, ahead));
            server.sql("SELECT setval('nevertwice_mark', 0)");
            acquire(&engine, &over).await.complete("over").await.unwrap();
            server.sql(ALL_DUE);
            assert_eq!(store.purge(10).await.unwrap().removed, 1);
            assert!(mark(&server) > fence.0);
        });
    }
}

#[test]
fn s10_a_damaged_row_stops_neither_purges_nor_batches_nor_scans() {
    let server = Server::start(&["fsync=off"]);
    drop(block_on_tokio(connect(&server)));
    server.sql(UNCHECKED);
    for (round, sql) in ["SELECT 1", NO_FUNCTIONS].into_iter().enumerate() {
        server.sql(sql);
        block_on_tokio(async {
            let store = connect(&server).await;
            let engine = Engine::builder(store.clone()).build().unwrap();
            let key = |name: &str| request(&format!("{name} {round}"));
            for (name, record) in [("damaged", "x"), ("damaged and removed", "")] {
                let id = hex::encode(key(name).id().as_bytes());
                server.sql(&format!(
                    "INSERT INTO nevertwice VALUES (9223372036854775807, 9223372036854775807, 1, false, '\\x{id}', \
                     '{record}')"
                ));
            }
            server.sql("INSERT INTO nevertwice VALUES (1, 9223372036854775807, 1, true, 'short', 'x') ON CONFLICT DO NOTHING");
            let over = key("over").lease(SHORT).retention(SHORT);
            acquire(&engine, &over).await.complete("over").await.unwrap();
            server.sql(ALL_DUE);
            assert_eq!(store.purge(10).await.unwrap().removed, 1);
            assert!(mark(&server) < 1 << 60, "{}", mark(&server));
            // Sent together.
            let begins = ["a", "damaged", "b", "damaged and removed", "c"].map(|name| {
                let (engine, request) = (engine.clone(), key(name));
                tokio::spawn(async move { (name, engine.begin(&request).await.map(|_| ())) })
            });
            for begin in begins {
                let (name, begun) = begin.await.unwrap();
                let is_corrupt =
                    matches!(&begun, Err(nevertwice::Error::Store(nevertwice::StoreError::Corrupt { .. })));
                assert_eq!(is_corrupt, name.starts_with("damaged"), "{name}: {begun:?}");
                assert_eq!(begun.is_ok(), !is_corrupt, "{name}: {begun:?}");
            }
            let page = store.scan(None, 100).await.unwrap();
            assert!(page.unreadable.contains(&key("damaged").id()), "{page:?}");
            store.unsettled(None, 100).await.unwrap();
        });
    }
}

#[test]
fn s13_finishes_leave_the_index_of_deadlines_alone() {
    let server = Server::start(&["fsync=off", "track_counts=on"]);
    block_on_tokio(async {
        let engine = engine(&server).await;
        for number in 0..100 {
            let lease = acquire(&engine, &request(&format!("{number}"))).await;
            lease.mark_effect().await.unwrap();
            lease.complete("done").await.unwrap();
        }
    });
    let due = "SELECT count(*) FROM nevertwice WHERE due = (stamp + keep) / 67108864 + 1 OR \
         due = (stamp + keep) / 67108864 + 2";
    assert_eq!(server.sql(due), "100");
    // Counted when the sessions end.
    let hot = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'nevertwice'";
    for _ in 0..200 {
        if server.sql(hot).starts_with("200|") {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let hot: Vec<u32> = server.sql(hot).split('|').map(|count| count.parse().unwrap()).collect();
    assert_eq!(hot[0], 200);
    assert!(hot[1] > 150, "{hot:?}");
}

/// S5, S13: The server's clock goes back by a day, over a restart. Fences rise over a takeover, a
/// release, an operator's order and a purge.
#[test]
fn s5_fences_increase_although_the_clock_is_set_back() {
    let library = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let library = library.map(|arch| arch.path().join("faketime").join(LIBRARY)).find(|path| path.exists());
    let library = library.expect("this test needs the package faketime").to_str().unwrap().to_owned();
    let at = |time: &'static str| [("LD_PRELOAD", library.clone()), ("FAKETIME", time.to_owned())];
    let mut server = Server::start_with(&["fsync=off"], &borrowed(&at("+1d")));
    let keys = ["kept", "taken", "released", "forgotten", "discarded", "purged", "purged and released"];
    let mut fences = Vec::new();
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store.clone()).build().unwrap();
        for key in keys {
            let request = request(key);
            let short = request.clone().lease(SHORT).retention(SHORT);
            let lease = acquire(&engine, if key == "purged" { &short } else { &request }).await;
            fences.push(lease.fence());
            match key {
                "released" | "purged and released" => lease.release().await.unwrap(),
                "forgotten" => assert!(engine.forget("scope", key).await.unwrap()),
                "discarded" => assert!(store.discard(&request.id()).await.unwrap()),
                _ => {}
            }
        }
        server.sql("UPDATE nevertwice SET due = 1 WHERE keep <= 2");
        let purged = store.purge(100).await.unwrap();
        assert_eq!(
            purged.removed,
            1,
            "{purged:?}, {}",
            server.sql("SELECT stamp, keep, due, record FROM nevertwice")
        );
        assert_eq!(rows(&server), 2, "what is kept, and what was taken");
    });
    server.stop();
    server.restart_with(&["fsync=off"], &borrowed(&at("+0")));
    block_on_tokio(async {
        let engine = engine(&server).await;
        for (key, last) in keys.into_iter().zip(fences) {
            let id = request(key).id();
            match engine.begin(&request(key)).await.unwrap() {
                Begin::Acquired(lease) => {
                    assert!(lease.fence() > last, "{key}: {:?} after {last:?}", lease.fence())
                }
                Begin::InProgress(_) => {
                    assert!(["kept", "taken"].contains(&key), "{key}");
                    engine.forget("scope", key).await.unwrap();
                    assert!(acquire(&engine, &request(key)).await.fence() > last, "{key}");
                }
                other => panic!("{key}: {other:?}"),
            }
            let found = connect(&server).await.load(&id).await.unwrap();
            assert!(found.now >= found.record.unwrap().stamp);
        }
    });
}

fn borrowed<'a>(variables: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
    variables.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

#[test]
fn s10_damaged_rows_are_errors_until_an_operator_discards_them() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store.clone()).build().unwrap();
        assert!(
            server.try_sql("INSERT INTO nevertwice VALUES (1::bigint << 62, 0, 1, false, '', '')").is_err()
        );
        server.sql(UNCHECKED);
        for damage in [
            "record = 'x'",
            "record = set_byte(record, 30, get_byte(record, 30) # 1)",
            "stamp = -1",
            "stamp = 9223372036854775807",
        ] {
            drop(acquire(&engine, &request("k")).await);
            server.sql(&format!("UPDATE nevertwice SET {damage}"));
            let id = request("k").id();
            match engine.begin(&request("k")).await {
                Err(nevertwice::Error::Store(nevertwice::StoreError::Corrupt { .. })) => {
                    let page = store.scan(None, 10).await.unwrap();
                    assert_eq!(
                        (page.records.len(), page.unreadable.as_slice()),
                        (0, [id].as_slice()),
                        "{damage}"
                    );
                }
                other => panic!("{damage}: {other:?}"),
            }
            assert!(store.discard(&id).await.unwrap());
            assert!(!store.discard(&id).await.unwrap());
        }
    });
}

#[test]
fn s5_a_stamp_never_falls_below_the_mark() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let ahead = store.load(&request("k").id()).await.unwrap().now.0 + 3_600_000_000;
        server.sql(&format!("SELECT setval('nevertwice_mark', {ahead})"));
        let engine = Engine::builder(store).build().unwrap();
        assert!(acquire(&engine, &request("k")).await.fence() > Stamp(ahead));
        let many = ["one", "two", "three"].map(request);
        for begin in engine.begin_many(&many).await {
            let Ok(Begin::Acquired(lease)) = begin else { panic!("{begin:?}") };
            assert!(lease.fence() > Stamp(ahead));
            lease.complete("done").await.unwrap();
        }
        server.sql("DROP FUNCTION nevertwice_swap_v1");
        let store = PostgresStore::connect(&server.url()).await.unwrap();
        let engine = Engine::builder(store).build().unwrap();
        assert!(acquire(&engine, &request("other")).await.fence() > Stamp(ahead));
    });
}
