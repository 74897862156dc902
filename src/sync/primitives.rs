//! Shuttle's primitives, with the parts that they lack.

#[cfg(feature = "sqlite")]
use std::time::Duration;

pub(crate) use shuttle::sync::*;
#[cfg(feature = "sqlite")]
pub(crate) use shuttle::thread;

/// A condition variable whose waits time out. Shuttle's own waits for a notification whatever the
/// limit.
#[cfg(feature = "sqlite")]
#[derive(Debug, Default)]
pub(crate) struct Condvar(shuttle::sync::Condvar);

#[cfg(feature = "sqlite")]
pub(crate) struct TimedOut;

#[cfg(feature = "sqlite")]
impl Condvar {
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.0.wait(guard)
    }

    /// Times out at once: a notification would have ended the wait no later.
    pub(crate) fn wait_timeout<T>(&self, guard: MutexGuard<'_, T>, _limit: Duration) -> TimedOut {
        drop(guard);
        thread::yield_now();
        TimedOut
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// A bounded queue whose sender implements `Debug`, as the standard library's does.
#[cfg(feature = "sqlite")]
pub(crate) mod mpsc {
    use std::fmt;

    pub(crate) use shuttle::sync::mpsc::Receiver;
    pub(crate) use std::sync::mpsc::TrySendError;

    pub(crate) struct SyncSender<T>(shuttle::sync::mpsc::SyncSender<T>);

    pub(crate) fn sync_channel<T>(bound: usize) -> (SyncSender<T>, Receiver<T>) {
        let (sender, receiver) = shuttle::sync::mpsc::sync_channel(bound);
        (SyncSender(sender), receiver)
    }

    impl<T> SyncSender<T> {
        pub(crate) fn try_send(&self, value: T) -> Result<(), TrySendError<T>> {
            self.0.try_send(value)
        }
    }

    impl<T> fmt::Debug for SyncSender<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("SyncSender").finish_non_exhaustive()
        }
    }
}

/// A lock without poisoning, as parking_lot's.
#[cfg(feature = "memory")]
pub(crate) mod unpoisoned {
    use super::MutexGuard;

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Mutex<T> {
            Mutex(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a schedule with a panic has failed")
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }
}
