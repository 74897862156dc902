//! A private PostgreSQL server.
#![allow(clippy::disallowed_methods, reason = "real servers take real time")]

use std::hash::{Hash, Hasher};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Names the folder of the server's programs, instead of those of Debian's packages.
const PROGRAMS: &str = "NEVERTWICE_POSTGRES_BIN";
/// Time limit of a start and of a stop, generous even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// The superuser of a private server, who needs no password.
const USER: &str = "postgres";

/// A server with its own port and directory. Stopped when dropped.
pub(crate) struct Server {
    child: Child,
    port: u16,
    dir: PathBuf,
    options: Vec<String>,
    variables: Vec<(String, String)>,
    _owner: Option<TempDir>,
}

impl Server {
    /// Starts an empty server with settings such as `&["fsync=off"]`.
    pub(crate) fn start(options: &[&str]) -> Server {
        let owner = tempfile::tempdir().unwrap();
        let dir = owner.path().to_owned();
        Server::start_in(dir, options, &[], Some(owner))
    }

    /// Starts one with environment variables.
    pub(crate) fn start_with(options: &[&str], variables: &[(&str, &str)]) -> Server {
        let owner = tempfile::tempdir().unwrap();
        let dir = owner.path().to_owned();
        Server::start_in(dir, options, variables, Some(owner))
    }

    /// Starts an empty server in a folder.
    pub(crate) fn start_in(
        dir: PathBuf,
        options: &[&str],
        variables: &[(&str, &str)],
        owner: Option<TempDir>,
    ) -> Server {
        give(&dir);
        run(Command::new("tar").arg("-C").arg(&dir).arg("-xpf").arg(template()));
        Server::run(dir, options, variables, owner)
    }

    /// Starts a standby of this server, which streams from it under this name.
    pub(crate) fn standby(&self, name: &str, options: &[&str]) -> Server {
        let owner = tempfile::tempdir().unwrap();
        let dir = owner.path().to_owned();
        give(&dir);
        let source = format!("host=127.0.0.1 port={} user={USER} application_name={name}", self.port);
        run(as_user("pg_basebackup")
            .args(["-R", "-X", "stream", "-c", "fast", "-d", &source, "-D"])
            .arg(dir.join("data")));
        Server::run(dir, options, &[], Some(owner))
    }

    fn run(dir: PathBuf, options: &[&str], variables: &[(&str, &str)], owner: Option<TempDir>) -> Server {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let variables: Vec<_> =
            variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        // Another process may take the port before the server does.
        for _ in 0..10 {
            let port = free_port();
            if let Some(child) = until_it_answers(spawn(&dir, port, &options, &variables), port) {
                return Server { child, port, dir, options, variables, _owner: owner };
            }
        }
        panic!("postgres did not start: {}", std::fs::read_to_string(dir.join("log")).unwrap_or_default());
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        self.url_at(self.port)
    }

    /// The URL of the same server through another port, such as a proxy's.
    pub(crate) fn url_at(&self, port: u16) -> String {
        format!("postgres://{USER}@127.0.0.1:{port}/postgres?sslmode=disable")
    }

    pub(crate) fn url_as(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgres://{user}:{password}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Runs SQL that bypasses the store, and returns its rows, one a line.
    pub(crate) fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub(crate) fn try_sql(&self, sql: &str) -> Result<String, String> {
        let port = self.port.to_string();
        let mut command = Command::new(program("psql"));
        command.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            USER,
            "-p",
            &port,
        ]);
        let output = command.args(["-c", sql, "postgres"]).stdin(Stdio::null()).output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned())
    }

    /// The folder of its data.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Gives a file among its data to it, unreadable for others.
    pub(crate) fn own(&self, name: &str) {
        let path = self.data().join(name);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        if is_root() {
            run(Command::new("chown").arg(format!("{USER}:")).arg(&path));
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }

    /// Kills it with SIGKILL. Its other processes end by themselves.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops it as an operator does who wants no delay.
    pub(crate) fn stop(&mut self) {
        self.signal("INT");
        end(&mut self.child);
    }

    /// Starts it again on its port and directory.
    pub(crate) fn restart(&mut self) {
        let start = Instant::now();
        // After a kill, processes of the old server may be there for a moment.
        while start.elapsed() < PATIENCE {
            let starting = spawn(&self.dir, self.port, &self.options, &self.variables);
            if let Some(child) = until_it_answers(starting, self.port) {
                self.child = child;
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("postgres did not start again: {}", self.log());
    }

    /// Starts it again with other settings and environment variables.
    pub(crate) fn restart_with(&mut self, options: &[&str], variables: &[(&str, &str)]) {
        self.options = options.iter().map(|&option| option.to_owned()).collect();
        self.variables = variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        self.restart();
    }

    /// Makes a standby the primary.
    pub(crate) fn promote(&self) {
        self.sql("SELECT pg_promote(true, 60)");
    }

    /// Sends it a signal by name, as `kill` does.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(sent.unwrap().success(), "kill -{name}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = Command::new("kill").args(["-QUIT", &self.child.id().to_string()]).status();
            end(&mut self.child);
        }
    }
}

