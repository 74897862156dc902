//! The outbox in a PostgreSQL database.

use std::str::FromStr;
use std::time::Duration;

use nevertwice::outbox::{DeliveryError, EventId, Outbox, Relay};
use nevertwice::postgres::tokio_postgres::{self, Client, NoTls};
use nevertwice::{Error, ManualClock, PostgresOutbox, StoreError};

use crate::server::Server;
use crate::suite::{Db, Ledger, UNIT, soon, suite, until};

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) struct Database {
    server: Server,
    clock: ManualClock,
    outbox: PostgresOutbox,
}

impl Database {
    async fn open(&self) -> Result<PostgresOutbox, StoreError> {
        PostgresOutbox::builder(&self.server.url()).clock(self.clock.clone()).connect().await
    }

    async fn raw(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.server.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    fn rows(&self) -> i64 {
        self.server.sql("SELECT count(*) FROM nevertwice_outbox").parse().unwrap()
    }
}

impl Db for Database {
    type Outbox = PostgresOutbox;

    async fn start() -> Database {
        let (server, clock) = (Server::start(&["fsync=off"]), ManualClock::new());
        let outbox = PostgresOutbox::builder(&server.url()).clock(clock.clone()).connect().await.unwrap();
        Database { server, clock, outbox }
    }

    async fn outbox(&self) -> PostgresOutbox {
        self.open().await.unwrap()
    }

    fn clock(&self) -> &ManualClock {
        &self.clock
    }

    async fn push_or(&self, commit: bool, topic: &str, key: &str, payload: &[u8]) -> Result<EventId, Error> {
        let mut client = self.raw().await;
        let mut tx = client.transaction().await.unwrap();
        let id = self.outbox.push_in(&mut tx, topic, key, payload).await?;
        if commit {
            tx.commit().await.unwrap();
        }
        Ok(id)
    }

    async fn push_all(&self, events: &[(String, String)]) {
        let mut client = self.raw().await;
        let mut tx = client.transaction().await.unwrap();
        for (key, payload) in events {
            self.outbox.push_in(&mut tx, "orders", key, payload).await.unwrap();
        }
        tx.commit().await.unwrap();
    }

    async fn pass(&self, time: Duration) {
        let sql = format!(
            "UPDATE nevertwice_outbox SET pushed = pushed - {0}, since = since - {0}, due = due - {0}",
            time.as_micros()
        );
        self.server.sql(&sql);
    }
}

suite!(Database);

#[tokio::test]
async fn a_late_commit_is_not_skipped() {
    let db = Database::start().await;
    let mut early = db.raw().await;
    let mut open = early.transaction().await.unwrap();
    db.outbox.push_in(&mut open, "orders", "a", "early").await.unwrap();
    db.push("orders", "b", "late").await;
    let (relay, ledger) = (db.relay().await, Ledger::default());
    soon(relay.drain(ledger.deliver())).await.unwrap();
    assert_eq!(ledger.take(), ["b:late"]);
    // Its number is the lower one.
    open.commit().await.unwrap();
    soon(relay.drain(ledger.deliver())).await.unwrap();
    assert_eq!(ledger.take(), ["a:early"]);
}

#[tokio::test]
async fn events_of_a_key_are_numbered_in_the_order_of_their_commits() {
    let db = Database::start().await;
    let (mut first, mut second) = (db.raw().await, db.raw().await);
    let mut open = first.transaction().await.unwrap();
    db.outbox.push_in(&mut open, "orders", "a", "1").await.unwrap();
    let mut waiting = second.transaction().await.unwrap();
    let waits = async {
        db.outbox.push_in(&mut waiting, "orders", "a", "3").await.unwrap();
        waiting.commit().await.unwrap();
    };
    let holds = async {
        let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        until(|| db.server.sql(locks) == "1").await;
        // Another key does not wait.
        db.push("orders", "b", "2").await;
        db.outbox.push_in(&mut open, "orders", "a", "2").await.unwrap();
        open.commit().await.unwrap();
    };
    soon(async { tokio::join!(waits, holds) }).await;
    let ledger = Ledger::default();
    soon(db.relay().await.drain(ledger.deliver())).await.unwrap();
    let delivered = ledger.take();
    let of_a: Vec<_> = delivered.iter().filter(|one| one.starts_with('a')).collect();
    assert_eq!(of_a, ["a:1", "a:2", "a:3"]);
}

#[tokio::test]
async fn pushes_work_at_every_isolation_level_and_a_deadlock_says_repeat() {
    let db = Database::start().await;
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let mut client = db.raw().await;
        client.batch_execute(&format!("SET default_transaction_isolation = '{level}'")).await.unwrap();
        let mut tx = client.transaction().await.unwrap();
        tx.query("SELECT 1", &[]).await.unwrap(); // takes its snapshot
        db.push("orders", "a", level).await;
        db.outbox.push_in(&mut tx, "orders", "a", level).await.unwrap();
        tx.commit().await.unwrap();
    }
    assert_eq!(db.rows(), 4);

