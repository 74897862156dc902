//! The jobs of the writer: [`Job`].

use super::error::{Error, Result};
use super::high_water::HighWater;
use super::oneshot;
use super::rows::Purged;
use super::writer::WriterThread;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::{Record, Stamp};
use crate::store::{Swap, SwapRequest};

/// A task to run in the writer's transaction, and the reply to its caller.
pub(super) enum Job {
    /// The swaps of one call.
    Swaps(Vec<SwapRequest>, Reply<Vec<Result<Swap, StoreError>>>),
    /// A removal of expired rows, spread over as many commits as necessary.
    Purge(Purge, Reply<Result<Purged>>),
    /// The removal of a row, readable or not.
    Discard(RecordId, Reply<Result<bool>>),
}

/// The progress of a purge of at most `limit` rows.
pub(super) struct Purge {
    limit: usize,
    committed: Purged,
    /// True if there may be more to remove.
    has_more: bool,
}

/// A channel to a caller, with the answer to send after the commit.
pub(super) struct Reply<T> {
    sender: oneshot::Sender<T>,
    answer: Option<T>,
}

impl Job {
    /// Runs the job and keeps its answer.
    pub(super) fn run(&mut self, writer: &WriterThread, high_water: &mut HighWater<'_>) {
        let WriterThread { db, table, limits, .. } = writer;
        match self {
            Job::Swaps(swaps, reply) => {
                let answers = reply.answer.insert(Vec::with_capacity(swaps.len()));
                for swap in swaps {
                    answers.push(table.swap(db, swap, high_water, limits).map_err(StoreError::from));
                    if db.is_autocommit() {
                        // The transaction is gone, and later swaps would be committed one by one.
                        // The job fails.
                        break;
                    }
                }
            }
            Job::Purge(purge, reply) => reply.answer = Some(purge.run(writer, high_water)),
            Job::Discard(id, reply) => reply.answer = Some(table.discard(db, id, high_water)),
        }
    }

    /// Sends the answer. To be called only after the commit.
    pub(super) fn answer(self) {
        match self {
            Job::Swaps(_, reply) => reply.send(),
            Job::Purge(_, reply) => reply.send(),
            Job::Discard(_, reply) => reply.send(),
        }
    }

    /// Sends the transaction's failure instead of an answer. A purge reports the rows that earlier
    /// commits removed, because they stay removed.
    pub(super) fn fail(self, error: Error) {
        match self {
            Job::Swaps(swaps, reply) => {
                let failed = |swap: &SwapRequest| Err(error.clone().for_call(may_be_refused(swap)));
                reply.send_instead(swaps.iter().map(failed).collect());
            }
            Job::Purge(Purge { committed: Purged { removed: 0, .. }, .. }, reply) => {
                reply.send_instead(Err(error));
            }
            Job::Purge(purge, reply) => reply.send_instead(Ok(purge.committed)),
            Job::Discard(_, reply) => reply.send_instead(Err(error)),
        }
    }

    /// Returns true if the job continues in the next commit before it answers. To be called only
    /// after the commit.
    pub(super) fn continues(&mut self) -> bool {
        match self {
            Job::Purge(purge, Reply { answer: Some(Ok(purged)), sender }) => {
                purge.committed = *purged;
                purge.has_more && !sender.is_canceled()
            }
            Job::Swaps(..) | Job::Purge(..) | Job::Discard(..) => false,
        }
    }

    /// Returns true if the caller no longer waits.
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Job::Swaps(_, reply) => reply.sender.is_canceled(),
            Job::Purge(_, reply) => reply.sender.is_canceled(),
            Job::Discard(_, reply) => reply.sender.is_canceled(),
        }
    }

    /// Adds each record that waiters need to hear of and that the job has changed, with its present
    /// stamp (for a removed record, a stamp that no record has).
    pub(super) fn written(&self, written: &mut Vec<(RecordId, Stamp)>) {
        match self {
            Job::Swaps(swaps, Reply { answer: Some(answers), .. }) => {
                written.extend(swaps.iter().zip(answers).filter_map(|(swap, answer)| match answer {
                    Ok(Swap::Done(stamp)) => Some((swap.id, *stamp)),
                    Ok(Swap::Conflict(_)) | Err(_) => None,
                }));
            }
            Job::Discard(id, Reply { answer: Some(Ok(true)), .. }) => written.push((*id, Stamp::ZERO)),
            Job::Swaps(..) | Job::Purge(..) | Job::Discard(..) => {}
        }
    }

    /// Returns the approximate number of rows, and of record bytes, that the job writes. A purge
    /// has none: its share of a commit depends on the other jobs.
    pub(super) fn size(&self) -> (usize, usize) {
        let weight = |swap: &SwapRequest| swap.next.as_deref().map_or(0, Record::weight);
        match self {
            Job::Swaps(swaps, _) => (swaps.len(), swaps.iter().map(weight).sum()),
            Job::Purge(..) => (0, 0),
            Job::Discard(..) => (1, 0),
        }
    }
}

impl Purge {
    pub(super) fn new(limit: usize) -> Purge {
        Purge { limit, committed: Purged::default(), has_more: false }
    }

    fn run(&mut self, writer: &WriterThread, high_water: &mut HighWater<'_>) -> Result<Purged> {
        let step = writer.purge_step().min(self.limit - self.committed.examined);
        let purged = writer.table.purge(&writer.db, high_water, step)?;
        let total = Purged {
            examined: self.committed.examined + purged.examined,
            removed: self.committed.removed + purged.removed,
            unsettled: self.committed.unsettled + purged.unsettled,
        };
        self.has_more = purged.examined == step && total.examined < self.limit;
        Ok(total)
    }
}

impl<T> Reply<T> {
    pub(super) fn new(sender: oneshot::Sender<T>) -> Reply<T> {
        Reply { sender, answer: None }
    }

    fn send(self) {
        // Without an answer the sender is dropped, which tells the caller.
        if let Some(answer) = self.answer {
            let _ = self.sender.send(answer);
        }
    }

    fn send_instead(self, answer: T) {
        let _ = self.sender.send(answer);
    }
}

fn may_be_refused(swap: &SwapRequest) -> bool {
    swap.next.as_deref().is_some_and(Record::may_be_refused)
}
