//! The rows of the table "Before the handler".

use std::sync::Arc;
use std::time::Duration;

use axum::http::request::Parts;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use nevertwice::http::{Effects, IdempotencyLayer, KeySource, RequestFingerprint, webhook};
use nevertwice::testing::{Fault, FaultyStore};
use nevertwice::{Begin, Engine, Fingerprint, MemoryStore, Request, Resolution, Retry, Scope};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

#[tokio::test]
async fn other_methods_and_requests_without_a_key_pass_through_where_keys_are_optional() {
    let server = serve(layer(memory(), Effects::Marked).optional(), charge).await;
    for ask in [
        post("k").method("GET"),
        post("k").method("PUT"),
        post("k").method("DELETE"),
        post("k").method("OPTIONS"),
        post("").without_key(),
    ] {
        for _ in 0..2 {
            let answer = ask.send(&server).await;
            assert_eq!((answer.status, answer.is_replayed()), (201, false));
            assert!(answer.header("set-cookie").is_some());
        }
    }
    assert_eq!(server.shop.charges(), 10);
    assert!(!post("k").send(&server).await.is_replayed());
    assert!(post("k").send(&server).await.is_replayed());
    // Even where it is optional, a malformed key is refused.
    assert_eq!(post("").send(&server).await.problem(), "malformed-key");
}

#[tokio::test]
async fn listed_methods_need_a_key() {
    let layer = layer(memory(), Effects::Marked).methods([Method::PUT]);
    let server = serve(layer, charge).await;
    let missing = post("").without_key();
    let answer = missing.clone().method("PUT").send(&server).await;
    assert_eq!((answer.status, &answer.problem()[..]), (400, "missing-key"));
    assert_eq!(missing.send(&server).await.status, 201); // POST is not listed here
    assert_eq!(server.shop.charges(), 1);
}

