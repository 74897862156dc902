//! `waiters`: the time that 1000 waiters on one key take to wake up, from before the finish is sent
//! to each one's answer.

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
    [completed, waits[WAITERS / 2], waits[WAITERS - 1]].map(|time| time.as_secs_f64() * 1e3)
}
