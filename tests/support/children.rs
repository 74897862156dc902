//! Child processes that cannot hang a test.

#![allow(dead_code)] // each test needs a part of it

use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

/// Time limit of a child, generous even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(300);

/// Kills a child that is still running after its time limit, so that the test that waits for it
/// continues. Dropped with the child.
pub(crate) struct Deadline {
    _over: Sender<()>,
}

impl Deadline {
    pub(crate) fn of(child: &Child) -> Deadline {
        let pid = child.id();
        let (over, waiting) = channel();
        thread::spawn(move || {
            if waiting.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
            }
        });
        Deadline { _over: over }
    }
}

/// Runs a child until it ends or is killed after its time limit, and returns its output.
pub(crate) fn output(command: &mut Command) -> Output {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    end(child.unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

/// Returns the output of a child that was started before.
pub(crate) fn end(child: Child) -> Output {
    let deadline = Deadline::of(&child);
    let output = child.wait_with_output().unwrap();
    drop(deadline);
    output
}
