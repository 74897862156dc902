//! Copies that arrive at the same time.

use async_trait::async_trait;
use futures_util::future::join_all;

use crate::audit::check::{About, Check, ENFORCEMENT, ERRORS, RETRY_AFTER, STRIPE, Step, Verdict, ensure};
use crate::audit::probe::{Operation, Probe, Seen};
use crate::audit::wire::{Answer, Protocol};

/// The number of tries: a race is not lost each time.
const ROUNDS: u32 = 3;

/// Simultaneous copies have one effect.
pub(in crate::audit) struct Simultaneous;

#[async_trait(?Send)]
impl Check for Simultaneous {
    fn about(&self) -> About {
        About {
            name: "simultaneous-copies",
            says: "Copies that arrive at once have one effect: all get the same answer, or are told to wait by \
                   409 and Retry-After",
            sources: &[ENFORCEMENT, ERRORS, STRIPE, RETRY_AFTER],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let copies = probe.settings.copies;
        let (mut waits, mut unsaid) = (0, 0);
        let mut known = true;
        for _ in 0..ROUNDS {
            let before = probe.count().await?;
            let operation = probe.operation();
            let mut answers = at_once(probe, &operation, copies).await?;
            answers.push(probe.settle(&operation.shot("repeated when all are answered")).await?);
            let what = format!("{copies} copies at once");
            let all: Vec<_> = answers.iter().collect();
            let seen = probe.one_effect_each(before, 1, &all, &what).await?;
            let told: Vec<_> = answers.iter().filter(|answer| answer.says_wait()).collect();
            waits += told.len();
            unsaid += told.iter().filter(|answer| answer.retry_after().is_none()).count();
            let done: Vec<_> = answers.iter().filter(|answer| answer.is_success()).collect();
            let bad = answers.iter().find(|answer| !answer.is_success() && !answer.says_wait());
            ensure(bad.is_none(), || {
                format!("{what}: one is answered {}", bad.map_or(0, |answer| answer.status))
            })?;
            let last = answers.last().filter(|answer| answer.is_success());
            ensure(last.is_some(), || format!("{what}: the key is stuck, repeats are told to wait"))?;
            for pair in done.windows(2) {
                probe.same_answer(pair[0], pair[1], &what)?;
            }
            known &=
                seen != Seen::Unseen || done.len() < 2 || probe.same_operation(done[0], done[1]).is_some();
        }
        if !known {
            return Ok(Verdict::not_shown(
                "all answers agree, but so do those of different operations, and effects are not counted",
            ));
        }
        Ok(if unsaid > 0 {
            Verdict::advice(format!(
                "one effect; {unsaid} of {waits} copies are told to wait without Retry-After"
            ))
        } else if waits > 0 {
            Verdict::pass(format!("{ROUNDS} times {copies} copies: one effect each, {waits} told to wait"))
        } else {
            Verdict::pass(format!("{ROUNDS} times {copies} copies: one effect each, all answers agree"))
        })
    }
}

/// Sends copies on connections that are all ready before.
pub(super) async fn at_once(probe: &Probe, operation: &Operation, copies: u32) -> Step<Vec<Answer>> {
    let mut ready = Vec::new();
    for _ in 0..copies {
        let prepared = probe.prepare(Protocol::Http1).await?;
        ready.push(prepared.map_err(|failure| probe.unanswered("a connection", &failure))?);
    }
    let shots: Vec<_> = (1..=copies).map(|n| operation.shot(format!("copy {n}"))).collect();
    let sent = ready.into_iter().zip(&shots).map(|(ready, shot)| probe.send_on(ready, shot));
    let mut answers = Vec::new();
    for result in join_all(sent).await {
        answers.push(result?.map_err(|failure| probe.unanswered("a copy", &failure))?);
    }
    Ok(answers)
}
