//! A transaction that idles with its snapshot, which keeps vacuum from cleaning up.

use std::time::Duration;

use futures_util::future::join_all;
use nevertwice::postgres::tokio_postgres::{self, NoTls};
use nevertwice::store::Store;
use nevertwice::{Begin, Clock, Engine, PostgresStore, Request, Stamp, SystemClock};

use crate::bench::acquire;
use crate::server::Server;
use crate::{block_on_tokio, length};

const CALLERS: usize = 32;
/// The cycles of begin and complete in a round.
const CYCLES: usize = 1600;
/// The rows that are purged at once under the snapshot, to see what each of them costs then.
const ROWS: u32 = 20_000;
/// The renewals of one lease in a round.
const RENEWALS: usize = 300;
/// A lease, and a retention, that is over at once.
const OVER: Duration = Duration::from_micros(1);
const LONG: Duration = Duration::from_secs(3600);
/// Time limit of a call, generous even on a busy machine.
const CALL: Duration = Duration::from_secs(60);

/// The measurements of a round.
#[derive(Debug)]
#[allow(dead_code, reason = "printed")]
struct Round {
    /// Of a begin with its complete.
    p50: Duration,
    p99: Duration,
    /// Of one renewal, at the end of the round.
    renewal: Duration,
    purge_per_row: Duration,
    /// Of the table with its indexes, after a vacuum.
    bytes: u64,
    /// The row versions that vacuum could not remove.
    dead: u64,
}

struct Bench<'a> {
    server: &'a Server,
    store: PostgresStore,
    engine: Engine,
    /// The last fence of a key that is granted, released and purged in each round.
    fence: Stamp,
    rounds: usize,
}

fn request(key: &str) -> Request {
    Request::new("snapshots", key).unwrap().lease(LONG)
}

fn over(key: &str) -> Request {
    request(key).lease(OVER).retention(OVER)
}

/// Returns the duration at a percentage of the sorted ones.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() - 1) * percent / 100]
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let start = SystemClock.monotonic();
    let done = work.await;
    (done, SystemClock.monotonic() - start)
}

