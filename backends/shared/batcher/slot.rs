//! A reply on its way to one caller: [`slot`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use crate::sync::{Mutex, MutexGuard, PoisonError};
use crate::wake::ForeignWaker;

/// Returns both ends of a slot for one reply. Waking its receiver does not panic, whatever its
/// waker does.
pub(super) fn slot<R>() -> (Sender<R>, Receiver<R>) {
    let state = State { reply: None, waker: None, has_sender: true, has_receiver: true };
    let slot = Arc::new(Slot(Mutex::new(state)));
    (Sender(Arc::clone(&slot)), Receiver(slot))
}

pub(super) struct Sender<R>(Arc<Slot<R>>);

/// Resolves to the reply, or to an error if the sender was dropped without one.
pub(super) struct Receiver<R>(Arc<Slot<R>>);

/// The error of a receiver whose sender was dropped.
#[derive(Debug)]
pub(super) struct Dropped;

struct Slot<R>(Mutex<State<R>>);

/// Neither a reply nor a waker is cloned or dropped under the lock: that may run anything.
struct State<R> {
    reply: Option<R>,
    waker: Option<ForeignWaker>,
    has_sender: bool,
    has_receiver: bool,
}

impl<R> Slot<R> {
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Sender<R> {
    /// Sends the reply, which is dropped if the receiver is gone.
    pub(super) fn send(self, reply: R) {
        let mut state = self.0.lock();
        if state.has_receiver {
            state.reply = Some(reply);
        }
        // Dropping the sender wakes the receiver.
    }

    /// True if the receiver is gone.
    pub(super) fn is_closed(&self) -> bool {
        !self.0.lock().has_receiver
    }
}

impl<R> Drop for Sender<R> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.has_sender = false;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<R> Future for Receiver<R> {
    type Output = Result<R, Dropped>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<R, Dropped>> {
        let waker = ForeignWaker::of(context.waker());
        let mut state = self.0.lock();
        if let Some(reply) = state.reply.take() {
            return Poll::Ready(Ok(reply));
        }
        if !state.has_sender {
            return Poll::Ready(Err(Dropped));
        }
        let before = state.waker.replace(waker);
        drop(state);
        drop(before);
        Poll::Pending
    }
}

impl<R> Drop for Receiver<R> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.has_receiver = false;
        let (reply, waker) = (state.reply.take(), state.waker.take());
        drop(state);
        drop((reply, waker));
    }
}

#[cfg(all(test, not(nevertwice_shuttle)))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_receiver_gets_the_reply_or_learns_that_there_is_none() {
        let (sender, receiver) = slot();
        assert!(!sender.is_closed());
        sender.send(7);
        assert!(matches!(receiver.now_or_never(), Some(Ok(7))));
        let (sender, mut receiver) = slot::<u8>();
        assert!((&mut receiver).now_or_never().is_none());
        drop(sender);
        assert!(matches!(receiver.now_or_never(), Some(Err(Dropped))));
    }

    #[test]
    fn the_last_waker_is_woken_once_by_a_reply_and_by_its_loss() {
        for is_sent in [true, false] {
            let (sender, mut receiver) = slot();
            let (early, late) = (Arc::new(Count::default()), Arc::new(Count::default()));
            for count in [&early, &late] {
                let waker = Waker::from(Arc::clone(count));
                assert!(receiver.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
            }
            if is_sent {
                sender.send(7)
            } else {
                drop(sender)
            }
            let counts = [early, late].map(|count| count.0.load(Ordering::SeqCst));
            assert_eq!(counts, [0, 1]);
        }
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A reply that calls back into its slot while it is dropped, as a lead passes itself on.
    struct Curious(Option<Sender<Curious>>, Arc<AtomicUsize>);

    impl Drop for Curious {
        fn drop(&mut self) {
            if let Some(sender) = self.0.take() {
                if sender.0.0.try_lock().is_err() {
                    // Dropping it would wait for ever.
                    std::mem::forget(sender);
                    panic!("dropped under the lock");
                }
                assert!(sender.is_closed());
            }
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_reply_without_a_receiver_is_dropped_without_the_lock() {
        let drops = Arc::new(AtomicUsize::new(0));
        let (sender, receiver) = slot();
        drop(receiver);
        let second = Sender(Arc::clone(&sender.0));
        sender.send(Curious(Some(second), Arc::clone(&drops)));
        assert_eq!(drops.load(Ordering::SeqCst), 1);
        let (sender, receiver) = slot();
        let second = Sender(Arc::clone(&sender.0));
        sender.send(Curious(Some(second), Arc::clone(&drops)));
        drop(receiver);
        assert_eq!(drops.load(Ordering::SeqCst), 2);
    }

    struct Bad;

    impl Wake for Bad {
        fn wake(self: Arc<Self>) {
            panic!("woken");
        }
    }

    #[test]
    fn a_waker_that_panics_harms_no_sender() {
        let (sender, mut receiver) = slot();
        let waker = Waker::from(Arc::new(Bad));
        assert!(receiver.poll_unpin(&mut Context::from_waker(&waker)).is_pending());
        sender.send(7);
        assert!(matches!(receiver.now_or_never(), Some(Ok(7))));
    }
}
