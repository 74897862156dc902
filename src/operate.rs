//! What operators call: listing what is unfinished, and a purger that runs by itself.

use std::fmt;
use std::time::Duration;

use crate::begin::Begin;
use crate::call::within;
use crate::decide::{Command, Reply, Resolution, is_unfinished};
use crate::engine::{Engine, View};
use crate::error::{Error, StoreError};
use crate::inspect::Inspection;
use crate::key::{KeyError, RecordId};
use crate::lease::Lease;
use crate::observe::{self, Op};
use crate::policy::{Recovery, Retry};
use crate::record::Stamp;
use crate::request::Request;
use crate::store::{Cursor, Snapshot};

/// An operation that nobody is at work on and that is not settled either: made by [`Engine::unfinished`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// What it is filed under: what [`Engine::resolve_id`] and [`Engine::forget_id`] ask for.
    pub id: RecordId,
    /// Where it stands.
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
    /// Where the next page starts; `None`: this was the last.
    pub next: Option<Cursor>,
}

/// How a background purger goes about it: see [`Engine::purge_regularly`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurgePlan {
    /// How long from one purge to the next, over all processes together. **Default 1 min.**
    pub every: Duration,
    /// How many records are removed at a time. **Default 500.**
    pub step: usize,
    /// How long to rest between two steps. **Default 20 ms.**
    pub rest: Duration,
    /// The most records removed in one purge. **Default 1 000 000.**
    pub limit: u64,
}

impl Default for PurgePlan {
    fn default() -> PurgePlan {
        PurgePlan {
            every: Duration::from_secs(60),
            step: 500,
            rest: Duration::from_millis(20),
            limit: 1_000_000,
        }
    }
}

/// What one purge of [`Engine::purge_regularly`] did.
#[derive(Debug)]
#[non_exhaustive]
pub enum Purged {
    /// It removed this many records.
    Removed(u64),
    /// Another process sees to it at present, or just did.
    Elsewhere,
    /// It ended early: this many records were removed, then the store said no. The next one goes on.
    Failed(u64, Error),
}

