//! A job that cron starts on several machines at the same minute: each slot runs once, and a slot
//! that was missed is caught up.
//!
//! ```text
//! cargo build -p cron_job
//! cd target/debug
//! first=$(date -u +%Y-%m-%dT%H:00Z)                 # the job's first slot
//! ./cron_job --every 5 --first $first & ./cron_job --every 5 --first $first & wait
//! cut -f 1 ledger.tsv | sort | uniq -d              # prints nothing: no slot ran twice
//!
//! rm -f ledger.tsv cron_job.db*
//! ./cron_job --every 5 --first $first --hang-at effect &   # stops within a slot's work
//! sleep 1; kill -9 %1
//! sleep 5; ./cron_job --every 5 --first $first      # that slot is unresolved, the others run
//! ./cron_job --every 5 --first $first --resolve $first=done
//! ```
//!
//! In a crontab, on each machine:
//! `*/5 * * * * cron_job --every 5 --first 2026-11-26T13:00Z`
//!
//! The slot is the key, not the time at which a process starts: machines whose clocks differ by
//! seconds mean the same operation. The processes of one machine share the SQLite file. Several
//! machines need a store on a server: in `open`, `PostgresStore` or `RedisStore` instead, and
//! nothing else changes. The file to read is `job.rs`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its terminal")]

mod job;
mod slots;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use futures_executor::block_on;
use jiff::Timestamp;
use nevertwice::{Body, Engine, Request, Resolution, RunError, SqliteStore};

use crate::job::{Job, Step, Stopped};
use crate::slots::{Slot, Slots};

/// Runs each slot of a job that is due and was not run, on the machine that comes first.
#[derive(Debug, Parser)]
#[command(name = "cron_job")]
struct Args {
    /// The job's first slot, such as 2026-11-26T13:00Z
    #[arg(long, value_name = "SLOT")]
    first: Slot,

    /// Minutes from a slot to the next
    #[arg(long, value_name = "MINUTES", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=43_200))]
    every: u32,

    /// The number of latest slots that are looked at: older ones are not caught up
    #[arg(long, value_name = "SLOTS", default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..))]
    catch_up: u16,

    /// The job's name: two jobs with one store differ by it
    #[arg(long, value_name = "NAME", default_value = "daily-sums")]
    job: String,

    /// The file of the engine's records, the same one for all processes
    #[arg(long, value_name = "FILE", default_value = "cron_job.db")]
    store: PathBuf,

    /// The file of the effects: a line for each report that was sent
    #[arg(long, value_name = "FILE", default_value = "ledger.tsv")]
    ledger: PathBuf,

    /// Publishes each report as a file in this folder instead, which a rerun only replaces
    #[arg(long, value_name = "FOLDER")]
    publish: Option<PathBuf>,

    /// Lease in milliseconds: the time after which another process takes over a killed one's slot
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    lease_ms: u32,

    /// The present time, instead of the clock's
    #[arg(long, value_name = "TIME")]
    now: Option<Timestamp>,

    /// Stops at a step of the first slot that it runs, to be killed
    #[arg(long, value_name = "STEP")]
    hang_at: Option<Step>,

    /// Settles a slot that is unresolved: SLOT=done, or SLOT=rerun if nothing was sent
    #[arg(long, value_name = "SLOT=OUTCOME", value_parser = settlement)]
    resolve: Option<(Slot, Resolution)>,
}

fn settlement(text: &str) -> Result<(Slot, Resolution), String> {
    let (slot, outcome) = text.split_once('=').ok_or("SLOT=done or SLOT=rerun")?;
    let resolution = match outcome {
        "done" => Resolution::Completed(Body::kept("0".into())),
        "rerun" => Resolution::Rerun,
        _ => return Err("the outcome is done or rerun".to_owned()),
    };
    Ok((slot.parse()?, resolution))
}

type Failure = Box<dyn Error + Send + Sync>;

/// Ends with 0 if every slot that is due has run, and with 1 if one needs an operator: cron mails
/// what was written to the standard error.
fn main() -> ExitCode {
    match block_on(run(Args::parse())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cron_job: error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<bool, Failure> {
    let engine = open(&args)?;
    let scope = ["cron", args.job.as_str()];
    if let Some((slot, resolution)) = args.resolve {
        let key = slot.to_string();
        let Some(found) = engine.inspect(scope, key.as_str()).await? else {
            return Err(format!("{slot} never ran").into());
        };
        engine.resolve(scope, key, found.fence, resolution).await?;
        println!("{slot}: settled");
        return Ok(true);
    }
    let slots = Slots { first: args.first, every: args.every, limit: args.catch_up };
    let job = Job::open(&args.ledger, args.publish, args.hang_at)?;
    let mut well = true;
    for slot in slots.due(args.now.unwrap_or_else(Timestamp::now)) {
        // One slot that is stuck does not stop those after it.
        let request = Request::new(scope, slot.to_string())?.recovery(job.recovery());
        let work = job.clone();
        let done = engine.run_blocking::<u64, Stopped, _>(&request, move |lease| work.run(slot, lease)).await;
        match done {
            Ok(sum) if sum.is_replayed() => println!("{slot}: ran before"),
            Ok(sum) => println!("{slot}: ran, sum {}", sum.value()),
            Err(error) => {
                well = false;
                eprintln!("cron_job: {slot}: {}", explain(&error));
            }
        }
    }
    // Records of slots that are too old to be looked at make room.
    if let Err(error) = engine.purge(1000).await {
        eprintln!("cron_job: purge: {error}");
    }
    Ok(well)
}

fn explain(error: &RunError<u64, Stopped>) -> String {
    match error {
        RunError::Unresolved(_) => {
            "a process ended after it may have sent the report: find out, then pass --resolve".to_owned()
        }
        RunError::Failed { error, .. } => format!("failed, to be run again: {}", error.0),
        RunError::InProgress { .. } => "still running in another process".to_owned(),
        other => other.to_string(),
    }
}

/// The engine. Its windows follow from the job: a duplicate waits until a killed process's lease
/// has run out, so that it takes over; and no slot is forgotten before it is too old to be looked
/// at. `build` refuses a retention that is shorter than that.
fn open(args: &Args) -> Result<Engine, Failure> {
    let store = SqliteStore::open(&args.store)
        .map_err(|error| format!("cannot open the store {}: {error}", args.store.display()))?;
    let lease = Duration::from_millis(args.lease_ms.into());
    let looked_at = Duration::from_secs(60 * u64::from(args.every) * (u64::from(args.catch_up) + 1));
    let day = Duration::from_secs(24 * 3600);
    let engine = Engine::builder(store)
        .lease(lease)
        .run_wait(lease * 3)
        .retry_horizon(looked_at)
        .retention(looked_at + day)
        .unresolved_retention((looked_at + day).max(90 * day))
        .build()?;
    Ok(engine)
}
