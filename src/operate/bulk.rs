//! Operator actions on many keys, page by page: [`Engine::resolve_many`] and
//! [`Engine::forget_many`].

use std::iter::zip;

use futures_util::future::join_all;

use super::filter::Filter;
use super::list::{Chosen, Unfinished};
use crate::call::{Call, Task, View};
use crate::decide::{Command, Current, Resolution};
use crate::engine::Engine;
use crate::error::Error;
use crate::key::RecordId;
use crate::observe::{self, Op};
use crate::record::Stamp;
use crate::store::{Cursor, Snapshot, Swap, SwapRequest};

/// The mode of a bulk call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bulk {
    /// Writes nothing: [`BulkPage::done`] lists what would be done.
    DryRun,
    /// Writes the changes.
    Apply,
}

/// A page of a bulk call.
#[derive(Debug)]
#[non_exhaustive]
pub struct BulkPage {
    /// The operations that were settled or removed, or would be, each as it was before.
    pub done: Vec<Unfinished>,
    /// The operations that were not changed.
    pub refused: Vec<Refused>,
    /// Ids whose record could not be read. They are not changed; remove them with
    /// [`Engine::forget_id`].
    pub unreadable: Vec<RecordId>,
    /// The start of the next page; `None` after the last one.
    pub next: Option<Cursor>,
}

/// An operation of a [`BulkPage`] that was not changed.
#[derive(Debug)]
#[non_exhaustive]
pub struct Refused {
    /// The operation, as it was found.
    pub operation: Unfinished,
    /// The reason: [`Error::NotResolvable`] if the operation changed since it was found.
    pub error: Error,
}

impl Engine {
    /// Settles the unfinished operations that match `filter`, as [`resolve`](Engine::resolve) does
    /// one, and reports each. It reads up to about `limit` records, starting at `after`, and writes
    /// the changes of a page in one call if the store can. Continue with [`next`](BulkPage::next)
    /// until it is `None`.
    ///
    /// A filter without a [`need`](Filter::need) matches here only operations that need an operator
    /// ([`Need::Operator`](crate::Need::Operator)), and none that only need a retry. An operation
    /// that changed between the read and the write is refused.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.fail("?", Retry::Unresolved).await?;
    /// // The provider lost all exports that were under way: none had an effect.
    /// let exports = Filter::new().scope("exports")?.reason(Reason::Reported);
    /// for bulk in [Bulk::DryRun, Bulk::Apply] {
    ///     let mut after = None;
    ///     loop {
    ///         let page = engine.resolve_many(&exports, &Resolution::Rerun, bulk, after.as_ref(), 500).await?;
    ///         println!("{} done, {} refused", page.done.len(), page.refused.len());
    ///         after = page.next;
    ///         if after.is_none() {
    ///             break;
    ///         }
    ///     }
    /// }
    /// assert!(matches!(engine.begin(&request).await?, Begin::Acquired(_)));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`unfinished`](Engine::unfinished), with nothing done; [`Error::TooLarge`] as for
    /// [`resolve`](Engine::resolve). Errors of single operations are in
    /// [`refused`](BulkPage::refused).
    pub async fn resolve_many(
        &self,
        filter: &Filter,
        resolution: &Resolution,
        bulk: Bulk,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<BulkPage, Error> {
        resolution.check(self.policy().max_response)?;
        let chosen = self.choose(&filter.for_settling(), after, limit).await?;
        if bulk == Bulk::DryRun {
            return Ok(BulkPage::dry(chosen));
        }
        let commands: Vec<Command> = chosen
            .operations
            .iter()
            .map(|(found, _)| Command::Resolve {
                fence: found.inspection.fence,
                stamp: Some(found.inspection.stamp),
                resolution: resolution.clone(),
            })
            .collect();
        let (started, limit) = (self.clock().monotonic(), self.policy().call_timeout);
        let tasks = zip(&chosen.operations, &commands).map(|((found, snapshot), command)| {
            let task = Task { id: found.id, command, started, limit, released: None };
            let record = snapshot.record.as_deref();
            (task, move |task: &Task<'_>| View::expecting(&task.id, snapshot.now, record, task.command))
        });
        let seen = observe::call(self, Op::ResolveMany, &|| None);
        let answers = observe::in_span(&seen, self.core().execute_many(tasks.collect())).await;
        let results = answers.into_iter().map(|answer| answer?.reply.into_done());
        let results = results.inspect(|result| seen.operated(result.as_ref().map(|()| true)));
        Ok(BulkPage::of(chosen, results.collect()))
    }

    /// Removes the records of the unfinished operations that match `filter`, as
    /// [`resolve_many`](Engine::resolve_many) settles them. **The next begin of each executes.** A
    /// record that changed between the read and the removal is refused.
    ///
    /// # Errors
    /// As for [`unfinished`](Engine::unfinished), with nothing done. Errors of single operations
    /// are in [`refused`](BulkPage::refused).
    pub async fn forget_many(
        &self,
        filter: &Filter,
        bulk: Bulk,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<BulkPage, Error> {
        let chosen = self.choose(&filter.for_settling(), after, limit).await?;
        if bulk == Bulk::DryRun {
            return Ok(BulkPage::dry(chosen));
        }
        let seen = observe::call(self, Op::ForgetMany, &|| None);
        let removals =
            chosen.operations.iter().map(|(found, _)| self.remove(found.id, found.inspection.stamp));
        let results = observe::in_span(&seen, join_all(removals)).await;
        results.iter().for_each(|result| seen.operated(result.as_ref().map(|()| true)));
        Ok(BulkPage::of(chosen, results))
    }

    /// Removes the record with this stamp.
    async fn remove(&self, id: RecordId, stamp: Stamp) -> Result<(), Error> {
        match Call::within(self.core(), &id, self.policy().call_timeout)
            .swap(&SwapRequest { id, expected: Some(stamp), next: None })
            .await?
        {
            Swap::Done(_) => Ok(()),
            // The record is gone: most likely an earlier try removed it.
            Swap::Conflict(Snapshot { record: None, .. }) => Ok(()),
            Swap::Conflict(Snapshot { record, .. }) => {
                Err(Error::NotResolvable { current: Current::of(record.as_deref()) })
            }
        }
    }
}

impl BulkPage {
    fn dry(chosen: Chosen) -> BulkPage {
        let results = chosen.operations.iter().map(|_| Ok(())).collect();
        BulkPage::of(chosen, results)
    }

    /// Sorts the operations of `chosen` by their `results`.
    fn of(chosen: Chosen, results: Vec<Result<(), Error>>) -> BulkPage {
        let Chosen { operations, unreadable, next } = chosen;
        let mut page = BulkPage { done: Vec::new(), refused: Vec::new(), unreadable, next };
        for ((operation, _), result) in zip(operations, results) {
            match result {
                Ok(()) => page.done.push(operation),
                Err(error) => page.refused.push(Refused { operation, error }),
            }
        }
        page
    }
}
