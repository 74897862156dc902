//! A Kafka consumer: batches, offsets committed only up to the first message without an outcome,
//! and each message's effect once, whatever is redelivered.
//!
//! ```text
//! cargo build -p kafka_consumer             # compiles librdkafka: needs a C compiler and make
//! cd target/debug                           # and a broker at localhost:9092 with a topic `orders`
//! ./kafka_consumer --publish 1000           # some of them twice, some of them no orders
//! ./kafka_consumer & ./kafka_consumer --until-idle &
//! kill -9 %1                                # in the middle of it: the other one takes over
//! wait %2
//! cut -f 1 ledger.tsv | sort | uniq -d      # prints nothing: no effect happened twice
//! cat dead.tsv                              # left to an operator, each with its reason
//! ```
//!
//! `--dedup key` takes the record's key for the message's identity: it finds a message that its
//! producer sent twice, in any partition. The key must name the message, as an order's number
//! does, and not something that has many messages. `--dedup offset` needs nothing from the producer
//! and finds only what the broker delivers twice.
//!
//! The files to read are `consumer.rs`, where a message is handled, and `progress.rs`, which says
//! what may be committed.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its terminal")]

mod consumer;
mod progress;
mod publish;
mod topic;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nevertwice::{Engine, SqliteStore};

use crate::consumer::{Consumer, Dedup, Step};
use crate::topic::Topic;

/// Longer than the topic keeps its messages: later their keys would be new.
const RETENTION: Duration = Duration::from_secs(14 * 24 * 3600);
/// The polls without a message, of a second each, after which the topic is idle: beside the time
/// after which the broker gives a killed consumer's partitions to this one.
const QUIET: u32 = 3;

/// Consumes orders from Kafka. The effect of each happens once, however often it is delivered and
/// no matter which consumer is killed.
#[derive(Debug, Parser)]
#[command(name = "kafka_consumer")]
struct Args {
    /// The brokers
    #[arg(long, value_name = "HOST:PORT,..", default_value = "127.0.0.1:9092")]
    brokers: String,

    #[arg(long, value_name = "NAME", default_value = "orders")]
    topic: String,

    /// The consumer group. Another group handles every message for itself
    #[arg(long, value_name = "NAME", default_value = "shop")]
    group: String,

    /// The identity of a message
    #[arg(long, value_name = "BY", default_value = "key")]
    dedup: Dedup,

    /// Publishes N sample orders and ends: every third is sent twice, every 25th is no order
    #[arg(long, value_name = "N")]
    publish: Option<u32>,

    /// The file of the engine's records, the same one for all consumers
    #[arg(long, value_name = "FILE", default_value = "kafka_consumer.db")]
    store: PathBuf,

    /// The file of the effects: a line for every order that was booked
    #[arg(long, value_name = "FILE", default_value = "ledger.tsv")]
    ledger: PathBuf,

    /// The file of messages that are left to an operator
    #[arg(long, value_name = "FILE", default_value = "dead.tsv")]
    dead: PathBuf,

    /// Ends once nothing has been delivered for some seconds
    #[arg(long)]
    until_idle: bool,

    /// The most messages of a batch: they are handled at once
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    batch: u16,

    /// Lease in milliseconds: the time for which a killed consumer blocks its messages
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    lease_ms: u32,

    /// The time after which the broker gives a killed consumer's partitions to others
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    session_ms: u32,

    /// Stops at a step of the first batch, to be killed
    #[arg(long, value_name = "STEP")]
    hang_at: Option<Step>,
}

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    let args = Args::parse();
    let run = match args.publish {
        Some(count) => publish::publish(&args.brokers, &args.topic, count),
        None => consume(&args),
    };
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kafka_consumer: error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Batch by batch: read, handle, commit. Between the batches nothing is in flight, so a rebalance
/// takes no message away from a handler.
fn consume(args: &Args) -> Result<(), Failure> {
    let store = SqliteStore::open(&args.store)
        .map_err(|error| format!("cannot open the store {}: {error}", args.store.display()))?;
    let lease = Duration::from_millis(args.lease_ms.into());
    let engine = Engine::builder(store).lease(lease).retention(RETENTION).build()?;
    let consumer = Consumer {
        scope: consumer::scope(&args.group, &args.topic)?,
        engine,
        dedup: args.dedup,
        ledger: consumer::append(&args.ledger)?,
        dead: consumer::append(&args.dead)?,
        // Long enough that the lease of a killed consumer runs out.
        patience: lease * 2,
        hang_at: args.hang_at,
    };
    let topic = Topic::join(&args.brokers, &args.topic, &args.group, args.session_ms)?;
    let (mut quiet, idle) = (0, args.session_ms.div_ceil(1000) + QUIET);
    while !(args.until_idle && quiet >= idle) {
        let batch = topic.read(args.batch.into())?;
        quiet = if batch.is_empty() && topic.is_assigned()? { quiet + 1 } else { 0 };
        let (progress, trouble) = consumer.handle(&batch);
        topic.advance(&progress)?;
        if let Some(error) = trouble {
            // The store, most likely. What has an outcome is committed, the rest comes again.
            return Err(error);
        }
    }
    Ok(())
}
