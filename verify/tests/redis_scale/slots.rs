//! Slots that move between the nodes of a cluster, under load and under waiters and listings.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use nevertwice::store::{Store, Swap, SwapRequest};
use nevertwice::{Begin, Clock, Engine, Lease, Retry, SystemClock};
use redis::Value;

use crate::ledger::{Ledger, request};
use crate::nodes::{Node, PORT};
use crate::storm::Storm;
use crate::topologies::Servers;
use crate::{acquire, block_on_tokio, engine, length};

const WORKERS: usize = 32;
/// Records that are there before slots move; with `NEVERTWICE_LONG` ten times as many.
const RECORDS: usize = 30_000;
/// Longest time of a call while slots move, besides five times what a server itself takes.
const LONGEST: Duration = Duration::from_millis(250);
/// Keys of one MIGRATE.
const AT_ONCE: usize = 100;
const SLOTS: usize = 16_384;
/// Time for which slots move each way; with `NEVERTWICE_LONG` ten times as long. The nodes sync
/// their configuration at each of four steps, and those of Valkey also wait for their replicas to
/// do so, so that a number of slots would take any time on a busy machine.
const MOVING: Duration = Duration::from_secs(8);

/// Moves slots with their keys from one primary to another, as an operator's tool does. Returns the
/// number of keys.
pub(crate) fn move_slots(servers: &Servers, from: usize, to: usize, slots: Range<usize>) -> usize {
    let (source, target) = (&servers.nodes[from], &servers.nodes[to]);
    let (source_id, target_id): (String, String) = (source.ask("CLUSTER MYID"), target.ask("CLUSTER MYID"));
    let (mut at_source, mut at_target) = (source.patient(), target.patient());
    let mut moved = 0;
    for slot in slots {
        set_slot(&mut at_target, slot, "IMPORTING", &source_id);
        set_slot(&mut at_source, slot, "MIGRATING", &target_id);
        moved += migrate(slot, target, &mut at_source);
        set_slot(&mut at_target, slot, "NODE", &target_id);
        set_slot(&mut at_source, slot, "NODE", &target_id);
    }
    moved
}

/// Moves slots one after the other until the time or `most` of them are over. Returns the numbers
/// of keys and of slots.
fn move_for_a_while(servers: &Servers, from: usize, to: usize, most: usize) -> (usize, usize) {
    let started = SystemClock.monotonic();
    let (mut moved, mut slots) = (0, 0);
    while slots < most && SystemClock.monotonic() - started < MOVING * length() as u32 {
        moved += move_slots(servers, from, to, slots..slots + 1);
        slots += 1;
    }
    (moved, slots)
}

/// Repeats the command while the replicas of a Valkey node are too late for it.
fn set_slot(at: &mut redis::Connection, slot: usize, state: &str, node: &str) {
    for _ in 0..30 {
        match redis::cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(state).arg(node).exec(at) {
            Ok(()) => return,
            Err(error) if error.code() == Some("NOREPLICAS") => {}
            Err(error) => panic!("{slot} {state}: {error}"),
        }
    }
    panic!("{slot} {state}: the replicas never follow");
}

/// Lets a slot be on its way from one primary to another, without its keys.
pub(crate) fn open_slot(servers: &Servers, from: usize, to: usize, slot: usize) {
    let (source, target) = (&servers.nodes[from], &servers.nodes[to]);
    let (source_id, target_id): (String, String) = (source.ask("CLUSTER MYID"), target.ask("CLUSTER MYID"));
    for (node, state, other) in [(target, "IMPORTING", source_id), (source, "MIGRATING", target_id)] {
        set_slot(&mut node.patient(), slot, state, &other);
    }
}

fn migrate(slot: usize, target: &Node, source: &mut redis::Connection) -> usize {
    let mut moved = 0;
    loop {
        let mut keys = redis::cmd("CLUSTER");
        let keys: Vec<Vec<u8>> = keys.arg("GETKEYSINSLOT").arg(slot).arg(AT_ONCE).query(source).unwrap();
        if keys.is_empty() {
            return moved;
        }
        moved += keys.len();
        let mut migrate = redis::cmd("MIGRATE");
        migrate.arg(&target.ip).arg(PORT).arg("").arg(0).arg(10_000).arg("KEYS").arg(keys);
        migrate.exec(source).unwrap();
    }
}

