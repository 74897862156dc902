//! A faulty waker of the application's affects no other caller: wakers that panic, on any thread
//! that wakes or drops them.
#![cfg(feature = "memory")]
#![allow(clippy::wildcard_enum_match_arm)] // whatever else it is, the test fails

use std::future::Future;
use std::panic::panic_any;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures_executor::block_on;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nevertwice::store::{Snapshot, Store, Swap, SwapRequest};
use nevertwice::{
    Begin, Clock, Durability, Engine, ManualClock, MemoryStore, PurgePlan, RecordId, Request, Retry, Stamp,
    StoreError,
};

/// The time limit for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(3600);

/// A panic payload that panics itself when it is dropped.
struct Worse;

impl Drop for Worse {
    fn drop(&mut self) {
        panic_any(Worse);
    }
}

/// A waker that panics when it is woken and when it is dropped, like that of an executor with too
/// many tasks or a closed queue.
struct Bad;

impl Wake for Bad {
    fn wake(self: Arc<Self>) {
        panic_any(Worse);
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

/// Polls `future` once with such a waker, of which the future then holds the only clone.
fn poll_badly<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    let bad = Arc::new(Bad);
    let waker = Waker::from(bad);
    let polled = pin!(future).poll(&mut Context::from_waker(&waker));
    // Dropped here if no clone exists: the panic then concerns only this task.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(waker)));
    polled
}

/// Returns the output of `work` on its own thread, or panics if it hangs.
fn ends<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = channel();
    thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{what}: {error}"))
}

fn request(key: &str) -> Request {
    Request::new("wakers", key).unwrap()
}

fn acquire(engine: &Engine, key: &str) -> nevertwice::Lease {
    match block_on(engine.begin(&request(key))).unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}

fn waiting(engine: &Engine, key: &str) -> BoxFuture<'static, Result<Begin, nevertwice::Error>> {
    let (engine, request) = (engine.clone(), request(key));
    async move { engine.begin_or_wait(&request, LONG).await }.boxed()
}

fn memory() -> Engine {
    Engine::builder(MemoryStore::new()).build().unwrap()
}

#[test]
fn the_timer_goes_on_after_a_waker_that_panics() {
    let engine = memory();
    let _lease = acquire(&engine, "k");
    for _ in 0..3 {
        let request = request("k");
        // On a busy machine a millisecond may pass before the first poll.
        let wait = || engine.begin_or_wait(&request, Duration::from_millis(1)).boxed();
        let _wait = std::iter::repeat_with(wait)
            .map(|mut wait| (poll_badly(&mut wait), wait))
            .find(|(polled, _)| polled.is_pending());
        // The faulty waker is due first, so that the timer has woken it by the end of this sleep.
        ends("a sleep", || block_on(nevertwice::SystemClock.sleep(Duration::from_millis(20))));
    }
    let other = ends("another engine's wait", || {
        let engine = memory();
        let _lease = acquire(&engine, "other");
        block_on(engine.begin_or_wait(&request("other"), Duration::from_millis(20))).unwrap()
    });
    assert!(matches!(other, Begin::InProgress(_)));
}

