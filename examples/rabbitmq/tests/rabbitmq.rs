//! The example `rabbitmq_consumer`, run as a user runs it: on a real broker, and killed while it
//! works.

#[path = "rabbitmq/broker.rs"]
mod broker;
#[path = "../../../tests/support/children.rs"]
mod children;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use nevertwice::{Engine, SqliteStore, StateKind};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use broker::Broker;

/// The program under test.
const BINARY: &str = env!("CARGO_BIN_EXE_rabbitmq_consumer");
/// Time limit of anything that must happen.
const PATIENCE: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(5);
const QUEUE: &str = "orders";
const ATTEMPTS: u32 = 3;
/// Orders published for each consumer that is killed.
const ROUND: u64 = 75;
const KILLS: u64 = 4;

/// The setup of the example: its broker, and a folder with the store and the ledger.
struct Site {
    url: String,
    dir: TempDir,
}

impl Site {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.current_dir(self.dir.path()).args(["--url", &self.url]).args(args).stdin(Stdio::null());
        command
    }

    fn publish(&self, first: u64, count: u64) {
        let args = ["--publish", &count.to_string(), "--first", &first.to_string()];
        let output = children::output(&mut self.command(&args));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn consumer(&self, name: &str, args: &[&str]) -> Consumer {
        let log = self.dir.path().join(format!("{name}.log"));
        let mut command = self.command(&["--lease-ms", "2000", "--work-ms", "40", "--prefetch", "8"]);
        let child = command.args(args).stderr(File::create(&log).unwrap()).spawn().unwrap();
        Consumer { child, log }
    }

    fn ledger(&self) -> Vec<Effect> {
        let lines = fs::read_to_string(self.dir.path().join("ledger.tsv")).unwrap_or_default();
        lines.split_inclusive('\n').filter_map(Effect::read).collect()
    }
}

/// A line of the ledger.
struct Effect {
    id: String,
    worker: u32,
}

impl Effect {
    /// Parses a line. `None` if it is not completely written yet.
    fn read(line: &str) -> Option<Effect> {
        let fields: Vec<&str> = line.strip_suffix('\n')?.split('\t').collect();
        let [id, _order, _attempt, worker] = fields[..] else { panic!("a line of the ledger: {line}") };
        Some(Effect { id: id.to_owned(), worker: worker.parse().unwrap() })
    }
}

/// A running consumer. Killed when dropped.
struct Consumer {
    child: Child,
    log: PathBuf,
}

