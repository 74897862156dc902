//! `many`: 512 operations in one call, compared with one call after the other.

use std::time::Instant;

use nevertwice::{Begin, Lease, Request};
use serde::{Deserialize, Serialize};

use crate::measure::Median;
use crate::ours::Ours;
use crate::side::{key, response};

const MANY: u64 = 512;

/// Microseconds per operation, and the factor by which single calls are slower.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Many {
    pub(crate) store: String,
    pub(crate) begin_us: f64,
    pub(crate) begin_many_us: f64,
    pub(crate) begin_ratio: Median,
    pub(crate) complete_us: f64,
    pub(crate) complete_many_us: f64,
    pub(crate) complete_ratio: Median,
}

pub(crate) async fn measure(store: &str, ours: &Ours, rounds: u64) -> Many {
    let mut times = Vec::new();
    for round in 0..=rounds {
        let first = 2 * round * MANY;
        let [singly, together] = match round % 2 {
            0 => [singly(ours, first).await, together(ours, first + MANY).await],
            _ => {
                let together = together(ours, first + MANY).await;
                [singly(ours, first).await, together]
            }
        };
        if round > 0 {
            times.push((singly, together)); // the first one warms up
        }
    }
    let median = |which: fn(&([f64; 2], [f64; 2])) -> f64| Median::of(times.iter().map(which));
    Many {
        store: store.to_owned(),
        begin_us: median(|(singly, _)| singly[0]).median,
        begin_many_us: median(|(_, together)| together[0]).median,
        begin_ratio: median(|(singly, together)| singly[0] / together[0]),
        complete_us: median(|(singly, _)| singly[1]).median,
        complete_many_us: median(|(_, together)| together[1]).median,
        complete_ratio: median(|(singly, together)| singly[1] / together[1]),
    }
}

fn requests(ours: &Ours, first: u64) -> Vec<Request> {
    (first..first + MANY).map(|number| ours.request(key(number))).collect()
}

fn granted(begin: Result<Begin, nevertwice::Error>) -> Lease {
    match begin {
        Ok(Begin::Acquired(lease)) => lease,
        other => panic!("a new key is granted, not {other:?}"),
    }
}

/// Begins, then completes, one call after the other. Returns the microseconds per operation of
/// each.
async fn singly(ours: &Ours, first: u64) -> [f64; 2] {
    let requests = requests(ours, first);
    let mut leases = Vec::with_capacity(requests.len());
    let start = Instant::now();
    for request in &requests {
        leases.push(granted(ours.engine.begin(request).await));
    }
    let begun = start.elapsed();
    let start = Instant::now();
    for lease in &leases {
        lease.complete(response()).await.expect("the lease is new");
    }
    [begun, start.elapsed()].map(|time| time.as_secs_f64() * 1e6 / MANY as f64)
}

async fn together(ours: &Ours, first: u64) -> [f64; 2] {
    let requests = requests(ours, first);
    let start = Instant::now();
    let leases: Vec<_> = ours.engine.begin_many(&requests).await.into_iter().map(granted).collect();
    let begun = start.elapsed();
    let start = Instant::now();
    let outcomes: Vec<_> = leases.iter().map(|lease| (lease, response().into())).collect();
    for completed in ours.engine.complete_many(&outcomes).await {
        completed.expect("the lease is new");
    }
    [begun, start.elapsed()].map(|time| time.as_secs_f64() * 1e6 / MANY as f64)
}
