//! Schedule tests of callers that share pipelines and leave at any moment. The server is a list of
//! sent swaps.

use std::sync::Mutex as Plain;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::{Either, select};
use shuttle::future::{block_on, spawn};
use shuttle::rand::Rng;

use super::*;
use crate::sync::schedules::explore;

/// A server that records what is sent and answers each swap with a stamp of its own.
struct ListServer {
    batcher: Batcher<ListServer>,
    delivery_limit: Duration,
    seen: Plain<Vec<u64>>,
    pipelines: AtomicUsize,
    most_pipelines: AtomicUsize,
}

impl ListServer {
    fn new(delivery_limit: Duration) -> Arc<ListServer> {
        let (seen, pipelines, most_pipelines) = (Plain::default(), AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(ListServer { batcher: Batcher::default(), delivery_limit, seen, pipelines, most_pipelines })
    }

    /// Waits until no pipeline is in flight and no caller queued, so that the next caller need not
    /// wait, and until no task is left that a schedule could end with.
    async fn comes_to_rest(self: &Arc<Self>) {
        let is_at_rest = || {
            let queue = self.batcher.lock();
            (queue.in_flight, queue.pending.len(), queue.has_lone) == (0, 0, false)
        };
        for _ in 0..1000 {
            if is_at_rest() && Arc::strong_count(self) == 1 {
                return;
            }
            yield_now().await;
        }
        panic!("a pipeline was lost");
    }
}

impl Transport for ListServer {
    type Item = u64;
    type Answer = u64;
    const MAX_ITEMS: usize = 128;
    const MAX_BYTES: usize = 256 << 10;

    fn bytes(_: &u64) -> usize {
        8
    }

    fn unanswered(detail: &'static str) -> StoreError {
        StoreError::unavailable("list", detail)
    }

    fn batcher(&self) -> &Batcher<ListServer> {
        &self.batcher
    }

    fn delivery_limit(&self) -> Duration {
        self.delivery_limit
    }

    fn may_send_alone(&self) -> bool {
        true
    }

    fn stall_limit(&self) -> Duration {
        self.delivery_limit
    }

    async fn deliver(self: &Arc<Self>, items: Vec<u64>) -> Answers<ListServer> {
        let pipelines = self.pipelines.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_pipelines.fetch_max(pipelines, Ordering::SeqCst);
        for item in &items {
            let mut seen = self.seen.lock().unwrap();
            assert!(!seen.contains(item), "a swap was sent twice");
            seen.push(*item);
        }
        yield_now().await;
        self.pipelines.fetch_sub(1, Ordering::SeqCst);
        items.into_iter().map(Ok).collect()
    }
}

/// Sends a swap and checks that the answer is its own.
async fn send(server: Arc<ListServer>, number: u64) -> bool {
    match Batcher::send(&server, number).await {
        Ok(answer) => {
            assert_eq!(answer, number, "the answer to another's swap");
            assert!(server.seen.lock().unwrap().contains(&number), "an answer to what was not sent");
            true
        }
        Err(StoreError::Unavailable { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Sends a swap and leaves after some steps.
async fn send_and_leave(server: Arc<ListServer>, number: u64) {
    let steps = shuttle::rand::thread_rng().gen_range(0..6);
    let leaves = async {
        for _ in 0..steps {
            yield_now().await;
        }
    };
    match select(Box::pin(send(server, number)), Box::pin(leaves)).await {
        Either::Left((answered, _)) => assert!(answered),
        Either::Right(((), sending)) => drop(sending),
    }
}

#[test]
fn schedules_of_shared_pipelines() {
    explore("servers: callers share pipelines", 10_000, || {
        let server = ListServer::new(Duration::MAX);
        let callers: Vec<_> = (0..5).map(|number| spawn(send(server.clone(), number))).collect();
        for caller in callers {
            assert!(block_on(caller).unwrap(), "the caller got no answer");
        }
        assert_eq!(server.seen.lock().unwrap().len(), 5);
        assert!(server.most_pipelines.load(Ordering::SeqCst) <= PIPELINES + 1);
        block_on(server.comes_to_rest());
    });
}

#[test]
fn schedules_of_callers_that_leave() {
    explore("servers: callers leave", 20_000, || {
        let server = ListServer::new(Duration::MAX);
        let leavers: Vec<_> = (0..4).map(|number| spawn(send_and_leave(server.clone(), number))).collect();
        let stayers: Vec<_> = (4..6).map(|number| spawn(send(server.clone(), number))).collect();
        for stayer in stayers {
            assert!(block_on(stayer).unwrap(), "the caller got no answer");
        }
        for leaver in leavers {
            block_on(leaver).unwrap();
        }
        block_on(server.comes_to_rest());
    });
}

/// L1, S6: A caller whose wait may time out at any moment takes over from stalled pipelines.
/// Nothing is sent twice, and no caller gets another's answer; a missing answer is an error.
#[test]
fn schedules_of_pipelines_that_stall() {
    explore("servers: turns taken over", 10_000, || {
        let server = ListServer::new(Duration::ZERO);
        let callers: Vec<_> = (0..5).map(|number| spawn(send(server.clone(), number))).collect();
        for caller in callers {
            block_on(caller).unwrap();
        }
        block_on(server.comes_to_rest());
        assert!(block_on(send(server.clone(), 9)));
        block_on(server.comes_to_rest());
    });
}
