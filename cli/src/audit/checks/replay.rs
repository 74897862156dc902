//! Repeated requests, one after the other.

use async_trait::async_trait;
use serde_json::Value;

use super::keys::is_refused;
use crate::audit::check::{
    About, Check, ENFORCEMENT, ERRORS, PROBLEMS, STRIPE, Step, UNIQUENESS, Verdict, ensure,
};
use crate::audit::probe::{Probe, Seen};
use crate::audit::wire::Answer;

/// A repeated request gets the first answer.
pub(in crate::audit) struct Same;

#[async_trait(?Send)]
impl Check for Same {
    fn about(&self) -> About {
        About {
            name: "replay-same",
            says: "A repeated request has no second effect and gets the first answer: same status, same bytes",
            sources: &[ENFORCEMENT, STRIPE],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let before = probe.count().await?;
        let operation = probe.operation();
        let first = probe.first(&operation.shot("first")).await?;
        let second = probe.answer(&operation.shot("repeated")).await?;
        let third = probe.answer(&operation.shot("repeated again")).await?;
        // Effects come first: they matter most.
        let seen = probe.one_effect_each(before, 1, &[&first, &second, &third], "repeated twice").await?;
        probe.same_answer(&first, &second, "repeated")?;
        probe.same_answer(&first, &third, "repeated again")?;
        match (seen, probe.same_operation(&first, &second)) {
            (Seen::Counted, _) => Ok(Verdict::pass("three equal answers, one effect counted")),
            (Seen::ById, _) => Ok(Verdict::pass("three equal answers with one id")),
            (Seen::Unseen, Some(_)) => Ok(Verdict::pass("three equal answers")),
            (Seen::Unseen, None) => Ok(Verdict::not_shown(
                "the answers are equal, but so are those of different operations, and effects are not counted",
            )),
        }
    }
}

/// A replay can be told from a first answer.
pub(in crate::audit) struct Marked;

#[async_trait(?Send)]
impl Check for Marked {
    fn about(&self) -> About {
        About {
            name: "replay-marked",
            says: "A header tells a replay from a first answer",
            sources: &[STRIPE],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let operation = probe.operation();
        probe.first(&operation.shot("first")).await?;
        let again = probe.answer(&operation.shot("repeated")).await?;
        Ok(match probe.mark(&again) {
            Some(mark) => Verdict::pass(mark),
            None => Verdict::advice(
                "a replay looks like a first answer; a header such as Idempotent-Replayed: true helps clients \
                 and support",
            ),
        })
    }
}

/// A key that is used for another payload is refused.
pub(in crate::audit) struct OtherPayload;

#[async_trait(?Send)]
impl Check for OtherPayload {
    fn about(&self) -> About {
        About {
            name: "other-payload-refused",
            says: "Another payload under a used key is refused with 422 or 400, has no effect and learns \
                   nothing of the first one",
            sources: &[UNIQUENESS, ERRORS, STRIPE, PROBLEMS],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        if !probe.spec.has_other() {
            let because = if probe.spec.has_body() {
                "no other payload is known"
            } else {
                "the request has no payload"
            };
            return Ok(Verdict::not_shown(format!("{because}: see --other-data")));
        }
        let before = probe.count().await?;
        let control = probe
            .answer(&probe.operation().shot("the other payload under a key of its own").other_payload())
            .await?;
        if !control.is_success() {
            let status = control.status;
            return Ok(Verdict::not_shown(format!(
                "the other payload alone is answered {status}: give a valid one by --other-data"
            )));
        }
        let operation = probe.operation();
        let first = probe.first(&operation.shot("first")).await?;
        let shot = operation.shot("the other payload under the used key").other_payload();
        let sent = probe.sent(&shot)?;
        let other = probe.answer(&shot).await?;
        if other.is_success() {
            let replayed = probe.same_operation(&first, &other) == Some(true);
            let happened = if replayed { "gets the answer to the first" } else { "is accepted" };
            return Ok(Verdict::fail(format!(
                "another payload under a used key {happened} ({})",
                other.status
            )));
        }
        ensure(other.status < 500, || {
            format!("another payload under a used key is answered {}", other.status)
        })?;
        if let Some(leak) = leaked(probe, &first, &other, &control, &sent) {
            return Ok(Verdict::fail(format!("the refusal gives away {leak} of the first answer")));
        }
        is_refused(&other, "another payload under a used key")?;
        let again = probe.answer(&operation.shot("the first payload again")).await?;
        probe.same_answer(&first, &again, "repeated after the refusal")?;
        probe
            .effects_are(before, 2, &[&control, &first, &again], "with another payload refused", false)
            .await?;
        Ok(match other.status {
            400 | 422 => Verdict::pass(format!("refused with {}", other.status)),
            409 => {
                Verdict::advice("refused with 409, which tells clients to repeat: 422 asks for a correction")
            }
            status => Verdict::advice(format!("refused with {status}: the draft says 422")),
        })
    }
}

/// The shortest text that counts as given away.
const SHORTEST: usize = 8;

/// Returns the place of a value that only the first answer has, and that the refusal repeats. What
/// the refused request `sent` itself is no leak, nor is a time.
fn leaked(probe: &Probe, first: &Answer, refusal: &Answer, control: &Answer, sent: &str) -> Option<String> {
    let text = format!("{:?} {}", refusal.headers, String::from_utf8_lossy(&refusal.body));
    if probe.id(first).is_some_and(|id| id.len() >= SHORTEST && text.contains(&id) && !sent.contains(&id)) {
        return Some("the id".to_owned());
    }
    let known = String::from_utf8_lossy(&control.body).into_owned();
    let value: Value = serde_json::from_slice(&first.body).ok()?;
    let is_leak = |found: &str| {
        let is_told = found.len() >= SHORTEST && text.contains(found);
        is_told && !known.contains(found) && !sent.contains(found) && !is_time(found)
    };
    find(&value, "", &is_leak)
}

fn find(value: &Value, place: &str, is_leak: &dyn Fn(&str) -> bool) -> Option<String> {
    match value {
        Value::String(text) => is_leak(text).then(|| place.to_owned()),
        Value::Object(members) => {
            members.iter().find_map(|(name, value)| find(value, &format!("{place}/{name}"), is_leak))
        }
        Value::Array(values) => values.iter().find_map(|value| find(value, place, is_leak)),
        Value::Null | Value::Bool(_) | Value::Number(_) => None,
    }
}

/// Returns whether a text is a time: a refusal may tell its own, which is that of the first answer
/// if both come in the same second.
fn is_time(text: &str) -> bool {
    let digits = |range: std::ops::Range<usize>| {
        text.get(range).is_some_and(|part| part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let is_date = digits(0..4) && digits(5..7) && digits(8..10) && text.get(4..5) == Some("-");
    let of_a_time = |c: char| c.is_ascii_digit() || "-:.,+ TtZz".contains(c);
    is_date && text.chars().all(of_a_time) || httpdate::parse_http_date(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::is_time;

    #[test]
    fn times_are_known() {
        for time in ["2026-11-26T15:10:05Z", "2026-11-26 15:10:05.123+01:00", "Fri, 31 Dec 1999 23:59:59 GMT"]
        {
            assert!(is_time(time), "{time}");
        }
        for other in ["pay_00000001", "20261126", "2026-11-26-invoice", "äöüäöüäöü"] {
            assert!(!is_time(other), "{other}");
        }
    }
}
