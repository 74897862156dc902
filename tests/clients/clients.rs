//! Record, effect and event in transactions of sqlx, tokio-postgres and deadpool, on one database.
#![allow(clippy::wildcard_enum_match_arm)] // whatever else it is, the test fails
#![allow(clippy::disallowed_methods, reason = "waits have deadlines")]

#[path = "../support/postgres.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod server;

use std::time::Duration;

use nevertwice::outbox::{DeliveryError, Relay};
use nevertwice::postgres::tokio_postgres::{self, NoTls};
use nevertwice::postgres::{self, OwnTransaction, TxLease};
use nevertwice::{Begin, Engine, Error, Policy, PostgresOutbox, PostgresStore, Request, Retry};
use sqlx::{Connection, Executor, PgConnection};

use server::Server;

const PATIENCE: Duration = Duration::from_secs(120);

struct App {
    server: Server,
    store: PostgresStore,
    engine: Engine,
    policy: Policy,
}

impl App {
    async fn start() -> App {
        let server = Server::start(&["fsync=off"]);
        server.sql("CREATE TABLE payments (amount integer)");
        let store = PostgresStore::connect(&server.url()).await.unwrap();
        let engine = Engine::builder(store.clone()).call_timeout(Duration::from_secs(60)).build().unwrap();
        let policy = engine.policy().clone();
        App { server, store, engine, policy }
    }

    async fn sqlx(&self) -> PgConnection {
        PgConnection::connect(&self.server.url()).await.unwrap()
    }

    async fn begin<T: OwnTransaction>(&self, tx: &mut T, key: &str) -> Result<Begin<TxLease>, Error> {
        postgres::begin_in(tx, &self.store, &self.policy, &request(key)).await
    }

