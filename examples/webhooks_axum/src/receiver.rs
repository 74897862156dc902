//! The endpoints: signature, key, effect.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, post};
use axum::{Json, Router};
use nevertwice::Engine;
use nevertwice::http::{Effects, HeldLease, IdempotencyLayer, webhook};
use serde_json::{Value, json};
use tokio::fs::OpenOptions;
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;
use tokio::time::sleep;

use crate::signature::{Standard, Stripe};

/// The longest body, in bytes.
const MAX_BODY: usize = 1 << 20;

/// The application behind the endpoints.
#[derive(Debug, Clone)]
pub(crate) struct Receiver {
    events: Arc<Mutex<PathBuf>>,
    work: Duration,
}

impl Receiver {
    pub(crate) fn new(events: PathBuf, work: Duration) -> Receiver {
        Receiver { events: Arc::new(Mutex::new(events)), work }
    }

    /// The effect: a line in a file, on the disk before it returns.
    async fn append(&self, event: &Value) -> std::io::Result<()> {
        let path = self.events.lock().await;
        let mut file = OpenOptions::new().create(true).append(true).open(&*path).await?;
        file.write_all(format!("{event}\n").as_bytes()).await?;
        file.sync_all().await
    }
}

/// An extension of requests whose signature is genuine: the endpoint, to which their keys belong.
#[derive(Debug, Clone, Copy)]
struct Verified(&'static str);

/// Returns the endpoints, and their layers.
pub(crate) fn app(
    engine: Engine,
    receiver: Receiver,
    standard: Standard,
    stripe: Stripe,
) -> (Router, [IdempotencyLayer; 2]) {
    // Without the check of the signature there is no scope, and the request is refused.
    let scope = |parts: &Parts| parts.extensions.get::<Verified>().map(|verified| verified.0);
    let for_standard = webhook::layer(engine.clone(), Effects::Marked, webhook::standard(), scope);
    let for_stripe = webhook::layer(engine, Effects::Marked, webhook::stripe(), scope);

    let standard = endpoint("webhooks/standard", for_standard.clone(), move |headers, body| {
        standard.verify(headers, body)
    });
    let stripe =
        endpoint("webhooks/stripe", for_stripe.clone(), move |headers, body| stripe.verify(headers, body));
    let app = Router::new()
        .route("/webhooks/standard", standard)
        .route("/webhooks/stripe", stripe)
        .with_state(receiver);
    (app, [for_standard, for_stripe])
}

/// An endpoint. From the outside in: the check of the signature, the layer, the handler.
fn endpoint<V>(name: &'static str, once: IdempotencyLayer, verify: V) -> MethodRouter<Receiver>
where
    V: Fn(&HeaderMap, &[u8]) -> bool + Clone + Send + Sync + 'static,
{
    let check = move |request: Request, next: Next| {
        let verify = verify.clone();
        async move {
            let (mut parts, body) = request.into_parts();
            // The signature is that of the bytes as they arrived, not of JSON that was parsed.
            let Ok(body) = to_bytes(body, MAX_BODY).await else {
                return StatusCode::PAYLOAD_TOO_LARGE.into_response();
            };
            if !verify(&parts.headers, &body) {
                return (StatusCode::UNAUTHORIZED, "the signature is missing, wrong or too old")
                    .into_response();
            }
            parts.extensions.insert(Verified(name));
            next.run(Request::from_parts(parts, Body::from(body))).await
        }
    };
    post(handle).layer(once).layer(from_fn(check))
}

/// Handles an event: it runs once for each.
async fn handle(State(receiver): State<Receiver>, lease: HeldLease, body: Bytes) -> Response {
    let Ok(event) = serde_json::from_slice::<Value>(&body) else {
        return (StatusCode::BAD_REQUEST, "the event must be JSON").into_response();
    };
    sleep(receiver.work).await;
    // Before the mark, a 5xx or a crash lets the next delivery run it again. After it, an operator
    // finds out.
    if lease.mark_effect().await.is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match receiver.append(&event).await {
        Ok(()) => Json(json!({ "received": true })).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
