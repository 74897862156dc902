//! Synchronous code on every store, as the guide describes it: threads without a runtime race,
//! wait, and get the outcome.

use std::pin::Pin;
use std::time::Duration;

use nevertwice::{Begin, Engine, Request};

/// A function that runs a future to its end on the calling thread.
type BlockOn<'a> = dyn Fn(Pin<Box<dyn Future<Output = ()> + '_>>) + Sync + 'a;

fn threads_share_one_outcome(engine: &Engine, block_on: &BlockOn<'_>) {
    let request = Request::new("blocking", "key").unwrap();
    let granted: usize = std::thread::scope(|scope| {
        let thread = || {
            let mut granted = 0;
            block_on(Box::pin(async {
                match engine.begin_or_wait(&request, Duration::from_secs(60)).await.unwrap() {
                    Begin::Acquired(lease) => {
                        lease.complete("done").await.unwrap();
                        granted = 1;
                    }
                    Begin::Completed(done) => assert_eq!(done.response().unwrap(), "done"),
                    other => panic!("{other:?}"),
                }
            }));
            granted
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(thread)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(granted, 1);
}

#[cfg(feature = "memory")]
#[test]
fn threads_share_one_outcome_on_memory() {
    let engine = Engine::builder(nevertwice::MemoryStore::new()).build().unwrap();
    threads_share_one_outcome(&engine, &|future| futures_executor::block_on(future));
}

#[cfg(feature = "sqlite")]
#[test]
fn threads_share_one_outcome_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let store = nevertwice::SqliteStore::open(folder.path().join("keys.db")).unwrap();
    let engine = Engine::builder(store).build().unwrap();
    threads_share_one_outcome(&engine, &|future| futures_executor::block_on(future));
}

#[cfg(feature = "redis")]
#[path = "support/redis.rs"]
#[allow(dead_code)] // the Redis tests need more of it
mod support;

#[cfg(feature = "redis")]
#[test]
fn threads_share_one_outcome_on_redis() {
    let server = support::Server::start(&[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = runtime.block_on(nevertwice::RedisStore::connect(&server.url())).unwrap();
    let engine = Engine::builder(store).build().unwrap();
    threads_share_one_outcome(&engine, &|future| runtime.block_on(future));
}
