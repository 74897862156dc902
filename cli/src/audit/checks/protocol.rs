//! Methods and versions of HTTP.

use async_trait::async_trait;

use crate::audit::check::{About, Check, METHODS, Step, VERSIONS, Verdict, ensure};
use crate::audit::probe::{Probe, Seen};
use crate::audit::wire::Failure;

/// A key on a GET has no meaning.
pub(in crate::audit) struct Get;

#[async_trait(?Send)]
impl Check for Get {
    fn about(&self) -> About {
        About {
            name: "get-ignored",
            says: "A GET with a used key is answered as one without: the key has no meaning there",
            sources: &[METHODS],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let before = probe.count().await?;
        let operation = probe.operation();
        let first = probe.first(&operation.shot("first")).await?;
        let plain = probe.answer(&operation.shot("GET without a key").get().keys(&[])).await?;
        let keyed = probe.answer(&operation.shot("GET with the used key").get()).await?;
        if let Some(mark) = probe.mark(&keyed) {
            return Ok(Verdict::fail(format!("a GET gets a stored answer ({mark})")));
        }
        ensure(keyed.status == plain.status, || {
            format!("a GET is answered {} with the used key, and {} without", keyed.status, plain.status)
        })?;
        ensure(!keyed.is_success() || keyed.body != first.body || plain.body == first.body, || {
            "a GET gets the stored answer to the first request".to_owned()
        })?;
        probe.one_effect_each(before, 1, &[&first], "a GET with the used key").await?;
        Ok(Verdict::pass(format!("both are answered {}", keyed.status)))
    }
}

/// A repeat by another version of HTTP is a repeat.
pub(in crate::audit) struct Http2;

#[async_trait(?Send)]
impl Check for Http2 {
    fn about(&self) -> About {
        About {
            name: "http2",
            says: "A request by HTTP/2 that is repeated by HTTP/1.1 has one effect and one answer",
            sources: &[VERSIONS],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let before = probe.count().await?;
        let operation = probe.operation();
        let first = match probe.send(&operation.shot("by HTTP/2").http2()).await? {
            Ok(answer) if answer.is_success() => answer,
            Ok(answer) => {
                return Ok(Verdict::not_shown(format!("a request by HTTP/2 is answered {}", answer.status)));
            }
            Err(Failure::NoHttp2 | Failure::Broken(_) | Failure::TimedOut | Failure::Unreachable(_)) => {
                return Ok(Verdict::not_shown("the service does not speak HTTP/2 here"));
            }
        };
        let again = probe.answer(&operation.shot("repeated by HTTP/1.1")).await?;
        let seen = probe.one_effect_each(before, 1, &[&first, &again], "by HTTP/2, then HTTP/1.1").await?;
        probe.same_answer(&first, &again, "by HTTP/2, then HTTP/1.1")?;
        Ok(match (seen, probe.same_operation(&first, &again)) {
            (Seen::Unseen, None) => {
                Verdict::not_shown("answers do not tell operations apart, and effects are not counted")
            }
            _ => Verdict::pass("one answer by both versions"),
        })
    }
}