impl Consumer {
    /// Returns its exit status, if it has ended.
    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    fn must_run(&mut self) {
        let ended = self.ended();
        assert!(ended.is_none(), "it ended: {ended:?}\n{}", fs::read_to_string(&self.log).unwrap());
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection that queries the broker independently of the consumers.
struct Watch {
    channel: Channel,
    _connection: Connection,
}

impl Watch {
    async fn open(url: &str) -> Watch {
        let connect = Connection::connect(url, ConnectionProperties::default());
        let connection = within("a connection", connect).await.unwrap();
        let channel = within("a channel", connection.create_channel()).await.unwrap();
        within("confirms", channel.confirm_select(ConfirmSelectOptions::default())).await.unwrap();
        Watch { channel, _connection: connection }
    }

    async fn queue(&self, name: &str) -> lapin::Queue {
        let look = QueueDeclareOptions::durable().passive();
        let declared = self.channel.queue_declare(name.into(), look, FieldTable::default());
        within("a look at a queue", declared).await.unwrap()
    }

    async fn consumers(&self) -> u32 {
        self.queue(QUEUE).await.consumer_count()
    }

    async fn send(&self, id: Option<&str>, body: &str) {
        let properties =
            id.map(|id| BasicProperties::default().with_message_id(id.into())).unwrap_or_default();
        let options = BasicPublishOptions::default();
        let sent = self.channel.basic_publish("".into(), QUEUE.into(), options, body.as_bytes(), properties);
        let confirmed = within("a message sent", sent).await.unwrap();
        assert!(within("a confirm", confirmed).await.unwrap().is_ack());
    }

    /// Empties the dead-letter queue. Returns the number of messages of each id.
    async fn dead(&self) -> HashMap<String, usize> {
        let mut dead = HashMap::new();
        let take = BasicGetOptions { no_ack: true };
        let next = || self.channel.basic_get(format!("{QUEUE}.dead").into(), take);
        while let Some(message) = within("a dead letter", next()).await.unwrap() {
            let id = message.delivery.properties.message_id().as_ref().map_or("", |id| id.as_str());
            *dead.entry(id.to_owned()).or_default() += 1;
        }
        dead
    }
}

/// Waits for an answer of the broker, at most for the time limit.
async fn within<T>(what: &str, answer: impl Future<Output = T>) -> T {
    timeout(PATIENCE, answer).await.unwrap_or_else(|_| panic!("in vain for {PATIENCE:?}: {what}"))
}

/// Polls `condition`, at most for the time limit.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < PATIENCE, "in vain for {PATIENCE:?}: {what}");
        sleep(PAUSE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn consumers_are_killed_and_every_effect_happens_once_or_is_reported() {
    let broker = Broker::start().await;
    let site = Site { url: broker.url().to_owned(), dir: tempfile::tempdir().unwrap() };
    site.publish(1, 0); // Declares the queues.
    let watch = Watch::open(broker.url()).await;

    let mut steady = site.consumer("steady", &[]);
    for round in 0..KILLS {
        // Both are waiting when the messages come, so both get some.
        let mut victim = site.consumer("victim", &[]);
        until("two consumers", async || {
            victim.must_run();
            watch.consumers().await == 2
        })
        .await;
        site.publish(1 + round * ROUND, ROUND);
        let worker = victim.child.id();
        until("the consumer to be killed is at work", async || {
            victim.must_run();
            steady.must_run();
            site.ledger().iter().any(|effect| effect.worker == worker)
        })
        .await;
        drop(victim); // SIGKILL, with more messages at hand than that one.
        until("the broker has noticed", async || watch.consumers().await == 1).await;
    }
    drop(steady);

    watch.send(None, r#"{"order":1000}"#).await;
    watch.send(Some("changed"), r#"{"order":1001}"#).await;
    watch.send(Some("changed"), r#"{"order":1002}"#).await;
    let mut last = [site.consumer("last-1", &["--until-idle"]), site.consumer("last-2", &["--until-idle"])];
    for consumer in &mut last {
        until("the consumers find nothing more", async || consumer.ended().is_some()).await;
        let log = fs::read_to_string(&consumer.log).unwrap();
        assert!(consumer.ended().unwrap().success(), "{log}");
    }
    for name in [QUEUE, "orders.retry"] {
        until("the queues are empty", async || watch.queue(name).await.message_count() == 0).await;
    }

    let mut dead = watch.dead().await;
    let mut effects: BTreeMap<String, usize> = BTreeMap::new();
    site.ledger().into_iter().for_each(|effect| *effects.entry(effect.id).or_default() += 1);
    let twice: Vec<_> = effects.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "effects that happened twice: {twice:?}");

    // A message without an id is not tried. Of two different messages with the same id, one is
    // refused.
    assert_eq!(dead.remove(""), Some(1));
    assert_eq!((effects.remove("changed"), dead.remove("changed")), (Some(1), Some(1)));

    let (mut done, mut unclear) = (0, 0);
    let store = SqliteStore::open(site.dir.path().join("rabbitmq_consumer.db")).unwrap();
    let engine = Engine::builder(store).build().unwrap();
    for order in 1..=KILLS * ROUND {
        let id = format!("order-{order}");
        let record =
            engine.inspect(QUEUE, id.as_str()).await.unwrap().unwrap_or_else(|| panic!("{id} is lost"));
        let (booked, letters) = (effects.remove(&id).is_some(), dead.remove(&id).unwrap_or(0));
        if order % 25 == 0 {
            let copies = if order % 3 == 0 { 2 } else { 1 };
            assert!(!booked && letters >= copies, "{id} is poison: {record:?}, {letters} dead letters");
            assert_eq!(record.attempt, ATTEMPTS, "{id} is poison: {record:?}");
        } else if letters == 0 {
            assert!(booked && record.state == StateKind::Completed, "{id}: {record:?}");
            done += 1;
        } else {
            unclear += 1;
        }
    }
    assert!(effects.is_empty() && dead.is_empty(), "never sent: {effects:?}, {dead:?}");
    assert!(done > unclear, "{done} orders done, {unclear} left to an operator");
}

#[test]
fn what_cannot_work_is_an_error_that_says_so() {
    let dir = tempfile::tempdir().unwrap();
    for (args, says) in [
        // No process listens on port 1.
        (["--url", "amqp://me:secret@127.0.0.1:1/%2f"], "cannot reach RabbitMQ at 127.0.0.1:1:"),
        (["--url", "papyrus"], "cannot reach RabbitMQ at papyrus:"),
        (["--store", "papyrus"], "a store is memory or sqlite:PATH"),
        (["--prefetch", "0"], "not in 1.."),
    ] {
        let output = refused(dir.path(), &args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(says), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains("secret"), "{args:?}: {stderr}");
    }
}

fn refused(dir: &Path, args: &[&str]) -> Output {
    children::output(Command::new(BINARY).current_dir(dir).args(args))
}
