//! The one thread that writes: it takes whatever is queued, commits it in one transaction, and only then answers.
//!
//! A commit costs one sync of the disk, whatever it holds, so many callers share one. Nothing waits for company:
//! a single call is committed at once.

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

/// The most calls that may wait; more are turned away.
const QUEUE: usize = 16 * 1024;
/// About how many rows, and bytes of records, may share a commit.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 16 << 20;
/// About how many pages a row costs besides what its record fills, in it and in the indexes.
const PAGES_PER_ROW: usize = 2;
const PAGE_BYTES: usize = 4096;

/// The sending end of the writer's queue. Dropping it ends the thread once everything queued is done.
#[derive(Debug)]
pub(super) struct Writer {
    queue: Option<SyncSender<Box<dyn Job>>>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works with.
pub(super) struct Desk {
    pub(super) db: Connection,
    pub(super) table: Arc<Table>,
    pub(super) timeline: Arc<Timeline>,
    pub(super) limits: Limits,
    pub(super) waiters: Arc<Waiters>,
    pub(super) file: Arc<OpenFile>,
    pub(super) log: Log,
    /// How many rows the jobs of the present commit write.
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

    /// Has `work` done, and waits until it is committed.
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
        // An answer may wake a task that drops the last handle right there, on the writer's own thread.
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

    /// How many rows a purge may remove in the present commit: up to twice as many as it writes, so that they go faster than
    /// they come although it misses a commit now and then, and no commit takes much longer for it.
    pub(super) fn purge_step(&self) -> usize {
        (2 * self.rows.get()).clamp(PURGE_STEP, BATCH.max(self.rows.get()))
    }

    /// Closes the file. The log is moved into it then, and removed, unless they no longer belong together.
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

    /// Leaves the mark where time has got to. Should somebody else be writing, it is near enough as it is: nobody waits for that.
    fn leave_mark(&self) -> Result<(), Trouble> {
        self.db.busy_timeout(Duration::ZERO)?;
        self.execute("BEGIN IMMEDIATE")?;
        let mut stamps = Stamps::of(&self.db, &self.table, &self.timeline)?;
        stamps.raise(&self.db, &self.table, self.timeline.now())?;
        self.execute("COMMIT")
    }

    /// Carries out `batch` and answers. If the commit fails, every call of it is told so: what they wrote may stand
    /// or not. Returns the jobs that go on in the next one.
    fn serve(&self, mut batch: Vec<Box<dyn Job>>) -> Vec<Box<dyn Job>> {
        // A clock or a value of the application's may panic here; that must not end the thread.
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
                // What SQLite makes of a file that is gone tells little.
                let trouble = self.file.check().err().unwrap_or(trouble);
                for job in batch {
                    contain(|| job.fail(trouble.clone()));
                }
                Vec::new()
            }
        }
    }

    /// Who waits for something that `batch`, which is committed, has changed.
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
        // Nothing is written into a file that nobody looks for there; and nothing is acknowledged that was, or whose log is gone.
        self.file.check_name()?;
        self.execute("COMMIT")?;
        self.file.check()
    }

    fn execute(&self, sql: &str) -> Result<(), Trouble> {
        self.db.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}

/// What is to be done in the next commit: what goes on from the one before, and what is queued. `None` once that is all.
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

/// About how many rows, and bytes of records, the jobs write.
fn size(batch: &[Box<dyn Job>]) -> (usize, usize) {
    batch.iter().fold((0, 0), |(rows, bytes), job| (rows + job.rows(), bytes + job.weight()))
}
