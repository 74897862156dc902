//! A server that is killed between the effect and the answer.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::postgres_server;
use crate::support::*;

/// A process, killed when dropped.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(store: &str, dir: &Path, effects: &str, hangs: bool) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nevertwice-verify-http"));
        command.arg(store).arg(dir.join("ledger")).arg(effects).stdout(Stdio::piped());
        if hangs {
            command.arg("hang");
        }
        let mut child = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let port: u16 = port.trim().parse().expect("the server prints its port");
        Process { child, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    async fn ask(&self, key: &str) -> Answer {
        parse(&exchange(self.address, &post(key).bytes(), usize::MAX).await)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn charges(dir: &Path) -> usize {
    std::fs::read_to_string(dir.join("ledger")).unwrap_or_default().lines().count()
}

async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(found) = probe().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// Killed between effect and answer, restarted, and asked again: never two charges, and the
/// operation is left to an operator.
async fn kill_between_effect_and_answer(dir: &Path, store: &str, effects: &str) {
    let start = |hangs| Process::start(store, dir, effects, hangs);
    let process = start(true);
    let address = process.address;
    let lost = tokio::spawn(async move { exchange(address, &post("k").bytes(), usize::MAX).await });
    until("the effect", async || (charges(dir) == 1).then_some(())).await;
    drop(process); // kill -9
    assert_eq!(lost.await.unwrap(), b"");
    let process = start(false);
    let first = process.ask("k").await;
    assert_eq!(first.status, 409, "{effects}");
    let settled = until("the end of the lease", async || {
        let answer = process.ask("k").await;
        (answer.problem() != "in-progress").then_some(answer)
    });
    assert_eq!(settled.await.problem(), "unresolved", "{effects}");
    assert_eq!(charges(dir), 1, "{effects}");
    // Another key is not affected, and a completed one survives another kill.
    assert_eq!(process.ask("other").await.text(), "charged");
    drop(process);
    let process = start(false);
    let again = process.ask("other").await;
    assert_eq!((again.text(), again.is_replayed()), ("charged".to_owned(), true));
    assert_eq!(charges(dir), 2, "{effects}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_a_server_killed_between_effect_and_answer_charges_once() {
    for effects in ["marked", "assumed"] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("http.db");
        kill_between_effect_and_answer(dir.path(), file.to_str().unwrap(), effects).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_a_server_on_postgres_killed_between_effect_and_answer_charges_once() {
    for effects in ["marked", "assumed"] {
        let (dir, database) = (tempfile::tempdir().unwrap(), postgres_server::Server::start(&[]));
        kill_between_effect_and_answer(dir.path(), &database.url(), effects).await;
    }
}
