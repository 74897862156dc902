//! The rows of the table "After the handler".

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use nevertwice::http::{Effects, HeldLease, Keep};
use nevertwice::testing::{Fault, FaultyStore, ManualClock};
use nevertwice::{Engine, MemoryStore, Retry};

use crate::support::*;

/// Answers with the status that the path names, and marks the effect if the query says so.
async fn by_path(request: Request, shop: Shop) -> Response {
    if request.uri().query() == Some("mark") {
        request.extensions().get::<HeldLease>().unwrap().mark_effect().await.unwrap();
    }
    let status: u16 = request.uri().path()[1..].parse().unwrap();
    let number = shop.charge("");
    let response = Response::builder().status(status).header("cache-control", "no-store");
    response.body(Body::from(if status == 204 { String::new() } else { number.to_string() })).unwrap()
}

fn clocked(effects: Effects) -> (ManualClock, nevertwice::http::IdempotencyLayer, Engine) {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let engine = Engine::builder(store).clock(clock.clone()).build().unwrap();
    let layer = layer(engine.clone(), effects).back_off(Duration::from_secs(7));
    (clock, layer, engine)
}

#[tokio::test]
async fn s2_2xx_3xx_402_and_410_are_kept() {
    for effects in [Effects::Marked, Effects::Assumed, Effects::Repeatable] {
        let (_, layer, _) = clocked(effects);
        let server = serve(layer, by_path).await;
        let paths = ["/200", "/204", "/302", "/304", "/402", "/410", "/418", "/451", "/499"];
        for (at, path) in paths.into_iter().enumerate() {
            let first = post(path).path(path).send(&server).await;
            let again = post(path).path(path).send(&server).await;
            assert_eq!((again.status, &again.body), (first.status, &first.body), "{effects:?} {path}");
            assert!(again.is_replayed() && server.shop.charges() == at + 1, "{effects:?} {path}");
        }
    }
}

#[tokio::test]
async fn a_4xx_that_can_heal_frees_the_key_unless_the_effect_was_marked() {
    let heals = [400, 401, 403, 404, 405, 406, 407, 409, 411, 412, 413, 414, 415, 422, 425, 428, 429, 431];
    for effects in [Effects::Marked, Effects::Assumed, Effects::Repeatable] {
        let (_, layer, _) = clocked(effects);
        let server = serve(layer, by_path).await;
        for status in heals {
            let path: &'static str = format!("/{status}").leak();
            let marked: &'static str = format!("/{status}?mark").leak();
            for _ in 0..2 {
                let answer = post(path).path(path).send(&server).await;
                assert_eq!((answer.status, answer.is_replayed()), (status, false), "{effects:?}");
            }
            // Corrected, with the same key.
            assert_eq!(post(path).path("/200").send(&server).await.status, 200);
            let first = post(marked).path(marked).send(&server).await;
            let again = post(marked).path(marked).send(&server).await;
            assert_eq!((again.status, &again.body, again.is_replayed()), (status, &first.body, true));
        }
    }
}

#[tokio::test]
async fn s8_5xx_and_408_count_by_the_stated_effects() {
    for status in ["408", "500", "501", "502", "503", "504", "599"] {
        let path: &'static str = format!("/{status}").leak();
        let marked: &'static str = format!("/{status}?mark").leak();
        let code: u16 = status.parse().unwrap();

        let (_, layer, _) = clocked(Effects::Assumed);
        let server = serve(layer, by_path).await;
        assert_eq!(post("k").path(path).send(&server).await.status, code);
        assert_eq!(post("k").path(path).send(&server).await.problem(), "unresolved");
        assert_eq!(server.shop.charges(), 1);

        let (_, layer, _) = clocked(Effects::Repeatable);
        let server = serve(layer, by_path).await;
        for run in 1..=3 {
            let answer = post("k").path(path).send(&server).await;
            assert_eq!((answer.status, answer.is_replayed(), server.shop.charges()), (code, false, run));
        }

        let (clock, layer, _) = clocked(Effects::Marked);
        let server = serve(layer, by_path).await;
        assert_eq!(post("k").path(path).send(&server).await.status, code);
        clock.advance(Duration::from_millis(6_100));
        let early = post("k").path(path).send(&server).await;
        assert_eq!((early.status, early.is_replayed(), server.shop.charges()), (code, true, 1));
        assert_eq!(early.header("retry-after"), Some("1"));
        clock.advance(Duration::from_secs(1));
        let due = post("k").path(path).send(&server).await;
        assert_eq!((due.status, due.is_replayed(), server.shop.charges()), (code, false, 2));
        assert_eq!(post("m").path(marked).send(&server).await.status, code);
        clock.advance(Duration::from_secs(3600));
        assert_eq!(post("m").path(marked).send(&server).await.problem(), "unresolved");
        assert_eq!(server.shop.charges(), 3);
    }
}

