//! The waiters for changes of records: [`Waiters`].

#[cfg(all(test, nevertwice_shuttle))]
mod schedules;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::runtime::{AbortHandle, oneshot, spawn, timeout};
use crate::key::RecordId;
use crate::record::Stamp;
use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::wake::guarded;

/// The waiters of one store. A task of the first waiter's runtime listens for all of them. When
/// that runtime is gone, or no longer runs its tasks, all waiters end early and the next one starts
/// another task.
pub(crate) struct Waiters<L> {
    listener: Arc<L>,
    shared: Arc<Shared>,
}

/// The work of the task that learns of changes.
pub(crate) trait Listener: Send + Sync + 'static {
    /// Upper bound on the time between two heartbeats of a task that is run at all.
    fn heartbeat_limit(&self) -> Duration;

    /// Serves the waiters until the handle is superseded.
    fn run(self: Arc<Self>, handle: ListenerHandle) -> impl Future<Output = ()> + Send;
}

/// State shared by the waiters and their task.
#[derive(Default)]
struct Shared(Mutex<Registry>);

#[derive(Default)]
struct Registry {
    records: HashMap<RecordId, RecordWaiters>,
    /// Ids of records to read.
    requested: Vec<RecordId>,
    next_number: u64,
    generation: u64,
    /// The task of this generation, unless it ended.
    task: Option<ListenerTask>,
}

struct ListenerTask {
    wake: Arc<Notify>,
    /// Grows as long as the task runs.
    heartbeats: u64,
    abort: Option<AbortHandle>,
}

/// The waiters for the same record.
#[derive(Default)]
struct RecordWaiters {
    waiting: HashMap<u64, (Stamp, oneshot::Sender<()>)>,
    /// The present stamp, if a message would announce its change.
    known: Option<Stamp>,
    /// True if the id is in `requested`.
    is_requested: bool,
}

impl<L: Listener> Waiters<L> {
    pub(crate) fn new(listener: Arc<L>) -> Waiters<L> {
        Waiters { listener, shared: Arc::default() }
    }

    /// Returns true once the record no longer has the stamp, or possibly no longer has it, and
    /// false if the time is over.
    pub(crate) async fn wait(&self, id: &RecordId, stamp: Stamp, within: Duration) -> bool {
        let (mut ticket, mut woken) = self.register(id, stamp);
        let stall = self.listener.heartbeat_limit();
        let mut left = within;
        while !left.is_zero() {
            let step = left.min(stall);
            // The listener's task wakes all waiters.
            if guarded(timeout(step, &mut woken)).await.is_ok() {
                return true;
            }
            left = left.saturating_sub(step);
            let heartbeats = self.shared.heartbeats(ticket.generation);
            if step == stall && heartbeats == ticket.heartbeats {
                self.shared.retire(ticket.generation);
                return true;
            }
            ticket.heartbeats = heartbeats;
        }
        false
    }

    /// Returns the time after which a wait notices that the listener has stopped.
    #[cfg(feature = "redis")]
    pub(crate) fn heartbeat_limit(&self) -> Duration {
        self.listener.heartbeat_limit()
    }

    /// Ends all waits: the records may be served elsewhere from now on.
    #[cfg(feature = "redis")]
    pub(crate) fn wake_all(&self) {
        let ended = std::mem::take(&mut self.shared.lock().records);
        // A woken waiter may call back, so the lock is released first.
        drop(ended);
    }

    /// Ends the waits for some of the records.
    #[cfg(feature = "redis")]
    pub(crate) fn wake_where(&self, is_meant: impl Fn(&RecordId) -> bool) {
        let ended: Vec<_> = self.shared.lock().records.extract_if(|id, _| is_meant(id)).collect();
        drop(ended);
    }

    /// Wakes the waiters of a record that this store has just changed itself.
    #[cfg(feature = "postgres")]
    pub(crate) fn changed(&self, id: &RecordId) {
        let mut registry = self.shared.lock();
        if registry.records.is_empty() {
            return;
        }
        let ended = registry.records.remove(id);
        drop(registry);
        drop(ended);
    }

