//! [`Call`]: the store calls of one command, with repetitions, pauses and the deadline.

use std::future::{Future, poll_fn, ready};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::Either;

use super::Core;
use crate::clock::{Clock, Sleep};
use crate::error::{Error, StoreError};
use crate::key::RecordId;
use crate::observe::{self, RetryCause};
use crate::store::{Snapshot, Swap, SwapRequest};

/// The store calls of one command, repeated after transient failures until its time limit.
pub(crate) struct Call<'a> {
    core: &'a Core,
    id: &'a RecordId,
    limit: Duration,
    pub(crate) started: Duration,
    deadline: Duration,
    /// The time at which the last answered store call was sent.
    pub(crate) sent: Duration,
    tries: u32,
    last: Option<StoreError>,
}

impl<'a> Call<'a> {
    pub(crate) fn within(core: &'a Core, id: &'a RecordId, limit: Duration) -> Call<'a> {
        Call::since(core.clock.monotonic(), core, id, limit)
    }

    /// Starts at `started`, a time that was just read from the engine's monotonic clock.
    pub(super) fn since(started: Duration, core: &'a Core, id: &'a RecordId, limit: Duration) -> Call<'a> {
        let deadline = started.saturating_add(limit);
        Call { core, id, limit, started, deadline, sent: started, tries: 0, last: None }
    }

    pub(crate) async fn load(&mut self) -> Result<Snapshot, Error> {
        let (core, id) = (self.core, self.id);
        self.repeat(|| core.store.load(id)).await
    }

    pub(crate) async fn discard(&mut self) -> Result<bool, Error> {
        let (core, id) = (self.core, self.id);
        let existed = self.repeat(|| core.store.discard(id)).await?;
        // If it took several tries, an earlier one may have removed the record.
        Ok(existed || self.tries > 1)
    }

    pub(crate) async fn swap(&mut self, swap: &SwapRequest) -> Result<Swap, Error> {
        let store = &self.core.store;
        self.repeat(|| match store.swap_now(swap) {
            Some(answer) => Either::Left(ready(answer)),
            None => Either::Right(store.swap(swap)),
        })
        .await
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
        let mut cause = None;
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
        if let Some(time) = pause.next((self.id, self.started)) {
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

    fn next(&mut self, of: (&RecordId, Duration)) -> Option<Duration> {
        if self.free > 0 {
            self.free -= 1;
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
