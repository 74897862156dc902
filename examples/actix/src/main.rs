//! actix-web, which is not tower and has an HTTP library of its own, over the pure rules of
//! `nevertwice::http::protocol`.
//!
//! ```text
//! cargo run -p actix_payments                      # on port 3002; its records end with it
//!
//! pay() { curl -is http://127.0.0.1:3002/payments -H 'Authorization: Bearer sk_test_1' "$@"; }
//! pay -H 'Idempotency-Key: order-1' --json '{"amount": 700}'
//! pay -H 'Idempotency-Key: order-1' --json '{"amount": 700}'    # Idempotency-Replayed: true
//! pay -H 'Idempotency-Key: order-1' --json '{"amount": 900}'    # 422
//! curl -s http://127.0.0.1:3002/ledger                          # one payment
//! ```
//!
//! `once.rs` is the adapter. Unlike the layer for tower it buffers every response, it has no limit
//! of the requests under way, and at a shutdown it waits only for those whose clients are there.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its terminal")]

mod once;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::AUTHORIZATION;
use actix_web::middleware::{Next, from_fn};
use actix_web::web::{Data, Json, ReqData, get, resource, scope};
use actix_web::{App, Error, HttpMessage, HttpResponse, HttpServer, error};
use nevertwice::{Engine, Lease, MemoryStore};
use serde_json::{Value, json};

/// The authenticated caller.
#[derive(Debug, Clone)]
struct Account(String);

/// The effects.
type Ledger = Data<Mutex<Vec<Value>>>;

#[actix_web::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::args().nth(1).map_or(Ok(3002), |port| port.parse())?;
    let engine = Data::new(Engine::builder(MemoryStore::new()).build()?);
    let ledger: Ledger = Data::new(Mutex::new(Vec::new()));
    let server = HttpServer::new(move || {
        // The last one is the outermost.
        let payments = resource("").post(pay).wrap(from_fn(once::once)).wrap(from_fn(authenticate));
        App::new()
            .app_data(engine.clone())
            .app_data(ledger.clone())
            .service(scope("/payments").service(payments))
            .route("/ledger", get().to(list))
    })
    .workers(2)
    .bind(("127.0.0.1", port))?;
    println!("listening on http://{}", server.addrs()[0]);
    Ok(server.run().await?)
}

/// Accepts every API key, and takes it for the caller. A real one returns an account: operators see
/// the scopes of keys.
async fn authenticate(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(account) = header.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned) else {
        return Err(error::ErrorUnauthorized("send Authorization: Bearer sk_.."));
    };
    request.extensions_mut().insert(Account(account));
    next.call(request).await
}

async fn pay(
    lease: ReqData<Arc<Lease>>,
    ledger: Ledger,
    payment: Json<Value>,
) -> Result<HttpResponse, Error> {
    let Some(amount) = payment["amount"].as_u64().filter(|amount| *amount > 0) else {
        return Err(error::ErrorBadRequest("amount must be a whole number from 1"));
    };
    let taken = Duration::from_millis(payment["takes_ms"].as_u64().unwrap_or(0));
    lease.mark_effect().await.map_err(error::ErrorServiceUnavailable)?;
    let paid = json!({ "id": lease.derive_key("payment"), "amount": amount });
    ledger.lock().unwrap_or_else(PoisonError::into_inner).push(paid.clone());
    actix_web::rt::time::sleep(taken).await;
    Ok(HttpResponse::Ok().json(paid))
}

async fn list(ledger: Ledger) -> HttpResponse {
    HttpResponse::Ok().json(&*ledger.lock().unwrap_or_else(PoisonError::into_inner))
}
