//! One of everything at the edges: the HTTP layer and the outbox.

use std::future::{poll_fn, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http_body_util::Full;
use nevertwice::clock::Sleep;
use nevertwice::http::http::request::Parts;
use nevertwice::http::http::{Request as HttpRequest, Response};
use nevertwice::http::{Effects, IdempotencyLayer, LayerBody};
use nevertwice::outbox::{DeliveryError, Event, Relay};
use nevertwice::{Clock, SqliteOutbox};
use tower::{Layer, ServiceExt, service_fn};

use super::*;

/// Runs the story of the HTTP layer, then that of the outbox.
pub(crate) fn edges() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        http().await;
        outbox().await;
    });
}

/// Polls `call`, and advances the clock whenever nothing else can go on.
async fn driven_along<T>(clock: &ManualClock, call: impl Future<Output = T>) -> T {
    let mut call = std::pin::pin!(call);
    loop {
        if let Poll::Ready(value) = poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await {
            return value;
        }
        clock.advance(Duration::from_millis(100));
        tokio::task::yield_now().await;
    }
}

async fn http() {
    let clock = ManualClock::new();
    let store = FaultyStore::with_clock(MemoryStore::builder().clock(clock.clone()).build(), clock.clone());
    let engine = Engine::builder(store.clone()).clock(clock.clone()).build().unwrap();
    let caller = |parts: &Parts| parts.headers.get("caller").map(|_| "orders");
    let layer = IdempotencyLayer::new(engine, Effects::Assumed, caller).fail_open();
    // The store goes away while the request `breaks` is handled.
    let breaking = store.clone();
    let handler = service_fn(move |request: HttpRequest<LayerBody<Full<Bytes>>>| {
        if request.uri().path() == "/breaks" {
            breaking.from_call(breaking.calls() + 1, Fault::FailBefore);
        }
        ready(Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(secret("response"))))))
    });
    let service = layer.layer(handler);
    let ask = async |path: &str, caller: &str| {
        let request = HttpRequest::post(path).header("idempotency-key", secret(&path[1..]));
        let request = request.header(caller, "").body(Full::new(Bytes::from(secret("payload")))).unwrap();
        let response = driven_along(&clock, service.clone().oneshot(request)).await.unwrap();
        while layer.in_flight() > 0 {
            clock.advance(SECOND);
            tokio::task::yield_now().await;
        }
        response.status().as_u16()
    };
    assert_eq!(ask("/executed", "caller").await, 200);
    assert_eq!(ask("/executed", "nobody").await, 500);
    assert_eq!(ask("/breaks", "caller").await, 200);
    assert_eq!(ask("/unprotected", "caller").await, 200);
}

/// The time between two measurements of the outbox.
const MEASURED: Duration = Duration::from_secs(17);

/// A clock that notes the pause after a measurement.
#[derive(Debug, Clone)]
struct Noting(ManualClock, Arc<AtomicBool>);

impl Clock for Noting {
    fn wall(&self) -> Duration {
        self.0.wall()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        self.1.fetch_or(time == MEASURED, Ordering::SeqCst);
        self.0.sleep(time)
    }
}

async fn outbox() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("app.db");
    let mut db = rusqlite::Connection::open(&path).unwrap();
    let measured = Arc::new(AtomicBool::new(false));
    let clock = Noting(ManualClock::new(), measured.clone());
    let outbox = SqliteOutbox::builder(&path).clock(clock).open().unwrap();
    let transaction = db.transaction().unwrap();
    for key in ["good", "bad"] {
        outbox.push_in(&transaction, "orders", &secret(key), secret("payload").as_bytes()).unwrap();
    }
    transaction.commit().unwrap();
    let relay = Relay::new(outbox).stats_every(MEASURED);
    let deliver = |event: Event| {
        let is_good = event.key().ends_with("good");
        ready(if is_good { Ok(()) } else { Err(DeliveryError::reject(secret("error"))) })
    };
    let drained = relay.drain(deliver).await.unwrap();
    assert_eq!((drained.delivered, drained.dead), (1, 1));
    let is_measured = poll_fn(|context| {
        context.waker().wake_by_ref();
        if measured.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
    });
    relay.run_until(deliver, is_measured).await.unwrap();
    db.execute_batch("DROP TABLE nevertwice_outbox").unwrap();
    relay.drain(deliver).await.unwrap_err();
}
