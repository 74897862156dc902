//! How fast this crate is, beside what one writes by hand: see docs/BENCHMARKS.md, and `benches/run --help`.
#![allow(clippy::disallowed_methods)] // a bench measures real time

mod compare;
mod disk;
mod hand;
mod measure;
mod ours;
#[cfg(feature = "peer")]
mod peer;
mod report;
mod server;
mod side;
mod waiters;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::compare::{Bench, StoreKind, plan};
use crate::measure::Op;
use crate::report::Results;
use crate::server::Server;

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct Common {
    /// Where the files of SQLite and the results go.
    #[arg(long, global = true, default_value = "target/bench")]
    dir: PathBuf,
    #[arg(long, global = true, default_value = "redis-server")]
    redis_server: PathBuf,
    #[arg(long, global = true, env = "VALKEY_SERVER", default_value = "valkey-server")]
    valkey_server: PathBuf,
    /// A server that is running, instead of one of the bench's own. It is flushed.
    #[arg(long, global = true)]
    redis_url: Option<String>,
    /// Fewer and shorter rounds.
    #[arg(long, global = true)]
    quick: bool,
}

#[derive(Subcommand)]
enum Command {
    /// This crate, by hand and the peer, side by side.
    Compare(CompareArgs),
    /// How long 1000 waiters on one key take to wake up.
    Waiters {
        #[arg(long, value_enum, value_delimiter = ',', default_value = "memory,sqlite,redis,valkey")]
        store: Vec<StoreKind>,
    },
}

#[derive(Args)]
struct CompareArgs {
    #[arg(long, value_enum, value_delimiter = ',', default_value = "memory,sqlite,redis,valkey")]
    store: Vec<StoreKind>,
    #[arg(long, value_enum, value_delimiter = ',', default_value = "fresh,replay")]
    op: Vec<Op>,
    /// How many callers at a time.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    c: Vec<usize>,
    /// How many rounds of each side.
    #[arg(long)]
    rounds: Option<usize>,
    /// How long a round is.
    #[arg(long)]
    millis: Option<u64>,
    /// How many completed keys there are before.
    #[arg(long)]
    filled: Option<u64>,
    /// Without the peer.
    #[arg(long)]
    no_peer: bool,
}

fn main() {
    let cli = Cli::parse();
    std::fs::create_dir_all(&cli.common.dir).expect("the folder for files and results can be made");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime starts");
    match cli.command {
        Command::Compare(args) => runtime.block_on(compare(&cli.common, &args)),
        Command::Waiters { store } => runtime.block_on(wake(&cli.common, &store)),
    }
}

async fn compare(common: &Common, args: &CompareArgs) {
    let mut results = Results::append_to(&common.dir.join("results.jsonl"));
    let mut figures = Vec::new();
    for &store in &args.store {
        let server = server(common, store);
        if store == StoreKind::Sqlite {
            let syncs = disk::syncs_per_second(&common.dir, Duration::from_secs(1));
            println!("bench: store=sqlite op=sync per_second={syncs:.0}");
        }
        for &op in &args.op {
            for &callers in &args.c {
                let mut plan = plan(store, op, callers, common.quick);
                plan.rounds = args.rounds.unwrap_or(plan.rounds);
                plan.round = args.millis.map_or(plan.round, Duration::from_millis);
                plan.filled = args.filled.unwrap_or(plan.filled);
                plan.working_set = plan.working_set.min(plan.filled);
                let folder = tempfile::tempdir_in(&common.dir).expect("a folder for the files");
                let bench = Bench { folder: folder.path(), server: server.as_ref(), peer: !args.no_peer };
                let figure = bench.compare(store, &plan).await;
                println!("{}", report::line(&figure));
                results.add("comparison", &figure);
                figures.push(figure);
            }
        }
    }
    println!("\n{}", report::table(&figures));
}

async fn wake(common: &Common, stores: &[StoreKind]) {
    let mut results = Results::append_to(&common.dir.join("results.jsonl"));
    for &store in stores {
        let server = server(common, store);
        let folder = tempfile::tempdir_in(&common.dir).expect("a folder for the files");
        let bench = Bench { folder: folder.path(), server: server.as_ref(), peer: false };
        let figure = waiters::measure(store.name(), &bench.ours(store).await.engine).await;
        println!(
            "bench: store={} op=wake waiters={} complete_ms={:.2} p50_ms={:.2} last_ms={:.2}",
            figure.store, figure.waiters, figure.complete_ms, figure.half_ms, figure.last_ms,
        );
        results.add("wake", &figure);
    }
}

/// The server that `store` is on, if any.
fn server(common: &Common, store: StoreKind) -> Option<Server> {
    let server = match (store, &common.redis_url) {
        (StoreKind::Memory | StoreKind::Sqlite, _) => return None,
        (StoreKind::Redis | StoreKind::Valkey, Some(url)) => Server::at(url),
        (StoreKind::Redis, None) => Server::start(&common.redis_server),
        (StoreKind::Valkey, None) => Server::start(&common.valkey_server),
    };
    Some(server.unwrap_or_else(|error| panic!("{}: {error}", store.name())))
}