/// All waiters of a key share one watch of the store: the first one drives it, and its waker is
/// kept among those of all the others.
fn waiters_of_a_key(engine: &Engine) {
    let lease = acquire(engine, "shared");
    let mut bad = [waiting(engine, "shared"), waiting(engine, "shared")];
    assert!(poll_badly(&mut bad[0]).is_pending());
    let mut good = waiting(engine, "shared");
    let (woken, wakes) = channel();
    let waker = Waker::from(Arc::new(Tell(woken)));
    assert!(good.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
    assert!(poll_badly(&mut bad[1]).is_pending());
    let finishing = engine.clone();
    ends("a finish beside bad waiters", move || {
        block_on(async {
            lease.complete("done").await.unwrap();
            drop(finishing);
        })
    });
    loop {
        wakes.recv_timeout(PATIENCE).expect("the good waiter is woken");
        if let Poll::Ready(begin) = good.poll_unpin(&mut Context::from_waker(&waker)) {
            assert!(matches!(begin, Ok(Begin::Completed(_))));
            break;
        }
    }
    drop(bad);
}

struct Tell(std::sync::mpsc::Sender<()>);

impl Wake for Tell {
    fn wake(self: Arc<Self>) {
        let _ = self.0.send(());
    }
}

#[test]
fn a_finish_in_memory_wakes_all_and_panics_for_no_caller() {
    waiters_of_a_key(&memory());
    let store = MemoryStore::new();
    let engine = Engine::builder(store.clone()).build().unwrap();
    let lease = acquire(&engine, "direct");
    let id = request("direct").id();
    let mut changed = store.changed(&id, lease.fence(), LONG);
    assert!(poll_badly(&mut changed).is_pending());
    block_on(lease.complete("done")).unwrap();
    assert!(changed.now_or_never().is_some());
}

#[test]
fn a_waker_for_the_loss_of_a_lease_harms_no_other() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let engine = Engine::builder(store).clock(clock.clone()).build().unwrap();
    let lease = acquire(&engine, "k");
    {
        let (mut bad, mut good) = (Box::pin(lease.lost()), Box::pin(lease.lost()));
        assert!(poll_badly(&mut bad).is_pending());
        let (woken, wakes) = channel();
        let waker = Waker::from(Arc::new(Tell(woken)));
        assert!(good.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        // The clock wakes sleepers that are due; the lease wakes those that wait for its end.
        clock.advance(engine.policy().lease);
        assert!(wakes.try_recv().is_ok() && good.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
    }
    let lease = acquire(&engine, "k");
    let mut bad = Box::pin(lease.lost());
    assert!(poll_badly(&mut bad).is_pending());
    block_on(lease.complete("done")).unwrap();
}

/// Bytes of the application's that panic when they are freed: the last reference may be held by
/// another caller's call.
#[test]
fn a_body_that_panics_when_it_is_freed_harms_no_other_call() {
    struct Brittle(Vec<u8>);
    impl AsRef<[u8]> for Brittle {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    impl Drop for Brittle {
        fn drop(&mut self) {
            panic!("freed");
        }
    }
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let engine = Engine::builder(store.clone()).clock(clock.clone()).build().unwrap();
    for key in ["a", "b", "c"] {
        let lease = acquire(&engine, key);
        let brittle = Bytes::from_owner(Brittle(vec![7; 10_000]));
        block_on(lease.fail(brittle, Retry::Never)).unwrap();
        std::mem::forget(lease); // its own copy is its holder's affair
    }
    assert!(block_on(engine.forget("wakers", "a")).unwrap());
    clock.advance(Duration::from_secs(3 * 24 * 3600));
    assert_eq!(block_on(engine.purge(10)).unwrap(), 2);
    assert!(store.is_empty());
}

/// The report callback of a purger is the application's code too.
#[test]
fn a_report_that_panics_does_not_end_the_purger() {
    let clock = ManualClock::new();
    let engine = Engine::builder(MemoryStore::new()).clock(clock.clone()).build().unwrap();
    let (told, reports) = channel();
    let mut purger = Box::pin(engine.purge_regularly(PurgePlan::default(), move |_| {
        told.send(()).unwrap();
        panic!("a report");
    }));
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..2 {
        assert!(purger.as_mut().poll(&mut context).is_pending());
        assert!(reports.try_recv().is_ok());
        clock.advance(PurgePlan::default().every);
    }
}

/// A store that panics instead of returning an error.
#[derive(Debug)]
struct Panicking(MemoryStore);

#[nevertwice::store::async_trait]
impl Store for Panicking {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        self.0.load(id).await
    }

    async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
        self.0.swap(swap).await
    }

    async fn changed(&self, _id: &RecordId, _stamp: Stamp, _within: Duration) -> Result<(), StoreError> {
        panic!("changed");
    }

    fn durability(&self) -> Durability {
        Durability::Memory
    }
}

#[test]
fn a_store_that_panics_while_it_is_watched_is_looked_at_again_by_all_waiters() {
    let clock = ManualClock::new();
    let store = Panicking(MemoryStore::builder().clock(clock.clone()).build());
    let engine = Engine::builder(store).clock(clock.clone()).build().unwrap();
    let lease = acquire(&engine, "k");
    let mut waits = [waiting(&engine, "k"), waiting(&engine, "k")];
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..3 {
        waits.iter_mut().for_each(|wait| assert!(wait.poll_unpin(&mut context).is_pending()));
        clock.advance(Duration::from_millis(50));
    }
    block_on(lease.complete("done")).unwrap();
    for wait in &mut waits {
        let Poll::Ready(Ok(Begin::Completed(_))) = wait.poll_unpin(&mut context) else { panic!() };
    }
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use std::sync::atomic::{AtomicBool, Ordering};

    use nevertwice::SqliteStore;

    use super::*;

    fn open() -> (Engine, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path().join("keys.db")).unwrap();
        (Engine::builder(store).build().unwrap(), dir)
    }

    #[test]
    fn the_writer_goes_on_after_a_waker_that_panics() {
        let (engine, _dir) = open();
        for round in 0..3 {
            let bad = request(&format!("bad {round}"));
            // A fast writer may answer before the second poll, and wake no task.
            let _ = poll_badly(&mut engine.begin(&bad).boxed());
            drop(engine.begin(&request(&format!("worse {round}"))).now_or_never());
            let other = engine.clone();
            ends("another's begin", move || drop(acquire(&other, &format!("good {round}"))));
        }
    }

    #[test]
    fn waiters_are_woken_beside_one_whose_waker_panics() {
        let (engine, _dir) = open();
        waiters_of_a_key(&engine);
    }

    /// A clock that panics on demand.
    #[derive(Debug, Clone)]
    struct Moody(ManualClock, Arc<AtomicBool>);

    impl Clock for Moody {
        fn wall(&self) -> Duration {
            self.0.wall()
        }

        fn monotonic(&self) -> Duration {
            // On the writer's thread only: elsewhere the panic concerns only the caller.
            let thread = thread::current();
            let is_writer = thread.name().is_some_and(|name| name.starts_with("nevertwice"));
            assert!(!(is_writer && self.1.swap(false, Ordering::SeqCst)), "the clock panics");
            self.0.monotonic()
        }

        fn sleep(&self, time: Duration) -> nevertwice::clock::Sleep {
            self.0.sleep(time)
        }
    }

    #[test]
    fn the_writer_goes_on_after_a_clock_that_panics() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Moody(ManualClock::new(), Arc::default());
        let store = SqliteStore::builder(dir.path().join("keys.db")).clock(clock.clone()).open().unwrap();
        let engine = Engine::builder(store).build().unwrap();
        let lease = acquire(&engine, "k");
        clock.1.store(true, Ordering::SeqCst);
        // Repeated, as after any commit with an unknown result.
        ends("a finish", move || block_on(lease.complete("done")).unwrap());
        assert!(!clock.1.load(Ordering::SeqCst), "it did panic");
    }
}