    fn register(&self, id: &RecordId, stamp: Stamp) -> (Ticket, oneshot::Receiver<()>) {
        let (sender, woken) = oneshot::channel();
        let mut registry = self.shared.lock();
        let number = registry.next_number;
        registry.next_number += 1;
        let record = registry.records.entry(*id).or_default();
        record.waiting.insert(number, (stamp, sender));
        // If the stamp is known to be current and the server announces its change, there is nothing
        // to read.
        if record.known != Some(stamp) && !record.is_requested {
            record.is_requested = true;
            registry.requested.push(*id);
        }
        let (shared, id) = (Arc::clone(&self.shared), *id);
        if let Some(task) = &registry.task {
            task.wake.notify_one();
            let (generation, heartbeats) = (registry.generation, Some(task.heartbeats));
            drop(registry);
            return (Ticket { shared, id, number, generation, heartbeats }, woken);
        }
        let wake = Arc::new(Notify::new());
        registry.generation += 1;
        registry.task = Some(ListenerTask { wake: Arc::clone(&wake), heartbeats: 0, abort: None });
        let generation = registry.generation;
        // A runtime that shuts down drops the task at once, which takes the lock.
        drop(registry);
        let ticket = Ticket { shared, id, number, generation, heartbeats: Some(0) };
        let handle = ListenerHandle { shared: Arc::clone(&self.shared), generation, wake };
        let abort = spawn(Arc::clone(&self.listener).run(handle));
        if let Some(task) = self.shared.lock().current(generation) {
            task.abort = Some(abort);
        }
        (ticket, woken)
    }
}

impl<L> Drop for Waiters<L> {
    fn drop(&mut self) {
        let task = self.shared.lock().task.take();
        if let Some(abort) = task.and_then(|task| task.abort) {
            abort.abort();
        }
    }
}

/// The registration of a waiter. Dropping it removes the waiter.
struct Ticket {
    shared: Arc<Shared>,
    id: RecordId,
    number: u64,
    generation: u64,
    heartbeats: Option<u64>,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut registry = self.shared.lock();
        let Some(record) = registry.records.get_mut(&self.id) else { return };
        let own = record.waiting.remove(&self.number);
        if record.waiting.is_empty() {
            registry.records.remove(&self.id);
        }
        drop(registry);
        drop(own); // it may wake a task, as below
    }
}

impl Shared {
    fn heartbeats(&self, generation: u64) -> Option<u64> {
        self.lock().current(generation).map(|task| task.heartbeats)
    }

