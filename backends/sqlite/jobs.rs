//! What the writer is asked to do.

use std::cell::Cell;

use super::mark::Stamps;
use super::oneshot;
use super::trouble::Trouble;
use super::writer::Desk;
use crate::error::StoreError;
use crate::key::RecordId;
use crate::record::{Record, Stamp};
use crate::store::Swap;

/// Something to be done in the writer's transaction, which gives `stamps`.
pub(super) trait Work: Send + 'static {
    type Output: Send + 'static;

    fn run(&self, desk: &Desk, stamps: &mut Stamps<'_>) -> Result<Self::Output, StoreError>;

    /// What to answer if the transaction came to nothing, or may have.
    fn failed(&self, trouble: Trouble) -> Result<Self::Output, StoreError> {
        Err(trouble.into())
    }

    /// Names the records that have changed if this is what came of it, and the stamps that they have now (of those
    /// removed: any that no record has).
    fn written(&self, output: &Self::Output, name: &mut dyn FnMut(RecordId, Stamp)) {
        let _ = (output, name);
    }

    /// Whether there is more to do in the next commit, now that what gave `output` is committed.
    fn goes_on(&self, output: &Self::Output) -> bool {
        let _ = output;
        false
    }

    /// About how many bytes it writes.
    fn weight(&self) -> usize {
        0
    }

    /// About how many rows it writes.
    fn rows(&self) -> usize {
        1
    }
}

/// A [`Work`], whatever it gives.
pub(super) trait Job: Send {
    /// Does it and keeps the result.
    fn run(&mut self, desk: &Desk, stamps: &mut Stamps<'_>);
    /// Hands out the result: only once it is committed.
    fn answer(self: Box<Self>);
    /// Whether it takes part in the next commit too, before it has a result to hand out: asked once this one is done.
    fn goes_on(&self) -> bool;
    /// Hands out what went wrong with the transaction instead.
    fn fail(self: Box<Self>, trouble: Trouble);
    /// Whether nobody waits for it any more.
    fn is_abandoned(&self) -> bool;
    /// See [`Work::written`].
    fn written(&self, name: &mut dyn FnMut(RecordId, Stamp));
    fn weight(&self) -> usize;
    fn rows(&self) -> usize;
}

/// A work, its result, and who waits for that.
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
        // Without a result the sender is dropped, and the caller hears that there is none.
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

/// A compare-and-swap.
pub(super) struct Exchange {
    pub(super) id: RecordId,
    pub(super) expected: Option<Stamp>,
    pub(super) next: Option<Box<Record>>,
}

impl Work for Exchange {
    type Output = Swap;

    fn run(&self, desk: &Desk, stamps: &mut Stamps<'_>) -> Result<Swap, StoreError> {
        let change = (&self.id, self.expected, self.next.as_deref());
        desk.table.swap(&desk.db, change, stamps, &desk.limits)
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

/// Several compare-and-swaps, of one call.
pub(super) struct Exchanges(pub(super) Vec<Exchange>);

impl Work for Exchanges {
    type Output = Vec<Result<Swap, StoreError>>;

    fn run(&self, desk: &Desk, stamps: &mut Stamps<'_>) -> Result<Self::Output, StoreError> {
        let mut answers = Vec::with_capacity(self.0.len());
        for exchange in &self.0 {
            answers.push(exchange.run(desk, stamps));
            if desk.db.is_autocommit() {
                // The transaction is gone: what follows would be committed by itself. All of it fails.
                return Err(Trouble::rolled_back().into());
            }
        }
        Ok(answers)
    }

    fn failed(&self, trouble: Trouble) -> Result<Self::Output, StoreError> {
        Ok(self.0.iter().map(|exchange| exchange.failed(trouble.clone())).collect())
    }

    fn written(&self, output: &Self::Output, name: &mut dyn FnMut(RecordId, Stamp)) {
        for (exchange, answer) in self.0.iter().zip(output) {
            if let Ok(swap) = answer {
                exchange.written(swap, name);
            }
        }
    }

    fn weight(&self) -> usize {
        self.0.iter().map(Exchange::weight).sum()
    }

    fn rows(&self) -> usize {
        self.0.len()
    }
}

/// A purge of at most `limit` rows, over as many commits as it takes.
pub(super) struct Purge {
    limit: usize,
    /// How many it has looked at, and removed, in the commits before.
    before: Cell<Steps>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Steps {
    looked: usize,
    pub(super) removed: usize,
    /// How many of those were evidence.
    pub(super) unsettled: u64,
    /// Whether there may be more to remove.
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

    /// What the commits before this one removed stays removed.
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

    /// It takes its measure from the others.
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