#[cfg(feature = "redis")]
#[path = "support/redis.rs"]
#[allow(dead_code)] // the Redis tests need more of it
mod support;

#[cfg(feature = "redis")]
#[test]
fn callers_of_one_connection_are_answered_beside_one_whose_waker_panics() {
    let server = support::Server::start(&[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let store = runtime.block_on(nevertwice::RedisStore::connect(&server.url())).unwrap();
    let engine = Engine::builder(store).build().unwrap();
    for round in 0..5 {
        // Two occupy the connection's pipelines, and the others wait for them.
        let requests: Vec<Request> = (0..6).map(|at| request(&format!("bad {round} {at}"))).collect();
        let mut bad: Vec<_> = requests.iter().map(|request| engine.begin(request).boxed()).collect();
        bad.iter_mut().for_each(|bad| drop(poll_badly(bad)));
        // Each is dropped as if it were the task that is polled in vain: one that has to send for
        // the others passes that duty on when it is dropped.
        for bad in bad {
            runtime.block_on(tokio::task::yield_now());
            drop(bad);
        }
        let good = request(&format!("good {round}"));
        let begin = runtime.block_on(async { tokio::time::timeout(PATIENCE, engine.begin(&good)).await });
        assert!(matches!(begin, Ok(Ok(Begin::Acquired(_)))), "{begin:?}");
    }
    let own = request("shared");
    let Begin::Acquired(lease) = runtime.block_on(engine.begin(&own)).unwrap() else { panic!() };
    let mut bad = waiting(&engine, "shared");
    let good = runtime.spawn(waiting(&engine, "shared"));
    for _ in 0..3 {
        assert!(poll_badly(&mut bad).is_pending());
        runtime.block_on(lease.renew()).unwrap();
    }
    runtime.block_on(lease.complete("done")).unwrap();
    let good = runtime.block_on(async { tokio::time::timeout(PATIENCE, good).await });
    assert!(matches!(good, Ok(Ok(Ok(Begin::Completed(_))))), "{good:?}");
}
