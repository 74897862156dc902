//! The answer to a request that is not executed: [`Reply`].

use std::time::Duration;

use bytes::Bytes;

use super::envelope::{Envelope, EnvelopeError};
use super::problem::Problem;
use crate::begin::Begin;
use crate::engine::Engine;
use crate::error::Error;
use crate::request::Request;

/// The answer to a request that is not executed.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reply {
    /// The stored response, to be sent with `Idempotency-Replayed: true`.
    Stored {
        /// Its status, headers and trailers.
        envelope: Envelope,
        /// Its body.
        body: Bytes,
        /// The time after which the request is executed again; `None` if it never is.
        retry_after: Option<Duration>,
    },
    /// A problem.
    Problem(Problem),
}

impl Reply {
    /// Returns the answer for a begin; `None` if it is a grant. A body that the handler recorded by
    /// itself, without an [`Envelope`], is answered with status 200, or 500 if it is an error.
    pub fn of<L>(begin: &Begin<L>) -> Option<Reply> {
        Some(match begin {
            Begin::Acquired(_) => return None,
            Begin::Completed(done) => Reply::stored(200, done.head(), done.response(), None),
            Begin::Failed(failed) => {
                // The body of a failure is of little use, and its status is kept.
                let empty = Bytes::new();
                let body = failed.error().unwrap_or(&empty);
                match Reply::stored(500, failed.head(), Some(body), failed.retry_after()) {
                    Reply::Stored { envelope, body, retry_after } if failed.error().is_none() => {
                        Reply::Stored { envelope: envelope.without_content(), body, retry_after }
                    }
                    reply => reply,
                }
            }
            Begin::InProgress(_) => Reply::Problem(Problem::InProgress),
            Begin::Unresolved(_) => Reply::Problem(Problem::Unresolved),
            Begin::Mismatch(_) => Reply::Problem(Problem::Mismatch),
        })
    }

    /// Returns the answer for what is recorded for `request` now, without beginning it. For a
    /// handler that lost its lease: its own response must not go out. If the operation could be
    /// executed again, the answer is [`Problem::Unresolved`].
    ///
    /// # Errors
    /// Those of [`Engine::begin`].
    pub async fn recorded(engine: &Engine, request: &Request) -> Result<Reply, Error> {
        let begin = engine.peek(request).await?;
        Ok(begin.as_ref().and_then(Reply::of).unwrap_or(Reply::Problem(Problem::Unresolved)))
    }

    fn stored(status: u16, head: &[u8], body: Option<&Bytes>, retry_after: Option<Duration>) -> Reply {
        let envelope = match Envelope::decode(head) {
            Ok(envelope) => envelope,
            Err(EnvelopeError::Newer) => return Reply::Problem(Problem::Unavailable),
            Err(EnvelopeError::Other) => Envelope::new(status),
        };
        match body {
            Some(body) => Reply::Stored { envelope, body: body.clone(), retry_after },
            None => Reply::Problem(Problem::ResponseNotKept(envelope)),
        }
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reply::Stored { envelope, body, retry_after } => f
                .debug_struct("Stored")
                .field("envelope", envelope)
                .field("body_bytes", &body.len())
                .field("retry_after", retry_after)
                .finish(),
            Reply::Problem(problem) => f.debug_tuple("Problem").field(problem).finish(),
        }
    }
}
