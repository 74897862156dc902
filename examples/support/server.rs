//! An example as a process, for the tests of the examples.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Time within which a process or a request must answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A server on a free port, with files of its own. Killed when dropped.
pub(crate) struct Server {
    program: &'static str,
    child: Child,
    url: String,
    dir: TempDir,
}

fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.kill_on_drop(true);
    command
}

impl Server {
    /// Starts the program, which must print its address.
    pub(crate) async fn start(program: &'static str, arguments: &[&str]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let (child, url) = launch(program, &dir, arguments).await;
        Server { program, child, url, dir }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Its folder.
    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Ends it at once, as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        self.child.start_kill().unwrap();
    }

    /// Asks it to end, and returns its status.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        let id = self.child.id().expect("it runs").to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
        timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap()
    }

    /// Starts it again on the same files.
    pub(crate) async fn restart(&mut self, arguments: &[&str]) {
        timeout(PATIENCE, self.child.wait()).await.expect("it has ended").unwrap();
        (self.child, self.url) = launch(self.program, &self.dir, arguments).await;
    }
}

async fn launch(program: &str, dir: &TempDir, arguments: &[&str]) -> (Child, String) {
    let mut command = command(program);
    command.current_dir(dir.path()).args(arguments).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(PATIENCE, lines.next_line()).await.expect("it starts").unwrap();
    let line = line.expect("it prints its address, and does not end");
    (child, line.strip_prefix("listening on ").expect("its address").to_owned())
}

/// Runs it to its end.
pub(crate) async fn output(program: &str, arguments: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let mut command = command(program);
    command.current_dir(dir.path()).args(arguments);
    timeout(PATIENCE, command.output()).await.expect("it ends").unwrap()
}