    /// Retires the task of this generation: all waiters end, and the next one starts another task.
    fn retire(&self, generation: u64) {
        let mut registry = self.lock();
        if registry.current(generation).is_some() {
            registry.task = None;
            registry.requested.clear();
            let ended = std::mem::take(&mut registry.records);
            // A woken waiter may call back into this registry, so the lock is released first.
            drop(registry);
            drop(ended);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    fn current(&mut self, generation: u64) -> Option<&mut ListenerTask> {
        let is_current = self.generation == generation;
        self.task.as_mut().filter(|_| is_current)
    }
}

/// The access of a task of one generation to the waiters. It is dropped with the task, however that
/// ends.
pub(crate) struct ListenerHandle {
    shared: Arc<Shared>,
    wake: Arc<Notify>,
    generation: u64,
}

/// The task has to end: another one has taken over, or the store is gone.
pub(crate) struct Superseded;

impl ListenerHandle {
    /// Locks the registry if this task still serves it.
    fn lock(&self) -> Result<MutexGuard<'_, Registry>, Superseded> {
        let mut registry = self.shared.lock();
        let task = registry.current(self.generation).ok_or(Superseded)?;
        task.heartbeats += 1;
        Ok(registry)
    }

    /// Returns once a waiter has registered.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Requests all records: there is a new connection, or none.
    pub(crate) fn request_all(&self) -> Result<(), Superseded> {
        let mut registry = self.lock()?;
        registry.requested = registry.records.keys().copied().collect();
        for record in registry.records.values_mut() {
            (record.known, record.is_requested) = (None, true);
        }
        Ok(())
    }

    /// Takes the ids of the records to read that still have waiters. A later waiter requests its
    /// record again.
    pub(crate) fn take_requested(&self) -> Result<Vec<RecordId>, Superseded> {
        let mut registry = self.lock()?;
        let mut ids = std::mem::take(&mut registry.requested);
        ids.retain(|id| {
            let record = registry.records.get_mut(id);
            record.is_some_and(|record| std::mem::take(&mut record.is_requested))
        });
        Ok(ids)
    }

    /// Returns the ids of all records that have waiters.
    pub(crate) fn ids(&self) -> Result<Vec<RecordId>, Superseded> {
        Ok(self.lock()?.records.keys().copied().collect())
    }

    /// Returns those of the ids whose records have waiters.
    #[cfg(feature = "redis")]
    pub(crate) fn awaited(&self, ids: impl Iterator<Item = RecordId>) -> Result<Vec<RecordId>, Superseded> {
        let registry = self.lock()?;
        Ok(ids.filter(|id| registry.records.contains_key(id)).collect())
    }

    /// Reports that the record was seen with this stamp (`None`: it may be anything); `is_live` if
    /// a message would announce its change. A waiter that registered after that read, with a later
    /// stamp, ends early.
    pub(crate) fn seen(&self, id: &RecordId, stamp: Option<Stamp>, is_live: bool) -> Result<(), Superseded> {
        let mut registry = self.lock()?;
        if let Some(record) = registry.records.get_mut(id) {
            record.known = stamp.filter(|_| is_live);
            let ended = record.waiting.extract_if(|_, (expected, _)| Some(*expected) != stamp);
            let ended: Vec<_> = ended.collect();
            drop(registry);
            drop(ended);
        }
        Ok(())
    }

    /// Reports that a message announced a change of the record.
    pub(crate) fn changed(&self, id: &RecordId) -> Result<(), Superseded> {
        let ended = self.lock()?.records.remove(id);
        drop(ended);
        Ok(())
    }

    /// Ends the task if there are no waiters.
    pub(crate) fn leave(&self) -> Result<(), Superseded> {
        let mut registry = self.lock()?;
        if registry.records.is_empty() {
            registry.task = None;
            return Err(Superseded);
        }
        Ok(())
    }
}

impl Drop for ListenerHandle {
    fn drop(&mut self) {
        self.shared.retire(self.generation);
    }
}

#[cfg(all(test, feature = "redis", not(nevertwice_shuttle)))]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// A listener to which nothing is announced.
    struct Deaf;

    impl Listener for Deaf {
        fn heartbeat_limit(&self) -> Duration {
            Duration::from_secs(3600)
        }

        async fn run(self: Arc<Deaf>, _handle: ListenerHandle) {
            std::future::pending::<()>().await;
        }
    }

    /// Ten thousand of them would ask again for each slot that moves.
    #[test]
    fn l4_only_the_waiters_that_are_meant_are_woken() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let waiters = Waiters::new(Arc::new(Deaf));
            let [moved, stays] = [1, 2].map(|byte| RecordId::from_bytes([byte; 32]));
            let wait = |id: RecordId| {
                let waiters = &waiters;
                Box::pin(async move { waiters.wait(&id, Stamp(1), Duration::from_secs(3600)).await })
            };
            let (mut first, mut second) = (wait(moved), wait(stays));
            assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
            waiters.wake_where(|id| *id == moved);
            assert!(first.await);
            assert!((&mut second).now_or_never().is_none());
            waiters.wake_all();
            assert!(second.await);
        });
    }
}
