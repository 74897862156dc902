//! [`Call`]: the store calls of one command, with repetitions, pauses and the deadline.

use std::future::{Future, poll_fn};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use super::Core;
use crate::clock::{Clock, Sleep};
use crate::error::{Error, StoreError};
use crate::key::RecordId;
use crate::observe::{self, RetryCause};
use crate::store::{Snapshot, Swap, SwapRequest};

/// The store calls of one command, repeated after transient failures until its time limit.
pub(crate) struct Call<'a> {
    pub(super) core: &'a Core,
    id: RecordId,
    limit: Duration,
    pub(crate) started: Duration,
    deadline: Duration,
    /// The time at which the last answered store call was sent.
    pub(crate) sent: Duration,
    tries: u32,
    last: Option<StoreError>,
    /// The reason to repeat a store call that failed at once.
    failed: Option<RetryCause>,
}

impl<'a> Call<'a> {
    pub(crate) fn within(core: &'a Core, id: &RecordId, limit: Duration) -> Call<'a> {
        Call::since(core.clock.monotonic(), core, id, limit)
    }

    /// Starts at `started`, a time that was just read from the engine's monotonic clock.
    pub(super) fn since(started: Duration, core: &'a Core, id: &RecordId, limit: Duration) -> Call<'a> {
        let deadline = started.saturating_add(limit);
        Call { core, id: *id, limit, started, deadline, sent: started, tries: 0, last: None, failed: None }
    }

    /// Loads the record if the store answers at once.
    pub(super) fn load_now(&mut self) -> Result<Option<Snapshot>, Error> {
        let (core, id) = (self.core, self.id);
        self.at_once(|| core.store.load_now(&id))
    }

    /// Swaps if the store answers at once.
    pub(super) fn swap_now(&mut self, swap: &SwapRequest) -> Result<Option<Swap>, Error> {
        let core = self.core;
        self.at_once(|| core.store.swap_now(swap))
    }

    /// Sends a store call that is answered at once; `None` if it is not, or has to be repeated. It
    /// counts as sent when the last one was: no time passes between them, and the holder of a
    /// lease may believe in a shorter one.
    fn at_once<T>(
        &mut self,
        send: impl FnOnce() -> Option<Result<T, StoreError>>,
    ) -> Result<Option<T>, Error> {
        if self.failed.is_some() || self.limit.is_zero() {
            return Ok(None);
        }
        let Some(answer) = send() else { return Ok(None) };
        if self.tries == 0 {
            self.sent = self.started;
        }
        self.tries += 1;
        match answer {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_transient() => {
                self.last = Some(error);
                self.failed = Some(RetryCause::Unavailable);
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) async fn load(&mut self) -> Result<Snapshot, Error> {
        let (core, id) = (self.core, self.id);
        self.repeat(|| core.store.load(&id)).await
    }

    pub(crate) async fn discard(&mut self) -> Result<bool, Error> {
        let (core, id) = (self.core, self.id);
        let existed = self.repeat(|| core.store.discard(&id)).await?;
        // If it took several tries, an earlier one may have removed the record.
        Ok(existed || self.tries > 1)
    }

    pub(crate) async fn swap(&mut self, swap: &SwapRequest) -> Result<Swap, Error> {
        let core = self.core;
        self.repeat(|| core.store.swap(swap)).await
    }

    /// Repeats a store call until it succeeds, fails with an error that is not transient, or the
    /// deadline passes.
    async fn repeat<T, F>(&mut self, mut send: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, StoreError>> + Unpin,
    {
        let limit = self.limit;
        // The longest wait for one answer does not grow with the limit of the whole call.
        let usual = limit.min(self.core.policy.call_timeout);
        let mut pause = Pause::after(2);
        let mut cause = self.failed.take();
        if cause.is_some() {
            self.rest(&mut pause).await;
        }
        loop {
            // The first store call is sent right after `Call` is created, so that time is reused.
            self.sent = if self.tries == 0 { self.started } else { self.core.clock.monotonic() };
            let left = self.deadline.saturating_sub(self.sent);
            if left.is_zero() {
                observe::timed_out(self.core, self.tries);
                return Err(Error::TimedOut { limit, tries: self.tries, last: self.last.take() });
            }
            if let Some(cause) = cause {
                observe::repeated(self.core, cause, self.tries);
            }
            self.tries += 1;
            let clock = &*self.core.clock;
            // A store that does not answer gets half of the remaining time, then the call is
            // repeated.
            let patience = (left / 2).min(usual / 2).max(usual / 8).min(left);
            cause = match within(clock, patience, send()).await {
                Some(Ok(value)) => return Ok(value),
                Some(Err(error)) if error.is_transient() => {
                    self.last = Some(error);
                    Some(RetryCause::Unavailable)
                }
                Some(Err(error)) => return Err(error.into()),
                None => Some(RetryCause::NoAnswer),
            };
            self.rest(&mut pause).await;
        }
    }

    /// Pauses, but not past the deadline.
    pub(crate) async fn rest(&self, pause: &mut Pause) {
        let clock = &*self.core.clock;
        if let Some(time) = pause.next((&self.id, self.started)) {
            clock.sleep(time.min(self.deadline.saturating_sub(clock.monotonic()))).await;
        }
    }
}

/// The pause before the next try: none at first, then up to 1 ms, doubling up to 128 ms, each at
/// least half of its maximum. The jitter is derived from the record's id and the start of the call:
/// callers that a store failed together do not return together, and a simulation is repeatable.
pub(crate) struct Pause {
    free: u32,
    pauses: u32,
}

impl Pause {
    /// Pauses that start after `free` tries.
    pub(crate) fn after(free: u32) -> Pause {
        Pause { free, pauses: 0 }
    }

    /// Takes a try without a pause; false if a pause is due.
    pub(super) fn is_free(&mut self) -> bool {
        let free = self.free > 0;
        self.free = self.free.saturating_sub(1);
        free
    }

    fn next(&mut self, of: (&RecordId, Duration)) -> Option<Duration> {
        if self.is_free() {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        (of, self.pauses).hash(&mut hasher);
        let least = 500_u64 << self.pauses.min(7);
        self.pauses = self.pauses.saturating_add(1);
        Some(Duration::from_micros(least + hasher.finish() % (least + 1)))
    }
}

/// The output of `future`, or `None` if it takes longer than `limit`. A future that is ready at
/// once sets no timer.
pub(crate) fn within<T>(
    clock: &dyn Clock,
    limit: Duration,
    mut future: impl Future<Output = T> + Unpin,
) -> impl Future<Output = Option<T>> {
    let mut timer: Option<Sleep> = None;
    poll_fn(move |context| {
        if let Poll::Ready(value) = Pin::new(&mut future).poll(context) {
            return Poll::Ready(Some(value));
        }
        let timer = timer.get_or_insert_with(|| clock.sleep(limit));
        timer.as_mut().poll(context).map(|()| None)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Request;

    fn pauses(key: &str, began: Duration) -> Vec<Duration> {
        let id = Request::new("pauses", key).unwrap().id();
        let mut pause = Pause::after(2);
        (0..20).filter_map(|_| pause.next((&id, began))).collect()
    }

    /// Calls on different keys, and on one key at different times, do not repeat in step; the
    /// pauses of one call are the same whenever a simulation repeats it.
    #[test]
    fn pauses_have_jitter_that_can_be_repeated() {
        let (one, another) = (pauses("one", Duration::ZERO), pauses("another", Duration::ZERO));
        assert_eq!(one, pauses("one", Duration::ZERO));
        let later = pauses("one", Duration::from_nanos(1));
        let differ = |other: &[Duration]| one.iter().zip(other).filter(|(one, other)| one != other).count();
        assert!(differ(&another) >= 16 && differ(&later) >= 16, "{one:?} {another:?} {later:?}");
        assert_eq!(one.len(), 18);
        for (at, pause) in one.iter().enumerate() {
            let most = Duration::from_millis(1 << at.min(7));
            assert!((most / 2..=most).contains(pause), "pause {at}: {pause:?}");
        }
    }
}
