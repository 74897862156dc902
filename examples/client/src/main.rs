//! A client of the payment API that repeats a payment until its outcome is known.
//!
//! ```text
//! cargo run -p payments_axum -- --latency-ms 8000 &      # slower than a duplicate waits
//! cargo run -p payments_client -- --order o1 --amount 700
//!
//! # It gave up, or was killed? The same key continues the same payment:
//! cargo run -p payments_client -- --order o1 --amount 700 --key 5cf2d6b0-8f0e-4a3c-9d0b-7b3a1a9f1c55
//! ```
//!
//! `lib.rs` is the file to read.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its terminal")]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use payments_client::{Failure, Payments};
use serde_json::json;
use uuid::Uuid;

/// Pays once, however often it has to ask.
#[derive(Debug, Parser)]
#[command(name = "payments_client")]
struct Args {
    /// The address of the API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:3000")]
    url: String,

    /// The API key
    #[arg(long, value_name = "KEY", default_value = "sk_test_1")]
    api_key: String,

    /// The amount, in the currency's smallest unit
    #[arg(long)]
    amount: u32,

    #[arg(long, default_value = "eur")]
    currency: String,

    /// The order that is paid
    #[arg(long)]
    order: String,

    /// The idempotency key of a payment whose outcome is still unknown [default: a new one]
    #[arg(long, value_name = "KEY")]
    key: Option<String>,

    /// Seconds after which it gives up
    #[arg(long, value_name = "S", default_value_t = 120)]
    patience: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    // Made once for the payment, and known before the first try. An application stores it with the
    // order.
    let key = args.key.unwrap_or_else(|| Uuid::new_v4().to_string());
    eprintln!("idempotency key: {key}");
    let payment =
        json!({ "amount": args.amount, "currency": args.currency, "metadata": { "order": args.order } });
    let payments = match Payments::new(&args.url, &args.api_key) {
        Ok(payments) => payments.patience(Duration::from_secs(args.patience)),
        Err(error) => {
            eprintln!("payments_client: {error}");
            return ExitCode::FAILURE;
        }
    };
    match payments.pay(&key, &payment).await {
        Ok(paid) => {
            println!("{paid}");
            ExitCode::SUCCESS
        }
        Err(error @ Failure::Refused { .. }) => {
            eprintln!("payments_client: {error}");
            ExitCode::FAILURE
        }
        Err(error @ Failure::Unknown { .. }) => {
            eprintln!("payments_client: {error}; run it again with --key {key}");
            ExitCode::FAILURE
        }
    }
}
