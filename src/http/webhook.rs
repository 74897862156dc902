//! Receivers of webhooks: the places in which senders put the key, and a [`layer`] for them.
//!
//! A webhook is delivered at least once: again after a time-out or an answer other than 2xx, by
//! hand, and sometimes without a reason. Its event has an id, which is the key. Two rules differ
//! from those of an API, and [`layer`] follows them: the body does not count, since it may differ
//! between deliveries of one event; and a duplicate is not refused with a 410, which senders take
//! for a wish to get no more events.
//!
//! ```
//! use nevertwice::http::{Effects, http::request::Parts, webhook};
//! use nevertwice::{Engine, MemoryStore};
//! use std::time::Duration;
//!
//! #[derive(Clone)]
//! struct Verified; // an extension that the check of the signature sets
//!
//! let days = |days: u64| Duration::from_secs(days * 24 * 3600);
//! let engine = Engine::builder(MemoryStore::new()).retry_horizon(days(3)).retention(days(4)).build()?;
//! let once = webhook::layer(engine, Effects::Marked, webhook::stripe(), |parts: &Parts| {
//!     parts.extensions.get::<Verified>().map(|_| "webhooks/stripe")
//! });
//! # Ok::<(), nevertwice::PolicyError>(())
//! ```
//!
//! **Check the signature before the layer**, as you check who calls an API: a request that gets as
//! far as here executes, and takes the key of a genuine event if it is forged. The receiver that
//! the closure returns is the scope of the keys: name the endpoint, and whatever else tells senders
//! apart. Without it the request is refused, so a receiver that is read from an extension of the
//! check makes a forgotten check visible. `examples/webhooks_axum` shows both kinds of signature.
//!
//! # Keys
//!
//! | sender | key | delivers again for |
//! |---|---|---|
//! | [Standard Webhooks][std], Svix | `webhook-id`: [`standard`]; `svix-id`: [`svix`] | about 3 days, as its specification suggests |
//! | [GitHub][gh] | `X-GitHub-Delivery`, with `X-GitHub-Hook-ID`: [`github`] | 3 days, by hand or by the API |
//! | [GitLab][gl] | `Idempotency-Key`: [`gitlab`] | by hand, while it keeps its log |
//! | [Shopify][sh] | `X-Shopify-Event-Id`, with `X-Shopify-Topic`: [`shopify`] | 4 hours |
//! | [Stripe][st] | `id` in the body, `evt_..`: [`stripe`] | 3 days; 30 by hand |
//! | [PayPal][pp] | `id` in the body, `WH-..`: [`paypal`] | 3 days |
//! | [CloudEvents][ce] | `ce-source` with `ce-id`, or these members of a structured event: [`cloudevents`] | its sender says |
//! | any other | [`KeySource::header`], [`KeySource::json_pointer`] | |
//!
//! Make the retention of the engine longer than the last column, or a late delivery is executed
//! again; [`retry_horizon`](crate::EngineBuilder::retry_horizon) checks it. The windows are those
//! of the vendors' documents when this was written.
//!
//! # Queues
//!
//! They do not speak HTTP: begin with a key of your own, as `examples/rabbitmq` does.
//!
//! | queue | key |
//! |---|---|
//! | SQS, SNS with FIFO | the event's own id. `MessageDeduplicationId` removes what the *sender* sends twice within 5 minutes, and no second delivery; a `MessageId` differs between two sends of one event |
//! | Kafka | the event's own id; or topic, partition and offset, if producers are idempotent. Kafka's keys are bytes: [`Key::from_bytes`](crate::Key::from_bytes) |
//! | RabbitMQ | `message_id`, set by the publisher. A delivery tag is new for each delivery |
//!
//! [std]: https://github.com/standard-webhooks/standard-webhooks
//! [gh]: https://docs.github.com/en/webhooks/using-webhooks/best-practices-for-using-webhooks
//! [gl]: https://docs.gitlab.com/user/project/integrations/webhooks/#delivery-headers
//! [sh]: https://shopify.dev/docs/apps/build/webhooks/ignore-duplicates
//! [st]: https://docs.stripe.com/webhooks#handle-duplicate-events
//! [pp]: https://developer.paypal.com/api/rest/webhooks/
//! [ce]: https://github.com/cloudevents/spec/blob/main/cloudevents/spec.md#id

