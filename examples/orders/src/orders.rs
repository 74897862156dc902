//! The order service: order, record and event in one transaction.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nevertwice::postgres::{begin_in, complete_in};
use nevertwice::{Begin, Error, Fingerprint, Request};
use serde::Deserialize;
use sqlx::{Executor, PgPool};

use crate::App;

/// The times that a transaction is repeated which PostgreSQL gave up for another one.
const TRIES: u32 = 5;

#[derive(Deserialize)]
struct NewOrder {
    customer: String,
    amount: i64,
}

pub(crate) async fn create_table(pool: &PgPool) -> Result<(), sqlx::Error> {
    let sql = "CREATE TABLE IF NOT EXISTS orders (id bigserial PRIMARY KEY, customer text NOT NULL, \
               amount bigint NOT NULL)";
    pool.execute(sql).await.map(|_| ())
}

/// Places an order, once for each `Idempotency-Key`.
pub(crate) async fn place(State(app): State<App>, headers: HeaderMap, body: Bytes) -> Response {
    let Some(key) = headers.get("idempotency-key").and_then(|key| key.to_str().ok()) else {
        return (StatusCode::BAD_REQUEST, "an Idempotency-Key is required\n").into_response();
    };
    let Ok(order) = serde_json::from_slice::<NewOrder>(&body) else {
        return (StatusCode::BAD_REQUEST, "the body is not an order\n").into_response();
    };
    // Longer, or with control characters, it is no part of a scope and no key of an event.
    let customer = order.customer.as_str();
    if customer.is_empty() || customer.len() > 255 || customer.chars().any(char::is_control) {
        let text = "the customer has 1 to 255 bytes without control characters\n";
        return (StatusCode::BAD_REQUEST, text).into_response();
    }
    // In a real service the customer is the one that logged in. Two of them may choose one key.
    let request = match Request::new(["shop", customer, "orders"], key) {
        Ok(request) => request.fingerprint(Fingerprint::of(&body)),
        Err(error) => return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    };
    for _ in 0..TRIES {
        match place_once(&app, &request, &order).await {
            Ok(response) => return response,
            Err(Failure::Repeat) => {}
            Err(Failure::Other(error)) => {
                eprintln!("an order failed: {error}");
                break;
            }
        }
    }
    // The outcome may be unknown, as after a lost connection: the client repeats the request.
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")]).into_response()
}

/// Runs the transaction once.
async fn place_once(app: &App, request: &Request, order: &NewOrder) -> Result<Response, Failure> {
    let mut tx = app.pool.begin().await?;
    let lease = match begin_in(&mut tx, &app.store, &app.policy, request).await? {
        Begin::Acquired(lease) => lease,
        Begin::Completed(done) => return Ok(created(done.response().cloned().unwrap_or_default())),
        Begin::InProgress(busy) => {
            let after = busy.retry_after().as_secs().to_string();
            return Ok((StatusCode::CONFLICT, [(header::RETRY_AFTER, after)]).into_response());
        }
        Begin::Mismatch(_) => {
            return Ok(
                (StatusCode::UNPROCESSABLE_ENTITY, "the key belongs to another order\n").into_response()
            );
        }
        // This service records no failures: what fails is rolled back.
        Begin::Failed(_) | Begin::Unresolved(_) => {
            return Ok(StatusCode::INTERNAL_SERVER_ERROR.into_response());
        }
    };
    let sql = "INSERT INTO orders (customer, amount) VALUES ($1, $2) RETURNING id";
    let id: i64 =
        sqlx::query_scalar(sql).bind(&order.customer).bind(order.amount).fetch_one(&mut *tx).await?;
    let event = serde_json::json!({ "order": id, "customer": order.customer, "amount": order.amount });
    // The customer is the key: a customer's orders are billed in their order.
    app.outbox.push_in(&mut tx, "orders", &order.customer, event.to_string()).await?;
    let response = Bytes::from(format!("{{\"order\":{id}}}\n"));
    complete_in(&mut tx, &lease, response.clone()).await?;
    tx.commit().await?;
    // The relay would find the event without it, later.
    let outbox = app.outbox.clone();
    tokio::spawn(async move { outbox.wake().await });
    Ok(created(response))
}

fn created(body: Bytes) -> Response {
    (StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The reason why a transaction was not committed.
pub(crate) enum Failure {
    /// PostgreSQL gave it up for another one.
    Repeat,
    Other(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::RepeatTransaction { .. } => Failure::Repeat,
            error => Failure::Other(error.to_string()),
        }
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Failure {
        let code = error.as_database_error().and_then(|error| error.code());
        match code.as_deref() {
            Some("40001" | "40P01" | "55P03") => Failure::Repeat,
            Some(_) | None => Failure::Other(error.to_string()),
        }
    }
}
