//! The speed of this crate compared with code written by hand: see docs/BENCHMARKS.md and
//! `benches/run --help`.
#![allow(clippy::disallowed_methods)] // a bench measures real time

mod bars;
mod compare;
mod disk;
mod fingerprints;
mod footprint;
mod grow;
mod hand;
mod http;
mod machine;
mod many;
mod measure;
mod nodes;
mod ours;
#[cfg(feature = "peer")]
mod peer;
mod plots;
mod postgres;
mod publish;
mod purge;
mod results;
mod run;
mod scale;
mod server;
mod shards;
mod side;
mod table;
mod waiters;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::compare::StoreKind;
use crate::footprint::Whose;
use crate::measure::{Length, Op};
use crate::results::Results;
use crate::run::Run;

/// Measures everything, or one part named by a command, and prints a line per figure.
#[derive(Parser)]
#[command(name = "benches/run")]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    common: Common,
    /// Also writes the tables and the plots under docs/.
    #[arg(long)]
    publish: bool,
}

#[derive(Args)]
struct Common {
    /// The folder for the files of SQLite and the results: on the disk to be measured.
    #[arg(long, global = true, default_value = "target/bench")]
    dir: PathBuf,
    #[arg(long, global = true, default_value = "redis-server")]
    redis_server: PathBuf,
    /// Left out, with a message, if it does not start.
    #[arg(long, global = true, env = "VALKEY_SERVER", default_value = "valkey-server")]
    valkey_server: PathBuf,
    /// A running server to use instead of a private one. IT IS FLUSHED.
    #[arg(long, global = true)]
    redis_url: Option<String>,
    /// Fewer and shorter rounds, fewer records: two minutes in all.
    #[arg(long, global = true)]
    quick: bool,
    /// Number of threads that run the callers.
    #[arg(long, global = true, default_value = "2")]
    workers: NonZeroUsize,
    #[arg(
        long,
        global = true,
        value_enum,
        value_delimiter = ',',
        default_value = "memory,sqlite,redis,valkey,postgres"
    )]
    store: Vec<StoreKind>,
}

#[derive(Subcommand)]
enum Command {
    /// This crate, by hand and the peer, side by side.
    Compare(CompareArgs),
    /// The size of a record.
    Footprint {
        #[arg(long)]
        records: Option<u64>,
    },
    /// The change of the figures with the number of records.
    Grow {
        /// The greatest number of records.
        #[arg(long)]
        most: Option<u64>,
    },
    /// The delay that a purge causes to callers.
    Purge {
        #[arg(long)]
        records: Option<u64>,
    },
    /// 512 operations in one call, compared with one call after the other.
    Many,
    /// The time that 1000 waiters on one key take to wake up.
    Waiters,
    /// The cost of taking a fingerprint.
    Fingerprints,
    /// The HTTP layer over a bare handler.
    Http,
    /// A Redis cluster, and sentinels with and without a replica to wait for, beside one server.
    Shards,
    /// Memory and SQLite with the callers on 1 to 16 threads, as far as there are cores.
    Threads,
    /// Writes the tables and the plots under docs/ for which a run left results.
    Publish {
        /// The results; those of the last whole run by default, `part.jsonl` has those of the last
        /// part.
        #[arg(long)]
        from: Option<PathBuf>,
    },
    /// The growth of this process.
    #[command(hide = true)]
    Resident { whose: Whose, records: u64 },
}

#[derive(Args, Default)]
struct CompareArgs {
    #[arg(long, value_enum, value_delimiter = ',', default_value = "fresh,replay")]
    op: Vec<Op>,
    /// Number of concurrent callers.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    c: Vec<usize>,
    /// Number of rounds of each side.
    #[arg(long)]
    rounds: Option<usize>,
    /// Length of a round.
    #[arg(long)]
    millis: Option<u64>,
    /// Number of completed keys that exist before.
    #[arg(long)]
    filled: Option<u64>,
    /// Leaves out the peer.
    #[arg(long)]
    no_peer: bool,
}

fn main() {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cli.common.workers.get())
        .enable_all()
        .build()
        .expect("a runtime starts");
    std::fs::create_dir_all(&cli.common.dir).expect("the folder for files and results can be made");
    let last = cli.common.dir.join("results.jsonl");
    let run = |file: &str| Run::new(&cli.common, Results::create(&cli.common.dir.join(file)));
    runtime.block_on(async {
        match &cli.command {
            None => {
                run("results.jsonl").everything().await;
                println!("\n{}", bars::table(&results::read(&last)));
                if cli.publish {
                    publish::publish(&results::read(&last));
                }
            }
            Some(Command::Compare(args)) => run("part.jsonl").compare(args).await,
            Some(Command::Footprint { records }) => run("part.jsonl").footprint(*records).await,
            Some(Command::Grow { most }) => run("part.jsonl").grow(*most).await,
            Some(Command::Purge { records }) => run("part.jsonl").purge(*records).await,
            Some(Command::Many) => run("part.jsonl").many().await,
            Some(Command::Waiters) => run("part.jsonl").waiters().await,
            Some(Command::Shards) => run("part.jsonl").shards().await,
            Some(Command::Http) => run("part.jsonl").http().await,
            Some(Command::Fingerprints) => run("part.jsonl").fingerprints(),
            Some(Command::Threads) => run("part.jsonl").threads(),
            Some(Command::Publish { from }) => {
                publish::publish(&results::read(from.as_deref().unwrap_or(&last)));
            }
            Some(Command::Resident { whose, records }) => {
                println!("{}", footprint::grow_this_process(*whose, *records).await);
            }
        }
    });
}

impl CompareArgs {
    /// Returns the `usual` plan with the settings of the command line.
    fn plan(&self, usual: measure::Plan) -> measure::Plan {
        let filled = self.filled.unwrap_or(usual.filled);
        measure::Plan {
            rounds: self.rounds.unwrap_or(usual.rounds),
            round: self.millis.map_or(usual.round, |millis| Length::Time(Duration::from_millis(millis))),
            filled,
            working_set: usual.working_set.min(filled),
            ..usual
        }
    }
}
