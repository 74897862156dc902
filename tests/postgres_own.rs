//! Record and effect in one transaction of PostgreSQL, with a private server for each test.
#![cfg(feature = "postgres")]
#![allow(clippy::wildcard_enum_match_arm)] // whatever else it is, the test fails
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "children report, and waits have deadlines"
)]

#[path = "support/children.rs"]
mod children;
#[path = "postgres_own/crashes.rs"]
mod crashes;
#[path = "postgres_own/isolation.rs"]
mod isolation;
#[path = "support/postgres.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod server;

use std::future::Future;
use std::time::Duration;

use nevertwice::postgres::tokio_postgres::{self, Client, NoTls, Transaction};
use nevertwice::postgres::{self, TxLease};
use nevertwice::{
    Begin, Engine, Error, Fingerprint, Policy, PostgresStore, Request, Retry, StateKind, StoreError,
};

use server::Server;

/// Time limit of every wait.
const PATIENCE: Duration = Duration::from_secs(120);
const SECOND: Duration = Duration::from_secs(1);
/// The number of sessions that wait for another transaction.
const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";

/// An application's own database that holds the store's tables.
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
        let engine = Engine::builder(store.clone()).call_timeout(SECOND * 60).build().unwrap();
        let policy = engine.policy().clone();
        App { server, store, engine, policy }
    }

    async fn client(&self) -> Client {
        connect(&self.server.url()).await
    }

    fn count(&self, table: &str) -> i64 {
        self.server.sql(&format!("SELECT count(*) FROM {table}")).parse().unwrap()
    }

    async fn begin(&self, tx: &mut Transaction<'_>, key: &str) -> Result<Begin<TxLease>, Error> {
        soon(postgres::begin_in(tx, &self.store, &self.policy, &request(key))).await
    }

    async fn acquire(&self, tx: &mut Transaction<'_>, key: &str) -> TxLease {
        match self.begin(tx, key).await.unwrap() {
            Begin::Acquired(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    /// Begins a key that others have, waiting for nothing.
    async fn try_begin(&self, tx: &mut Transaction<'_>, key: &str) -> Result<Begin<TxLease>, Error> {
        let request = request(key);
        soon(postgres::begin_in_within(tx, &self.store, &self.policy, &request, Duration::ZERO)).await
    }

    /// Waits until so many sessions wait for another transaction.
    async fn until_waiting(&self, sessions: usize) {
        soon(async {
            while self.server.sql(WAITING) != sessions.to_string() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    async fn replay(&self, key: &str) -> Vec<u8> {
        completed(soon(self.engine.begin(&request(key))).await.unwrap())
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Fails the test instead of hanging.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it ends in time")
}

fn request(key: &str) -> Request {
    Request::new("payments", key).unwrap()
}

async fn pay(tx: &Transaction<'_>) {
    tx.execute("INSERT INTO payments VALUES (4200)", &[]).await.unwrap();
}

fn completed<L: std::fmt::Debug>(begin: Begin<L>) -> Vec<u8> {
    match begin {
        Begin::Completed(done) => done.response().unwrap().to_vec(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_rollback_leaves_nothing_and_a_commit_both() {
    let app = App::start().await;
    let mut client = app.client().await;
    let mut tx = client.transaction().await.unwrap();
    let lease = app.acquire(&mut tx, "k").await;
    pay(&tx).await;
    postgres::complete_in(&mut tx, &lease, "paid").await.unwrap();
    let rolled_back = lease.fence();
    tx.rollback().await.unwrap();
    assert_eq!((app.count("payments"), app.count("nevertwice")), (0, 0));

    let mut tx = client.transaction().await.unwrap();
    // The grant that was rolled back is gone.
    let gone = postgres::complete_in(&mut tx, &lease, "paid").await;
    assert!(matches!(gone, Err(Error::LeaseLost { current }) if current.state == StateKind::Absent));
    let lease = app.acquire(&mut tx, "k").await;
    assert!(lease.fence() > rolled_back);
    assert_eq!((lease.attempt(), lease.takeover(), lease.checkpoint()), (1, false, None));
    pay(&tx).await;
    postgres::complete_in(&mut tx, &lease, "paid").await.unwrap();
    postgres::complete_in(&mut tx, &lease, "paid").await.unwrap(); // repeating the word is fine
    let other = postgres::complete_in(&mut tx, &lease, "else").await;
    assert!(matches!(other, Err(Error::AlreadyFinished { .. })));
    tx.commit().await.unwrap();
    assert_eq!((app.count("payments"), app.count("nevertwice")), (1, 1));

    let mut tx = client.transaction().await.unwrap();
    assert_eq!(completed(app.begin(&mut tx, "k").await.unwrap()), b"paid");
    let other = request("k").fingerprint(Fingerprint::of("other"));
    let mismatch = postgres::begin_in(&mut tx, &app.store, &app.policy, &other).await.unwrap();
    assert!(matches!(mismatch, Begin::Mismatch(_)));
    drop(tx);
    assert_eq!(app.replay("k").await, b"paid");
}

#[tokio::test]
async fn leases_of_the_engine_count_inside_and_the_other_way_round() {
    let app = App::start().await;
    let mut client = app.client().await;
    let Begin::Acquired(outside) = app.engine.begin(&request("outside")).await.unwrap() else { panic!() };
    outside.save_checkpoint("half").await.unwrap();
    let mut tx = client.transaction().await.unwrap();
    assert!(matches!(app.begin(&mut tx, "outside").await.unwrap(), Begin::InProgress(_)));
    let inside = app.acquire(&mut tx, "inside").await;
    tx.commit().await.unwrap();
    assert!(matches!(app.engine.begin(&request("inside")).await.unwrap(), Begin::InProgress(_)));

    // A lease that the engine granted is finished together with the effect.
    let mut tx = client.transaction().await.unwrap();
    let token = outside.token();
    let resumed = postgres::resume_in(&mut tx, &app.store, &app.policy, &token).await.unwrap();
    assert_eq!(resumed.fence(), outside.fence());
    assert_eq!(resumed.derive_key("psp"), outside.derive_key("psp"));
    assert_eq!(resumed.checkpoint().unwrap(), "half");
    pay(&tx).await;
    postgres::complete_in(&mut tx, &resumed, "paid").await.unwrap();
    postgres::fail_in(&mut tx, &inside, "declined", Retry::Never).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(app.replay("outside").await, b"paid");
    match app.engine.begin(&request("inside")).await.unwrap() {
        Begin::Failed(failed) => assert_eq!(failed.error().unwrap(), "declined"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(outside.complete("else").await, Err(Error::AlreadyFinished { .. })));

    // Failed for now: the next begin in a transaction is the second attempt.
    let mut tx = client.transaction().await.unwrap();
    let lease = app.acquire(&mut tx, "again").await;
    postgres::fail_in(&mut tx, &lease, "later", Retry::Now).await.unwrap();
    tx.commit().await.unwrap();
    let mut tx = client.transaction().await.unwrap();
    assert_eq!(app.acquire(&mut tx, "again").await.attempt(), 2);
}

#[tokio::test]
async fn a_duplicate_waits_for_the_open_transaction_and_gets_its_outcome() {
    let app = App::start().await;
    let (mut one, mut other) = (app.client().await, app.client().await);
    let mut first = one.transaction().await.unwrap();
    let lease = app.acquire(&mut first, "k").await;
    let mut second = other.transaction().await.unwrap();
    let finish = async {
        app.until_waiting(1).await;
        pay(&first).await;
        postgres::complete_in(&mut first, &lease, "paid").await.unwrap();
        first.commit().await.unwrap();
    };
    let (begin, ()) = tokio::join!(app.begin(&mut second, "k"), finish);
    assert_eq!(completed(begin.unwrap()), b"paid");
    // Nothing of its wait is left behind.
    assert_eq!(second.query_one("SHOW lock_timeout", &[]).await.unwrap().get::<_, String>(0), "0");
    pay(&second).await;
    second.commit().await.unwrap();
    assert_eq!(app.count("payments"), 2);
}

#[tokio::test]
async fn a_rollback_of_the_first_grants_the_duplicate_that_waits() {
    let app = App::start().await;
    let (mut one, mut other) = (app.client().await, app.client().await);
    let mut first = one.transaction().await.unwrap();
    let lease = app.acquire(&mut first, "k").await;
    let mut second = other.transaction().await.unwrap();
    let undo = async {
        app.until_waiting(1).await;
        first.rollback().await.unwrap();
    };
    let (begin, ()) = tokio::join!(app.begin(&mut second, "k"), undo);
    let Begin::Acquired(granted) = begin.unwrap() else { panic!() };
    assert!(granted.fence() > lease.fence() && granted.attempt() == 1);
    postgres::complete_in(&mut second, &granted, "second").await.unwrap();
    second.commit().await.unwrap();
    assert_eq!(app.replay("k").await, b"second");
}

#[tokio::test]
async fn a_duplicate_that_does_not_wait_is_told_and_its_transaction_goes_on() {
    let app = App::start().await;
    let (mut one, mut other) = (app.client().await, app.client().await);
    let mut first = one.transaction().await.unwrap();
    let lease = app.acquire(&mut first, "k").await;
    let mut second = other.transaction().await.unwrap();
    second.batch_execute("SET LOCAL lock_timeout = '7s'").await.unwrap();
    pay(&second).await;
    for _ in 0..3 {
        match app.try_begin(&mut second, "k").await.unwrap() {
            Begin::InProgress(busy) => assert!(busy.retry_after() >= SECOND),
            other => panic!("{other:?}"),
        }
    }
    // The setting of the application's is as it was, here and after a grant.
    let show = async |tx: &Transaction<'_>| {
        tx.query_one("SHOW lock_timeout", &[]).await.unwrap().get::<_, String>(0)
    };
    assert_eq!(show(&second).await, "7s");
    let _free = app.acquire(&mut second, "free").await;
    assert_eq!(show(&second).await, "7s");
    second.commit().await.unwrap();
    assert_eq!(app.count("payments"), 1);
    postgres::complete_in(&mut first, &lease, "paid").await.unwrap();
    first.commit().await.unwrap();
    let mut third = other.transaction().await.unwrap();
    assert_eq!(completed(app.try_begin(&mut third, "k").await.unwrap()), b"paid");
    // A finished key costs no row lock and no transaction number.
    let row = third.query_one("SELECT pg_current_xact_id_if_assigned() IS NULL", &[]).await.unwrap();
    assert!(row.get::<_, bool>(0));
}

#[tokio::test]
async fn a_savepoint_that_is_rolled_back_takes_grant_and_outcome_along() {
    let app = App::start().await;
    let mut client = app.client().await;
    let mut tx = client.transaction().await.unwrap();
    let mut savepoint = tx.savepoint("s").await.unwrap();
    let undone = app.acquire(&mut savepoint, "k").await;
    pay(&savepoint).await;
    postgres::complete_in(&mut savepoint, &undone, "undone").await.unwrap();
    savepoint.rollback().await.unwrap();
    let gone = postgres::complete_in(&mut tx, &undone, "undone").await;
    assert!(matches!(gone, Err(Error::LeaseLost { .. })), "{gone:?}");

    let lease = app.acquire(&mut tx, "k").await;
    let mut savepoint = tx.savepoint("s").await.unwrap();
    postgres::complete_in(&mut savepoint, &lease, "undone").await.unwrap();
    savepoint.rollback().await.unwrap();
    // The grant is older than the savepoint, and still good.
    let mut savepoint = tx.savepoint("s").await.unwrap();
    postgres::complete_in(&mut savepoint, &lease, "kept").await.unwrap();
    savepoint.commit().await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((app.replay("k").await, app.count("payments")), (b"kept".to_vec(), 0));
}

#[tokio::test]
async fn another_database_and_a_failed_transaction_are_refused() {
    let app = App::start().await;
    app.server.sql("CREATE DATABASE elsewhere");
    let url = app.server.url().replace("/postgres?", "/elsewhere?");
    let unusable = |result: Result<Begin<TxLease>, Error>| {
        assert!(matches!(result, Err(Error::Store(StoreError::Unusable { .. }))), "{result:?}");
    };
    let mut client = connect(&url).await;
    let mut tx = client.transaction().await.unwrap();
    unusable(app.begin(&mut tx, "k").await); // has no tables
    drop(tx);
    let _other = PostgresStore::connect(&url).await.unwrap();
    let mut tx = client.transaction().await.unwrap();
    unusable(app.begin(&mut tx, "k").await); // has those of another store
    drop(tx);

    let mut client = app.client().await;
    let mut tx = client.transaction().await.unwrap();
    let lease = app.acquire(&mut tx, "k").await;
    assert!(tx.batch_execute("SELECT 1 / 0").await.is_err());
    for result in [
        app.begin(&mut tx, "k").await.map(|_| ()),
        postgres::complete_in(&mut tx, &lease, "x").await,
        postgres::fail_in(&mut tx, &lease, "x", Retry::Never).await,
    ] {
        match result {
            Err(Error::Store(error @ StoreError::Unavailable { .. })) => {
                assert!(error.to_string().contains("roll it back"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
    drop(tx);
    assert_eq!(app.count("nevertwice"), 0);
}

#[tokio::test]
async fn s1_a_storm_of_transactions_and_engine_calls_pays_each_key_once() {
    const KEYS: usize = 20;
    let app = App::start().await;
    let mut callers = Vec::new();
    for caller in 0..8 {
        let (url, store, engine, policy) =
            (app.server.url(), app.store.clone(), app.engine.clone(), app.policy.clone());
        callers.push(tokio::spawn(async move {
            let mut client = connect(&url).await;
            for step in 0..KEYS * 2 {
                let key = format!("k{}", (step * 7 + caller * 3) % KEYS);
                if caller < 2 {
                    // A call of the engine's gets no grant of a key that a transaction has.
                    match engine.begin(&request(&key)).await {
                        Ok(Begin::Acquired(lease)) => {
                            let mut tx = client.transaction().await.unwrap();
                            let token = lease.token();
                            let lease = postgres::resume_in(&mut tx, &store, &policy, &token).await.unwrap();
                            pay(&tx).await;
                            postgres::complete_in(&mut tx, &lease, "paid").await.unwrap();
                            tx.commit().await.unwrap();
                        }
                        Ok(Begin::Completed(_) | Begin::InProgress(_)) => {}
                        other => panic!("{other:?}"),
                    }
                    continue;
                }
                let mut tx = client.transaction().await.unwrap();
                match postgres::begin_in(&mut tx, &store, &policy, &request(&key)).await.unwrap() {
                    Begin::Acquired(lease) => {
                        pay(&tx).await;
                        postgres::complete_in(&mut tx, &lease, "paid").await.unwrap();
                        // Some crash.
                        if step % 3 == 0 { drop(tx) } else { tx.commit().await.unwrap() }
                    }
                    Begin::Completed(_) | Begin::InProgress(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }));
    }
    for caller in callers {
        soon(caller).await.unwrap();
    }
    let paid = app.server.sql("SELECT count(*) FROM nevertwice WHERE record <> ''");
    assert_eq!(app.count("payments").to_string(), paid);
    assert!(app.count("payments") > KEYS as i64 / 2, "{paid}");
}
