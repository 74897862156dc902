//! `waiters`: the time that 1000 waiters take to wake up. On one key, it counts from before the
//! finish is sent; on 1000 keys, which are finished together, from the acknowledgement of the own
//! finish.

use std::time::{Duration, Instant};

use nevertwice::{Begin, Engine, Request};
use serde::{Deserialize, Serialize};

use crate::measure::Median;

const WAITERS: usize = 1000;
const ROUNDS: usize = 3;

/// Times in milliseconds since before the finish.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Wake {
    pub(crate) store: String,
    pub(crate) waiters: usize,
    /// Until the finish was acknowledged.
    pub(crate) complete_ms: f64,
    /// Until half of the waiters had their answer.
    pub(crate) half_ms: f64,
    /// Until all of them had.
    pub(crate) last_ms: f64,
}

/// The wake-ups of waiters on keys of their own, in milliseconds since the acknowledgement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WakeEach {
    pub(crate) store: String,
    pub(crate) keys: usize,
    /// Of half of the waiters, and of 99 in 100.
    pub(crate) half_ms: f64,
    pub(crate) p99_ms: f64,
}

pub(crate) async fn measure_each(store: &str, engine: &Engine) -> WakeEach {
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        rounds.push(wake_each(engine, &format!("{round} {}", std::process::id())).await);
    }
    let median = |which: fn(&[f64; 2]) -> f64| Median::of(rounds.iter().map(which)).median;
    WakeEach {
        store: store.to_owned(),
        keys: WAITERS,
        half_ms: median(|round| round[0]),
        p99_ms: median(|round| round[1]),
    }
}

async fn wake_each(engine: &Engine, key: &str) -> [f64; 2] {
    let mut pairs = Vec::with_capacity(WAITERS);
    for number in 0..WAITERS {
        let request = Request::new("waiters", format!("{key} {number}")).expect("a key");
        let Ok(Begin::Acquired(lease)) = engine.begin(&request).await else {
            panic!("a fresh key is granted")
        };
        pairs.push((lease, waiting(engine, &request)));
    }
    tokio::time::sleep(Duration::from_millis(1500)).await; // all of them wait
    let finishes: Vec<_> = pairs
        .into_iter()
        .map(|(lease, waiter)| {
            tokio::spawn(async move {
                lease.complete("done").await.expect("the lease is some seconds old");
                let acknowledged = Instant::now();
                waiter.await.expect("no waiter panics").saturating_duration_since(acknowledged)
            })
        })
        .collect();
    let mut waits = Vec::with_capacity(WAITERS);
    for finish in finishes {
        waits.push(finish.await.expect("no finish panics"));
    }
    waits.sort_unstable();
    [waits[WAITERS / 2], waits[WAITERS * 99 / 100]].map(|time| time.as_secs_f64() * 1e3)
}

/// Starts a waiter, which returns the time of its answer.
fn waiting(engine: &Engine, request: &Request) -> tokio::task::JoinHandle<Instant> {
    let (engine, request) = (engine.clone(), request.clone());
    tokio::spawn(async move {
        let begin = engine.begin_or_wait(&request, Duration::from_secs(20)).await;
        assert!(matches!(begin, Ok(Begin::Completed(_))));
        Instant::now()
    })
}

pub(crate) async fn measure(store: &str, engine: &Engine) -> Wake {
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        rounds.push(wake(engine, &format!("{round} {}", std::process::id())).await);
    }
    let median = |which: fn(&[f64; 3]) -> f64| Median::of(rounds.iter().map(which)).median;
    Wake {
        store: store.to_owned(),
        waiters: WAITERS,
        complete_ms: median(|round| round[0]),
        half_ms: median(|round| round[1]),
        last_ms: median(|round| round[2]),
    }
}

async fn wake(engine: &Engine, key: &str) -> [f64; 3] {
    let request = Request::new("waiters", key).expect("a key");
    let Ok(Begin::Acquired(lease)) = engine.begin(&request).await else { panic!("a fresh key is granted") };
    let waiters: Vec<_> = (0..WAITERS).map(|_| waiting(engine, &request)).collect();
    tokio::time::sleep(Duration::from_millis(300)).await; // all of them wait
    let start = Instant::now();
    lease.complete("done").await.expect("the lease is not a second old");
    let completed = start.elapsed();
    let mut waits = Vec::with_capacity(WAITERS);
    for waiter in waiters {
        waits.push(waiter.await.expect("no waiter panics").duration_since(start));
    }
    waits.sort_unstable();
    [completed, waits[WAITERS / 2], waits[WAITERS - 1]].map(|time| time.as_secs_f64() * 1e3)
}
