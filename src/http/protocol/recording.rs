//! Recording the response of a handler: [`Recording`].

use std::time::Duration;

use bytes::Bytes;

use super::classify::{Effects, Keep};
use super::envelope::Envelope;
use crate::clock::Clock;
use crate::error::Error;
use crate::lease::Lease;
use crate::record::{Body, Retry};

/// The record to make of a handler's response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording(What);

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    /// The handler finished its lease itself.
    Nothing,
    Release,
    Finish(Body, Option<Retry>),
}

/// The result of a recording.
#[derive(Debug)]
pub enum Recorded {
    /// It is recorded: answer the handler's response.
    Done,
    /// The handler finished its lease itself, and nothing was recorded: answer its response.
    ByHandler,
    /// Another caller took the key, or another outcome was recorded before: answer
    /// [`Reply::recorded`](super::Reply::recorded).
    Lost,
    /// The store could not record it while the lease lasted. Duplicates are answered as after a
    /// crash.
    Failed(Error),
}

impl Recording {
    /// Returns the record for a response with this envelope and body (`None`: a body that is sent
    /// without being kept), treated by `keep`; [`Keep::ByStatus`] means by the envelope's status
    /// and as under [`Effects::Assumed`]. A body over the policy's
    /// [`max_response`](crate::Policy::max_response) is not kept, whatever its
    /// [`oversized`](crate::Policy::oversized) says: the handler must not run again.
    pub fn of(lease: &Lease, envelope: &Envelope, body: Option<&Bytes>, keep: Keep) -> Recording {
        // A release that failed is repeated.
        if lease.is_released() {
            return Recording(What::Release);
        }
        if keep == Keep::HandedOver || !lease.is_working() && !lease.is_lost() {
            return Recording(What::Nothing);
        }
        let assumed = (Effects::Assumed, Effects::Assumed.is_marked(lease));
        let keep = keep.or_by_status(envelope.status, assumed, Duration::ZERO);
        let retry = match keep {
            Keep::Released => return Recording(What::Release),
            Keep::Completed | Keep::ByStatus | Keep::HandedOver => None,
            Keep::Failed => Some(Retry::Never),
            Keep::Unresolved => Some(Retry::Unresolved),
            Keep::Retried(wait) if wait.is_zero() => Some(Retry::Now),
            Keep::Retried(wait) => Some(Retry::After(wait)),
        };
        let limit = lease.engine().policy().max_response;
        let body = body.map_or(Body::omitted(0, 0), |body| Body::new(body.clone(), limit));
        Recording(What::Finish(body.with_head(&envelope.encode()), retry))
    }

    /// Records it, with repetitions until the lease ends.
    pub async fn store(self, lease: &Lease) -> Recorded {
        let result = match self.0 {
            What::Nothing => return Recorded::ByHandler,
            What::Release => match release(lease).await {
                // Another caller may have the key already.
                Err(Error::LeaseLost { .. } | Error::AlreadyFinished { .. }) => return Recorded::Done,
                result => result,
            },
            What::Finish(body, retry) => lease.finish(body, retry).await,
        };
        match result {
            Ok(()) => Recorded::Done,
            Err(Error::LeaseLost { .. } | Error::AlreadyFinished { .. }) => Recorded::Lost,
            Err(error) => Recorded::Failed(error),
        }
    }
}

/// Releases the lease, and tries again while it lasts: an unreleased key of an assumed effect would
/// be left to an operator.
async fn release(lease: &Lease) -> Result<(), Error> {
    let clock: &dyn Clock = lease.engine().clock();
    let now = clock.monotonic();
    let until = now.saturating_add(lease.finish_limit(now));
    loop {
        match lease.release().await {
            Err(Error::Store(error)) if error.is_transient() && clock.monotonic() < until => {}
            Err(Error::TimedOut { .. }) if clock.monotonic() < until => {}
            result => return result,
        }
        clock.sleep(Duration::from_millis(100)).await;
    }
}