    async fn acquire<T: OwnTransaction>(&self, tx: &mut T, key: &str) -> TxLease {
        match self.begin(tx, key).await.unwrap() {
            Begin::Acquired(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    async fn until_waiting(&self) {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        tokio::time::timeout(PATIENCE, async {
            while self.server.sql(waiting) == "0" {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
    }

    fn payments(&self) -> String {
        self.server.sql("SELECT count(*) FROM payments")
    }
}

fn request(key: &str) -> Request {
    Request::new("payments", key).unwrap()
}

fn completed<L: std::fmt::Debug>(begin: Begin<L>) -> Vec<u8> {
    match begin {
        Begin::Completed(done) => done.response().unwrap().to_vec(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_sqlx_commits_effect_record_and_event_or_nothing() {
    let app = App::start().await;
    let outbox = PostgresOutbox::beside(&app.store).connect().await.unwrap();
    let mut connection = app.sqlx().await;
    for commit in [false, true] {
        let mut tx = connection.begin().await.unwrap();
        let lease = app.acquire(&mut tx, "k").await;
        tx.execute("INSERT INTO payments VALUES (1)").await.unwrap();
        outbox.push_in(&mut tx, "payments", "a", "paid").await.unwrap();
        // The connection inside the transaction will do as well.
        postgres::complete_in(&mut *tx, &lease, "paid").await.unwrap();
        if commit {
            tx.commit().await.unwrap()
        } else {
            tx.rollback().await.unwrap()
        }
        assert_eq!(app.payments(), if commit { "1" } else { "0" });
    }
    let mut tx = connection.begin().await.unwrap();
    assert_eq!(completed(app.begin(&mut tx, "k").await.unwrap()), b"paid");
    // A savepoint of sqlx's own.
    let mut savepoint = tx.begin().await.unwrap();
    let undone = app.acquire(&mut savepoint, "undone").await;
    savepoint.rollback().await.unwrap();
    assert!(matches!(postgres::complete_in(&mut tx, &undone, "x").await, Err(Error::LeaseLost { .. })));
    let failing = app.acquire(&mut tx, "failing").await;
    postgres::fail_in(&mut tx, &failing, "declined", Retry::Never).await.unwrap();
    tx.commit().await.unwrap();
    assert!(matches!(app.engine.begin(&request("failing")).await.unwrap(), Begin::Failed(_)));

    let Begin::Acquired(outside) = app.engine.begin(&request("outside")).await.unwrap() else { panic!() };
    let mut tx = connection.begin().await.unwrap();
    let token = outside.token();
    let lease = postgres::resume_in(&mut tx, &app.store, &app.policy, &token).await.unwrap();
    postgres::complete_in(&mut tx, &lease, "done").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(completed(app.engine.begin(&request("outside")).await.unwrap()), b"done");

    let relay = Relay::new(outbox);
    let drained = relay.drain(|_| std::future::ready(Ok::<(), DeliveryError>(()))).await.unwrap();
    assert_eq!(drained.delivered, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_of_tokio_postgres_waits_for_sqlx_and_repeats_under_a_stricter_level() {
    let app = App::start().await;
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let mut connection = app.sqlx().await;
        let mut first = connection.begin().await.unwrap();
        let lease = app.acquire(&mut first, level).await;
        let (mut client, driver) = tokio_postgres::connect(&app.server.url(), NoTls).await.unwrap();
        tokio::spawn(driver);
        client.batch_execute(&format!("SET default_transaction_isolation = '{level}'")).await.unwrap();
        let mut second = client.transaction().await.unwrap();
        let finish = async {
            app.until_waiting().await;
            postgres::complete_in(&mut first, &lease, "paid").await.unwrap();
            first.commit().await.unwrap();
        };
        let (begin, ()) = tokio::join!(app.begin(&mut second, level), finish);
        match begin {
            Ok(begin) if level == "READ COMMITTED" => assert_eq!(completed(begin), b"paid"),
            Err(Error::RepeatTransaction { code: "40001" }) if level != "READ COMMITTED" => {}
            other => panic!("{level}: {other:?}"),
        }
    }
    // And the other way round: sqlx is told the same.
    let (mut client, driver) = tokio_postgres::connect(&app.server.url(), NoTls).await.unwrap();
    tokio::spawn(driver);
    let mut first = client.transaction().await.unwrap();
    let lease = app.acquire(&mut first, "k").await;
    let mut connection = app.sqlx().await;
    connection.execute("SET default_transaction_isolation = 'serializable'").await.unwrap();
    let mut second = connection.begin().await.unwrap();
    let duplicate = request("k");
    let busy = postgres::begin_in_within(&mut second, &app.store, &app.policy, &duplicate, Duration::ZERO);
    assert!(matches!(busy.await.unwrap(), Begin::InProgress(_)));
    second.execute("INSERT INTO payments VALUES (1)").await.unwrap(); // it goes on
    let finish = async {
        app.until_waiting().await;
        postgres::complete_in(&mut first, &lease, "paid").await.unwrap();
        first.commit().await.unwrap();
    };
    let (begin, ()) = tokio::join!(app.begin(&mut second, "k"), finish);
    assert!(matches!(begin, Err(Error::RepeatTransaction { code: "40001" })), "{begin:?}");
    // After it the transaction is refused, so that nothing is recorded.
    match app.begin(&mut second, "other").await {
        Err(Error::Store(error)) => assert!(error.to_string().contains("25P02"), "{error}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_deadpool_is_passed_by_what_it_derefs_to() {
    let app = App::start().await;
    let config: tokio_postgres::Config = app.server.url().parse().unwrap();
    let manager = deadpool_postgres::Manager::new(config, NoTls);
    let pool = deadpool_postgres::Pool::builder(manager).max_size(2).build().unwrap();
    let mut client = pool.get().await.unwrap();
    let mut tx = client.transaction().await.unwrap();
    let lease = app.acquire(&mut *tx, "k").await;
    tx.execute("INSERT INTO payments VALUES (1)", &[]).await.unwrap();
    postgres::complete_in(&mut *tx, &lease, "paid").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(completed(app.engine.begin(&request("k")).await.unwrap()), b"paid");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_sqlx_and_tokio_postgres_race_for_the_same_keys_and_each_is_paid_once() {
    const KEYS: usize = 30;
    let app = App::start().await;
    let with_sqlx = async || {
        let mut connection = app.sqlx().await;
        for key in 0..KEYS {
            let mut tx = connection.begin().await.unwrap();
            if let Begin::Acquired(lease) = app.begin(&mut tx, &key.to_string()).await.unwrap() {
                tx.execute("INSERT INTO payments VALUES (1)").await.unwrap();
                postgres::complete_in(&mut tx, &lease, "paid").await.unwrap();
            }
            tx.commit().await.unwrap();
        }
    };
    let with_tokio = async || {
        let (mut client, driver) = tokio_postgres::connect(&app.server.url(), NoTls).await.unwrap();
        tokio::spawn(driver);
        for key in 0..KEYS {
            let mut tx = client.transaction().await.unwrap();
            if let Begin::Acquired(lease) = app.begin(&mut tx, &key.to_string()).await.unwrap() {
                tx.execute("INSERT INTO payments VALUES (1)", &[]).await.unwrap();
                postgres::complete_in(&mut tx, &lease, "paid").await.unwrap();
            }
            tx.commit().await.unwrap();
        }
    };
    let race = async { tokio::join!(with_sqlx(), with_tokio(), with_sqlx(), with_tokio()) };
    tokio::time::timeout(PATIENCE, race).await.unwrap();
    assert_eq!(app.payments(), KEYS.to_string());
}