#[tokio::test]
async fn handlers_and_settings_may_say_otherwise() {
    let (_, layer, _) = clocked(Effects::Assumed);
    let layer = layer.keep(|parts| match parts.status {
        StatusCode::SERVICE_UNAVAILABLE => Keep::Released,
        _ => Keep::ByStatus,
    });
    let server = serve(layer, async |request, shop: Shop| {
        let chosen = match request.uri().query() {
            Some("completed") => Some(Keep::Completed),
            Some("failed") => Some(Keep::Failed),
            Some("released") => Some(Keep::Released),
            Some("retried") => Some(Keep::Retried(Duration::ZERO)),
            Some("unresolved") => Some(Keep::Unresolved),
            _ => None,
        };
        let mut response = by_path(request, shop).await;
        response.extensions_mut().extend(
            chosen
                .map(|chosen| {
                    let mut extensions = axum::http::Extensions::new();
                    extensions.insert(chosen);
                    extensions
                })
                .unwrap_or_default(),
        );
        response
    })
    .await;
    for (path, replayed, status) in [
        ("/503", false, 503),
        ("/500?completed", true, 500),
        ("/400?completed", true, 400),
        ("/200?failed", true, 200),
        ("/200?released", false, 200),
        ("/500?retried", false, 500),
        ("/200?unresolved", false, 409),
    ] {
        post(path).path(path).send(&server).await;
        let again = post(path).path(path).send(&server).await;
        assert_eq!((again.status, again.is_replayed()), (status, replayed), "{path}");
    }
}

/// Bodies of unknown length, and streams.
fn pieces(pieces: &[&'static [u8]], trailers: Option<HeaderMap>) -> Body {
    let data = pieces.iter().map(|piece| Frame::data(Bytes::from_static(piece)));
    let frames: Vec<_> = data.chain(trailers.map(Frame::trailers)).map(Ok::<_, std::io::Error>).collect();
    Body::new(StreamBody::new(stream::iter(frames)))
}

#[tokio::test]
async fn s2_a_body_of_unknown_length_is_kept_as_any_other() {
    let server = serve(layer(memory(), Effects::Marked), async |_, shop: Shop| {
        shop.charge("");
        Response::new(pieces(&[b"one, ", b"two, ", b"three"], None))
    })
    .await;
    let first = post("k").send(&server).await;
    let again = post("k").send(&server).await;
    assert_eq!(again.text(), "one, two, three");
    assert_eq!((first.body, again.is_replayed(), server.shop.charges()), (again.body.clone(), true, 1));
}

#[tokio::test]
async fn a_longer_response_reaches_its_caller_whole_and_is_done() {
    let engine = Engine::builder(MemoryStore::new()).max_response(16).build().unwrap();
    let server = serve(layer(engine, Effects::Marked), async |request, shop: Shop| {
        shop.charge("");
        match request.uri().path() {
            "/sized" => Response::new(Body::from("a".repeat(40_000))),
            _ => Response::new(pieces(&[b"0123456789", b"0123456789", b"0123456789"], None)),
        }
    })
    .await;
    for (path, length) in [("/sized", 40_000), ("/unsized", 30)] {
        let first = post(path).path(path).send(&server).await;
        assert_eq!((first.status, first.body.len()), (200, length), "{path}");
        assert_eq!(post(path).path(path).send(&server).await.problem(), "response-not-kept");
    }
    assert_eq!(server.shop.charges(), 2);
}

#[tokio::test]
async fn a_stream_is_recorded_before_its_first_byte() {
    for kind in ["text/event-stream", "application/x-ndjson; charset=utf-8"] {
        let engine = memory();
        let server = serve(layer(engine.clone(), Effects::Marked), move |_, shop: Shop| async move {
            shop.charge("");
            let body = Body::new(StreamBody::new(stream::once(async move {
                shop.open("polled");
                shop.pass("go").await;
                Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"data: 1\n\n")))
            })));
            Response::builder().header("content-type", kind).body(body).unwrap()
        })
        .await;
        let address = server.address;
        let first = tokio::spawn(async move { exchange(address, &post("k").bytes(), usize::MAX).await });
        server.shop.pass("polled").await;
        let again = post("k").send(&server).await;
        assert_eq!(again.problem(), "response-not-kept", "{kind}");
        server.shop.open("go");
        assert_eq!(parse(&first.await.unwrap()).text(), "data: 1\n\n");
        assert_eq!(server.shop.charges(), 1);
    }
}

