//! The network to the store: every call is a message that arrives late, twice or not at all, even
//! if its sender has gone. The store behind it is a real one.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use nevertwice::store::{DecodeError, Page, Purge, Snapshot, Store, Swap, SwapRequest};
use nevertwice::{Cursor, Durability, MemoryStore, RecordId, Stamp, StoreError};

use super::executor::lock;
use super::ledger::CallId;
use super::world::World;

/// A process's connection to its store.
pub(crate) struct Connection {
    pub(crate) world: Arc<World>,
    pub(crate) process: usize,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.process)
    }
}

/// The messages in flight.
#[derive(Default)]
pub(crate) struct Wire {
    sent: u64,
    queue: BTreeMap<(u64, u64), Event>,
}

enum Event {
    Request { call: CallId, op: Op, answer: Option<Address>, whole: bool },
    Answer(Address, Reply),
}

type Reply = Result<Found, StoreError>;
type Address = Arc<Mutex<Mailbox>>;

#[derive(Default)]
struct Mailbox {
    reply: Option<Reply>,
    waker: Option<Waker>,
}

#[derive(Clone)]
enum Op {
    Load(RecordId),
    Swap(Vec<SwapRequest>),
    Scan(Option<Cursor>, usize),
    Unsettled(Option<Cursor>, usize),
    Purge(usize),
    Discard(RecordId),
}

enum Found {
    Snapshot(Snapshot),
    Swaps(Vec<Result<Swap, StoreError>>),
    Page(Page),
    Purged(Purge),
    Discarded(bool),
}

/// The fate of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    Fine,
    /// It is not executed, and the error leaves the outcome unknown.
    FailsBefore,
    /// It is executed (a batch perhaps in part), and the error leaves the outcome unknown.
    FailsAfter,
    RequestLost,
    AnswerLost,
    /// It is executed much later, even if its caller no longer waits.
    Late,
    /// It fails at once and is executed much later.
    FailsThenDone,
    /// It is executed twice in a row; only the second answer is returned.
    Repeated,
    /// It is executed and answered, and executed again much later.
    Echoed,
    /// The record cannot be decoded.
    Damaged,
}

pub(crate) const FAULTS: [Fate; 9] = [
    Fate::FailsBefore,
    Fate::FailsAfter,
    Fate::RequestLost,
    Fate::AnswerLost,
    Fate::Late,
    Fate::FailsThenDone,
    Fate::Repeated,
    Fate::Echoed,
    Fate::Damaged,
];

fn unavailable() -> StoreError {
    StoreError::Unavailable { backend: "simulated store", detail: "as drawn".to_owned() }
}

/// The error for a damaged record, under a dummy id that no check reads.
fn damaged() -> StoreError {
    let source = DecodeError::Damaged { what: "as drawn" };
    StoreError::Corrupt { backend: "simulated store", id: RecordId::from_bytes([0; 32]), source }
}

impl Wire {
    fn put(&mut self, at: u64, event: Event) {
        self.sent += 1;
        self.queue.insert((at, self.sent), event);
    }

    pub(crate) fn next(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }
}

impl World {
    /// Executes every message that is due.
    pub(crate) fn deliver(&self) {
        loop {
            let mut wire = lock(&self.wire);
            let Some(first) = wire.queue.first_entry().filter(|first| first.key().0 <= self.time.now())
            else {
                return;
            };
            let event = first.remove();
            drop(wire);
            match event {
                Event::Request { call, op, answer, whole } => {
                    let reply = self.carry_out(call, op, whole);
                    // Two writes at one moment would force the store to set its clock forward.
                    self.time.pass_until(self.time.now() + 1);
                    if let Some(address) = answer {
                        let at = self.time.now() + self.latency();
                        lock(&self.wire).put(at, Event::Answer(address, reply));
                    }
                }
                Event::Answer(address, reply) => {
                    let mut mailbox = lock(&address);
                    mailbox.reply = Some(reply);
                    mailbox.waker.take().into_iter().for_each(Waker::wake);
                }
            }
        }
    }

    fn carry_out(&self, call: CallId, op: Op, whole: bool) -> Reply {
        let answered = "a memory store answers at once";
        match op {
            Op::Load(id) => {
                let snapshot = self.store.load(&id).now_or_never().expect(answered)?;
                lock(&self.ledger).read(&id, &snapshot);
                Ok(Found::Snapshot(snapshot))
            }
            Op::Swap(swaps) => {
                let part = if whole { swaps.len() } else { self.dice.below(swaps.len() + 1) };
                let swaps: Vec<SwapRequest> = swaps.into_iter().take(part).collect();
                let answers = self.store.swap_many(&swaps).now_or_never().expect(answered);
                for (swap, answer) in swaps.iter().zip(&answers) {
                    lock(&self.ledger).swapped(call, swap, answer, self.time.now());
                }
                Ok(Found::Swaps(answers))
            }
            Op::Scan(after, limit) => {
                let page = self.store.scan(after.as_ref(), limit).now_or_never().expect(answered)?;
                Ok(Found::Page(page))
            }
            Op::Unsettled(after, limit) => {
                let page = self.store.unsettled(after.as_ref(), limit).now_or_never().expect(answered)?;
                Ok(Found::Page(page))
            }
            Op::Purge(limit) => Ok(Found::Purged(self.store.purge(limit).now_or_never().expect(answered)?)),
            Op::Discard(id) => {
                let existed = self.store.discard(&id).now_or_never().expect(answered)?;
                lock(&self.ledger).discarded(call, &id, self.store_now(), self.time.now());
                Ok(Found::Discarded(existed))
            }
        }
    }

