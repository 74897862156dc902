//! The thread that has an outbox's connection: [`Worker`].

use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use futures_channel::oneshot;
use rusqlite::Connection;

use crate::backends::sqlite::error::{Error, Result};
use crate::wake::guarded;

type Job = Box<dyn FnOnce(&Connection) + Send>;

/// Runs jobs one after another on a thread, so that a caller's executor never waits for the disk or
/// for another writer. Dropping it ends the thread once the jobs are done.
#[derive(Debug)]
pub(super) struct Worker {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn start(db: Connection) -> Result<Worker> {
        let (jobs, queue) = channel::<Job>();
        let thread = thread::Builder::new()
            .name("nevertwice-outbox".to_owned())
            .spawn(move || {
                for job in queue {
                    job(&db);
                }
            })
            .map_err(|error| Error::unusable(format!("no thread to work on: {error}")))?;
        Ok(Worker { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Runs a job, unless its caller is gone by then.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, answer) = oneshot::channel();
        let job = Box::new(move |db: &Connection| {
            if !sender.is_canceled() {
                let _ = sender.send(job(db));
            }
        });
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Err(Error::unusable("its thread has ended"));
        }
        guarded(answer).await.map_err(|_| Error::unavailable("its thread ended before it answered"))?
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let Some(thread) = self.thread.take() else { return };
        // An answer may wake a task that drops the last handle right there.
        if thread.thread().id() != thread::current().id() {
            let _ = thread.join();
        }
    }
}
