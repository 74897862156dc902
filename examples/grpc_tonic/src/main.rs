//! A payment service on tonic, and its client.
//!
//! ```text
//! cargo build -p grpc_tonic; cd target/debug
//! ./grpc_tonic serve &                     # on port 3003; its records end with it
//! ./grpc_tonic pay order-1 700
//! ./grpc_tonic pay order-1 700             # the same receipt, replayed
//! ./grpc_tonic pay order-1 900             # INVALID_ARGUMENT: another payment
//! ./grpc_tonic pay order-2 13              # INTERNAL: it is unknown whether it happened
//! ./grpc_tonic pay order-2 13              # FAILED_PRECONDITION: an operator finds out
//! ```
//!
//! `lib.rs` is the file to read: the layer goes between authentication and service. In `build.rs`
//! the service is described without `protoc`; a service with a `.proto` file looks the same.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its terminal")]

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use grpc_tonic::{Ledger, Paid, PayRequest, PaymentsClient};
use nevertwice::{Engine, MemoryStore};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

const ADDRESS: &str = "127.0.0.1:3003";
const TRIES: u32 = 10;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => serve().await,
        ["pay", key, amount] => pay(key, amount).await,
        _ => {
            eprintln!("usage: grpc_tonic serve | grpc_tonic pay KEY AMOUNT");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("grpc_tonic: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(MemoryStore::new()).build()?;
    let listener = TcpListener::bind(ADDRESS).await?;
    println!("listening on http://{ADDRESS}");
    let stop = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    Ok(grpc_tonic::serve(listener, grpc_tonic::layer(engine), Ledger::default(), stop).await?)
}

async fn pay(key: &str, amount: &str) -> Result<(), Box<dyn Error>> {
    let channel = Channel::from_shared(format!("http://{ADDRESS}"))?.timeout(Duration::from_secs(30));
    let mut client = PaymentsClient::new(channel.connect().await?);
    let payment = PayRequest { amount: amount.parse()?, takes_ms: 0 };
    let paid = until_known(&mut client, key, payment).await?;
    let replayed = paid.metadata().contains_key("idempotency-replayed");
    println!("{}{}", paid.get_ref().id, if replayed { ", replayed" } else { "" });
    Ok(())
}

/// Repeats the call, under the same key, while the answer is UNAVAILABLE.
async fn until_known(
    client: &mut PaymentsClient<Channel>,
    key: &str,
    payment: PayRequest,
) -> Result<Response<Paid>, Status> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut request = Request::new(payment);
        let metadata = request.metadata_mut();
        metadata.insert("idempotency-key", key.parse().map_err(|_| Status::invalid_argument("the key"))?);
        metadata.insert("authorization", tonic::metadata::MetadataValue::from_static("Bearer sk_test_1"));
        match client.pay(request).await {
            Err(status) if status.code() == Code::Unavailable && tries < TRIES => {
                let pushback = status.metadata().get("grpc-retry-pushback-ms");
                let pushback = pushback.and_then(|value| value.to_str().ok()?.parse().ok());
                sleep(Duration::from_millis(pushback.unwrap_or(500))).await;
            }
            result => return result,
        }
    }
}
