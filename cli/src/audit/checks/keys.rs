//! Missing, empty, long, quoted and doubled keys.

use async_trait::async_trait;

use crate::audit::check::{
    About, Check, ERRORS, ITEMS, PROBLEMS, SECURITY, STRIPE, SYNTAX, Step, Verdict, ensure,
};
use crate::audit::probe::{Probe, Seen};
use crate::audit::wire::Answer;

/// Lengths of keys: over the usual limit of 255, and over what a column holds.
const LENGTHS: [usize; 2] = [300, 4000];

/// A missing key is refused.
pub(in crate::audit) struct Missing;

#[async_trait(?Send)]
impl Check for Missing {
    fn about(&self) -> About {
        About {
            name: "missing-key",
            says: "A request without a key is refused with 400",
            sources: &[ERRORS, PROBLEMS],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let before = probe.count().await?;
        let answer = probe.answer(&probe.operation().shot("without a key").keys(&[])).await?;
        ensure(answer.status < 500, || format!("a request without a key is answered {}", answer.status))?;
        if answer.is_success() {
            return Ok(Verdict::advice(
                "keys are optional here: a client that forgets one and repeats has two effects",
            ));
        }
        is_refused(&answer, "a request without a key")?;
        refused_without_effect(probe, before, "without a key").await?;
        Ok(match answer.status {
            400 => Verdict::pass("refused with 400"),
            status => Verdict::advice(format!("refused with {status}: the draft says 400")),
        })
    }
}

/// The empty text is no key.
pub(in crate::audit) struct Empty;

#[async_trait(?Send)]
impl Check for Empty {
    fn about(&self) -> About {
        About {
            name: "empty-key",
            says: "An empty key is refused, or treated as missing: it is not a key that all share",
            sources: &[SYNTAX, SECURITY],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let before = probe.count().await?;
        let shot = |label: &str| probe.operation().shot(label).keys(&[""]);
        let first = probe.answer(&shot("with an empty key")).await?;
        ensure(first.status < 500, || format!("an empty key is answered {}", first.status))?;
        if !first.is_success() {
            is_refused(&first, "an empty key")?;
            refused_without_effect(probe, before, "with an empty key").await?;
            return Ok(Verdict::pass(format!("refused with {}", first.status)));
        }
        let second = shot("another operation with an empty key");
        // Another payload is sent only if the service accepts it.
        let (other, mut operations) = (probe.spec.has_other(), 2);
        let second = if other && other_is_valid(probe, &mut operations).await? {
            second.other_payload()
        } else {
            second
        };
        let second = probe.answer(&second).await?;
        let shared = "the empty text is a key: clients that send it share one operation";
        ensure(second.is_success() && probe.same_operation(&first, &second) != Some(true), || {
            shared.to_owned()
        })?;
        if let Some(effects) = probe.settled_effects(before, operations).await? {
            ensure(effects == operations, || {
                format!("{shared} ({effects} effects of {operations} operations)")
            })?;
        } else if probe.same_operation(&first, &second).is_none() {
            return Ok(Verdict::not_shown("it is accepted, and answers do not tell operations apart"));
        }
        Ok(Verdict::advice("an empty key is accepted as if there were none: such a client is not protected"))
    }
}

/// Long keys are refused or told apart to their ends.
pub(in crate::audit) struct Long;

#[async_trait(?Send)]
impl Check for Long {
    fn about(&self) -> About {
        About {
            name: "long-keys",
            says: "Long keys are refused, or differ if only their last character does",
            sources: &[SECURITY, STRIPE],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let mut says = Vec::new();
        for length in LENGTHS {
            let before = probe.count().await?;
            let operation = probe.operation();
            let stem: String = operation.key.chars().cycle().take(length - 1).collect();
            let shot = |end: &str| {
                let key = format!("{stem}{end}");
                probe.operation().shot(format!("a key of {length} characters, ending in {end}")).keys(&[&key])
            };
            let first = probe.answer(&shot("a")).await?;
            ensure(first.status < 500, || {
                format!("a key of {length} characters is answered {}", first.status)
            })?;
            if !first.is_success() {
                is_refused(&first, "a long key")?;
                refused_without_effect(probe, before, "with a long key").await?;
                says.push(format!("{length} characters: refused with {}", first.status));
                continue;
            }
            let second = probe.answer(&shot("b")).await?;
            let same = probe.same_operation(&first, &second);
            ensure(second.is_success() && same != Some(true), || {
                format!(
                    "two keys of {length} characters that differ in the last one are the same key (the second is answered {})",
                    second.status
                )
            })?;
            let seen = probe.effects_are(before, 2, &[&first, &second], "two long keys", false).await?;
            if seen == Seen::Unseen && same.is_none() {
                return Ok(Verdict::not_shown(
                    "answers do not tell operations apart, and effects are not counted",
                ));
            }
            says.push(format!("{length} characters: told apart"));
        }
        Ok(Verdict::pass(says.join("; ")))
    }
}

/// A quoted key is a key, and no other one than the bare key.
pub(in crate::audit) struct Quoted;

#[async_trait(?Send)]
impl Check for Quoted {
    fn about(&self) -> About {
        About {
            name: "quoted-key",
            says: "A key in quotes, as the draft writes it, is accepted; the bare text is the same key or refused",
            sources: &[SYNTAX, ITEMS],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let operation = probe.operation();
        let quoted = format!("\"{}\"", operation.key);
        let first = probe.answer(&operation.shot("a key in quotes").keys(&[&quoted])).await?;
        ensure(first.status < 500, || format!("a key in quotes is answered {}", first.status))?;
        if !first.is_success() {
            return Ok(Verdict::advice(format!(
                "a key in quotes, as the draft writes it, is answered {}",
                first.status
            )));
        }
        let again = probe.answer(&operation.shot("in quotes again").keys(&[&quoted])).await?;
        probe.same_answer(&first, &again, "a key in quotes, repeated")?;
        let bare = probe.answer(&operation.shot("the same key without quotes")).await?;
        ensure(bare.status < 500, || format!("a key without quotes is answered {}", bare.status))?;
        if !bare.is_success() {
            return Ok(Verdict::pass(format!("only in quotes: without them it is answered {}", bare.status)));
        }
        Ok(match probe.same_operation(&first, &bare) {
            Some(true) => Verdict::pass("with or without quotes it is one key"),
            Some(false) => Verdict::advice(
                "the quotes are part of the key: a retry by a client that writes it the other way has a second effect",
            ),
            None => Verdict::not_shown("answers do not tell operations apart"),
        })
    }
}

/// Two keys are refused.
pub(in crate::audit) struct Doubled;

#[async_trait(?Send)]
impl Check for Doubled {
    fn about(&self) -> About {
        About {
            name: "doubled-key",
            says: "A request with two different keys is refused: any choice between them is a guess",
            sources: &[SYNTAX, ITEMS],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let before = probe.count().await?;
        let (one, two) = (probe.operation(), probe.operation());
        let both = probe.answer(&one.shot("with two keys").keys(&[&one.key, &two.key])).await?;
        if both.is_refusal() {
            refused_without_effect(probe, before, "with two keys").await?;
            return Ok(Verdict::pass(format!("refused with {}", both.status)));
        }
        ensure(both.status < 500, || format!("a request with two keys is answered {}", both.status))?;
        if !both.is_success() {
            is_refused(&both, "a request with two keys")?;
        }
        let first = probe.answer(&one.shot("with the first of them")).await?;
        let taken = match probe.same_operation(&both, &first) {
            Some(true) => "the first one counts",
            Some(false) | None => "the first one alone is another operation",
        };
        Ok(Verdict::fail(format!("a request with two keys is accepted ({}); {taken}", both.status)))
    }
}

/// Returns true if the other payload is accepted under a key of its own: one operation more.
async fn other_is_valid(probe: &Probe, operations: &mut i64) -> Step<bool> {
    let shot = probe.operation().shot("the other payload under a key of its own").other_payload();
    let is_valid = probe.answer(&shot).await?.is_success();
    *operations += i64::from(is_valid);
    Ok(is_valid)
}

/// Ends the check as not shown if an answer without success says nothing of the key.
pub(super) fn is_refused(answer: &Answer, what: &str) -> Step<()> {
    if answer.is_refusal() {
        return Ok(());
    }
    Err(Verdict::not_shown(format!("{what} is answered {}, which does not tell of the key", answer.status)))
}

/// Requires that a refused request had no effect.
async fn refused_without_effect(probe: &Probe, before: Option<i64>, what: &str) -> Step<()> {
    let effects = probe.effects_since(before).await?;
    ensure(effects.unwrap_or(0) == 0, || format!("a request {what} is refused, and had an effect"))
}
