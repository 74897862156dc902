//! What a begin answers: [`Begin`] and its parts.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use crate::decide::{Reason, Reply};
use crate::error::{Error, StoreError};
use crate::lease::Lease;
use crate::record::{Body, Stamp};

/// The answer to [`Engine::begin`](crate::Engine::begin). Exactly one of these lets the caller act.
#[derive(Debug)]
#[must_use = "only `Acquired` allows to act"]
pub enum Begin<L = Lease> {
    /// Act, then finish the lease.
    Acquired(L),
    /// It was done: answer what was answered then.
    Completed(Completed),
    /// Somebody else is at it: come back later (HTTP 409).
    InProgress(InProgress),
    /// It failed: answer the recorded error.
    Failed(Failed),
    /// The effect may have happened: do not act, let somebody look.
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
    /// The response, byte for byte; `None` if it was over the policy's `max_response` and not kept.
    pub fn response(&self) -> Option<&Bytes> {
        self.response.bytes()
    }

    /// The head of the response, which is there even where the response is not kept; empty if it was
    /// completed without one.
    pub fn head(&self) -> &[u8] {
        self.response.head()
    }
}

impl fmt::Debug for Completed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Completed").field(&self.response).finish()
    }
}

/// Another caller's running lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InProgress {
    retry_after: Duration,
    lease_remaining: Duration,
    attempt: u32,
}

impl InProgress {
    /// When to come back: whole seconds, from 1 to 30 by how long the lease still runs, fit for a
    /// `Retry-After` header. Never zero.
    pub fn retry_after(&self) -> Duration {
        self.retry_after
    }

    /// How long the lease still runs, if it is not renewed. It says nothing of when the outcome is there.
    pub fn lease_remaining(&self) -> Duration {
        self.lease_remaining
    }

    /// Which execution it is, from 1.
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
    /// The error, byte for byte; `None` if it was over the policy's `max_response` and not kept.
    pub fn error(&self) -> Option<&Bytes> {
        self.error.bytes()
    }

    /// The head of the error, likewise: see [`Completed::head`].
    pub fn head(&self) -> &[u8] {
        self.error.head()
    }

    /// When a begin may execute again; `None` if the failure is definite. Never zero.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The same in whole seconds, rounded up, for a `Retry-After` header.
    pub fn retry_after_secs(&self) -> Option<u64> {
        self.retry_after.map(|wait| wait.as_secs() + u64::from(wait.subsec_nanos() > 0))
    }
}

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failed").field("error", &self.error).field("retry_after", &self.retry_after).finish()
    }
}

/// An operation that nobody may execute until somebody has looked whether its effect happened, and said so with
/// [`Engine::resolve`](crate::Engine::resolve).
#[derive(Clone, PartialEq, Eq)]
pub struct Unresolved {
    reason: Reason,
    fence: Stamp,
    attempt: u32,
    error: Option<Body>,
    checkpoint: Option<Bytes>,
}

impl Unresolved {
    /// Why nobody may execute.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// What [`Engine::resolve`](crate::Engine::resolve) asks for, so that it settles what was looked at and nothing newer.
    pub fn fence(&self) -> Stamp {
        self.fence
    }

    /// Which execution was the last, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The error that was recorded, if any was and it was kept.
    pub fn error(&self) -> Option<&Bytes> {
        self.error.as_ref().and_then(Body::bytes)
    }

    /// What the last execution saved, if anything.
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

/// The key belongs to another request. Nothing about that one is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mismatch {}

/// What a queue consumer does with a message: see [`Begin::verdict`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verdict {
    /// Act under the lease, complete, then acknowledge.
    Process,
    /// It was done: acknowledge.
    Ack,
    /// Somebody else is at it, or it failed and may be tried again: have it delivered again, not before this time is over.
    /// Whole seconds, at least one, since brokers count in seconds or milliseconds.
    Requeue(Duration),
    /// It failed for good, may have had its effect, used up its attempts, or has the key of another message: put it where
    /// somebody looks.
    DeadLetter,
}

impl<L> Begin<L> {
    /// What a queue consumer does with the message that this is the answer for.
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

    /// The answer that a reply to a begin stands for; `lease` makes the lease if there is one.
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
            // A begin is never answered so; should it be, it is no grant.
            Reply::LeaseLost(_)
            | Reply::AlreadyFinished(_)
            | Reply::NotResolvable(_)
            | Reply::Done { .. } => {
                let detail = "a begin was answered like another command".to_owned();
                return Err(StoreError::Unusable { backend: "engine", detail }.into());
            }
        })
    }
}
