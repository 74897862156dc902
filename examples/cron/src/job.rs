//! The work of a slot, which blocks its thread, and the order of its steps.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::ValueEnum;
use futures_executor::block_on;
use nevertwice::{Failure, Lease, Recovery, Retry};
use serde::{Deserialize, Serialize};

use crate::slots::Slot;

/// A step at which the process can be made to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Step {
    /// The slot is begun
    Begun,
    /// Its effect is marked
    Mark,
    /// Its report is sent
    Effect,
}

/// The reason why a slot has no outcome. There certainly was no report, unless it says otherwise.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stopped(pub(crate) String, Retry);

impl Failure for Stopped {
    fn retry(&self) -> Retry {
        self.1
    }
}

/// The job. A report is *sent*, as a mail is: the receiver takes it twice. Or it is *published*
/// under the operation's derived key: publishing it again replaces it.
#[derive(Clone)]
pub(crate) struct Job {
    ledger: Arc<File>,
    publish: Option<PathBuf>,
    hang_at: Option<Step>,
}

impl Job {
    pub(crate) fn open(
        ledger: &Path,
        publish: Option<PathBuf>,
        hang_at: Option<Step>,
    ) -> Result<Job, String> {
        let file = OpenOptions::new().create(true).append(true).open(ledger);
        let file = file.map_err(|error| format!("cannot open {}: {error}", ledger.display()))?;
        if let Some(folder) = &publish {
            fs::create_dir_all(folder)
                .map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        }
        Ok(Job { ledger: Arc::new(file), publish, hang_at })
    }

    /// The treatment of a slot whose process was killed. One that publishes may run again, marked
    /// or not. One that sends is run again only if the mark is missing, and otherwise left to an
    /// operator: no program can tell whether the mail went out.
    pub(crate) fn recovery(&self) -> Recovery {
        if self.publish.is_some() { Recovery::Rerun } else { Recovery::RerunUnlessEffect }
    }

    /// Runs in a thread of its own, while `run_blocking` renews the lease.
    pub(crate) fn run(&self, slot: Slot, lease: &Lease) -> Result<u64, Stopped> {
        self.reach(Step::Begun, slot);
        let sum = sum(slot);
        // A thread cannot be stopped, so it looks up now and then. This machine may have been
        // suspended for so long that another one took over.
        if lease.is_lost() {
            return Err(Stopped("the lease was lost".to_owned(), Retry::Now));
        }
        // Right before the effect, and it fails if another process took over in the meantime.
        block_on(lease.mark_effect()).map_err(|error| Stopped(error.to_string(), Retry::Now))?;
        self.reach(Step::Mark, slot);
        match &self.publish {
            None => self.send(slot, sum, lease.attempt()),
            Some(folder) => publish(folder, &lease.derive_key("report"), slot, sum),
        }
        // The report may be out or not, which a failed write does not say.
        .map_err(|error| Stopped(format!("the report: {error}"), Retry::Unresolved))?;
        self.reach(Step::Effect, slot);
        Ok(sum)
    }

    /// Sends a report: a line `slot, sum, attempt, process`, in one write, on the disk when this
    /// returns.
    fn send(&self, slot: Slot, sum: u64, attempt: u32) -> std::io::Result<()> {
        let line = format!("{slot}\t{sum}\t{attempt}\t{}\n", std::process::id());
        (&*self.ledger).write_all(line.as_bytes())?;
        self.ledger.sync_data()
    }

    /// Stops here if the process was started so, until it is killed.
    fn reach(&self, step: Step, slot: Slot) {
        if self.hang_at == Some(step) {
            println!("{slot}: hangs at {step:?}");
            loop {
                std::thread::park();
            }
        }
    }
}

/// Writes the report under its derived key, complete or not at all.
fn publish(folder: &Path, key: &str, slot: Slot, sum: u64) -> std::io::Result<()> {
    let draft = folder.join(format!("{key}.{}", std::process::id()));
    let mut file = File::create(&draft)?;
    file.write_all(format!("{{\"slot\":\"{slot}\",\"sum\":{sum}}}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(draft, folder.join(format!("{key}.json")))
}

/// An hour's computation, made short: it depends on the slot only.
fn sum(slot: Slot) -> u64 {
    slot.to_string().bytes().cycle().take(100_000).map(u64::from).sum()
}
