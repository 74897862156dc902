//! The adapter over real sockets.

#[path = "../../support/server.rs"]
mod server;

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tokio::time::timeout;

use self::server::{PATIENCE, Server};

async fn start() -> Server {
    Server::start(env!("CARGO_BIN_EXE_actix_payments"), &["0"]).await
}

fn post(server: &Server, caller: &str) -> RequestBuilder {
    let client = Client::builder().timeout(PATIENCE).build().unwrap();
    client.post(server.url("/payments")).bearer_auth(caller)
}

fn pay(server: &Server, key: &str, payment: Value) -> RequestBuilder {
    post(server, "sk_test_1").header("idempotency-key", key).json(&payment)
}

/// Returns the status, the mark of a stored response, and the body.
async fn send(request: RequestBuilder) -> (u16, bool, Value) {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body = response.text().await.unwrap();
    (status, headers.contains_key("idempotency-replayed"), serde_json::from_str(&body).unwrap_or(json!(body)))
}

async fn ledger(server: &Server) -> Vec<Value> {
    reqwest::get(server.url("/ledger")).await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn a_request_is_executed_once_and_its_copies_get_the_same_answer() {
    let server = start().await;
    let payment = json!({ "amount": 700, "takes_ms": 300 });
    let copies: Vec<_> = (0..8).map(|_| tokio::spawn(send(pay(&server, "o1", payment.clone())))).collect();
    let mut answers = Vec::new();
    for copy in copies {
        answers.push(copy.await.unwrap());
    }
    assert!(answers.iter().all(|(status, _, body)| (*status, body) == (200, &answers[0].2)), "{answers:?}");
    assert_eq!(answers.iter().filter(|(_, replayed, _)| !replayed).count(), 1);
    assert_eq!(ledger(&server).await, [answers[0].2.clone()]);

    let other = send(pay(&server, "o1", json!({ "amount": 900 }))).await;
    assert_eq!((other.0, &other.2["error"]["code"]), (422, &json!("mismatch")));
    let stranger = post(&server, "sk_test_2").header("idempotency-key", "o1").json(&payment);
    assert!(!send(stranger).await.1);
    assert_eq!(ledger(&server).await.len(), 2);
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_nothing() {
    let server = start().await;
    let payment = json!({ "amount": 700, "takes_ms": 2000 });
    let client = tokio::spawn(pay(&server, "o1", payment.clone()).send());
    timeout(PATIENCE, async { while ledger(&server).await.is_empty() {} }).await.expect("it is booked");
    client.abort();
    let (status, replayed, _) = send(pay(&server, "o1", payment)).await;
    assert_eq!((status, replayed, ledger(&server).await.len()), (200, true, 1));
}

#[tokio::test]
async fn a_duplicate_does_not_wait_for_ever() {
    let server = start().await;
    let payment = json!({ "amount": 700, "takes_ms": 9000 });
    let first = tokio::spawn(send(pay(&server, "o1", payment.clone())));
    let second = send(pay(&server, "o1", payment)).await;
    let first = timeout(PATIENCE, first).await.unwrap().unwrap();
    let mut statuses = [first.0, second.0];
    statuses.sort_unstable();
    assert_eq!((statuses, ledger(&server).await.len()), ([200, 409], 1));
}

#[tokio::test]
async fn a_faulty_request_executes_nothing() {
    let server = start().await;
    for (request, status) in [
        (post(&server, "sk_test_1").json(&json!({ "amount": 1 })), 400),
        (pay(&server, "a, b", json!({ "amount": 1 })), 400),
        (pay(&server, "o1", json!({ "amount": 0 })), 400),
        (pay(&server, "o1", json!({ "amount": 1 })).header("idempotency-key", "o2"), 400),
        (Client::new().post(server.url("/payments")).header("idempotency-key", "o1"), 401),
        (pay(&server, "o1", json!({ "amount": 1, "note": "x".repeat(1 << 20) })), 413),
    ] {
        let answer = send(request).await;
        assert_eq!(answer.0, status, "{answer:?}");
    }
    assert_eq!(ledger(&server).await.len(), 0);
    // Nothing of them is kept.
    assert_eq!(send(pay(&server, "o1", json!({ "amount": 1 }))).await.0, 200);
}

#[tokio::test]
async fn a_server_without_requests_ends_at_once() {
    let mut server = start().await;
    // Once it answers, it also handles signals.
    assert_eq!(ledger(&server).await.len(), 0);
    assert!(timeout(PATIENCE, server.terminate()).await.unwrap().success());
}