/// Writes finished records, and returns their keys.
async fn fill(engine: &Engine, records: usize) -> Vec<String> {
    let keys: Vec<_> = (0..records).map(|number| format!("filled/{number}")).collect();
    for keys in keys.chunks(2000) {
        let requests: Vec<_> = keys.iter().map(|key| request(key)).collect();
        let begun = engine.begin_many(&requests).await;
        let leases: Vec<Lease> = begun.into_iter().map(|begun| lease(begun.unwrap())).collect();
        let outcomes: Vec<_> =
            leases.iter().zip(keys).map(|(lease, key)| (lease, key.clone().into())).collect();
        engine.complete_many(&outcomes).await.into_iter().for_each(|done| done.unwrap());
    }
    keys
}

fn lease(begin: Begin) -> Lease {
    match begin {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}

#[test]
fn s6_slots_that_move_under_load_are_one_effect_each() {
    let servers = Servers::cluster(&[]);
    let storm = Storm::endless("resharding");
    block_on_tokio(async {
        let engine = engine(servers.store().connect().await.unwrap());
        let keys = fill(&engine, RECORDS * length()).await;
        let working = tokio::spawn({
            let (storm, engine) = (Arc::clone(&storm), engine.clone());
            async move { storm.run(&[engine], WORKERS).await }
        });
        // One more caller, whose longest call is measured, and the same without the store.
        let measured = tokio::spawn({
            let (storm, engine) = (Arc::clone(&storm), engine.clone());
            async move { longest(&storm, &engine).await }
        });
        let stalls = servers.nodes[..2].iter().map(|node| {
            let (storm, connection) = (Arc::clone(&storm), node.patient());
            std::thread::spawn(move || longest_stall(&storm, connection))
        });
        let stalls: Vec<_> = stalls.collect();
        let started = SystemClock.monotonic();
        let (moved, slots) = tokio::task::block_in_place(|| {
            let (moved, slots) = move_for_a_while(&servers, 0, 1, SLOTS / 3);
            // A node that does not know yet what the other claims would claim it back.
            servers.until_agreed();
            let (back, _) = move_for_a_while(&servers, 1, 0, slots);
            (moved + back, slots)
        });
        let took = SystemClock.monotonic() - started;
        storm.end();
        working.await.unwrap();
        let longest = measured.await.unwrap();
        let stall = stalls.into_iter().map(|stall| stall.join().unwrap()).max().unwrap();
        tokio::task::block_in_place(|| servers.until_agreed());
        let ledger = Ledger::default();
        for key in &keys {
            ledger.effect(key);
            ledger.acknowledge(key, key.as_bytes());
        }
        let audit = ledger.audit(&engine).await;
        audit.require("records moved between nodes", &[("moved", &moved), ("seconds", &took.as_secs())]);
        let audit = storm.ledger().audit(&engine).await;
        assert!(moved > 0, "{slots} slots without a key moved");
        let numbers: [(&str, &dyn std::fmt::Display); 5] = [
            ("moved", &moved),
            ("slots", &slots),
            ("calls_repeated", &storm.refused()),
            ("longest_ms", &longest.as_millis()),
            ("longest_of_a_server_ms", &stall.as_millis()),
        ];
        audit.require("slots moved under load", &numbers);
        assert_eq!(storm.leases_lost(), 0);
        // Shorter runs are beside others, on busy machines.
        if length() > 1 {
            assert!(moved >= 100_000, "{moved} keys");
            assert!(longest <= LONGEST + 5 * stall, "{longest:?}, where a server took {stall:?}");
        }
    });
}

/// Asks a server directly until the storm is over, and returns the longest time of an answer.
fn longest_stall(storm: &Storm, mut connection: redis::Connection) -> Duration {
    let mut longest = Duration::ZERO;
    while !storm.is_over() {
        let started = SystemClock.monotonic();
        redis::cmd("PING").exec(&mut connection).unwrap();
        longest = longest.max(SystemClock.monotonic() - started);
        std::thread::sleep(Duration::from_millis(2));
    }
    longest
}

/// Begins and completes until the storm is over, and returns the longest time of one call.
async fn longest(storm: &Storm, engine: &Engine) -> Duration {
    let (mut longest, mut number) = (Duration::ZERO, 0);
    while !storm.is_over() {
        let started = SystemClock.monotonic();
        let lease = acquire(engine, &request(&format!("measured/{number}"))).await;
        let begun = SystemClock.monotonic();
        lease.complete("done").await.unwrap();
        longest = longest.max(begun - started).max(SystemClock.monotonic() - begun);
        number += 1;
    }
    longest
}

/// Returns the slot of a record, as a node computes it.
pub(crate) fn slot_of(node: &Node, id: &nevertwice::RecordId) -> usize {
    let name = [b"nevertwice:", &id.as_bytes()[..]].concat();
    let mut command = redis::cmd("CLUSTER");
    command.arg("KEYSLOT").arg(name).query(&mut node.patient()).unwrap()
}

#[test]
fn l4_a_slot_that_moves_loses_no_waiter() {
    let servers = Servers::cluster(&[]);
    block_on_tokio(async {
        let (first, second) =
            (servers.store().connect().await.unwrap(), servers.store().connect().await.unwrap());
        let engine = engine(first);
        let waiting = crate::engine(second);
        let held = acquire(&engine, &request("k")).await;
        let slot = slot_of(&servers.nodes[0], &request("k").id());
        let waiter = tokio::spawn(async move {
            waiting.begin_or_wait(&request("k"), Duration::from_secs(60)).await.unwrap()
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let owner = (0..3).find(|&node| serves(&servers.nodes[node], slot)).unwrap();
        tokio::task::block_in_place(|| move_slots(&servers, owner, (owner + 1) % 3, slot..slot + 1));
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!waiter.is_finished());
        held.complete("done").await.unwrap();
        let told = SystemClock.monotonic();
        let Begin::Completed(done) = waiter.await.unwrap() else { panic!("it was completed") };
        assert_eq!(done.response().unwrap().as_ref(), b"done");
        // Sooner than without a wake-up: after four seconds the shard of the slot is looked for.
        let took = SystemClock.monotonic() - told;
        assert!(took < Duration::from_secs(2), "{took:?}");
    });
}

/// The listener runs on the runtime of the first waiter, which here is never polled again.
#[test]
fn l2_a_waiter_on_a_shard_outlives_a_blocked_listener() {
    let servers = Servers::cluster(&[]);
    let (held, blocked) = (std::sync::mpsc::channel::<()>(), std::sync::mpsc::channel::<()>());
    block_on_tokio(async {
        let holder = engine(servers.store().connect().await.unwrap());
        let waiting = engine(servers.store().connect().await.unwrap());
        let lease = acquire(&holder, &request("k")).await;
        let first = waiting.clone();
        let ((end, ended), (tell, told)) = (held, blocked);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let request = request("k");
                let waiter = first.begin_or_wait(&request, Duration::from_secs(60));
                assert!(tokio::time::timeout(Duration::from_millis(500), waiter).await.is_err());
                tell.send(()).unwrap();
                ended.recv().unwrap();
            });
        });
        tokio::task::block_in_place(|| told.recv().unwrap());
        let waiter = tokio::spawn(async move {
            waiting.begin_or_wait(&request("k"), Duration::from_secs(60)).await.unwrap()
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        lease.complete("done").await.unwrap();
        let completed = SystemClock.monotonic();
        assert!(matches!(waiter.await.unwrap(), Begin::Completed(_)));
        let took = SystemClock.monotonic() - completed;
        assert!(took < Duration::from_secs(30), "{took:?}");
        end.send(()).unwrap();
        tokio::task::block_in_place(|| thread.join().unwrap());
    });
}

