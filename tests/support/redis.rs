//! A private Redis server, and a proxy that injects faults into its connections.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

/// Names a server to test instead of `redis-server`, such as Valkey's.
const BINARY: &str = "NEVERTWICE_REDIS_SERVER";
/// Attempts to reach a starting server, one every 5 ms.
const PATIENCE: u32 = 12_000;
/// Time limit for commands that a test sends directly to the server.
const ANSWER: Duration = Duration::from_secs(60);

/// A `redis-server` with its own port and directory. Stopped when dropped.
pub(crate) struct Server {
    child: Child,
    port: u16,
    setup: Setup,
    dir: TempDir,
}

/// The options and environment of a server.
struct Setup {
    binary: String,
    options: Vec<String>,
    variables: Vec<(String, String)>,
}

impl Server {
    /// Starts a server with command-line options such as `&["--appendonly", "yes"]`.
    pub(crate) fn start(options: &[&str]) -> Server {
        Server::start_with(options, &[])
    }

    /// Starts a server with options and environment variables.
    pub(crate) fn start_with(options: &[&str], variables: &[(&str, &str)]) -> Server {
        Server::start_all(binary(), options, variables)
    }

    /// Starts this program, whatever the environment names.
    pub(crate) fn start_of(binary: &str, options: &[&str]) -> Server {
        Server::start_all(binary.to_owned(), options, &[])
    }

    fn start_all(binary: String, options: &[&str], variables: &[(&str, &str)]) -> Server {
        let dir = tempfile::tempdir().unwrap();
        let setup = Setup {
            binary,
            options: options.iter().map(|&option| option.to_owned()).collect(),
            variables: variables.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect(),
        };
        // Another process may take the port before the server does; then it starts again on another
        // port.
        for _ in 0..10 {
            let port = free_port();
            if let Some(child) = spawn(port, &dir, &setup).until_it_answers(port) {
                return Server { child, port, setup, dir };
            }
        }
        panic!(
            "{} did not start: {}",
            setup.binary,
            std::fs::read_to_string(dir.path().join("log")).unwrap()
        );
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn url_as(&self, user: &str, password: &str) -> String {
        format!("redis://{user}:{password}@127.0.0.1:{}", self.port)
    }

    /// Opens a plain connection that bypasses the store.
    pub(crate) fn raw(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).unwrap();
        let connection = client.get_connection_with_timeout(ANSWER).unwrap();
        connection.set_read_timeout(Some(ANSWER)).unwrap();
        connection
    }

    /// Sends a command, written as in a shell, and returns the answer.
    pub(crate) fn ask<T: redis::FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut cmd = redis::cmd(words.next().unwrap());
        words.for_each(|word| {
            cmd.arg(word);
        });
        cmd.query(&mut self.raw()).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on its port and directory.
    pub(crate) fn restart(&mut self) {
        let starting = spawn(self.port, &self.dir, &self.setup);
        self.child = starting.until_it_answers(self.port).expect("it starts on its old port");
    }

    /// Starts it again with other options.
    pub(crate) fn restart_with(&mut self, options: &[&str]) {
        self.setup.options = options.iter().map(|&option| option.to_owned()).collect();
        self.restart();
    }

    /// Starts it again, without waiting until it has loaded its data.
    pub(crate) fn restart_and_load(&mut self) {
        self.child = spawn(self.port, &self.dir, &self.setup).0;
    }

    /// True if it answers and has finished loading.
    pub(crate) fn answers(&self) -> bool {
        answers(self.port)
    }

