//! Two versions of the tables: side by side, and below a running store.

use std::time::Duration;

use nevertwice::postgres::{SCHEMA, SCHEMA_VERSION};
use nevertwice::store::Store;
use nevertwice::{Engine, Error, PostgresStore, StoreError};

use crate::keeping::NO_FUNCTIONS;
use crate::races::raw;
use crate::server::program;
use crate::{Server, acquire, block_on_tokio, connect, engine, request, response, unusable};

const END_SESSIONS: &str =
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nevertwice'";

/// Returns everything that a server holds, as SQL.
fn dump(server: &Server) -> String {
    let port = server.port().to_string();
    let output = std::process::Command::new(program("pg_dump"))
        .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port, "postgres"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // Each dump names a random word in lines such as `\restrict word`.
    text.lines().filter(|line| !line.contains("restrict ")).collect::<Vec<_>>().join("\n")
}

/// Returns the statements of a migration to the version after this release's.
fn to_newer(change: &str) -> String {
    format!("BEGIN; {change}; UPDATE nevertwice_meta SET version = {}; COMMIT", SCHEMA_VERSION + 1)
}

/// The functions of this release under the names of a later one.
fn later_functions() -> String {
    let (_, functions) = SCHEMA.split_once("-- Functions.").unwrap();
    functions.split_once('\n').unwrap().1.replace("_v1\"", "_v9\"")
}

/// Requires an error that names the version and says what to do, and not to use other tables, which
/// would execute everything again.
fn names_the_version(refused: &str) {
    assert!(refused.contains(&format!("version {}", SCHEMA_VERSION + 1)), "{refused}");
    assert!(refused.contains("use the release that wrote them"), "{refused}");
    assert!(!refused.contains("another table"), "{refused}");
}

#[test]
fn s14_tables_of_a_newer_version_are_refused_as_such_whatever_they_look_like() {
    let server = Server::start(&["fsync=off"]);
    for change in [
        "SELECT 1",
        "ALTER TABLE nevertwice ADD COLUMN tenant text NOT NULL DEFAULT ''",
        "ALTER TABLE nevertwice RENAME COLUMN record TO body",
        "ALTER TABLE nevertwice_meta ADD COLUMN migrated timestamptz DEFAULT now()",
        "DROP SEQUENCE nevertwice_mark",
        "ALTER TABLE nevertwice RENAME TO nevertwice_records",
        NO_FUNCTIONS,
    ] {
        block_on_tokio(async {
            acquire(&engine(&server).await, &request("k")).await.complete("done").await.unwrap();
            server.sql(&to_newer(change));
            let before = dump(&server);
            for creates in [true, false] {
                let store = PostgresStore::builder(&server.url()).create_tables(creates).connect().await;
                names_the_version(&unusable(store));
            }
            assert_eq!(dump(&server), before, "{change}");
        });
        server.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
    }
}

#[test]
fn a_later_release_that_adds_functions_and_columns_serves_this_one() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let running = engine(&server).await;
        let lease = acquire(&running, &request("k")).await;
        lease.mark_effect().await.unwrap();
        server.sql(&format!(
            "BEGIN; {} ALTER TABLE nevertwice ADD COLUMN noted text, ADD COLUMN written timestamptz NOT NULL DEFAULT now(); \
             CREATE INDEX ON nevertwice (written); ALTER TABLE nevertwice_meta ADD COLUMN level integer DEFAULT 2; COMMIT",
            later_functions()
        ));
        // The later release writes the record that this one holds.
        let client = raw(&server).await;
        let rewritten = "SELECT s.done, s.at FROM nevertwice AS t, nevertwice_swap_one_v9(t.id, t.stamp, t.keep, t.evidence, t.record, NULL) AS s";
        let row = client.query_one(rewritten, &[]).await.unwrap();
        let at: i64 = row.get(1);
        assert!(row.get::<_, bool>(0) && at.unsigned_abs() > lease.fence().0);
        lease.complete("done").await.unwrap();
        server.sql(END_SESSIONS);
        let store = connect(&server).await;
        assert_eq!(store.warnings(), []);
        let new = Engine::builder(store.clone()).build().unwrap();
        for engine in [&running, &new] {
            assert_eq!(response(engine, &request("k")).await, b"done");
        }
        let other = acquire(&running, &request("other")).await;
        assert!(other.fence().0 > at.unsigned_abs());
        other.release().await.unwrap();
        server.sql("UPDATE nevertwice SET due = 1");
        client.query_one("SELECT * FROM nevertwice_purge_v9(1)", &[]).await.unwrap();
        store.purge(10).await.unwrap();
        assert!(acquire(&new, &request("other")).await.fence() > other.fence());
    });
}

/// A column that this release cannot fill is not taken for an addition.
#[test]
fn a_table_with_a_column_that_every_insert_has_to_fill_is_refused() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        drop(connect(&server).await);
        server.sql("ALTER TABLE nevertwice ADD COLUMN tenant text NOT NULL");
        assert!(unusable(PostgresStore::connect(&server.url()).await).contains("not those of a store"));
    });
}

/// Requires that a call was refused for the version.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>) {
    let Err(Error::Store(StoreError::Unusable { detail, .. })) = result else { panic!("{result:?}") };
    names_the_version(&detail);
}

#[test]
fn s14_a_migration_below_a_running_store_stops_it_at_its_next_connection() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let rechecking = PostgresStore::builder(&server.url()).recheck_every(Duration::ZERO);
        let stores = [rechecking.connect().await.unwrap(), connect(&server).await];
        for (number, store) in stores.into_iter().enumerate() {
            let engine = Engine::builder(store).build().unwrap();
            let [held, new] = ["held", "new"].map(|key| request(&format!("{key} {number}")));
            let lease = acquire(&engine, &held).await;
            server.sql(&to_newer("ALTER TABLE nevertwice RENAME COLUMN record TO body"));
            let before = dump(&server);
            if number == 1 {
                server.sql(END_SESSIONS);
            }
            refused(engine.begin(&new).await.map(|_| ()));
            refused(engine.begin(&held).await.map(|_| ()));
            refused(lease.complete("done").await);
            assert_eq!(dump(&server), before);
            // The migration is taken back: the same store goes on, and nothing is lost.
            server.sql(&format!(
                "ALTER TABLE nevertwice RENAME COLUMN body TO record; UPDATE nevertwice_meta SET version = {SCHEMA_VERSION}"
            ));
            lease.complete("done").await.unwrap();
            assert_eq!(response(&engine, &held).await, b"done");
            drop(acquire(&engine, &new).await);
        }
    });
}

/// A migration that changes what a running store uses, although its sessions go on: all sessions
/// are inspected again, and no call fails that the tables still allow.
#[test]
fn functions_and_columns_that_go_below_a_running_store_are_noticed_at_once() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store).build().unwrap();
        let lease = acquire(&engine, &request("k")).await;
        // Opens more connections.
        let inspected = (0..64).map(|_| engine.inspect("scope", "k"));
        futures_util::future::join_all(inspected).await.into_iter().for_each(|found| drop(found.unwrap()));
        server.sql(NO_FUNCTIONS);
        drop(acquire(&engine, &request("new")).await);
        server.sql(&to_newer("ALTER TABLE nevertwice RENAME COLUMN record TO body"));
        let before = dump(&server);
        refused(engine.begin(&request("newer")).await.map(|_| ()));
        refused(lease.complete("done").await);
        assert_eq!(dump(&server), before);
    });
}
