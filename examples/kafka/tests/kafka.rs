//! The example `kafka_consumer`, run as a user runs it, on the cluster that librdkafka brings for
//! tests, and killed while it works.
#![allow(clippy::disallowed_methods, reason = "waits have deadlines")]

#[path = "../../../tests/support/children.rs"]
mod children;
#[path = "kafka/cluster.rs"]
mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use children::Deadline;
use cluster::{Cluster, GROUP, Group, PARTITIONS, Sent, TOPIC};
use futures_executor::block_on;
use nevertwice::{Engine, Key, SqliteStore, StateKind};
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_kafka_consumer");
/// Time limit of anything that must happen.
const PATIENCE: Duration = Duration::from_secs(240);
const PAUSE: Duration = Duration::from_millis(20);
const SCOPE: [&str; 3] = ["kafka", GROUP, TOPIC];

/// The cluster, and a folder with the store and the ledgers.
struct Site {
    cluster: Cluster,
    dir: TempDir,
    dedup: &'static str,
}

impl Site {
    fn new(dedup: &'static str) -> Site {
        Site { cluster: Cluster::start(), dir: tempfile::tempdir().unwrap(), dedup }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.current_dir(self.dir.path()).args(["--brokers", &self.cluster.brokers()]);
        command.args(["--dedup", self.dedup, "--lease-ms", "2000", "--session-ms", "6000"]);
        if !args.contains(&"--batch") {
            command.args(["--batch", "16"]);
        }
        command.args(args).stdin(Stdio::null());
        command
    }

    fn consumer(&self, name: &str, args: &[&str]) -> Consumer {
        let log = self.dir.path().join(format!("{name}.log"));
        let mut command = self.command(args);
        let child = command.stdout(Stdio::piped()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        Consumer { _deadline: Deadline::of(&child), child, log }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// The number of times that each order was booked.
    fn booked(&self) -> BTreeMap<u64, usize> {
        let mut booked = BTreeMap::new();
        for line in self.read("ledger.tsv").split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            *booked.entry(line.split('\t').next().unwrap().parse().unwrap()).or_default() += 1;
        }
        booked
    }

    /// The messages that were left to an operator, by partition and offset.
    fn dead(&self) -> BTreeMap<(i32, i64), String> {
        let read = |line: &str| {
            let fields: Vec<&str> = line.splitn(4, '\t').collect();
            ((fields[1].parse().unwrap(), fields[2].parse().unwrap()), fields[3].to_owned())
        };
        self.read("dead.tsv").lines().map(read).collect()
    }

    fn watch<'a>(&self, sent: &'a [Sent]) -> Watch<'a> {
        let store = SqliteStore::open(self.dir.path().join("kafka_consumer.db")).unwrap();
        let engine = Engine::builder(store).build().unwrap();
        Watch { group: self.cluster.group(), engine, sent, dedup: self.dedup }
    }

    /// Runs consumers until everything is committed, and kills them. The cluster of librdkafka
    /// locks up if all members leave it at once.
    fn drain(&self, consumers: &mut [Consumer]) {
        let group = self.cluster.group();
        until("everything is committed", || {
            consumers.iter_mut().for_each(Consumer::must_run);
            group.is_committed()
        });
    }
}

/// A running consumer. Killed when dropped.
struct Consumer {
    child: Child,
    log: PathBuf,
    _deadline: Deadline,
}

impl Consumer {
    /// Waits until it stops at its step, and kills it, as `kill -9` does.
    fn kill_at_its_step(mut self) {
        let lines = BufReader::new(self.child.stdout.take().unwrap()).lines();
        let hangs = lines.map_while(Result::ok).any(|line| line.starts_with("hangs at"));
        assert!(hangs, "{}", fs::read_to_string(&self.log).unwrap());
    }

    fn must_run(&mut self) {
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "it ended: {ended:?}\n{}", fs::read_to_string(&self.log).unwrap());
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "in vain for {PATIENCE:?}: {what}");
        thread::sleep(PAUSE);
    }
}

/// Stops the watch when dropped, so also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A look at the group and the store from beside.
struct Watch<'a> {
    group: Group,
    engine: Engine,
    sent: &'a [Sent],
    dedup: &'static str,
}