/// True if the node is there and serves the slot.
pub(crate) fn serves(node: &Node, slot: usize) -> bool {
    let Ok(shards) = node.try_ask::<String>("CLUSTER NODES") else { return false };
    let own = shards.lines().find(|line| line.contains("myself")).unwrap();
    own.split(' ').skip(8).any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse().is_ok_and(|first: usize| first <= slot)
            && last.parse().is_ok_and(|last: usize| slot <= last)
    })
}

#[test]
fn a_listing_during_which_slots_move_misses_nothing() {
    let servers = Servers::cluster(&[]);
    block_on_tokio(async {
        let store = servers.store().connect().await.unwrap();
        let keys = fill(&engine(store.clone()), 3000).await;
        let mut missing: HashSet<_> = keys.iter().map(|key| request(key).id()).collect();
        let (mut after, mut pages, mut moves) = (None, 0, 0);
        loop {
            let page = store.scan(after.as_ref(), 50).await.unwrap();
            page.records.iter().for_each(|(id, _)| _ = missing.remove(id));
            pages += 1;
            // Back to a shard that was listed already.
            if pages == 30 {
                tokio::task::block_in_place(|| move_slots(&servers, 2, 0, 15_984..16_384));
                moves += 1;
            }
            let Some(next) = page.next else { break };
            after = Some(next);
        }
        assert_eq!((missing.len(), moves), (0, 1), "{pages} pages");
    });
}

