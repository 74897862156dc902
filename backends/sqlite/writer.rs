//! The writer thread. It takes everything queued, commits it in one transaction, and only then
//! answers.
//!
//! A commit costs one disk sync, whatever it holds, so many callers share one. No call waits for
//! others to join it: a single call is committed at once.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::file::{OpenFile, leave_log};
use super::jobs::{Job, Pending, Work};
use super::log::Log;
use super::mark::Stamps;
use super::oneshot;
use super::rows::Table;
use super::trouble::{Trouble, unavailable, unusable};
use super::waiters::{Waiters, Woken};
use super::{Limits, PURGE_STEP};
use crate::clock::Timeline;
use crate::error::StoreError;
use crate::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use crate::sync::thread::{self, JoinHandle};
use crate::wake::{contain, discard, guarded};

/// The maximum number of waiting calls. Further calls are refused.
const QUEUE: usize = 16 * 1024;
/// The approximate maximum of rows, and of record bytes, in a commit.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 16 << 20;
/// The approximate number of pages that a row costs, in the table and the indexes, besides those
/// its record fills.
const PAGES_PER_ROW: usize = 2;
const PAGE_BYTES: usize = 4096;

/// The sending end of the writer's queue. Dropping it ends the thread once everything queued is
/// done.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Option<SyncSender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

/// The state of the writer thread.
pub(super) struct Desk {
    pub(super) db: Connection,
    pub(super) table: Arc<Table>,
    pub(super) timeline: Arc<Timeline>,
    pub(super) limits: Limits,
    pub(super) waiters: Arc<Waiters>,
    pub(super) file: Arc<OpenFile>,
    pub(super) log: Log,
    /// The number of rows that the jobs of the present commit write.
    pub(super) rows: Cell<usize>,
}

impl Writer {
    pub(super) fn start(desk: Desk) -> Result<Writer, StoreError> {
        let (queue, jobs) = sync_channel(QUEUE);
        let thread = thread::Builder::new()
            .name("nevertwice-sqlite".to_owned())
            .spawn(move || desk.work(&jobs))
            .map_err(|error| unusable(format!("no thread to write on: {error}")))?;
        Ok(Writer { queue: Some(queue), thread: Some(thread) })
    }

    /// Runs `work` on the writer thread, and waits until it is committed.
    pub(super) async fn run<W: Work>(&self, work: W) -> Result<W::Output, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job = Box::new(Pending::new(work, answer));
        match self.queue.as_ref().map(|queue| queue.try_send(job)) {
            Some(Ok(())) => {}
            Some(Err(TrySendError::Full(_))) => {
                return Err(unavailable(format!("{QUEUE} writes are waiting")));
            }
            Some(Err(TrySendError::Disconnected(_))) | None => return Err(unusable("its writer has ended")),
        }
        // The answer wakes the caller on the writer's thread.
        guarded(answered).await.unwrap_or_else(|_| Err(unavailable("its writer ended before it answered")))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.queue.take());
        let Some(thread) = self.thread.take() else { return };
        // An answer may wake a task that drops the last handle right there, on the writer's own
        // thread.
        if thread.thread().id() != thread::current().id() {
            let _ = thread.join();
        }
    }
}

impl Desk {
    fn work(self, jobs: &Receiver<Box<dyn Job>>) {
        let (mut wrote, mut going_on) = (false, Vec::new());
        while let Some(mut batch) = next(jobs, going_on) {
            // Skips jobs whose caller has gone: to it the outcome is unknown anyway.
            discard(batch.extract_if(.., |job| job.is_abandoned()));
            going_on = Vec::new();
            if batch.is_empty() {
                continue;
            }
            let (rows, bytes) = size(&batch);
            self.rows.set(rows);
            let purges = batch.iter().filter(|job| job.rows() == 0).count();
            going_on = self.serve(batch);
            wrote = true;
            self.log.wrote(PAGES_PER_ROW * (rows + purges * self.purge_step()) + bytes / PAGE_BYTES);
            self.log.tend(&self.db, &self.file);
        }
        self.close(wrote);
    }

