//! Connections that are cut after every byte of every request and of every answer.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use nevertwice::store::Store;
use nevertwice::{Durability, RedisStore, StoreError};

use crate::bench::{Bench, Limits, SLACKS};
use crate::block_on_tokio;
use crate::ledger::{Audit, Ledger};
use crate::operations::{Case, Operation};
use crate::server::{Proxy, Server};

/// Cuts in parallel, each on a connection of its own.
const LANES: usize = 8;

/// The direction in which the bytes are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Request,
    Answer,
}

impl Side {
    fn fault(self) -> &'static str {
        if self == Side::Request { "request cut" } else { "answer cut" }
    }

    fn cut(self, proxy: &Proxy, bytes: usize) {
        match self {
            Side::Request => proxy.cut_request_after(bytes),
            Side::Answer => proxy.cut_reply_after(bytes),
        }
    }

    fn passed(self, proxy: &Proxy) -> usize {
        let (requests, replies) = proxy.passed();
        if self == Side::Request { requests } else { replies }
    }
}

/// Returns the least and the most bytes that an operation takes without a cut: the server's time
/// varies in digits, and is not always asked for.
async fn bytes_of(operation: Operation, bench: &Bench, side: Side) -> (usize, usize) {
    let (mut least, mut most) = (usize::MAX, 0);
    for run in 0..4 {
        let mut case = Case::prepare(operation, &format!("{side:?} uncut{run}"), bench, false).await;
        bench.warm().await;
        let before = side.passed(&bench.proxy);
        case.perform(bench).await.unwrap();
        let bytes = side.passed(&bench.proxy) - before;
        (least, most) = (least.min(bytes), most.max(bytes));
        case.settle(bench).await;
    }
    (least, most)
}

/// Cuts after `bytes` bytes and returns true if that happened. The operation must be answered as
/// without the cut.
async fn cut_once(operation: Operation, bench: &Bench, side: Side, bytes: usize) -> bool {
    let mut case = Case::prepare(operation, &format!("{side:?} {bytes:06}"), bench, false).await;
    bench.warm().await;
    side.cut(&bench.proxy, bytes);
    if let Err(error) = case.perform(bench).await {
        panic!("{operation:?}, {} after {bytes} bytes: {error}", side.fault());
    }
    let happened = bench.proxy.heal();
    case.settle(bench).await;
    happened
}

/// The servers whose connections are cut.
pub(crate) trait Target {
    /// Bytes by which operations differ: a connection asks for the time now and then.
    const DIFFERENCE: usize;

    /// Their name in reports.
    fn name(&self) -> &'static str;

    /// True if the operation is tried on these servers.
    fn tries(&self, _: Operation) -> bool {
        true
    }

    async fn bench(&self, ledger: &Arc<Ledger>, limits: Limits) -> Bench;
}

impl Target for Server {
    const DIFFERENCE: usize = 4;

    fn name(&self) -> &'static str {
        "server"
    }

    async fn bench(&self, ledger: &Arc<Ledger>, limits: Limits) -> Bench {
        Bench::of_user(self, ledger, limits, "").await
    }
}

/// Cuts after every number of bytes, and once after the last.
async fn cut_everywhere<T: Target>(
    target: &T,
    operation: Operation,
    side: Side,
    slack: Duration,
    lanes: usize,
) -> usize {
    let ledger = Arc::new(Ledger::default());
    let limits = Limits { slack, ..Limits::PATIENT };
    let benches = join_all((0..lanes).map(|_| target.bench(&ledger, limits))).await;
    let (least, bytes) = bytes_of(operation, &benches[0], side).await;
    let cuts = join_all(benches.iter().enumerate().map(async |(lane, bench)| {
        let mut cuts = 0;
        for bytes in (lane..=bytes).step_by(lanes) {
            cuts += usize::from(cut_once(operation, bench, side, bytes).await);
        }
        cuts
    }));
    let cuts: usize = cuts.await.into_iter().sum();
    let audit = ledger.audit(&benches[0].direct).await;
    let (name, slack) = (format!("{operation:?}"), slack.as_secs());
    let numbers: [(&str, &dyn Display); 5] = [
        ("servers", &target.name()),
        ("operation", &name),
        ("slack_s", &slack),
        ("bytes", &bytes),
        ("cuts", &cuts),
    ];
    audit.require(side.fault(), &numbers);
    // A waiter uses two connections, one of which is not always as far.
    let least = if operation == Operation::Wait { least / 2 } else { least.saturating_sub(T::DIFFERENCE) };
    assert!(cuts > least, "{operation:?}: {cuts} cuts in {bytes} bytes");
    cuts
}

