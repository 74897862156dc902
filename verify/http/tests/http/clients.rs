//! Clients that repeat, race, hang up and shut down.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use nevertwice::http::Effects;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s1_64_simultaneous_copies_run_the_handler_once_and_agree() {
    for (name, engine, _alive) in stores().await {
        let layer = layer(engine, Effects::Assumed).wait(PATIENCE);
        let server = serve(layer, async |request, shop: Shop| {
            shop.open("started");
            shop.pass("go").await;
            charge(request, shop).await
        })
        .await;
        let copies = (0..64).map(|_| async { post("k").send(&server).await });
        let open = async {
            server.shop.pass("started").await;
            server.shop.open("go");
        };
        let (answers, ()) = tokio::join!(join_all(copies), open);
        assert_eq!(server.shop.charges(), 1, "{name}");
        assert_eq!(answers.iter().filter(|answer| !answer.is_replayed()).count(), 1, "{name}");
        assert!(answers.iter().all(|answer| (answer.status, &answer.body) == (201, &answers[0].body)));
    }
}

/// The client hangs up after any number of bytes of the answer, and repeats the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_an_answer_that_is_cut_at_any_byte_is_given_again() {
    for (name, engine, _alive) in stores().await {
        let server = serve(layer(engine, Effects::Assumed), charge).await;
        let whole = exchange(server.address, &post("whole").bytes(), usize::MAX).await;
        let step = if name == "memory" { 1 } else { 37 };
        let mut cuts = 0;
        for cut in (0..whole.len()).step_by(step) {
            let key = format!("cut {cut}");
            exchange(server.address, &post(&key).bytes(), cut).await;
            let again = post(&key).send(&server).await;
            assert_eq!(again.status, 201, "{name}, cut at {cut}");
            assert_eq!(post(&key).send(&server).await.body, again.body, "{name}, cut at {cut}");
            cuts += 1;
        }
        assert_eq!(server.shop.charges(), 1 + cuts, "{name}");
    }
}

/// The client hangs up after any number of bytes of the request, and repeats it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s6_a_request_that_is_cut_at_any_byte_is_executed_once() {
    for (name, engine, _alive) in stores().await {
        let server = serve(layer(engine, Effects::Assumed), charge).await;
        let length = post("cut 000").bytes().len();
        let step = if name == "memory" { 1 } else { 19 };
        let mut cuts = 0;
        for cut in (0..length).step_by(step) {
            let ask = post(&format!("cut {cut:03}"));
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(&ask.bytes()[..cut]).await.unwrap();
            drop(stream);
            assert_eq!(ask.send(&server).await.status, 201, "{name}, cut at {cut}");
            assert!(ask.send(&server).await.is_replayed(), "{name}, cut at {cut}");
            cuts += 1;
        }
        assert_eq!(server.shop.charges(), cuts, "{name}");
    }
}

/// A client that hangs up cancels nothing, wherever its request is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_a_client_that_hangs_up_cancels_nothing() {
    let layer = layer(memory(), Effects::Assumed).wait(PATIENCE);
    let server = serve(layer, async |request, shop: Shop| {
        shop.open("started");
        shop.pass("go").await;
        charge(request, shop).await
    })
    .await;
    for round in 1..=20 {
        let key = format!("round {round}");
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&post(&key).bytes()).await.unwrap();
        server.shop.pass("started").await;
        // A duplicate that waits hangs up as well.
        let mut waits = TcpStream::connect(server.address).await.unwrap();
        waits.write_all(&post(&key).bytes()).await.unwrap();
        drop((stream, waits));
        server.shop.open("go");
        let again = post(&key).send(&server).await;
        assert_eq!((again.status, server.shop.charges()), (201, round));
        within("idle", server.layer.idle()).await;
        assert!(post(&key).send(&server).await.is_replayed());
    }
}

/// A time-out outside of the layer cancels nothing either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_a_time_out_outside_cancels_nothing() {
    use axum::Router;
    use axum::http::StatusCode;
    use tower_http::timeout::TimeoutLayer;
    let shop = Shop::default();
    let inner = shop.clone();
    let handler = move || {
        let shop = inner.clone();
        async move {
            shop.open("started");
            shop.pass("go").await;
            shop.charge("").to_string()
        }
    };
    let once = layer(memory(), Effects::Assumed).wait(PATIENCE);
    let timeout = TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, Duration::from_millis(200));
    let app = Router::new().route("/pay", axum::routing::post(handler)).layer(once.clone()).layer(timeout);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let first = parse(&exchange(address, &post("k").bytes(), usize::MAX).await);
    assert_eq!(first.status, 504);
    shop.pass("started").await;
    shop.open("go");
    within("idle", once.idle()).await;
    let again = parse(&exchange(address, &post("k").bytes(), usize::MAX).await);
    assert_eq!((again.text(), again.is_replayed(), shop.charges()), ("1".to_owned(), true, 1));
}

