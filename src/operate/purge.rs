//! Removal of expired records: [`Engine::purge`], and a purger that runs in the background.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use crate::begin::Begin;
use crate::call::View;
use crate::decide::{Command, Reply};
use crate::engine::Engine;
use crate::error::{Error, StoreError};
use crate::key::KeyError;
use crate::lease::Lease;
use crate::observe::{self, Op};

use crate::record::{Recovery, Retry};
use crate::request::Request;
use crate::store::{Cursor, Snapshot};
use crate::wake::contain;

/// Settings of a background purger: see [`Engine::purge_regularly`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurgePlan {
    /// The interval between two purges, over all processes together. **Default 1 min.**
    pub every: Duration,
    /// The number of records removed in one step. **Default 500**; sixteen times as many once the
    /// purge is behind.
    pub step: usize,
    /// The pause between two steps. **Default 20 ms.** A purge that has taken a quarter of
    /// [`every`](PurgePlan::every) is behind, and pauses for 1 ms at most from then on, so that
    /// records are removed at least as fast as they are written.
    pub rest: Duration,
    /// The number of records removed in one purge at most. **Default 1 000 000.** If there may be
    /// more, the next purge, in this process or another, does not wait for
    /// [`every`](PurgePlan::every).
    pub limit: u64,
    /// True if each purge also counts unresolved operations, for the gauge `nevertwice_unresolved`,
    /// on a store that has to be read completely for it (Redis, PostgreSQL). **Default: false**:
    /// they are counted only if the store [indexes](crate::store::Store::finds_unsettled) them.
    pub count_unresolved: bool,
}

impl Default for PurgePlan {
    fn default() -> PurgePlan {
        PurgePlan {
            every: Duration::from_secs(60),
            step: 500,
            rest: Duration::from_millis(20),
            limit: 1_000_000,
            count_unresolved: false,
        }
    }
}

/// The result of one purge of [`Engine::purge_regularly`].
#[derive(Debug)]
#[non_exhaustive]
pub enum Purged {
    /// The purge ended and removed this many records.
    Removed(u64),
    /// The purge continues and has removed this many records so far. Reported every ten seconds, or
    /// every [`every`](PurgePlan::every) if that is shorter.
    Progress(u64),
    /// Another process is purging, or just did.
    Elsewhere,
    /// The purge ended early: this many records were removed, then the store returned this error.
    /// The next purge continues.
    Failed(u64, Error),
}

impl Engine {
    /// Removes up to `limit` expired records, in steps that do not block other calls, and returns
    /// how many. Run it from time to time. A store whose server removes expired records by itself
    /// returns 0.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let removed = engine.purge(10_000).await?;
    /// println!("{removed} expired records removed");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// Evidence of an effect that no operator settled in time
    /// ([`Policy::unresolved_retention`](crate::Policy::unresolved_retention)) is removed too, with
    /// a WARN event and `nevertwice_unsettled_expired_total` where the store can tell.
    ///
    /// # Errors
    /// [`Error::Store`], and [`Error::TimedOut`] if a step of a thousand records takes longer than
    /// the policy's `call_timeout`. Records removed before stay removed.
    pub async fn purge(&self, limit: usize) -> Result<u64, Error> {
        const STEP: usize = 1000;
        let seen = observe::call(self, Op::Purge, &|| None);
        let purge = observe::in_span(&seen, async {
            let mut purged = 0;
            while purged < limit {
                let step = STEP.min(limit - purged);
                let purge = self.bounded(self.store().purge(step)).await?;
                let removed = usize::try_from(purge.removed).unwrap_or(usize::MAX);
                observe::purged(self, removed);
                observe::expired_unsettled(self, purge.unsettled);
                purged = purged.saturating_add(removed);
                if removed < step {
                    break;
                }
            }
            Ok(purged as u64)
        });
        let purged = purge.await;
        seen.purged(&purged);
        purged
    }

