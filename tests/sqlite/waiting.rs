//! Waiting for a record to change.

use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Wake, Waker};

use futures_util::future::{Either, join_all, select};
use nevertwice::store::SwapRequest;
use nevertwice::{Clock, SystemClock, sqlite};
use rusqlite::TransactionBehavior;

use super::*;

/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(3600);

/// Returns the output of `future`, which must be ready soon.
#[track_caller]
fn soon<T>(future: impl Future<Output = T>) -> T {
    let patience = SystemClock.sleep(Duration::from_secs(20));
    match block_on(select(std::pin::pin!(future), patience)) {
        Either::Left((given, _)) => given,
        Either::Right(_) => panic!("no waiter was woken"),
    }
}

fn is_pending<T>(future: std::pin::Pin<&mut (impl Future<Output = T> + ?Sized)>) -> bool {
    future.poll(&mut Context::from_waker(Waker::noop())).is_pending()
}

fn waiters(store: &SqliteStore) -> String {
    let shown = format!("{store:?}");
    let start = shown.find("waiters: ").unwrap();
    shown[start..].split([' ', ',']).nth(1).unwrap().to_owned()
}

/// Returns a file, a store on it, and a lease of `k` with the stamp to wait on.
fn waited() -> (File, SqliteStore, Lease, Stamp) {
    let file = File::new();
    let store = file.store();
    let lease = acquire(&engine(store.clone()), "k");
    let stamp = stored(&store, "k").unwrap().stamp;
    (file, store, lease, stamp)
}

#[test]
fn a_waiter_is_woken_by_a_write_of_the_same_store() {
    let (_file, store, lease, stamp) = waited();
    let id = id("k");
    let mut changed = store.changed(&id, stamp, LONG);
    assert!(is_pending(changed.as_mut()));
    assert_eq!(waiters(&store), "1");
    block_on(lease.complete("r")).unwrap();
    soon(changed).unwrap();
    assert_ne!(stored(&store, "k").unwrap().stamp, stamp);
    assert_eq!(waiters(&store), "0");
}

#[test]
fn a_waiter_is_woken_by_another_store_on_the_file() {
    let (file, store, lease, stamp) = waited();
    let id = id("k");
    let other = file.engine();
    let mut changed = store.changed(&id, stamp, LONG);
    assert!(is_pending(changed.as_mut()));
    // Writes to other records come in between.
    let _ = acquire(&other, "else");
    block_on(async { other.resume(&lease.token()).await.unwrap().complete("r").await }).unwrap();
    soon(changed).unwrap();
    assert_ne!(stored(&store, "k").unwrap().stamp, stamp);
}

#[test]
fn a_waiter_is_woken_by_a_transaction_of_the_application() {
    let (file, store, lease, stamp) = waited();
    let policy = engine(store.clone()).policy().clone();
    let id = id("k");
    let mut changed = store.changed(&id, stamp, LONG);
    assert!(is_pending(changed.as_mut()));
    let mut db = file.raw();
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let lease = sqlite::resume_in(&tx, &store, &policy, &lease.token()).unwrap();
    sqlite::complete_in(&tx, &lease, "r").unwrap();
    assert!(is_pending(changed.as_mut()), "nothing is committed yet");
    tx.commit().unwrap();
    soon(changed).unwrap();
}

#[test]
fn a_waiter_is_woken_by_a_removal_a_purge_and_a_discard() {
    let file = File::new();
    let clock = ManualClock::new();
    let store = file.at(&clock).open().unwrap();
    let engine = engine(store.clone());
    let id = id("k");
    for way in 0..4 {
        let lease = acquire(&engine, "k");
        let stamp = stored(&store, "k").unwrap().stamp;
        let mut changed = store.changed(&id, stamp, LONG);
        assert!(is_pending(changed.as_mut()));
        match way {
            0 => block_on(lease.release()).unwrap(),
            1 => assert!(block_on(store.discard(&id)).unwrap()),
            2 => drop(file.raw().execute("DELETE FROM nevertwice", []).unwrap()),
            _ => {
                clock.advance(RETENTION * 2);
                assert_eq!(block_on(engine.purge(10)).unwrap(), 1);
            }
        }
        soon(changed).unwrap();
    }
}

#[test]
fn a_change_between_the_look_and_the_call_ends_the_wait_at_once() {
    let (file, store, lease, stamp) = waited();
    block_on(lease.complete("r")).unwrap();
    assert!(!is_pending(store.changed(&id("k"), stamp, LONG).as_mut()));
    file.raw().execute("DELETE FROM nevertwice", []).unwrap();
    assert!(!is_pending(store.changed(&id("k"), stamp, LONG).as_mut()));
    assert!(!is_pending(store.changed(&id("never"), stamp, LONG).as_mut()));
    assert!(!is_pending(store.changed(&id("k"), Stamp(u64::MAX), LONG).as_mut()));
    assert_eq!(waiters(&store), "0");
}