#[tokio::test]
async fn a_panic_is_a_crash_and_is_carried_over() {
    let (clock, layer, _) = clocked(Effects::Marked);
    let lease = Duration::from_secs(30);
    let server = serve(layer.wait(Duration::ZERO), async |request, shop: Shop| {
        if shop.charge("") == 1 {
            if request.uri().query() == Some("mark") {
                request.extensions().get::<HeldLease>().unwrap().mark_effect().await.unwrap();
            }
            panic!("a handler's fault");
        }
        Response::new("done".into())
    })
    .await;
    // The connection breaks, as it does without the layer.
    assert_eq!(exchange(server.address, &post("k").bytes(), usize::MAX).await, b"");
    assert_eq!(post("k").send(&server).await.problem(), "in-progress");
    clock.advance(lease);
    assert_eq!(post("k").send(&server).await.text(), "done");
    within("idle", server.layer.idle()).await;

    let (clock, layer, _) = clocked(Effects::Assumed);
    let server = serve(layer.wait(Duration::ZERO), async |_, shop: Shop| {
        shop.charge("");
        panic!("a handler's fault")
    })
    .await;
    assert_eq!(exchange(server.address, &post("k").bytes(), usize::MAX).await, b"");
    clock.advance(lease);
    assert_eq!(post("k").send(&server).await.problem(), "unresolved");
    assert_eq!(server.shop.charges(), 1);
}

#[tokio::test]
async fn a_response_that_breaks_off_is_a_crash() {
    let (clock, layer, _) = clocked(Effects::Assumed);
    let server = serve(layer.wait(Duration::ZERO), async |_, shop: Shop| {
        shop.charge("");
        let frames = [Ok(Frame::data(Bytes::from_static(b"half"))), Err(std::io::Error::other("broken"))];
        Response::new(Body::new(StreamBody::new(stream::iter(frames))))
    })
    .await;
    let first = post("k").send(&server).await;
    assert_eq!((first.status, &first.problem()[..]), (409, "in-progress"));
    assert_eq!(post("k").send(&server).await.problem(), "in-progress");
    clock.advance(Duration::from_secs(30));
    assert_eq!(post("k").send(&server).await.problem(), "unresolved");
    assert_eq!(server.shop.charges(), 1);
}

#[tokio::test]
async fn an_error_of_the_service_is_a_crash() {
    use std::convert::Infallible;
    use tower::{Layer, Service, ServiceExt};
    let (clock, layer, _) = clocked(Effects::Marked);
    type Incoming = axum::http::Request<nevertwice::http::LayerBody<Body>>;
    let service = tower::service_fn(|_: Incoming| async { Err::<Response, _>("unreachable") });
    let mut service = layer.clone().wait(Duration::ZERO).layer(service);
    let ask = || {
        let request = axum::http::Request::post("/").header("idempotency-key", "k");
        request.body(Body::from("a")).unwrap()
    };
    assert_eq!(service.ready().await.unwrap().call(ask()).await.err(), Some("unreachable"));
    let busy = service.ready().await.unwrap().call(ask()).await.unwrap();
    assert_eq!(busy.status(), 409);
    clock.advance(Duration::from_secs(30));
    let works =
        tower::service_fn(|_: Incoming| async { Ok::<_, Infallible>(Response::new(Body::from("b"))) });
    let done = layer.layer(works).oneshot(ask()).await.unwrap();
    assert_eq!(done.into_body().collect().await.unwrap().to_bytes(), "b");
}

#[tokio::test]
async fn a_lease_that_the_handler_finished_is_left_alone() {
    let server = serve(layer(memory(), Effects::Assumed), async |request, shop: Shop| {
        shop.charge("");
        let lease = request.extensions().get::<HeldLease>().unwrap().clone();
        match request.uri().path() {
            "/completed" => lease.complete("by the handler").await.unwrap(),
            "/failed" => lease.fail("declined", Retry::Never).await.unwrap(),
            _ => lease.release().await.unwrap(),
        }
        Response::builder().status(500).body("and answered".into()).unwrap()
    })
    .await;
    for (path, status, text) in [
        ("/completed", 200, "by the handler"),
        ("/failed", 500, "declined"),
        ("/released", 500, "and answered"),
    ] {
        let first = post(path).path(path).send(&server).await;
        assert_eq!((first.status, &first.text()[..]), (500, "and answered"));
        let again = post(path).path(path).send(&server).await;
        assert_eq!((again.status, &again.text()[..]), (status, text), "{path}");
    }
    assert_eq!(server.shop.charges(), 4);
}