mod cloudevents;

use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, Response, StatusCode};

pub use self::cloudevents::cloudevents;
use super::key_source::{KeySource, RequestFingerprint};
use super::layer::IdempotencyLayer;
use super::protocol::{Effects, MAX_KEY_BYTES, Problem, parse_key};
use crate::engine::Engine;
use crate::key::{KeyError, Scope};

/// A layer for a receiver of webhooks.
///
/// It is an [`IdempotencyLayer`] with these settings, each of which can be changed afterwards:
///
/// * the key is in `key`, and a delivery without one is refused with a 400;
/// * the body is no part of the fingerprint;
/// * a duplicate waits for 3 s at most for the delivery in progress, since Shopify gives up after 5
///   s, and then gets a 409: a 2xx would tell the sender that the event is dealt with, although it
///   may still fail;
/// * a duplicate whose response is no longer kept gets its status without a body, instead of 410.
///
/// `receiver` returns the scope of the keys: the endpoint, once the signature is checked. See
/// [`IdempotencyLayer::new`].
pub fn layer<F, S>(engine: Engine, effects: Effects, key: KeySource, receiver: F) -> IdempotencyLayer
where
    F: Fn(&Parts) -> Option<S> + Send + Sync + 'static,
    S: TryInto<Scope>,
    KeyError: From<S::Error>,
{
    IdempotencyLayer::new(engine, effects, receiver)
        .key(key)
        .fingerprint(RequestFingerprint::path())
        .wait(Duration::from_secs(3))
        .problem(without_gone)
}

/// Replaces a 410, by which a receiver tells senders to disable it.
fn without_gone(problem: &Problem, response: Response<Bytes>) -> Response<Bytes> {
    let Problem::ResponseNotKept(envelope) = problem else { return response };
    let mut bare = Response::new(Bytes::new());
    *bare.status_mut() = StatusCode::from_u16(envelope.status).unwrap_or(StatusCode::OK);
    bare
}

/// The id of a [Standard Webhook][doc], `webhook-id: msg_..`: the same for every delivery of an
/// event.
///
/// [doc]: https://github.com/standard-webhooks/standard-webhooks
pub fn standard() -> KeySource {
    KeySource::header(HeaderName::from_static("webhook-id"))
}

/// The id of a webhook of [Svix][doc], `svix-id: msg_..`.
///
/// [doc]: https://docs.svix.com/receiving/verifying-payloads/how-manual
pub fn svix() -> KeySource {
    KeySource::header(HeaderName::from_static("svix-id"))
}

/// The delivery of [GitHub][doc], `X-GitHub-Delivery`, together with the hook,
/// `X-GitHub-Hook-ID`: a redelivery repeats both, and the hooks of a repository, an organisation
/// and an app share the first.
///
/// [doc]: https://docs.github.com/en/webhooks/using-webhooks/best-practices-for-using-webhooks
pub fn github() -> KeySource {
    joined(["x-github-hook-id", "x-github-delivery"])
}

/// The key of [GitLab][doc], `Idempotency-Key`: the same for every retry (GitLab 17.4 and later).
///
/// [doc]: https://docs.gitlab.com/user/project/integrations/webhooks/#delivery-headers
pub fn gitlab() -> KeySource {
    KeySource::default()
}

