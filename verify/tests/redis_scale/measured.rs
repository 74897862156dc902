//! The metrics of the store: each is emitted and documented.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use nevertwice::Engine;
use nevertwice::store::Store;

use crate::acquire;
use crate::ledger::request;
use crate::nodes::until;
use crate::slots::{move_slots, open_slot, serves, slot_of};
use crate::topologies::Servers;

/// Returns the names in the documentation, each with its labels.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let table = include_str!("../../../src/observe/redis_metrics.md");
    let rows = table.lines().filter(|line| line.starts_with("| `nevertwice"));
    let row = |row: &str| {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().replace('`', "")).collect();
        (cells[1].clone(), cells[3].split(", ").map(str::to_owned).collect())
    };
    rows.map(row).collect()
}

#[test]
fn redirects_refreshes_failovers_and_missing_replicas_are_counted_as_documented() {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    metrics::with_local_recorder(&recorder, || runtime.block_on(story()));
    let mut emitted = BTreeMap::new();
    for (key, _, _, value) in snapshotter.snapshot().into_vec() {
        let (_, key) = key.into_parts();
        if key.name().starts_with("nevertwice_redis_") {
            assert!(matches!(value, DebugValue::Counter(count) if count > 0), "{}", key.name());
            let labels = key.labels().map(|label| label.key().to_owned()).collect::<BTreeSet<_>>();
            emitted.insert(key.name().to_owned(), labels);
        }
    }
    assert_eq!(emitted, documented());
}

/// Lets one of everything happen.
async fn story() {
    let mut servers = Servers::cluster(&[]);
    let store = servers.store().replicated(1).connect().await.unwrap();
    let limit = Duration::from_secs(4);
    let engine = Engine::builder(store.clone()).call_timeout(limit).finish_timeout(limit).build().unwrap();
    let held = acquire(&engine, &request("held")).await;
    let slot = slot_of(&servers.nodes[0], &request("held").id());
    let owner = (0..3).find(|&node| serves(&servers.nodes[node], slot)).unwrap();
    let other = (owner + 1) % 3;
    // A key that is not there is asked for at the other node.
    let absent = (0..).map(|number| request(&format!("{number}")).id());
    let is_there = |id: &nevertwice::RecordId| serves(&servers.nodes[owner], slot_of(&servers.nodes[0], id));
    let absent = absent.filter(is_there).find(|id| slot_of(&servers.nodes[0], id) != slot).unwrap();
    open_slot(&servers, owner, other, slot_of(&servers.nodes[0], &absent));
    store.load(&absent).await.unwrap();
    move_slots(&servers, owner, other, slot..slot + 1);
    store.load(&request("held").id()).await.unwrap();
    servers.nodes[other].kill();
    until("another primary", || servers.nodes.iter().any(|node| serves(node, slot)));
    // The new primary has no replica.
    assert!(held.complete("done").await.is_err());
}