impl Bench<'_> {
    async fn round(&mut self) -> Round {
        self.rounds += 1;
        let cycles = self.cycles().await;
        let renewal = self.renewals().await;
        self.wake().await;
        self.raise().await;
        // As they are some time after their deadline. All others are kept for longer.
        self.server.sql("UPDATE nevertwice SET due = 1 WHERE keep <= 2 OR record = ''");
        let (purged, purging) = timed(self.store.purge(usize::MAX)).await;
        let removed = usize::try_from(purged.unwrap().removed).unwrap();
        assert_eq!(removed, CYCLES, "a purge removes all that is over");
        let kept = self.server.sql("SELECT count(*) FROM nevertwice WHERE keep <= 2 OR record = ''");
        assert_eq!(kept, "0");
        self.server.sql("VACUUM nevertwice");
        let number = |sql: &str| self.server.sql(sql).parse().unwrap();
        Round {
            p50: percentile(&cycles, 50),
            p99: percentile(&cycles, 99),
            renewal,
            purge_per_row: purging / CYCLES as u32,
            bytes: number("SELECT pg_total_relation_size('nevertwice')"),
            dead: number("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'nevertwice'"),
        }
    }

    /// Runs cycles on new keys, and returns their times in ascending order.
    async fn cycles(&self) -> Vec<Duration> {
        let callers = (0..CALLERS).map(|caller| {
            let (engine, round) = (self.engine.clone(), self.rounds);
            tokio::spawn(async move {
                let mut times = Vec::new();
                for number in 0..CYCLES / CALLERS {
                    let request = over(&format!("{round} {caller} {number}"));
                    let cycle = async { acquire(&engine, &request).await.complete(vec![7; 256]).await };
                    let (done, time) = timed(cycle).await;
                    done.unwrap();
                    times.push(time);
                }
                times
            })
        });
        let callers: Vec<_> = callers.collect();
        let mut all: Vec<Duration> =
            join_all(callers).await.into_iter().flat_map(|caller| caller.unwrap()).collect();
        all.sort();
        all
    }

    /// Renews one lease, whose row gets as many versions, and returns the median of the last times.
    async fn renewals(&self) -> Duration {
        let key = request("renewed");
        let lease = match self.engine.begin(&key).await.unwrap() {
            Begin::Acquired(lease) => lease,
            Begin::InProgress(_) => {
                self.engine.forget("snapshots", "renewed").await.unwrap();
                acquire(&self.engine, &key).await
            }
            other => panic!("{other:?}"),
        };
        let mut times = Vec::new();
        for _ in 0..RENEWALS {
            let (renewed, time) = timed(lease.renew()).await;
            renewed.unwrap();
            times.push(time);
        }
        let last = &mut times[RENEWALS - 50..];
        last.sort();
        percentile(last, 50)
    }

    /// Purges many rows that an earlier release left, and returns the time for each.
    async fn purge_many(&self) -> Duration {
        self.server.sql(&format!(
            "INSERT INTO nevertwice SELECT n, 1, 1, false, sha256(n::text::bytea), 'over' \
             FROM generate_series(1, {ROWS}) AS n"
        ));
        let (purged, purging) = timed(self.store.purge(usize::MAX)).await;
        assert_eq!(purged.unwrap().removed, u64::from(ROWS));
        purging / ROWS
    }

    /// L4: a waiter in another process is woken by the finish.
    async fn wake(&self) {
        let other = PostgresStore::connect(&self.server.url()).await.unwrap();
        let key = request(&format!("awaited {}", self.rounds));
        let lease = acquire(&self.engine, &key).await;
        let stamp = self.store.load(&key.id()).await.unwrap().record.unwrap().stamp;
        let id = key.id();
        let waiter = tokio::spawn(async move { other.changed(&id, stamp, LONG).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        lease.complete("done").await.unwrap();
        tokio::time::timeout(CALL, waiter).await.expect("it was not woken").unwrap().unwrap();
    }

    /// S5: fences increase over releases and purges.
    async fn raise(&mut self) {
        for _ in 0..3 {
            let lease = acquire(&self.engine, &request("raised")).await;
            assert!(lease.fence() > self.fence, "{:?} after {:?}", lease.fence(), self.fence);
            self.fence = lease.fence();
            lease.release().await.unwrap();
        }
    }
}

/// The figures are published in docs/POSTGRES.md.
#[test]
#[allow(clippy::print_stdout, reason = "that is what it is for")]
fn l5_a_snapshot_that_is_held_costs_room_and_time_within_bounds() {
    let server = Server::start(&["fsync=off", "autovacuum=off"]);
    block_on_tokio(async {
        let store = PostgresStore::connect(&server.url()).await.unwrap();
        let engine = Engine::builder(store.clone()).call_timeout(CALL).finish_timeout(CALL).build().unwrap();
        let mut bench = Bench { server: &server, store, engine, fence: Stamp::ZERO, rounds: 0 };
        let report = |when: &str, round: &Round| println!("snapshot: {when}: {round:?}");
        // The first round warms up.
        let mut before = bench.round().await;
        for _ in 0..2 {
            before = bench.round().await;
            report("none", &before);
        }
        let (mut client, connection) = tokio_postgres::connect(&server.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        let own = client
            .build_transaction()
            .isolation_level(tokio_postgres::IsolationLevel::RepeatableRead)
            .start()
            .await
            .unwrap();
        let rows = async || -> i64 {
            let row = own.query_one("SELECT count(*) FROM nevertwice", &[]).await.unwrap();
            row.get(0)
        };
        let seen = rows().await;
        let rounds = 3 * length();
        let mut held = bench.round().await;
        report("held", &held);
        for _ in 1..rounds {
            held = bench.round().await;
            report("held", &held);
        }
        assert_eq!(rows().await, seen, "it still sees what it saw");
        let cycles = (rounds * CYCLES) as u64;
        let growth = (held.bytes - before.bytes) / cycles;
        println!("snapshot: bytes_per_cycle={growth} dead_per_cycle={}", held.dead / cycles);
        // A cycle leaves a few versions of its row, of some hundred bytes.
        assert!(held.dead >= cycles, "the snapshot kept nothing: the check sees nothing");
        assert!(growth < 4096, "{growth} bytes a cycle");
        assert!(held.p50 < before.p50 * 10, "{before:?}, {held:?}");
        let row = bench.purge_many().await;
        println!("snapshot: purge_per_row={row:?} of {ROWS} rows more");
        assert!(row < Duration::from_millis(1), "{row:?}");
        own.rollback().await.unwrap();
        // Vacuum makes room, and the next rounds use it.
        server.sql("VACUUM nevertwice");
        for _ in 0..rounds {
            let after = bench.round().await;
            report("ended", &after);
            assert!(after.dead < 100, "{after:?}");
            // The rows that were purged last took room too.
            assert!(after.bytes <= held.bytes * 2, "{held:?}, {after:?}");
        }
    });
}
