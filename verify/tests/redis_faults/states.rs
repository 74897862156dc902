//! Every operation against a faulty server or network: the right answer, or in time an error after
//! which the application can repeat it once the fault has ended.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use nevertwice::{Clock, Error, StoreError, SystemClock};

use crate::bench::{Bench, Limits, SLACKS};
use crate::ledger::Ledger;
use crate::operations::{Case, Operation};
use crate::server::Server;
use crate::{block_on_tokio, length, until};

/// Number of copies of each operation that run at the same time.
const COPIES: usize = 4;
/// Delay that a busy machine may add to a deadline.
const LATE: Duration = Duration::from_secs(3);

/// A predicate: true if the operation may have this result while the fault lasts.
type Allowed = fn(Operation, &Result<(), Error>) -> bool;

/// The fault makes no difference.
fn unnoticed(_: Operation, result: &Result<(), Error>) -> bool {
    result.is_ok()
}

fn repeatable(_: Operation, result: &Result<(), Error>) -> bool {
    result.as_ref().err().is_none_or(is_passing)
}

/// Every operation fails.
fn refused(_: Operation, result: &Result<(), Error>) -> bool {
    result.as_ref().is_err_and(is_passing)
}

/// Operations that only read are answered.
fn unwritable(operation: Operation, result: &Result<(), Error>) -> bool {
    if operation.asks_for_a_grant() { refused(operation, result) } else { repeatable(operation, result) }
}

fn full(operation: Operation, result: &Result<(), Error>) -> bool {
    let is_full = matches!(result, Err(Error::Store(StoreError::Full { .. })));
    if operation.asks_for_a_grant() { is_full } else { result.is_ok() }
}

fn forbidden(_: Operation, result: &Result<(), Error>) -> bool {
    matches!(result, Ok(()) | Err(Error::Store(StoreError::Unusable { .. })))
}

fn is_passing(error: &Error) -> bool {
    matches!(error, Error::TimedOut { .. } | Error::Store(StoreError::Unavailable { .. }))
}

/// Several benches in front of one server, and the cases tried on them.
struct Trial {
    fault: &'static str,
    limits: Limits,
    benches: Vec<Bench>,
    cases: Vec<Vec<Case>>,
    ledger: Arc<Ledger>,
}

impl Trial {
    /// Prepares every operation, several times each.
    async fn prepare(fault: &'static str, server: &Server, limits: Limits, user: &str) -> Trial {
        let ledger = Arc::new(Ledger::default());
        let copies = COPIES * length();
        let benches = join_all((0..copies).map(|copy| {
            let limits = Limits { slack: SLACKS[copy % SLACKS.len()], ..limits };
            Bench::of_user(server, &ledger, limits, user)
        }));
        let benches = benches.await;
        let cases = join_all(benches.iter().enumerate().map(async |(number, bench)| {
            let mut cases = Vec::new();
            for operation in Operation::REPEATABLE {
                cases.push(Case::prepare(operation, &format!("{fault}/{number}"), bench, true).await);
            }
            bench.warm().await;
            cases
        }));
        let cases = cases.await;
        Trial { fault, limits, benches, cases, ledger }
    }

    /// Performs every operation once, all at the same time; then, once the fault is `over`, repeats
    /// the refused ones.
    async fn run(mut self, allowed: Allowed, over: impl AsyncFnOnce(&[Bench])) {
        let first = join_all(self.cases.iter_mut().zip(&self.benches).map(async |(cases, bench)| {
            join_all(cases.iter_mut().map(async |case| {
                let started = SystemClock.monotonic();
                let result = case.perform(bench).await;
                let took = SystemClock.monotonic() - started;
                assert!(allowed(case.operation, &result), "{}, {:?}: {result:?}", self.fault, case.operation);
                (result.is_err(), took)
            }))
            .await
        }));
        let first = tokio::time::timeout(self.limits.call + 20 * LATE, first).await;
        let first = first.expect("L1: an operation does not end").concat();
        over(&self.benches).await;
        join_all(self.cases.iter_mut().zip(&self.benches).map(async |(cases, bench)| {
            for case in cases {
                repeat(case, bench).await;
                case.settle(bench).await;
            }
        }))
        .await;

        let audit = self.ledger.audit(&self.benches[0].direct).await;
        let (operations, errors) = (first.len(), first.iter().filter(|(is_error, _)| *is_error).count());
        let longest = first.iter().map(|(_, took)| *took).max().unwrap_or_default();
        audit.require(
            self.fault,
            &[("operations", &operations), ("errors", &errors), ("longest_ms", &longest.as_millis())],
        );
        assert!(longest < self.limits.call + LATE, "{}: a call took {longest:?}", self.fault);
    }
}

