//! Listing and counting what is unfinished.

use std::cmp::Reverse;

use super::filter::Filter;
use super::purge::purge_turn;
use crate::decide::is_unfinished;
use crate::engine::Engine;
use crate::error::Error;
use crate::inspect::Inspection;
use crate::key::RecordId;
use crate::observe;
use crate::store::{Cursor, Snapshot};

/// An operation that nobody is at work on and that is not settled either: made by
/// [`Engine::unfinished`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// The id that it is filed under: what [`Engine::resolve_id`] and [`Engine::forget_id`] ask
    /// for.
    pub id: RecordId,
    /// Its present state.
    pub inspection: Inspection,
}

/// A part of what is unfinished.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnfinishedPage {
    /// The operations, the longest unchanged first within the page.
    pub operations: Vec<Unfinished>,
    /// Ids whose record could not be read: [`Engine::forget_id`] is the way out.
    pub unreadable: Vec<RecordId>,
    /// The start of the next page; `None`: this was the last.
    pub next: Option<Cursor>,
}

/// A page of what a filter chooses, with the records as they were found.
pub(super) struct Chosen {
    pub(super) operations: Vec<(Unfinished, Snapshot)>,
    pub(super) unreadable: Vec<RecordId>,
    pub(super) next: Option<Cursor>,
}

impl Engine {
    /// Up to about `limit` records are looked at, from where `after` says (`None`: from the start),
    /// and those are returned whose attempt ran out of its lease, failed without certainty, or
    /// could be executed again and was not. Go on with [`next`](UnfinishedPage::next) until there
    /// is none; a page may be empty and not the last.
    ///
    /// It reads the whole store, page by page, in the store's order: for an operator's tool or an
    /// hourly alert, not for a request's path. [`unfinished_by`](Engine::unfinished_by) can do with
    /// less.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.fail("?", Retry::Unresolved).await?;
    /// let mut after = None;
    /// loop {
    ///     let page = engine.unfinished(after.as_ref(), 500).await?;
    ///     for operation in page.operations {
    ///         println!("{} since {:?}", operation.id, operation.inspection.age);
    ///     }
    ///     after = page.next;
    ///     if after.is_none() {
    ///         break;
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`Error::Store`], also where the store cannot list; [`Error::TimedOut`].
    pub async fn unfinished(&self, after: Option<&Cursor>, limit: usize) -> Result<UnfinishedPage, Error> {
        self.unfinished_by(&Filter::new(), after, limit).await
    }

    /// [`unfinished`](Engine::unfinished), as far as `filter` chooses it. Every page is asked for
    /// with the same filter. With [`Need::Settling`](crate::Need::Settling), or by a reason that
    /// stands for it, a memory or SQLite store looks at nothing else.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.fail("?", Retry::Unresolved).await?;
    /// let alarming = Filter::new().need(Need::Settling);
    /// let page = engine.unfinished_by(&alarming, None, 500).await?;
    /// assert_eq!(page.operations[0].inspection.reason(), Some(Reason::Reported));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`unfinished`](Engine::unfinished).
    pub async fn unfinished_by(
        &self,
        filter: &Filter,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<UnfinishedPage, Error> {
        let Chosen { operations, unreadable, next } = self.choose(filter, after, limit).await?;
        let operations = operations.into_iter().map(|(operation, _)| operation).collect();
        Ok(UnfinishedPage { operations, unreadable, next })
    }

    pub(super) async fn choose(
        &self,
        filter: &Filter,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Chosen, Error> {
        let (store, limit) = (self.store(), limit.max(1));
        let call =
            if filter.is_evidence_only() { store.unsettled(after, limit) } else { store.scan(after, limit) };
        let page = self.bounded(call).await?;
        let now = page.now;
        let turn = purge_turn()?.id(); // between two turns nobody is at work on it, and nobody need be
        let chosen = |(id, record)| {
            let snapshot = Snapshot { record: Some(Box::new(record)), now };
            let inspection = Inspection::of(&snapshot, self.policy())?;
            filter.matches(&inspection).then_some((Unfinished { id, inspection }, snapshot))
        };
        let records = page.records.into_iter();
        let unfinished = records.filter(|(id, record)| *id != turn && is_unfinished(now, record));
        let mut operations: Vec<_> = unfinished.filter_map(chosen).collect();
        operations.sort_by_key(|(operation, _)| Reverse(operation.inspection.age));
        Ok(Chosen { operations, unreadable: page.unreadable, next: page.next })
    }

    /// The number of operations whose effect may have happened and nobody knows
    /// ([`Need::Settling`](crate::Need::Settling)), which the gauge `nevertwice_unresolved` is set
    /// to as well. Memory and SQLite look at nothing else; other stores are read as a whole.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.fail("?", Retry::Unresolved).await?;
    /// assert_eq!(engine.unresolved_count().await?, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`unfinished`](Engine::unfinished).
    pub async fn unresolved_count(&self) -> Result<u64, Error> {
        let (mut count, mut after) = (0, None);
        loop {
            let (found, next) = self.count_unsettled(after.as_ref(), 500).await?;
            count += found;
            after = next;
            if after.is_none() {
                observe::unresolved(self, count);
                return Ok(count);
            }
        }
    }

    /// The number of such operations on one page, and the next one's start.
    pub(super) async fn count_unsettled(
        &self,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<(u64, Option<Cursor>), Error> {
        let page = self.bounded(self.store().unsettled(after, limit)).await?;
        let found = page.records.iter().filter(|(_, record)| record.is_unsettled(page.now)).count();
        Ok((found as u64, page.next))
    }
}
