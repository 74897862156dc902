//! A first try that fails, and a service that dies.

use std::time::Duration;

use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use crate::audit::check::{About, Check, ENFORCEMENT, ERRORS, STRIPE, STRIPE_ERRORS, Step, Verdict, ensure};
use crate::audit::command;
use crate::audit::evidence::Kind;
use crate::audit::probe::{Operation, Pending, Probe, Seen, Shot};
use crate::audit::wire::Answer;

/// A first try that fails does not spoil the key.
pub(in crate::audit) struct FirstTry;

#[async_trait(?Send)]
impl Check for FirstTry {
    fn about(&self) -> About {
        About {
            name: "failing-first-try",
            says: "A first try that ends in a 5xx without an effect can succeed when it is repeated; one with an \
                   effect has no second one",
            sources: &[ENFORCEMENT, STRIPE, STRIPE_ERRORS],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let fail = &probe.settings.fail_headers;
        if fail.is_empty() {
            return Ok(Verdict::not_shown("a first try cannot be made to fail: see --fail-header"));
        }
        let before = probe.count().await?;
        let operation = probe.operation();
        let failed = probe.answer_once(&operation.shot("a first try that fails").with(fail)).await?;
        if failed.status < 500 {
            return Ok(Verdict::not_shown(format!(
                "--fail-header: the try was answered {}, no 5xx",
                failed.status
            )));
        }
        let effects = probe.settled_effects(before, 0).await?;
        // A failure that tells when to repeat is not the last word.
        let again =
            probe.settle_while(&operation.shot("repeated without the failure"), Answer::says_later).await?;
        if again.is_success() {
            return Ok(match effects {
                Some(_) => {
                    probe.one_effect_each(before, 1, &[&again], "failed and repeated").await?;
                    Verdict::pass("the repeat succeeds, one effect in all")
                }
                None => {
                    Verdict::not_shown("the repeat succeeds; a second effect would be known only by a count")
                }
            });
        }
        Ok(Self::unhealed(&again, effects))
    }
}

impl FirstTry {
    /// Judges a repeat that has no success.
    fn unhealed(again: &Answer, effects: Option<i64>) -> Verdict {
        let status = again.status;
        match effects {
            Some(1..) => {
                Verdict::pass(format!("the failed try had its effect, and repeats are answered {status}"))
            }
            Some(_) if again.says_later() => Verdict::advice(format!(
                "nothing happened, and repeats are answered {status}: an operator must resolve the key"
            )),
            Some(_) => Verdict::fail(format!(
                "nothing happened, but repeats get the failure ({status}): the operation can never succeed under its key"
            )),
            None => Verdict::advice(format!(
                "repeats get {status}, which is right only if the failed try had its effect: that is known only by a count"
            )),
        }
    }
}

/// A service that dies does not repeat an effect.
pub(in crate::audit) struct Crash;

/// The time in which a service must start again.
const START: Duration = Duration::from_secs(60);
/// The time that its end may take. A proxy in front of it goes on accepting connections.
const DEATH: Duration = Duration::from_secs(2);
/// The time in which a command must kill it.
const KILL: Duration = Duration::from_secs(30);

#[async_trait(?Send)]
impl Check for Crash {
    fn about(&self) -> About {
        About {
            name: "crash",
            says: "A service that is killed before, after or between effect and answer: a repeat has no second effect",
            sources: &[ENFORCEMENT, ERRORS],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let (Some(kill), Some(start)) = (&probe.settings.kill_cmd, &probe.settings.start_cmd) else {
            return Ok(Verdict::not_shown("the service cannot be killed: see --kill-cmd and --start-cmd"));
        };
        let slow = &probe.settings.slow_headers;
        // An answer that was received must survive.
        let before = probe.count().await?;
        let operation = probe.operation();
        let first = probe.first(&operation.shot("first").with(slow)).await?;
        crash(probe, kill, start).await?;
        let again = recovered(probe, &operation.shot("repeated after the crash")).await?;
        let answers = [&first, &again];
        let seen = probe.effects_are(before, 1, &answers, "killed after the answer", false).await?;
        let counted = seen == Seen::Counted;
        probe.same_answer(&first, &again, "repeated after a crash")?;
        // A crash between effect and answer is the one that matters.
        let (mut hits, mut between, mut waits) = (0, 0, 0);
        for moment in [Moment::Half, Moment::Effect] {
            let before = probe.count().await?;
            let operation = probe.operation();
            let shot = operation.shot(format!("killed {}", moment.name())).with(slow);
            let mut pending = probe.open(&shot, None).await?;
            let happened = moment.wait(probe, &mut pending, before, first.took).await?;
            if pending.open.is_answered().await {
                probe.cut(pending, "answered before the kill".to_owned());
                continue;
            }
            hits += 1;
            between += u32::from(happened);
            crash(probe, kill, start).await?;
            probe.cut(pending, "the service died".to_owned());
            waits += u32::from(after_crash(probe, &operation, before, moment).await?);
        }
        Ok(if !counted {
            Verdict::not_shown("answers survive a crash; second effects are known only by a count")
        } else if hits == 0 {
            Verdict::not_shown(
                "answers survive a crash, but the service was faster than the kill: see --slow-header",
            )
        } else if between == 0 {
            Verdict::not_shown(format!(
                "{hits} crashes under way: no second effect, but none came between effect and answer: see --slow-header"
            ))
        } else if waits > 0 {
            Verdict::pass(format!("{hits} crashes under way: no second effect; {waits} left unresolved"))
        } else {
            Verdict::pass(format!("{hits} crashes under way: no second effect"))
        })
    }
}

/// A moment of a crash.
#[derive(Clone, Copy, PartialEq)]
enum Moment {
    Half,
    Effect,
}

impl Moment {
    fn name(self) -> &'static str {
        match self {
            Moment::Half => "half way",
            Moment::Effect => "when the effect is counted",
        }
    }

