//! The one thread that writes: it takes whatever is queued, commits it in one transaction, and only then answers.
//!
//! A commit costs one sync of the disk, whatever it holds, so many callers share one. Nothing waits for company:
//! a single call is committed at once.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;

use super::Limits;
use super::jobs::{Job, Pending, Work};
use super::mark::Stamps;
use super::oneshot;
use super::rows::Table;
use super::trouble::{Trouble, unavailable, unusable};
use super::waiters::{Waiters, Woken};
use crate::clock::Timeline;
use crate::error::StoreError;
use crate::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use crate::sync::thread::{self, JoinHandle};

/// The most calls that may wait; more are turned away.
const QUEUE: usize = 16 * 1024;
/// About how many rows, and bytes of records, may share a commit.
const BATCH: usize = 1024;
const BATCH_BYTES: usize = 16 << 20;
/// How many pages may wait in the write-ahead log before they are moved into the file: 4 MiB.
const CHECKPOINT_PAGES: i64 = 1000;
/// After how many pages written, as it is estimated, the log is asked how many wait. The question costs some microseconds.
const LOOK_PAGES: usize = 100;
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
        answered.await.unwrap_or_else(|_| Err(unavailable("its writer ended before it answered")))
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
        let (mut wrote, mut pages) = (false, 0);
        while let Ok(first) = jobs.recv() {
            let (mut rows, mut bytes) = (first.rows(), first.weight());
            let mut batch = vec![first];
            while rows < BATCH && bytes < BATCH_BYTES {
                let Ok(job) = jobs.try_recv() else { break };
                rows += job.rows();
                bytes += job.weight();
                batch.push(job);
            }
            // Whoever gave up waiting is spared the write: to him it may stand or not.
            batch.retain(|job| !job.is_abandoned());
            if !batch.is_empty() {
                self.serve(batch);
                wrote = true;
                pages += PAGES_PER_ROW * rows + bytes / PAGE_BYTES;
                if pages >= LOOK_PAGES {
                    self.checkpoint();
                    pages = 0;
                }
            }
        }
        if wrote {
            let _ = self.leave_mark();
        }
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
    /// or not.
    fn serve(&self, mut batch: Vec<Box<dyn Job>>) {
        match self.commit(&mut batch) {
            Ok(()) => {
                let woken = self.woken(&batch);
                batch.into_iter().for_each(|job| job.answer());
                woken.wake();
            }
            Err(trouble) => {
                if !self.db.is_autocommit() {
                    let _ = self.db.execute_batch("ROLLBACK");
                }
                batch.into_iter().for_each(|job| job.fail(trouble.clone()));
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
        self.execute("BEGIN IMMEDIATE")?;
        let mut stamps = Stamps::of(&self.db, &self.table, &self.timeline)?;
        for job in batch {
            job.run(self, &mut stamps);
            if self.db.is_autocommit() {
                return Err(Trouble::rolled_back());
            }
        }
        self.execute("COMMIT")
    }

    /// Moves the write-ahead log into the file if it has grown. Callers have their answers already, but those
    /// that come meanwhile wait. Should it fail, the next one does it.
    fn checkpoint(&self) {
        let pages = |mode: &str| -> rusqlite::Result<i64> {
            self.db
                .prepare_cached(&format!("PRAGMA main.wal_checkpoint({mode})"))?
                .query_row([], |row| Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?))
        };
        if pages("NOOP").is_ok_and(|waiting| waiting >= CHECKPOINT_PAGES) {
            let _ = pages("PASSIVE");
        }
    }

    fn execute(&self, sql: &str) -> Result<(), Trouble> {
        self.db.prepare_cached(sql)?.execute([])?;
        Ok(())
    }
}
