//! Commands that the user gives: to count, to kill and to start.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// The most that is read of a command's output.
const MAX_OUTPUT: u64 = 64 << 10;

/// Runs a command by the shell, and returns what it prints. It and its children are ended when time
/// is up.
pub(super) async fn output(command: &str, patience: Duration) -> Result<String, String> {
    let mut child = Group(shell(command, Stdio::piped()).map_err(|error| error.to_string())?);
    let stdout = child.0.stdout.take();
    let run = async {
        let mut text = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(MAX_OUTPUT).read_to_end(&mut text).await.map_err(|error| error.to_string())?;
        }
        let status = child.0.wait().await.map_err(|error| error.to_string())?;
        if !status.success() {
            return Err(format!("it ended with {status}"));
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    timeout(patience, run)
        .await
        .unwrap_or_else(|_| Err(format!("it did not end within {} s", patience.as_secs())))
}

/// Starts a command and lets it run.
pub(super) fn start(command: &str) -> Result<(), String> {
    shell(command, Stdio::null()).map(drop).map_err(|error| error.to_string())
}

fn shell(command: &str, stdout: Stdio) -> std::io::Result<Child> {
    let mut shell = Command::new("sh");
    // A group of its own: it can be ended whole, and Ctrl-C at the audit does not end the service.
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::null());
    #[cfg(unix)]
    shell.process_group(0);
    shell.spawn()
}

/// A process with its children. Ended when dropped, unless it has ended.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(id) = self.0.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            // It may have ended meanwhile.
            let _ = rustix::process::kill_process_group(id, rustix::process::Signal::KILL);
        }
        #[cfg(not(unix))]
        let _ = self.0.start_kill();
    }
}
