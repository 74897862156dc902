//! The API: who calls, which payment, and its effect.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use nevertwice::Engine;
use nevertwice::http::{Effects, HeldLease, IdempotencyLayer};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::ledger::{Booked, Failure, Ledger};
use crate::payment::{Fault, Payment};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// The time that the provider takes for a payment.
    pub(crate) latency: Duration,
    /// The time that a duplicate waits.
    pub(crate) wait: Duration,
    /// Answers as Stripe's, where they differ from the draft's.
    pub(crate) like_stripe: bool,
}

/// Returns the API, and its layer, whose [`idle`](IdempotencyLayer::idle) is awaited at a shutdown.
pub(crate) fn app(engine: Engine, ledger: Ledger, settings: Settings) -> (Router, IdempotencyLayer) {
    let mut once = IdempotencyLayer::new(engine, Effects::Marked, |parts: &Parts| {
        parts.extensions.get::<Account>().map(|account| [account.0.clone(), "payments".to_owned()])
    })
    .wait(settings.wait);
    if settings.like_stripe {
        let replayed = HeaderName::from_static("idempotent-replayed");
        once = once.mismatch_status(StatusCode::BAD_REQUEST).replayed_header(replayed);
    }
    let app = Router::new()
        .route("/v1/payment_intents", post(pay))
        // The last one is the outermost: a stranger must not get a stored response.
        .route_layer(once.clone())
        .route_layer(from_fn(authenticate))
        .route("/ledger", get(list))
        .fallback(|| async {
            error(StatusCode::NOT_FOUND, "invalid_request_error", None, "there is no such page")
        })
        .with_state((ledger, settings.latency));
    (app, once)
}

/// The authenticated caller, to whom a key belongs.
#[derive(Debug, Clone)]
struct Account(String);

/// Accepts every API key. The caller is its digest, since scopes are shown to operators.
async fn authenticate(mut request: Request, next: Next) -> Response {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = header
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty());
    let Some((_, token)) = token else {
        let message = "send your API key: Authorization: Bearer sk_..";
        return error(StatusCode::UNAUTHORIZED, "invalid_request_error", None, message);
    };
    let digest = blake3::hash(token.trim().as_bytes()).to_hex();
    request.extensions_mut().insert(Account(format!("acct_{}", &digest[..16])));
    next.run(request).await
}

/// Takes a payment. It runs once for a key, and a client that hangs up does not cancel it.
async fn pay(
    State((ledger, latency)): State<(Ledger, Duration)>,
    Extension(Account(caller)): Extension<Account>,
    lease: HeldLease,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let payment = match Payment::parse(&headers, &body) {
        Ok(payment) => payment,
        Err(fault) => return faulty(&fault),
    };
    // From here on a crash is not followed by a second try: the provider may have the payment.
    if lease.mark_effect().await.is_err() {
        let message = "nothing was booked; repeat the request, with the same key";
        return error(StatusCode::SERVICE_UNAVAILABLE, "api_error", None, message);
    }
    // The provider's own idempotency key is the same whenever this operation runs.
    let id = format!("pi_{}", lease.derive_key("payment"));
    match charge(&ledger, latency, &id, &caller, &payment).await {
        Ok(Booked::Done) => (StatusCode::OK, Json(shown(&id, &payment))).into_response(),
        Ok(Booked::Refused) => {
            let message = "the provider has another payment under this key: use a new one";
            error(StatusCode::CONFLICT, "idempotency_error", None, message)
        }
        // It is unknown whether it happened: after the mark, a 5xx is left to an operator.
        Err(_) => {
            let message = "it is unknown whether the payment was booked; repeat the request later, with \
                the same key";
            error(StatusCode::INTERNAL_SERVER_ERROR, "api_error", None, message)
        }
    }
}

/// The provider: books a payment, and takes its time for it.
async fn charge(
    ledger: &Ledger,
    latency: Duration,
    id: &str,
    caller: &str,
    payment: &Payment,
) -> Result<Booked, Failure> {
    sleep(latency / 2).await;
    let booked = ledger.book(id.to_owned(), caller.to_owned(), payment.clone()).await?;
    sleep(latency / 2).await;
    Ok(booked)
}

/// A payment as Stripe's SDKs read it.
fn shown(id: &str, payment: &Payment) -> Value {
    json!({
        "id": id,
        "object": "payment_intent",
        "amount": payment.amount,
        "amount_received": payment.amount,
        "currency": payment.currency,
        "livemode": false,
        "metadata": payment.metadata,
        "status": "succeeded",
    })
}

async fn list(State((ledger, _)): State<(Ledger, Duration)>) -> Response {
    match ledger.payments().await {
        Ok(payments) => Json(payments).into_response(),
        Err(_) => {
            error(StatusCode::SERVICE_UNAVAILABLE, "api_error", None, "the ledger cannot be read at present")
        }
    }
}

/// An answer to a faulty request. No record is kept of it, so that a corrected one may have its
/// key.
fn faulty(fault: &Fault) -> Response {
    let kind = "invalid_request_error";
    match fault {
        Fault::Parameter(parameter, message) => {
            error(StatusCode::BAD_REQUEST, kind, Some(parameter), message)
        }
        Fault::MediaType => {
            let message = "send application/x-www-form-urlencoded or application/json";
            error(StatusCode::UNSUPPORTED_MEDIA_TYPE, kind, None, message)
        }
    }
}

fn error(status: StatusCode, kind: &str, parameter: Option<&str>, message: &str) -> Response {
    let body = json!({ "error": { "type": kind, "param": parameter, "message": message } });
    (status, Json(body)).into_response()
}