    let (mut one, mut other) = (db.raw().await, db.raw().await);
    let (mut one, mut other) = (one.transaction().await.unwrap(), other.transaction().await.unwrap());
    db.outbox.push_in(&mut one, "orders", "x", "1").await.unwrap();
    db.outbox.push_in(&mut other, "orders", "y", "1").await.unwrap();
    let crossed = async {
        tokio::join!(
            db.outbox.push_in(&mut one, "orders", "y", "2"),
            db.outbox.push_in(&mut other, "orders", "x", "2")
        )
    };
    let (first, second) = soon(crossed).await;
    let victims = [first, second].into_iter().filter(|result| match result {
        Ok(_) => false,
        Err(Error::RepeatTransaction { code: "40P01" }) => true,
        Err(other) => panic!("{other:?}"),
    });
    assert_eq!(victims.count(), 1);
}

#[tokio::test]
async fn a_notification_wakes_an_idle_relay_of_another_process() {
    let db = Database::start().await;
    let relay = Relay::new(PostgresOutbox::connect(&db.server.url()).await.unwrap()).poll(HOUR);
    let ledger = Ledger::default();
    let push = async {
        db.push("orders", "a", "1").await;
        db.outbox.wake().await.unwrap();
        until(|| ledger.len() == 1).await;
        // Or by the transaction itself.
        let notifies =
            PostgresOutbox::builder(&db.server.url()).notify_on_push(true).connect().await.unwrap();
        let mut client = db.raw().await;
        let mut tx = client.transaction().await.unwrap();
        notifies.push_in(&mut tx, "orders", "a", "2").await.unwrap();
        tx.commit().await.unwrap();
        until(|| ledger.len() == 2).await;
    };
    tokio::select! {
        ended = relay.run(ledger.deliver()) => panic!("{ended:?}"),
        () = push => {}
    }
}

#[tokio::test]
async fn a_relay_survives_a_kill_of_the_server_and_lost_connections() {
    let mut db = Database::start().await;
    let outbox = PostgresOutbox::connect(&db.server.url()).await.unwrap();
    let relay = Relay::new(outbox).poll(Duration::from_millis(50));
    let ledger = Ledger::default();
    let running = tokio::spawn({
        let (relay, ledger) = (relay.clone(), ledger.clone());
        async move { relay.run(ledger.deliver()).await }
    });
    db.push("orders", "a", "1").await;
    until(|| ledger.len() == 1).await;
    let others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
                  AND backend_type = 'client backend'";
    db.server.sql(others);
    db.push("orders", "a", "2").await;
    until(|| ledger.len() >= 2).await;
    db.server.kill();
    db.server.restart();
    db.push("orders", "a", "3").await;
    until(|| ledger.take().contains(&"a:3".to_owned())).await;
    assert!(!running.is_finished());
    running.abort();
}

#[tokio::test]
async fn two_creators_make_one_outbox_and_the_rest_is_refused_with_what_to_do() {
    let server = Server::start(&["fsync=off"]);
    let url = server.url();
    let opened: Vec<_> = (0..8).map(|_| PostgresOutbox::connect(&url)).collect();
    for outbox in soon(futures_util::future::join_all(opened)).await {
        outbox.unwrap();
    }
    let says = |result: Result<PostgresOutbox, StoreError>| match result {
        Err(error) => error.to_string(),
        Ok(outbox) => panic!("{outbox:?}"),
    };
    server.sql("CREATE TABLE other (x integer); CREATE TABLE half_meta (x integer)");
    for (table, word) in [("other", "not an outbox's"), ("half", "not both there"), ("a b", "1 to 40")] {
        let refused = says(PostgresOutbox::builder(&url).table("public", table).connect().await);
        assert!(refused.contains(word) || refused.contains("not both there"), "{refused}");
    }
    let refused = says(PostgresOutbox::builder(&url).table("public", "new").create(false).connect().await);
    assert!(refused.contains("outbox_schema"), "{refused}");
    assert!(says(PostgresOutbox::connect("not a url").await).contains("cannot be read"));
    let refused = says(PostgresOutbox::connect("postgres://x@127.0.0.1:1/x").await);
    assert!(refused.contains("unavailable"), "{refused}");
    // A role without rights.
    server.sql("CREATE ROLE poor LOGIN; REVOKE ALL ON SCHEMA public FROM public");
    let poor = server.url_as("poor", "x", "postgres");
    let refused = says(PostgresOutbox::builder(&poor).table("public", "third").connect().await);
    assert!(refused.contains("right"), "{refused}");
    // The application's own migration.
    server.sql(&nevertwice::postgres::outbox_schema("public", "migrated").unwrap());
    PostgresOutbox::builder(&url).table("public", "migrated").create(false).connect().await.unwrap();
    server.sql("UPDATE nevertwice_outbox_meta SET version = 2");
    assert!(says(PostgresOutbox::connect(&url).await).contains("version 2"));
}

