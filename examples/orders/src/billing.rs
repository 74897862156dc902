//! The consumer: a bill and the record of its event in one transaction.

use std::net::SocketAddr;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use nevertwice::outbox::{DeliveryError, Event, EventId};
use nevertwice::postgres::{begin_in, complete_in};
use nevertwice::{Begin, Fingerprint, Request};
use serde::Deserialize;
use sqlx::{Executor, PgPool, Row};

use crate::App;
use crate::orders::Failure;

/// The header with the event's id, by which the consumer deduplicates.
const EVENT_ID: &str = "event-id";

/// The sending side: the relay's closure.
pub(crate) struct Publisher {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
}

impl Publisher {
    pub(crate) fn new(consumer: SocketAddr) -> Publisher {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Publisher { client, url: format!("http://{consumer}/events") }
    }

    /// Delivers an event. Every answer but success is an error, and the relay retries.
    pub(crate) async fn publish(&self, event: Event) -> Result<(), DeliveryError> {
        let request = axum::http::Request::post(&self.url)
            .header(EVENT_ID, event.id().to_string())
            .body(Full::new(event.payload().clone()))?;
        let status = self.client.request(request).await?.status();
        match status {
            StatusCode::NO_CONTENT => Ok(()),
            // It would be refused again.
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Err(DeliveryError::reject(status)),
            status => Err(DeliveryError::retry(status)),
        }
    }
}

#[derive(Deserialize)]
struct Order {
    order: i64,
    customer: String,
    amount: i64,
}

pub(crate) async fn create_table(pool: &PgPool) -> Result<(), sqlx::Error> {
    let sql = "CREATE TABLE IF NOT EXISTS bills (id bigserial PRIMARY KEY, order_id bigint NOT NULL, \
               customer text NOT NULL, amount bigint NOT NULL)";
    pool.execute(sql).await.map(|_| ())
}

/// Receives an event, possibly for the second time.
pub(crate) async fn receive(State(app): State<App>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let id = headers.get(EVENT_ID).and_then(|id| id.to_str().ok()).and_then(|id| id.parse::<EventId>().ok());
    let (Some(id), Ok(order)) = (id, serde_json::from_slice::<Order>(&body)) else {
        return StatusCode::BAD_REQUEST;
    };
    let Ok(request) = Request::new(["billing", "orders"], id.to_string()) else {
        return StatusCode::BAD_REQUEST;
    };
    match bill(&app, &request.fingerprint(Fingerprint::of(&body)), &order).await {
        Ok(status) => status,
        // The relay repeats the delivery.
        Err(Failure::Repeat) => StatusCode::SERVICE_UNAVAILABLE,
        Err(Failure::Other(error)) => {
            eprintln!("a bill failed: {error}");
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

async fn bill(app: &App, request: &Request, order: &Order) -> Result<StatusCode, Failure> {
    let mut tx = app.pool.begin().await?;
    match begin_in(&mut tx, &app.store, &app.policy, request).await? {
        Begin::Acquired(lease) => {
            let sql = "INSERT INTO bills (order_id, customer, amount) VALUES ($1, $2, $3)";
            let bill = sqlx::query(sql).bind(order.order).bind(&order.customer).bind(order.amount);
            bill.execute(&mut *tx).await?;
            complete_in(&mut tx, &lease, "").await?;
            tx.commit().await?;
            Ok(StatusCode::NO_CONTENT)
        }
        Begin::Completed(_) => Ok(StatusCode::NO_CONTENT),
        Begin::InProgress(_) => Ok(StatusCode::SERVICE_UNAVAILABLE),
        Begin::Failed(_) | Begin::Unresolved(_) | Begin::Mismatch(_) => Ok(StatusCode::UNPROCESSABLE_ENTITY),
    }
}

/// Lists the bills, one a line: order, customer, amount.
pub(crate) async fn ledger(State(app): State<App>) -> Response {
    match sqlx::query("SELECT order_id, customer, amount FROM bills ORDER BY id").fetch_all(&app.pool).await {
        Ok(rows) => {
            let line = |row: &sqlx::postgres::PgRow| {
                format!("{}\t{}\t{}\n", row.get::<i64, _>(0), row.get::<String, _>(1), row.get::<i64, _>(2))
            };
            let text: String = rows.iter().map(line).collect();
            ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
        }
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