    /// The store's current time.
    pub(crate) fn store_now(&self) -> u64 {
        let nobody = RecordId::from_bytes([0xff; 32]);
        let look: Result<Snapshot, StoreError> =
            self.store.load(&nobody).now_or_never().expect("a memory store answers at once");
        look.expect("a memory store never fails a load").now.0
    }
}

impl Connection {
    async fn call(&self, op: Op) -> Reply {
        let world = &self.world;
        let fate = world.fate(self.process);
        world.note("sent", [self.process as u64, fate as u64, 0]);
        let send = |after: u64, op: Op, answer: Option<&Address>, whole: bool| {
            let at = world.time.now() + after;
            let event = Event::Request { call: world.current(), op, answer: answer.map(Arc::clone), whole };
            lock(&world.wire).put(at, event);
        };
        let mailbox = Address::default();
        let (soon, late) = (world.latency(), world.dice.any_time(world.setup.latest));
        match fate {
            Fate::Fine => send(soon, op, Some(&mailbox), true),
            Fate::Late => send(late, op, Some(&mailbox), true),
            Fate::RequestLost => {}
            Fate::AnswerLost => send(soon, op, None, true),
            Fate::FailsBefore | Fate::Damaged => {}
            Fate::FailsAfter => send(soon, op, None, false),
            Fate::FailsThenDone => send(late, op, None, true),
            Fate::Repeated => {
                send(soon, op.clone(), None, true);
                send(soon, op, Some(&mailbox), true);
            }
            Fate::Echoed => {
                send(soon, op.clone(), Some(&mailbox), true);
                send(late, op, None, true);
            }
        }
        let failed = match fate {
            Fate::FailsBefore | Fate::FailsAfter | Fate::FailsThenDone => Some(unavailable()),
            Fate::Damaged => Some(damaged()),
            _ => None,
        };
        if let Some(error) = failed {
            let back = if fate == Fate::FailsAfter { soon + world.latency() } else { soon };
            world.time.timer(back).await;
            return Err(error);
        }
        poll_fn(|context| {
            let mut mailbox = lock(&mailbox);
            mailbox.waker = Some(context.waker().clone());
            mailbox.reply.take().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

#[async_trait]
impl Store for Connection {
    async fn load(&self, id: &RecordId) -> Result<Snapshot, StoreError> {
        match self.call(Op::Load(*id)).await? {
            Found::Snapshot(snapshot) => Ok(snapshot),
            _ => unreachable!("a load is answered by a snapshot"),
        }
    }

    async fn swap(&self, swap: &SwapRequest) -> Result<Swap, StoreError> {
        self.swap_many(std::slice::from_ref(swap)).await.pop().expect("one swap has one answer")
    }

    async fn swap_many(&self, swaps: &[SwapRequest]) -> Vec<Result<Swap, StoreError>> {
        match self.call(Op::Swap(swaps.to_vec())).await {
            Ok(Found::Swaps(answers)) => answers,
            Ok(_) => unreachable!("swaps are answered by swaps"),
            Err(StoreError::Corrupt { .. }) => swaps.iter().map(|_| Err(damaged())).collect(),
            Err(_) => swaps.iter().map(|_| Err(unavailable())).collect(),
        }
    }

    async fn changed(&self, id: &RecordId, stamp: Stamp, within: Duration) -> Result<(), StoreError> {
        let world = &self.world;
        let fate = world.fate(self.process);
        world.note("watch", [self.process as u64, fate as u64, 0]);
        world.time.timer(world.latency()).await;
        match fate {
            Fate::Fine => MemoryStore::changed(&world.store, id, stamp, within).await?,
            Fate::FailsBefore | Fate::FailsAfter | Fate::FailsThenDone | Fate::Damaged => {
                return Err(unavailable());
            }
            Fate::RequestLost | Fate::AnswerLost => std::future::pending::<()>().await,
            Fate::Late => world.time.timer(world.dice.any_time(world.setup.latest)).await,
            Fate::Repeated | Fate::Echoed => {}
        }
        world.time.timer(world.latency()).await;
        Ok(())
    }

    async fn scan(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        match self.call(Op::Scan(after.cloned(), limit)).await? {
            Found::Page(page) => Ok(page),
            _ => unreachable!("a scan is answered by a page"),
        }
    }

    async fn unsettled(&self, after: Option<&Cursor>, limit: usize) -> Result<Page, StoreError> {
        match self.call(Op::Unsettled(after.cloned(), limit)).await? {
            Found::Page(page) => Ok(page),
            _ => unreachable!("a listing is answered by a page"),
        }
    }

    fn finds_unsettled(&self) -> bool {
        self.world.store.finds_unsettled()
    }

    async fn purge(&self, limit: usize) -> Result<Purge, StoreError> {
        match self.call(Op::Purge(limit)).await? {
            Found::Purged(purge) => Ok(purge),
            _ => unreachable!("a purge is answered by a count"),
        }
    }

    async fn discard(&self, id: &RecordId) -> Result<bool, StoreError> {
        match self.call(Op::Discard(*id)).await? {
            Found::Discarded(existed) => Ok(existed),
            _ => unreachable!("a discard is answered by whether there was anything"),
        }
    }

    fn durability(&self) -> Durability {
        self.world.store.durability()
    }

    fn name(&self) -> &'static str {
        "simulated"
    }
}
