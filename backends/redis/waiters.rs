//! The waiters for changes of records: [`Waiters`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::redis::Client;
use tokio::sync::Notify;

use super::listener;
use super::records::Records;
use super::runtime::{AbortHandle, oneshot, spawn, timeout};
use crate::key::RecordId;
use crate::record::Stamp;
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::wake::guarded;

/// The waiters of one store. A task of the first waiter's runtime listens for all of them. When
/// that runtime is gone, or no longer runs its tasks, all waiters end early and the next one starts
/// another task.
pub(super) struct Waiters(Arc<Hall>);

/// State shared by the waiters and their task.
pub(super) struct Hall {
    pub(super) records: Arc<Records>,
    pub(super) client: Client,
    /// Time-outs for connecting and for an answer.
    pub(super) limits: [Duration; 2],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    places: HashMap<RecordId, Place>,
    /// Ids of records to read.
    asked: Vec<RecordId>,
    next_number: u64,
    generation: u64,
    /// The task of this generation, unless it ended.
    task: Option<Task>,
}

struct Task {
    nudge: Arc<Notify>,
    /// A heartbeat: grows as long as the task runs.
    beats: u64,
    abort: Option<AbortHandle>,
}

/// The waiters for the same record.
#[derive(Default)]
struct Place {
    waiting: HashMap<u64, (Stamp, oneshot::Sender<()>)>,
    /// The present stamp, if a message would announce its change.
    known: Option<Stamp>,
    /// True if the id is in `asked`.
    is_asked: bool,
}

impl Waiters {
    pub(super) fn new(records: Arc<Records>, client: Client, limits: [Duration; 2]) -> Waiters {
        Waiters(Arc::new(Hall { records, client, limits, state: Mutex::default() }))
    }

    /// Returns when the record no longer has the stamp, or possibly no longer has it.
    pub(super) async fn wait(&self, id: &RecordId, stamp: Stamp, within: Duration) {
        let hall = &self.0;
        let (mut ticket, mut woken) = Hall::enter(hall, id, stamp);
        // No step of the task takes longer, unless the task is not run at all.
        let [connect, answer] = hall.limits;
        let stall = connect.saturating_add(answer).saturating_add(listener::TICK * 2);
        let mut left = within;
        while !left.is_zero() {
            let step = left.min(stall);
            // The listener's task wakes all waiters.
            if guarded(timeout(step, &mut woken)).await.is_ok() {
                return;
            }
            left = left.saturating_sub(step);
            let beats = hall.beats(ticket.generation);
            if step == stall && beats == ticket.beats {
                return hall.retire(ticket.generation);
            }
            ticket.beats = beats;
        }
    }
}

impl Drop for Waiters {
    fn drop(&mut self) {
        let task = self.0.lock().task.take();
        if let Some(abort) = task.and_then(|task| task.abort) {
            abort.abort();
        }
    }
}

/// The registration of a waiter. Dropping it removes the waiter.
struct Ticket {
    hall: Arc<Hall>,
    id: RecordId,
    number: u64,
    generation: u64,
    beats: Option<u64>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.hall.lock();
        let Some(place) = state.places.get_mut(&self.id) else { return };
        let own = place.waiting.remove(&self.number);
        if place.waiting.is_empty() {
            state.places.remove(&self.id);
        }
        drop(state);
        drop(own); // it may wake somebody, as below
    }
}

impl Hall {
    fn enter(hall: &Arc<Hall>, id: &RecordId, stamp: Stamp) -> (Ticket, oneshot::Receiver<()>) {
        let (sender, woken) = oneshot::channel();
        let mut state = hall.lock();
        let number = state.next_number;
        state.next_number += 1;
        let place = state.places.entry(*id).or_default();
        place.waiting.insert(number, (stamp, sender));
        // If the stamp is known to be current and the server announces its change, there is nothing
        // to read.
        if place.known != Some(stamp) && !place.is_asked {
            place.is_asked = true;
            state.asked.push(*id);
        }
        if let Some(task) = &state.task {
            task.nudge.notify_one();
            let (generation, beats) = (state.generation, Some(task.beats));
            return (Ticket { hall: Arc::clone(hall), id: *id, number, generation, beats }, woken);
        }
        let nudge = Arc::new(Notify::new());
        state.generation += 1;
        state.task = Some(Task { nudge: Arc::clone(&nudge), beats: 0, abort: None });
        let generation = state.generation;
        // A runtime that shuts down drops the task at once, which takes the lock.
        drop(state);
        let ticket = Ticket { hall: Arc::clone(hall), id: *id, number, generation, beats: Some(0) };
        let post = Post { hall: Arc::clone(hall), generation, nudge };
        let abort = spawn(listener::run(post));
        if let Some(task) = hall.lock().current(generation) {
            task.abort = Some(abort);
        }
        (ticket, woken)
    }

