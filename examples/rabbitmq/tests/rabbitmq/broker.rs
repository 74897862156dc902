//! A private RabbitMQ broker.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lapin::{Connection, ConnectionProperties};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

/// The broker's own script. The one in Debian's `/usr/sbin` switches to the user `rabbitmq` and to
/// system folders.
const DEBIAN: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
/// Time within which a starting broker must answer.
const PATIENCE: Duration = Duration::from_secs(180);
/// Time limit of one attempt to connect, which never ends if a starting broker closes the socket.
const TRY: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(50);

/// A `rabbitmq-server` with its own ports, port mapper and folders, run by this user. Stopped when
/// dropped.
pub(crate) struct Broker {
    children: [Child; 2],
    url: String,
    dir: TempDir,
}

impl Broker {
    pub(crate) async fn start() -> Broker {
        let mut log = String::new();
        // Another process may take a port before the broker does; then it starts again on other
        // ports.
        for _ in 0..5 {
            let dir = tempfile::tempdir().unwrap();
            let [amqp, distribution, mapper] = free_ports();
            let mut broker =
                Broker { children: launch(dir.path(), amqp, distribution, mapper), url: url(amqp), dir };
            match answers(&broker.url, &mut broker.children).await {
                Ok(()) => return broker,
                Err(ended) => {
                    log = fs::read_to_string(broker.dir.path().join("out")).unwrap_or_default();
                    assert!(ended, "rabbitmq-server did not answer within {PATIENCE:?}:\n{log}");
                }
            }
        }
        panic!("rabbitmq-server ends instead of starting:\n{log}");
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        stop(&mut self.children);
    }
}

fn stop(children: &mut [Child]) {
    for child in children {
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn url(port: u16) -> String {
    format!("amqp://127.0.0.1:{port}/%2f")
}

/// Returns three ports, reserved at the same time so that they differ.
fn free_ports() -> [u16; 3] {
    let free = [(); 3].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    free.map(|listener| listener.local_addr().unwrap().port())
}

/// Starts the broker and its port mapper, which would otherwise outlive it as a daemon.
fn launch(dir: &Path, amqp: u16, distribution: u16, mapper: u16) -> [Child; 2] {
    fs::write(dir.join("rabbitmq.conf"), format!("listeners.tcp.1 = 127.0.0.1:{amqp}\n")).unwrap();
    fs::write(dir.join("enabled_plugins"), "[].\n").unwrap();
    let script = if Path::new(DEBIAN).exists() { DEBIAN } else { "rabbitmq-server" };
    let mut epmd = run(Command::new("epmd").args(["-address", "127.0.0.1", "-port", &mapper.to_string()]));
    let mut broker = Command::new(script);
    broker
        .arg("-noinput")
        .current_dir(dir)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("LC_ALL", "C.UTF-8")
        // The Erlang cookie goes here.
        .env("HOME", dir)
        .env("ERL_EPMD_ADDRESS", "127.0.0.1")
        .env("ERL_EPMD_PORT", mapper.to_string())
        .env("RABBITMQ_NODENAME", format!("nevertwice{amqp}@localhost"))
        .env("RABBITMQ_NODE_PORT", amqp.to_string())
        .env("RABBITMQ_DIST_PORT", distribution.to_string())
        .env(
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
            "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
        )
        .env("RABBITMQ_CONFIG_FILE", dir.join("rabbitmq.conf"))
        .env("RABBITMQ_ADVANCED_CONFIG_FILE", dir.join("advanced.config"))
        .env("RABBITMQ_CONF_ENV_FILE", dir.join("rabbitmq-env.conf"))
        .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir.join("enabled_plugins"))
        .env("RABBITMQ_MNESIA_BASE", dir.join("mnesia"))
        .env("RABBITMQ_LOG_BASE", dir.join("log"))
        .env("RABBITMQ_PID_FILE", dir.join("pid"))
        // The script becomes the broker instead of its parent, so that killing it kills the broker.
        .env("RABBITMQ_ALLOW_INPUT", "1");
    let out = File::create(dir.join("out")).unwrap();
    let broker = broker.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out).spawn();
    let broker = broker.unwrap_or_else(|error| {
        stop(std::slice::from_mut(&mut epmd));
        missing(script, &error)
    });
    [broker, epmd]
}

fn run(command: &mut Command) -> Child {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.spawn().unwrap_or_else(|error| missing("epmd", &error))
}

fn missing(what: &str, error: &std::io::Error) -> ! {
    panic!("this test needs RabbitMQ, and {what} cannot be run ({error}): apt-get install rabbitmq-server")
}

/// Waits until the broker accepts a client. The error is true if one of the two processes ended.
async fn answers(url: &str, children: &mut [Child]) -> Result<(), bool> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let connected = timeout(TRY, Connection::connect(url, ConnectionProperties::default())).await;
        if matches!(connected, Ok(Ok(_))) {
            return Ok(());
        }
        if children.iter_mut().any(|child| child.try_wait().unwrap().is_some()) {
            return Err(true);
        }
        sleep(PAUSE).await;
    }
    Err(false)
}
