//! A receiver of webhooks on axum: each event is handled once, however often it is delivered.
//!
//! ```text
//! cargo run -p webhooks_axum                       # on the SQLite file webhooks.db
//!
//! # Standard Webhooks, which Svix and others send:
//! body='{"type":"invoice.paid"}' id=msg_1 now=$(date +%s)
//! sign=$(printf '%s.%s.%s' $id $now "$body" | openssl dgst -sha256 -hmac demo-secret-of-webhooks -binary | base64)
//! curl -i http://127.0.0.1:3001/webhooks/standard -d "$body" -H "webhook-id: $id" \
//!     -H "webhook-timestamp: $now" -H "webhook-signature: v1,$sign"
//!
//! # Stripe:
//! body='{"id":"evt_1","type":"invoice.paid","pending_webhooks":1}'
//! sign=$(printf '%s.%s' $now "$body" | openssl dgst -sha256 -hmac whsec_demo -r | cut -d ' ' -f 1)
//! curl -i http://127.0.0.1:3001/webhooks/stripe -d "$body" -H "stripe-signature: t=$now,v1=$sign"
//!
//! # Each again: Idempotency-Replayed: true. A changed signature: 401.
//! cat events.jsonl                                 # two events
//! ```
//!
//! The files to read are `receiver.rs` and `signature.rs`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its terminal")]

mod receiver;
mod signature;

use std::error::Error;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nevertwice::{Engine, SqliteStore};
use tokio::net::TcpListener;
use tokio::signal::ctrl_c;

use crate::receiver::Receiver;
use crate::signature::{Standard, Stripe};

/// The longest time for which these senders deliver an event again: three days at Stripe.
const HORIZON: Duration = Duration::from_secs(3 * 24 * 3600);

/// A receiver of webhooks that handles each event once.
#[derive(Debug, Parser)]
#[command(name = "webhooks_axum")]
struct Args {
    /// The port on 127.0.0.1; 0 takes a free one, which is printed
    #[arg(long, value_name = "PORT", default_value_t = 3001)]
    port: u16,

    /// The SQLite file of the keys
    #[arg(long, value_name = "FILE", default_value = "webhooks.db")]
    db: PathBuf,

    /// The file of the effects: a line for every event that was handled
    #[arg(long, value_name = "FILE", default_value = "events.jsonl")]
    events: PathBuf,

    /// The secret of the endpoint for Standard Webhooks
    #[arg(long, value_name = "SECRET", default_value = "whsec_ZGVtby1zZWNyZXQtb2Ytd2ViaG9va3M=")]
    standard_secret: String,

    /// The secret of the endpoint for Stripe
    #[arg(long, value_name = "SECRET", default_value = "whsec_demo")]
    stripe_secret: String,

    /// Lease in milliseconds: the time for which a killed receiver blocks its events
    #[arg(long, value_name = "MS", default_value_t = 30_000)]
    lease_ms: u32,

    /// Time that an event takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    work_ms: u32,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("webhooks_axum: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let store =
        SqliteStore::open(&args.db).map_err(|error| format!("cannot open {}: {error}", args.db.display()))?;
    // The builder refuses a retention that is shorter than the horizon.
    let lease = Duration::from_millis(args.lease_ms.into());
    let engine = Engine::builder(store).lease(lease).retry_horizon(HORIZON).retention(HORIZON * 2).build()?;
    let standard = Standard::new(&args.standard_secret)
        .map_err(|error| format!("the secret for Standard Webhooks must be base64: {error}"))?;
    let receiver = Receiver::new(args.events, Duration::from_millis(args.work_ms.into()));
    let (app, layers) = receiver::app(engine, receiver, standard, Stripe::new(&args.stripe_secret));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, args.port))
        .await
        .map_err(|error| format!("cannot listen on port {}: {error}", args.port))?;
    println!("listening on http://{}", listener.local_addr()?);
    // What payments_axum adds for an orderly end is left out here.
    let stop = async {
        let _ = ctrl_c().await;
    };
    axum::serve(listener, app).with_graceful_shutdown(stop).await?;
    for layer in layers {
        layer.idle().await;
    }
    Ok(())
}
