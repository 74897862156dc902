//! Keys of different callers.

use async_trait::async_trait;

use crate::audit::check::{About, Check, SECURITY, Step, Verdict, ensure};
use crate::audit::probe::{Probe, Seen};

/// A key belongs to its caller.
pub(in crate::audit) struct OtherCaller;

#[async_trait(?Send)]
impl Check for OtherCaller {
    fn about(&self) -> About {
        About {
            name: "other-caller",
            says: "The same key of another caller is another key: it reads nothing, and is not blocked",
            sources: &[SECURITY],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let others = &probe.settings.other_headers;
        if others.is_empty() {
            return Ok(Verdict::not_shown("no other caller is known: see --other-header"));
        }
        let before = probe.count().await?;
        let control = probe
            .answer(&probe.operation().shot("the other caller, with a key of its own").with(others))
            .await?;
        if !control.is_success() {
            let status = control.status;
            return Ok(Verdict::not_shown(format!(
                "the other caller is answered {status}, also with a key of its own"
            )));
        }
        // A count may be of one caller's effects: its own list, for example.
        let counts_both = probe.settled_effects(before, 1).await? != Some(0);
        let before = probe.count().await?;
        let operation = probe.operation();
        let first = probe.first(&operation.shot("first")).await?;
        let other = probe.answer(&operation.shot("the other caller, with the same key").with(others)).await?;
        ensure(other.is_success(), || {
            format!(
                "the other caller is answered {}: it learns that the key is used, and is blocked by it",
                other.status
            )
        })?;
        let same = probe.same_operation(&first, &other);
        ensure(same != Some(true), || "the other caller reads the answer of the first one".to_owned())?;
        let (expected, answers) = if counts_both { (2, &[&first, &other][..]) } else { (1, &[&first][..]) };
        let seen = probe.effects_are(before, expected, answers, "the same key of two callers", false).await?;
        Ok(if same.is_none() && (seen == Seen::Unseen || !counts_both) {
            Verdict::not_shown(
                "answers do not tell operations apart, and effects of the other caller are not counted",
            )
        } else {
            Verdict::pass("both callers have their own operation")
        })
    }
}