    /// Waits for the moment. Returns whether the effect was counted.
    async fn wait(
        self,
        probe: &Probe,
        pending: &mut Pending,
        before: Option<i64>,
        usual: Duration,
    ) -> Step<bool> {
        let start = Instant::now();
        if self == Moment::Half || before.is_none() {
            sleep(usual / 2).await;
            return Ok(false);
        }
        while start.elapsed() < usual * 2 + Duration::from_secs(1) {
            if probe.count_now().await? > before {
                return Ok(true);
            }
            if pending.open.is_answered().await {
                break;
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(false)
    }
}

/// Repeats the operation after a crash. Returns whether it is left unresolved.
async fn after_crash(
    probe: &Probe,
    operation: &Operation,
    before: Option<i64>,
    moment: Moment,
) -> Step<bool> {
    let what = format!("killed {}", moment.name());
    let answer = recovered(probe, &operation.shot(format!("repeated, {what}"))).await?;
    let expected = i64::from(answer.is_success());
    let effects = probe.settled_effects(before, expected).await?.unwrap_or(1);
    ensure(effects <= 1, || format!("{what}: {effects} effects of 1 operation"))?;
    if answer.is_success() {
        ensure(effects == 1, || format!("{what}: answered with success, and no effect is counted"))?;
        return Ok(false);
    }
    // To refuse it until it is resolved is right: no program can know.
    ensure(answer.says_wait() || effects == 1, || format!("{what}: repeats are answered {}", answer.status))?;
    Ok(true)
}

/// Repeats a request after a crash. What a proxy or a dying process does with the first tries is
/// no fault of the service.
async fn recovered(probe: &Probe, shot: &Shot) -> Step<Answer> {
    let began = Instant::now();
    loop {
        let sent = probe.send(shot).await;
        let late = began.elapsed() > START;
        match sent {
            Ok(Ok(answer)) if !matches!(answer.status, 502..=504) || late => break,
            Err(verdict) if !probe.run.down.get() || late => return Err(verdict),
            Ok(Err(failure)) if late => return Err(probe.unanswered("repeated after a crash", &failure)),
            Ok(_) | Err(_) => {
                probe.run.down.set(false);
                sleep(Duration::from_millis(200)).await;
            }
        }
    }
    probe.settle(shot).await
}

/// Kills the service and starts it again.
async fn crash(probe: &Probe, kill: &str, start: &str) -> Step<()> {
    let from = probe.now_ms();
    // Until it is started again: whatever ends the check, a service is not left dead.
    probe.run.killed.set(true);
    command::output(kill, KILL).await.map_err(|why| Verdict::not_shown(format!("--kill-cmd: {why}")))?;
    probe.note(Kind::Crash, from, "--kill-cmd", "killed".to_owned());
    // A process dies a moment after its signal, and accepts connections until then.
    let began = Instant::now();
    while began.elapsed() < DEATH && probe.endpoint.is_reachable().await {
        sleep(Duration::from_millis(10)).await;
    }
    restart(probe, start).await
}

/// Starts a service that was killed.
async fn restart(probe: &Probe, start: &str) -> Step<()> {
    let from = probe.now_ms();
    probe.run.killed.set(false);
    command::start(start).map_err(|why| Verdict::not_shown(format!("--start-cmd: {why}")))?;
    let began = Instant::now();
    while !probe.endpoint.is_reachable().await {
        if began.elapsed() > START {
            probe.run.down.set(true);
            return Err(Verdict::fail("the service does not start again after a crash"));
        }
        sleep(Duration::from_millis(50)).await;
    }
    probe.note(Kind::Crash, from, "--start-cmd", "started again".to_owned());
    Ok(())
}

/// Starts a service again that an ended check left dead.
pub(in crate::audit) async fn revive(probe: &Probe) -> Step<()> {
    let killed = probe.run.killed.replace(false);
    let Some(start) = probe.settings.start_cmd.as_ref().filter(|_| killed) else { return Ok(()) };
    // A process dies a moment after its signal.
    sleep(DEATH / 4).await;
    if probe.endpoint.is_reachable().await { Ok(()) } else { restart(probe, start).await }
}