    /// Sends it a signal by name, as `kill` does.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(sent.unwrap().success(), "kill -{name}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary() -> String {
    std::env::var(BINARY).unwrap_or_else(|_| "redis-server".to_owned())
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A server that may not answer yet.
struct Starting(Child);

fn spawn(port: u16, dir: &TempDir, setup: &Setup) -> Starting {
    let child = Command::new(&setup.binary)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--logfile", "log", "--dir"])
        .arg(dir.path())
        .args(&setup.options)
        .envs(setup.variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Starting(child.unwrap_or_else(|error| panic!("these tests need {}, 7.0 or later: {error}", setup.binary)))
}

impl Starting {
    /// Waits for an answer. Returns `None` if the server ended instead.
    fn until_it_answers(self, port: u16) -> Option<Child> {
        let Starting(mut child) = self;
        for _ in 0..PATIENCE {
            if child.try_wait().unwrap().is_some() {
                return None;
            }
            if answers(port) {
                return Some(child);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    }
}

/// True if it has finished loading. A server that demands a password has.
fn answers(port: u16) -> bool {
    let ping = || -> std::io::Result<Vec<u8>> {
        // Another program may have taken the port, and accept nothing.
        let address = (Ipv4Addr::LOCALHOST, port).into();
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        stream.write_all(b"PING\r\n")?;
        let mut reply = [0; 5];
        stream.read_exact(&mut reply)?;
        Ok(reply.to_vec())
    };
    ping().is_ok_and(|reply| reply == b"+PONG" || reply == b"-NOAU")
}

/// Starts a server that is not Redis: it sends the same bytes on every connection and closes it.
/// Returns its port.
pub(crate) fn impostor(says: &'static [u8]) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // Read first: closing with unread input resets the connection, and the client receives
            // nothing.
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(says);
        }
    });
    port
}

/// A fault that a [`Proxy`] injects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Closes both directions as soon as exactly this many more request bytes have passed.
    CutRequestAfter(usize),
    /// The same for reply bytes.
    CutReplyAfter(usize),
    /// Shifts the replies to `TIME` by so many seconds.
    ShiftTime(i64),
    /// Swallows replies on the existing connections. New ones work.
    Stall,
    /// Swallows replies on existing and new connections.
    Silence,
    /// Delays replies on the existing connections. New ones work.
    Delay(Duration),
}

/// Bytes that passed through a [`Proxy`], on all connections.
#[derive(Default)]
struct Passed {
    requests: AtomicUsize,
    replies: AtomicUsize,
}