/// Returns an archive of the folder `data` of an empty server, which takes long to make: it is
/// made once for each version of the programs, and stays.
fn template() -> PathBuf {
    const ARGUMENTS: [&str; 9] =
        ["-N", "-A", "trust", "-U", USER, "--wal-segsize=1", "--locale=C", "-E", "UTF8"];
    let made = std::fs::metadata(program("initdb")).unwrap();
    let user = std::fs::metadata("/proc/self").map_or(0, |own| own.uid());
    let mut hasher = std::hash::DefaultHasher::new();
    (program("initdb"), made.mtime(), made.size(), user, ARGUMENTS).hash(&mut hasher);
    let path = std::env::temp_dir().join(format!("nevertwice-postgres-{:016x}.tar", hasher.finish()));
    if !path.exists() {
        let folder = tempfile::tempdir().unwrap();
        give(folder.path());
        run(as_user("initdb").args(ARGUMENTS).arg("-D").arg(folder.path().join("data")));
        let archive = folder.path().join("data.tar");
        run(Command::new("tar").arg("-C").arg(folder.path()).arg("-cf").arg(&archive).arg("data"));
        // Complete at once. Others that made one too made the same.
        std::fs::rename(archive, &path).unwrap();
    }
    path
}

/// Waits for the end of a server that was told to.
fn end(child: &mut Child) {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Returns the path of one of the server's programs.
pub(crate) fn program(name: &str) -> PathBuf {
    if let Ok(folder) = std::env::var(PROGRAMS) {
        return Path::new(&folder).join(name);
    }
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        debian.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).collect();
    found.sort();
    let configured = || {
        let output = Command::new("pg_config").arg("--bindir").output().ok()?;
        let folder = String::from_utf8(output.stdout).ok()?;
        Some(Path::new(folder.trim()).join(name)).filter(|path| path.exists())
    };
    found.pop().or_else(configured).unwrap_or_else(|| {
        panic!(
            "these tests need {name} of PostgreSQL 13 or later: install the package postgresql, or name its folder in \
             {PROGRAMS}"
        )
    })
}

/// Builds a command of a program that refuses to be run by root.
fn as_user(name: &str) -> Command {
    as_user_with(name, &[])
}

fn as_user_with(name: &str, variables: &[(String, String)]) -> Command {
    let mut command = Command::new("setpriv");
    if is_root() {
        command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]);
    }
    command
        .arg("env")
        .args(variables.iter().map(|(name, value)| format!("{name}={value}")))
        .arg(program(name));
    command
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Gives a folder to the user that the server runs as.
fn give(dir: &Path) {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    if is_root() {
        run(Command::new("chown").arg(format!("{USER}:")).arg(dir));
    }
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn spawn(dir: &Path, port: u16, options: &[String], variables: &[(String, String)]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    // Set for the server only: another user could not share what a preloaded library opens.
    let mut command = as_user_with("postgres", variables);
    command.arg("-D").arg(dir.join("data")).args(["-p", &port.to_string(), "-k", ""]);
    for option in ["listen_addresses=127.0.0.1", "shared_buffers=32MB", "max_connections=200"] {
        command.args(["-c", option]);
    }
    for option in options {
        command.args(["-c", option]);
    }
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn();
    child.unwrap_or_else(|error| panic!("these tests need postgres: {error}"))
}

/// Waits for an answer. Returns `None` if the server ended instead.
fn until_it_answers(mut child: Child, port: u16) -> Option<Child> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        if answers(port) {
            return Some(child);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn answers(port: u16) -> bool {
    let ready =
        Command::new(program("pg_isready")).args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]).status();
    // Another program may have taken the port, and accept nothing.
    let address = (Ipv4Addr::LOCALHOST, port).into();
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
        && ready.is_ok_and(|status| status.success())
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
