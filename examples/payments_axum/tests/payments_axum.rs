//! The example over real sockets: repeated, concurrent, faulty and interrupted requests.

#[path = "../../support/server.rs"]
mod server;

use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use self::server::{PATIENCE, Server};

const PROGRAM: &str = env!("CARGO_BIN_EXE_payments_axum");

async fn start(arguments: &[&str]) -> Server {
    Server::start(PROGRAM, &[&["--port", "0"], arguments].concat()).await
}

fn client() -> Client {
    Client::builder().timeout(PATIENCE).build().unwrap()
}

/// A payment of 7.00 as a form.
fn pay(server: &Server, key: &str, amount: u32) -> RequestBuilder {
    let body = format!("amount={amount}&currency=eur&metadata[order]={key}");
    raw(server, key).header("content-type", "application/x-www-form-urlencoded").body(body)
}

fn raw(server: &Server, key: &str) -> RequestBuilder {
    post(server).bearer_auth("sk_test_1").header("idempotency-key", key)
}

fn post(server: &Server) -> RequestBuilder {
    client().post(server.url("/v1/payment_intents"))
}

async fn body(response: Response) -> Value {
    response.json().await.unwrap()
}

async fn ledger(server: &Server) -> Vec<Value> {
    let response = client().get(server.url("/ledger")).send().await.unwrap();
    response.json().await.unwrap()
}

async fn until_booked(server: &Server) {
    timeout(PATIENCE, async { while ledger(server).await.is_empty() {} }).await.expect("it is booked");
}

#[tokio::test]
async fn a_repeated_payment_is_booked_once_and_answered_the_same() {
    let server = start(&[]).await;
    let first = pay(&server, "o1", 700).send().await.unwrap();
    assert_eq!((first.status(), first.headers().get("idempotency-replayed")), (StatusCode::OK, None));
    let again = pay(&server, "o1", 700).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::OK);
    assert_eq!(again.headers()["idempotency-replayed"], "true");
    let (first, again) = (first.bytes().await.unwrap(), again.bytes().await.unwrap());
    assert_eq!(first, again);

    let other = pay(&server, "o1", 900).send().await.unwrap();
    assert_eq!(other.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(body(other).await["error"]["type"], "idempotency_error");
    let stranger = post(&server).bearer_auth("sk_test_2").header("idempotency-key", "o1");
    let stranger = stranger.json(&json!({ "amount": 700, "currency": "eur" }));
    let stranger = body(stranger.send().await.unwrap()).await;

    let json = json!({ "amount": 5, "currency": "usd", "metadata": { "order": "o2" } });
    let second = body(raw(&server, "o2").json(&json).send().await.unwrap()).await;
    assert_eq!(second["object"], "payment_intent");
    let ledger = ledger(&server).await;
    let booked: Vec<_> = ledger.iter().map(|row| (&row["id"], &row["amount"])).collect();
    let payment: Value = serde_json::from_slice(&first).unwrap();
    assert_eq!(
        booked,
        [(&payment["id"], &json!(700)), (&stranger["id"], &json!(700)), (&second["id"], &json!(5))]
    );
    assert_ne!(ledger[0]["caller"], ledger[1]["caller"]);
    assert_eq!(ledger[2]["metadata"], json!({ "order": "o2" }));
    assert!(!ledger[0].to_string().contains("sk_test"));
}

#[tokio::test]
async fn simultaneous_copies_of_a_payment_are_booked_once_and_agree() {
    let server = start(&["--latency-ms", "500", "--wait-ms", "60000"]).await;
    let copies: Vec<_> = (0..16).map(|_| tokio::spawn(pay(&server, "o1", 700).send())).collect();
    let mut ids = Vec::new();
    for copy in copies {
        let response = copy.await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        ids.push(body(response).await["id"].clone());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(ledger(&server).await.len(), 1);
}

#[tokio::test]
async fn a_faulty_request_books_nothing_and_leaves_its_key_free() {
    let server = start(&[]).await;
    for (name, request, status) in [
        ("amount", pay(&server, "o1", 0), 400),
        ("no key", post(&server).bearer_auth("sk_test_1"), 400),
        ("two keys", pay(&server, "o1", 7).header("idempotency-key", "o2"), 400),
        ("type", raw(&server, "o1").header("content-type", "text/xml").body("<a/>"), 415),
        ("no type", raw(&server, "o1").body("amount=7&currency=eur"), 415),
        ("JSON", raw(&server, "o1").header("content-type", "application/json").body("{"), 400),
        ("too long", raw(&server, "o1").json(&json!({ "a": "x".repeat(3 << 20) })), 413),
        ("caller", post(&server).header("idempotency-key", "o1"), 401),
        ("page", client().post(server.url("/v2/payment_intents")), 404),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status().as_u16(), status, "{name}");
        assert!(body(response).await["error"]["message"].is_string(), "{name}");
    }
    assert_eq!(ledger(&server).await, [json!(null); 0]);
    assert_eq!(pay(&server, "o1", 7).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_nothing() {
    let server = start(&["--latency-ms", "1500", "--wait-ms", "60000"]).await;
    let impatient = timeout(Duration::from_millis(300), pay(&server, "o1", 700).send()).await;
    assert!(impatient.is_err(), "it was answered too soon");
    let again = pay(&server, "o1", 700).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::OK);
    assert_eq!(ledger(&server).await.len(), 1);
}

#[tokio::test]
async fn a_killed_server_never_books_twice() {
    let arguments = ["--latency-ms", "4000", "--lease-ms", "3000", "--wait-ms", "60000"];
    let mut server = start(&arguments).await;
    let lost = tokio::spawn(pay(&server, "o1", 700).send());
    // Between the effect and the answer.
    until_booked(&server).await;
    server.kill();
    lost.await.unwrap().unwrap_err();

    server.restart(&[&["--port", "0"], &arguments[..]].concat()).await;
    assert_eq!(ledger(&server).await.len(), 1);
    // It waits until the lease has ended.
    let again = pay(&server, "o1", 700).send().await.unwrap();
    assert_eq!(again.status(), StatusCode::CONFLICT);
    assert_eq!(body(again).await["error"]["code"], "unresolved");
    assert_eq!(ledger(&server).await.len(), 1);
}

#[tokio::test]
async fn a_payment_under_way_finishes_before_the_server_stops() {
    let mut server = start(&["--latency-ms", "2000"]).await;
    let client = tokio::spawn(pay(&server, "o1", 700).send());
    until_booked(&server).await;
    // Its client is gone, so that only the layer knows of it.
    client.abort();
    assert!(server.terminate().await.success());
    server.restart(&["--port", "0"]).await;
    let again = pay(&server, "o1", 700).send().await.unwrap();
    assert_eq!(
        (again.status(), &again.headers()["idempotency-replayed"]),
        (StatusCode::OK, &"true".parse().unwrap())
    );
    assert_eq!(ledger(&server).await.len(), 1);
}

#[tokio::test]
async fn a_wrong_argument_says_what_to_do() {
    for (arguments, status, said) in [
        (
            &["--store", "oracle://x"][..],
            2,
            "a store is sqlite:PATH, redis://HOST:PORT, postgres://USER@HOST/DATABASE or memory",
        ),
        (&["--store", "redis://127.0.0.1:1"], 1, "cannot open the store"),
        (&["--store", "postgres://postgres@127.0.0.1:1/x"], 1, "cannot open the store"),
        (&["--db", "/nonexistent/payments.db"], 1, "cannot open the ledger /nonexistent/payments.db"),
        (&["--port", "65536"], 2, "--port"),
    ] {
        let output = server::output(PROGRAM, arguments).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
}
