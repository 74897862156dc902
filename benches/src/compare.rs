//! `compare`: this crate, by hand and a peer, side by side.

use std::path::Path;
use std::time::Duration;

use nevertwice::{PostgresStore, RedisStore, SqliteStore};
use serde::{Deserialize, Serialize};

use crate::hand::{Calls, HandMemory, HandPostgres, HandRedis, HandSqlite};
use crate::measure::{Length, Median, Op, Plan, Round, Runner};
use crate::ours::{Ours, memory};
#[cfg(feature = "peer")]
use crate::peer;
use crate::run::SLOW_DISK;
use crate::server::Server;
use crate::side::Side;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum StoreKind {
    Memory,
    Sqlite,
    Redis,
    Valkey,
    Postgres,
}

impl StoreKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            StoreKind::Memory => "memory",
            StoreKind::Sqlite => "sqlite",
            StoreKind::Redis => "redis",
            StoreKind::Valkey => "valkey",
            StoreKind::Postgres => "postgres",
        }
    }
}

/// Operations per second of one side, and the CPU time of each in microseconds: of the process, and
/// of the server.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Rate {
    pub(crate) per_second: f64,
    pub(crate) cpu_us: f64,
    pub(crate) server_cpu_us: f64,
}

impl Rate {
    pub(crate) fn of(rounds: &[Round]) -> Rate {
        let median = |figure: fn(&Round) -> f64| Median::of(rounds.iter().map(figure)).median;
        Rate {
            per_second: median(|round| round.per_second),
            cpu_us: median(|round| round.cpu),
            server_cpu_us: median(|round| round.server_cpu),
        }
    }
}

/// One line of the comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) store: String,
    pub(crate) op: String,
    pub(crate) c: usize,
    /// The ratio of this crate's operations per second to those by hand, round by round.
    pub(crate) ratio: Median,
    pub(crate) ours: Rate,
    pub(crate) hand: Rate,
    /// The peer, and its ratio to by hand.
    pub(crate) peer: Option<(Rate, Median)>,
}

/// A comparison with the callers on this many threads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Threads {
    pub(crate) workers: usize,
    pub(crate) comparison: Comparison,
}

impl Comparison {
    /// Returns the least acceptable ratio, if one is set.
    pub(crate) fn bar(&self) -> Option<f64> {
        if (self.store.as_str(), self.op.as_str(), self.c) == ("postgres", "fresh", 16) {
            return Some(1.0);
        }
        let callers = [1, 64, 256].iter().position(|&callers| callers == self.c)?;
        let bars = match (self.store.as_str(), self.op.as_str()) {
            ("memory", "fresh") => [0.8, 1.0, 1.0],
            ("memory", "replay") => [0.6, 0.8, 0.8],
            ("sqlite" | SLOW_DISK, "fresh") => [0.95, 15.0, 25.0],
            ("sqlite", "replay") => [0.8, 0.9, 0.9],
            ("postgres", "fresh") => [0.9, 2.0, 2.0],
            ("postgres", "replay") => [0.9, 1.5, 1.5],
            ("redis", "fresh") => [0.85, 0.8, 0.8],
            ("valkey", "fresh") => [0.9, 1.0, 1.1],
            ("redis" | "valkey", "replay") => [1.5, 1.3, 1.3],
            _ => return None,
        };
        Some(bars[callers])
    }

    pub(crate) fn line(&self) -> String {
        let Comparison { store, op, c, ratio, ours, hand, peer } = self;
        let mut line = format!(
            "bench: store={store} op={op} c={c} ratio={:.2} low={:.2} high={:.2} ours={:.0} hand={:.0} \
             ours_cpu_us={:.2} hand_cpu_us={:.2}",
            ratio.median, ratio.low, ratio.high, ours.per_second, hand.per_second, ours.cpu_us, hand.cpu_us,
        );
        if let Some(bar) = self.bar() {
            line += &format!(" bar={bar:.2}");
        }
        if hand.server_cpu_us > 0.0 {
            line += &format!(
                " server_ratio={:.2} ours_server_us={:.2} hand_server_us={:.2}",
                ours.server_cpu_us / hand.server_cpu_us,
                ours.server_cpu_us,
                hand.server_cpu_us,
            );
        }
        if let Some((peer, ratio)) = peer {
            line += &format!(
                " peer={:.0} peer_ratio={:.2} peer_cpu_us={:.2}",
                peer.per_second, ratio.median, peer.cpu_us
            );
            if peer.server_cpu_us > 0.0 {
                line += &format!(" peer_server_us={:.2}", peer.server_cpu_us);
            }
        }
        line
    }
}