impl Watch<'_> {
    /// Checks until it is stopped that no committed offset has passed a message without an outcome.
    /// Returns the number of messages that were checked.
    fn run(&self, stop: &AtomicBool) -> usize {
        let mut checked = 0;
        loop {
            let last = stop.load(Ordering::SeqCst);
            // The offsets first: an outcome recorded after this is too late.
            let committed = self.group.committed();
            let done = self.sent.iter().filter(|message| message.offset < committed[&message.partition]);
            checked += done.filter(|message| self.check(message)).count();
            if last {
                return checked;
            }
            thread::sleep(PAUSE);
        }
    }

    /// Checks that the message has an outcome. False if it can have no record.
    fn check(&self, message: &Sent) -> bool {
        let key = match (self.dedup, &message.key) {
            ("key", Some(key)) => Key::from_bytes(key).unwrap(),
            ("key", None) => return false,
            _ => Key::try_from(format!("{}-{}", message.partition, message.offset)).unwrap(),
        };
        let record = block_on(self.engine.inspect(SCOPE, &key)).unwrap();
        let settled = record.as_ref().is_some_and(|record| {
            record.unresolved || matches!(record.state, StateKind::Completed | StateKind::Failed)
        });
        assert!(settled, "committed before its outcome: {message:?}: {record:?}");
        true
    }
}

