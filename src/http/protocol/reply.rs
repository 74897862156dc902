//! The answer to a request that is not executed: [`Reply`].

use std::time::Duration;

use bytes::Bytes;

use super::envelope::{Envelope, EnvelopeError, Header};
use super::problem::{Problem, retry_after as retry_header};
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

/// An answer for any HTTP library: status, headers and body.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers: names in lower case, with their values.
    pub headers: Vec<Header>,
    /// The body.
    pub body: Bytes,
}

impl Reply {
    /// Returns the answer to send: a stored response with `Idempotency-Replayed: true` and, if the
    /// request may be executed again, `Retry-After`; or a problem. Trailers are left out.
    pub fn answer(self) -> Answer {
        match self {
            Reply::Stored { envelope, body, retry_after } => {
                let mut headers = envelope.headers;
                headers.push(("idempotency-replayed".to_owned(), Bytes::from_static(b"true")));
                headers.extend(retry_after.map(retry_header));
                Answer { status: envelope.status, headers, body }
            }
            Reply::Problem(problem) => problem.answer(),
        }
    }

    /// Returns the answer for a begin; `None` if it is a grant. A body that the handler recorded by
    /// itself, without an [`Envelope`], is answered with status 200, or 500 if it is an error.
    pub fn of<L>(begin: &Begin<L>) -> Option<Reply> {
        Some(match begin {
            Begin::Acquired(_) => return None,
            Begin::Completed(done) => {
                Reply::completed(done.head(), done.response()).unwrap_or_else(Reply::Problem)
            }
            Begin::Failed(failed) => Reply::failed(failed.head(), failed.error(), failed.retry_after())
                .unwrap_or_else(Reply::Problem),
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

    fn completed(head: &[u8], body: Option<&Bytes>) -> Result<Reply, Problem> {
        let envelope = envelope(head, 200)?;
        let body = body.cloned().ok_or_else(|| Problem::ResponseNotKept(envelope.clone()))?;
        Ok(Reply::Stored { envelope, body, retry_after: None })
    }

    /// Unlike that of a response, the status of an error is told without its body, which is of
    /// little use.
    fn failed(head: &[u8], body: Option<&Bytes>, retry_after: Option<Duration>) -> Result<Reply, Problem> {
        let envelope = envelope(head, 500)?;
        Ok(match body {
            Some(body) => Reply::Stored { envelope, body: body.clone(), retry_after },
            None => Reply::Stored { envelope: envelope.without_content(), body: Bytes::new(), retry_after },
        })
    }
}

/// Returns the envelope in a head; one with `status` for a head of another origin.
fn envelope(head: &[u8], status: u16) -> Result<Envelope, Problem> {
    match Envelope::decode(head) {
        Ok(envelope) => Ok(envelope),
        Err(EnvelopeError::Newer) => Err(Problem::Unavailable),
        Err(EnvelopeError::Other) => Ok(Envelope::new(status)),
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answer")
            .field("status", &self.status)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_says_that_it_is_stored_and_when_to_come_back() {
        let header = |name: &str, value: &str| (name.to_owned(), Bytes::copy_from_slice(value.as_bytes()));
        let mut envelope = Envelope::new(503);
        envelope.headers.push(header("etag", "e"));
        let body = Bytes::from_static(b"later");
        let retry_after = Some(Duration::from_millis(1200));
        let answer = Reply::Stored { envelope, body: body.clone(), retry_after }.answer();
        assert_eq!((answer.status, answer.body), (503, body));
        let expected =
            [header("etag", "e"), header("idempotency-replayed", "true"), header("retry-after", "2")];
        assert_eq!(answer.headers, expected);

        let answer = Reply::Problem(Problem::InProgress).answer();
        assert_eq!((answer.status, &answer.body), (409, &Problem::InProgress.json(409)));
        let expected = [
            header("content-type", "application/problem+json"),
            header("cache-control", "no-store"),
            header("retry-after", "1"),
        ];
        assert_eq!(answer.headers, expected);
        assert!(!format!("{answer:?}").contains("no-store"), "headers may be secret");
    }
}
