//! Evidence of unknown outcomes: kept longer than the retention, found without scanning, and
//! reported when it expires.

use std::time::Duration;

use nevertwice::store::Store;
use nevertwice::testing::block_on;
use nevertwice::{Begin, Durability, Engine, Error, ManualClock, Request, Retry, SqliteStore, StoreError};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn request(key: &str) -> Request {
    Request::new("evidence", key).unwrap()
}

fn engine(store: &SqliteStore, clock: &ManualClock) -> Engine {
    Engine::builder(store.clone()).clock(clock.clone()).require(Durability::Power).build().unwrap()
}

/// Leaves one key completed, one crashed, one crashed after its effect mark, and one failed as
/// unresolved.
fn leave(engine: &Engine) {
    for (key, act) in [("completed", 0), ("crashed", 1), ("marked", 2), ("reported", 3)] {
        let Begin::Acquired(lease) = block_on(engine.begin(&request(key))).unwrap() else { panic!() };
        match act {
            0 => block_on(lease.complete("done")).unwrap(),
            1 => {}
            2 => block_on(lease.mark_effect()).unwrap(),
            _ => block_on(lease.fail("?", Retry::Unresolved)).unwrap(),
        }
    }
}

#[test]
fn s13_evidence_outlives_the_retention_is_listed_and_is_told_of_when_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let store = SqliteStore::builder(dir.path().join("keys.db")).clock(clock.clone()).open().unwrap();
    let engine = engine(&store, &clock);
    leave(&engine);
    let listed = |limit| {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = block_on(store.unsettled(after.as_ref(), limit)).unwrap();
            found.extend(page.records.into_iter().map(|(id, _)| id));
            match page.next {
                Some(next) => after = Some(next),
                None => break found,
            }
        }
    };
    let mut evidence = [request("marked").id(), request("reported").id()];
    evidence.sort();
    for limit in [1, 2, 100] {
        let mut found = listed(limit);
        found.sort();
        assert_eq!(found, evidence);
    }
    // After the retention and one more day the others are removed, and the evidence stays.
    clock.advance(DAY * 2);
    assert_eq!(block_on(engine.purge(100)).unwrap(), 2);
    for key in ["marked", "reported"] {
        let begin = block_on(engine.begin(&request(key))).unwrap();
        assert!(matches!(begin, Begin::Unresolved(_)), "{key}: {begin:?}");
    }
    // Its own retention.
    clock.advance(DAY * 88 + HOUR);
    let purged = block_on(store.purge(100)).unwrap();
    assert_eq!((purged.removed, purged.unsettled), (2, 2));
    assert_eq!(listed(100), []);
    assert!(matches!(block_on(engine.begin(&request("marked"))).unwrap(), Begin::Acquired(_)));
}

#[test]
fn s13_evidence_that_is_settled_is_kept_for_the_retention_again() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let store = SqliteStore::builder(dir.path().join("keys.db")).clock(clock.clone()).open().unwrap();
    let engine = engine(&store, &clock);
    leave(&engine);
    clock.advance(HOUR);
    for key in ["marked", "reported"] {
        let Begin::Unresolved(unknown) = block_on(engine.begin(&request(key))).unwrap() else { panic!() };
        let done = nevertwice::Resolution::Completed(nevertwice::Body::kept("done".into()));
        block_on(engine.resolve("evidence", key, unknown.fence(), done)).unwrap();
    }
    assert!(block_on(store.unsettled(None, 100)).unwrap().records.is_empty());
    clock.advance(DAY * 2);
    let purged = block_on(store.purge(100)).unwrap();
    assert_eq!((purged.removed, purged.unsettled), (4, 0));
}

/// A cursor of one listing is not valid for the other.
#[test]
fn a_cursor_of_another_listing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new();
    let store = SqliteStore::builder(dir.path().join("keys.db")).clock(clock.clone()).open().unwrap();
    leave(&engine(&store, &clock));
    let evidence = block_on(store.unsettled(None, 1)).unwrap().next.unwrap();
    let all = block_on(store.scan(None, 1)).unwrap().next.unwrap();
    assert!(matches!(block_on(store.scan(Some(&evidence), 1)), Err(StoreError::Unusable { .. })));
    assert!(matches!(block_on(store.unsettled(Some(&all), 1)), Err(StoreError::Unusable { .. })));
}

#[test]
fn a_full_file_says_how_many_of_its_records_are_unresolved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.db");
    let clock = ManualClock::new();
    leave(&engine(&SqliteStore::builder(&path).clock(clock.clone()).open().unwrap(), &clock));
    let store = SqliteStore::builder(&path).clock(clock.clone()).max_bytes(1).open().unwrap();
    match block_on(engine(&store, &clock).begin(&request("new"))) {
        Err(Error::Store(error @ StoreError::Full { .. })) => {
            assert!(error.to_string().contains("2 of its records are unresolved"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}
