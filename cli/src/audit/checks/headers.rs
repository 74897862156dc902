//! The headers of replays.

use async_trait::async_trait;
use http::header::{CONNECTION, DATE, SET_COOKIE};
use http::{HeaderName, HeaderValue};

use crate::audit::check::{About, CONNECTION as SECTION, COOKIES, Check, EXPIRY, Step, Verdict, ensure};
use crate::audit::probe::Probe;
use crate::audit::wire::Answer;

/// A replay sets no cookie of the first answer.
pub(in crate::audit) struct Cookies;

#[async_trait(?Send)]
impl Check for Cookies {
    fn about(&self) -> About {
        About {
            name: "replayed-cookies",
            says: "A replay does not set the cookies of the first answer again, such as a session",
            sources: &[COOKIES],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let control = probe.first(&probe.operation().shot("another operation")).await?;
        let operation = probe.operation();
        let first = probe.first(&operation.shot("first")).await?;
        let again = probe.answer(&operation.shot("repeated")).await?;
        let (fresh, usual, replayed) = (cookies(&first), cookies(&control), cookies(&again));
        if fresh.is_empty() {
            return Ok(Verdict::not_shown("the answers set no cookie"));
        }
        let own = fresh.iter().find(|cookie| !usual.contains(cookie) && replayed.contains(cookie));
        if let Some(cookie) = own {
            let name = cookie.split('=').next().unwrap_or_default();
            return Ok(Verdict::fail(format!(
                "the cookie {name} of the first answer is set again by the replay"
            )));
        }
        Ok(if replayed.is_empty() {
            Verdict::pass("a replay sets no cookie")
        } else if fresh.iter().all(|cookie| usual.contains(cookie)) {
            Verdict::not_shown("every answer sets the same cookies")
        } else {
            Verdict::pass("a replay sets only cookies of its own")
        })
    }
}

/// The cookies that an answer sets, `name=value` each.
fn cookies(answer: &Answer) -> Vec<String> {
    let values = answer.headers.get_all(SET_COOKIE).iter();
    let pair = |value: &HeaderValue| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        value.split(';').next().unwrap_or_default().trim().to_owned()
    };
    values.map(pair).collect()
}

/// Headers that belong to one connection.
const HOP_BY_HOP: [&str; 7] =
    ["connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer", "upgrade"];

/// A replay has no headers of the first connection.
pub(in crate::audit) struct HopByHop;

#[async_trait(?Send)]
impl Check for HopByHop {
    fn about(&self) -> About {
        About {
            name: "hop-by-hop",
            says: "A replay does not repeat headers of the first connection, and has each of its own once",
            sources: &[SECTION],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let close = [(CONNECTION, HeaderValue::from_static("close"))];
        let control = probe.first(&probe.operation().shot("another operation")).await?;
        let operation = probe.operation();
        probe.first(&operation.shot("first, on a connection that closes").with(&close)).await?;
        let again = probe.answer(&operation.shot("repeated, on one that stays")).await?;
        for name in HOP_BY_HOP {
            let stored =
                again.headers.contains_key(name) && again.headers.get(name) != control.headers.get(name);
            ensure(!stored, || format!("the replay has the header {name} of the first connection"))?;
        }
        for name in [DATE, HeaderName::from_static("server"), HeaderName::from_static("content-type")] {
            let count = again.headers.get_all(&name).iter().count();
            ensure(count <= 1, || format!("the replay has the header {name} {count} times"))?;
        }
        Ok(Verdict::pass("the replay has the headers of its own connection"))
    }
}

/// The time for which keys are kept is told.
pub(in crate::audit) struct Expiry;

#[async_trait(?Send)]
impl Check for Expiry {
    fn about(&self) -> About {
        About {
            name: "expiry-told",
            says: "Clients are told for how long a key protects them",
            sources: &[EXPIRY],
        }
    }

    async fn run(&self, probe: &Probe) -> Step<Verdict> {
        let operation = probe.operation();
        let first = probe.first(&operation.shot("first")).await?;
        let again = probe.answer(&operation.shot("repeated")).await?;
        let tells = |name: &HeaderName| {
            let name = name.as_str();
            name.contains("idempoten")
                && ["expir", "ttl", "retention", "valid"].iter().any(|word| name.contains(word))
        };
        let told = first.headers.keys().chain(again.headers.keys()).find(|name| tells(name));
        Ok(match told {
            Some(name) => Verdict::pass(format!("told by the header {name}")),
            None => Verdict::not_shown(
                "no answer tells it; the draft asks for it in the documentation, which an audit cannot read",
            ),
        })
    }
}