/// Cuts all operations, one after the other.
pub(crate) async fn cut_all(target: &impl Target, side: Side, slack: Duration) {
    let (mut cuts, mut tried) = (0, 0);
    let operations = Operation::REPEATABLE.into_iter().chain([Operation::Run]);
    for operation in operations.filter(|&operation| target.tries(operation)) {
        cuts += cut_everywhere(target, operation, side, slack, LANES).await;
        tried += 1;
    }
    assert!(cuts > 30 * tried, "{cuts} of {tried} operations");
}

fn cut_server(side: Side, slack: Duration) {
    block_on_tokio(cut_all(&Server::start(&[]), side, slack));
}

#[test]
fn s6_an_answer_cut_at_every_byte_of_every_operation() {
    cut_server(Side::Answer, SLACKS[0]);
}

#[test]
fn s6_an_answer_of_the_script_cut_at_every_byte_of_every_operation() {
    cut_server(Side::Answer, SLACKS[1]);
}

#[test]
fn s6_a_request_cut_at_every_byte_of_every_operation() {
    cut_server(Side::Request, SLACKS[0]);
}

#[test]
fn s6_a_request_to_the_script_cut_at_every_byte_of_every_operation() {
    cut_server(Side::Request, SLACKS[1]);
}

#[test]
fn l4_a_waiter_whose_connections_are_cut_at_every_byte_is_told() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        for side in [Side::Answer, Side::Request] {
            cut_everywhere(&server, Operation::Wait, side, SLACKS[0], 4 * LANES).await;
        }
    });
}

/// Bytes within which every byte is cut. The answers to the login, `HELLO` and `CONFIG` are shorter
/// than this; the long answer to `INFO` follows them.
const EVERY_BYTE: usize = 1000;

/// Connects with a cut after every byte of the answers, and every 17th of the long one. Returns all
/// results.
async fn connect_cut_everywhere(server: &Server) -> Vec<Result<RedisStore, StoreError>> {
    let proxy = Proxy::start(server.port()).await;
    let mut results = Vec::new();
    for bytes in (0..EVERY_BYTE).chain((EVERY_BYTE..).step_by(17)) {
        proxy.cut_reply_after(bytes);
        results.push(RedisStore::connect(&proxy.url()).await);
        if !proxy.heal() {
            break;
        }
    }
    results
}

#[test]
fn s10_what_was_not_heard_when_connecting_is_not_taken_for_the_best() {
    let (good, evicts) = (
        Server::start(&["--appendonly", "yes", "--appendfsync", "always"]),
        Server::start(&["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"]),
    );
    block_on_tokio(async {
        let results = connect_cut_everywhere(&good).await;
        let mut connected = 0;
        for (cut, result) in results.iter().enumerate() {
            match result {
                Ok(store) => {
                    connected += 1;
                    assert_eq!(store.durability(), Durability::Power, "cut {cut}");
                }
                Err(error) => assert!(error.is_transient(), "cut {cut}: {error}"),
            }
        }
        assert!(results.last().is_some_and(Result::is_ok));
        let cuts = results.len() - 1;
        let numbers: [(&str, &dyn Display); 2] = [("cuts", &cuts), ("connected", &connected)];
        Audit::default().report("answers to the connecting store cut", &numbers);

        let results = connect_cut_everywhere(&evicts).await;
        let refused =
            results.iter().filter(|result| matches!(result, Err(StoreError::Unusable { .. }))).count();
        for (cut, result) in results.iter().enumerate() {
            assert!(result.is_err(), "connected after cut {cut}");
        }
        assert!(matches!(results.last(), Some(Err(StoreError::Unusable { .. }))));
        let cuts = results.len() - 1;
        let numbers: [(&str, &dyn Display); 2] = [("cuts", &cuts), ("refused", &refused)];
        Audit::default().report("the same, of a server that evicts", &numbers);
    });
}
