//! A payment API on axum: each payment is booked once, however often and in whatever way its
//! request is repeated.
//!
//! ```text
//! cargo run -p payments_axum                       # on the SQLite files payments.db and payments.keys.db
//! cargo run -p payments_axum -- --store redis://127.0.0.1:6379
//! cargo run -p payments_axum -- --store postgres://postgres@127.0.0.1/postgres
//!
//! pay() { curl -is http://127.0.0.1:3000/v1/payment_intents -H 'Authorization: Bearer sk_test_1' "$@"; }
//! pay -H 'Idempotency-Key: order-1' -d amount=700 -d currency=eur -d 'metadata[order]=order-1'
//! pay -H 'Idempotency-Key: order-1' -d amount=700 -d currency=eur -d 'metadata[order]=order-1'
//!                                                  # the same answer, and Idempotency-Replayed: true
//! pay -H 'Idempotency-Key: order-1' -d amount=900 -d currency=eur      # 422: another payment
//! pay -d amount=700 -d currency=eur                                    # 400: no key
//! pay -H 'Idempotency-Key: order-2' -d amount=-1 -d currency=eur       # 400, and the key is free
//! pay -H 'Idempotency-Key: order-2' --json '{"amount": 5, "currency": "eur"}'
//! curl -s http://127.0.0.1:3000/ledger             # two payments
//! ```
//!
//! To try a crash, start it with `--latency-ms 4000 --lease-ms 3000` and kill it with `kill -9`
//! while a payment is under way. Start it again and repeat the request: within the lease the answer
//! is 409 `in-progress`, after it 409 `unresolved`, since the payment may have been booked. It is
//! never booked twice.
//!
//! `payments.rs` is the file to read. `sdk/run` runs the official SDKs of Stripe against this
//! server.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its terminal")]

mod ledger;
mod payment;
mod payments;
mod store;

use std::error::Error;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use clap::Parser;
use nevertwice::http::IdempotencyLayer;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::ledger::Ledger;
use crate::payments::Settings;
use crate::store::StoreArg;

/// The time that connections and payments get to finish at a shutdown.
const GRACE: Duration = Duration::from_secs(20);

/// A payment API that books each payment once.
#[derive(Debug, Parser)]
#[command(name = "payments_axum")]
struct Args {
    /// The port on 127.0.0.1; 0 takes a free one, which is printed
    #[arg(long, value_name = "PORT", default_value_t = 3000)]
    port: u16,

    /// The SQLite file of the ledger
    #[arg(long, value_name = "FILE", default_value = "payments.db")]
    db: PathBuf,

    /// The store of the keys: sqlite:PATH, redis://HOST:PORT, postgres://USER@HOST/DATABASE or
    /// memory [default: sqlite, in a file beside the ledger]
    #[arg(long, value_name = "STORE")]
    store: Option<StoreArg>,

    /// Time that the provider takes for a payment, in milliseconds: one half before it is booked,
    /// one half after
    #[arg(long, value_name = "MS", default_value_t = 0)]
    latency_ms: u32,

    /// Lease in milliseconds: the time for which a killed server blocks its payments
    #[arg(long, value_name = "MS", default_value_t = 30_000)]
    lease_ms: u32,

    /// Time that a duplicate waits for the payment under way, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    wait_ms: u32,

    /// Answers as Stripe does: 400 for a key that was used for another payment, and
    /// Idempotent-Replayed
    #[arg(long)]
    stripe: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("payments_axum: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let millis = |millis: u32| Duration::from_millis(millis.into());
    let ledger = Ledger::open(&args.db)
        .map_err(|error| format!("cannot open the ledger {}: {error}", args.db.display()))?;
    let store = args.store.unwrap_or_else(|| StoreArg::beside(&args.db));
    let engine = store::open(&store).await?.lease(millis(args.lease_ms)).build()?;
    let settings =
        Settings { latency: millis(args.latency_ms), wait: millis(args.wait_ms), like_stripe: args.stripe };
    let (app, once) = payments::app(engine, ledger, settings);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port))
        .await
        .map_err(|error| format!("cannot listen on port {}: {error}", args.port))?;
    println!("listening on http://{}", listener.local_addr()?);
    serve(listener, app, once).await
}

/// Serves until a signal. Then connections and payments under way finish: a handler outlives its
/// connection, and one that ends with the process leaves its payment to an operator.
async fn serve(listener: TcpListener, app: Router, once: IdempotencyLayer) -> Result<(), Box<dyn Error>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stop = Arc::new(Notify::new());
    let stopped = stop.clone();
    let server = axum::serve(listener, app).with_graceful_shutdown(async move { stopped.notified().await });
    let deadline = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.notify_one();
        sleep(GRACE).await;
    };
    tokio::select! {
        ended = server.into_future() => ended?,
        () = deadline => eprintln!("some connections did not end within {GRACE:?}"),
    }
    timeout(GRACE, once.idle())
        .await
        .map_err(|_| format!("{} payments are still under way", once.in_flight()).into())
}
