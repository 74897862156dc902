//! Schedule tests of the waiters. The listener takes the same steps towards the waiters as the real
//! one; its server is a map.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Mutex as Plain;
use std::task::{Poll, Waker};

use shuttle::future::{block_on, yield_now};
use shuttle::rand::Rng;
use shuttle::thread;

use super::*;
use crate::sync::schedules::explore;

/// A server with the stamps of records, and one connection that listens.
#[derive(Default)]
struct MapServer {
    contents: Plain<Contents>,
    /// True if the task may end at any moment, as with its runtime.
    is_shaky: bool,
}

#[derive(Default)]
struct Contents {
    stamps: HashMap<RecordId, Stamp>,
    channels: HashSet<RecordId>,
    messages: VecDeque<RecordId>,
    listener: Option<Waker>,
}

impl MapServer {
    /// Writes and announces the change in one step, as a server with tracking does.
    fn write(&self, id: RecordId, stamp: Stamp) {
        let mut contents = self.contents.lock().unwrap();
        contents.stamps.insert(id, stamp);
        if contents.channels.contains(&id) {
            contents.messages.push_back(id);
        }
        if let Some(waker) = contents.listener.take() {
            waker.wake();
        }
    }

    async fn subscribe(&self, ids: &[RecordId]) {
        yield_now().await;
        self.contents.lock().unwrap().channels.extend(ids);
        yield_now().await;
    }

    async fn stamp(&self, id: &RecordId) -> Option<Stamp> {
        yield_now().await;
        let stamp = self.contents.lock().unwrap().stamps.get(id).copied();
        yield_now().await;
        stamp
    }
}

impl Listener for MapServer {
    fn heartbeat_limit(&self) -> Duration {
        Duration::MAX
    }

    async fn run(self: Arc<Self>, handle: ListenerHandle) {
        self.contents.lock().unwrap().channels.clear();
        let _ = listen(&handle, &self).await;
    }
}

/// Returns a message, or `None` after a wake.
async fn next(handle: &ListenerHandle, server: &MapServer) -> Option<RecordId> {
    let mut wake = pin!(handle.woken());
    poll_fn(|context| {
        let mut contents = server.contents.lock().unwrap();
        if let Some(id) = contents.messages.pop_front() {
            return Poll::Ready(Some(id));
        }
        contents.listener = Some(context.waker().clone());
        wake.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// Listens as the real task does, but without ticks: no record is read a second time, so that a
/// missed change stays missed.
async fn listen(handle: &ListenerHandle, server: &MapServer) -> Result<Infallible, Superseded> {
    handle.request_all()?;
    loop {
        let ids = handle.take_requested()?;
        if !ids.is_empty() {
            server.subscribe(&ids).await;
            for id in &ids {
                handle.seen(id, server.stamp(id).await, true)?;
            }
        }
        if server.is_shaky && shuttle::rand::thread_rng().gen_ratio(1, 4) {
            return Err(Superseded);
        }
        if let Some(id) = next(handle, server).await {
            handle.changed(&id)?;
        }
    }
}

/// L4: A waiter learns of the change whenever it comes, and a waiter that leaves affects no other.
fn explore_waits(name: &str, count: usize, is_shaky: bool) {
    explore(name, count, move || wait(is_shaky));
}

fn wait(is_shaky: bool) {
    let server = Arc::new(MapServer { is_shaky, ..MapServer::default() });
    let (id, other) = (RecordId::from_bytes([1; 32]), RecordId::from_bytes([2; 32]));
    server.write(id, Stamp(1));
    server.write(other, Stamp(2));
    let waiters = Arc::new(Waiters::new(server.clone()));
    let waiting = |id: RecordId, stamp: u64, leaves: bool| {
        let waiters = waiters.clone();
        thread::spawn(move || {
            block_on(async {
                let wait = pin!(waiters.wait(&id, Stamp(stamp), Duration::MAX));
                if leaves {
                    drop(futures_util::future::select(wait, pin!(yield_now())).await);
                } else {
                    wait.await;
                }
            });
        })
    };
    // No message comes for the other record: it changed before.
    let threads =
        [waiting(id, 1, false), waiting(id, 1, true), waiting(id, 2, false), waiting(other, 1, false)];
    // One thread keeps the record registered, so that the others meet a listener that knows it.
    let (last, room) = (server.clone(), waiters.clone());
    let patient = thread::spawn(move || {
        while last.contents.lock().unwrap().stamps[&id] != Stamp(4) {
            block_on(room.wait(&id, Stamp(3), Duration::MAX));
            thread::yield_now();
        }
    });
    for stamp in [2, 3] {
        thread::yield_now();
        server.write(id, Stamp(stamp));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    server.write(id, Stamp(4));
    patient.join().unwrap();
}

#[test]
fn schedules_of_waits() {
    explore_waits("redis: waits for a change", 15_000, false);
}

#[test]
fn schedules_of_waits_on_a_task_that_ends() {
    explore_waits("redis: the task that listens ends", 10_000, true);
}
