//! Schedule tests of the waiters. A substitute for the listener takes the same steps towards the
//! waiters; its server is a map.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex as Plain};
use std::task::{Poll, Waker};
use std::time::Duration;

use ::redis::Client;
use shuttle::future::{block_on, yield_now};
use shuttle::rand::Rng;
use shuttle::thread;

use super::connection::Connections;
use super::records::Records;
use super::waiters::{Post, Relieved, Waiters};
use super::watch::Watch;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::sync::schedules::explore;

pub(super) const TICK: Duration = Duration::from_secs(1);

thread_local! {
    /// The server of the schedule that this thread runs.
    static SERVER: RefCell<Arc<Server>> = RefCell::default();
}

/// A server with the stamps of records, and one connection that listens.
#[derive(Default)]
struct Server {
    state: Plain<State>,
    /// True if the task may end at any moment, as with its runtime.
    is_shaky: bool,
}

#[derive(Default)]
struct State {
    stamps: HashMap<RecordId, Stamp>,
    channels: HashSet<RecordId>,
    messages: VecDeque<RecordId>,
    listener: Option<Waker>,
}

impl Server {
    /// Writes and announces the change in one step, as a server with tracking does.
    fn write(&self, id: RecordId, stamp: Stamp) {
        let mut state = self.state.lock().unwrap();
        state.stamps.insert(id, stamp);
        if state.channels.contains(&id) {
            state.messages.push_back(id);
        }
        if let Some(waker) = state.listener.take() {
            waker.wake();
        }
    }

    async fn subscribe(&self, ids: &[RecordId]) {
        yield_now().await;
        self.state.lock().unwrap().channels.extend(ids);
        yield_now().await;
    }

    async fn stamp(&self, id: &RecordId) -> Option<Stamp> {
        yield_now().await;
        let stamp = self.state.lock().unwrap().stamps.get(id).copied();
        yield_now().await;
        stamp
    }
}

pub(super) async fn run(post: Post) {
    let server = SERVER.with_borrow(Arc::clone);
    server.state.lock().unwrap().channels.clear();
    let _ = live(&post, &server).await;
}

/// Returns a message, or `None` after a wake.
async fn next(post: &Post, server: &Server) -> Option<RecordId> {
    let mut nudge = pin!(post.nudge.notified());
    poll_fn(|context| {
        let mut state = server.state.lock().unwrap();
        if let Some(id) = state.messages.pop_front() {
            return Poll::Ready(Some(id));
        }
        state.listener = Some(context.waker().clone());
        nudge.as_mut().poll(context).map(|()| None)
    })
    .await
}

/// Listens as the real task does, but without ticks: no record is read a second time, so that a
/// missed change stays missed.
async fn live(post: &Post, server: &Server) -> Result<Infallible, Relieved> {
    post.ask_for_all()?;
    loop {
        let ids = post.take_asked()?;
        if !ids.is_empty() {
            server.subscribe(&ids).await;
            for id in &ids {
                post.seen(id, server.stamp(id).await, true)?;
            }
        }
        if server.is_shaky && shuttle::rand::thread_rng().gen_ratio(1, 4) {
            return Err(Relieved);
        }
        if let Some(id) = next(post, server).await {
            post.changed(&id)?;
        }
    }
}

/// A client and records that the substitute does not use. They never connect.
fn nowhere() -> (Client, Arc<Records>) {
    let client = Client::open("redis://localhost").unwrap();
    let watch = Watch::new(None, Duration::MAX);
    let connections = Connections::new(client.clone(), [Duration::MAX; 2], watch);
    (client, Arc::new(Records { connections, prefix: Vec::new() }))
}

/// L4: A waiter learns of the change whenever it comes, and a waiter that leaves affects no other.
fn explore_waits(name: &str, count: usize, is_shaky: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _guard = runtime.enter();
    let nowhere = nowhere();
    explore(name, count, move || wait(&nowhere, is_shaky));
}

fn wait((client, records): &(Client, Arc<Records>), is_shaky: bool) {
    let server = Arc::new(Server { is_shaky, ..Server::default() });
    SERVER.with_borrow_mut(|present| present.clone_from(&server));
    let (id, other) = (RecordId::from_bytes([1; 32]), RecordId::from_bytes([2; 32]));
    server.write(id, Stamp(1));
    server.write(other, Stamp(2));
    let waiters = Arc::new(Waiters::new(records.clone(), client.clone(), [Duration::MAX; 2]));
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
        while last.state.lock().unwrap().stamps[&id] != Stamp(4) {
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