    /// Returns the number of rows that a purge may remove in the present commit: up to twice as
    /// many as the commit writes. Rows then disappear faster than they arrive, even if the purge
    /// misses a commit now and then, and no commit takes much longer.
    pub(super) fn purge_step(&self) -> usize {
        (2 * self.rows.get()).clamp(PURGE_STEP, BATCH.max(self.rows.get()))
    }

    /// Closes the file. This moves the log into it and removes the log, unless they no longer
    /// belong together.
    fn close(self, wrote: bool) {
        self.log.wait();
        if self.file.check().is_err() {
            return;
        }
        if wrote {
            let _ = self.leave_mark();
        }
        self.file.unlock();
        let _ = leave_log(&self.db, false);
    }

    /// Sets the mark to the time reached. If another writer is active, the mark is close enough as
    /// it is: this does not wait.
    fn leave_mark(&self) -> Result<(), Trouble> {
        self.db.busy_timeout(Duration::ZERO)?;
        self.execute("BEGIN IMMEDIATE")?;
        let mut stamps = Stamps::of(&self.db, &self.table, &self.timeline)?;
        stamps.raise(&self.db, &self.table, self.timeline.now())?;
        self.execute("COMMIT")
    }

    /// Runs `batch` and answers its callers. If the commit fails, every call gets the error: its
    /// writes may or may not be in effect. Returns the jobs that continue in the next batch.
    fn serve(&self, mut batch: Vec<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
        // The application's clock or a value of its may panic here; that must not end the thread.
        match contain(|| self.commit(&mut batch)).unwrap_or_else(|| Err(Trouble::panicked())) {
            Ok(()) => {
                let woken = self.woken(&batch);
                let (going_on, done): (Vec<_>, Vec<_>) = batch.into_iter().partition(|job| job.goes_on());
                for job in done {
                    contain(|| job.answer());
                }
                woken.wake();
                going_on
            }
            Err(trouble) => {
                if !self.db.is_autocommit() {
                    let _ = self.db.execute_batch("ROLLBACK");
                }
                // SQLite's error for a file that is gone says little.
                let trouble = self.file.check().err().unwrap_or(trouble);
                for job in batch {
                    contain(|| job.fail(trouble.clone()));
                }
                Vec::new()
            }
        }
    }

    /// Returns the waiters for records that the committed `batch` has changed.
    fn woken(&self, batch: &[Box<dyn Job>]) -> Woken {
        if !self.waiters.any() {
            return Woken::default();
        }
        let mut written = Vec::new();
        batch.iter().for_each(|job| job.written(&mut |id, stamp| written.push((id, stamp))));
        self.waiters.take_written(&written)
    }

    fn commit(&self, batch: &mut [Box<dyn Job>]) -> Result<(), Trouble> {
        self.file.glance()?;
        self.execute("BEGIN IMMEDIATE")?;
        let mut stamps = Stamps::of(&self.db, &self.table, &self.timeline)?;
        for job in batch {
            job.run(self, &mut stamps);
            if self.db.is_autocommit() {
                return Err(Trouble::rolled_back());
            }
        }
        // Nothing is written to a file that is no longer at its path, and nothing is acknowledged
        // if it was, or if its log is gone.
        self.file.check_name()?;
        self.execute("COMMIT")?;
        self.file.check()
    }

    fn execute(&self, sql: &str) -> Result<(), Trouble> {
        self.db.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}

/// Collects the jobs of the next commit: those that continue from the last one, and those queued.
/// Returns `None` when there will be no more.
fn next(jobs: &Receiver<Box<dyn Job>>, going_on: Vec<Box<dyn Job>>) -> Option<Vec<Box<dyn Job>>> {
    let mut batch = going_on;
    if batch.is_empty() {
        batch.push(jobs.recv().ok()?);
    }
    let (mut rows, mut bytes) = size(&batch);
    while rows < BATCH && bytes < BATCH_BYTES {
        let Ok(job) = jobs.try_recv() else { break };
        rows += job.rows();
        bytes += job.weight();
        batch.push(job);
    }
    Some(batch)
}

/// Returns the approximate number of rows, and of record bytes, that the jobs write.
fn size(batch: &[Box<dyn Job>]) -> (usize, usize) {
    batch.iter().fold((0, 0), |(rows, bytes), job| (rows + job.rows(), bytes + job.weight()))
}
