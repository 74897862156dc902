//! The example over real sockets: events that are delivered again, at once, forged and late.

#[path = "../../support/server.rs"]
mod server;

use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use sha2::Sha256;
use standardwebhooks::Webhook;
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::server::{PATIENCE, Server};

const PROGRAM: &str = env!("CARGO_BIN_EXE_webhooks_axum");

#[expect(clippy::disallowed_methods, reason = "a signature states the wall clock of its sender")]
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64
}

fn post(server: &Server, path: &str, body: &str) -> RequestBuilder {
    let client = Client::builder().timeout(PATIENCE).build().unwrap();
    client.post(server.url(path)).body(body.to_owned())
}

/// A delivery as a sender of Standard Webhooks makes it.
fn standard(server: &Server, id: &str, at: i64, body: &str) -> RequestBuilder {
    let sender = Webhook::new("whsec_ZGVtby1zZWNyZXQtb2Ytd2ViaG9va3M=").unwrap();
    post(server, "/webhooks/standard", body)
        .header("webhook-id", id)
        .header("webhook-timestamp", at)
        .header("webhook-signature", sender.sign(id, at, body.as_bytes()).unwrap())
}

/// A delivery as Stripe makes it.
fn stripe(server: &Server, at: i64, body: &str) -> RequestBuilder {
    let hmac = Hmac::<Sha256>::new_from_slice(b"whsec_demo").unwrap();
    let signature = hex::encode(hmac.chain_update(format!("{at}.{body}")).finalize().into_bytes());
    post(server, "/webhooks/stripe", body).header("stripe-signature", format!("t={at},v1={signature}"))
}

fn event(id: &str, pending: u32) -> String {
    json!({ "id": id, "type": "invoice.paid", "pending_webhooks": pending }).to_string()
}

/// Returns the status, and whether it was a stored response.
async fn send(request: RequestBuilder) -> (u16, bool) {
    let response: Response = request.send().await.unwrap();
    (response.status().as_u16(), response.headers().contains_key("idempotency-replayed"))
}

/// Returns the events that were handled.
fn handled(server: &Server) -> Vec<Value> {
    let text = std::fs::read_to_string(server.dir().join("events.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn start(arguments: &[&str]) -> Server {
    Server::start(PROGRAM, &[&["--port", "0"], arguments].concat()).await
}

#[tokio::test]
async fn an_event_that_is_delivered_again_is_handled_once() {
    let server = start(&[]).await;
    let at = now();
    assert_eq!(send(stripe(&server, at, &event("evt_1", 2))).await, (200, false));
    // A later attempt, whose body is another.
    assert_eq!(send(stripe(&server, at - 9, &event("evt_1", 1))).await, (200, true));
    assert_eq!(send(stripe(&server, at, &event("evt_2", 1))).await, (200, false));
    let body = json!({ "type": "invoice.paid" }).to_string();
    assert_eq!(send(standard(&server, "msg_1", at, &body)).await, (200, false));
    assert_eq!(send(standard(&server, "msg_1", at - 9, &body)).await, (200, true));
    // An id of one sender says nothing about another's.
    assert_eq!(send(standard(&server, "evt_1", at, &body)).await, (200, false));
    assert_eq!(handled(&server).len(), 4);
}

#[tokio::test]
async fn a_delivery_that_is_not_genuine_is_refused_and_takes_no_key() {
    let server = start(&[]).await;
    let (at, body) = (now(), event("evt_1", 1));
    for (name, request, status) in [
        ("no signature", post(&server, "/webhooks/stripe", &body), 401),
        ("forged", stripe(&server, at, &body).body(event("evt_1", 7)), 401),
        ("too old", stripe(&server, at - 3600, &body), 401),
        ("no id", stripe(&server, at, "{}"), 400),
        ("no JSON", stripe(&server, at, "evt_1"), 400),
        ("too long", stripe(&server, at, &event(&"x".repeat(2 << 20), 1)), 413),
        ("no headers", post(&server, "/webhooks/standard", &body), 401),
        ("forged", standard(&server, "msg_1", at, &body).body("{}"), 401),
        ("too old", standard(&server, "msg_1", at - 3600, &body), 401),
        ("two ids", standard(&server, "msg_1", at, &body).header("webhook-id", "msg_2"), 400),
    ] {
        assert_eq!(send(request).await, (status, false), "{name}");
    }
    assert_eq!(handled(&server), [json!(null); 0]);
    assert_eq!(send(stripe(&server, at, &body)).await, (200, false));
    assert_eq!(send(standard(&server, "msg_1", at, &body)).await, (200, false));
}

#[tokio::test]
async fn a_duplicate_of_an_event_in_progress_is_not_told_that_it_is_dealt_with() {
    let server = start(&["--work-ms", "9000"]).await;
    let (at, body) = (now(), event("evt_1", 1));
    let first = tokio::spawn(send(stripe(&server, at, &body)));
    // One of them is first, and the other waits for 3 s, which is less than the work takes.
    let second = send(stripe(&server, at, &body)).await;
    let first = timeout(PATIENCE, first).await.unwrap().unwrap();
    let mut statuses = [first.0, second.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    assert_eq!(handled(&server).len(), 1);
}

#[tokio::test]
async fn a_receiver_that_is_killed_handles_the_event_when_it_is_delivered_again() {
    let mut server = start(&["--work-ms", "60000", "--lease-ms", "3000"]).await;
    let (at, body) = (now(), event("evt_1", 1));
    let mut deliveries = JoinSet::new();
    deliveries.spawn(stripe(&server, at, &body).send());
    deliveries.spawn(stripe(&server, at, &body).send());
    // Once the duplicate is told to wait, the other one is under way, before its mark.
    let duplicate = deliveries.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(duplicate.status().as_u16(), 409);
    server.kill();
    deliveries.join_next().await.unwrap().unwrap().unwrap_err();
    server.restart(&["--port", "0", "--lease-ms", "3000"]).await;
    // As a sender does, until the lease of the killed process has ended.
    let again = async { while send(stripe(&server, at, &body)).await.0 == 409 {} };
    timeout(PATIENCE, again).await.expect("the lease ends");
    assert_eq!(send(stripe(&server, at, &body)).await, (200, true));
    assert_eq!(handled(&server).len(), 1);
}
