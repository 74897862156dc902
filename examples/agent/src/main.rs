//! The tool calls of an LLM agent: the agent is killed at any point and started again, and each
//! call has its effect once.
//!
//! ```text
//! cargo build -p agent_tools
//! cp examples/agent/script.json target/debug && cd target/debug
//! ./agent_tools --script script.json --stop-at 9 &   # stops within a call
//! sleep 1; kill -9 %1
//! ./agent_tools --script script.json        # replays what was done, and continues
//! ./agent_tools --script script.json        # replays everything
//! cat mail.tsv transfers.tsv                # two mails and two transfers
//! ```
//!
//! The key of a call is its place: conversation, turn, and position in the turn. A model that asks
//! for the same call in the next turn wants it again; an agent that comes to the same place again
//! does not. The arguments are the fingerprint: another call at the same place, as when the log of
//! the conversation got lost and the model answers differently, is refused and not executed.
//!
//! The model is a script, so that this runs without a network. The files to read are `agent.rs`,
//! the loop, and `tools.rs`, where each tool says what may happen after a crash.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its terminal")]

mod agent;
mod model;
mod steps;
mod tools;
mod transcript;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use futures_executor::block_on;
use nevertwice::{Body, Engine, Resolution, SqliteStore};

use crate::agent::Agent;
use crate::model::Script;
use crate::steps::Steps;
use crate::tools::World;
use crate::transcript::Transcript;

/// Longer than a conversation may rest before it is continued: later its calls would be new.
const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

/// Holds a conversation with a scripted model, and executes the tools that it asks for.
#[derive(Debug, Parser)]
#[command(name = "agent_tools")]
struct Args {
    /// The model's replies, a JSON array: see script.json
    #[arg(long, value_name = "FILE")]
    script: PathBuf,

    /// The conversation: its calls are operations of their own
    #[arg(long, value_name = "NAME", default_value = "refund-7")]
    conversation: String,

    /// The log of the model's replies, a line for each
    #[arg(long, value_name = "FILE", default_value = "conversation.jsonl")]
    transcript: PathBuf,

    /// The file of the engine's records
    #[arg(long, value_name = "FILE", default_value = "agent_tools.db")]
    store: PathBuf,

    /// Lease in milliseconds: the time for which a killed agent blocks the call that it was in
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    lease_ms: u32,

    /// Stops at this step, to be killed
    #[arg(long, value_name = "N")]
    stop_at: Option<u32>,

    /// Settles a call that is unresolved: TURN.POSITION=done, or =rerun if it had no effect
    #[arg(long, value_name = "CALL=OUTCOME", value_parser = settlement)]
    resolve: Option<(String, Resolution)>,
}

fn settlement(text: &str) -> Result<(String, Resolution), &'static str> {
    let (call, outcome) = text.split_once('=').ok_or("TURN.POSITION=done or TURN.POSITION=rerun")?;
    match outcome {
        // What the model is told: a string, as the tools return.
        "done" => Ok((call.to_owned(), Resolution::Completed(Body::kept(r#""done""#.into())))),
        "rerun" => Ok((call.to_owned(), Resolution::Rerun)),
        _ => Err("the outcome is done or rerun"),
    }
}

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> ExitCode {
    match block_on(run(Args::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agent_tools: error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<(), Failure> {
    let store = SqliteStore::open(&args.store)
        .map_err(|error| format!("cannot open the store {}: {error}", args.store.display()))?;
    let lease = Duration::from_millis(args.lease_ms.into());
    // A call waits for the lease of a killed agent to run out.
    let engine = Engine::builder(store).lease(lease).run_wait(lease * 3).retention(RETENTION).build()?;
    let scope = agent::scope(&args.conversation)?;
    if let Some((call, resolution)) = args.resolve {
        let Some(found) = engine.inspect(&scope, call.as_str()).await? else {
            return Err(format!("there was no call {call}").into());
        };
        engine.resolve(&scope, call.as_str(), found.fence, resolution).await?;
        println!("{call}: settled");
        return Ok(());
    }
    let script = Script::open(&args.script)?;
    let mut transcript = Transcript::open(&args.transcript)?;
    let agent = Agent { engine, scope, world: World::here(), steps: Steps::new(args.stop_at) };
    let said = agent.converse(&script, &mut transcript).await?;
    println!("{said}");
    Ok(())
}
