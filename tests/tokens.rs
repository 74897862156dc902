//! The limits of a token: on another store, after a release, and with windows that cannot be safe.
#![cfg(feature = "memory")]

use std::time::Duration;

use nevertwice::store::Store;
use nevertwice::testing::{Fault, FaultyStore, block_on};
use nevertwice::{Begin, Engine, Error, MemoryStore, PolicyError, PurgePlan, Purged, Request, Retry};

fn request(key: &str) -> Request {
    Request::new("tests", key).unwrap()
}

fn engine_on(store: MemoryStore) -> Engine {
    Engine::builder(store).build().unwrap()
}

/// A token belongs to the store that made the grant. On another store no caller would look for the
/// outcome.
#[test]
fn s3_a_token_of_another_store_records_nothing() {
    let there = MemoryStore::new();
    let here = MemoryStore::new();
    let request = request("moved");
    let Begin::Acquired(lease) = block_on(engine_on(there.clone()).begin(&request)).unwrap() else {
        panic!()
    };
    let (engine, token) = (engine_on(here.clone()), lease.token());
    let refused = block_on(engine.resume(&token)).unwrap_err();
    assert!(matches!(&refused, Error::WrongStore { token, store }
        if *token == there.identity() && *store == here.identity()));
    assert!(refused.to_string().contains(&here.identity().to_string()));
    assert_eq!(block_on(engine.inspect("tests", "moved")).unwrap(), None);
    // A renamed store states its old name.
    let renamed = Engine::builder(here).accept_tokens_from(there.identity()).build().unwrap();
    let resumed = block_on(renamed.resume(&token)).unwrap();
    block_on(resumed.complete("done")).unwrap();
    // A clone of the store is the same store.
    assert!(block_on(engine_on(there).resume(&token)).is_ok());
}

/// Once a release has been sent, with any result, the record may be gone: nothing is recorded over
/// that.
#[test]
fn s3_a_released_lease_records_nothing() {
    for fault in [None, Some(Fault::FailBefore), Some(Fault::FailAfter)] {
        let faulty = FaultyStore::new(MemoryStore::new());
        let limit = Duration::from_millis(20);
        let engine = Engine::builder(faulty.clone()).call_timeout(limit).build().unwrap();
        let request = request("released");
        let Begin::Acquired(lease) = block_on(engine.begin(&request)).unwrap() else { panic!() };
        if let Some(fault) = fault {
            faulty.from_call(faulty.calls() + 1, fault);
        }
        let released = block_on(lease.release());
        assert_eq!(released.is_ok(), fault.is_none(), "{released:?}");
        faulty.heal();
        let lost = |result| matches!(result, Err(Error::LeaseLost { .. }));
        assert!(lost(block_on(lease.complete("done"))));
        assert!(lost(block_on(lease.fail("?", Retry::Unresolved))));
        assert!(lost(block_on(lease.renew())) && lost(block_on(lease.mark_effect())));
        assert!(lost(block_on(engine.complete_many(&[(&lease, "done".into())])).pop().unwrap()));
        // The release itself can be repeated.
        block_on(lease.release()).unwrap();
        assert!(matches!(block_on(engine.begin(&request)).unwrap(), Begin::Acquired(_)));
    }
}

#[test]
fn windows_of_a_request_are_refused_as_the_builders_are() {
    let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(86_400));
    let engine = Engine::builder(MemoryStore::new())
        .retention(day * 3)
        .lease(hour)
        .retry_horizon(day * 3)
        .handler_timeout(hour)
        .build()
        .unwrap();
    let short = |request: Request| {
        matches!(block_on(engine.begin(&request)), Err(Error::Policy(PolicyError::TooShort { .. })))
    };
    assert!(short(request("a").retention(hour)) && short(request("a").lease(hour / 2)));
    assert!(!short(request("a").retention(day * 3).lease(hour)));
    // The purger's own operation is not affected by callers' windows.
    let (told, heard) = std::sync::mpsc::channel();
    let purger = engine.purge_regularly(PurgePlan::default(), move |purged| told.send(purged).unwrap());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(std::pin::pin!(purger).poll(&mut context).is_pending());
    assert!(matches!(heard.try_recv(), Ok(Purged::Removed(0))));
    let refused = Engine::builder(MemoryStore::new()).unresolved_retention(hour).build().unwrap_err();
    assert!(refused.to_string().contains("unresolved_retention"), "{refused}");
    Engine::builder(MemoryStore::new()).unresolved_retention(Duration::MAX).build().unwrap();
}