/// Repeats an operation as an application does after an error. If it was answered before, this
/// changes nothing.
async fn repeat(case: &mut Case, bench: &Bench) {
    for _ in 0..50 {
        match case.perform(bench).await {
            Ok(()) => return,
            Err(error) if is_passing(&error) => {}
            Err(error) => panic!("{:?}: {error}", case.operation),
        }
    }
    panic!("{:?}: never answered although the trouble is over", case.operation);
}

/// Tries all operations under a fault that `inject` causes and `over` ends.
fn try_all(
    fault: &'static str,
    options: &[&str],
    limits: Limits,
    allowed: Allowed,
    inject: impl AsyncFnOnce(&mut Server, &[Bench]),
    over: impl AsyncFnOnce(&mut Server, &[Bench]),
) {
    let mut server = Server::start(options);
    block_on_tokio(async {
        let trial = Trial::prepare(fault, &server, limits, "").await;
        inject(&mut server, &trial.benches).await;
        trial.run(allowed, async |benches| over(&mut server, benches).await).await;
    });
}

/// Tries all operations under a fault that commands cause and other commands end.
fn try_command(fault: &'static str, limits: Limits, allowed: Allowed, commands: [&[&str]; 2]) {
    let say = |server: &Server, commands: &[&str]| {
        commands
            .iter()
            .for_each(|command| server.ask::<redis::Value>(command).extract_error().map(drop).unwrap());
    };
    let [begin, end] = commands;
    try_all(
        fault,
        &[],
        limits,
        allowed,
        async |server, _| say(server, begin),
        async |server, _| say(server, end),
    );
}

#[test]
fn a_script_that_is_gone_is_not_noticed_by_any_operation() {
    try_command("script flushed", Limits::PATIENT, unnoticed, [&["SCRIPT FLUSH"], &[]]);
}

#[test]
fn connections_that_are_gone_are_not_noticed_by_any_operation() {
    try_command("connection killed", Limits::PATIENT, unnoticed, [&["CLIENT KILL TYPE normal"], &[]]);
}

#[test]
fn s12_a_full_server_refuses_grants_and_nothing_else() {
    let room = "CONFIG SET maxmemory 0";
    try_command("out of memory", Limits::PATIENT, full, [&["CONFIG SET maxmemory 1"], &[room]]);
    let both: &[&str] = &["SCRIPT FLUSH", "CONFIG SET maxmemory 1"];
    try_command("out of memory, script flushed", Limits::PATIENT, full, [both, &[room]]);
}

#[test]
fn s10_a_server_that_became_a_replica_grants_nothing() {
    let commands: [&[&str]; 2] = [&["REPLICAOF 127.0.0.1 1"], &["REPLICAOF NO ONE"]];
    try_command("server read-only", Limits::SHORT, unwritable, commands);
}

#[test]
fn s10_a_server_that_misses_its_replicas_grants_nothing() {
    let commands: [&[&str]; 2] =
        [&["CONFIG SET min-replicas-to-write 1"], &["CONFIG SET min-replicas-to-write 0"]];
    try_command("server misses its replicas", Limits::SHORT, unwritable, commands);
}

