//! A channel for one value, like those of futures and tokio. Another thread may be scheduled at
//! each of its operations.

use std::future::Future;
use std::mem::take;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::sync::{Mutex, MutexGuard};

/// The error for a channel whose sender was dropped.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Canceled;

#[derive(Debug)]
struct State<T> {
    value: Option<T>,
    waker: Option<Waker>,
    sent: bool,
    closed: bool,
}

#[derive(Debug)]
struct Channel<T>(Mutex<State<T>>);

impl<T> Channel<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().expect("a schedule with a panic has failed")
    }
}

#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Channel<T>>);

#[derive(Debug)]
pub(crate) struct Receiver<T>(Arc<Channel<T>>);

pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let state = State { value: None, waker: None, sent: false, closed: false };
    let channel = Arc::new(Channel(Mutex::new(state)));
    (Sender(channel.clone()), Receiver(channel))
}

#[allow(dead_code)] // it depends on the features which of these are used
impl<T> Sender<T> {
    pub(crate) fn send(self, value: T) -> Result<(), T> {
        let mut state = self.0.lock();
        if state.closed {
            return Err(value);
        }
        state.value = Some(value);
        Ok(())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.0.lock().closed
    }

    pub(crate) fn is_canceled(&self) -> bool {
        self.is_closed()
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.sent = true;
        let waker = take(&mut state.waker);
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    #[allow(dead_code)]
    pub(crate) fn try_recv(&mut self) -> Result<T, Canceled> {
        self.0.lock().value.take().ok_or(Canceled)
    }
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, Canceled>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.0.lock();
        if let Some(value) = state.value.take() {
            return Poll::Ready(Ok(value));
        }
        if state.sent {
            return Poll::Ready(Err(Canceled));
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        let value = take(&mut state.value);
        drop(state);
        drop(value); // not under the lock: it may lead back here
    }
}