/// Nodes answer a pipeline with redirects for some of its commands. What they did is done.
#[test]
fn s6_a_redirect_in_a_pipeline_repeats_nothing_else() {
    const COUNT: usize = 300;
    let servers = Servers::cluster(&[]);
    block_on_tokio(async {
        // Each swap is one call of a script.
        let store = servers.store().clock_slack(Duration::from_secs(1)).connect().await.unwrap();
        let requests: Vec<_> = (0..COUNT).map(|number| request(&format!("{number}"))).collect();
        let slots = requests.iter().map(|request| slot_of(&servers.nodes[0], &request.id()));
        let slot = slots.take(50).find(|&slot| serves(&servers.nodes[0], slot)).unwrap();
        tokio::task::block_in_place(|| move_slots(&servers, 0, 1, slot..slot + 1));
        let calls = || -> usize {
            let calls = |node: &Node| {
                let info: String = node.ask("INFO commandstats");
                let calls = info.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
                calls.map_or(0, |calls| calls.split(',').next().unwrap().parse::<usize>().unwrap())
            };
            servers.nodes[..3].iter().map(calls).sum()
        };
        let before = calls();
        let engine = engine(store);
        for begun in engine.begin_many(&requests).await {
            let _ = lease(begun.unwrap());
        }
        assert_eq!(calls() - before, COUNT);
    });
}

/// An aborted move leaves a slot on its way for ever.
#[test]
fn a_listing_ends_although_a_slot_stays_on_its_way() {
    let servers = Servers::cluster(&[]);
    block_on_tokio(async {
        let store = servers.store().connect().await.unwrap();
        let engine = engine(store.clone());
        fill(&engine, 500).await;
        for number in 0..20 {
            let lease = acquire(&engine, &request(&format!("unknown/{number}"))).await;
            lease.fail("?", Retry::Unresolved).await.unwrap();
        }
        // Keys of slot 0. From now on they expire where it was, and new ones are begun at the other
        // node.
        let (mut source, mut target) = (servers.nodes[0].patient(), servers.nodes[1].patient());
        let key = |number: usize| format!("{{06S}}{number}");
        let set = |number| redis::Cmd::set(key(number), "x");
        (0..300).for_each(|number| set(number).exec(&mut source).unwrap());
        open_slot(&servers, 0, 1, 0);
        let (mut after, mut found) = (None, HashSet::new());
        for pages in 0.. {
            let page = store.scan(after.as_ref(), 50).await.unwrap();
            found.extend(page.records.iter().map(|(id, _)| *id));
            let Some(next) = page.next else { break };
            assert!(pages < 300, "it never ends");
            redis::Cmd::del(key(pages)).exec(&mut source).unwrap();
            redis::pipe().cmd("ASKING").add_command(set(1000 + pages)).exec(&mut target).unwrap();
            after = Some(next);
        }
        assert_eq!(found.len(), 520);
        let count = tokio::time::timeout(Duration::from_secs(60), engine.unresolved_count()).await;
        assert_eq!(count.expect("it ends").unwrap(), 20);
    });
}

#[test]
fn s15_a_batch_over_all_shards_keeps_the_order_of_each_id() {
    let servers = Servers::cluster(&[]);
    block_on_tokio(async {
        let store = servers.store().connect().await.unwrap();
        let requests: Vec<_> = (0..600).map(|number| request(&format!("batch/{number}"))).collect();
        let engine = engine(store.clone());
        let begun = engine.begin_many(&requests).await;
        let leases: Vec<_> = begun.into_iter().map(|begun| lease(begun.unwrap())).collect();
        let mut swaps = Vec::new();
        for (request, lease) in requests.iter().zip(&leases) {
            let record = store.load(&request.id()).await.unwrap().record.unwrap();
            // The second of two swaps of one id must find the first.
            let expected = Some(lease.fence());
            swaps.push(SwapRequest { id: request.id(), expected, next: Some(record.clone()) });
            swaps.push(SwapRequest { id: request.id(), expected, next: Some(record) });
        }
        for (number, done) in store.swap_many(&swaps).await.into_iter().enumerate() {
            let done = done.unwrap();
            assert_eq!(matches!(done, Swap::Done(_)), number % 2 == 0, "{number}: {done:?}");
        }
        for node in &servers.nodes[..3] {
            assert!(
                matches!(node.ask::<Value>("DBSIZE"), Value::Int(keys) if keys > 100),
                "all shards are used"
            );
        }
    });
}
