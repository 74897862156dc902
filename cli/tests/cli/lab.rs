//! A store with records in it, and the command run on it: [`Lab`].

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nevertwice::{
    Begin, Clock, Engine, Lease, ManualClock, PostgresStore, RecordId, RedisStore, Request, Retry,
    SqliteStore, SystemClock,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{children, postgres, redis};

/// The contents that must be shown only where they are asked for.
pub(crate) const SECRETS: [&str; 3] = ["secret-response", "secret-checkpoint", "secret-key"];

/// A store of one kind, with the server that it needs.
pub(crate) struct Lab {
    pub(crate) url: String,
    pub(crate) dir: TempDir,
    pub(crate) redis: Option<redis::Server>,
    pub(crate) postgres: Option<postgres::Server>,
    #[allow(dead_code, reason = "it runs for as long as the store is used")]
    sentinel: Option<Sentinel>,
    runtime: tokio::runtime::Runtime,
}

/// A sentinel. Killed when dropped.
pub(crate) struct Sentinel(Child);

impl Sentinel {
    /// Starts a sentinel that watches the server at this port. Returns its own port.
    fn start(dir: &TempDir, watched: u16) -> (u16, Sentinel) {
        let file = dir.path().join("sentinel.conf");
        for _ in 0..10 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            let lines =
                format!("port {port}\nbind 127.0.0.1\nsentinel monitor payments 127.0.0.1 {watched} 1\n");
            std::fs::write(&file, lines).unwrap();
            let mut command = Command::new("redis-server");
            command.arg(&file).arg("--sentinel").stdin(Stdio::null()).stdout(Stdio::null());
            let mut sentinel = Sentinel(command.spawn().expect("these tests need redis-server"));
            let (mut answers, mut ended) = (false, false);
            until("the sentinel answers or ends", || {
                ended = sentinel.0.try_wait().unwrap().is_some();
                answers =
                    TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), Duration::from_secs(1))
                        .is_ok();
                ended || answers
            });
            if answers && !ended {
                return (port, sentinel);
            }
        }
        panic!("no sentinel starts");
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits at most a minute.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what}: not within a minute");
}

/// The end of a run of the command.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Lab {
    pub(crate) fn sqlite() -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("keys.db").display());
        Lab { url, dir, redis: None, postgres: None, sentinel: None, runtime: runtime() }
    }

    pub(crate) fn redis() -> Lab {
        let server = redis::Server::start(&["--appendonly", "yes"]);
        let (url, dir) = (server.url(), tempfile::tempdir().unwrap());
        Lab { url, dir, redis: Some(server), postgres: None, sentinel: None, runtime: runtime() }
    }

    /// A cluster of one node.
    pub(crate) fn cluster() -> Lab {
        let server = redis::Server::start(&["--appendonly", "yes", "--cluster-enabled", "yes"]);
        server.ask::<()>("CLUSTER ADDSLOTSRANGE 0 16383");
        until("the cluster is up", || server.ask::<String>("CLUSTER INFO").contains("cluster_state:ok"));
        let (url, dir) =
            (format!("redis+cluster://127.0.0.1:{}", server.port()), tempfile::tempdir().unwrap());
        Lab { url, dir, redis: Some(server), postgres: None, sentinel: None, runtime: runtime() }
    }

    /// A server that a sentinel watches as the service `payments`.
    pub(crate) fn sentinel() -> Lab {
        let (server, dir) = (redis::Server::start(&["--appendonly", "yes"]), tempfile::tempdir().unwrap());
        let (port, sentinel) = Sentinel::start(&dir, server.port());
        let url = format!("redis+sentinel://127.0.0.1:{port}/payments");
        Lab { url, dir, redis: Some(server), postgres: None, sentinel: Some(sentinel), runtime: runtime() }
    }

    pub(crate) fn postgres() -> Lab {
        let server = postgres::Server::start(&["fsync=off"]);
        let (url, dir) = (server.url(), tempfile::tempdir().unwrap());
        Lab { url, dir, redis: None, postgres: Some(server), sentinel: None, runtime: runtime() }
    }

    /// One of each kind.
    pub(crate) fn all() -> [Lab; 3] {
        [Lab::sqlite(), Lab::redis(), Lab::postgres()]
    }

    /// Calls an application on the store, which is closed again afterwards.
    pub(crate) fn application<T>(&self, run: impl AsyncFnOnce(Engine) -> T) -> T {
        self.runtime.block_on(async {
            let engine = match self.url.split(':').next() {
                Some("sqlite") => Engine::builder(SqliteStore::open(&self.url[7..]).unwrap()),
                Some("redis+cluster") => {
                    let seeds = [self.url.replace("redis+cluster", "redis")];
                    Engine::builder(RedisStore::cluster(seeds).connect().await.unwrap())
                }
                Some("redis" | "redis+sentinel") => {
                    let url = self.redis.as_ref().unwrap().url();
                    Engine::builder(RedisStore::connect(&url).await.unwrap())
                }
                _ => Engine::builder(PostgresStore::connect(&self.url).await.unwrap()),
            };
            let patient = engine.call_timeout(Duration::from_secs(30)).keep_keys(true).holder("web-1");
            run(patient.build().unwrap()).await
        })
    }

    /// Fills the store with one operation of each kind: see [`fill`].
    pub(crate) fn filled(self) -> Lab {
        self.application(fill);
        self
    }

    /// Fills a SQLite file with this many operations that expired a day ago.
    pub(crate) fn fill_with_expired(&self, count: usize) {
        self.application_of_the_past(async |engine| complete(&engine, "old", count).await);
    }

    /// Calls an application on a SQLite file two days ago, which kept its records for a day.
    pub(crate) fn application_of_the_past<T>(&self, run: impl AsyncFnOnce(Engine) -> T) -> T {
        let day = Duration::from_secs(86_400);
        let clock = ManualClock::starting_at(SystemClock.wall() - 2 * day);
        let store = SqliteStore::builder(&self.url[7..]).clock(clock.clone()).open().unwrap();
        let engine = Engine::builder(store).clock(clock).retention(day).build().unwrap();
        self.runtime.block_on(run(engine))
    }

    /// Writes another record's bytes under this id into a SQLite file, and returns its own.
    pub(crate) fn spoil(&self, id: &RecordId) -> Vec<u8> {
        let id = id.as_bytes();
        let bytes = |condition: &str| -> Vec<u8> {
            let sql = format!("SELECT record FROM nevertwice WHERE id {condition} ?1 LIMIT 1");
            self.db().query_row(&sql, [id], |row| row.get(0)).unwrap()
        };
        let own = bytes("=");
        self.write(id, &bytes("<>"));
        own
    }

    /// Writes the record of a SQLite file.
    pub(crate) fn write(&self, id: &[u8; 32], bytes: &[u8]) {
        let changed =
            self.db().execute("UPDATE nevertwice SET record = ?1 WHERE id = ?2", (bytes, id)).unwrap();
        assert_eq!(changed, 1);
    }

    fn db(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(&self.url[7..]).unwrap()
    }

    /// The command with the URL of the store in its environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = command(arguments);
        command.env("NEVERTWICE_STORE", &self.url);
        command
    }

    /// Runs the command.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(children::output(&mut self.command(arguments)))
    }

    /// Runs the command with `--json`, and returns its answer.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let ran = self.run(&[arguments, &["--json"]].concat());
        assert_eq!(ran.code, 0, "{arguments:?} {ran:?}");
        serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
    }
}

