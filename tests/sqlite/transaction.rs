//! Record and effect in one transaction.

use nevertwice::sqlite::{self, TxLease};
use nevertwice::{Policy, Retry, StateKind};
use rusqlite::{Transaction, TransactionBehavior};

use super::*;

/// An application's own database that holds the store's tables.
struct App {
    file: File,
    db: Connection,
    store: SqliteStore,
    policy: Policy,
}

impl App {
    fn new() -> App {
        let file = File::new();
        let db = file.raw();
        db.execute_batch("CREATE TABLE payments (amount INTEGER)").unwrap();
        let store = file.store();
        let policy = engine(store.clone()).policy().clone();
        App { file, db, store, policy }
    }

    fn payments(&self) -> i64 {
        self.file.raw().query_row("SELECT count(*) FROM payments", [], |row| row.get(0)).unwrap()
    }

    fn begin(&mut self) -> (Transaction<'_>, SqliteStore, Policy) {
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        (tx, self.store.clone(), self.policy.clone())
    }
}

fn pay(tx: &Transaction<'_>) {
    tx.execute("INSERT INTO payments VALUES (4200)", []).unwrap();
}

fn acquire_in(tx: &Transaction<'_>, store: &SqliteStore, policy: &Policy, key: &str) -> TxLease {
    match sqlite::begin_in(tx, store, policy, &request(key)).unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_rollback_leaves_nothing_and_a_commit_both() {
    let mut app = App::new();
    let (tx, store, policy) = app.begin();
    let lease = acquire_in(&tx, &store, &policy, "k");
    pay(&tx);
    sqlite::complete_in(&tx, &lease, "paid").unwrap();
    let rolled_back = lease.fence();
    drop(tx);
    assert_eq!((app.payments(), app.file.rows()), (0, 0));

    let (tx, store, policy) = app.begin();
    let lease = acquire_in(&tx, &store, &policy, "k");
    assert!(lease.fence() > rolled_back);
    assert_eq!((lease.attempt(), lease.takeover(), lease.checkpoint()), (1, false, None));
    pay(&tx);
    sqlite::complete_in(&tx, &lease, "paid").unwrap();
    sqlite::complete_in(&tx, &lease, "paid").unwrap(); // repeating the word is fine
    assert!(matches!(sqlite::complete_in(&tx, &lease, "else"), Err(Error::AlreadyFinished { .. })));
    tx.commit().unwrap();
    assert_eq!((app.payments(), app.file.rows()), (1, 1));

    let (tx, store, policy) = app.begin();
    assert_eq!(completed(sqlite::begin_in(&tx, &store, &policy, &request("k")).unwrap()), b"paid");
    let other = request("k").fingerprint(Fingerprint::of("other"));
    assert!(matches!(sqlite::begin_in(&tx, &store, &policy, &other).unwrap(), Begin::Mismatch(_)));
    drop(tx);
    assert_eq!(replay(&engine(app.store.clone()), "k"), b"paid");
}

#[test]
fn leases_of_the_engine_count_inside_and_the_other_way_round() {
    let mut app = App::new();
    let engine = engine(app.store.clone());
    let outside = acquire(&engine, "outside");
    block_on(outside.save_checkpoint("half")).unwrap();
    let (tx, store, policy) = app.begin();
    let begin = sqlite::begin_in(&tx, &store, &policy, &request("outside")).unwrap();
    assert!(matches!(begin, Begin::InProgress(_)));
    let inside = acquire_in(&tx, &store, &policy, "inside");
    tx.commit().unwrap();
    assert!(matches!(block_on(engine.begin(&request("inside"))).unwrap(), Begin::InProgress(_)));

    // A lease that the engine granted is finished together with the effect.
    let (tx, store, policy) = app.begin();
    let resumed = sqlite::resume_in(&tx, &store, &policy, &outside.token()).unwrap();
    assert_eq!(resumed.fence(), outside.fence());
    assert_eq!(resumed.derive_key("psp"), outside.derive_key("psp"));
    assert_eq!(resumed.checkpoint().unwrap(), "half");
    pay(&tx);
    sqlite::complete_in(&tx, &resumed, "paid").unwrap();
    sqlite::fail_in(&tx, &inside, "declined", Retry::Never).unwrap();
    tx.commit().unwrap();
    assert_eq!(replay(&engine, "outside"), b"paid");
    match block_on(engine.begin(&request("inside"))).unwrap() {
        Begin::Failed(failed) => assert_eq!(failed.error().unwrap(), "declined"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(block_on(outside.complete("else")), Err(Error::AlreadyFinished { .. })));
}

#[test]
fn s3_a_stale_lease_is_lost_inside_a_transaction_too() {
    let file = File::new();
    let clock = ManualClock::new();
    let store = file.at(&clock).open().unwrap();
    let engine = engine(store.clone());
    let stale = acquire(&engine, "k");
    clock.advance(LEASE);
    let mut db = file.raw();
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let lease = acquire_in(&tx, &store, engine.policy(), "k");
    assert!(lease.takeover() && lease.attempt() == 2);
    match sqlite::resume_in(&tx, &store, engine.policy(), &stale.token()) {
        Err(Error::LeaseLost { current }) => assert_eq!(current.state, StateKind::InProgress),
        other => panic!("{other:?}"),
    }
    sqlite::complete_in(&tx, &lease, "second").unwrap();
    tx.commit().unwrap();
    assert!(matches!(block_on(stale.complete("first")), Err(Error::LeaseLost { .. })));
}

#[test]
fn s5_a_transaction_of_the_application_raises_the_high_water_mark() {
    let file = File::new();
    let late = ManualClock::starting_at(Duration::from_secs(1 << 31));
    let store = file.at(&late).open().unwrap();
    let policy = engine(store.clone()).policy().clone();
    let mut db = file.raw();
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let fence = acquire_in(&tx, &store, &policy, "k").fence();
    tx.commit().unwrap();
    drop((store, db));
    file.raw().execute("DELETE FROM nevertwice", []).unwrap();
    let engine = engine(file.at(&ManualClock::new()).open().unwrap());
    assert!(acquire(&engine, "k").fence() > fence);
}

#[test]
fn another_file_and_a_transaction_that_is_over_are_refused() {
    let mut app = App::new();
    let elsewhere = File::new();
    drop(elsewhere.store());
    let mut db = elsewhere.raw();
    let tx = db.transaction().unwrap();
    let begin = sqlite::begin_in(&tx, &app.store, &app.policy, &request("k"));
    assert!(matches!(begin, Err(Error::Store(StoreError::Unusable { .. }))), "{begin:?}");
    let (tx, store, policy) = app.begin();
    let lease = acquire_in(&tx, &store, &policy, "k");
    tx.execute_batch("ROLLBACK").unwrap();
    let complete = sqlite::complete_in(&tx, &lease, "x");
    assert!(matches!(complete, Err(Error::Store(StoreError::Unusable { .. }))), "{complete:?}");
    drop(tx);
    assert_eq!(app.file.rows(), 0);
}

#[test]
fn s1_a_deferred_transaction_overtaken_after_its_first_read_is_refused() {
    let mut app = App::new();
    let tx = app.db.transaction().unwrap();
    let _: i64 = tx.query_row("SELECT count(*) FROM payments", [], |row| row.get(0)).unwrap();
    let engine = engine(app.store.clone());
    let _lease = acquire(&engine, "k");
    let begin = sqlite::begin_in(&tx, &app.store, &app.policy, &request("k"));
    assert!(matches!(begin, Err(Error::Store(StoreError::Unavailable { .. }))), "{begin:?}");
}
