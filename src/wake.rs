//! Panic containment for code of the application that runs inside other callers' calls and on this
//! crate's threads: above all wakers, and values that the application passed in. Its panics end
//! here, so that one bad waker harms no other caller.

use std::any::Any;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

/// Runs `foreign`; `None` if it panicked. The panic hook has reported the panic by then.
pub(crate) fn contain<T>(foreign: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(foreign)).map_err(dispose).ok()
}

/// Drops a panic's payload. If that panics too, the second payload is leaked, since its drop could
/// panic again and again.
fn dispose(payload: Box<dyn Any + Send>) {
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(second);
    }
}

/// Drops each of `values`, also those that follow one whose drop panics.
#[cfg(any(feature = "memory", feature = "sqlite"))]
pub(crate) fn discard<T>(values: impl IntoIterator<Item = T>) {
    for value in values {
        contain(|| drop(value));
    }
}

/// A waker from a caller. Neither waking nor dropping it panics.
///
/// Both may run the application's code, which may call back into this crate: neither is done under
/// a lock.
pub(crate) struct ForeignWaker(Option<Waker>);

impl ForeignWaker {
    /// A clone of `waker`. Cloning may panic, but only in the task of the caller that owns the
    /// waker.
    pub(crate) fn of(waker: &Waker) -> ForeignWaker {
        ForeignWaker(Some(waker.clone()))
    }

    pub(crate) fn will_wake(&self, waker: &Waker) -> bool {
        self.0.as_ref().is_some_and(|known| known.will_wake(waker))
    }

    /// Wakes by reference, then drops separately: a waker that panics in both would abort the
    /// process.
    pub(crate) fn wake(self) {
        self.wake_by_ref();
    }

    fn wake_by_ref(&self) {
        if let Some(waker) = &self.0 {
            contain(|| waker.wake_by_ref());
        }
    }
}

impl Drop for ForeignWaker {
    fn drop(&mut self) {
        if let Some(waker) = self.0.take() {
            contain(|| drop(waker));
        }
    }
}

impl fmt::Debug for ForeignWaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// Wakes all of `wakers`, even if one of them panics.
#[inline]
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = ForeignWaker>) {
    for waker in wakers {
        waker.wake();
    }
}

/// A future of the application's, such as a store's. Neither polling nor dropping it panics; its
/// output is `None` if a poll did.
pub(crate) struct Contained<F>(Option<Pin<Box<F>>>);

impl<F> Contained<F> {
    pub(crate) fn new(future: F) -> Contained<F> {
        Contained(Some(Box::pin(future)))
    }
}

impl<F: Future> Future for Contained<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<F::Output>> {
        let Some(future) = &mut self.0 else { return Poll::Ready(None) };
        match contain(|| future.as_mut().poll(context)) {
            Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready(output)) => Poll::Ready(Some(output)),
            None => Poll::Ready(None),
        }
    }
}

impl<F> Drop for Contained<F> {
    fn drop(&mut self) {
        let future = self.0.take();
        contain(|| drop(future));
    }
}

struct Guard(ForeignWaker);

impl Wake for Guard {
    fn wake(self: Arc<Self>) {
        self.0.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.wake_by_ref();
    }
}

/// Polls `future` with a waker whose clones, wakes and drops do not panic, whatever the caller's
/// waker does. For channels, shared futures and connections, which wake one caller from within
/// another's call.
pub(crate) async fn guarded<F: Future>(future: F) -> F::Output {
    guarded_in_place(pin!(future)).await
}

/// [`guarded`] for a future that need not be pinned. It is kept once, not twice as by an `async fn`
/// that pins its argument.
pub(crate) fn guarded_in_place<F: Future + Unpin>(mut future: F) -> impl Future<Output = F::Output> {
    let mut known: Option<(Arc<Guard>, Waker)> = None;
    poll_fn(move |context| {
        let same = known.as_ref().is_some_and(|(guard, _)| guard.0.will_wake(context.waker()));
        if !same {
            let guard = Arc::new(Guard(ForeignWaker::of(context.waker())));
            known = Some((guard.clone(), Waker::from(guard)));
        }
        let waker = known.as_ref().map_or(Waker::noop(), |(_, waker)| waker);
        Pin::new(&mut future).poll(&mut Context::from_waker(waker))
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::panic::panic_any;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A payload whose drop panics too.
    struct Worse;

    impl Drop for Worse {
        fn drop(&mut self) {
            panic_any(Worse);
        }
    }

    /// A waker that panics when it is woken and when it is dropped.
    pub(crate) struct Bad(pub(crate) AtomicUsize);

    impl Wake for Bad {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
            panic_any(Worse);
        }
    }

    impl Drop for Bad {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }

    pub(crate) fn bad() -> ForeignWaker {
        ForeignWaker(Some(Waker::from(Arc::new(Bad(AtomicUsize::new(0))))))
    }

    #[test]
    fn neither_a_wake_nor_a_drop_panics_nor_what_such_a_panic_left() {
        drop(bad());
        bad().wake();
        drop(vec![bad(), bad()]);
        wake_all([bad(), bad()]);
        assert_eq!(contain(|| panic_any(Worse)), None::<()>);
        assert_eq!(contain(|| 7), Some(7));
    }

    #[test]
    fn a_guarded_future_is_woken_by_its_callers_last_waker_and_by_no_panic() {
        let kept = std::sync::Mutex::new(Vec::new());
        let mut future = pin!(guarded(poll_fn(|context| {
            kept.lock().unwrap().push(context.waker().clone());
            Poll::<()>::Pending
        })));
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let bad = Waker::from(Arc::new(Bad(AtomicUsize::new(0))));
        let good = Waker::from(count.clone());
        for waker in [&bad, &good, &good] {
            assert!(future.as_mut().poll(&mut Context::from_waker(waker)).is_pending());
        }
        std::mem::forget(bad);
        let kept = std::mem::take(&mut *kept.lock().unwrap());
        assert!(kept[1].will_wake(&kept[2]), "the same caller's waker has the same guard");
        kept.into_iter().for_each(Waker::wake);
        assert_eq!(count.0.load(Ordering::SeqCst), 2);
    }

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}
