//! Primaries that are killed, paused or cut off under load: the ledger of each level.

use std::sync::Arc;
use std::time::Duration;

use nevertwice::backends::redis::RedisStoreBuilder;
use nevertwice::{Clock, SystemClock};

use crate::ledger::Audit;
use crate::nodes::until;
use crate::storm::Storm;
use crate::topologies::{Servers, is_replica};
use crate::{block_on_tokio, engine, length};

const WORKERS: usize = 64;
/// Outcomes before, during and after a fault.
const OUTCOMES: usize = 2000;
/// The same of levels that promise less.
const FEW_OUTCOMES: usize = 1000;
/// Longest time from a promotion to the first outcome: 3 s, and more on a busy machine.
const FIRST: Duration = Duration::from_secs(10);
/// Time for which a primary is paused or cut off: longer than a failover takes.
const FAULT: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    Pause,
    Cut,
}

/// The level of the store, and of its servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Plain,
    MinReplicas,
    Replicated,
}

impl Level {
    fn options(self) -> &'static [&'static str] {
        match self {
            Level::Plain | Level::Replicated => &[],
            Level::MinReplicas => &["--min-replicas-to-write", "1", "--min-replicas-max-lag", "2"],
        }
    }

    fn store(self, builder: RedisStoreBuilder) -> RedisStoreBuilder {
        if self == Level::Replicated { builder.replicated(1) } else { builder }
    }
}

/// Lets primaries fail one after the other while workers run, and returns the final audit and the
/// longest time without an outcome.
fn fail_over(
    mut servers: Servers,
    fault: Fault,
    level: Level,
    rounds: usize,
) -> (Audit, Arc<Storm>, Duration) {
    let (storm, outcomes) = if level == Level::Replicated {
        (Storm::endless("failover"), OUTCOMES)
    } else {
        (Storm::on_weak_server("failover"), FEW_OUTCOMES)
    };
    block_on_tokio(async {
        let mut engines = Vec::new();
        for _ in 0..2 {
            engines.push(engine(level.store(servers.store()).connect().await.unwrap()));
        }
        let working = tokio::spawn({
            let storm = Arc::clone(&storm);
            async move { storm.run(&engines, WORKERS).await }
        });
        let gap = tokio::task::block_in_place(|| {
            let mut gap = Duration::ZERO;
            for _ in 0..rounds {
                let failed = servers.primary();
                more(&storm, outcomes);
                let end = fault.start(&mut servers, failed);
                until("another primary", || servers.primary() != failed);
                // With one replica for each primary, the one that is promoted has none meanwhile.
                if !servers.sentinels.is_empty() || level == Level::Plain {
                    gap = gap.max(more(&storm, outcomes));
                }
                std::thread::sleep(end.saturating_sub(SystemClock.monotonic()));
                fault.end(&mut servers, failed);
                servers.until_ready();
                more(&storm, outcomes);
            }
            gap
        });
        storm.end();
        working.await.unwrap();
        let checker = engine(servers.store().connect().await.unwrap());
        (storm.ledger().audit(&checker).await, storm, gap)
    })
}

/// Waits for so many more outcomes, and returns how long the first of them took.
pub(crate) fn more(storm: &Storm, outcomes: usize) -> Duration {
    let (before, started) = (storm.ledger().acknowledged(), SystemClock.monotonic());
    let mut first = None;
    until("outcomes", || {
        let now = storm.ledger().acknowledged();
        if now > before && first.is_none() {
            first = Some(SystemClock.monotonic() - started);
        }
        now >= before + outcomes
    });
    first.unwrap()
}

impl Fault {
    /// Starts it, and returns when it may end.
    fn start(self, servers: &mut Servers, failed: usize) -> Duration {
        match self {
            Fault::Kill => servers.nodes[failed].kill(),
            Fault::Pause => servers.nodes[failed].signal("STOP"),
            Fault::Cut => servers.network.cut(&servers.nodes[failed].ip),
        }
        SystemClock.monotonic() + if self == Fault::Kill { Duration::ZERO } else { FAULT }
    }

    fn end(self, servers: &mut Servers, failed: usize) {
        match self {
            Fault::Kill => servers.nodes[failed].restart(),
            Fault::Pause => servers.nodes[failed].signal("CONT"),
            Fault::Cut => servers.network.heal(),
        }
        until("the old primary follows", || is_replica(&servers.nodes[failed]));
    }
}

fn name(servers: &Servers) -> &'static str {
    if servers.sentinels.is_empty() { "cluster" } else { "sentinel" }
}

fn replicated_loses_nothing(servers: Servers, fault: Fault) {
    let (topology, rounds) = (name(&servers), length());
    let (audit, storm, gap) = fail_over(servers, fault, Level::Replicated, rounds);
    let numbers: [(&str, &dyn std::fmt::Display); 4] = [
        ("level", &"Replicated(1)"),
        ("failovers", &rounds),
        ("first_ms_after_promotion", &gap.as_millis()),
        ("calls_repeated", &storm.refused()),
    ];
    audit.require(&format!("{topology}, {fault:?}"), &numbers);
    // Before and after each fault.
    let acknowledged = audit.acknowledged;
    assert!(acknowledged >= 2 * OUTCOMES * rounds, "{acknowledged} outcomes prove little");
    assert_eq!(storm.leases_lost(), 0);
    assert!(gap <= FIRST, "the first outcome came {gap:?} after the promotion");
}

#[test]
fn s9_sentinel_kill_loses_nothing_that_a_replica_has() {
    replicated_loses_nothing(Servers::watched(&[]), Fault::Kill);
}

#[test]
fn s9_sentinel_pause_loses_nothing_that_a_replica_has() {
    replicated_loses_nothing(Servers::watched(&[]), Fault::Pause);
}

#[test]
fn s9_sentinel_cut_loses_nothing_that_a_replica_has() {
    replicated_loses_nothing(Servers::watched(&[]), Fault::Cut);
}

#[test]
fn s9_cluster_kill_loses_nothing_that_a_replica_has() {
    replicated_loses_nothing(Servers::cluster(&[]), Fault::Kill);
}

#[test]
fn s9_cluster_pause_loses_nothing_that_a_replica_has() {
    replicated_loses_nothing(Servers::cluster(&[]), Fault::Pause);
}

#[test]
fn s9_cluster_cut_loses_nothing_that_a_replica_has() {
    replicated_loses_nothing(Servers::cluster(&[]), Fault::Cut);
}

/// These levels promise less: the tests print figures, and check that the ledger can see a loss.
fn weaker_levels_lose(servers: fn(&[&str]) -> Servers) {
    for level in [Level::Plain, Level::MinReplicas] {
        let servers = servers(level.options());
        let topology = name(&servers);
        let (audit, storm, _) = fail_over(servers, Fault::Cut, level, 1);
        let lost = storm.leases_lost();
        let level_name = format!("{level:?}");
        audit.report(&format!("{topology}, Cut"), &[("level", &level_name), ("leases_lost", &lost)]);
        // The other level limits how long the old primary goes on.
        assert!(level != Level::Plain || audit.lost > 0, "nothing was lost: the check sees nothing");
    }
}

#[test]
fn s9_what_weaker_levels_lose_when_a_primary_is_cut_off_is_shown() {
    weaker_levels_lose(Servers::watched);
}

#[test]
fn s9_what_weaker_levels_lose_when_a_primary_of_a_cluster_is_cut_off_is_shown() {
    weaker_levels_lose(Servers::cluster);
}
