//! All measurements over all available stores.

use std::num::NonZeroUsize;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::compare::{Bench, Comparison, StoreKind, Threads, plan};
use crate::footprint::{Footprint, Whose};
use crate::hand::{Calls, HandMemory, HandRedis, HandSqlite};
use crate::machine::Machine;
use crate::measure::{Op, Plan};
use crate::results::{self, Figure, Results};
use crate::server::Server;
use crate::shards::Shards;
use crate::{Common, CompareArgs, fingerprints, footprint, grow, http, many, purge, table, waiters};

/// The name of SQLite where every sync takes 2 ms.
pub(crate) const SLOW_DISK: &str = "sqlite-slow-disk";

pub(crate) struct Run<'a> {
    common: &'a Common,
    results: Results,
    stores: Vec<(StoreKind, Option<Server>)>,
}

impl<'a> Run<'a> {
    /// Starts the servers that the run needs.
    pub(crate) fn new(common: &'a Common, results: Results) -> Run<'a> {
        let mut stores = Vec::new();
        for &store in &common.store {
            let server = match (store, &common.redis_url) {
                (StoreKind::Memory | StoreKind::Sqlite, _) => None,
                (StoreKind::Postgres, _) => Some(Ok(Server::postgres())),
                (StoreKind::Redis | StoreKind::Valkey, Some(url)) => Some(Server::at(url)),
                (StoreKind::Redis, None) => Some(Server::start(&common.redis_server)),
                (StoreKind::Valkey, None) => Some(Server::start(&common.valkey_server)),
            };
            match server.transpose() {
                Ok(server) => stores.push((store, server)),
                Err(error) if store == StoreKind::Valkey => {
                    eprintln!("benches: valkey is left out: {error}");
                }
                Err(error) => panic!("{}: {error}", store.name()),
            }
        }
        Run { common, results, stores }
    }

    pub(crate) async fn everything(mut self) {
        let start = Instant::now();
        let servers = self.stores.iter().flat_map(|(_, server)| server).map(|server| server.version.clone());
        let machine = Machine::look(&self.common.dir, servers.collect());
        self.results.add(Figure::Machine(machine));
        self.fingerprints();
        self.compare(&CompareArgs {
            op: vec![Op::Fresh, Op::Replay],
            c: if self.common.quick { vec![1, 64, 256] } else { vec![1, 4, 16, 64, 256] },
            ..CompareArgs::default()
        })
        .await;
        self.slow_disk();
        self.threads();
        self.http().await;
        self.shards().await;
        self.many().await;
        self.waiters().await;
        self.footprint(None).await;
        self.grow(None).await;
        self.purge(None).await;
        eprintln!("benches: {} s", start.elapsed().as_secs());
    }

    pub(crate) async fn compare(&mut self, args: &CompareArgs) {
        let mut figures: Vec<Comparison> = Vec::new();
        for (store, server) in &self.stores {
            for &op in &args.op {
                for &callers in &args.c {
                    let plan = args.plan(plan(*store, op, callers, self.common.quick));
                    let folder = folder(self.common);
                    let bench = Bench { folder: folder.path(), server: server.as_ref(), peer: !args.no_peer };
                    let figure = bench.compare(*store, &plan).await;
                    self.results.add(Figure::Comparison(figure.clone()));
                    figures.push(figure);
                }
            }
        }
        println!("\n{}", table::comparisons(&figures));
    }

    /// Measures memory and SQLite with the callers on 1 to 16 threads, each number in a process of
    /// its own. More threads than cores would measure the scheduler.
    pub(crate) fn threads(&mut self) {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        for workers in [1, 2, 4, 8, 16].into_iter().filter(|&workers| workers <= cores) {
            let folder = folder(self.common);
            let program = std::env::current_exe().expect("this program has a path");
            let mut child = Command::new(program);
            child.args(["compare", "--store", "memory,sqlite", "--c", "256", "--no-peer", "--workers"]);
            child.arg(workers.to_string()).arg("--dir").arg(folder.path());
            child.args(self.common.quick.then_some("--quick")).stdout(Stdio::null());
            let status = child.status().expect("this program starts once more");
            assert!(status.success(), "the comparison on {workers} threads failed");
            for figure in results::read(&folder.path().join("part.jsonl")) {
                if let Figure::Comparison(comparison) = figure {
                    self.results.add(Figure::Threads(Threads { workers, comparison }));
                }
            }
        }
    }

    /// Measures SQLite once more, in a process whose syncs are slowed down by benches/slowdisk.c.
    fn slow_disk(&mut self) {
        let Some(library) = std::env::var_os("SLOWDISK").filter(|library| !library.is_empty()) else {
            eprintln!("benches: the slow disk is left out: no SLOWDISK");
            return;
        };
        let folder = folder(self.common);
        let program = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(program);
        child.args(["compare", "--store", "sqlite", "--op", "fresh", "--dir"]).arg(folder.path());
        child.args(self.common.quick.then_some("--quick")).env("LD_PRELOAD", library).stdout(Stdio::null());
        let status = child.status().expect("this program starts once more");
        assert!(status.success(), "the comparison on the slow disk failed");
        for figure in results::read(&folder.path().join("part.jsonl")) {
            if let Figure::Comparison(figure) = figure {
                let store = SLOW_DISK.to_owned();
                self.results.add(Figure::Comparison(Comparison { store, ..figure }));
            }
        }
    }

    pub(crate) async fn footprint(&mut self, records: Option<u64>) {
        let records = records.unwrap_or(if self.common.quick { 50_000 } else { 1_000_000 });
        for (store, server) in &self.stores {
            for whose in [Whose::Ours, Whose::Hand, Whose::Peer] {
                let folder = folder(self.common);
                let bench = Bench { folder: folder.path(), server: server.as_ref(), peer: true };
                if let Some(bytes_per_record) = footprint::measure(&bench, *store, whose, records).await {
                    let (store, side) = (store.name().to_owned(), whose.name().to_owned());
                    self.results.add(Figure::Footprint(Footprint { store, side, records, bytes_per_record }));
                }
            }
        }
    }

    pub(crate) async fn grow(&mut self, most: Option<u64>) {
        for (store, server) in &self.stores {
            let sizes = |usual: u64| -> Vec<u64> {
                let most = most.unwrap_or(if self.common.quick { 100_000 } else { usual });
                (4..).map(|power| 10_u64.pow(power)).take_while(|&size| size <= most).collect()
            };
            let (million, all) = (sizes(1_000_000), sizes(10_000_000));
            let folder = folder(self.common);
            let bench = Bench { folder: folder.path(), server: server.as_ref(), peer: false };
            let results = &mut self.results;
            let mut tell = |grown: &grow::Grown| results.add(Figure::Grown(grown.clone()));
            let server = server.as_ref();
            let ours = bench.ours(*store).await;
            match store {
                StoreKind::Memory => {
                    grow::measure(*store, "ours", ours, &all, None, &mut tell).await;
                    grow::measure(*store, "by hand", HandMemory::default(), &all, None, &mut tell).await;
                }
                StoreKind::Sqlite => {
                    grow::measure(*store, "ours", ours, &all, None, &mut tell).await;
                    if let Some(&records) = all.last().filter(|&&records| records > 1_000_000) {
                        let bytes = grow::settled_size(&folder.path().join("ours.db"));
                        let bytes_per_record = bytes as f64 / records as f64;
                        let (store, side) = (store.name().to_owned(), "ours".to_owned());
                        results.add(Figure::Footprint(Footprint { store, side, records, bytes_per_record }));
                    }
                    let mut tell = |grown: &grow::Grown| results.add(Figure::Grown(grown.clone()));
                    let hand = HandSqlite::open(&folder.path().join("hand.db"), Calls::Spawned);
                    grow::measure(*store, "by hand", hand, &million, None, &mut tell).await;
                }
                StoreKind::Postgres => {
                    grow::measure(*store, "ours", ours, &million, server, &mut tell).await;
                }
                StoreKind::Redis | StoreKind::Valkey => {
                    grow::measure(*store, "ours", ours, &million, server, &mut tell).await;
                    let server = server.expect("started before");
                    server.flush();
                    let hand = HandRedis::connect(server.url()).await;
                    grow::measure(*store, "by hand", hand, &million, Some(server), &mut tell).await;
                }
            }
        }
    }

    pub(crate) async fn purge(&mut self, records: Option<u64>) {
        let usual = if self.common.quick { 50_000 } else { 1_000_000 };
        let records = records.unwrap_or(usual);
        for (store, server) in &self.stores {
            match store {
                StoreKind::Memory => {
                    self.results.add(Figure::Pauses(purge::memory(records).await));
                    self.results.add(Figure::Pauses(purge::by_hand(records).await));
                }
                StoreKind::Sqlite => {
                    let folder = folder(self.common);
                    self.results.add(Figure::Pauses(purge::sqlite(folder.path(), records).await));
                }
                StoreKind::Redis | StoreKind::Valkey => {} // the server does it
                StoreKind::Postgres => {
                    let folder = folder(self.common);
                    let bench = Bench { folder: folder.path(), server: server.as_ref(), peer: false };
                    let postgres = server.as_ref().and_then(|server| server.postgres.as_ref());
                    let (ours, postgres) = (bench.ours(*store).await, postgres.expect("started before"));
                    let figure = purge::postgres(&ours, postgres, records.min(200_000)).await;
                    self.results.add(Figure::Pauses(figure));
                }
            }
        }
    }

    pub(crate) async fn many(&mut self) {
        for (store, server) in &self.stores {
            let folder = folder(self.common);
            let bench = Bench { folder: folder.path(), server: server.as_ref(), peer: false };
            let rounds = if self.common.quick { 4 } else { 12 };
            let figure = many::measure(store.name(), &bench.ours(*store).await, rounds).await;
            self.results.add(Figure::Many(figure));
        }
    }

    pub(crate) async fn http(&mut self) {
        let (rounds, round) = if self.common.quick { (3, 500) } else { (9, 1000) };
        for cost in http::measure(rounds, Duration::from_millis(round)).await {
            self.results.add(Figure::Http(cost));
        }
        let growth = http::growth(if self.common.quick { 100_000 } else { 1_000_000 }).await;
        self.results.add(Figure::HttpGrowth(growth));
    }

    /// Measures each kind of server that is there, on private servers whatever is running.
    pub(crate) async fn shards(&mut self) {
        for (store, _) in &self.stores {
            let binary = match store {
                StoreKind::Redis => &self.common.redis_server,
                StoreKind::Valkey => &self.common.valkey_server,
                StoreKind::Memory | StoreKind::Sqlite | StoreKind::Postgres => continue,
            };
            let shards = Shards::start(binary).unwrap_or_else(|error| panic!("{}: {error}", store.name()));
            for callers in [1, 64, 256] {
                let filled = 1000; // only new keys are measured
                let plan = Plan { filled, ..plan(*store, Op::Fresh, callers, self.common.quick) };
                for figure in shards.measure(store.name(), &plan).await {
                    self.results.add(Figure::Sharded(figure));
                }
            }
        }
    }

    pub(crate) async fn waiters(&mut self) {
        for (store, server) in &self.stores {
            let folder = folder(self.common);
            let bench = Bench { folder: folder.path(), server: server.as_ref(), peer: false };
            let engine = bench.ours(*store).await.engine;
            self.results.add(Figure::Wake(waiters::measure(store.name(), &engine).await));
            self.results.add(Figure::WakeEach(waiters::measure_each(store.name(), &engine).await));
        }
    }

    pub(crate) fn fingerprints(&mut self) {
        fingerprints::measure().into_iter().for_each(|cost| self.results.add(Figure::Fingerprint(cost)));
    }
}

/// Creates a folder for the files, removed when dropped.
fn folder(common: &Common) -> TempDir {
    tempfile::tempdir_in(&common.dir).expect("a folder for the files")
}