/// The event of [Shopify][doc], `X-Shopify-Event-Id`, together with `X-Shopify-Topic`: one event
/// may have several topics. `X-Shopify-Webhook-Id` is that of a delivery.
///
/// [doc]: https://shopify.dev/docs/apps/build/webhooks/ignore-duplicates
pub fn shopify() -> KeySource {
    joined(["x-shopify-topic", "x-shopify-event-id"])
}

/// The id of [Stripe's event][doc] in the body, `evt_..`. The rest of the body may differ between
/// deliveries (`pending_webhooks`).
///
/// [doc]: https://docs.stripe.com/webhooks#handle-duplicate-events
pub fn stripe() -> KeySource {
    KeySource::json_pointer("/id")
}

/// The id of [PayPal's notification][doc] in the body, `WH-..`. `PAYPAL-TRANSMISSION-ID` is that of
/// a delivery.
///
/// [doc]: https://developer.paypal.com/api/rest/webhooks/
pub fn paypal() -> KeySource {
    KeySource::json_pointer("/id")
}

/// Two headers, both of which a delivery must have.
fn joined(names: [&'static str; 2]) -> KeySource {
    let names = names.map(HeaderName::from_static);
    KeySource::head(move |parts| {
        let value = |name| parse_key(parts.headers.get_all(name).iter().map(|value| value.as_bytes()));
        let (first, second) = (value(&names[0])?, value(&names[1])?);
        Ok(first.zip(second).map(|(first, second)| join(&first, &second)))
    })
}

/// Joins two texts to one key. Different pairs have different keys.
fn join(first: &str, second: &str) -> String {
    let joined = format!("{}:{first}{second}", first.len());
    if joined.len() <= MAX_KEY_BYTES {
        return joined;
    }
    // Shorter keys begin with a digit.
    format!("blake3:{}", blake3::hash(joined.as_bytes()).to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::protocol::KeyFault;
    use http::Request;

    pub(super) type Found = Result<Option<String>, KeyFault>;

    pub(super) fn find(source: &KeySource, headers: &[(&str, &str)], body: &str) -> Found {
        let mut request = Request::post("/hook");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, body) = request.body(Bytes::copy_from_slice(body.as_bytes())).unwrap().into_parts();
        source.find(&parts, &body)
    }

    pub(super) fn key(text: &str) -> Found {
        Ok(Some(text.to_owned()))
    }

    #[test]
    fn a_single_header_is_the_key() {
        let id = ("webhook-id", "msg_2KWPBgLlAfxdpx2AI54pPJ85f4W");
        assert_eq!(find(&standard(), &[id, ("webhook-timestamp", "1674087231")], "{}"), key(id.1));
        assert_eq!(find(&standard(), &[("svix-id", id.1)], "{}"), Ok(None));
        assert_eq!(find(&standard(), &[id, id], "{}"), Err(KeyFault::Repeated));
        assert_eq!(find(&svix(), &[("svix-id", "msg_p5jXN8AQM9LWM0D4loKWxJek")], "{}"), {
            key("msg_p5jXN8AQM9LWM0D4loKWxJek")
        });
        let gitlab_key = "f5e5f430-f57b-4e6e-9fac-d9128cd7232f";
        let headers = [
            ("Idempotency-Key", gitlab_key),
            ("X-Gitlab-Webhook-UUID", "a7ca1c1e-2b8a-4a3d-b7d3-6ff9ebd5bf43"),
            ("X-Gitlab-Event-UUID", "13792a34-cac6-4fda-95a8-c58e00a3954e"),
        ];
        assert_eq!(find(&gitlab(), &headers, "{}"), key(gitlab_key));
        assert!(standard().is_early() && github().is_early() && shopify().is_early());
    }

    #[test]
    fn hooks_and_topics_that_share_an_id_have_keys_of_their_own() {
        let delivery = ("X-GitHub-Delivery", "72d3162e-cc78-11e3-81ab-4c9367dc0958");
        let hook = |id: &str| find(&github(), &[delivery, ("X-GitHub-Hook-ID", id)], "{}");
        assert_eq!(hook("292430182"), key("9:29243018272d3162e-cc78-11e3-81ab-4c9367dc0958"));
        assert_ne!(hook("292430182"), hook("292430183"));
        assert_eq!(find(&github(), &[delivery], "{}"), Ok(None));

        let event = ("X-Shopify-Event-Id", "98880550-7158-44d4-b7cd-2c97c8a091b5");
        let topic = |topic: &str| {
            let delivery = ("X-Shopify-Webhook-Id", "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043");
            find(&shopify(), &[event, delivery, ("X-Shopify-Topic", topic)], "{}")
        };
        assert_eq!(topic("orders/create"), key("13:orders/create98880550-7158-44d4-b7cd-2c97c8a091b5"));
        assert_ne!(topic("orders/create"), topic("orders/paid"));
        assert_eq!(find(&shopify(), &[event, event, ("X-Shopify-Topic", "a")], ""), Err(KeyFault::Repeated));
    }

    #[test]
    fn the_id_of_a_body_is_the_key_whatever_else_differs() {
        let event = |pending: u32| {
            format!(
                r#"{{"id": "evt_1NG8Du2eZvKYlo2CUI79vXWy", "object": "event", "api_version":
                "2019-02-19", "created": 1686089970, "livemode": false, "pending_webhooks": {pending},
                "request": {{"id": null, "idempotency_key": null}}, "type": "setup_intent.created"}}"#
            )
        };
        for pending in [0, 3] {
            assert_eq!(find(&stripe(), &[], &event(pending)), key("evt_1NG8Du2eZvKYlo2CUI79vXWy"));
        }
        let sale = r#"{"id": "WH-36G56432PK518391U-9HW18392D95289106", "create_time":
            "2015-06-01T20:21:13Z", "resource_type": "sale", "event_type": "PAYMENT.SALE.COMPLETED",
            "resource": {"id": "2FY57107YS3937627"}}"#;
        let transmission = ("PAYPAL-TRANSMISSION-ID", "d938e770-8046-11e6-8103-6b62a8a99ac4");
        assert_eq!(find(&paypal(), &[transmission], sale), key("WH-36G56432PK518391U-9HW18392D95289106"));
        for nothing in ["", "{}", "[]", "no JSON", r#"{"id": null}"#, r#"{"object": {"id": "evt_1"}}"#] {
            assert_eq!(find(&stripe(), &[], nothing), Ok(None), "{nothing}");
        }
        assert_eq!(find(&stripe(), &[], r#"{"id": 7}"#), Err(KeyFault::NotText));
        assert_eq!(find(&stripe(), &[], r#"{"id": ""}"#), Err(KeyFault::Empty));
        assert_eq!(find(&stripe(), &[], r#"{"id": "evt\n"}"#), Err(KeyFault::Characters));
    }

    #[test]
    fn different_pairs_have_different_keys_of_a_permitted_length() {
        let texts = ["", "1", "1:", ":1", "11", "a", "1:a", "é", &"x".repeat(251), &"x".repeat(300)];
        let mut keys: Vec<String> =
            texts.iter().flat_map(|first| texts.iter().map(|second| join(first, second))).collect();
        assert!(keys.iter().all(|key| key.len() <= MAX_KEY_BYTES));
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), texts.len() * texts.len());
    }

    #[test]
    fn a_response_that_is_not_kept_is_no_410() {
        let gone = Response::builder().status(410).body(Bytes::from_static(b"{}")).unwrap();
        let shown = without_gone(&Problem::ResponseNotKept(super::super::protocol::Envelope::new(204)), gone);
        assert_eq!((shown.status(), shown.body().len()), (StatusCode::NO_CONTENT, 0));
        let busy = Response::builder().status(409).body(Bytes::from_static(b"{}")).unwrap();
        assert_eq!(without_gone(&Problem::InProgress, busy).status(), StatusCode::CONFLICT);
    }
}
