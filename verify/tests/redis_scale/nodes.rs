//! Private servers at addresses of their own on the loopback network, which can be cut off from
//! each other.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;

/// Names a server to test instead of `redis-server`, such as Valkey's.
const BINARY: &str = "NEVERTWICE_REDIS_SERVER";
/// The port of every data node.
pub(crate) const PORT: u16 = 6379;
/// The port by which a network is claimed, at an address where no node is.
const CLAIM: (u8, u16) = (254, 6380);
/// The port of every sentinel.
pub(crate) const SENTINEL_PORT: u16 = 26379;
/// Attempts to reach a condition, one every 10 ms.
const PATIENCE: u32 = 6_000;
/// Time limit of a command that a test sends by itself.
const ANSWER: Duration = Duration::from_secs(1);

/// Networks that there are.
const NETWORKS: u32 = 128 * 256;

/// Networks that this process tried so far.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A network of one test: `127.a.b.0/24`.
pub(crate) struct Network {
    base: String,
    /// Keeps other tests from it, also those of other processes.
    _claim: TcpListener,
    /// The arguments of the rules that are in force.
    rules: Mutex<Vec<Vec<String>>>,
}

impl Network {
    pub(crate) fn new() -> Network {
        let process = std::process::id();
        for _ in 0..NETWORKS {
            let number = (process * 16 + COUNT.fetch_add(1, Ordering::Relaxed)) % NETWORKS;
            let base = format!("127.{}.{}", 64 + number / 256, number % 256);
            if let Ok(claim) = TcpListener::bind(format!("{base}.{}:{}", CLAIM.0, CLAIM.1)) {
                return Network { base, _claim: claim, rules: Mutex::default() };
            }
        }
        panic!("all networks are in use");
    }

    pub(crate) fn ip(&self, number: u8) -> String {
        format!("{}.{number}", self.base)
    }

    /// Cuts a node off from all others. Clients, which have addresses of another network, still
    /// reach it.
    pub(crate) fn cut(&self, ip: &str) {
        let all = format!("{}.0/24", self.base);
        for [from, to] in [[ip, &all], [&all, ip]] {
            let rule = ["INPUT", "-s", from, "-d", to, "-j", "DROP"].map(str::to_owned).to_vec();
            iptables("-A", &rule);
            self.rules.lock().unwrap().push(rule);
        }
    }

    /// Ends all cuts.
    pub(crate) fn heal(&self) {
        for rule in std::mem::take(&mut *self.rules.lock().unwrap()) {
            iptables("-D", &rule);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.heal();
    }
}

fn iptables(action: &str, rule: &[String]) {
    let done = Command::new("iptables").args(["-w", action]).args(rule).status();
    assert!(done.expect("these tests need iptables, and root").success(), "iptables {action} {rule:?}");
}

/// One server process.
pub(crate) struct Node {
    child: Child,
    pub(crate) ip: String,
    pub(crate) port: u16,
    dir: TempDir,
    options: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Node {
    /// Starts a data node.
    pub(crate) fn start(ip: &str, options: &[&str]) -> Node {
        Node::start_with(ip, options, &[])
    }

    /// Starts a data node with environment variables.
    pub(crate) fn start_with(ip: &str, options: &[&str], variables: &[(&str, &str)]) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let port = PORT.to_string();
        let always = ["--port", &port, "--bind", ip, "--bind-source-addr", ip, "--protected-mode", "no"];
        let quick = ["--save", "", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
        let options: Vec<_> = always.iter().chain(&quick).chain(options).map(|&one| one.to_owned()).collect();
        let variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        Node::spawn(ip, PORT, dir, options, variables)
    }

    /// Starts a sentinel with the lines of its configuration.
    pub(crate) fn sentinel(ip: &str, lines: &[String]) -> Node {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sentinel.conf");
        std::fs::write(&file, lines.join("\n")).unwrap();
        let port = SENTINEL_PORT.to_string();
        let file = file.to_str().unwrap().to_owned();
        let rest = ["--sentinel", "--port", &port, "--bind", ip, "--protected-mode", "no"];
        let options = std::iter::once(file).chain(rest.map(str::to_owned)).collect();
        Node::spawn(ip, SENTINEL_PORT, dir, options, Vec::new())
    }

    fn spawn(
        ip: &str,
        port: u16,
        dir: TempDir,
        options: Vec<String>,
        variables: Vec<(String, String)>,
    ) -> Node {
        let child = run(&dir, &options, &variables);
        let mut node = Node { child, ip: ip.to_owned(), port, dir, options, variables };
        node.answers();
        node
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}:{}", self.ip, self.port)
    }

    /// Sends a command, written as in a shell, and returns the answer.
    pub(crate) fn try_ask<T: redis::FromRedisValue>(&self, command: &str) -> redis::RedisResult<T> {
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            cmd.arg(word);
        });
        cmd.query(&mut self.raw()?)
    }

    pub(crate) fn ask<T: redis::FromRedisValue>(&self, command: &str) -> T {
        self.try_ask(command).unwrap_or_else(|error| panic!("{}: {command}: {error}", self.ip))
    }

    /// Opens a plain connection that bypasses the store, for an answer at once or none.
    pub(crate) fn raw(&self) -> redis::RedisResult<redis::Connection> {
        self.raw_for(ANSWER)
    }

    /// Opens one for commands that take their time: Valkey waits for replicas in `CLUSTER SETSLOT`.
    pub(crate) fn patient(&self) -> redis::Connection {
        self.raw_for(60 * ANSWER).unwrap()
    }

    fn raw_for(&self, limit: Duration) -> redis::RedisResult<redis::Connection> {
        let connection = redis::Client::open(self.url())?.get_connection_with_timeout(limit)?;
        connection.set_read_timeout(Some(limit))?;
        Ok(connection)
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again.
    pub(crate) fn restart(&mut self) {
        self.child = run(&self.dir, &self.options, &self.variables);
        self.answers();
    }

    /// Sends it a signal by name, as `kill` does.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(sent.unwrap().success(), "kill -{name}");
    }

    fn answers(&mut self) {
        let address: SocketAddr = format!("{}:{}", self.ip, self.port).parse().unwrap();
        let what = format!("{} starts: {}", self.ip, self.log());
        until(&what, || TcpStream::connect_timeout(&address, ANSWER).is_ok());
        until(&what, || match self.try_ask::<String>("PING") {
            Ok(_) => true,
            Err(error) => matches!(error.code(), Some("NOAUTH")),
        });
        // Otherwise another server is there.
        assert_eq!(self.child.try_wait().unwrap(), None, "{} ended: {}", self.ip, self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(dir: &TempDir, options: &[String], variables: &[(String, String)]) -> Child {
    let binary = std::env::var(BINARY).unwrap_or_else(|_| "redis-server".to_owned());
    let (file, options) = match options.split_first() {
        Some((file, rest)) if !file.starts_with("--") => (Some(file), rest),
        _ => (None, options),
    };
    let child = Command::new(&binary)
        .args(file)
        .args(["--logfile", "log", "--dir"])
        .arg(dir.path())
        .args(options)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    child.unwrap_or_else(|error| panic!("these tests need {binary}, 7.0 or later: {error}"))
}

/// Polls until the condition holds. Servers act in their own time.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..PATIENCE {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("never: {what}");
}
