//! The callers waiting for records to change: [`Waiters`].
//!
//! No change is missed, because a caller registers first and then reads the record. A change before
//! the read is seen by it; a change after the read finds the waiter registered. Wakers are called
//! and dropped outside the lock, because both may run application code that calls back into this
//! module.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::error::{Error, Result};
use super::oneshot;
use crate::key::RecordId;
use crate::record::Stamp;
use crate::sync::atomic::{AtomicUsize, Ordering, fence};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};

type Ending = Result<()>;

/// The waiters of one store.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    /// The number of waiters, readable without the lock.
    present: AtomicUsize,
    state: Mutex<State>,
    /// Notified when the watcher has a reason to stop resting.
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: HashMap<RecordId, BTreeMap<u64, Waiter>>,
    /// The number of the next waiter.
    next: u64,
    /// True if there is a watcher.
    watched: bool,
    /// True if the watcher is idle until a waiter registers.
    resting: bool,
    closed: bool,
}

#[derive(Debug)]
struct Waiter {
    /// The stamp of its record, as far as it knows.
    stamp: Stamp,
    ended: oneshot::Sender<Ending>,
}

/// Waiters to be woken, already unregistered.
#[derive(Debug, Default)]
#[must_use = "whoever is not woken waits on"]
pub(super) struct Woken(Vec<Waiter>);

/// The records to check: those with waiters, and the number of the first waiter registered too late
/// for this check.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) ids: Vec<RecordId>,
    before: u64,
}

impl Waiters {
    /// Returns true if there are waiters. The writer calls this after a commit: a waiter not yet
    /// counted reads its record later, and sees the commit.
    pub(super) fn any(&self) -> bool {
        fence(Ordering::SeqCst);
        self.present.load(Ordering::SeqCst) > 0
    }

    /// Returns the number of waiters.
    pub(super) fn count(&self) -> usize {
        self.present.load(Ordering::SeqCst)
    }

    /// Registers a waiter for the record under `id` to have another stamp. The caller must read the
    /// record after this.
    pub(super) fn register(self: &Arc<Self>, id: RecordId, stamp: Stamp) -> Ticket {
        let (ended, end) = oneshot::channel();
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.waiting.entry(id).or_default().insert(number, Waiter { stamp, ended });
        self.present.fetch_add(1, Ordering::SeqCst);
        drop(state);
        fence(Ordering::SeqCst);
        Ticket { waiters: self.clone(), id, number, end }
    }

    /// Takes out the waiters for the records in `written`, which now have these stamps.
    pub(super) fn take_written(&self, written: &[(RecordId, Stamp)]) -> Woken {
        let mut woken = Woken::default();
        let mut state = self.lock();
        for (id, stamp) in written {
            self.take(&mut state, id, |_, waiter| waiter.stamp != *stamp, &mut woken);
        }
        woken
    }

    /// Returns the records that have waiters at present.
    pub(super) fn watched(&self) -> Watched {
        let state = self.lock();
        Watched { ids: state.waiting.keys().copied().collect(), before: state.next }
    }

    /// Takes out the waiters for the records in `watched` that were later found with a stamp other
    /// than the one the waiter knows.
    pub(super) fn take_changed(&self, watched: &Watched, stamps: &[Option<Stamp>]) -> Woken {
        let mut woken = Woken::default();
        let mut state = self.lock();
        for (id, stamp) in watched.ids.iter().zip(stamps) {
            let changed =
                |number: u64, waiter: &Waiter| number < watched.before && Some(waiter.stamp) != *stamp;
            self.take(&mut state, id, changed, &mut woken);
        }
        woken
    }

    fn take(
        &self,
        state: &mut State,
        id: &RecordId,
        which: impl Fn(u64, &Waiter) -> bool,
        woken: &mut Woken,
    ) {
        let Some(waiting) = state.waiting.get_mut(id) else { return };
        let found = waiting.iter().filter(|(number, waiter)| which(**number, waiter));
        let numbers: Vec<u64> = found.map(|(number, _)| *number).collect();
        woken.0.extend(numbers.iter().filter_map(|number| waiting.remove(number)));
        if waiting.is_empty() {
            state.waiting.remove(id);
        }
        self.present.fetch_sub(numbers.len(), Ordering::SeqCst);
    }

    fn remove(&self, id: &RecordId, number: u64) -> Option<Waiter> {
        let mut state = self.lock();
        let waiting = state.waiting.get_mut(id)?;
        let removed = waiting.remove(&number)?;
        if waiting.is_empty() {
            state.waiting.remove(id);
        }
        self.present.fetch_sub(1, Ordering::SeqCst);
        Some(removed)
    }

    fn take_all(&self, state: &mut State) -> Woken {
        let all = std::mem::take(&mut state.waiting);
        self.present.store(0, Ordering::SeqCst);
        Woken(all.into_values().flat_map(BTreeMap::into_values).collect())
    }