#[tokio::test]
async fn s2_a_response_goes_out_though_it_cannot_be_recorded_and_is_recorded_later() {
    let store = FaultyStore::new(MemoryStore::new());
    let engine = Engine::builder(store.clone())
        .call_timeout(Duration::from_millis(100))
        .finish_timeout(PATIENCE)
        .build()
        .unwrap();
    let faulty = store.clone();
    let server = serve(layer(engine, Effects::Assumed).wait(Duration::ZERO), move |_, shop: Shop| {
        let faulty = faulty.clone();
        async move {
            shop.charge("");
            faulty.from_call(faulty.calls() + 1, Fault::FailBefore);
            Response::new("charged".into())
        }
    })
    .await;
    let first = post("k").send(&server).await;
    assert_eq!((first.status, first.text()), (200, "charged".to_owned()));
    assert_eq!(server.layer.in_flight(), 1);
    store.heal();
    within("the recording", server.layer.idle()).await;
    let again = post("k").send(&server).await;
    assert_eq!((again.text(), again.is_replayed()), ("charged".to_owned(), true));
    assert_eq!(server.shop.charges(), 1);
}

#[tokio::test]
async fn s3_a_handler_that_lost_its_lease_answers_what_the_record_holds() {
    let (_, layer, engine) = clocked(Effects::Repeatable);
    let server = Arc::new(
        serve(layer.wait(Duration::ZERO), async |_, shop: Shop| {
            let number = shop.charge("");
            if number == 1 {
                shop.open("started");
                shop.pass("go").await;
            }
            Response::new(number.to_string().into())
        })
        .await,
    );
    let zombie = tokio::spawn({
        let server = server.clone();
        async move { post("k").send(&server).await }
    });
    server.shop.pass("started").await;
    // An operator took the key away, and it was executed anew.
    engine.forget("acct_1", "k").await.unwrap();
    let successor = post("k").send(&server).await;
    assert_eq!(successor.text(), "2");
    server.shop.open("go");
    let zombie = zombie.await.unwrap();
    assert_eq!((zombie.text(), zombie.is_replayed()), ("2".to_owned(), true));
}

#[tokio::test]
async fn a_failure_without_its_body_keeps_its_status() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let engine = Engine::builder(store)
        .clock(clock.clone())
        .response_retention(Duration::from_secs(3600))
        .build()
        .unwrap();
    let server = serve(layer(engine, Effects::Marked), async |_, shop: Shop| {
        shop.charge("");
        let response = Response::builder().status(402).header("content-type", "text/plain");
        response.header("location", "/declined").body("declined".into()).unwrap()
    })
    .await;
    assert_eq!(post("k").send(&server).await.text(), "declined");
    assert_eq!(post("k").send(&server).await.text(), "declined");
    clock.advance(Duration::from_secs(7200));
    let late = post("k").send(&server).await;
    assert_eq!((late.status, late.text(), late.is_replayed()), (402, String::new(), true));
    assert_eq!((late.header("location"), late.header("content-type")), (Some("/declined"), None));
    assert_eq!(server.shop.charges(), 1);
}

#[tokio::test]
async fn s8_settings_do_not_free_a_key_behind_a_marked_effect() {
    for (path, again) in [("/503?mark", 503), ("/502?mark", 409)] {
        let (_, layer, _) = clocked(Effects::Marked);
        let layer = layer.keep(|parts| match parts.status.as_u16() {
            503 => Keep::Released,
            502 => Keep::Retried(Duration::ZERO),
            _ => Keep::ByStatus,
        });
        let server = serve(layer, by_path).await;
        post(path).path(path).send(&server).await;
        assert_eq!(post(path).path(path).send(&server).await.status, again, "{path}");
        assert_eq!(server.shop.charges(), 1);
    }
}

