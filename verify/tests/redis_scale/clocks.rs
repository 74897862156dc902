//! A replica whose clock is wrong and that is promoted.

use std::process::Command;
use std::time::Duration;

use nevertwice::backends::redis::Warning;
use nevertwice::{Begin, Engine, Error, Reason};

use crate::ledger::request;
use crate::nodes::until;
use crate::topologies::Servers;
use crate::{acquire, block_on_tokio};

/// The difference between the clock of the first primary and those of the replicas.
const OFF: i64 = 30;
/// Shorter than the difference, longer than a failover.
const LEASE: Duration = Duration::from_secs(20);

/// Starts servers of which the replicas' clocks are so many seconds ahead.
fn servers(ahead: i64, folder: &std::path::Path) -> Servers {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/clock.c");
    let (library, clock) = (folder.join("clock.so"), folder.join("clock"));
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", source, "-o"]).arg(&library).status();
    assert!(built.expect("these tests need a C compiler").success(), "it compiles");
    std::fs::write(&clock, format!("{ahead:+08}\n")).unwrap();
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    Servers::watched_with(&[], |node| match node {
        0 => Vec::new(),
        _ => vec![("LD_PRELOAD", text(&library)), ("NEVERTWICE_TEST_CLOCK", text(&clock))],
    })
}

fn promoted(ahead: i64) {
    let folder = tempfile::tempdir().unwrap();
    let mut servers = servers(ahead, folder.path());
    block_on_tokio(async {
        let store = servers.store().replicated(1).connect().await.unwrap();
        let engine = Engine::builder(store.clone()).lease(LEASE).retention(100 * LEASE);
        let engine = engine.call_timeout(Duration::from_secs(30)).build().unwrap();
        let held = acquire(&engine, &request("held")).await;
        let marked = acquire(&engine, &request("marked")).await;
        marked.mark_effect().await.unwrap();
        let late = acquire(&engine, &request("late")).await;
        let first = acquire(&engine, &request("released")).await;
        first.release().await.unwrap();
        acquire(&engine, &request("done")).await.complete("done").await.unwrap();

        let failed = servers.primary();
        tokio::task::block_in_place(|| servers.nodes[failed].kill());
        let second = acquire(&engine, &request("released")).await;
        assert!(second.fence() > first.fence(), "a fence was repeated");
        tokio::task::block_in_place(|| until("another primary", || servers.primary() != failed));
        let new = acquire(&engine, &request("new")).await;
        assert!(matches!(engine.begin(&request("new")).await.unwrap(), Begin::InProgress(_)));
        new.complete("new").await.unwrap();
        assert!(matches!(engine.begin(&request("done")).await.unwrap(), Begin::Completed(_)));
        let begin = engine.begin(&request("held")).await.unwrap();
        if ahead > 0 {
            // The leases are over, and effect marks and fences protect.
            let Begin::Acquired(taken) = begin else { panic!("{begin:?}") };
            assert!(taken.takeover() && taken.fence() > held.fence());
            assert!(matches!(held.complete("late").await, Err(Error::LeaseLost { .. })));
            taken.complete("done").await.unwrap();
            let begin = engine.begin(&request("marked")).await.unwrap();
            let Begin::Unresolved(unknown) = begin else { panic!("{begin:?}") };
            assert_eq!(unknown.reason(), Reason::EffectMarked);
        } else {
            // The leases last longer, and no other caller is granted one.
            assert!(matches!(begin, Begin::InProgress(_)), "{begin:?}");
            held.complete("done").await.unwrap();
        }
        marked.complete("done").await.unwrap();
        // No other caller took it over, so the old stamp still finishes.
        late.complete("done").await.unwrap();
        for key in ["held", "marked", "late", "new"] {
            assert!(matches!(engine.begin(&request(key)).await.unwrap(), Begin::Completed(_)), "{key}");
        }
        assert!(store.warnings().contains(&Warning::ClockJumped), "{:?}", store.warnings());
    });
}

#[test]
fn s5_a_promoted_clock_that_is_slow_grants_nothing_twice_and_repeats_no_fence() {
    promoted(-OFF);
}

#[test]
fn s5_a_promoted_clock_that_is_fast_grants_nothing_twice_and_repeats_no_fence() {
    promoted(OFF);
}
