//! The first requests: does the service accept them, how fast is it, do its answers differ, does
//! the count count?

use super::Problem;
use super::check::{Step, Verdict};
use super::evidence::Event;
use super::probe::{Baseline, Probe, Shot, told};
use super::secrets::tamed;
use super::wire::{Answer, Failure};

/// The number of plain operations.
const OPERATIONS: i64 = 3;

/// Sends plain requests under fresh keys, and learns from them.
///
/// # Errors
/// Usage, if the service does not accept the request or the count does not count; unreachable, if
/// it does not answer.
pub(super) async fn take(probe: &Probe) -> Result<Vec<Event>, Problem> {
    probe.begin("baseline".to_owned());
    let all = tokio::time::timeout_at(probe.deadline(), measured(probe)).await;
    all.unwrap_or_else(|_| Err(Problem::unreachable(probe.time_is_over().because)))?;
    Ok(probe.take_events())
}

async fn measured(probe: &Probe) -> Result<(), Problem> {
    let before = count(probe).await?;
    let mut answers = Vec::new();
    for _ in 0..OPERATIONS {
        let shot = probe.operation().shot("a plain request");
        let answer = match sent(probe, &shot).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(failure)) => return Err(unanswered(probe, &failure)),
            Err(verdict) if probe.run.down.get() => {
                return Err(Problem::Unreachable(format!(
                    "{}: {}",
                    probe.endpoint.authority, verdict.because
                )));
            }
            Err(verdict) => return Err(ended(probe, verdict)),
        };
        accepted(probe, &answer)?;
        answers.push(answer);
    }
    counted(probe, before).await?;
    let mut latencies: Vec<_> = answers.iter().map(|answer| answer.took).collect();
    latencies.sort();
    let ids: Vec<_> = answers.iter().map(|answer| probe.id(answer)).collect();
    if probe.settings.id_pointer.is_some() && ids.iter().any(Option::is_none) {
        return Err(Problem::usage("--id-pointer: the answers have nothing there"));
    }
    if ids[0].is_some() && ids[0] == ids[1] {
        return Err(Problem::usage("--id-pointer: different operations have the same id there"));
    }
    let distinct = answers[0].body != answers[1].body && answers[1].body != answers[2].body;
    *probe.baseline.borrow_mut() = Baseline { latency: latencies[1], distinct };
    Ok(())
}

/// Sends a request, again if the service takes none for now.
async fn sent(probe: &Probe, shot: &Shot) -> Step<Result<Answer, Failure>> {
    match probe.send(shot).await? {
        Ok(answer) if answer.is_overload() => probe.answer(shot).await.map(Ok),
        sent => Ok(sent),
    }
}

async fn count(probe: &Probe) -> Result<Option<i64>, Problem> {
    probe.count().await.map_err(|verdict| ended(probe, verdict))
}

/// The problem that a verdict tells of before there is any check.
fn ended(probe: &Probe, verdict: Verdict) -> Problem {
    if tokio::time::Instant::now() >= probe.deadline() {
        Problem::Unreachable(verdict.because)
    } else {
        Problem::Usage(verdict.because)
    }
}

fn unanswered(probe: &Probe, failure: &Failure) -> Problem {
    let why = match failure {
        Failure::TimedOut => format!("no whole answer within {} ms", probe.settings.timeout.as_millis()),
        failure => told(failure),
    };
    Problem::Unreachable(probe.secrets.hide_line(&format!("{}: {why}", probe.endpoint.authority)))
}

fn accepted(probe: &Probe, answer: &Answer) -> Result<(), Problem> {
    if probe.mark(answer).is_some() {
        return Err(Problem::usage(
            "a request under a fresh key is marked as a replay: was this --seed used before?",
        ));
    }
    if answer.is_success() {
        return Ok(());
    }
    if (300..400).contains(&answer.status) {
        let place = answer.headers.get(http::header::LOCATION).map(|place| {
            let place = String::from_utf8_lossy(place.as_bytes());
            tamed(&probe.secrets.hide_header(&http::header::LOCATION, &place))
        });
        return Err(Problem::Usage(format!(
            "the request as described is answered {}, which sends it elsewhere ({}): give that address",
            answer.status,
            place.as_deref().unwrap_or("no Location")
        )));
    }
    let body = tamed(&probe.secrets.hide_body(&answer.body, 300));
    Err(Problem::Usage(format!(
        "the request as described is answered {}, so that nothing can be audited: {body}\n\
         If it may happen only once, put {{{{unique}}}} in its place",
        answer.status
    )))
}

/// Requires that the operations were counted, and nothing else.
async fn counted(probe: &Probe, before: Option<i64>) -> Result<(), Problem> {
    let Some(before) = before else { return Ok(()) };
    let effects = probe
        .settled_effects(Some(before), OPERATIONS)
        .await
        .map_err(|verdict| ended(probe, verdict))?
        .unwrap_or_default();
    if effects == OPERATIONS {
        return Ok(());
    }
    let hint = if effects < OPERATIONS {
        "does it count these effects, or late (see --settle-ms)?"
    } else {
        "does another client use the service, or is more than one thing counted for a request?"
    };
    Err(Problem::Usage(format!("{OPERATIONS} plain operations changed the count by {effects}: {hint}")))
}