    fn beats(&self, generation: u64) -> Option<u64> {
        self.lock().current(generation).map(|task| task.beats)
    }

    /// Retires the task of this generation: all waiters end, and the next one starts another task.
    fn retire(&self, generation: u64) {
        let mut state = self.lock();
        if state.current(generation).is_some() {
            state.task = None;
            state.asked.clear();
            let ended = std::mem::take(&mut state.places);
            // A woken waiter may call back into this state, so the lock is released first.
            drop(state);
            drop(ended);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn current(&mut self, generation: u64) -> Option<&mut Task> {
        let is_current = self.generation == generation;
        self.task.as_mut().filter(|_| is_current)
    }
}

/// The handle of a task of one generation on the shared state. It is dropped with the task, however
/// that ends.
pub(super) struct Post {
    pub(super) hall: Arc<Hall>,
    pub(super) nudge: Arc<Notify>,
    generation: u64,
}

/// Another task has taken over, or the store is gone.
pub(super) struct Relieved;

impl Post {
    /// Locks the state if this task still serves it.
    fn state(&self) -> Result<MutexGuard<'_, State>, Relieved> {
        let mut state = self.hall.lock();
        let task = state.current(self.generation).ok_or(Relieved)?;
        task.beats += 1;
        Ok(state)
    }

    /// Marks all records as to be read: there is a new connection, or none.
    pub(super) fn ask_for_all(&self) -> Result<(), Relieved> {
        let mut state = self.state()?;
        state.asked = state.places.keys().copied().collect();
        for place in state.places.values_mut() {
            (place.known, place.is_asked) = (None, true);
        }
        Ok(())
    }

    /// Takes the ids of the records to read that still have waiters. A later waiter marks its
    /// record again.
    pub(super) fn take_asked(&self) -> Result<Vec<RecordId>, Relieved> {
        let mut state = self.state()?;
        let mut asked = std::mem::take(&mut state.asked);
        asked.retain(|id| state.places.get_mut(id).is_some_and(|place| std::mem::take(&mut place.is_asked)));
        Ok(asked)
    }

    /// Returns the ids of all records that have waiters.
    pub(super) fn all(&self) -> Result<Vec<RecordId>, Relieved> {
        Ok(self.state()?.places.keys().copied().collect())
    }

    /// Reports that the record was seen with this stamp (`None`: it may be anything); `is_live` if
    /// a message would announce its change. A waiter that registered after that read, with a later
    /// stamp, ends early.
    pub(super) fn seen(&self, id: &RecordId, stamp: Option<Stamp>, is_live: bool) -> Result<(), Relieved> {
        let mut state = self.state()?;
        if let Some(place) = state.places.get_mut(id) {
            place.known = stamp.filter(|_| is_live);
            let ended = place.waiting.extract_if(|_, (expected, _)| Some(*expected) != stamp);
            let ended: Vec<_> = ended.collect();
            drop(state);
            drop(ended);
        }
        Ok(())
    }

    /// Reports that a message announced a change of the record.
    pub(super) fn changed(&self, id: &RecordId) -> Result<(), Relieved> {
        let ended = self.state()?.places.remove(id);
        drop(ended);
        Ok(())
    }

    /// Ends the task if there are no waiters.
    pub(super) fn leave(&self) -> Result<(), Relieved> {
        let mut state = self.state()?;
        if state.places.is_empty() {
            state.task = None;
            return Err(Relieved);
        }
        Ok(())
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        self.hall.retire(self.generation);
    }
}