/// At shutdown the server stops to accept, and then waits for what its clients left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_waits_for_handlers_without_clients() {
    let server = serve(layer(memory(), Effects::Assumed), async |request, shop: Shop| {
        shop.open("started");
        shop.pass("go").await;
        charge(request, shop).await
    })
    .await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&post("k").bytes()).await.unwrap();
    server.shop.pass("started").await;
    drop(stream);
    let mut idle = Box::pin(server.layer.idle());
    assert!(futures_util::poll!(&mut idle).is_pending());
    assert_eq!(server.layer.in_flight(), 1);
    server.shop.open("go");
    within("idle", idle).await;
    assert_eq!((server.shop.charges(), server.layer.in_flight()), (1, 0));
}

/// A body that comes slowly holds nothing up, and begins nothing before it is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_body_begins_nothing_until_it_is_whole() {
    let server = serve(layer(memory(), Effects::Marked).max_in_flight(1), charge).await;
    let bytes = post("slow").bytes();
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(&bytes[..bytes.len() - 1]).await.unwrap();
    assert_eq!(post("slow").send(&server).await.status, 201);
    slow.write_all(&bytes[bytes.len() - 1..]).await.unwrap();
    let mut answer = Vec::new();
    within("the slow one", slow.read_to_end(&mut answer)).await.unwrap();
    assert!(parse(&answer).is_replayed());
    assert_eq!(server.shop.charges(), 1);
}

/// HTTP/2: requests share a connection, and a stream that is reset cancels nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s11_streams_of_http_2_are_reset_without_effect() {
    let server = Arc::new(
        serve(layer(memory(), Effects::Assumed).wait(PATIENCE), async |request, shop: Shop| {
            shop.open("started");
            shop.pass("go").await;
            charge(request, shop).await
        })
        .await,
    );
    let stream = TcpStream::connect(server.address).await.unwrap();
    let (client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let send = |key: &str| {
        let request = hyper::Request::post(format!("http://{}/pay", server.address));
        let request = request.header("idempotency-key", key).body(Full::new(Bytes::from("{}"))).unwrap();
        let mut client = client.clone();
        async move {
            let (parts, body) = client.send_request(request).await.unwrap().into_parts();
            (parts, body.collect().await.unwrap().to_bytes())
        }
    };
    let first = tokio::spawn(send("k"));
    server.shop.pass("started").await;
    first.abort();
    server.shop.open("go");
    let copies = within("copies", join_all((0..16).map(|_| send("k")))).await;
    assert!(copies.iter().all(|(parts, body)| parts.status == 201 && *body == copies[0].1));
    assert!(copies.iter().all(|(parts, _)| parts.headers["idempotency-replayed"] == "true"));
    assert_eq!(server.shop.charges(), 1);
}

/// A handler that outlives its lease is renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l3_the_layer_renews_the_lease_of_a_slow_handler() {
    let store = nevertwice::MemoryStore::new();
    let lease = Duration::from_millis(300);
    let engine = nevertwice::Engine::builder(store).lease(lease).build().unwrap();
    let seen = engine.clone();
    let server = serve(layer(engine, Effects::Assumed).wait(PATIENCE), move |_, shop: Shop| {
        let seen = seen.clone();
        async move {
            // Until it was renewed three times.
            let mut stamps = std::collections::BTreeSet::new();
            within("renewals", async {
                while stamps.len() < 4 {
                    stamps.insert(seen.inspect("acct_1", "k").await.unwrap().unwrap().stamp);
                    tokio::task::yield_now().await;
                }
            })
            .await;
            shop.charge("");
            Response::new("slow".into())
        }
    })
    .await;
    let copies = join_all((0..4).map(|_| async { post("k").send(&server).await })).await;
    assert!(copies.iter().all(|copy| copy.text() == "slow"));
    assert_eq!(server.shop.charges(), 1);
}