impl Engine {
    /// Up to about `limit` records are looked at, from where `after` says (`None`: from the start), and those are returned whose
    /// attempt ran out of its lease, failed without certainty, or could be executed again and was not. Go on with
    /// [`next`](UnfinishedPage::next) until there is none; a page may be empty and not the last.
    ///
    /// It reads the whole store, page by page, in the store's order: for an operator's tool or an hourly alert, not for a
    /// request's path.
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
        let page = self.bounded(self.store().scan(after, limit.max(1))).await?;
        let now = page.now;
        let turn = purge_turn()?.id(); // between two turns nobody is at work on it, and nobody need be
        let mut operations: Vec<Unfinished> = page
            .records
            .into_iter()
            .filter(|(id, record)| *id != turn && is_unfinished(now, record))
            .filter_map(|(id, record)| {
                let inspection = Inspection::of(&Snapshot { record: Some(Box::new(record)), now })?;
                Some(Unfinished { id, inspection })
            })
            .collect();
        operations.sort_by_key(|operation| std::cmp::Reverse(operation.inspection.age));
        Ok(UnfinishedPage { operations, unreadable: page.unreadable, next: page.next })
    }

    /// [`resolve`](Engine::resolve) for what a listing found, whose key nobody may know.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// lease.fail("?", Retry::Unresolved).await?;
    /// for operation in engine.unfinished(None, 500).await?.operations {
    ///     engine.resolve_id(&operation.id, operation.inspection.fence, Resolution::Rerun).await?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`resolve`](Engine::resolve).
    pub async fn resolve_id(&self, id: &RecordId, fence: Stamp, resolution: Resolution) -> Result<(), Error> {
        let seen = observe::call(self, Op::Resolve, &|| None);
        let result = observe::in_span(&seen, async {
            let answer = self.execute(id, &Command::Resolve(fence, resolution), View::Unknown).await?;
            answer.reply.into_done()
        });
        let result = result.await;
        seen.operated(result.as_ref().map(|()| true));
        result
    }

    /// [`forget`](Engine::forget) for what a listing found, whose key nobody may know. **The next begin executes.**
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// assert!(engine.forget_id(&request.id()).await?);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`forget`](Engine::forget).
    pub async fn forget_id(&self, id: &RecordId) -> Result<bool, Error> {
        let seen = observe::call(self, Op::Forget, &|| None);
        let result = observe::in_span(&seen, async {
            match self.execute(id, &Command::Forget, View::Unknown).await {
                Err(error) if error.is_damaged_record() => self.discard(id).await,
                answer => Ok(answer?.reply == Reply::Done { existed: true }),
            }
        });
        let result = result.await;
        seen.operated(result.as_ref().map(|existed| *existed));
        result
    }

    /// Removes what is over its time, again and again, until it is dropped: spawn it once in every process. Of all
    /// processes on one store only one purges at a time, and only once per [`every`](PurgePlan::every), which they agree on by an
    /// operation of their own (scope `nevertwice`). `report` is told what each purge did.
    ///
    /// ```
    /// use nevertwice::{Engine, MemoryStore, PurgePlan, Purged};
    /// # futures_executor::block_on(async {
    /// let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let purger = engine.purge_regularly(PurgePlan::default(), |purged| {
    ///     if let Purged::Failed(_, error) = purged {
    ///         eprintln!("purge: {error}");
    ///     }
    /// });
    /// // tokio::spawn(purger);
    /// # drop(purger);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn purge_regularly(
        &self,
        plan: PurgePlan,
        mut report: impl FnMut(Purged) + Send + 'static,
    ) -> impl Future<Output = std::convert::Infallible> + Send + 'static {
        let engine = self.clone();
        async move {
            loop {
                report(engine.purge_in_turn(&plan).await);
                engine.clock().sleep(plan.every.max(Duration::from_millis(100))).await;
            }
        }
    }

    /// One purge, if no other process is at it or just was.
    async fn purge_in_turn(&self, plan: &PurgePlan) -> Purged {
        /// A purger that died is replaced after this time.
        const LEASE: Duration = Duration::from_secs(60);
        // A little less than the interval, so that the next turn does not find this one's end.
        let pause = plan.every / 10 * 9;
        let turn = match purge_turn() {
            Ok(turn) => turn
                .lease(LEASE)
                .retention(pause.saturating_add(LEASE))
                .recovery(Recovery::Rerun)
                .max_attempts(u32::MAX),
            Err(error) => return Purged::Failed(0, error.into()),
        };
        let mut removed = 0;
        let lease = match self.begin(&turn).await {
            Ok(Begin::Acquired(lease)) => lease,
            Ok(Begin::InProgress(_) | Begin::Failed(_) | Begin::Completed(_)) => return Purged::Elsewhere,
            Ok(Begin::Unresolved(_) | Begin::Mismatch(_)) => {
                let detail = "the purger's own operation was tampered with: forget it".to_owned();
                return Purged::Failed(0, StoreError::Unusable { backend: "engine", detail }.into());
            }
            // There is no room even for this turn: make some, without agreeing with anybody.
            Err(full @ Error::Store(StoreError::Full { .. })) => {
                let step = self.purge(plan.step.max(1)).await;
                let dropped = self.drop_responses(None, plan.step.max(1)).await;
                return Purged::Failed(step.unwrap_or(0), dropped.err().unwrap_or(full));
            }
            Err(error) => return Purged::Failed(0, error),
        };
        let mut result = self.purge_in_steps(plan, &lease, &mut removed).await;
        if result.is_ok() && self.policy().response_retention.is_some() {
            result = self.drop_responses_in_steps(plan, &lease).await;
        }
        // The next one is due after the interval, whoever's turn it is.
        match (result, lease.fail("", Retry::After(pause)).await) {
            (Ok(()), Ok(())) => Purged::Removed(removed),
            (Err(error), _) | (Ok(()), Err(error)) => Purged::Failed(removed, error),
        }
    }

    async fn purge_in_steps(&self, plan: &PurgePlan, turn: &Lease, removed: &mut u64) -> Result<(), Error> {
        while *removed < plan.limit {
            match self.purge(plan.step.max(1)).await? {
                0 => break,
                step => *removed += step,
            }
            self.clock().sleep(plan.rest).await;
            turn.renew().await?;
        }
        Ok(())
    }

    async fn drop_responses_in_steps(&self, plan: &PurgePlan, turn: &Lease) -> Result<(), Error> {
        let mut after = None;
        loop {
            after = match self.drop_responses(after.as_ref(), plan.step.max(1)).await? {
                (_, None) => return Ok(()),
                (_, next) => next,
            };
            self.clock().sleep(plan.rest).await;
            turn.renew().await?;
        }
    }

    /// Frees the room of responses that are no longer given out ([`Policy::response_retention`](crate::Policy::response_retention))
    /// among up to about `limit` records from where `after` says, and says how many there were and where to go on. The purger
    /// of [`purge_regularly`](Engine::purge_regularly) does this too.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let (dropped, next) = engine.drop_responses(None, 500).await?;
    /// assert!(dropped == 0 && next.is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// As for [`unfinished`](Engine::unfinished).
    pub async fn drop_responses(
        &self,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<(u64, Option<Cursor>), Error> {
        let page = self.bounded(self.store().scan(after, limit.max(1))).await?;
        let mut dropped = 0;
        for (id, record) in page.records {
            let snapshot = Snapshot { record: Some(Box::new(record)), now: page.now };
            let view = View::Found(Box::new((snapshot, Duration::ZERO)));
            let answer = self.execute(&id, &Command::DropResponse, view).await?;
            dropped += u64::from(answer.reply == Reply::Done { existed: true });
        }
        Ok((dropped, page.next))
    }

    /// What the store answers, if it does before the policy's `call_timeout`.
    pub(crate) async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>> + Unpin,
    ) -> Result<T, Error> {
        let limit = self.policy().call_timeout;
        match within(self.clock(), limit, call).await {
            Some(answer) => Ok(answer?),
            None => {
                observe::timed_out(self, 1);
                Err(Error::TimedOut { limit, tries: 1, last: None })
            }
        }
    }
}

/// The operation by which purgers take turns.
fn purge_turn() -> Result<Request, KeyError> {
    Request::new(["nevertwice", "background"], "purge").map(Request::internal)
}

impl fmt::Display for Purged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Purged::Removed(records) => write!(f, "{records} records removed"),
            Purged::Elsewhere => f.write_str("another process sees to it"),
            Purged::Failed(records, error) => write!(f, "{records} records removed, then: {error}"),
        }
    }
}
