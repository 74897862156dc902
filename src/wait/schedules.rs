//! Callers that begin, wait, renew, finish and leave at the same time, under many schedules.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize as Count, Ordering};

use futures_util::future::{Either, select};
use shuttle::future::block_on;
use shuttle::thread;

use super::*;
use crate::backends::memory::MemoryStore;
use crate::clock::ManualClock;
use crate::lease::Lease;
use crate::record::{Retry, Stamp};
use crate::sync::schedules::explore;

const LIMIT: Duration = Duration::from_secs(20);

/// An engine whose clock stands still: only a wake-up ends a wait.
fn engine() -> (Engine, Request, ManualClock) {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let engine = Engine::builder(store).clock(clock.clone()).build().unwrap();
    (engine, Request::new("schedules", "key").unwrap(), clock)
}

fn acquire(engine: &Engine, request: &Request) -> Lease {
    match block_on(engine.begin(request)).unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::spawn(work)
}

/// S1, S2, S5: of callers that begin at once, one holds the key and its fences increase; once the
/// key is completed, all of them get that outcome.
#[test]
fn schedules_of_begins() {
    explore("begins that race", 30_000, || {
        let (engine, request, _clock) = engine();
        let (holders, fence) = (Arc::new(Count::new(0)), Arc::new(std::sync::Mutex::new(Stamp::ZERO)));
        let threads = (0..3).map(|number| {
            let (engine, request) = (engine.clone(), request.clone());
            let (holders, fence) = (holders.clone(), fence.clone());
            spawn(move || {
                // The first answer may be no outcome: it only shows if the key was free.
                for round in 0..2 {
                    let lease = match block_on(engine.begin(&request)).unwrap() {
                        Begin::Acquired(lease) => lease,
                        Begin::Completed(done) => return assert_eq!(done.response().unwrap(), "done"),
                        Begin::InProgress(_) => continue,
                        other => panic!("{other:?}"),
                    };
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "two hold the key");
                    {
                        let mut last = fence.lock().unwrap();
                        assert!(*last < lease.fence(), "a fence that does not grow");
                        *last = lease.fence();
                    }
                    thread::yield_now();
                    holders.fetch_sub(1, Ordering::SeqCst);
                    match (number + round) % 3 {
                        0 => block_on(lease.complete("done")).unwrap(),
                        1 => block_on(lease.release()).unwrap(),
                        _ => block_on(lease.fail("later", Retry::Now)).unwrap(),
                    }
                }
            })
        });
        threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    });
}

/// L4: a finish wakes every waiter, whenever it comes, and a waiter that leaves does not take the
/// wake-up of another.
#[test]
fn schedules_of_waiters() {
    explore("waiters, a finish, and one who leaves", 40_000, || {
        let (engine, request, _clock) = engine();
        let lease = acquire(&engine, &request);
        let waiters = (0..3).map(|number| {
            let (engine, request) = (engine.clone(), request.clone());
            spawn(move || {
                block_on(async {
                    let wait = Box::pin(engine.begin_or_wait(&request, LIMIT));
                    // The first waiter leaves after some steps, at any point of its wait.
                    let steps = if number == 0 { 1 } else { usize::MAX };
                    match select(wait, Box::pin(after(steps))).await {
                        Either::Left((begin, _)) => match begin.unwrap() {
                            Begin::Completed(done) => assert_eq!(done.response().unwrap(), "done"),
                            other => panic!("{other:?}"),
                        },
                        Either::Right(_) => assert_eq!(number, 0),
                    }
                });
            })
        });
        let waiters: Vec<_> = waiters.collect();
        block_on(lease.complete("done")).unwrap();
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
        assert!(engine.waiting().is_empty());
    });
}

/// Completes after that many further polls. With `usize::MAX` it never completes and wakes no task.
async fn after(steps: usize) {
    if steps == usize::MAX {
        return std::future::pending().await;
    }
    for _ in 0..steps {
        shuttle::future::yield_now().await;
    }
}