/// The environment of a measurement.
pub(crate) struct Bench<'a> {
    /// An empty folder for the files of SQLite.
    pub(crate) folder: &'a Path,
    pub(crate) server: Option<&'a Server>,
    #[cfg_attr(not(feature = "peer"), expect(dead_code, reason = "there is none to measure"))]
    pub(crate) peer: bool,
}

impl Bench<'_> {
    /// Opens this crate on an empty store.
    pub(crate) async fn ours(&self, store: StoreKind) -> Ours {
        match store {
            StoreKind::Memory => Ours::new(memory().build()),
            StoreKind::Sqlite => {
                Ours::new(SqliteStore::open(self.folder.join("ours.db")).expect("the store opens"))
            }
            StoreKind::Redis | StoreKind::Valkey => {
                let server = self.server.expect("started before");
                server.flush();
                Ours::new(RedisStore::connect(server.url()).await.expect("the server answers"))
            }
            StoreKind::Postgres => {
                let server = self.server.expect("started before");
                server.flush();
                Ours::new(PostgresStore::connect(server.url()).await.expect("the server answers"))
            }
        }
    }

    /// Takes one figure.
    pub(crate) async fn compare(&self, store: StoreKind, plan: &Plan) -> Comparison {
        let ours = self.ours(store).await;
        match store {
            StoreKind::Memory => {
                #[cfg(feature = "peer")]
                if self.peer {
                    return self.run(store, plan, ours, HandMemory::default(), Some(peer::memory())).await;
                }
                self.run(store, plan, ours, HandMemory::default(), None::<HandMemory>).await
            }
            StoreKind::Sqlite => {
                let calls = if plan.callers == 1 { Calls::Direct } else { Calls::Spawned };
                let hand = HandSqlite::open(&self.folder.join("hand.db"), calls);
                self.run(store, plan, ours, hand, None::<HandSqlite>).await
            }
            StoreKind::Redis | StoreKind::Valkey => {
                let url = self.server.expect("started before").url();
                let hand = HandRedis::connect(url).await;
                #[cfg(feature = "peer")]
                if self.peer {
                    return self.run(store, plan, ours, hand, Some(peer::redis(url).await)).await;
                }
                self.run(store, plan, ours, hand, None::<HandRedis>).await
            }
            StoreKind::Postgres => {
                let hand = HandPostgres::connect(self.server.expect("started before").url()).await;
                self.run(store, plan, ours, hand, None::<HandPostgres>).await
            }
        }
    }

    async fn run(
        &self,
        store: StoreKind,
        plan: &Plan,
        ours: Ours,
        hand: impl Side,
        peer: Option<impl Side>,
    ) -> Comparison {
        let server = self
            .server
            .filter(|_| matches!(store, StoreKind::Redis | StoreKind::Valkey | StoreKind::Postgres));
        let mut ours = Runner::prepared(ours, plan, server).await;
        let mut hand = Runner::prepared(hand, plan, server).await;
        // The peer is slow to fill, so it gets only the keys that are replayed.
        let less = Plan { filled: plan.filled.min(plan.working_set), ..*plan };
        let mut peer = match peer {
            Some(peer) => Some(Runner::prepared(peer, &less, server).await),
            None => None,
        };
        for round in 0..plan.rounds {
            // The order alternates, so that a machine that becomes slower or faster favours no
            // side.
            if round % 2 == 0 {
                ours.run(plan, server).await;
                hand.run(plan, server).await;
            }
            if let Some(peer) = &mut peer {
                peer.run(plan, server).await;
            }
            if round % 2 == 1 {
                hand.run(plan, server).await;
                ours.run(plan, server).await;
            }
        }
        let ratio = |rounds: &[Round]| Median::ratio(rounds, &hand.rounds);
        Comparison {
            store: store.name().to_owned(),
            op: plan.op.name().to_owned(),
            c: plan.callers,
            ratio: ratio(&ours.rounds),
            ours: Rate::of(&ours.rounds),
            hand: Rate::of(&hand.rounds),
            peer: peer.map(|peer| (Rate::of(&peer.rounds), ratio(&peer.rounds))),
        }
    }
}

/// Returns the usual plan of a figure, `quick` or in full.
pub(crate) fn plan(store: StoreKind, op: Op, callers: usize, quick: bool) -> Plan {
    let slow = store == StoreKind::Sqlite && op == Op::Fresh;
    let slow = slow || store == StoreKind::Postgres;
    let millis = match (quick, slow) {
        (true, false) => 80,
        (true, true) => 200,
        (false, false) => 200,
        (false, true) => 600,
    };
    Plan {
        op,
        callers,
        rounds: if quick { 4 } else { 12 },
        round: Length::Time(Duration::from_millis(millis)),
        filled: if quick { 10_000 } else { 100_000 },
        working_set: 10_000,
    }
}