#[tokio::test]
async fn a_table_that_is_dropped_under_a_relay_ends_it_with_the_reason() {
    let db = Database::start().await;
    let relay = Relay::new(PostgresOutbox::connect(&db.server.url()).await.unwrap());
    let drop = async {
        db.server.sql("DROP TABLE nevertwice_outbox");
        std::future::pending::<()>().await;
    };
    let ended = soon(async {
        tokio::select! {
            ended = relay.run(Ledger::default().deliver()) => ended,
            () = drop => unreachable!(),
        }
    });
    assert!(matches!(ended.await, Err(StoreError::Unusable { .. })));
}

#[tokio::test]
async fn a_savepoint_that_is_rolled_back_takes_its_event_along() {
    let db = Database::start().await;
    let mut client = db.raw().await;
    let mut tx = client.transaction().await.unwrap();
    db.outbox.push_in(&mut tx, "orders", "a", "kept").await.unwrap();
    let mut savepoint = tx.savepoint("s").await.unwrap();
    db.outbox.push_in(&mut savepoint, "orders", "a", "undone").await.unwrap();
    savepoint.rollback().await.unwrap();
    tx.commit().await.unwrap();
    let ledger = Ledger::default();
    soon(db.relay().await.drain(ledger.deliver())).await.unwrap();
    assert_eq!(ledger.take(), ["a:kept"]);
}

#[tokio::test]
async fn s13_a_server_whose_clock_is_far_behind_leaves_no_event_waiting() {
    let db = Database::start().await;
    db.push("orders", "a", "1").await;
    let (relay, ledger) = (db.relay().await, Ledger::default());
    soon(relay.drain(ledger.deliver_but("1", DeliveryError::retry("down")))).await.unwrap();
    let ahead = UNIT.as_micros() * 1000;
    db.server.sql(&format!("UPDATE nevertwice_outbox SET since = since + {ahead}, due = due + {ahead}"));
    assert_eq!(soon(relay.drain(ledger.deliver())).await.unwrap().delivered, 1);
}

#[tokio::test]
async fn a_server_that_answers_nothing_is_given_no_more_than_three_sessions() {
    let db = Database::start().await;
    let limit = Duration::from_millis(300);
    let outbox = PostgresOutbox::builder(&db.server.url()).answer_timeout(limit).connect().await.unwrap();
    let mut client = db.raw().await;
    let lock = client.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE nevertwice_outbox, nevertwice_outbox_meta").await.unwrap();
    for _ in 0..6 {
        soon(outbox.stats()).await.unwrap_err();
    }
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    assert_eq!(db.server.sql(waiting), "3");
    lock.rollback().await.unwrap();
    soon(async { while outbox.stats().await.is_err() {} }).await;
}

#[tokio::test]
async fn a_session_that_turned_read_only_is_replaced() {
    let db = Database::start().await;
    let read_only = |on| db.server.sql(&format!("ALTER ROLE ALL SET default_transaction_read_only = {on}"));
    read_only("on");
    let outbox = PostgresOutbox::connect(&db.server.url()).await.unwrap();
    let refused = outbox.discard(EventId::from_str(&"0".repeat(32)).unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("25006"), "{refused}");
    db.server.sql("BEGIN READ WRITE; ALTER ROLE ALL RESET default_transaction_read_only; COMMIT");
    assert!(!outbox.discard(EventId::from_str(&"0".repeat(32)).unwrap()).await.unwrap());
}
