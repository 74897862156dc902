//! Relays that are killed at random: the consumer's ledger is exact.

use std::future::Future;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nevertwice::outbox::{DeliveryError, Event, Outbox, Relay};

use crate::children::Deadline;

/// The place of the database; a test that finds it set is the killed process.
const PLACE: &str = "NEVERTWICE_TEST_OUTBOX";
const KILLS: u64 = 12;
const EVENTS: usize = 300;
const KEYS: usize = 7;

/// A relay in a process of its own.
struct Killed(Child, #[allow(dead_code)] Deadline);

impl Killed {
    fn start(test: &str, place: &str) -> Killed {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(PLACE, place)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let deadline = Deadline::of(&child);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("delivers") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "the child ended early");
        }
        Killed(child, deadline)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill(); // SIGKILL
        let _ = self.0.wait();
    }
}

async fn relay<O, F, R>(outbox: O, consume: F)
where
    O: Outbox,
    F: Fn(Event) -> R + Send + Sync,
    R: Future<Output = Result<(), DeliveryError>> + Send,
{
    println!("delivers");
    // A claim of a process that was killed comes back after 300 ms.
    let relay = Relay::new(outbox).timeout(Duration::from_millis(200)).max_attempts(1000);
    relay
        .back_off(Duration::from_millis(10), Duration::from_millis(10))
        .concurrency(4)
        .run(consume)
        .await
        .unwrap();
}

/// Kills relays at random while two run, and waits until the ledger is full.
fn storm(test: &str, place: &str, ledger: impl Fn() -> Vec<String>) {
    let mut relays = [Killed::start(test, place), Killed::start(test, place)];
    for round in 0..KILLS {
        std::thread::sleep(Duration::from_millis(20 + round * 53 % 180));
        let victim = usize::from(round % 2 == 0);
        relays[victim] = Killed::start(test, place); // the old one is killed
    }
    let start = std::time::Instant::now();
    while ledger().len() < EVENTS {
        assert!(start.elapsed() < Duration::from_secs(240), "{} of {EVENTS}", ledger().len());
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(relays);
    let ledger = ledger();
    let expected: Vec<String> = (0..EVENTS).map(|number| format!("{number:04}")).collect();
    let mut sorted = ledger.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
    for key in 0..KEYS {
        let of = ledger.iter().filter(|number| number.parse::<usize>().unwrap() % KEYS == key);
        assert!(of.is_sorted(), "{ledger:?}");
    }
}

fn key(number: usize) -> String {
    format!("k{}", number % KEYS)
}

#[cfg(feature = "sqlite")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_on_sqlite_killed_at_random_leave_an_exact_ledger() {
    use nevertwice::{Begin, Engine, SqliteOutbox, SqliteStore, sqlite};
    use rusqlite::{Connection, TransactionBehavior};

    fn open(place: &str) -> Connection {
        let db = Connection::open(place).unwrap();
        db.busy_timeout(Duration::from_secs(60)).unwrap();
        db
    }
    if let Ok(place) = std::env::var(PLACE) {
        let store = SqliteStore::builder(&place).busy_timeout(Duration::from_secs(30)).open().unwrap();
        let policy = Engine::builder(store.clone()).build().unwrap().policy().clone();
        let consume = |event: Event| {
            // Record and effect of the consumer are one transaction.
            let consume = || {
                let mut db = open(&place);
                let tx = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
                match sqlite::begin_in(&tx, &store, &policy, &event.request("ledger")?)? {
                    Begin::Acquired(lease) => {
                        tx.execute("INSERT INTO ledger VALUES (?1)", [&event.payload()[..]])?;
                        sqlite::complete_in(&tx, &lease, "")?;
                        tx.commit()?;
                        Ok(())
                    }
                    Begin::Completed(_) => Ok(()),
                    other => Err(DeliveryError::retry(format!("{other:?}"))),
                }
            };
            std::future::ready(consume())
        };
        relay(SqliteOutbox::open(&place).unwrap(), consume).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut db = open(path.to_str().unwrap());
    db.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE ledger (number BLOB)").unwrap();
    let outbox = SqliteOutbox::open(&path).unwrap();
    let tx = db.transaction().unwrap();
    for number in 0..EVENTS {
        outbox.push_in(&tx, "numbers", &key(number), format!("{number:04}")).unwrap();
    }
    tx.commit().unwrap();
    let ledger = || {
        let mut rows = db.prepare("SELECT CAST(number AS TEXT) FROM ledger ORDER BY rowid").unwrap();
        rows.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let test = "crashes::relays_on_sqlite_killed_at_random_leave_an_exact_ledger";
    storm(test, path.to_str().unwrap(), ledger);
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_on_postgres_killed_at_random_leave_an_exact_ledger() {
    use nevertwice::postgres::tokio_postgres::{self, NoTls};
    use nevertwice::{Begin, Engine, PostgresOutbox, PostgresStore, postgres};

    use crate::server::Server;

    async fn open(url: &str) -> tokio_postgres::Client {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }
    if let Ok(url) = std::env::var(PLACE) {
        let store = PostgresStore::connect(&url).await.unwrap();
        let policy = Engine::builder(store.clone()).build().unwrap().policy().clone();
        let consume = |event: Event| {
            let (url, store, policy) = (url.clone(), store.clone(), policy.clone());
            async move {
                let mut client = open(&url).await;
                let mut tx = client.transaction().await?;
                match postgres::begin_in(&mut tx, &store, &policy, &event.request("ledger")?).await? {
                    Begin::Acquired(lease) => {
                        tx.execute("INSERT INTO ledger (number) VALUES ($1)", &[&&event.payload()[..]])
                            .await?;
                        postgres::complete_in(&mut tx, &lease, "").await?;
                        tx.commit().await?;
                        Ok(())
                    }
                    Begin::Completed(_) => Ok(()),
                    other => Err(DeliveryError::retry(format!("{other:?}"))),
                }
            }
        };
        relay(PostgresOutbox::connect(&url).await.unwrap(), consume).await;
    }
    let server = Server::start(&["fsync=off"]);
    server.sql("CREATE TABLE ledger (at bigserial, number bytea)");
    let outbox = PostgresOutbox::connect(&server.url()).await.unwrap();
    let mut client = open(&server.url()).await;
    let mut tx = client.transaction().await.unwrap();
    for number in 0..EVENTS {
        outbox.push_in(&mut tx, "numbers", &key(number), format!("{number:04}")).await.unwrap();
    }
    tx.commit().await.unwrap();
    let ledger = || {
        let rows = server.sql("SELECT convert_from(number, 'UTF8') FROM ledger ORDER BY at");
        rows.lines().map(str::to_owned).collect()
    };
    let test = "crashes::relays_on_postgres_killed_at_random_leave_an_exact_ledger";
    tokio::task::block_in_place(|| storm(test, &server.url(), ledger));
}