    /// Removes expired records at regular intervals, until the future is dropped: spawn it once in
    /// every process. Of all processes on one store only one purges at a time, and only once per
    /// [`every`](PurgePlan::every). They coordinate through an operation of their own in the store
    /// (scope `nevertwice`). `report` receives the result of each purge.
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
        // A report that panics ends neither the purger nor its task.
        let mut report = move |purged| {
            contain(|| report(purged));
        };
        async move {
            loop {
                let (purged, more) = engine.purge_in_turn(&plan, &mut report).await;
                report(purged);
                let pause = if more { plan.rest } else { plan.every.max(Duration::from_millis(100)) };
                engine.clock().sleep(pause.max(LEAST_REST)).await;
            }
        }
    }

    /// Purges once, unless another process is purging or just did. Returns the result, and true if
    /// there may be more to remove. `report` receives the progress.
    async fn purge_in_turn(
        &self,
        plan: &PurgePlan,
        report: &mut (impl FnMut(Purged) + Send),
    ) -> (Purged, bool) {
        // Slightly less than the interval, so that this time has passed when the next purge is due.
        let pause = plan.every / 10 * 9;
        let turn = match purge_turn() {
            Ok(turn) => turn
                .lease(PURGE_LEASE)
                .retention(pause.saturating_add(PURGE_LEASE))
                .recovery(Recovery::Rerun)
                .max_attempts(u32::MAX),
            Err(error) => return (Purged::Failed(0, error.into()), false),
        };
        let lease = match self.begin_quietly(&turn).await {
            Ok(Begin::Acquired(lease)) => lease,
            Ok(Begin::InProgress(_) | Begin::Failed(_) | Begin::Completed(_)) => {
                return (Purged::Elsewhere, false);
            }
            Ok(Begin::Unresolved(_) | Begin::Mismatch(_)) => {
                let detail = "the purger's own operation has another outcome than it records: forget it";
                return (Purged::Failed(0, Error::Internal { detail }), false);
            }
            // The store has no room even for this operation: remove some records without
            // coordinating with other processes.
            Err(full @ Error::Store(StoreError::Full { .. })) => {
                let step = self.purge(plan.step.max(1)).await;
                let dropped = self.drop_responses(None, plan.step.max(1)).await;
                return (Purged::Failed(step.unwrap_or(0), dropped.err().unwrap_or(full)), false);
            }
            Err(error) => return (Purged::Failed(0, error), false),
        };
        let mut removed = 0;
        let mut result = self.purge_in_steps(plan, &lease, &mut removed, report).await;
        let more = result.is_ok() && removed >= plan.limit;
        if result.is_ok() && !more && self.policy().response_retention.is_some() {
            result = self.drop_responses_in_steps(plan, &lease).await;
        }
        if result.is_ok() && (plan.count_unresolved || self.store().finds_unsettled()) {
            result = self.count_in_steps(plan, &lease).await;
        }
        // The next purge, in any process, is due after the interval.
        let next = if more { Retry::Now } else { Retry::After(pause) };
        match (result, lease.fail("", next).await) {
            (Ok(()), Ok(())) => (Purged::Removed(removed), more),
            (Err(error), _) | (Ok(()), Err(error)) => (Purged::Failed(removed, error), false),
        }
    }

    async fn purge_in_steps(
        &self,
        plan: &PurgePlan,
        turn: &Lease,
        removed: &mut u64,
        report: &mut (impl FnMut(Purged) + Send),
    ) -> Result<(), Error> {
        let start = self.clock().monotonic();
        let progress = plan.every.min(PROGRESS);
        let (mut renewed, mut reported) = (start, start);
        while *removed < plan.limit {
            let is_behind = self.clock().monotonic().saturating_sub(start) >= plan.every / 4;
            let step = if is_behind { plan.step.saturating_mul(16) } else { plan.step };
            let step = usize::try_from(plan.limit - *removed).map_or(step, |left| step.min(left));
            match self.purge(step.max(1)).await? {
                0 => break,
                step => *removed += step,
            }
            self.clock().sleep(if is_behind { plan.rest.min(LEAST_REST) } else { plan.rest }).await;
            let now = self.clock().monotonic();
            if now.saturating_sub(renewed) >= PURGE_LEASE / 6 {
                turn.renew().await?;
                renewed = now;
            }
            if now.saturating_sub(reported) >= progress {
                report(Purged::Progress(*removed));
                reported = now;
            }
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

    /// Counts unresolved operations and sets the gauge.
    async fn count_in_steps(&self, plan: &PurgePlan, turn: &Lease) -> Result<(), Error> {
        let (mut found, mut after) = (HashSet::new(), None);
        loop {
            after = self.find_unsettled(after.as_ref(), plan.step.max(1), &mut found).await?;
            if after.is_none() {
                observe::unresolved(self, found.len() as u64);
                return Ok(());
            }
            self.clock().sleep(plan.rest).await;
            turn.renew().await?;
        }
    }

    /// Drops the responses that are no longer replayed
    /// ([`Policy::response_retention`](crate::Policy::response_retention)) and frees their space.
    /// It reads up to about `limit` records, starting at `after`, and returns the number of dropped
    /// responses and the position at which to continue. The purger of
    /// [`purge_regularly`](Engine::purge_regularly) does this too.
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
        let seen = observe::call(self, Op::DropResponses, &|| None);
        let mut dropped = 0;
        let next = observe::in_span(&seen, self.drop_page(after, limit.max(1), &mut dropped)).await;
        seen.inside(|| observe::responses_dropped(self, dropped));
        seen.purged(&next);
        Ok((dropped, next?))
    }

    async fn drop_page(
        &self,
        after: Option<&Cursor>,
        limit: usize,
        dropped: &mut u64,
    ) -> Result<Option<Cursor>, Error> {
        let page = self.bounded(self.store().scan(after, limit)).await?;
        for (id, record) in page.records {
            let snapshot = Snapshot { record: Some(Box::new(record)), now: page.now };
            let view = View::Found(Box::new((snapshot, Duration::ZERO)));
            let answer = self.execute(&id, &Command::DropResponse, view).await?;
            *dropped += u64::from(answer.reply == Reply::Done { existed: true });
        }
        Ok(page.next)
    }
}

/// The time after which a purger that died is replaced.
const PURGE_LEASE: Duration = Duration::from_secs(60);
/// The interval between two progress reports of a long purge.
const PROGRESS: Duration = Duration::from_secs(10);
/// The pause of a purge that is behind: it lets other callers of the store in between.
const LEAST_REST: Duration = Duration::from_millis(1);

/// The operation through which purgers coordinate.
pub(super) fn purge_turn() -> Result<Request, KeyError> {
    Request::new(["nevertwice", "background"], "purge").map(Request::internal)
}

impl fmt::Display for Purged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Purged::Removed(records) => write!(f, "{records} records removed"),
            Purged::Progress(records) => write!(f, "{records} records removed so far"),
            Purged::Elsewhere => f.write_str("another process is purging"),
            Purged::Failed(records, error) => write!(f, "{records} records removed, then: {error}"),
        }
    }
}