impl Ran {
    pub(crate) fn of(output: Output) -> Ran {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    /// The lines of JSON on stderr: the account of changes.
    pub(crate) fn journal(&self) -> Vec<Value> {
        self.err
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// The command without a store.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nevertwice"));
    command.args(arguments).stdin(Stdio::null()).env_remove("NEVERTWICE_STORE");
    command.env("NEVERTWICE_OPERATOR", "ann");
    command
}

pub(crate) fn run(arguments: &[&str]) -> Ran {
    Ran::of(children::output(&mut command(arguments)))
}

/// Makes one operation of each kind: completed, running, crashed and free, crashed with a marked
/// effect, reported as unresolved, and failed for good.
pub(crate) async fn fill(engine: Engine) {
    acquire(&engine, request("shop,charges", "secret-key")).await.complete("secret-response").await.unwrap();
    let running = acquire(&engine, request("shop,charges", "running")).await;
    running.save_checkpoint("secret-checkpoint").await.unwrap();
    drop(running);
    let short = |key| request("shop,refunds", key).lease(Duration::from_millis(100));
    drop(acquire(&engine, short("crashed")).await);
    let marked = acquire(&engine, short("marked")).await;
    let _ = marked.mark_effect().await;
    drop(marked);
    acquire(&engine, request("shop,refunds", "reported"))
        .await
        .fail("secret-error", Retry::Unresolved)
        .await
        .unwrap();
    acquire(&engine, request("other", "declined")).await.fail("declined", Retry::Never).await.unwrap();
    // Until the short leases are over.
    let marked = short("marked").id();
    while !engine.inspect_id(&marked).await.unwrap().unwrap().unresolved {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Completes this many operations of a scope.
pub(crate) async fn complete(engine: &Engine, scope: &str, count: usize) {
    let requests: Vec<Request> = (0..count).map(|at| request(scope, &at.to_string())).collect();
    for part in requests.chunks(500) {
        let leases: Vec<Lease> = engine.begin_many(part).await.into_iter().map(granted).collect();
        let done: Vec<_> = leases.iter().map(|lease| (lease, "done".into())).collect();
        for result in engine.complete_many(&done).await {
            result.unwrap();
        }
    }
}

/// Fails this many operations of a scope with an uncertain effect.
pub(crate) async fn report(engine: &Engine, scope: &str, count: usize) {
    let requests: Vec<Request> = (0..count).map(|at| request(scope, &at.to_string())).collect();
    for part in requests.chunks(500) {
        let leases: Vec<Lease> = engine.begin_many(part).await.into_iter().map(granted).collect();
        let failed: Vec<_> = leases.iter().map(|lease| (lease, "?".into(), Retry::Unresolved)).collect();
        for result in engine.fail_many(&failed).await {
            result.unwrap();
        }
    }
}

pub(crate) fn request(scope: &str, key: &str) -> Request {
    Request::new(&scope.parse::<nevertwice::Scope>().unwrap(), key).unwrap()
}

pub(crate) async fn acquire(engine: &Engine, request: Request) -> Lease {
    granted(engine.begin(&request).await)
}

fn granted(begin: Result<Begin, nevertwice::Error>) -> Lease {
    match begin {
        Ok(Begin::Acquired(lease)) => lease,
        other => panic!("expected a lease, got {other:?}"),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}