#[test]
fn changes_that_race_with_the_call_are_not_missed() {
    let (file, store, _lease, mut stamp) = waited();
    let id = id("k");
    let other = file.store();
    let mut record = stored(&store, "k").unwrap();
    for round in 0..200 {
        std::thread::scope(|scope| {
            let writer = if round % 2 == 0 { &store } else { &other };
            scope
                .spawn(|| block_on(writer.swap(&SwapRequest::new(&id, Some(stamp), Some(&record)))).unwrap());
            // It may return early.
            while stored(&store, "k").unwrap().stamp == stamp {
                soon(store.changed(&id, stamp, LONG)).unwrap();
            }
        });
        record = stored(&store, "k").unwrap();
        stamp = record.stamp;
    }
    assert_eq!(waiters(&store), "0");
}

#[test]
fn dropped_waiters_leave_nothing_behind() {
    let (_file, store, lease, stamp) = waited();
    let id = id("k");
    let mut waiting: Vec<_> = (0..100).map(|_| store.changed(&id, stamp, LONG)).collect();
    assert!(waiting.iter_mut().all(|changed| is_pending(changed.as_mut())));
    assert_eq!(waiters(&store), "100");
    waiting.truncate(1);
    assert_eq!(waiters(&store), "1");
    block_on(lease.complete("r")).unwrap();
    waiting.into_iter().for_each(|changed| soon(changed).unwrap());
    assert_eq!(waiters(&store), "0");
}

#[test]
fn a_thousand_waiters_of_one_id_wake() {
    for elsewhere in [false, true] {
        let (file, store, lease, stamp) = waited();
        let id = id("k");
        let mut waiting: Vec<_> = (0..1000).map(|_| store.changed(&id, stamp, LONG)).collect();
        assert!(waiting.iter_mut().all(|changed| is_pending(changed.as_mut())));
        if elsewhere {
            file.raw().execute("DELETE FROM nevertwice", []).unwrap();
        } else {
            block_on(lease.complete("r")).unwrap();
        }
        soon(join_all(waiting)).into_iter().for_each(|ended| ended.unwrap());
        assert_eq!(waiters(&store), "0");
    }
}

#[test]
fn a_wait_ends_with_its_time_and_with_a_store_that_is_broken() {
    let (file, store, _lease, stamp) = waited();
    let id = id("k");
    soon(store.changed(&id, stamp, Duration::ZERO)).unwrap();
    let mut changed = store.changed(&id, stamp, LONG);
    assert!(is_pending(changed.as_mut()));
    file.raw().execute("DROP TABLE nevertwice", []).unwrap();
    let error = soon(changed).unwrap_err();
    assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
    assert!(soon(store.changed(&id, stamp, LONG)).is_err());
    assert_eq!(waiters(&store), "0");
}

#[test]
fn the_last_handle_may_go_in_the_very_task_that_is_woken() {
    for elsewhere in [false, true] {
        let (file, store, lease, stamp) = waited();
        let token = lease.token();
        drop(lease);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (other, own) = (file.engine(), engine(store.clone()));
        let task = runtime.spawn(async move { store.changed(&id("k"), stamp, LONG).await });
        let by = if elsewhere { &other } else { &own };
        let lease = block_on(by.resume(&token)).unwrap();
        drop(own);
        block_on(lease.complete("r")).unwrap();
        drop(lease);
        soon(task).unwrap().unwrap();
    }
}

type Waiting = std::pin::Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// A waker that drops the future it wakes, and reports when that is done.
struct Dropper(Mutex<Option<Waiting>>, Mutex<mpsc::Sender<()>>);

impl Wake for Dropper {
    fn wake(self: Arc<Self>) {
        let waiting = self.0.lock().unwrap().take();
        if waiting.is_some() {
            drop(waiting);
            self.1.lock().unwrap().send(()).unwrap();
        }
    }
}

#[test]
fn the_last_handle_may_go_on_the_watching_thread_itself() {
    let (file, store, lease, stamp) = waited();
    drop(lease);
    let (sender, dropped) = mpsc::channel();
    let dropper = Arc::new(Dropper(Mutex::new(None), Mutex::new(sender)));
    let waker = Waker::from(dropper.clone());
    let mut waiting: Waiting = Box::pin(async move { store.changed(&id("k"), stamp, LONG).await });
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    *dropper.0.lock().unwrap() = Some(waiting);
    file.raw().execute("DELETE FROM nevertwice", []).unwrap();
    dropped.recv_timeout(Duration::from_secs(20)).unwrap();
}

#[test]
fn the_watcher_is_restarted_for_later_waiters() {
    let (file, store, lease, _) = waited();
    let other = file.store();
    let id = id("k");
    for _ in 0..20 {
        let record = stored(&store, "k").unwrap();
        assert!(!is_pending(store.changed(&id, Stamp(1), LONG).as_mut()));
        let mut changed = store.changed(&id, record.stamp, LONG);
        assert!(is_pending(changed.as_mut()));
        block_on(other.swap(&SwapRequest::new(&id, Some(record.stamp), Some(&record)))).unwrap();
        soon(changed).unwrap();
    }
    drop(lease);
}
