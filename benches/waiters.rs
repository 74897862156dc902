//! How long 1000 waiters on one key take to wake up, from before the finish is sent to each one's answer:
//! `cargo bench --all-features --bench waiters [-- redis://127.0.0.1:6379]`.
#![allow(clippy::print_stdout, clippy::disallowed_methods)] // a bench measures real time and prints it

use std::time::{Duration, Instant};

use nevertwice::{Begin, Engine, Request};

const WAITERS: usize = 1000;
const ROUNDS: usize = 5;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    #[cfg(feature = "memory")]
    runtime.block_on(measure("memory", &engine(nevertwice::MemoryStore::new())));
    #[cfg(feature = "sqlite")]
    {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("keys.db");
        let here = nevertwice::SqliteStore::open(&path).expect("the store opens");
        runtime.block_on(measure("sqlite", &engine(here)));
    }
    #[cfg(feature = "redis")]
    match std::env::args().find(|argument| argument.starts_with("redis://")) {
        Some(url) => runtime.block_on(async {
            let store = nevertwice::RedisStore::connect(&url).await.expect("the server answers");
            measure("redis", &engine(store)).await;
        }),
        None => println!("redis: left out, name a server: -- redis://127.0.0.1:6379"),
    }
}

fn engine(store: impl nevertwice::Store) -> Engine {
    Engine::builder(store).build().expect("the default policy is sound")
}

async fn measure(store: &str, engine: &Engine) {
    for round in 0..ROUNDS {
        let request = Request::new("waiters", format!("{round} {}", std::process::id())).expect("a key");
        let Ok(Begin::Acquired(lease)) = engine.begin(&request).await else {
            panic!("a fresh key is granted")
        };
        let waiters: Vec<_> = (0..WAITERS)
            .map(|_| {
                let (engine, request) = (engine.clone(), request.clone());
                tokio::spawn(async move {
                    let begin = engine.begin_or_wait(&request, Duration::from_secs(20)).await;
                    assert!(matches!(begin, Ok(Begin::Completed(_))));
                    Instant::now()
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(300)).await; // all of them wait
        let start = Instant::now();
        lease.complete("done").await.expect("the lease is not a second old");
        let completed = start.elapsed();
        let mut waits = Vec::with_capacity(WAITERS);
        for waiter in waiters {
            waits.push(waiter.await.expect("no waiter panics").duration_since(start));
        }
        waits.sort_unstable();
        println!(
            "bench: store={store} op=wake waiters={WAITERS} complete_ms={:.2} p50_ms={:.2} last_ms={:.2}",
            completed.as_secs_f64() * 1e3,
            waits[WAITERS / 2].as_secs_f64() * 1e3,
            waits[WAITERS - 1].as_secs_f64() * 1e3,
        );
    }
}
