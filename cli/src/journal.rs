//! The account of changes: one JSON line on stderr for each, [`Journal`].

use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use nevertwice::{Clock, SystemClock};
use serde::Serialize;
use serde_json::{Value, json};

use crate::output::{plain, plain_json};

/// Writes what every changing command did: who, what, and the state before and after.
#[derive(Debug)]
pub(crate) struct Journal {
    who: String,
    command: &'static str,
}

impl Journal {
    /// The journal of a command.
    pub(crate) fn new(command: &'static str) -> Journal {
        let names = ["NEVERTWICE_OPERATOR", "SUDO_USER", "USER", "LOGNAME", "USERNAME"];
        let mut names =
            names.iter().filter_map(|name| std::env::var(name).ok().filter(|name| !name.is_empty()));
        let user = names.next().unwrap_or_else(|| "unknown".to_owned());
        let host = gethostname::gethostname().to_string_lossy().into_owned();
        Journal { who: plain(&format!("{user}@{host}")), command }
    }

    /// Writes one line: a change of `what`, with its state before and after.
    pub(crate) fn write(&self, what: &str, before: &impl Serialize, after: &impl Serialize) {
        let line = json!({
            "at": now(),
            "who": self.who,
            "command": self.command,
            "what": what,
            "before": before,
            "after": after,
        });
        // A change that was made stays one if this cannot be written.
        let _ = writeln!(std::io::stderr().lock(), "{}", plain_json(&line.to_string()));
    }

    /// Writes one line about a change that may have been made: its answer is lost.
    pub(crate) fn unknown(&self, what: &str, before: &impl Serialize) {
        self.write(what, before, &"unknown");
    }

    /// Writes one line about an operation that no record is left of.
    pub(crate) fn removed(&self, what: &str, before: &impl Serialize) {
        self.write(what, before, &Value::Null);
    }
}

fn now() -> String {
    let seconds = Duration::from_secs(SystemClock.wall().as_secs());
    humantime::format_rfc3339_seconds(UNIX_EPOCH + seconds).to_string()
}
