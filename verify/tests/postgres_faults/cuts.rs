//! Connections that are cut after every byte of every request and of every answer.

use std::fmt::Display;
use std::sync::Arc;

use futures_util::future::join_all;
use nevertwice::store::Store;
use nevertwice::{Durability, PostgresStore};

use crate::bench::Bench;
use crate::block_on_tokio;
use crate::ledger::{Audit, Ledger};
use crate::operations::{Case, Operation};
use crate::proxy::Proxy;
use crate::server::Server;

/// Cuts in parallel, each on connections of its own.
const LANES: usize = 8;

/// The direction in which the bytes are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
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

/// Returns the most bytes that an operation takes without a cut, with the announcements of the one
/// before, and the least.
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

/// Cuts after every number of bytes, and once after the last.
async fn cut_everywhere(server: &Server, operation: Operation, side: Side) -> usize {
    let ledger = Arc::new(Ledger::default());
    let benches = join_all((0..LANES).map(|_| Bench::new(server, &ledger))).await;
    let (least, bytes) = bytes_of(operation, &benches[0], side).await;
    let cuts = join_all(benches.iter().enumerate().map(async |(lane, bench)| {
        let mut cuts = 0;
        for bytes in (lane..=bytes).step_by(LANES) {
            cuts += usize::from(cut_once(operation, bench, side, bytes).await);
        }
        cuts
    }));
    let cuts: usize = cuts.await.into_iter().sum();
    let audit = ledger.audit(&benches[0].direct).await;
    let name = format!("{operation:?}");
    let numbers: [(&str, &dyn Display); 3] = [("operation", &name), ("bytes", &bytes), ("cuts", &cuts)];
    audit.require(side.fault(), &numbers);
    assert!(cuts > least / 2, "{operation:?}: {cuts} cuts in {bytes} bytes");
    cuts
}

/// Cuts a third of all operations, one after the other.
fn cut_third(third: usize, side: Side) {
    let server = Server::start(&["fsync=off"]);
    let operations = Operation::REPEATABLE.into_iter().chain([Operation::Run, Operation::Wait]);
    let cuts: usize = block_on_tokio(async {
        let mut cuts = 0;
        for operation in operations.skip(third).step_by(3) {
            cuts += cut_everywhere(&server, operation, side).await;
        }
        cuts
    });
    assert!(cuts > 500, "{cuts}");
}

#[test]
fn s6_a_postgres_answer_cut_at_every_byte_of_the_first_third_of_the_operations() {
    cut_third(0, Side::Answer);
}

#[test]
fn s6_a_postgres_answer_cut_at_every_byte_of_the_second_third_of_the_operations() {
    cut_third(1, Side::Answer);
}

#[test]
fn s6_a_postgres_answer_cut_at_every_byte_of_the_last_third_of_the_operations() {
    cut_third(2, Side::Answer);
}

#[test]
fn s6_a_postgres_request_cut_at_every_byte_of_the_first_third_of_the_operations() {
    cut_third(0, Side::Request);
}

#[test]
fn s6_a_postgres_request_cut_at_every_byte_of_the_second_third_of_the_operations() {
    cut_third(1, Side::Request);
}

#[test]
fn s6_a_postgres_request_cut_at_every_byte_of_the_last_third_of_the_operations() {
    cut_third(2, Side::Request);
}

#[test]
fn s10_what_was_not_heard_from_postgres_when_connecting_is_not_taken_for_the_best() {
    // Each cut takes the store some time, since it tries again.
    let step = if std::env::var_os("NEVERTWICE_LONG").is_some() { 1 } else { 17 };
    let (good, weak) = (Server::start(&[]), Server::start(&["synchronous_commit=off"]));
    block_on_tokio(async {
        for (server, level) in [(&good, Durability::Power), (&weak, Durability::Memory)] {
            // Creates the tables.
            drop(PostgresStore::connect(&server.url()).await.unwrap());
            let proxy = Proxy::start(server.port()).await;
            let (mut cuts, mut connected) = (0, 0);
            for bytes in (0..).step_by(step) {
                proxy.cut_reply_after(bytes);
                let result = PostgresStore::connect(&server.url_at(proxy.port())).await;
                let happened = proxy.heal();
                match result {
                    Ok(store) => {
                        connected += 1;
                        assert_eq!(store.durability(), level, "cut {bytes}");
                    }
                    Err(error) => assert!(error.is_transient(), "cut {bytes}: {error}"),
                }
                if !happened {
                    break;
                }
                cuts += 1;
            }
            assert!(cuts > 500 / step && connected > 0, "{cuts}, {connected}");
            let numbers: [(&str, &dyn Display); 2] = [("cuts", &cuts), ("connected", &connected)];
            Audit::default().report("answers to the connecting store cut", &numbers);
        }
    });
}
