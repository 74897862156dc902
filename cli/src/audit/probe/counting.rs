//! Counting effects, and requiring that there is one of each operation.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::Probe;
use crate::audit::check::{Step, Verdict, ensure};
use crate::audit::evidence::Kind;
use crate::audit::wire::Answer;

/// The failures of the counter, one after the other, after which it is not asked any more.
const COUNT_FAILURES: u32 = 2;
/// The readings that a count may take until it is stable.
const READINGS: u32 = 6;

/// The way in which effects became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::audit) enum Seen {
    Counted,
    /// By the ids in the answers, so only of requests that were answered.
    ById,
    Unseen,
}

impl Probe {
    /// The time after which an effect is counted: as the user says, or longer if that was seen.
    fn settle_time(&self) -> Duration {
        self.settings.settle.max(self.run.lag.get())
    }

    /// Counts the effects, if the user has said how, when those of earlier requests are counted.
    pub(in crate::audit) async fn count(&self) -> Step<Option<i64>> {
        let mut count = self.count_now().await?;
        for _ in 1..READINGS {
            if count.is_none() || !self.run.unsettled.get() {
                break;
            }
            sleep(self.settle_time()).await;
            let now = self.count_now().await?;
            self.run.unsettled.set(now != count);
            count = now;
        }
        self.run.unsettled.set(false);
        Ok(count)
    }

    /// Counts the effects, if the user has said how, as they are counted now.
    pub(in crate::audit) async fn count_now(&self) -> Step<Option<i64>> {
        let Some(counter) = &self.counter else { return Ok(None) };
        let failures = self.run.count_failures.get();
        if failures >= COUNT_FAILURES {
            return Err(Verdict::not_shown("the effects cannot be counted any more"));
        }
        let from = self.now_ms();
        match timeout_at(self.deadline(), counter.count()).await {
            Ok(Ok(count)) => {
                self.run.count_failures.set(0);
                self.note(Kind::Count, from, "effects counted", count.to_string());
                Ok(Some(count))
            }
            Ok(Err(why)) => {
                self.run.count_failures.set(failures + 1);
                Err(Verdict::not_shown(format!("the effects cannot be counted: {why}")))
            }
            Err(_) => Err(self.time_is_over()),
        }
    }

    /// Counts the effects since `before`, after the time that one may take to be counted.
    pub(in crate::audit) async fn effects_since(&self, before: Option<i64>) -> Step<Option<i64>> {
        let Some(before) = before else { return Ok(None) };
        sleep(self.settle_time()).await;
        Ok(self.count_now().await?.map(|now| now - before))
    }

    /// Counts the effects since `before` until they are as many as expected, and no more come. A
    /// count that lags behind gets more time, and its lag is remembered.
    pub(in crate::audit) async fn settled_effects(
        &self,
        before: Option<i64>,
        expected: i64,
    ) -> Step<Option<i64>> {
        let start = Instant::now();
        let Some(mut effects) = self.effects_since(before).await? else { return Ok(None) };
        let mut late = effects < expected;
        for _ in 1..READINGS {
            if effects > expected {
                break;
            }
            let more = if effects < expected { Duration::from_millis(100) } else { Duration::ZERO };
            sleep(more).await;
            let now = self.effects_since(before).await?.unwrap_or(effects);
            if late && now >= expected {
                late = false;
                self.run.lag.set(self.run.lag.get().max(start.elapsed()));
            }
            let stable = now == effects && now >= expected;
            effects = now;
            if stable {
                self.run.unsettled.set(false);
                break;
            }
        }
        Ok(Some(effects))
    }

    /// Requires that as many operations as `expected`, each delivered more than once, had one
    /// effect each.
    pub(in crate::audit) async fn one_effect_each(
        &self,
        before: Option<i64>,
        expected: u32,
        answers: &[&Answer],
        what: &str,
    ) -> Step<Seen> {
        self.effects_are(before, expected, answers, what, true).await
    }

    /// Requires one effect of each of the operations. Those that were `repeated` are tallied.
    pub(in crate::audit) async fn effects_are(
        &self,
        before: Option<i64>,
        expected: u32,
        answers: &[&Answer],
        what: &str,
        repeated: bool,
    ) -> Step<Seen> {
        let operations = i64::from(expected);
        if let Some(effects) = self.settled_effects(before, operations).await? {
            self.tally(repeated, expected, effects - operations);
            let unit = if expected == 1 { "operation" } else { "operations" };
            if effects < operations {
                self.still_counts().await?;
            }
            ensure(effects <= operations, || format!("{what}: {effects} effects of {expected} {unit}"))?;
            ensure(effects == operations, || {
                format!(
                    "{what}: answered with success, but {effects} effects of {expected} {unit} are counted (late ones: --settle-ms)"
                )
            })?;
            return Ok(Seen::Counted);
        }
        let ids: BTreeSet<_> = answers
            .iter()
            .filter(|answer| answer.is_success())
            .filter_map(|answer| self.id(answer))
            .collect();
        if ids.is_empty() {
            return Ok(Seen::Unseen);
        }
        let extra = i64::try_from(ids.len()).unwrap_or(i64::MAX) - operations;
        // An answer that was lost hides its id.
        let all_seen = answers.len() > usize::try_from(expected).unwrap_or(usize::MAX);
        self.tally(repeated && all_seen, expected, extra);
        ensure(extra <= 0, || format!("{what}: {} different ids of {expected} operations", ids.len()))?;
        Ok(Seen::ById)
    }

    /// Requires that a plain operation is counted: a list of one page, for example, stays as long
    /// as it is once it is full.
    async fn still_counts(&self) -> Step<()> {
        let before = self.count().await?;
        self.first(&self.operation().shot("a plain one, to see that the count still rises")).await?;
        match self.settled_effects(before, 1).await? {
            Some(..=0) => Err(Verdict::not_shown(
                "the count does not rise any more, not by a plain operation either: does it count one page of a list?",
            )),
            _ => Ok(()),
        }
    }

    /// Adds operations that were delivered more than once, and their effects too many.
    fn tally(&self, repeated: bool, operations: u32, extra: i64) {
        if !repeated {
            return;
        }
        let mut tally = self.run.tally.get();
        tally.operations += u64::from(operations);
        // An operation counts as doubled once, however many effects it had.
        tally.doubled += u64::try_from(extra).unwrap_or(0).min(u64::from(operations));
        self.run.tally.set(tally);
    }
}
