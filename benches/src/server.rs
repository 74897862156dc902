//! A private server without persistence, stopped when dropped.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::postgres::Postgres;

pub(crate) struct Server {
    url: String,
    /// The name and version that it reports.
    pub(crate) version: String,
    /// `None` if it was running already.
    own: Option<(Child, tempfile::TempDir)>,
    pub(crate) postgres: Option<Postgres>,
    /// Other nodes of its cluster, and its replicas.
    others: Vec<Server>,
}

impl Server {
    /// Starts `binary` on a free port of the loopback interface.
    pub(crate) fn start(binary: &Path) -> Result<Server, String> {
        Server::start_with(binary, &[])
    }

    /// The same, with more options.
    pub(crate) fn start_with(binary: &Path, options: &[&str]) -> Result<Server, String> {
        let usual = ["--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"];
        Server::spawn(binary, None, &[&usual, options].concat())
    }

    /// Starts a sentinel with this configuration.
    pub(crate) fn sentinel(binary: &Path, configuration: &str) -> Result<Server, String> {
        Server::spawn(binary, Some(configuration), &["--sentinel"])
    }

    fn spawn(binary: &Path, configuration: Option<&str>, options: &[&str]) -> Result<Server, String> {
        // Another process may take the port before the server does; then it starts again on another
        // port.
        for _ in 0..10 {
            let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .and_then(|listener| listener.local_addr())
                .map_err(|error| error.to_string())?
                .port();
            let mut command = Command::new(binary);
            if let Some(configuration) = configuration {
                let file = folder.path().join("configuration");
                std::fs::write(&file, configuration).map_err(|error| error.to_string())?;
                command.arg(file);
            }
            let child = command
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--loglevel", "warning", "--dir"])
                .arg(folder.path())
                .args(options)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .map_err(|error| format!("{}: {error}", binary.display()))?;
            let mut server = Server {
                url: format!("redis://127.0.0.1:{port}"),
                version: String::new(),
                own: Some((child, folder)),
                postgres: None,
                others: Vec::new(),
            };
            if server.wait() {
                return Ok(server);
            }
        }
        Err(format!("{} does not start", binary.display()))
    }

    /// Counts these servers to this one: other nodes of its cluster, or its replicas.
    pub(crate) fn add(&mut self, others: impl IntoIterator<Item = Server>) {
        self.others.extend(others);
    }

    /// Starts PostgreSQL from Debian's packages.
    pub(crate) fn postgres() -> Server {
        let postgres = Postgres::start();
        let (url, version) = (postgres.url(), postgres.version());
        Server { url, version, own: None, postgres: Some(postgres), others: Vec::new() }
    }

    /// Uses a running server. **It is flushed.**
    pub(crate) fn at(url: &str) -> Result<Server, String> {
        let mut server = Server {
            url: url.to_owned(),
            version: String::new(),
            own: None,
            postgres: None,
            others: Vec::new(),
        };
        if server.wait() { Ok(server) } else { Err(format!("no server answers at {url}")) }
    }

    fn wait(&mut self) -> bool {
        for _ in 0..500 {
            if let Some((child, _)) = &mut self.own
                && !matches!(child.try_wait(), Ok(None))
            {
                return false;
            }
            if let Ok(mut connection) = self.connect() {
                let info: String =
                    redis::cmd("INFO").arg("server").query(&mut connection).unwrap_or_default();
                let line =
                    |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                if let Some(version) = line("valkey_version:") {
                    self.version = format!("Valkey {version}");
                } else if let Some(version) = line("redis_version:") {
                    self.version = format!("Redis {version}");
                }
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    fn connect(&self) -> redis::RedisResult<redis::Connection> {
        redis::Client::open(self.url.as_str())?.get_connection()
    }

    /// Returns a figure of INFO.
    fn info(&self, section: &str, name: &str) -> f64 {
        let mut connection = self.connect().expect("the server answers");
        let info: String =
            redis::cmd("INFO").arg(section).query(&mut connection).expect("the server answers");
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("INFO {section} has no {name}"))
    }

    pub(crate) fn port(&self) -> u16 {
        self.url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("the URL has a port")
    }

    /// Sends a command whose answer does not matter.
    pub(crate) fn tell(&self, words: &[&str]) {
        self.ask::<redis::Value>(words);
    }

    /// Sends a command, and returns the text that it answers with.
    pub(crate) fn text(&self, words: &[&str]) -> String {
        self.ask(words)
    }

    fn ask<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = self.connect().expect("the server answers");
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).query(&mut connection).expect("the server accepts it")
    }

    /// Returns the user and system time of the server.
    pub(crate) fn cpu_micros(&self) -> f64 {
        if let Some(postgres) = &self.postgres {
            return postgres.cpu_micros();
        }
        let seconds = self.info("cpu", "used_cpu_user") + self.info("cpu", "used_cpu_sys");
        seconds * 1e6 + self.others.iter().map(Server::cpu_micros).sum::<f64>()
    }

    /// Returns the memory that its data takes, in bytes.
    pub(crate) fn used_memory(&self) -> f64 {
        if let Some(postgres) = &self.postgres {
            return postgres.size();
        }
        self.info("memory", "used_memory")
    }

    /// Removes everything.
    pub(crate) fn flush(&self) {
        if let Some(postgres) = &self.postgres {
            return postgres.flush();
        }
        self.tell(&["FLUSHALL", "SYNC"]);
        for other in
            self.others.iter().filter(|other| other.text(&["INFO", "replication"]).contains("role:master"))
        {
            other.flush();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.own {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
