//! The jobs of the writer.

use std::cell::Cell;

use super::mark::Stamps;
use super::oneshot;
use super::trouble::Trouble;
use super::writer::Desk;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::{Record, Stamp};
use crate::store::{Swap, SwapRequest};

/// A task to run in the writer's transaction, with stamps from `stamps`.
pub(super) trait Work: Send + 'static {
    type Output: Send + 'static;

    fn run(&self, desk: &Desk, stamps: &mut Stamps<'_>) -> Result<Self::Output, StoreError>;

    /// Returns the answer for a transaction that failed, or may have failed.
    fn failed(&self, trouble: Trouble) -> Result<Self::Output, StoreError> {
        Err(trouble.into())
    }

    /// Calls `name` for each record that `output` says has changed, with its present stamp (for a
    /// removed record, any stamp that no record has).
    fn written(&self, output: &Self::Output, name: &mut dyn FnMut(RecordId, Stamp)) {
        let _ = (output, name);
    }

    /// Returns true if there is more to do in the next commit, now that `output` is committed.
    fn goes_on(&self, output: &Self::Output) -> bool {
        let _ = output;
        false
    }

    /// Returns the approximate number of bytes it writes.
    fn weight(&self) -> usize {
        0
    }

    /// Returns the approximate number of rows it writes.
    fn rows(&self) -> usize {
        1
    }
}

/// A [`Work`] with its output type erased.
pub(super) trait Job: Send {
    /// Runs the work and keeps its result.
    fn run(&mut self, desk: &Desk, stamps: &mut Stamps<'_>);
    /// Sends the result. To be called only after the commit.
    fn answer(self: Box<Self>);
    /// Returns true if the job continues in the next commit before it has a result to send. To be
    /// called only after the commit.
    fn goes_on(&self) -> bool;
    /// Sends the transaction's failure instead of a result.
    fn fail(self: Box<Self>, trouble: Trouble);
    /// Returns true if the caller no longer waits.
    fn is_abandoned(&self) -> bool;
    /// See [`Work::written`].
    fn written(&self, name: &mut dyn FnMut(RecordId, Stamp));
    fn weight(&self) -> usize;
    fn rows(&self) -> usize;
}

/// A work with its result and the channel to its caller.
pub(super) struct Pending<W: Work> {
    work: W,
    result: Option<Result<W::Output, StoreError>>,
    answer: Answer<W::Output>,
}

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

impl<W: Work> Pending<W> {
    pub(super) fn new(work: W, answer: Answer<W::Output>) -> Pending<W> {
        Pending { work, result: None, answer }
    }
}

impl<W: Work> Job for Pending<W> {
    fn run(&mut self, desk: &Desk, stamps: &mut Stamps<'_>) {
        self.result = Some(self.work.run(desk, stamps));
    }

    fn answer(self: Box<Self>) {
        // Without a result the sender is dropped, which tells the caller.
        if let Some(result) = self.result {
            let _ = self.answer.send(result);
        }
    }

    fn goes_on(&self) -> bool {
        matches!(&self.result, Some(Ok(output)) if self.work.goes_on(output)) && !self.is_abandoned()
    }

    fn fail(self: Box<Self>, trouble: Trouble) {
        let _ = self.answer.send(self.work.failed(trouble));
    }

    fn is_abandoned(&self) -> bool {
        self.answer.is_canceled()
    }

    fn written(&self, name: &mut dyn FnMut(RecordId, Stamp)) {
        if let Some(Ok(output)) = &self.result {
            self.work.written(output, name);
        }
    }

    fn weight(&self) -> usize {
        self.work.weight()
    }

    fn rows(&self) -> usize {
        self.work.rows()
    }
}

impl Work for SwapRequest {
    type Output = Swap;

    fn run(&self, desk: &Desk, stamps: &mut Stamps<'_>) -> Result<Swap, StoreError> {
        desk.table.swap(&desk.db, self, stamps, &desk.limits)
    }