#[test]
fn consumers_are_killed_and_every_effect_happens_once_or_is_reported() {
    let site = Site::new("key");
    let mut sent = Vec::new();
    for order in 1..=90_u64 {
        let key = [&[0xff, 0x00], &order.to_be_bytes()[..]].concat();
        let payload = if order % 25 == 0 { "no order".into() } else { format!("{{\"order\":{order}}}") };
        let partition = (order % PARTITIONS as u64) as i32;
        sent.push(site.cluster.send(partition, Some(&key), &payload));
        if order % 3 == 0 {
            // The producer sends it again, and it gets into another partition.
            sent.push(site.cluster.send((partition + 1) % PARTITIONS, Some(&key), &payload));
        }
    }
    let nameless = site.cluster.send(0, None, r#"{"order":1000}"#);
    let changed =
        site.cluster.send(1, Some(&[&[0xff, 0x00], &1_u64.to_be_bytes()[..]].concat()), r#"{"order":1001}"#);
    sent.push(nameless.clone());
    let (watch, stop) = (site.watch(&sent), AtomicBool::new(false));
    thread::scope(|scope| {
        let stopped = Stop(&stop);
        let watcher = scope.spawn(|| watch.run(&stop));
        // Between effect and outcome, and twice between outcome and commit.
        for (name, step) in [("first", "effect"), ("second", "outcome"), ("third", "outcome")] {
            site.consumer(name, &["--hang-at", step]).kill_at_its_step();
        }
        // One at work, while another one joins and partitions move.
        let victim = site.consumer("victim", &["--batch", "1"]);
        let before = site.booked().len();
        until("the victim is at work", || site.booked().len() > before);
        let last = site.consumer("last-1", &[]);
        drop(victim);
        site.drain(&mut [last, site.consumer("last-2", &[])]);
        drop(stopped);
        assert!(watcher.join().unwrap() > sent.len(), "commits were checked");
    });

    let (mut booked, dead) = (site.booked(), site.dead());
    assert!(booked.values().all(|times| *times == 1), "effects that happened twice: {booked:?}");
    let reason = |message: &Sent| dead.get(&(message.partition, message.offset)).map_or("", String::as_str);
    assert!(reason(&nameless).starts_with("no usable key"), "{dead:?}");
    assert!(reason(&changed).starts_with("Mismatch"), "{dead:?}");
    assert!(!booked.contains_key(&1000) && !booked.contains_key(&1001));
    let mut unclear = 0;
    for order in 1..=90_u64 {
        let copies: Vec<&Sent> = sent.iter().filter(|message| message.is_order(order)).collect();
        let reasons: BTreeSet<&str> = copies.iter().map(|message| reason(message)).collect();
        let times = booked.remove(&order).unwrap_or(0);
        if order % 25 == 0 {
            assert!(times == 0 && !reasons.contains(""), "{order} is poison: {reasons:?}");
        } else if reasons.iter().all(|reason| reason.is_empty()) {
            assert_eq!(times, 1, "{order} is lost");
        } else {
            // Each copy of it is reported.
            assert!(reasons.iter().all(|reason| reason.starts_with("Unresolved")), "{order}: {reasons:?}");
            unclear += 1;
        }
    }
    assert!(booked.is_empty(), "never sent: {booked:?}");
    // The one whose consumer was killed behind its effect, and what two killed ones had marked.
    assert!((1..=20).contains(&unclear), "{unclear} orders left to an operator");
}

#[test]
fn offsets_that_are_delivered_again_have_no_second_effect() {
    let mut site = Site::new("offset");
    let sent: Vec<Sent> =
        (1..=30).map(|order| site.cluster.send(order % 3, None, &format!("{{\"order\":{order}}}"))).collect();
    let again = site.cluster.send(0, None, r#"{"order":30}"#); // the producer sent it twice: two messages
    let (watch, stop) = (site.watch(&sent), AtomicBool::new(false));
    thread::scope(|scope| {
        let stopped = Stop(&stop);
        let watcher = scope.spawn(|| watch.run(&stop));
        site.consumer("killed", &["--hang-at", "outcome"]).kill_at_its_step();
        let before = site.booked();
        assert!(!before.is_empty(), "a batch was handled, and not committed");
        site.drain(&mut [site.consumer("last", &[])]);
        drop(stopped);
        watcher.join().unwrap();
    });
    let expected: BTreeMap<u64, usize> =
        (1..=30).map(|order| (order, if order == 30 { 2 } else { 1 })).collect();
    assert_eq!(site.booked(), expected, "{again:?}");
    // The committed offsets are lost, and everything is delivered from the beginning.
    site.cluster = Cluster::start();
    for message in sent.iter().chain([&again]) {
        let copy = site.cluster.send(message.partition, None, &message.payload);
        assert_eq!((copy.partition, copy.offset), (message.partition, message.offset));
    }
    site.drain(&mut [site.consumer("replay", &[])]);
    assert_eq!(site.booked(), expected);
    assert!(site.dead().is_empty(), "{:?}", site.dead());
}

#[test]
fn samples_are_published_and_consumed() {
    let site = Site::new("key");
    let output = children::output(&mut site.command(&["--publish", "50"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = children::output(&mut site.command(&["--until-idle"]));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(site.cluster.group().is_committed());
    let orders = (1..=50).filter(|order| order % 25 != 0).map(|order| (order, 1));
    assert_eq!(site.booked(), orders.collect());
    assert_eq!(site.dead().len(), 2);
}

#[test]
fn what_cannot_work_is_an_error_that_says_so_and_consumes_nothing() {
    let site = Site::new("key");
    fs::write(site.dir.path().join("notes.txt"), "these are notes, and no database\n".repeat(200)).unwrap();
    site.cluster.send(0, Some(b"k"), r#"{"order":1}"#);
    for (args, says) in [
        // No process listens on port 1.
        (["--brokers", "127.0.0.1:1"], "cannot reach Kafka at 127.0.0.1:1:"),
        (["--store", "notes.txt"], "cannot open the store notes.txt:"),
        (["--ledger", "."], "cannot open .:"),
        (["--batch", "0"], "not in 1..=10000"),
        (["--group", ""], "scope is empty"),
        (["--topic", "no such topic"], "there is no topic no such topic"),
        (["--dedup", "luck"], "possible values: key, offset"),
        (["--lease-ms", "0"], "lease must not be 0"),
        (["--session-ms", "0"], "session.timeout.ms"),
    ] {
        let mut command = Command::new(BINARY);
        command.current_dir(site.dir.path());
        if args[0] != "--brokers" {
            command.args(["--brokers", &site.cluster.brokers()]);
        }
        let output = children::output(command.args(args));
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains(says), "{args:?}: {told}");
        assert!(!told.contains("panicked"), "{args:?}: {told}");
    }
    assert!(site.booked().is_empty());
}