/// The handler hands its lease to a worker, by token.
#[tokio::test]
async fn an_operation_that_is_handed_over_is_finished_by_its_worker() {
    let engine = memory();
    let tokens = Arc::new(std::sync::Mutex::new(None));
    let seen = tokens.clone();
    let layer = layer(engine.clone(), Effects::Marked).wait(Duration::ZERO);
    let server = serve(layer, move |request, shop: Shop| {
        let seen = seen.clone();
        async move {
            shop.charge("");
            let lease = request.extensions().get::<HeldLease>().unwrap();
            *seen.lock().unwrap() = Some(lease.token());
            let mut response = Response::builder().status(202).body(Body::empty()).unwrap();
            response.extensions_mut().insert(Keep::HandedOver);
            response
        }
    })
    .await;
    assert_eq!(post("k").send(&server).await.status, 202);
    assert_eq!(post("k").send(&server).await.problem(), "in-progress");
    let token = tokens.lock().unwrap().take().unwrap();
    engine.resume(&token).await.unwrap().complete("by the worker").await.unwrap();
    let again = post("k").send(&server).await;
    assert_eq!((again.status, again.text(), server.shop.charges()), (200, "by the worker".to_owned(), 1));
}

/// A release of the handler's own that failed is repeated.
#[tokio::test]
async fn a_release_that_failed_is_repeated() {
    let store = FaultyStore::new(MemoryStore::new());
    let engine = Engine::builder(store.clone()).call_timeout(Duration::from_millis(50)).build().unwrap();
    let faulty = store.clone();
    let server = serve(layer(engine, Effects::Assumed).wait(Duration::ZERO), move |request, shop: Shop| {
        let faulty = faulty.clone();
        async move {
            shop.charge("");
            let lease = request.extensions().get::<HeldLease>().unwrap().clone();
            faulty.from_call(faulty.calls() + 1, Fault::FailBefore);
            assert!(lease.release().await.is_err());
            faulty.heal();
            Response::builder().status(400).body("nothing happened".into()).unwrap()
        }
    })
    .await;
    for run in 1..=2 {
        assert_eq!(post("k").send(&server).await.text(), "nothing happened");
        assert_eq!(server.shop.charges(), run);
    }
}

/// A body that its handler declares a stream is sent as it comes.
#[tokio::test]
async fn a_declared_stream_is_recorded_before_its_first_byte() {
    let server = serve(layer(memory(), Effects::Marked), async |_, shop: Shop| {
        shop.charge("");
        let mut response = Response::new(pieces(&[b"a", b"b"], None));
        response.extensions_mut().insert(nevertwice::http::Streamed);
        response
    })
    .await;
    assert_eq!(post("k").send(&server).await.text(), "ab");
    assert_eq!(post("k").send(&server).await.problem(), "response-not-kept");
}

/// Trailers reach a client of HTTP/1.1, and its duplicate.
#[tokio::test]
async fn s2_trailers_are_kept() {
    let server = serve(layer(memory(), Effects::Marked), async |_, shop: Shop| {
        shop.charge("");
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", "7".parse().unwrap());
        let response = Response::builder().header("trailer", "x-checksum");
        response.body(pieces(&[b"a", b"b"], Some(trailers))).unwrap()
    })
    .await;
    for replayed in [false, true] {
        let ask = post("k").header("te", "trailers");
        let answer = exchange(server.address, &ask.bytes(), usize::MAX).await;
        let text = String::from_utf8(answer.clone()).unwrap();
        assert!(text.ends_with("0\r\nx-checksum: 7\r\n\r\n"), "{text:?}");
        assert_eq!((parse(&answer).text(), parse(&answer).is_replayed()), ("ab".to_owned(), replayed));
    }
}

/// A permit of a limit inside of the layer is taken for the handler only.
#[tokio::test]
async fn duplicates_hold_no_permit_of_an_inner_limit() {
    use axum::Router;
    use tower::limit::ConcurrencyLimitLayer;
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
    let app = Router::new().fallback(axum::routing::any(handler));
    let app = app.layer(ConcurrencyLimitLayer::new(2)).layer(once);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    let ask = move |key: &'static str| async move {
        parse(&exchange(address, &post(key).bytes(), usize::MAX).await)
    };
    let copies = (0..8).map(|_| tokio::spawn(ask("slow"))).collect::<Vec<_>>();
    shop.pass("started").await;
    // A slow body takes none either.
    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut slow, &post("body").bytes()[..60]).await.unwrap();
    let other = tokio::spawn(ask("other"));
    shop.pass("started").await;
    shop.open("go");
    shop.open("go");
    assert_eq!(other.await.unwrap().status, 200);
    for copy in copies {
        assert_eq!(copy.await.unwrap().status, 200);
    }
    assert_eq!(shop.charges(), 2);
}
