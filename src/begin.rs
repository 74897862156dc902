//! The answer to a begin: [`Begin`] and its parts.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::decide::{Reason, Reply};
use crate::error::Error;
use crate::lease::Lease;
use crate::record::{Body, Stamp};

/// The answer to [`Engine::begin`](crate::Engine::begin). Only [`Acquired`](Begin::Acquired) lets
/// the caller act.
#[derive(Debug)]
#[must_use = "only `Acquired` permits acting"]
pub enum Begin<L = Lease> {
    /// The caller holds the lease: act, then finish it.
    Acquired(L),
    /// The operation is done: answer with the recorded response.
    Completed(Completed),
    /// Another caller holds the lease: come back later (HTTP 409).
    InProgress(InProgress),
    /// The operation failed: answer with the recorded error.
    Failed(Failed),
    /// The effect may have happened, or attempts are used up: do not act, an operator has to
    /// resolve it.
    Unresolved(Unresolved),
    /// The key was used for another request (HTTP 422).
    Mismatch(Mismatch),
}

/// A recorded response.
#[derive(Clone, PartialEq, Eq)]
pub struct Completed {
    response: Body,
}

impl Completed {
    /// The response, byte for byte; `None` if it was over the policy's `max_response` or is no
    /// longer kept.
    pub fn response(&self) -> Option<&Bytes> {
        self.response.bytes()
    }

    /// The head of the response, which is present even if the response is not kept; empty if the
    /// operation was completed without one.
    pub fn head(&self) -> &[u8] {
        self.response.head()
    }
}

impl fmt::Debug for Completed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Completed").field(&self.response).finish()
    }
}

/// A running lease of another caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InProgress {
    retry_after: Duration,
    lease_remaining: Duration,
    attempt: u32,
}

impl InProgress {
    /// The time after which to come back: whole seconds, from 1 to 30 depending on the remaining
    /// lease, fit for a `Retry-After` header. Never zero.
    pub fn retry_after(&self) -> Duration {
        self.retry_after
    }

    /// The remaining time of the lease, if it is not renewed. It does not predict when the outcome
    /// is available.
    pub fn lease_remaining(&self) -> Duration {
        self.lease_remaining
    }

    /// The number of the execution in progress, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }
}

/// A recorded error.
#[derive(Clone, PartialEq, Eq)]
pub struct Failed {
    error: Body,
    retry_after: Option<Duration>,
}

impl Failed {
    /// The error, byte for byte; `None` if it was over the policy's `max_response` or is no longer
    /// kept.
    pub fn error(&self) -> Option<&Bytes> {
        self.error.bytes()
    }

    /// The head of the error, likewise: see [`Completed::head`].
    pub fn head(&self) -> &[u8] {
        self.error.head()
    }

    /// The time after which a begin may execute again; `None` if the failure is definite. Never
    /// zero.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// [`retry_after`](Failed::retry_after) in whole seconds, rounded up, for a `Retry-After`
    /// header.
    pub fn retry_after_secs(&self) -> Option<u64> {
        self.retry_after.map(|wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
    }
}

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failed").field("error", &self.error).field("retry_after", &self.retry_after).finish()
    }
}

/// An operation that is not executed again until an operator has checked whether its effect
/// happened and settled it with [`Engine::resolve`](crate::Engine::resolve).
#[derive(Clone, PartialEq, Eq)]
pub struct Unresolved {
    reason: Reason,
    fence: Stamp,
    attempt: u32,
    error: Option<Body>,
    checkpoint: Option<Bytes>,
}

impl Unresolved {
    /// The reason it is not executed.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The fence to pass to [`Engine::resolve`](crate::Engine::resolve), so that it settles this
    /// attempt and no newer one.
    pub fn fence(&self) -> Stamp {
        self.fence
    }

    /// The number of the last execution, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The recorded error, if there is one and it was kept.
    pub fn error(&self) -> Option<&Bytes> {
        self.error.as_ref().and_then(Body::bytes)
    }

    /// The checkpoint that the last execution saved, if any.
    pub fn checkpoint(&self) -> Option<&Bytes> {
        self.checkpoint.as_ref()
    }
}

impl fmt::Debug for Unresolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unresolved")
            .field("reason", &self.reason)
            .field("fence", &self.fence.0)
            .field("attempt", &self.attempt)
            .field("error", &self.error)
            .field("checkpoint_bytes", &self.checkpoint.as_ref().map(Bytes::len))
            .finish()
    }
}

/// The key belongs to another request, of which nothing is disclosed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mismatch {}

/// The action of a queue consumer on a message: see [`Begin::verdict`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// Act under the lease, complete, then acknowledge.
    Process,
    /// The operation is done: acknowledge.
    Ack,
    /// Another caller holds the lease, or the operation failed and may be retried: have the message
    /// redelivered, but not before this time has passed. Whole seconds, at least one, since brokers
    /// count in seconds or milliseconds.
    Requeue(Duration),
    /// The operation failed for good, may have had its effect, used up its attempts, or the key
    /// belongs to another message: put the message aside for an operator.
    DeadLetter,
}

impl<L> Begin<L> {
    /// The action of a queue consumer on the message that this begin was for.
    ///
    /// ```
    /// use nevertwice::{Engine, MemoryStore, Request, Verdict};
    /// # futures_executor::block_on(async {
    /// let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let message = Request::new("orders", "message-7")?;
    /// let first = engine.begin(&message).await?;
    /// assert_eq!(first.verdict(), Verdict::Process);
    /// assert!(matches!(engine.begin(&message).await?.verdict(), Verdict::Requeue(_)));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn verdict(&self) -> Verdict {
        match self {
            Begin::Acquired(_) => Verdict::Process,
            Begin::Completed(_) => Verdict::Ack,
            Begin::InProgress(busy) => Verdict::Requeue(busy.retry_after),
            Begin::Failed(failed) => match failed.retry_after_secs() {
                Some(wait) => Verdict::Requeue(Duration::from_secs(wait.max(1))),
                None => Verdict::DeadLetter,
            },
            Begin::Unresolved(_) | Begin::Mismatch(_) => Verdict::DeadLetter,
        }
    }

    /// The answer for a reply to a begin; `lease` makes the lease if there is a grant.
    pub(crate) fn of(reply: Reply, lease: impl FnOnce() -> Result<L, Error>) -> Result<Begin<L>, Error> {
        Ok(match reply {
            Reply::Acquired => Begin::Acquired(lease()?),
            Reply::Completed(response) => Begin::Completed(Completed { response }),
            Reply::InProgress { retry_after, lease_remaining, attempt } => {
                Begin::InProgress(InProgress { retry_after, lease_remaining, attempt })
            }
            Reply::Failed { error, retry_after } => Begin::Failed(Failed { error, retry_after }),
            Reply::Unresolved { reason, fence, attempt, error, checkpoint } => {
                Begin::Unresolved(Unresolved { reason, fence, attempt, error, checkpoint })
            }
            Reply::Mismatch => Begin::Mismatch(Mismatch {}),
            // These replies never answer a begin. If one did, it would not be a grant.
            Reply::LeaseLost(_)
            | Reply::AlreadyFinished(_)
            | Reply::NotResolvable(_)
            | Reply::Done { .. } => {
                return Err(Error::Internal { detail: "a begin got the reply of another command" });
            }
        })
    }
}
