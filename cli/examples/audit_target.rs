//! A payment service with a fault of your choice, to try `nevertwice audit` on.
//!
//! ```text
//! cargo run -p nevertwice-cli --example audit_target -- checks-then-runs
//! cargo run -p nevertwice-cli -- audit http://127.0.0.1:3100/pay --json '{"amount": 4200}' \
//!     --header 'Authorization: Bearer alice' --other-header 'Authorization: Bearer bob' \
//!     --fail-header 'X-Fail: 1' --id-pointer /id \
//!     --count-url http://127.0.0.1:3100/count --count-pointer /total
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its terminal")]

#[path = "../tests/support/target.rs"]
mod target;

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::TcpListener;

use self::target::{Fault, Target};

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let (name, port) = match &*arguments {
        [] => ("none", "3100"),
        [name] => (name.as_str(), "3100"),
        [name, port, ..] => (name.as_str(), port.as_str()),
    };
    let (Some(fault), Ok(port)) = (Fault::named(name), port.parse::<u16>()) else {
        let names: Vec<_> = Fault::ALL.iter().map(|(_, name, ..)| *name).collect();
        eprintln!("usage: audit_target [FAULT] [PORT], where FAULT is one of {}", names.join(", "));
        return ExitCode::from(2);
    };
    let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("audit_target: port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Ok(address) = listener.local_addr() {
        println!("listening on http://{address}, fault: {}", fault.name());
    }
    let target = Target::new(fault, Duration::from_millis(60), None);
    match axum::serve(listener, target.router()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("audit_target: {error}");
            ExitCode::FAILURE
        }
    }
}
