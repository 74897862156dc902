//! gRPC, as its bytes go over HTTP/2.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nevertwice::Engine;
use nevertwice::MemoryStore;
use nevertwice::http::Effects;
use nevertwice::testing::{Fault, FaultyStore};
use tokio::net::TcpStream;

use crate::support::*;

/// The head, the messages and the trailers of an answer.
struct Reply {
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

impl Reply {
    fn status(&self) -> &str {
        let status = self.trailers.get("grpc-status").or_else(|| self.headers.get("grpc-status"));
        status.expect("a grpc-status").to_str().unwrap()
    }

    fn is_replayed(&self) -> bool {
        self.headers.contains_key("idempotency-replayed")
    }
}

async fn call(server: &Server, key: Option<&str>, message: &'static [u8], path: &str) -> Reply {
    call_as(server, key, message, path, "application/grpc+proto").await
}

async fn call_as(
    server: &Server,
    key: Option<&str>,
    message: &'static [u8],
    path: &str,
    kind: &'static str,
) -> Reply {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request =
        hyper::Request::post(format!("http://{}{path}", server.address)).header("content-type", kind);
    let request = key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
    let sent = client.send_request(request.body(Full::new(Bytes::from_static(message))).unwrap());
    let response = within("a call", sent).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], kind);
    let headers = response.headers().clone();
    let collected = within("a call's body", response.into_body().collect()).await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    Reply { headers, body: collected.to_bytes(), trailers }
}

const MESSAGE: &[u8] = &[0, 0, 0, 0, 2, 8, 1];

fn answer(messages: usize, status: &'static str) -> Response {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    trailers.insert("x-balance", HeaderValue::from_static("7"));
    let frames = (0..messages).map(|_| Frame::data(Bytes::from_static(MESSAGE)));
    let frames: Vec<_> = frames.chain([Frame::trailers(trailers)]).map(Ok::<_, std::io::Error>).collect();
    let body = Body::new(StreamBody::new(stream::iter(frames)));
    Response::builder().header("content-type", "application/grpc+proto").body(body).unwrap()
}

async fn handler(request: axum::extract::Request, shop: Shop) -> Response {
    shop.charge("");
    let status: &'static str = request.uri().path()[1..].to_owned().leak();
    match status {
        "stream" => answer(3, "0"),
        "empty" => answer(0, "0"),
        status => answer(1, status),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s2_a_unary_call_is_answered_again_with_its_trailers() {
    let server = serve(layer(memory(), Effects::Assumed), handler).await;
    for path in ["/0", "/empty"] {
        let first = call(&server, Some(path), MESSAGE, path).await;
        let again = call(&server, Some(path), MESSAGE, path).await;
        assert_eq!((first.status(), first.is_replayed(), again.is_replayed()), ("0", false, true), "{path}");
        assert_eq!((&again.body, &again.trailers), (&first.body, &first.trailers));
        assert_eq!((again.trailers["x-balance"].to_str().unwrap(), again.status()), ("7", "0"));
    }
    assert_eq!(server.shop.charges(), 2);
    let other = call(&server, Some("/0"), &[0, 0, 0, 0, 0], "/0").await;
    assert_eq!((other.status(), other.body.len()), ("3", 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s8_a_call_counts_by_its_grpc_status() {
    let server = serve(layer(memory(), Effects::Assumed), handler).await;
    for status in 0..=17_u32 {
        let path = format!("/{status}");
        let first = call(&server, Some(&path), MESSAGE, &path).await;
        assert_eq!((first.status(), first.is_replayed()), (&path[1..], false));
        let again = call(&server, Some(&path), MESSAGE, &path).await;
        match status {
            0 => assert!(again.is_replayed()),
            // FAILED_PRECONDITION: unresolved.
            1 | 2 | 4 | 11 | 13 | 14 | 15 | 17 => {
                assert_eq!((again.status(), again.is_replayed()), ("9", false), "{status}");
                assert!(!again.headers.contains_key("grpc-retry-pushback-ms"));
            }
            _ => assert_eq!((again.status(), again.is_replayed()), (&path[1..], false), "{status}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_stream_reaches_its_caller_and_is_done() {
    let server = serve(layer(memory(), Effects::Assumed), handler).await;
    let first = call(&server, Some("k"), MESSAGE, "/stream").await;
    assert_eq!((first.body.len(), first.status()), (3 * MESSAGE.len(), "0"));
    // ALREADY_EXISTS
    assert_eq!(call(&server, Some("k"), MESSAGE, "/stream").await.status(), "6");
    assert_eq!(server.shop.charges(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn problems_are_answered_in_trailers() {
    let store = FaultyStore::new(MemoryStore::new());
    let engine = Engine::builder(store.clone()).call_timeout(Duration::from_millis(50)).build().unwrap();
    let server = serve(
        layer(engine, Effects::Assumed).max_body(64).wait(Duration::ZERO),
        async |request, shop: Shop| {
            shop.open("started");
            shop.pass("go").await;
            handler(request, shop).await
        },
    )
    .await;
    assert_eq!(call(&server, None, MESSAGE, "/0").await.status(), "3");
    assert_eq!(call(&server, Some("a,b"), MESSAGE, "/0").await.status(), "3");
    assert_eq!(call(&server, Some("k"), &[0; 65], "/0").await.status(), "8");
    store.from_call(store.calls() + 1, Fault::FailBefore);
    let down = call(&server, Some("k"), MESSAGE, "/0").await;
    store.heal();
    assert_eq!((down.status(), down.headers["grpc-retry-pushback-ms"].to_str().unwrap()), ("14", "1000"));
    assert!(!down.headers["grpc-message"].is_empty());
    let both = async {
        server.shop.pass("started").await;
        let busy = call(&server, Some("k"), MESSAGE, "/0").await;
        server.shop.open("go");
        busy
    };
    let (first, busy) = tokio::join!(call(&server, Some("k"), MESSAGE, "/0"), both);
    assert_eq!((first.status(), busy.status()), ("0", "14"));
    assert_eq!(busy.headers["grpc-retry-pushback-ms"].to_str().unwrap(), "1000");
    assert_eq!(server.shop.charges(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_web_is_refused_before_it_is_executed() {
    let server = serve(layer(memory(), Effects::Assumed), handler).await;
    for kind in ["application/grpc-web+proto", "application/grpc-web-text"] {
        assert_eq!(call_as(&server, Some("k"), MESSAGE, "/0", kind).await.status(), "12");
    }
    assert_eq!(server.shop.charges(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_without_a_call_is_not_answered_as_one() {
    let engine = memory();
    let request = nevertwice::Request::new("acct_1", "k").unwrap();
    let nevertwice::Begin::Acquired(lease) = engine.begin(&request).await.unwrap() else { panic!() };
    lease.complete("by a worker").await.unwrap();
    let none = nevertwice::http::RequestFingerprint::custom(|_, _| nevertwice::Fingerprint::NONE);
    let server = serve(layer(engine, Effects::Assumed).fingerprint(none), handler).await;
    assert_eq!(call(&server, Some("k"), MESSAGE, "/0").await.status(), "6");
}
