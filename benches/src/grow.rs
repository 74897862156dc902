//! `grow`: the change of the figures from ten thousand records to ten million.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::compare::{Rate, StoreKind};
use crate::measure::{Length, Op, Plan, Runner};
use crate::server::Server;
use crate::side::Side;

/// One side at one size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Grown {
    pub(crate) store: String,
    pub(crate) side: String,
    pub(crate) records: u64,
    pub(crate) fresh: Rate,
    /// Replays of any record, all equally likely: the worst case for every cache.
    pub(crate) replay: Rate,
}

/// Grows `side` through `sizes` and measures it at each.
pub(crate) async fn measure(
    store: StoreKind,
    name: &str,
    side: impl Side,
    sizes: &[u64],
    server: Option<&Server>,
    mut tell: impl FnMut(&Grown),
) {
    let mut runner = Runner::new(side);
    let (mut filled, mut extra) = (0, 0);
    for &size in sizes {
        let target = size.saturating_sub(extra).max(filled);
        runner.side.fill(filled..target).await;
        filled = target;
        // The records added while measuring should not change the size.
        let most = if store == StoreKind::Sqlite { 20_000 } else { 100_000 };
        let ops = (size / 20).clamp(2_000, most);
        let plan = Plan {
            op: Op::Fresh,
            callers: 64,
            rounds: 5,
            round: Length::Ops(ops),
            filled,
            working_set: filled,
        };
        let fresh = rounds(&mut runner, &plan, server).await;
        extra += ops * (plan.rounds as u64 + 1);
        let time = Length::Time(Duration::from_millis(100));
        let replay = rounds(&mut runner, &Plan { op: Op::Replay, round: time, ..plan }, server).await;
        tell(&Grown { store: store.name().to_owned(), side: name.to_owned(), records: size, fresh, replay });
    }
}

async fn rounds(runner: &mut Runner<impl Side>, plan: &Plan, server: Option<&Server>) -> Rate {
    for _ in 0..=plan.rounds {
        runner.run(plan, server).await;
    }
    let rounds = std::mem::take(&mut runner.rounds);
    Rate::of(&rounds[1..]) // the first one warms up
}

/// Returns the size of a SQLite file once its write-ahead log is empty, in bytes.
pub(crate) fn settled_size(path: &Path) -> u64 {
    let db = rusqlite::Connection::open(path).expect("the file opens");
    db.busy_timeout(Duration::from_secs(5)).expect("an option");
    db.pragma_query(None, "wal_checkpoint", |_| Ok(())).expect("it is checkpointed");
    std::fs::metadata(path).expect("the file is there").len()
}