    /// Ends all waits with an error.
    pub(super) fn fail(&self, error: &Error) {
        let all = self.take_all(&mut self.lock());
        for waiter in all.0 {
            let _ = waiter.ended.send(Err(error.clone()));
        }
    }

    /// Blocks until there is a waiter. Returns false once the store is closed.
    pub(super) fn rest(&self) -> bool {
        let mut state = self.lock();
        while state.waiting.is_empty() && !state.closed {
            state.resting = true;
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.resting = false;
        !state.closed
    }

    #[cfg(test)]
    pub(super) fn rests(&self) -> bool {
        self.lock().resting
    }

    /// Sleeps for some time, less if the store is closed.
    pub(super) fn pause(&self, time: Duration) {
        let state = self.lock();
        if !state.closed {
            drop(self.news.wait_timeout(state, time));
        }
    }

    /// Wakes the watcher if it rests. If there is no watcher, returns the guard with which the
    /// caller must become or start one.
    pub(super) fn rouse(self: &Arc<Self>) -> Option<LastWord> {
        let mut state = self.lock();
        if !state.watched {
            state.watched = true;
            return Some(LastWord(self.clone()));
        }
        if state.resting {
            self.news.notify_all();
        }
        None
    }

    /// Closes the store's waiters: there will be no more.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.news.notify_all();
    }

    /// Takes the lock, ignoring poison: every change to the state is complete before anything can
    /// panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Woken {
    pub(super) fn wake(self) {
        for waiter in self.0 {
            let _ = waiter.ended.send(Ok(()));
        }
    }
}

/// A registered waiter. Dropping it unregisters it.
#[derive(Debug)]
#[must_use = "dropping it ends the wait"]
pub(super) struct Ticket {
    waiters: Arc<Waiters>,
    id: RecordId,
    number: u64,
    end: oneshot::Receiver<Ending>,
}

impl Ticket {
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Ending> {
        let end = Pin::new(&mut self.end);
        end.poll(context).map(|ended| match ended {
            Ok(ending) => ending,
            Err(oneshot::Canceled) => Err(Error::unavailable("nobody watches its file any more")),
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let removed = self.waiters.remove(&self.id, self.number);
        drop(removed);
    }
}

/// A guard held by the watcher. However the watcher ends, dropping the guard ends all waits.
#[derive(Debug)]
pub(super) struct LastWord(Arc<Waiters>);

impl Drop for LastWord {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.watched = false;
        let all = self.0.take_all(&mut state);
        drop(state);
        drop(all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::StoreError;

    const ID: RecordId = RecordId::from_bytes([7; 32]);

    fn ended(ticket: &mut Ticket) -> bool {
        ticket.poll(&mut Context::from_waker(std::task::Waker::noop())).is_ready()
    }

    #[test]
    fn dropped_and_woken_waiters_leave_nothing_behind() {
        let waiters = Arc::new(Waiters::default());
        let mut tickets: Vec<Ticket> = (0..10).map(|_| waiters.register(ID, Stamp(1))).collect();
        assert_eq!(waiters.count(), 10);
        tickets.truncate(4);
        assert_eq!(waiters.count(), 4);
        waiters.take_written(&[(ID, Stamp(2)), (ID, Stamp(3))]).wake();
        assert!(tickets.iter_mut().all(ended));
        drop(tickets);
        assert!(!waiters.any() && waiters.lock().waiting.is_empty());
    }

    #[test]
    fn only_whoever_knows_another_stamp_and_came_before_the_look_is_woken() {
        let waiters = Arc::new(Waiters::default());
        let (mut old, mut new) = (waiters.register(ID, Stamp(1)), waiters.register(ID, Stamp(2)));
        let watched = waiters.watched();
        let mut later = waiters.register(ID, Stamp(3));
        waiters.take_changed(&watched, &[Some(Stamp(2))]).wake();
        assert!(ended(&mut old) && !ended(&mut new) && !ended(&mut later));
        waiters.take_changed(&waiters.watched(), &[None]).wake();
        assert!(ended(&mut new) && ended(&mut later));
    }

    #[test]
    fn whoever_waits_hears_of_a_watcher_that_is_gone() {
        let waiters = Arc::new(Waiters::default());
        let mut ticket = waiters.register(ID, Stamp(1));
        let watcher = waiters.rouse();
        assert!(watcher.is_some() && waiters.rouse().is_none());
        drop(watcher);
        let end = ticket.poll(&mut Context::from_waker(std::task::Waker::noop()));
        assert!(matches!(end, Poll::Ready(Err(Error::Store(StoreError::Unavailable { .. })))));
        assert!(!waiters.any() && waiters.rouse().is_some());
    }
}
