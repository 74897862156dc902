//! Effect, event and deduplication from end to end: an order service, an outbox, and a consumer
//! that bills each order once.
//!
//! ```text
//! sudo apt-get install postgresql          # or any PostgreSQL, 13 or later
//! createdb shop
//! cargo run -p orders -- postgres://localhost/shop
//!
//! curl -i localhost:3000/orders -H 'Idempotency-Key: 8d7f-11' -H 'Content-Type: application/json' \
//!      -d '{"customer": "ada", "amount": 4200}'          # 201, the order and its event in one commit
//! curl -i localhost:3000/orders -H 'Idempotency-Key: 8d7f-11' -H 'Content-Type: application/json' \
//!      -d '{"customer": "ada", "amount": 4200}'          # the same answer, and no second order
//! curl -i localhost:3000/orders -H 'Idempotency-Key: 8d7f-11' -H 'Content-Type: application/json' \
//!      -d '{"customer": "ada", "amount": 9900}'          # 422: the key belongs to another order
//! curl localhost:3000/ledger                             # one bill for each order
//! ```
//!
//! Kill it with `kill -9` at any point, start it again, and repeat what got no answer under the
//! same key: every order exists once and is billed once. The files to read are `orders.rs`, where
//! order, record and event are one transaction, and `billing.rs`, where a bill and the record of
//! its event are another. In a larger system they are two services with two databases, and a broker
//! is between them.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its terminal")]

mod billing;
mod orders;

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use clap::Parser;
use nevertwice::outbox::Relay;
use nevertwice::{Engine, Policy, PostgresOutbox, PostgresStore};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;

/// Takes orders over HTTP and bills each of them once.
#[derive(Debug, Parser)]
struct Args {
    /// The database, such as postgres://localhost/shop
    url: String,
    /// The address to listen at
    #[arg(default_value = "127.0.0.1:3000")]
    address: SocketAddr,
}

/// The parts that all requests share.
#[derive(Clone)]
struct App {
    pool: PgPool,
    store: PostgresStore,
    outbox: PostgresOutbox,
    /// The policy of both sides. Windows that cannot be safe are refused when it is built.
    policy: Policy,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let pool = PgPoolOptions::new().max_connections(20).connect(&args.url).await?;
    let store = PostgresStore::connect(&args.url).await?;
    let outbox = PostgresOutbox::beside(&store).connect().await?;
    let engine = Engine::builder(store.clone()).retention(Duration::from_secs(7 * 24 * 3600)).build()?;
    orders::create_table(&pool).await?;
    billing::create_table(&pool).await?;

    let app = App { pool, store, outbox: outbox.clone(), policy: engine.policy().clone() };
    let router = Router::new()
        .route("/orders", post(orders::place))
        .route("/events", post(billing::receive))
        .route("/ledger", get(billing::ledger))
        .with_state(app);
    let listener = TcpListener::bind(args.address).await?;
    println!("listening at {}", listener.local_addr()?);

    // The relay posts each event to the consumer. Other processes may run one too.
    let publisher = billing::Publisher::new(listener.local_addr()?);
    let relay = Relay::new(outbox)
        .timeout(Duration::from_secs(5))
        .back_off(Duration::from_millis(200), Duration::from_secs(60));
    tokio::select! {
        served = axum::serve(listener, router) => served?,
        ended = relay.run(|event| publisher.publish(event)) => ended?,
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(())
}
