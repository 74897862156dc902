//! Connections that are cut, and clients that give up.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use tokio::time::sleep;

use crate::audit::check::{About, Check, ENFORCEMENT, INCOMPLETE, STRIPE_ERRORS, Step, Verdict, ensure};
use crate::audit::probe::{Probe, Seen};
use crate::audit::wire::Answer;

/// The reason where only a count could tell.
const UNCOUNTED: &str = "repeats are answered well, but the effect of a request whose answer was lost is known only by \
                         a count: see --count-cmd and --count-url";

/// A cut while the answer is awaited.
pub(in crate::audit) struct AfterRequest;

#[async_trait(?Send)]
impl Check for AfterRequest {
    fn about(&self) -> About {
        About {
            name: "cut-after-request",
            says: "A connection that is cut while the answer is awaited, and a repeat: one effect, and an answer",
            sources: &[ENFORCEMENT, STRIPE_ERRORS],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let slow = &probe.settings.slow_headers;
        let latency = if slow.is_empty() {
            probe.baseline.borrow().latency
        } else {
            probe.first(&probe.operation().shot("the usual time").with(slow)).await?.took
        };
        let (mut known, mut hits) = (Seen::Counted, 0);
        for percent in [0, 25, 50, 75, 95] {
            let before = probe.count().await?;
            let operation = probe.operation();
            let what = format!("a cut after {percent} % of the usual time");
            let mut pending = probe.open(&operation.shot(&what).with(slow), None).await?;
            sleep(latency * percent / 100).await;
            let late = pending.open.is_answered().await;
            hits += u32::from(!late);
            probe.cut(pending, if late { "cut, its answer had begun" } else { "cut" }.to_owned());
            let answer = probe.settled(&operation, &what).await?;
            let again = probe.answer(&operation.shot("repeated again")).await?;
            let seen = probe.one_effect_each(before, 1, &[&answer, &again], &what).await?;
            probe.same_answer(&answer, &again, &what)?;
            known = if seen == Seen::Counted { known } else { Seen::Unseen };
        }
        Ok(match known {
            Seen::Counted if hits == 0 => {
                Verdict::not_shown("each answer had begun before its cut: see --slow-header")
            }
            Seen::Counted => Verdict::pass(format!("{hits} cuts under way: one effect each")),
            Seen::ById | Seen::Unseen => Verdict::not_shown(UNCOUNTED),
        })
    }
}

/// A cut before the request is whole.
pub(in crate::audit) struct InRequest;

#[async_trait(?Send)]
impl Check for InRequest {
    fn about(&self) -> About {
        About {
            name: "cut-in-request",
            says: "A request that is cut off has no effect, and does not spoil its key for the whole request",
            sources: &[INCOMPLETE, ENFORCEMENT],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let latency = probe.baseline.borrow().latency;
        let mut cuts = 0;
        let mut counted = true;
        for place in 0..4 {
            let operation = probe.operation();
            let (head, size) = probe.size(&operation.shot(""))?;
            let bytes = [head / 2, head, head + (size - head) / 2, size - 1][place];
            // Without a body, the end of the head is the end of the request.
            if bytes >= size || place == 2 && size < head + 2 {
                continue;
            }
            cuts += 1;
            let before = probe.count().await?;
            let what = format!("a cut after {bytes} of {size} bytes");
            let pending = probe.open(&operation.shot(&what), Some(bytes)).await?;
            // It arrives and is read before the end is seen.
            sleep(Duration::from_millis(20)).await;
            probe.cut(pending, format!("cut after {bytes} bytes"));
            sleep(latency.min(Duration::from_secs(2))).await;
            if let Some(effects) = probe.effects_since(before).await? {
                ensure(effects == 0, || format!("{what}: the part had an effect"))?;
            }
            let answer = probe.settled(&operation, &what).await?;
            let seen = probe.one_effect_each(before, 1, &[&answer], &what).await?;
            counted &= seen == Seen::Counted;
        }
        Ok(if counted {
            Verdict::pass(format!("{cuts} cuts: no effect of a part, one of the whole"))
        } else {
            Verdict::not_shown(UNCOUNTED)
        })
    }
}

/// A cut while the answer is read.
pub(in crate::audit) struct InAnswer;

#[async_trait(?Send)]
impl Check for InAnswer {
    fn about(&self) -> About {
        About {
            name: "cut-in-answer",
            says: "An answer that is cut off at any byte, and a repeat: one effect, and the same answer",
            sources: &[ENFORCEMENT, INCOMPLETE, STRIPE_ERRORS],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        const CUTS: usize = 8;
        let size =
            wire_size(&probe.first(&probe.operation().shot("a whole answer, to know its size")).await?);
        // An answer that is shorter than the first one is not awaited for long.
        let rest = probe.settings.timeout.min(probe.baseline.borrow().latency * 10 + Duration::from_secs(1));
        let before = probe.count().await?;
        let mut answers = Vec::new();
        for cut in 0..CUTS {
            let operation = probe.operation();
            // From the first byte to the last but one.
            let bytes = (size.saturating_sub(2) * cut / (CUTS - 1)).max(1);
            let what = format!("an answer cut after {bytes} bytes");
            let mut pending = probe.open(&operation.shot(&what), None).await?;
            let mut received = pending.open.read(1, probe.settings.timeout).await;
            if !received.is_empty() {
                received.extend(pending.open.read(bytes - 1, rest).await);
            }
            probe.cut(pending, format!("cut after {} bytes of the answer", received.len()));
            ensure(!received.is_empty(), || "a request on a connection is not answered".to_owned())?;
            let answer = probe.settled(&operation, &what).await?;
            begins_with(&answer, &received, &what)?;
            answers.push(answer);
        }
        let all: Vec<_> = answers.iter().collect();
        let cuts = u32::try_from(CUTS).unwrap_or(u32::MAX);
        let seen = probe.one_effect_each(before, cuts, &all, "answers cut off and repeated").await?;
        Ok(match seen {
            Seen::Counted => Verdict::pass(format!("{CUTS} cuts: one effect each")),
            Seen::ById | Seen::Unseen => Verdict::not_shown(UNCOUNTED),
        })
    }
}

/// The size of an answer on the wire, nearly.
fn wire_size(answer: &Answer) -> usize {
    let headers = answer.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    "HTTP/1.1 200 OK\r\n".len() + headers.sum::<usize>() + 2 + answer.body.len()
}

/// The part of an answer behind its interim ones, such as 100 and 103.
fn final_head(mut part: &[u8]) -> &[u8] {
    while part.starts_with(b"HTTP/1.1 1") {
        let end = part.windows(4).position(|four| four == b"\r\n\r\n");
        part = end.map_or(&[], |end| &part[end + 4..]);
    }
    part
}

/// Requires that the part of the first answer is a part of the repeated one, as far as that shows.
fn begins_with(answer: &Answer, part: &[u8], what: &str) -> Step<()> {
    let part = final_head(part);
    let text = String::from_utf8_lossy(part);
    if let Some(status) = text.get("HTTP/1.1 ".len().."HTTP/1.1 200".len()) {
        // It was not taken at all.
        if matches!(status, "429" | "503") {
            return Ok(());
        }
        ensure(status == answer.status.to_string(), || {
            format!("{what}: it began with the status {status}, and is repeated with {}", answer.status)
        })?;
    }
    let chunked = text.to_ascii_lowercase().contains("transfer-encoding");
    let Some(at) = part.windows(4).position(|four| four == b"\r\n\r\n").filter(|_| !chunked) else {
        return Ok(());
    };
    ensure(answer.body.starts_with(&part[at + 4..]), || {
        format!("{what}: the repeated answer has another body")
    })
}

/// A client that gives up, and repeats at once.
pub(in crate::audit) struct ClientTimeOut;

#[async_trait(?Send)]
impl Check for ClientTimeOut {
    fn about(&self) -> About {
        About {
            name: "client-time-out",
            says: "A client that gives up while the service works, and repeats at once and twice: one effect, and \
                   no key that stays blocked",
            sources: &[ENFORCEMENT, STRIPE_ERRORS],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let slow = &probe.settings.slow_headers;
        let usual = probe.first(&probe.operation().shot("the usual time").with(slow)).await?.took;
        if usual < Duration::from_millis(10) {
            let because = format!(
                "the service answers in {} ms, before any time-out: see --slow-header",
                usual.as_millis()
            );
            return Ok(Verdict::not_shown(because));
        }
        let (mut timed_out, mut counted) = (0, true);
        for percent in [30, 60, 85] {
            let before = probe.count().await?;
            let operation = probe.operation();
            let what = format!("a time-out after {percent} % of the usual time");
            let mut pending = probe.open(&operation.shot(&what).with(slow), None).await?;
            sleep(usual * percent / 100).await;
            let answered = pending.open.is_answered().await;
            timed_out += u32::from(!answered);
            probe.cut(pending, if answered { "answered just before" } else { "given up" }.to_owned());
            let shots = [1, 2].map(|n| operation.shot(format!("retry {n}")).with(slow));
            let mut answers = Vec::new();
            for result in join_all(shots.iter().map(|shot| probe.answer(shot))).await {
                answers.push(result?);
            }
            answers.push(probe.settled(&operation, &what).await?);
            let all: Vec<_> = answers.iter().collect();
            let seen = probe.one_effect_each(before, 1, &all, &what).await?;
            counted &= seen == Seen::Counted;
            let bad = answers.iter().find(|answer| !answer.is_success() && !answer.says_wait());
            ensure(bad.is_none(), || {
                format!("{what}: a retry is answered {}", bad.map_or(0, |answer| answer.status))
            })?;
            let done: Vec<_> = answers.iter().filter(|answer| answer.is_success()).collect();
            for pair in done.windows(2) {
                probe.same_answer(pair[0], pair[1], &what)?;
            }
        }
        Ok(if timed_out == 0 {
            Verdict::not_shown("the service was faster than each time-out: see --slow-header")
        } else if counted {
            Verdict::pass(format!("{timed_out} time-outs: one effect each"))
        } else {
            Verdict::not_shown(UNCOUNTED)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interim_answers_are_no_answers() {
        assert_eq!(final_head(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 201"), b"HTTP/1.1 201");
        assert_eq!(final_head(b"HTTP/1.1 100 Continue\r\n"), b"");
        assert_eq!(final_head(b"HTTP/1.1 201 Created\r\n"), b"HTTP/1.1 201 Created\r\n");
    }
}