/// L4: a released key goes to one of the waiters, and so on until all of them had it.
#[test]
fn schedules_of_handing_on() {
    explore("a key handed on among waiters", 20_000, || {
        let (engine, request, _clock) = engine();
        let lease = acquire(&engine, &request);
        let holders = Arc::new(Count::new(0));
        let waiters = (0..3).map(|_| {
            let (engine, request, holders) = (engine.clone(), request.clone(), holders.clone());
            spawn(move || match block_on(engine.begin_or_wait(&request, LIMIT)).unwrap() {
                Begin::Acquired(lease) => {
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "two hold the key");
                    thread::yield_now();
                    holders.fetch_sub(1, Ordering::SeqCst);
                    block_on(lease.release()).unwrap();
                }
                other => panic!("{other:?}"),
            })
        });
        let waiters: Vec<_> = waiters.collect();
        block_on(lease.release()).unwrap();
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
        assert!(engine.waiting().watches().is_empty());
    });
}

/// S2, S3: a renewal beside the finish does no harm, a finished lease is never reported as lost,
/// and the clone of a token finishes the same lease once.
#[test]
fn schedules_of_a_lease() {
    explore("renewals and two finishes of one lease", 20_000, || {
        let (engine, request, _clock) = engine();
        let lease = Arc::new(acquire(&engine, &request));
        let token = lease.token();
        let renewing = lease.clone();
        let renewer = spawn(move || {
            for _ in 0..2 {
                match block_on(renewing.renew()) {
                    Ok(()) | Err(Error::LeaseLost { .. } | Error::AlreadyFinished { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let other = engine.clone();
        let resumed = spawn(move || {
            let lease = block_on(other.resume(&token)).unwrap();
            block_on(lease.complete("done")).unwrap();
        });
        block_on(lease.complete("done")).unwrap();
        assert!(!lease.is_lost());
        renewer.join().unwrap();
        resumed.join().unwrap();
        assert!(!lease.is_lost(), "a finished lease is not lost");
        assert_eq!(lease.remaining(), Duration::ZERO);
        let Begin::Completed(done) = block_on(engine.begin(&request)).unwrap() else { panic!() };
        assert_eq!(done.response().unwrap(), "done");
    });
}

/// S3, L3: of a holder whose lease expired and the caller that takes over, one finishes; the other
/// learns that it lost, also if it only waits for `lost`.
#[test]
fn schedules_of_a_takeover() {
    explore("a takeover beside a late finish", 20_000, || {
        let (engine, request, clock) = engine();
        let lease = Arc::new(acquire(&engine, &request));
        let finished = Arc::new(Count::new(0));
        let watching = lease.clone();
        // It waits forever if the lease is finished before another caller takes it.
        let watcher = shuttle::future::spawn(async move { watching.lost().await });
        let (late, count) = (lease.clone(), finished.clone());
        let late = spawn(move || match block_on(late.complete("first")) {
            Ok(()) => drop(count.fetch_add(1, Ordering::SeqCst)),
            Err(Error::LeaseLost { .. }) => {}
            Err(error) => panic!("{error}"),
        });
        clock.advance(engine.policy().lease);
        match block_on(engine.begin(&request)).unwrap() {
            Begin::Acquired(next) => {
                assert!(next.takeover() && next.fence() > lease.fence());
                block_on(next.complete("second")).unwrap();
                finished.fetch_add(1, Ordering::SeqCst);
                // The lease had expired before it was taken, and it is still lost, also for a check
                // made only now.
                block_on(watcher).unwrap();
                assert!(lease.is_lost());
            }
            Begin::Completed(done) => assert_eq!(done.response().unwrap(), "first"),
            other => panic!("{other:?}"),
        }
        late.join().unwrap();
        assert_eq!(finished.load(Ordering::SeqCst), 1);
    });
}
