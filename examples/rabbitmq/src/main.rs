//! A queue consumer: RabbitMQ delivers every message at least once, and each message's effect
//! happens once.
//!
//! ```text
//! sudo apt-get install rabbitmq-server     # Debian; its package starts the broker on port 5672
//! sudo systemctl start rabbitmq-server     # without systemd: sudo rabbitmq-server -detached
//!
//! cargo build -p rabbitmq_consumer
//! cd target/debug
//! ./rabbitmq_consumer --publish 1000       # some of them twice, some of them poison
//! ./rabbitmq_consumer & ./rabbitmq_consumer --until-idle &
//! kill -9 %1                               # in the middle of it
//! wait %2
//! cut -f 1 ledger.tsv | sort | uniq -d     # prints nothing: no effect happened twice
//! cut -f 1 ledger.tsv | wc -l              # 960 good messages, less what the killed consumer left unclear
//! sudo rabbitmqctl list_queues             # orders.dead: left to an operator, each with its reason above
//! ```
//!
//! There are three queues: `orders`; `orders.retry`, where a message waits until its delay has
//! passed and then goes back; and `orders.dead`, which no consumer reads. The file to read is
//! `consumer.rs`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its terminal")]

mod consumer;
mod queues;

use std::error::Error;
use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use nevertwice::{Engine, EngineBuilder, MemoryStore, PurgePlan, Purged, SqliteStore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use crate::consumer::Consumer;
use crate::queues::Queues;

/// Longer than a message may stay in the dead-letter queue until an operator sends it again: later
/// its key would be new.
const RETENTION: Duration = Duration::from_secs(14 * 24 * 3600);
/// After two such intervals without a delivery, and with nothing waiting, the queue is idle.
const MOMENT: Duration = Duration::from_millis(500);
/// Time limit for connecting to the broker.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Consumes orders from RabbitMQ. The effect of each happens once, however often it is delivered
/// and no matter which consumer is killed.
#[derive(Debug, Parser)]
#[command(name = "rabbitmq_consumer")]
struct Args {
    /// The broker
    #[arg(long, value_name = "URL", default_value = "amqp://127.0.0.1:5672/%2f")]
    url: String,

    /// The queue; NAME.retry and NAME.dead are declared beside it
    #[arg(long, value_name = "NAME", default_value = "orders")]
    queue: String,

    /// Publishes N sample orders and ends: every third is sent twice, every 25th is no order
    #[arg(long, value_name = "N")]
    publish: Option<u64>,

    /// The number of the first sample order
    #[arg(long, value_name = "N", default_value_t = 1)]
    first: u64,

    /// The store of the engine's records: sqlite:PATH, the same one for all consumers, or memory
    #[arg(long, value_name = "STORE", default_value = "sqlite:rabbitmq_consumer.db", value_parser = store)]
    store: Store,

    /// The file of the effects: a line for every order that was booked
    #[arg(long, value_name = "FILE", default_value = "ledger.tsv")]
    ledger: PathBuf,

    /// Ends once nothing has been delivered for a moment and nothing is waiting
    #[arg(long)]
    until_idle: bool,

    /// Attempts of a message before it goes to the dead-letter queue
    #[arg(long, value_name = "N", default_value_t = 3)]
    max_attempts: u32,

    /// Lease in milliseconds: the time for which a killed consumer blocks its messages
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    lease_ms: u32,

    /// Time that an order takes, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 100)]
    work_ms: u32,

    /// Number of messages processed at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    prefetch: u16,
}

#[derive(Debug, Clone)]
enum Store {
    Memory,
    Sqlite(PathBuf),
}

fn store(text: &str) -> Result<Store, &'static str> {
    match text.split_once(':') {
        None if text == "memory" => Ok(Store::Memory),
        Some(("sqlite", path)) if !path.is_empty() => Ok(Store::Sqlite(path.into())),
        Some(_) | None => Err("a store is memory or sqlite:PATH"),
    }
}

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rabbitmq_consumer: error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    let host = host(&args.url);
    let connect = Connection::connect(&args.url, ConnectionProperties::default());
    let connection = timeout(CONNECT_TIMEOUT, connect)
        .await
        .map_err(|_| format!("no answer from RabbitMQ at {host} within {CONNECT_TIMEOUT:?}"))?
        .map_err(|error| format!("cannot reach RabbitMQ at {host}: {error}"))?;
    let queues = Arc::new(Queues::declare(connection.create_channel().await?, &args.queue).await?);
    match args.publish {
        Some(count) => queues::publish(&queues, args.first, count).await?,
        None => consume(Arc::clone(&queues), args).await?,
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}

/// Returns the host in the URL, without a password.
fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
    rest.split('/').next().unwrap_or(rest)
}

async fn consume(queues: Arc<Queues>, args: Args) -> Result<(), Failure> {
    let work = Duration::from_millis(args.work_ms.into());
    let engine = open(&args.store)?
        .lease(Duration::from_millis(args.lease_ms.into()))
        .handler_timeout(work) // A lease that is shorter than that is refused.
        .retention(RETENTION)
        .max_attempts(args.max_attempts)
        .build()?;
    let ledger = OpenOptions::new().create(true).append(true).open(&args.ledger);
    let ledger = ledger.map_err(|error| format!("cannot open {}: {error}", args.ledger.display()))?;
    // Expired records make room. Of several consumers, only one purges at a time.
    tokio::spawn(engine.purge_regularly(PurgePlan::default(), |purged| {
        if let Purged::Failed(..) = purged {
            eprintln!("purge: {purged}");
        }
    }));
    let channel = queues.channel.clone();
    let consumer = Arc::new(Consumer { engine, queues, ledger: Arc::new(ledger), work });

    // Every delivered message is begun at once, so none waits here without need.
    channel.basic_qos(args.prefetch, BasicQosOptions::default()).await?;
    let queue = args.queue.as_str().into();
    let mut deliveries = channel
        .basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    let mut working = JoinSet::new();
    let mut quiet = 0;
    let mut trouble: Option<Failure> = None;
    while quiet < 2 && trouble.is_none() {
        tokio::select! {
            Some(done) = working.join_next() => trouble = failure(done),
            delivery = deliveries.next() => match delivery {
                Some(Ok(delivery)) => {
                    working.spawn(Arc::clone(&consumer).handle(delivery));
                    quiet = 0;
                }
                Some(Err(error)) => trouble = Some(error.into()),
                None => trouble = Some("the broker ended the consumer".into()),
            },
            () = sleep(MOMENT), if args.until_idle && working.is_empty() => {
                quiet = if consumer.queues.are_empty().await? { quiet + 1 } else { 0 };
            }
        }
    }
    // No handler is stopped between effect and record: all are finished before the error is
    // returned.
    while let Some(done) = working.join_next().await {
        trouble = trouble.or(failure(done));
    }
    trouble.map_or(Ok(()), Err)
}

fn failure(done: Result<Result<(), Failure>, JoinError>) -> Option<Failure> {
    done.map_err(Failure::from).and_then(|handled| handled).err()
}

fn open(store: &Store) -> Result<EngineBuilder, Failure> {
    Ok(match store {
        Store::Memory => Engine::builder(MemoryStore::new()),
        Store::Sqlite(path) => Engine::builder(SqliteStore::open(path)?),
    })
}
