//! The operations whose instructions and allocations are counted, for the benches of all stores.

use std::fmt;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use futures_executor::block_on;
use nevertwice::store::Store;
use nevertwice::{Begin, Classified, Completed, Engine, Fingerprint, Lease, Request};

/// The number of times that a bench does its operation. The figures are for one of them.
pub const REPEATS: usize = 64;

const SCOPE: &str = "acct_42/charges";

/// Makes a key of 38 characters, at little more than the cost of its allocation: an application's
/// way to make one is not what is measured.
pub fn key(number: usize) -> String {
    let mut key = String::with_capacity(38);
    key.push_str("8d7f9f2e-7f0c-4d57-9c55-0000000000");
    for shift in [12, 8, 4, 0] {
        key.extend(char::from_digit((number >> shift) as u32 & 15, 16));
    }
    key
}

/// Makes the request of an operation, and its key, as an application does each time.
pub fn request(number: usize, fingerprint: Fingerprint) -> Request {
    Request::new(SCOPE, key(number)).unwrap().fingerprint(fingerprint)
}

/// A relay in front of a server, for counts of its client that repeat: see `src/bin/relay.rs`.
#[derive(Debug)]
pub struct Relay {
    child: Child,
    /// The port for clients.
    pub port: u16,
}

impl Relay {
    /// Starts `program` in front of the server at `port`.
    pub fn start(program: &str, port: u16) -> Relay {
        let mut child = Command::new(program)
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Relay { child, port: line.trim().parse().unwrap() }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// An engine over a store with completed operations and operations in progress.
pub struct Bench {
    engine: Engine,
    fingerprint: Fingerprint,
    other: Fingerprint,
    /// 256 bytes.
    response: Bytes,
    /// The leases of the operations in progress. There is room for as many again.
    leases: Vec<Lease>,
    /// The number of completed operations.
    warm: usize,
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(f)
    }
}

impl Bench {
    /// Creates a bench over `store`, and completes `warm` operations, so that tables have grown and
    /// lazy initialisations are done.
    pub fn over(store: impl Store, warm: usize) -> Bench {
        let engine = Engine::builder(store).build().unwrap();
        let (fingerprint, other) = (Fingerprint::of("4200 EUR"), Fingerprint::of("4300 EUR"));
        let (response, leases) = (Bytes::from_static(&[b'r'; 256]), Vec::with_capacity(2 * REPEATS));
        let mut bench = Bench { engine, fingerprint, other, response, leases, warm };
        for number in 0..warm {
            let lease = bench.begin(number);
            bench.finish(&lease);
            bench.replay(number);
        }
        for number in bench.in_progress() {
            let lease = bench.begin(number);
            bench.leases.push(lease);
        }
        bench
    }

    /// The same, with the results of runs under the last numbers.
    pub fn with_runs(self) -> Bench {
        self.absent().for_each(|number| _ = self.run(number));
        self
    }

    fn completed(&self) -> Range<usize> {
        self.warm - REPEATS..self.warm
    }

    fn in_progress(&self) -> Range<usize> {
        self.warm..self.warm + REPEATS
    }

    fn absent(&self) -> Range<usize> {
        self.warm + REPEATS..self.warm + 2 * REPEATS
    }

    fn begin(&self, number: usize) -> Lease {
        let request = request(number, self.fingerprint);
        match block_on(self.engine.begin(&request)).unwrap() {
            Begin::Acquired(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    fn finish(&self, lease: &Lease) {
        block_on(lease.complete(self.response.clone())).unwrap();
    }

    fn replay(&self, number: usize) -> Completed {
        let request = request(number, self.fingerprint);
        match block_on(self.engine.begin(&request)).unwrap() {
            Begin::Completed(done) => done,
            other => panic!("{other:?}"),
        }
    }

    fn run(&self, number: usize) -> u64 {
        let request = request(number, self.fingerprint);
        let outcome = block_on(self.engine.run(&request, |_| async { Ok::<u64, Classified>(4200) }));
        *outcome.unwrap().value()
    }
}

/// The operations, each repeated.
impl Bench {
    /// The part of every begin that makes its key, which is not this crate's.
    pub fn keys(&mut self) {
        self.absent().for_each(|number| _ = black_box(key(number)));
    }

    /// The part of every begin that makes its key and its request.
    pub fn requests(&mut self) {
        self.absent().for_each(|number| _ = black_box(request(number, self.fingerprint)));
    }

    /// A begin of a new key.
    pub fn grants(&mut self) {
        for number in self.absent() {
            let lease = self.begin(number);
            self.leases.push(lease);
        }
    }

    /// A complete.
    pub fn completes(&mut self) {
        self.leases.iter().for_each(|lease| self.finish(lease));
    }

    /// A begin of a new key, and its complete.
    pub fn cycles(&mut self) {
        for number in self.absent() {
            let lease = self.begin(number);
            self.finish(&lease);
        }
    }

    /// A begin of a completed key.
    pub fn replays(&mut self) {
        self.completed().for_each(|number| _ = black_box(self.replay(number)));
    }

    /// A begin of a key in progress.
    pub fn duplicates(&mut self) {
        for number in self.in_progress() {
            let request = request(number, self.fingerprint);
            let begin = block_on(self.engine.begin(&request)).unwrap();
            assert!(matches!(begin, Begin::InProgress(_)));
        }
    }

    /// A begin with another fingerprint.
    pub fn mismatches(&mut self) {
        for number in self.completed() {
            let request = request(number, self.other);
            let begin = block_on(self.engine.begin(&request)).unwrap();
            assert!(matches!(begin, Begin::Mismatch(_)));
        }
    }

    /// A renewal.
    pub fn renewals(&mut self) {
        self.leases.iter().for_each(|lease| block_on(lease.renew()).unwrap());
    }

    /// A replay by `run`, of a number.
    pub fn run_replays(&mut self) {
        self.absent().for_each(|number| _ = black_box(self.run(number)));
    }

    /// One begin of many.
    pub fn batch(&mut self) {
        let requests: Vec<Request> = self.absent().map(|number| request(number, self.fingerprint)).collect();
        for begin in block_on(self.engine.begin_many(&requests)) {
            match begin.unwrap() {
                Begin::Acquired(lease) => self.leases.push(lease),
                other => panic!("{other:?}"),
            }
        }
    }
}