/// A proxy between a client and a server that passes on both directions.
pub(crate) struct Proxy {
    address: SocketAddrV4,
    server: Arc<AtomicU16>,
    fault: Arc<Mutex<Fault>>,
    passed: Arc<Passed>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub(crate) async fn start(server: u16) -> Proxy {
        Proxy::start_at(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), server).await
    }

    /// Starts at the server's port of another address of this machine, for nodes of a cluster that
    /// tell their ports only.
    pub(crate) async fn start_on(ip: Ipv4Addr, server: u16) -> Proxy {
        Proxy::start_at(SocketAddrV4::new(ip, server), server).await
    }

    async fn start_at(address: SocketAddrV4, server: u16) -> Proxy {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = SocketAddrV4::new(*address.ip(), listener.local_addr().unwrap().port());
        let (fault, passed) = (Arc::new(Mutex::new(Fault::None)), Arc::new(Passed::default()));
        let server = Arc::new(AtomicU16::new(server));
        let (shared, target, count) = (Arc::clone(&fault), Arc::clone(&server), Arc::clone(&passed));
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // A stall affects only the connections that existed before.
                let mut fault = shared.lock().unwrap();
                if matches!(*fault, Fault::Stall | Fault::Delay(_)) {
                    *fault = Fault::None;
                }
                drop(fault);
                let port = target.load(Ordering::SeqCst);
                tokio::spawn(pass(client, port, Arc::clone(&shared), Arc::clone(&count)));
            }
        });
        Proxy { address, server, fault, passed, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(crate) fn cut_request_after(&self, bytes: usize) {
        *self.fault.lock().unwrap() = Fault::CutRequestAfter(bytes);
    }

    pub(crate) fn cut_reply_after(&self, bytes: usize) {
        *self.fault.lock().unwrap() = Fault::CutReplyAfter(bytes);
    }

    pub(crate) fn stall(&self) {
        *self.fault.lock().unwrap() = Fault::Stall;
    }

    /// Shows a clock so many seconds ahead of the server's.
    pub(crate) fn shift_time(&self, seconds: i64) {
        *self.fault.lock().unwrap() = Fault::ShiftTime(seconds);
    }

    pub(crate) fn silence(&self) {
        *self.fault.lock().unwrap() = Fault::Silence;
    }

    pub(crate) fn delay(&self, time: Duration) {
        *self.fault.lock().unwrap() = Fault::Delay(time);
    }

    /// Returns the numbers of request and reply bytes passed on so far.
    pub(crate) fn passed(&self) -> (usize, usize) {
        (self.passed.requests.load(Ordering::SeqCst), self.passed.replies.load(Ordering::SeqCst))
    }

    /// Leads new connections to another server.
    pub(crate) fn lead_to(&self, server: u16) {
        self.server.store(server, Ordering::SeqCst);
    }

    /// Ends the fault, and returns true if it has happened.
    pub(crate) fn heal(&self) -> bool {
        std::mem::replace(&mut *self.fault.lock().unwrap(), Fault::None) == Fault::None
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(mut client: tokio::net::TcpStream, port: u16, fault: Arc<Mutex<Fault>>, passed: Arc<Passed>) {
    let Ok(mut server) = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { return };
    let (mut request, mut reply) = ([0; 4096], [0; 4096]);
    let mut stalled = false;
    loop {
        let (bytes, to, count, is_reply) = tokio::select! {
            read = client.read(&mut request) => match read {
                Ok(n) if n > 0 => (&request[..n], &mut server, &passed.requests, false),
                _ => return,
            },
            read = server.read(&mut reply) => match read {
                Ok(n) if n > 0 => (&reply[..n], &mut client, &passed.replies, true),
                _ => return,
            },
        };
        let (allowed, delay) = {
            let mut fault = fault.lock().unwrap();
            stalled |= matches!(*fault, Fault::Stall | Fault::Silence);
            let allowed = match &mut *fault {
                Fault::CutRequestAfter(left) if !is_reply => spend(left, bytes.len()),
                Fault::CutReplyAfter(left) if is_reply => spend(left, bytes.len()),
                _ => None,
            };
            let delay = if let Fault::Delay(time) = *fault { time } else { Duration::ZERO };
            (allowed.inspect(|_| *fault = Fault::None), delay)
        };
        if stalled && is_reply {
            continue;
        }
        if is_reply && !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let part = allowed.unwrap_or(bytes.len());
        let shift = *fault.lock().unwrap();
        let shifted = match shift {
            Fault::ShiftTime(seconds) if is_reply => Some(shift_time(bytes, seconds)),
            _ => None,
        };
        let bytes = shifted.as_deref().unwrap_or(bytes);
        count.fetch_add(part, Ordering::SeqCst);
        if to.write_all(&bytes[..part]).await.is_err() || allowed.is_some() {
            return;
        }
    }
}

/// Shifts the replies to `TIME`, which are never split: they are short and come first.
fn shift_time(bytes: &[u8], seconds: i64) -> Vec<u8> {
    const START: &[u8] = b"*2\r\n$10\r\n";
    let mut bytes = bytes.to_vec();
    let starts = bytes.windows(START.len() + 10).enumerate();
    let found: Vec<usize> = starts
        .filter(|(_, part)| part.starts_with(START) && part[START.len()..].iter().all(u8::is_ascii_digit))
        .map(|(at, _)| at + START.len())
        .collect();
    for at in found {
        let time: i64 = std::str::from_utf8(&bytes[at..at + 10]).unwrap().parse().unwrap();
        bytes[at..at + 10].copy_from_slice((time + seconds).to_string().as_bytes());
    }
    bytes
}

/// Returns how many of `length` bytes may still pass if none may after them.
fn spend(left: &mut usize, length: usize) -> Option<usize> {
    if *left <= length {
        return Some(*left);
    }
    *left -= length;
    None
}