    fn failed(&self, trouble: Trouble) -> Result<Swap, StoreError> {
        Err(trouble.into_error(self.next.as_deref().is_some_and(Record::may_be_refused)))
    }

    fn written(&self, output: &Swap, name: &mut dyn FnMut(RecordId, Stamp)) {
        match output {
            Swap::Done(stamp) => name(self.id, *stamp),
            Swap::Conflict(_) => {}
        }
    }

    fn weight(&self) -> usize {
        self.next.as_deref().map_or(0, Record::weight)
    }
}

/// Several compare-and-swaps of one call.
pub(super) struct Swaps(pub(super) Vec<SwapRequest>);

impl Work for Swaps {
    type Output = Vec<Result<Swap, StoreError>>;

    fn run(&self, desk: &Desk, stamps: &mut Stamps<'_>) -> Result<Self::Output, StoreError> {
        let mut answers = Vec::with_capacity(self.0.len());
        for swap in &self.0 {
            answers.push(swap.run(desk, stamps));
            if desk.db.is_autocommit() {
                // The transaction is gone, and later swaps would be committed one by one. All of
                // them fail.
                return Err(Trouble::rolled_back().into());
            }
        }
        Ok(answers)
    }

    fn failed(&self, trouble: Trouble) -> Result<Self::Output, StoreError> {
        Ok(self.0.iter().map(|swap| swap.failed(trouble.clone())).collect())
    }

    fn written(&self, output: &Self::Output, name: &mut dyn FnMut(RecordId, Stamp)) {
        for (swap, answer) in self.0.iter().zip(output) {
            if let Ok(swapped) = answer {
                swap.written(swapped, name);
            }
        }
    }

    fn weight(&self) -> usize {
        self.0.iter().map(Work::weight).sum()
    }

    fn rows(&self) -> usize {
        self.0.len()
    }
}

/// A purge of at most `limit` rows, spread over as many commits as necessary.
pub(super) struct Purge {
    limit: usize,
    /// The totals of the previous commits.
    before: Cell<Steps>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Steps {
    looked: usize,
    pub(super) removed: usize,
    /// The number of removed rows that were evidence.
    pub(super) unsettled: u64,
    /// True if there may be more to remove.
    more: bool,
}

impl Purge {
    pub(super) fn new(limit: usize) -> Purge {
        Purge { limit, before: Cell::default() }
    }
}

impl Work for Purge {
    type Output = Steps;

    fn run(&self, desk: &Desk, stamps: &mut Stamps<'_>) -> Result<Steps, StoreError> {
        let before = self.before.get();
        let step = desk.purge_step().min(self.limit - before.looked);
        let step_done = desk.table.purge(&desk.db, stamps, step)?;
        let looked = before.looked + step_done.looked;
        Ok(Steps {
            looked,
            removed: before.removed + step_done.removed,
            unsettled: before.unsettled + step_done.unsettled,
            more: step_done.looked == step && looked < self.limit,
        })
    }

    /// Reports the rows that earlier commits removed: they stay removed.
    fn failed(&self, trouble: Trouble) -> Result<Steps, StoreError> {
        match self.before.get() {
            Steps { removed: 0, .. } => Err(trouble.into()),
            before => Ok(before),
        }
    }

    fn goes_on(&self, steps: &Steps) -> bool {
        self.before.set(*steps);
        steps.more
    }

    /// Returns 0: its share of a commit depends on the other jobs.
    fn rows(&self) -> usize {
        0
    }
}

/// The removal of a row, readable or not.
pub(super) struct Discard(pub(super) RecordId);

impl Work for Discard {
    type Output = bool;

    fn run(&self, desk: &Desk, stamps: &mut Stamps<'_>) -> Result<bool, StoreError> {
        desk.table.discard(&desk.db, &self.0, stamps)
    }

    fn written(&self, output: &bool, name: &mut dyn FnMut(RecordId, Stamp)) {
        if *output {
            name(self.0, Stamp::ZERO);
        }
    }
}