#[tokio::test]
async fn s4_a_malformed_key_is_refused_before_the_body_is_read() {
    let server = serve(layer(memory(), Effects::Marked), charge).await;
    let long = "k".repeat(256);
    for key in ["", "\"\"", &long, "a,b", "a, b", "a\"b", "\"a", "\"a\", \"b\"", "\u{e9}", "a\tb"] {
        // The body never comes: an answer shows that it is not awaited.
        let head = format!(
            "POST /pay HTTP/1.1\r\nhost: test\r\nconnection: close\r\nexpect: 100-continue\r\n\
             content-length: 9\r\nidempotency-key: {key}\r\n\r\n"
        );
        let answer = exchange(server.address, head.as_bytes(), usize::MAX).await;
        assert!(!answer.starts_with(b"HTTP/1.1 100"), "{key:?}");
        let answer = parse(&answer);
        assert_eq!((answer.status, &answer.problem()[..]), (400, "malformed-key"), "{key:?}");
        assert!(!answer.text().contains("a,b"), "the problem repeats the key");
    }
    let twice = post("a").header("idempotency-key", "a").send(&server).await;
    assert_eq!((twice.status, &twice.problem()[..]), (400, "malformed-key"));
    assert_eq!(server.shop.charges(), 0);
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it_once_its_key_is_good() {
    let server = serve(layer(memory(), Effects::Marked), charge).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = "POST /pay HTTP/1.1\r\nhost: test\r\nconnection: close\r\nexpect: 100-continue\r\n\
                content-length: 2\r\nidempotency-key: k\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 25];
    within("100", stream.read_exact(&mut first)).await.unwrap();
    assert!(first.starts_with(b"HTTP/1.1 100 Continue\r\n"));
    stream.write_all(b"{}").await.unwrap();
    let mut rest = Vec::new();
    within("the answer", stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(parse(&rest).status, 201);
}

#[tokio::test]
async fn quoted_and_bare_keys_are_one_key() {
    let server = serve(layer(memory(), Effects::Marked), charge).await;
    let first = post("8d7f").send(&server).await;
    let quoted = post("\"8d7f\"").send(&server).await;
    assert_eq!((first.body, quoted.is_replayed()), (quoted.body.clone(), true));
}

#[tokio::test]
async fn s7_without_a_caller_nothing_is_executed() {
    let server = serve(layer(memory(), Effects::Marked), charge).await;
    let answer = post("k").header("x-account", "nobody").send(&server).await;
    assert_eq!((answer.status, &answer.problem()[..]), (500, "no-caller"));
    // A caller that is no scope is none.
    let unnamed = IdempotencyLayer::new(memory(), Effects::Marked, |_: &Parts| Some(String::new()));
    let unnamed = serve(unnamed, charge).await;
    assert_eq!(post("k").send(&unnamed).await.problem(), "no-caller");
    assert_eq!(server.shop.charges() + unnamed.shop.charges(), 0);
}

#[tokio::test]
async fn s7_another_callers_key_is_another_key_and_reads_nothing() {
    let server = serve(layer(memory(), Effects::Marked), charge).await;
    let mine = post("k").send(&server).await;
    let theirs = post("k").header("x-account", "acct_2").body("other").send(&server).await;
    assert_eq!((mine.status, theirs.status, theirs.is_replayed()), (201, 201, false));
    assert_ne!(mine.body, theirs.body);
    assert_eq!(server.shop.charges(), 2);
    // Parts of a caller are apart.
    let parts = |parts: &Parts| Scope::new(parts.headers["x-parts"].to_str().unwrap().split(',')).ok();
    let server = serve(IdempotencyLayer::new(memory(), Effects::Marked, parts), charge).await;
    for parts in ["a,bc", "ab,c"] {
        assert!(!post("k").header("x-parts", parts).send(&server).await.is_replayed());
    }
}

#[tokio::test]
async fn a_body_that_is_too_long_or_breaks_off_begins_nothing() {
    let server = serve(layer(memory(), Effects::Marked).max_body(64), charge).await;
    let long = post("k").body(vec![b'a'; 65]).send(&server).await;
    assert_eq!((long.status, &long.problem()[..]), (413, "body-too-large"));
    // Announced: refused before the body comes.
    let announced = "POST /pay HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: 999999999\r\n\
                     idempotency-key: k\r\n\r\n";
    let answer = parse(&exchange(server.address, announced.as_bytes(), usize::MAX).await);
    assert_eq!((answer.status, &answer.problem()[..]), (413, "body-too-large"));
    // Endless, in chunks.
    let head = "POST /pay HTTP/1.1\r\nhost: test\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\
                idempotency-key: k\r\n\r\n";
    let chunks = "10\r\naaaaaaaaaaaaaaaa\r\n".repeat(500);
    let answer = exchange(server.address, format!("{head}{chunks}").as_bytes(), usize::MAX).await;
    assert_eq!(parse(&answer).problem(), "body-too-large");
    // A chunk that is none.
    let broken = exchange(server.address, format!("{head}zz\r\n").as_bytes(), usize::MAX).await;
    assert_eq!(parse(&broken).problem(), "body-incomplete");
    let fits = post("k").body(vec![b'a'; 64]).send(&server).await;
    assert_eq!((fits.status, fits.is_replayed(), server.shop.charges()), (201, false, 1));
}

#[tokio::test]
async fn s4_another_payload_is_refused_in_any_state_and_gives_nothing_away() {
    for (status, slug) in [(422, "mismatch"), (400, "mismatch")] {
        let layer = layer(memory(), Effects::Marked)
            .wait(Duration::ZERO)
            .mismatch_status(StatusCode::from_u16(status).unwrap());
        let server = Arc::new(
            serve(layer, async |request, shop: Shop| {
                if request.uri().path() == "/slow" {
                    shop.open("started");
                    shop.pass("slow").await;
                }
                charge(request, shop).await
            })
            .await,
        );
        post("done").send(&server).await;
        let others = [
            post("done").body("another"),
            post("done").path("/pay/"),
            post("done").path("/pay?a=1"),
            post("done").method("PATCH"),
            post("done").header("content-type", "text/plain"),
        ];
        for other in others {
            let answer = other.send(&server).await;
            assert_eq!((answer.status, &answer.problem()[..]), (status, slug));
            assert!(!answer.is_replayed() && answer.header("location").is_none());
            assert!(!answer.text().contains("ch_"));
        }
        let slow = post("busy").path("/slow");
        let running = tokio::spawn({
            let (slow, server) = (slow.clone(), server.clone());
            async move { slow.send(&server).await }
        });
        server.shop.pass("started").await;
        assert_eq!(slow.clone().body("another").send(&server).await.problem(), "mismatch");
        assert_eq!(slow.send(&server).await.problem(), "in-progress");
        server.shop.open("slow");
        assert_eq!(running.await.unwrap().status, 201);
        assert_eq!(server.shop.charges(), 2);
    }
}

#[tokio::test]
async fn in_progress_waits_and_then_says_so() {
    let layer = layer(memory(), Effects::Marked).wait(Duration::from_millis(20));
    let server = Arc::new(
        serve(layer, async |request, shop: Shop| {
            shop.open("started");
            shop.pass("go").await;
            charge(request, shop).await
        })
        .await,
    );
    let first = tokio::spawn({
        let server = server.clone();
        async move { post("k").send(&server).await }
    });
    server.shop.pass("started").await;
    let busy = post("k").send(&server).await;
    assert_eq!((busy.status, &busy.problem()[..]), (409, "in-progress"));
    assert_eq!(busy.header("retry-after"), Some("1"));
    server.shop.open("go");
    let first = first.await.unwrap();
    let again = post("k").send(&server).await;
    assert_eq!((again.status, &again.body, again.is_replayed()), (first.status, &first.body, true));
}

#[tokio::test]
async fn s2_a_completed_request_is_answered_again_without_cookies_and_connection_headers() {
    for (name, engine, _alive) in stores().await {
        let server = serve(layer(engine, Effects::Marked), charge).await;
        let first = post("k").send(&server).await;
        assert_eq!((first.status, first.header("set-cookie")), (201, Some("session=secret")), "{name}");
        let again = post("k").send(&server).await;
        assert!(again.is_replayed(), "{name}: {again:?}");
        assert_eq!((again.status, &again.body), (201, &first.body), "{name}");
        assert_eq!(again.header("location"), Some("/charges/1"));
        assert_eq!(again.header("content-type"), Some("application/json"));
        assert_eq!((again.header("set-cookie"), again.header("x-trace")), (None, None), "{name}");
        assert_eq!(again.header("content-length"), Some(&again.body.len().to_string()[..]));
        assert_eq!(server.shop.charges(), 1, "{name}");
    }
}

#[tokio::test]
async fn chosen_headers_and_stripes_mark() {
    let layer = layer(memory(), Effects::Marked)
        .kept_headers(["x-trace", "set-cookie", "date"].map(|name| name.parse().unwrap()))
        .replayed_header("idempotent-replayed".parse().unwrap());
    let server = serve(layer, charge).await;
    post("k").send(&server).await;
    let again = post("k").send(&server).await;
    assert_eq!((again.header("x-trace"), again.header("set-cookie")), (Some("1"), None));
    assert_eq!((again.header("idempotent-replayed"), again.is_replayed()), (Some("true"), false));
}

#[tokio::test]
async fn a_response_that_is_not_kept_is_gone_and_its_head_is_told() {
    let engine = Engine::builder(MemoryStore::new()).max_response(3).build().unwrap();
    let server = serve(layer(engine, Effects::Marked), charge).await;
    let first = post("k").send(&server).await;
    assert_eq!((first.status, first.text()), (201, r#"{"id":"ch_1"}"#.to_owned()));
    let again = post("k").send(&server).await;
    assert_eq!((again.status, &again.problem()[..]), (410, "response-not-kept"));
    assert_eq!(again.header("location"), Some("/charges/1"));
    let body: serde_json::Value = serde_json::from_slice(&again.body).unwrap();
    assert_eq!(body["original_status"], 201);
    assert_eq!(server.shop.charges(), 1);
}

#[tokio::test]
async fn s8_unresolved_asks_for_no_correction() {
    let engine = memory();
    let layer = layer(engine.clone(), Effects::Assumed).unresolved_retry_after(Duration::from_secs(90));
    let server = serve(layer, async |request, shop: Shop| {
        charge(request, shop).await;
        Response::builder().status(504).body("upstream".into()).unwrap()
    })
    .await;
    assert_eq!(post("k").send(&server).await.status, 504);
    for _ in 0..2 {
        let again = post("k").send(&server).await;
        assert_eq!((again.status, &again.problem()[..]), (409, "unresolved"));
        assert_eq!(again.header("retry-after"), Some("90"));
    }
    assert_eq!(server.shop.charges(), 1);
    // The operator found out.
    let shown = engine.inspect("acct_1", "k").await.unwrap().unwrap();
    engine
        .resolve("acct_1", "k", shown.fence, Resolution::Completed(nevertwice::Body::kept("ok".into())))
        .await
        .unwrap();
    let settled = post("k").send(&server).await;
    assert_eq!((settled.status, settled.text(), settled.is_replayed()), (200, "ok".to_owned(), true));
}

#[tokio::test]
async fn s10_without_its_store_nothing_is_executed_unless_told() {
    for opens in [false, true] {
        let store = FaultyStore::new(MemoryStore::new());
        let engine = Engine::builder(store.clone()).call_timeout(Duration::from_millis(50)).build().unwrap();
        let layer = layer(engine, Effects::Repeatable);
        let server = serve(if opens { layer.fail_open() } else { layer }, async |_, shop: Shop| {
            Response::new(shop.charge("").to_string().into())
        })
        .await;
        for fault in [Fault::FailBefore, Fault::RequestLost, Fault::AnswerLost] {
            store.from_call(store.calls() + 1, fault);
            let down = post(&format!("{fault:?}")).send(&server).await;
            store.heal();
            if opens {
                assert_eq!((down.status, down.is_replayed()), (200, false), "{fault:?}");
            } else {
                assert_eq!((down.status, &down.problem()[..]), (503, "unavailable"), "{fault:?}");
                assert_eq!(down.header("retry-after"), Some("1"));
            }
        }
        assert_eq!(server.shop.charges(), if opens { 3 } else { 0 });
    }
}

#[tokio::test]
async fn as_many_requests_as_admitted_are_under_way() {
    let layer = layer(memory(), Effects::Marked).max_in_flight(1);
    let server = Arc::new(
        serve(layer, async |request, shop: Shop| {
            shop.open("started");
            shop.pass("go").await;
            charge(request, shop).await
        })
        .await,
    );
    let first = tokio::spawn({
        let server = server.clone();
        async move { post("a").send(&server).await }
    });
    server.shop.pass("started").await;
    let refused = post("b").send(&server).await;
    assert_eq!((refused.status, &refused.problem()[..]), (503, "overloaded"));
    server.shop.open("go");
    assert_eq!(first.await.unwrap().status, 201);
    within("idle", server.layer.idle()).await;
    server.shop.open("go");
    assert_eq!(post("b").send(&server).await.status, 201);
}

#[tokio::test]
async fn keys_and_fingerprints_come_from_where_the_application_says() {
    let square = layer(memory(), Effects::Marked)
        .key(KeySource::json_pointer("/idempotency_key"))
        .fingerprint(RequestFingerprint::json());
    let server = serve(square, charge).await;
    let ask = |body: &str| post("").without_key().body(body);
    let first = ask(r#"{"idempotency_key":"k","amount":1}"#).send(&server).await;
    let again = ask(r#"{ "amount": 1.0, "idempotency_key": "k" }"#).send(&server).await;
    assert_eq!((first.status, again.status, again.is_replayed()), (201, 201, true));
    let other = ask(r#"{"idempotency_key":"k","amount":2}"#).send(&server).await;
    assert_eq!(other.problem(), "mismatch");
    for (body, slug) in [
        ("", "missing-key"),
        ("not JSON", "missing-key"),
        (r#"{"idempotency_key":null}"#, "missing-key"),
        (r#"{"idempotency_key":7}"#, "malformed-key"),
        (r#"{"idempotency_key":""}"#, "malformed-key"),
        ("{\"idempotency_key\":\"a\\nb\"}", "malformed-key"),
    ] {
        assert_eq!(ask(body).send(&server).await.problem(), slug, "{body}");
    }
    // Where it is optional, a body without a key passes through.
    let optional = layer(memory(), Effects::Marked).optional().key(KeySource::json_pointer("/key"));
    let server = serve(optional, charge).await;
    for charges in [1, 2] {
        assert_eq!(ask("{}").send(&server).await.status, 201);
        assert_eq!(server.shop.charges(), charges);
    }
    assert_eq!(ask(r#"{"key":7}"#).send(&server).await.problem(), "malformed-key");
    let custom = layer(memory(), Effects::Marked)
        .key(KeySource::header("x-request-id".parse().unwrap()))
        .fingerprint(RequestFingerprint::custom(|parts, _| Fingerprint::of(parts.uri.path())));
    let server = serve(custom, charge).await;
    let ask = post("").without_key().header("x-request-id", "r");
    ask.send(&server).await;
    assert!(ask.clone().body("another").send(&server).await.is_replayed());
    assert_eq!(ask.path("/other").send(&server).await.problem(), "mismatch");
}

#[tokio::test]
async fn webhooks_are_known_by_their_id_and_are_not_told_that_the_receiver_is_gone() {
    let engine = Engine::builder(MemoryStore::new()).max_response(3).build().unwrap();
    let server = serve(webhook::layer(engine, Effects::Marked, webhook::stripe(), account), charge).await;
    let deliver = |body: &str| post("").without_key().body(body);
    assert_eq!(deliver(r#"{"id":"evt_1","pending_webhooks":2}"#).send(&server).await.status, 201);
    // Its response is not kept, and a 410 would disable the receiver.
    let again = deliver(r#"{"id":"evt_1","pending_webhooks":1}"#).send(&server).await;
    assert_eq!((again.status, again.body.len(), server.shop.charges()), (201, 0, 1));
    assert_eq!(deliver("{}").send(&server).await.problem(), "missing-key");

    // The hooks of one event have keys of their own.
    let server = serve(webhook::layer(memory(), Effects::Marked, webhook::github(), account), charge).await;
    let delivery = post("").without_key().header("x-github-delivery", "72d3162e");
    assert_eq!(delivery.clone().send(&server).await.problem(), "missing-key");
    for hook in ["1", "2"] {
        let delivery = delivery.clone().header("x-github-hook-id", hook);
        assert!(!delivery.clone().send(&server).await.is_replayed());
        assert!(delivery.body("another").send(&server).await.is_replayed());
    }
    assert_eq!(server.shop.charges(), 2);
}

#[tokio::test]
async fn problems_can_be_rewritten() {
    let layer = layer(memory(), Effects::Marked)
        .problem(|problem, response| response.map(|_| format!("<error>{}</error>", problem.title()).into()));
    let server = serve(layer, charge).await;
    let answer = post("").without_key().send(&server).await;
    assert_eq!(
        (answer.status, answer.text()),
        (400, "<error>The idempotency key is missing</error>".to_owned())
    );
}

#[tokio::test]
async fn a_record_of_another_origin_is_answered_all_the_same() {
    let engine = memory();
    let fingerprint = RequestFingerprint::custom(|_, _| Fingerprint::NONE);
    let server = serve(layer(engine.clone(), Effects::Marked).fingerprint(fingerprint), charge).await;
    for (key, failed) in [("completed", false), ("failed", true)] {
        let request = Request::new("acct_1", key).unwrap();
        let Begin::Acquired(lease) = engine.begin(&request).await.unwrap() else { panic!() };
        match failed {
            false => lease.complete("by a worker").await.unwrap(),
            true => lease.fail("by a worker", Retry::Never).await.unwrap(),
        }
        let answer = post(key).send(&server).await;
        assert_eq!(answer.status, if failed { 500 } else { 200 });
        assert_eq!((answer.text(), answer.is_replayed()), ("by a worker".to_owned(), true));
    }
}

/// A begin whose answer is lost leaves no grant behind, so that its repetition is executed.
#[tokio::test]
async fn s10_a_begin_whose_answer_was_lost_blocks_nothing() {
    for fault in [Fault::AnswerLost, Fault::FailAfter] {
        let store = FaultyStore::new(MemoryStore::new());
        let engine = Engine::builder(store.clone()).call_timeout(Duration::from_millis(50)).build().unwrap();
        let layer = layer(engine.clone(), Effects::Assumed).wait(Duration::ZERO);
        let server = serve(layer, charge).await;
        store.from_call(store.calls() + 1, fault);
        assert_eq!(post("k").send(&server).await.problem(), "unavailable", "{fault:?}");
        store.heal();
        let again = within("the removal of the grant", async {
            loop {
                let again = post("k").send(&server).await;
                if again.status != 409 {
                    return again;
                }
                assert_eq!(again.problem(), "in-progress");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert_eq!((again.await.status, server.shop.charges()), (201, 1), "{fault:?}");
    }
}

/// Failing open has limits: what is known to be in progress or is damaged is not executed.
#[tokio::test]
async fn s10_a_request_in_progress_is_not_executed_though_the_store_breaks() {
    let store = FaultyStore::new(MemoryStore::new());
    let engine = Engine::builder(store.clone()).call_timeout(Duration::from_millis(50)).build().unwrap();
    let layer = layer(engine, Effects::Repeatable).fail_open().wait(Duration::from_millis(300));
    let server = Arc::new(
        serve(layer, async |request, shop: Shop| {
            shop.open("started");
            shop.pass("go").await;
            charge(request, shop).await
        })
        .await,
    );
    let ask = || {
        let server = server.clone();
        tokio::spawn(async move { post("k").send(&server).await })
    };
    let first = ask();
    server.shop.pass("started").await;
    let calls = store.calls();
    let second = ask();
    within("the duplicate's question", async {
        while store.calls() == calls {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    store.from_call(store.calls() + 1, Fault::FailBefore);
    assert_ne!(second.await.unwrap().status, 201);
    store.heal();
    server.shop.open("go");
    assert_eq!(first.await.unwrap().status, 201);
    assert_eq!(server.shop.charges(), 1);
}

#[tokio::test]
async fn a_nested_router_tells_its_whole_path_and_a_second_layer_does_nothing() {
    use axum::Router;
    use axum::extract::OriginalUri;
    let shop = Shop::default();
    let charges = shop.clone();
    let close = move || {
        let shop = charges.clone();
        async move { shop.charge("").to_string() }
    };
    let engine = memory();
    let once = || {
        layer(engine.clone(), Effects::Assumed).wait(Duration::from_millis(10)).path(|parts| {
            parts.extensions.get::<OriginalUri>().map_or(parts.uri.path(), |uri| uri.path()).to_owned()
        })
    };
    let inner = Router::new().route("/close", axum::routing::post(close)).route_layer(once());
    let app = Router::new().nest("/accounts/{id}", inner).layer(once());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let ask =
        |path| async move { parse(&exchange(address, &post("k").path(path).bytes(), usize::MAX).await) };
    assert_eq!(ask("/accounts/1/close").await.status, 200);
    assert!(ask("/accounts/1/close").await.is_replayed());
    assert_eq!(ask("/accounts/2/close").await.problem(), "mismatch");
    assert_eq!(shop.charges(), 1);
}

#[tokio::test]
async fn s14_a_response_of_a_later_release_is_not_read() {
    let engine = memory();
    let server = serve(layer(engine.clone(), Effects::Marked), charge).await;
    let request = Request::new("acct_1", "k").unwrap().also_accept(Fingerprint::NONE);
    let Begin::Acquired(lease) = engine.begin(&request).await.unwrap() else { panic!() };
    lease.complete_with_head(&[0xe2, 9], "later").await.unwrap();
    let custom =
        layer(engine, Effects::Marked).fingerprint(RequestFingerprint::custom(|_, _| Fingerprint::NONE));
    let reads = serve(custom, charge).await;
    assert_eq!(post("k").send(&reads).await.problem(), "unavailable");
    assert_eq!(server.shop.charges() + reads.shop.charges(), 0);
}

/// A limit outside of the layer ends a body that is too long, and says so.
#[tokio::test]
async fn a_limit_outside_is_told_from_a_body_that_breaks_off() {
    use axum::Router;
    use tower_http::limit::RequestBodyLimitLayer;
    let app = Router::new()
        .fallback(axum::routing::any(async || "done"))
        .layer(layer(memory(), Effects::Marked))
        .layer(RequestBodyLimitLayer::new(64));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let head = "POST /pay HTTP/1.1\r\nhost: test\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\
                idempotency-key: k\r\n\r\n";
    let chunks = "10\r\naaaaaaaaaaaaaaaa\r\n".repeat(50);
    let answer = exchange(address, format!("{head}{chunks}0\r\n\r\n").as_bytes(), usize::MAX).await;
    assert_eq!(parse(&answer).problem(), "body-too-large");
}
