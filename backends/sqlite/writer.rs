//! The writer thread. It takes everything queued, commits it in one transaction, and only then
//! answers.
//!
//! A commit costs one disk sync, whatever it holds, so many callers share one. No call waits for
//! others to join it: a single call is committed at once.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::error::{Error, Result};
use super::file::{OpenFile, leave_log};
use super::high_water::HighWater;
use super::jobs::{Job, Reply};
use super::log::Log;
use super::oneshot;
use super::rows::Table;
use super::waiters::{Waiters, Woken};
use super::{Limits, PURGE_STEP};
use crate::clock::Timeline;
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
    /// The jobs are boxed because the queue allocates room for all it may hold.
    queue: Option<SyncSender<Box<Job>>>,
    thread: Option<JoinHandle<()>>,
}

/// The state of the writer thread.
pub(super) struct WriterThread {
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
    pub(super) fn start(writer: WriterThread) -> Result<Writer> {
        let (queue, jobs) = sync_channel(QUEUE);
        let thread = thread::Builder::new()
            .name("nevertwice-sqlite".to_owned())
            .spawn(move || writer.run(&jobs))
            .map_err(|error| Error::unusable(format!("no thread to write on: {error}")))?;
        Ok(Writer { queue: Some(queue), thread: Some(thread) })
    }

    /// Hands a job to the writer thread, and waits until it is committed and answered.
    pub(super) async fn run<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T> {
        let (sender, answer) = oneshot::channel();
        let job = Box::new(job(Reply::new(sender)));
        match self.queue.as_ref().map(|queue| queue.try_send(job)) {
            Some(Ok(())) => {}
            Some(Err(TrySendError::Full(_))) => {
                return Err(Error::unavailable(format!("{QUEUE} writes are waiting")));
            }
            Some(Err(TrySendError::Disconnected(_))) | None => {
                return Err(Error::unusable("its writer has ended"));
            }
        }
        // The answer wakes the caller on the writer's thread.
        guarded(answer).await.map_err(|_| Error::unavailable("its writer ended before it answered"))
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

impl WriterThread {
    fn run(self, jobs: &Receiver<Box<Job>>) {
        let (mut wrote, mut continuing) = (false, Vec::new());
        while let Some(mut batch) = next(jobs, continuing) {
            // Skips jobs whose caller has gone: to it the outcome is unknown anyway.
            discard(batch.extract_if(.., |job| job.is_abandoned()));
            continuing = Vec::new();
            if batch.is_empty() {
                continue;
            }
            let (rows, bytes) = size(&batch);
            self.rows.set(rows);
            let purges = batch.iter().filter(|job| matches!(job, Job::Purge(..))).count();
            continuing = self.process(batch);
            wrote = true;
            self.log.wrote(PAGES_PER_ROW * (rows + purges * self.purge_step()) + bytes / PAGE_BYTES);
            self.log.maintain(&self.db, &self.file);
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
            let _ = self.raise_high_water();
        }
        self.file.unlock();
        let _ = leave_log(&self.db, false);
    }

    /// Raises the high-water mark to the time reached. If another writer is active, the mark is
    /// close enough as it is: this does not wait.
    fn raise_high_water(&self) -> Result<()> {
        self.db.busy_timeout(Duration::ZERO)?;
        self.execute("BEGIN IMMEDIATE")?;
        let mut high_water = HighWater::load(&self.db, &self.table, &self.timeline)?;
        high_water.raise(&self.db, &self.table, self.timeline.now())?;
        self.execute("COMMIT")
    }

    /// Runs `batch` and answers its callers. If the commit fails, every call gets the error: its
    /// writes may or may not be in effect. Returns the jobs that continue in the next batch.
    fn process(&self, mut batch: Vec<Job>) -> Vec<Job> {
        // The application's clock or a value of its may panic here; that must not end the thread.
        let committed = contain(|| self.commit(&mut batch));
        match committed.unwrap_or_else(|| Err(Error::unavailable("a panic ended the transaction"))) {
            Ok(()) => {
                let woken = self.woken(&batch);
                let continuing = batch.extract_if(.., Job::continues).collect();
                for job in batch {
                    contain(|| job.answer());
                }
                woken.wake();
                continuing
            }
            Err(error) => {
                if !self.db.is_autocommit() {
                    let _ = self.db.execute_batch("ROLLBACK");
                }
                // SQLite's error for a file that is gone says little.
                let error = self.file.check().err().unwrap_or(error);
                for job in batch {
                    contain(|| job.fail(error.clone()));
                }
                Vec::new()
            }
        }
    }

    /// Returns the waiters for records that the committed `batch` has changed.
    fn woken(&self, batch: &[Job]) -> Woken {
        if !self.waiters.any() {
            return Woken::default();
        }
        let mut written = Vec::new();
        batch.iter().for_each(|job| job.written(&mut written));
        self.waiters.take_written(&written)
    }

    fn commit(&self, batch: &mut [Job]) -> Result<()> {
        self.file.check_recent()?;
        self.execute("BEGIN IMMEDIATE")?;
        let mut high_water = HighWater::load(&self.db, &self.table, &self.timeline)?;
        for job in batch {
            job.run(self, &mut high_water);
            if self.db.is_autocommit() {
                return Err(Error::rolled_back());
            }
        }
        // Nothing is written to a file that is no longer at its path, and nothing is acknowledged
        // if it was, or if its log is gone.
        self.file.check_name()?;
        self.execute("COMMIT")?;
        self.file.check()
    }

    fn execute(&self, sql: &str) -> Result<()> {
        self.db.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}

/// Collects the jobs of the next commit: those that continue from the last one, and those queued.
/// Returns `None` when there will be no more.
fn next(jobs: &Receiver<Box<Job>>, continuing: Vec<Job>) -> Option<Vec<Job>> {
    let mut batch = continuing;
    if batch.is_empty() {
        batch.push(*jobs.recv().ok()?);
    }
    let (mut rows, mut bytes) = size(&batch);
    while rows < BATCH && bytes < BATCH_BYTES {
        let Ok(job) = jobs.try_recv() else { break };
        let (job_rows, job_bytes) = job.size();
        (rows, bytes) = (rows + job_rows, bytes + job_bytes);
        batch.push(*job);
    }
    Some(batch)
}

/// Returns the approximate number of rows, and of record bytes, that the jobs write.
fn size(batch: &[Job]) -> (usize, usize) {
    let sizes = batch.iter().map(Job::size);
    sizes.fold((0, 0), |(rows, bytes), (job_rows, job_bytes)| (rows + job_rows, bytes + job_bytes))
}
