//! The callers waiting for records to change: [`Waiters`].
//!
//! No change is missed, because a caller registers first and then reads the record. A change before
//! the read is seen by it; a change after the read finds the waiter registered. Wakers are called
//! and dropped outside the lock, because both may run application code that calls back into this
//! module.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use super::error::{Error, Result};
use super::oneshot;
use crate::backends::shared::Registry;
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
    /// Notified when an idle watcher has something to do.
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Registry<Waiter>,
    /// True if there is a watcher.
    has_watcher: bool,
    /// True if the watcher sleeps until a waiter registers.
    is_idle: bool,
    is_closed: bool,
}

#[derive(Debug)]
struct Waiter {
    /// The stamp of its record, as far as it knows.
    stamp: Stamp,
    ended: oneshot::Sender<Ending>,
}

/// Waiters to be woken, already unregistered.
#[derive(Debug, Default)]
#[must_use = "a waiter that is not woken waits on"]
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
        let number = state.waiting.register(&id, Waiter { stamp, ended });
        self.present.fetch_add(1, Ordering::SeqCst);
        drop(state);
        fence(Ordering::SeqCst);
        Ticket { waiters: self.clone(), id, number, end }
    }

    /// Takes out the waiters for the records in `written`, which now have these stamps.
    pub(super) fn take_written(&self, written: &[(RecordId, Stamp)]) -> Woken {
        self.take(|waiting| {
            let due = |(id, stamp): &(_, _)| waiting.take(id, |_, waiter| waiter.stamp != *stamp);
            written.iter().flat_map(due).collect()
        })
    }

    /// Returns the records that have waiters at present.
    pub(super) fn watched(&self) -> Watched {
        let state = self.lock();
        Watched { ids: state.waiting.ids(), before: state.waiting.next() }
    }

    /// Takes out the waiters for the records in `watched` that were later found with a stamp other
    /// than the one the waiter knows.
    pub(super) fn take_changed(&self, watched: &Watched, stamps: &[Option<Stamp>]) -> Woken {
        self.take(|waiting| {
            let due = |(id, stamp): (_, &_)| {
                waiting.take(id, |number, waiter| number < watched.before && Some(waiter.stamp) != *stamp)
            };
            watched.ids.iter().zip(stamps).flat_map(due).collect()
        })
    }

    fn take(&self, take: impl FnOnce(&mut Registry<Waiter>) -> Vec<Waiter>) -> Woken {
        let mut state = self.lock();
        let taken = take(&mut state.waiting);
        self.present.fetch_sub(taken.len(), Ordering::SeqCst);
        Woken(taken)
    }

    /// Ends all waits with an error.
    pub(super) fn fail_all(&self, error: &Error) {
        for waiter in self.take(Registry::take_all).0 {
            let _ = waiter.ended.send(Err(error.clone()));
        }
    }

    /// Blocks until there is a waiter. Returns false once the store is closed.
    pub(super) fn wait_for_waiters(&self) -> bool {
        let mut state = self.lock();
        while state.waiting.is_empty() && !state.is_closed {
            state.is_idle = true;
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_idle = false;
        !state.is_closed
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.lock().is_idle
    }

    /// Sleeps for some time, less if the store is closed.
    pub(super) fn sleep(&self, time: Duration) {
        let state = self.lock();
        if !state.is_closed {
            drop(self.wake.wait_timeout(state, time));
        }
    }

    /// Wakes the watcher if it is idle. If there is no watcher, returns the guard with which the
    /// caller must become or start one.
    pub(super) fn wake_watcher(self: &Arc<Self>) -> Option<WatcherGuard> {
        let mut state = self.lock();
        if !state.has_watcher {
            state.has_watcher = true;
            return Some(WatcherGuard(self.clone()));
        }
        if state.is_idle {
            self.wake.notify_all();
        }
        None
    }

    /// Closes the store's waiters: there will be no more.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.wake.notify_all();
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
            Err(oneshot::Canceled) => Err(Error::unavailable("its file is no longer watched")),
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        drop(self.waiters.take(|waiting| waiting.remove(&self.id, self.number).into_iter().collect()));
    }
}

/// A guard held by the watcher. However the watcher ends, dropping the guard ends all waits.
#[derive(Debug)]
pub(super) struct WatcherGuard(Arc<Waiters>);

impl Drop for WatcherGuard {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.has_watcher = false;
        let all = state.waiting.take_all();
        self.0.present.fetch_sub(all.len(), Ordering::SeqCst);
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
    fn only_waiters_with_another_stamp_from_before_the_check_are_woken() {
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
    fn waiters_learn_that_the_watcher_is_gone() {
        let waiters = Arc::new(Waiters::default());
        let mut ticket = waiters.register(ID, Stamp(1));
        let watcher = waiters.wake_watcher();
        assert!(watcher.is_some() && waiters.wake_watcher().is_none());
        drop(watcher);
        let end = ticket.poll(&mut Context::from_waker(std::task::Waker::noop()));
        assert!(matches!(end, Poll::Ready(Err(Error::Store(StoreError::Unavailable { .. })))));
        assert!(!waiters.any() && waiters.wake_watcher().is_some());
    }
}
