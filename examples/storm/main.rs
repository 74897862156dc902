//! A storm of duplicate deliveries against an idempotency engine.
//!
//! Every line of a JSON Lines file is delivered several times, shuffled and by many workers at
//! once, and some workers are dropped half way. In every case, each key's effect (a row in a
//! ledger) may happen at most once, each duplicate must get the recorded answer byte for byte, and
//! no key may be lost.
//!
//! ```text
//! cargo run --example storm
//! cargo run --release --features sqlite --example storm -- --input events.jsonl --key /id --store sqlite:events.db
//! ```
//!
//! The file to read first is `worker.rs`: it shows how a queue consumer uses the crate.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its terminal")]

mod input;
mod ledger;
mod queue;
mod report;
mod store;
mod worker;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::input::Input;
use crate::ledger::Ledger;
use crate::store::StoreArg;
use crate::worker::Storm;

/// Time limit, added to one lease, for a store that only fails: the run ends if no delivery is
/// settled for so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Delivers every line of a JSON Lines file several times, shuffled, concurrently and with crashes,
/// through the idempotency engine, and checks that nothing was done twice and nothing was lost.
#[derive(Debug, Parser)]
#[command(name = "storm", after_long_help = AFTER_HELP)]
struct Args {
    /// JSON Lines to deliver, one delivery a line [default: a sample of 251 payment events]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,

    /// JSON pointer to the idempotency key in a line: a string or a number. The whole line is the
    /// payload
    #[arg(long, value_name = "POINTER", default_value = "/id", value_parser = input::pointer)]
    key: String,

    /// Number of deliveries of every line
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    copies: u16,

    /// Number of deliveries processed at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..))]
    workers: u16,

    /// Share of the deliveries, 0 to 1, whose worker is dropped if it gets to execute: half of them
    /// before it marks the effect, the others after it, with or without a row in the ledger. The
    /// delivery comes again, and is not dropped again
    #[arg(long, value_name = "RATE", default_value_t = 0.01, value_parser = rate)]
    crash_rate: f64,

    /// Lease in milliseconds: the time for which a dropped worker blocks its key
    #[arg(long, value_name = "MS", default_value_t = 2000,
          value_parser = clap::value_parser!(u32).range(1..=86_400_000))]
    lease_ms: u32,

    /// The store of the engine's records: memory, sqlite:PATH, or redis://HOST [default: an SQLite
    /// file in a temporary folder]. A second run on the same store replays the outcomes of the
    /// first
    #[arg(long, value_name = "STORE")]
    store: Option<StoreArg>,

    /// Repeats the order and the crashes of an earlier run [default: drawn, and shown]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

const AFTER_HELP: &str = "\
The last line is for machines:
  deliveries      lines times copies
  keys            distinct keys among them
  effects         effects executed: rows in the ledger
  double_effects  keys whose effect ran twice (a dropped worker is no excuse: it had marked its effect)
  replays         deliveries answered with the recorded response
  in_progress     answers 'another worker holds the key'; such a delivery comes again
  mismatches      deliveries refused because their key belongs to another payload
  takeovers       executions that took over from a dropped worker
  unresolved      deliveries answered 'the effect may have happened, left to an operator'
  lost            keys that were delivered and have neither an outcome nor an open state in the store

The exit code is 1 if an effect was doubled, a key lost, or a replay not the recorded response, and if the
input or the store cannot be used; 2 for wrong arguments.";

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(rate),
        Ok(_) | Err(_) => Err("a rate is a number from 0 to 1".to_owned()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match storm(Args::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("storm: error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the storm. Returns true if every promise was kept.
async fn storm(args: Args) -> Result<bool, Box<dyn Error>> {
    let Input { name, lines, keys, malformed } = input::read(args.input.as_deref(), &args.key)?;
    for fault in &malformed {
        eprintln!("storm: {name}, line {}: skipped: {}", fault.line, fault.what);
    }

    let folder = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
    let store = args.store.clone().unwrap_or_else(|| match cfg!(feature = "sqlite") {
        true => StoreArg::Sqlite(folder.path().join("storm.db")),
        false => StoreArg::Memory,
    });
    let lease = Duration::from_millis(args.lease_ms.into());
    let engine = store::open(&store).await?.lease(lease).build()?;

    let (copies, workers, crash_rate) = (args.copies, args.workers, args.crash_rate);
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("storm: {} lines of {name} with {} keys, {copies} copies of each", lines.len(), keys.len());
    println!("storm: {workers} workers, crash rate {crash_rate}, seed {seed}, store {store}");
    if args.store.is_none() && cfg!(not(feature = "sqlite")) {
        println!("storm: for an SQLite file: cargo run --features sqlite --example storm");
    }

    let queue = queue::fill(lines.len(), copies, crash_rate, seed);
    let deliveries = queue.len();
    let storm = Arc::new(Storm {
        engine: engine.clone(),
        lines,
        ledger: Ledger::default(),
        tally: Mutex::default(),
        bar: ProgressBar::new(deliveries as u64).with_style(ProgressStyle::with_template(
            "{spinner} {bar:40} {pos} of {len} deliveries settled, {elapsed}",
        )?),
        began: Instant::now(),
        patience: PATIENCE + lease,
    });
    storm.bar.enable_steady_tick(Duration::from_millis(100));
    queue::drain(&storm, queue, workers).await?;
    let took = storm.began.elapsed();
    storm.bar.finish_and_clear();

    let found = report::inspect(&engine, &keys).await?;
    Ok(report::print(deliveries, keys.len(), &found, &storm.ledger.count(), &storm.tally(), took))
}
