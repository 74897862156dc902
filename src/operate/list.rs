//! Lists and counts of unfinished operations.

use std::cmp::Reverse;
use std::collections::HashSet;

use super::filter::Filter;
use super::purge::purge_turn;
use crate::decide::is_unfinished;
use crate::engine::Engine;
use crate::error::Error;
use crate::inspect::Inspection;
use crate::key::RecordId;
use crate::observe;
use crate::store::{Cursor, Snapshot};

/// An operation that is neither being executed nor settled: made by [`Engine::unfinished`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// The id of its record, to pass to [`Engine::resolve_id`] and [`Engine::forget_id`].
    pub id: RecordId,
    /// Its present state.
    pub inspection: Inspection,
}

/// A page of unfinished operations.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnfinishedPage {
    /// The operations, within the page those unchanged for the longest time first.
    pub operations: Vec<Unfinished>,
    /// Ids whose record could not be read. Remove them with [`Engine::forget_id`].
    pub unreadable: Vec<RecordId>,
    /// The start of the next page; `None` after the last one.
    pub next: Option<Cursor>,
}

/// A page of the operations that match a filter, with their records as they were found.
pub(super) struct Chosen {
    pub(super) operations: Vec<(Unfinished, Snapshot)>,
    pub(super) unreadable: Vec<RecordId>,
    pub(super) next: Option<Cursor>,
}

impl Engine {
    /// Lists unfinished operations: attempts whose lease expired, failures whose effect is
    /// uncertain, and operations that could be executed again and were not. It reads up to about
    /// `limit` records, starting at `after` (`None`: from the start). Continue with
    /// [`next`](UnfinishedPage::next) until it is `None`; a page may be empty without being the
    /// last.
    ///
    /// A full listing reads the whole store, page by page, in the store's order. Use it in an
    /// operator's tool or an hourly alert, not while serving a request.
    /// [`unfinished_by`](Engine::unfinished_by) can read less.
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
    /// [`Error::Store`], also if the store cannot list; [`Error::TimedOut`].
    pub async fn unfinished(&self, after: Option<&Cursor>, limit: usize) -> Result<UnfinishedPage, Error> {
        self.unfinished_by(&Filter::new(), after, limit).await
    }

    /// Lists the [`unfinished`](Engine::unfinished) operations that match `filter`. Use the same
    /// filter for every page. With [`Need::Settling`](crate::Need::Settling), or a reason that
    /// implies it, a memory or SQLite store reads only what its index lists.
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
        // The purgers' own operation waits for its next turn and needs no operator.
        let turn = purge_turn()?.id();
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

    /// Counts the operations whose effect may have happened and that are not settled
    /// ([`Need::Settling`](crate::Need::Settling)), and sets the gauge `nevertwice_unresolved`.
    /// Memory and SQLite read only what their index lists; other stores are read completely.
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
        let (mut found, mut after) = (HashSet::new(), None);
        loop {
            after = self.find_unsettled(after.as_ref(), 500, &mut found).await?;
            if after.is_none() {
                observe::unresolved(self, found.len() as u64);
                return Ok(found.len() as u64);
            }
        }
    }

    /// Adds the ids of such operations on one page, and returns the start of the next page. A
    /// listing may yield some records twice, and start again: each counts once.
    pub(super) async fn find_unsettled(
        &self,
        after: Option<&Cursor>,
        limit: usize,
        found: &mut HashSet<RecordId>,
    ) -> Result<Option<Cursor>, Error> {
        let page = self.bounded(self.store().unsettled(after, limit)).await?;
        let unsettled = page.records.into_iter().filter(|(_, record)| record.is_unsettled(page.now));
        found.extend(unsettled.map(|(id, _)| id));
        Ok(page.next)
    }
}