#[test]
fn l1_a_server_busy_with_a_script_is_an_error_in_time() {
    let script = RefCell::new(None);
    let begin = async |server: &mut Server, _: &[Bench]| {
        let (mut raw, mut other) = (server.raw(), server.raw());
        let endless = move || redis::cmd("EVAL").arg("while true do end").arg(0).exec(&mut raw).unwrap_err();
        script.replace(Some(std::thread::spawn(endless)));
        let is_busy = |error: redis::RedisError| error.code() == Some("BUSY");
        until("the script runs", async || redis::cmd("PING").exec(&mut other).is_err_and(is_busy)).await;
    };
    let end = async |server: &mut Server, _: &[Bench]| {
        server.ask::<()>("SCRIPT KILL");
        let ended = script.take().map(std::thread::JoinHandle::join);
        assert!(ended.is_some_and(|error| error.is_ok()));
    };
    try_all("server busy", &["--busy-reply-threshold", "1"], Limits::SHORT, refused, begin, end);
}

#[test]
fn l1_a_server_that_loads_its_file_is_an_error_in_time() {
    // Slow enough to be asked while it loads, and responsive enough to answer.
    let slow = ["--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024"];
    let options = ["--appendonly", "yes", "--appendfsync", "always"];
    let begin = async |server: &mut Server, _: &[Bench]| {
        server.kill();
        server.restart_and_load();
    };
    let end = async |server: &mut Server, _: &[Bench]| {
        until("it has loaded", async || server.answers()).await;
    };
    try_all("server loading", &[options, slow].concat(), Limits::SHORT, refused, begin, end);
}

#[test]
fn s6_a_server_that_is_killed_under_every_operation_answers_them_after_its_restart() {
    let begin = async |server: &mut Server, _: &[Bench]| {
        server.kill();
        server.restart_and_load();
    };
    let options = ["--appendonly", "yes", "--appendfsync", "always"];
    try_all("server killed and restarted", &options, Limits::ALERT, unnoticed, begin, async |_, _| {});
}

#[test]
fn l1_a_server_that_stands_still_is_an_error_in_time() {
    let begin = async |server: &mut Server, _: &[Bench]| server.signal("STOP");
    // The server now executes all commands sent in the meantime.
    let end = async |server: &mut Server, _: &[Bench]| server.signal("CONT");
    try_all("server stopped", &[], Limits::SHORT, refused, begin, end);
}

#[test]
fn l1_a_connection_that_stays_silent_is_replaced() {
    let begin =
        async |_: &mut Server, benches: &[Bench]| benches.iter().for_each(|bench| bench.proxy.stall());
    try_all("connection stalled", &[], Limits::ALERT, unnoticed, begin, async |_, _| {});
}

#[test]
fn l1_a_network_that_stays_silent_is_an_error_in_time() {
    let begin =
        async |_: &mut Server, benches: &[Bench]| benches.iter().for_each(|bench| bench.proxy.silence());
    let end = async |_: &mut Server, benches: &[Bench]| {
        benches.iter().for_each(|bench| assert!(!bench.proxy.heal(), "it was silent"));
    };
    try_all("network silent", &[], Limits::SHORT, refused, begin, end);
}

#[test]
fn s6_answers_that_come_too_late_are_discarded() {
    let late = Limits::ALERT.response * 2;
    let begin =
        async |_: &mut Server, benches: &[Bench]| benches.iter().for_each(|bench| bench.proxy.delay(late));
    try_all("answers late", &[], Limits::ALERT, unnoticed, begin, async |_, _| {});
}

/// The permissions that the documentation of the store asks for.
const PERMISSIONS: &str = "~nevertwice:* -@all +evalsha +script|load +get +set +time";

#[test]
fn a_user_with_the_least_permissions_does_everything_and_without_them_nothing() {
    let server = Server::start(&[]);
    server.ask::<()>(&format!("ACL SETUSER dora on >s3cret {PERMISSIONS}"));
    block_on_tokio(async {
        let trial = Trial::prepare("least permissions", &server, Limits::PATIENT, "dora:s3cret@").await;
        trial.run(unnoticed, async |_| {}).await;
        let trial = Trial::prepare("permissions taken away", &server, Limits::PATIENT, "dora:s3cret@").await;
        server.ask::<()>("ACL SETUSER dora -@all");
        let again = async |_: &[Bench]| server.ask::<()>(&format!("ACL SETUSER dora {PERMISSIONS}"));
        trial.run(forbidden, again).await;
    });
}
