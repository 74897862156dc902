//! Removing what is over its time: [`Engine::purge`], and a purger that runs by itself.

use std::fmt;
use std::time::Duration;

use crate::begin::Begin;
use crate::decide::{Command, Reply};
use crate::engine::{Engine, View};
use crate::error::{Error, StoreError};
use crate::key::KeyError;
use crate::lease::Lease;
use crate::observe::{self, Op};
use crate::policy::{Recovery, Retry};
use crate::request::Request;
use crate::store::{Cursor, Snapshot};
use crate::wake::contain;

/// How a background purger goes about it: see [`Engine::purge_regularly`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PurgePlan {
    /// How long from one purge to the next, over all processes together. **Default 1 min.**
    pub every: Duration,
    /// How many records are removed at a time. **Default 500**; sixteen times as many once the purge is behind.
    pub step: usize,
    /// How long to rest between two steps. **Default 20 ms.** A purge that has taken a quarter of [`every`](PurgePlan::every)
    /// is behind, and rests for 1 ms at most from then on: records go at least as fast as they come.
    pub rest: Duration,
    /// The most records removed in one purge. **Default 1 000 000.** Where there may be more, the next one, on this process or
    /// another, does not wait for [`every`](PurgePlan::every).
    pub limit: u64,
    /// Whether each purge counts what is unresolved, for the gauge `nevertwice_unresolved`, on a
    /// store that is read as a whole for it (Redis) too. **Default no**: then only where the store
    /// [finds](crate::Store::finds_unsettled) it.
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

/// What one purge of [`Engine::purge_regularly`] did.
#[derive(Debug)]
#[non_exhaustive]
pub enum Purged {
    /// It ended, and removed this many records.
    Removed(u64),
    /// It goes on, and has removed this many records so far: told every ten seconds, or every
    /// [`every`](PurgePlan::every) if that is shorter.
    Progress(u64),
    /// Another process sees to it at present, or just did.
    Elsewhere,
    /// It ended early: this many records were removed, then the store said no. The next one goes on.
    Failed(u64, Error),
}

impl Engine {
    /// Removes up to `limit` records whose retention is over, in steps that do not hold up other
    /// calls, and says how many. Run it now and then; a store whose server does it by itself
    /// answers 0.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let removed = engine.purge(10_000).await?;
    /// println!("{removed} records were over their time");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// Evidence of an effect that nobody settled in its time
    /// ([`Policy::unresolved_retention`](crate::Policy::unresolved_retention)) goes too, with a
    /// WARN event and `nevertwice_unsettled_expired_total` where the store can tell.
    ///
    /// # Errors
    /// [`Error::Store`], and [`Error::TimedOut`] if a step of a thousand records takes longer than
    /// the policy's `call_timeout`. What was removed before stays removed.
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

    /// One purge, if no other process is at it or just was; and whether there may be more to remove. `report` is told how it
    /// gets on.
    async fn purge_in_turn(
        &self,
        plan: &PurgePlan,
        report: &mut (impl FnMut(Purged) + Send),
    ) -> (Purged, bool) {
        // A little less than the interval, so that the next turn does not find this one's end.
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
                let detail = "the purger's own operation was tampered with: forget it".to_owned();
                return (Purged::Failed(0, StoreError::Unusable { backend: "engine", detail }.into()), false);
            }
            // There is no room even for this turn: make some, without agreeing with anybody.
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
        // The next one is due after the interval, whoever's turn it is.
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

    /// Refreshes the gauge of what is unresolved.
    async fn count_in_steps(&self, plan: &PurgePlan, turn: &Lease) -> Result<(), Error> {
        let (mut count, mut after) = (0, None);
        loop {
            let (found, next) = self.count_unsettled(after.as_ref(), plan.step.max(1)).await?;
            count += found;
            after = next;
            if after.is_none() {
                observe::unresolved(self, count);
                return Ok(());
            }
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

/// A purger that died is replaced after this time.
const PURGE_LEASE: Duration = Duration::from_secs(60);
/// How often a purge that goes on for long says so.
const PROGRESS: Duration = Duration::from_secs(10);
/// The rest of a purge that is behind: others on the same store come in between.
const LEAST_REST: Duration = Duration::from_millis(1);

/// The operation by which purgers take turns.
pub(super) fn purge_turn() -> Result<Request, KeyError> {
    Request::new(["nevertwice", "background"], "purge").map(Request::internal)
}

impl fmt::Display for Purged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Purged::Removed(records) => write!(f, "{records} records removed"),
            Purged::Progress(records) => write!(f, "{records} records removed so far"),
            Purged::Elsewhere => f.write_str("another process sees to it"),
            Purged::Failed(records, error) => write!(f, "{records} records removed, then: {error}"),
        }
    }
}
