//! Clients that are killed in the middle of a transaction.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use super::children::Deadline;
use super::*;

/// The server of a child; the test that finds it set is the child.
const URL: &str = "NEVERTWICE_TEST_POSTGRES";

/// A process of this test that pays keys until it is killed.
struct Payer(Child, BufReader<ChildStdout>, #[allow(dead_code)] Deadline);

impl Payer {
    fn start(url: &str, test: &str) -> Payer {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(URL, url)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let deadline = Deadline::of(&child);
        Payer(child, output, deadline)
    }

    fn wait_for(&mut self, word: &str) {
        loop {
            let mut line = String::new();
            assert!(self.1.read_line(&mut line).unwrap() > 0, "the child ended early");
            if line.contains(word) {
                return;
            }
        }
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Payer {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

#[tokio::test]
async fn a_client_killed_inside_its_transaction_leaves_nothing_and_frees_the_key() {
    if let Ok(url) = std::env::var(URL) {
        let store = PostgresStore::connect(&url).await.unwrap();
        let policy = Engine::builder(store.clone()).build().unwrap().policy().clone();
        let mut client = connect(&url).await;
        let mut tx = client.transaction().await.unwrap();
        let begin = postgres::begin_in(&mut tx, &store, &policy, &request("k")).await.unwrap();
        let Begin::Acquired(lease) = begin else { panic!() };
        pay(&tx).await;
        postgres::complete_in(&mut tx, &lease, "never").await.unwrap();
        println!("completed, not committed");
        std::future::pending::<()>().await;
    }
    let app = App::start().await;
    let test = "crashes::a_client_killed_inside_its_transaction_leaves_nothing_and_frees_the_key";
    let mut payer = Payer::start(&app.server.url(), test);
    payer.wait_for("completed, not committed");
    let mut client = app.client().await;
    let mut tx = client.transaction().await.unwrap();
    let kill = async {
        app.until_waiting(1).await;
        payer.kill();
    };
    let (begin, ()) = tokio::join!(app.begin(&mut tx, "k"), kill);
    let Begin::Acquired(lease) = begin.unwrap() else { panic!() };
    assert_eq!(lease.attempt(), 1);
    pay(&tx).await;
    postgres::complete_in(&mut tx, &lease, "paid").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!((app.count("payments"), app.replay("k").await), (1, b"paid".to_vec()));
}

#[tokio::test]
async fn clients_killed_at_random_pay_each_key_once() {
    const KEYS: usize = 400;
    if let Ok(url) = std::env::var(URL) {
        let store = PostgresStore::connect(&url).await.unwrap();
        let policy = Engine::builder(store.clone()).build().unwrap().policy().clone();
        let mut client = connect(&url).await;
        println!("pays");
        for key in 0..KEYS {
            let mut tx = client.transaction().await.unwrap();
            let request = request(&key.to_string());
            match postgres::begin_in(&mut tx, &store, &policy, &request).await.unwrap() {
                Begin::Acquired(lease) => {
                    pay(&tx).await;
                    postgres::complete_in(&mut tx, &lease, key.to_string()).await.unwrap();
                    tx.commit().await.unwrap();
                }
                Begin::Completed(_) => {}
                other => panic!("{other:?}"),
            }
        }
        println!("paid all");
        return;
    }
    let app = App::start().await;
    let test = "crashes::clients_killed_at_random_pay_each_key_once";
    let url = app.server.url();
    for round in 0..12_u64 {
        let mut payer = Payer::start(&url, test);
        payer.wait_for("pays");
        tokio::time::sleep(Duration::from_millis(round * 37 % 150)).await;
        payer.kill();
    }
    let mut last = Payer::start(&url, test);
    last.wait_for("paid all");
    assert_eq!(app.count("payments"), KEYS as i64);
    assert_eq!(app.count("nevertwice"), KEYS as i64);
}
