//! Answers that tell a client why its request was not executed: [`Problem`].

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::envelope::{Envelope, Header};
use super::key::KeyFault;
use super::reply::Answer;
use crate::error::Error;

/// The reason why a request is answered without a handler's response. Nothing was executed for it;
/// except that the first request itself may get [`InProgress`](Problem::InProgress) or
/// [`Unresolved`](Problem::Unresolved), if its own response broke off or its lease was lost.
///
/// [`problems`](crate::http::problems) describes each for the consumers of an API.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The request has no key, and needs one: 400.
    MissingKey,
    /// The request's key is malformed: 400.
    MalformedKey(KeyFault),
    /// The application named no caller for the request, which is a fault of its own: 500.
    NoCaller,
    /// The body of the request is longer than this limit, in bytes: 413.
    BodyTooLarge(usize),
    /// The body of the request broke off: 400.
    BodyIncomplete,
    /// The request is gRPC-Web, which must be translated to gRPC outside of the layer: 415.
    Unsupported,
    /// The key was used for another request, of which nothing is disclosed: 422.
    Mismatch,
    /// The first request under this key is still in progress: 409, and never 425, 429 or 423, which
    /// official clients do not retry.
    InProgress,
    /// The operation is done, and its response is no longer kept, or never was: 410, with the
    /// stored status, `Location` and `ETag`.
    ResponseNotKept(Envelope),
    /// It is unknown whether the operation happened, and an operator has to find out: 409. Of the
    /// draft's statuses it is the only one that demands no correction, and a 5xx would make a proxy
    /// remove this server.
    Unresolved,
    /// The store cannot be used: 503.
    Unavailable,
    /// As many requests as the layer admits are under way: 503.
    Overloaded,
}

impl Problem {
    /// The problem of a call that failed. No error of the engine lets a handler run.
    pub fn of(error: &Error) -> Problem {
        let _ = error; // it goes to operators, by events, and not to clients
        Problem::Unavailable
    }

    /// The last part of the [`uri`](Problem::uri).
    pub fn slug(&self) -> &'static str {
        match self {
            Problem::MissingKey => "missing-key",
            Problem::MalformedKey(_) => "malformed-key",
            Problem::NoCaller => "no-caller",
            Problem::BodyTooLarge(_) => "body-too-large",
            Problem::BodyIncomplete => "body-incomplete",
            Problem::Unsupported => "unsupported",
            Problem::Mismatch => "mismatch",
            Problem::InProgress => "in-progress",
            Problem::ResponseNotKept(_) => "response-not-kept",
            Problem::Unresolved => "unresolved",
            Problem::Unavailable => "unavailable",
            Problem::Overloaded => "overloaded",
        }
    }

    /// The problem's type: a stable URI, under which it is described.
    pub fn uri(&self) -> String {
        format!("https://docs.rs/nevertwice/latest/nevertwice/http/problems/index.html#{}", self.slug())
    }

    /// The status of the answer.
    pub fn status(&self) -> u16 {
        match self {
            Problem::MissingKey | Problem::MalformedKey(_) | Problem::BodyIncomplete => 400,
            Problem::InProgress | Problem::Unresolved => 409,
            Problem::ResponseNotKept(_) => 410,
            Problem::BodyTooLarge(_) => 413,
            Problem::Unsupported => 415,
            Problem::Mismatch => 422,
            Problem::NoCaller => 500,
            Problem::Unavailable | Problem::Overloaded => 503,
        }
    }

    /// The problem in a few words.
    pub fn title(&self) -> &'static str {
        match self {
            Problem::MissingKey => "The idempotency key is missing",
            Problem::MalformedKey(_) => "Idempotency-Key is malformed",
            Problem::NoCaller => "The caller is unknown",
            Problem::BodyTooLarge(_) => "The body is too large",
            Problem::BodyIncomplete => "The body is incomplete",
            Problem::Unsupported => "gRPC-Web is not supported here",
            Problem::Mismatch => "Idempotency-Key was used for another request",
            Problem::InProgress => "A request with this Idempotency-Key is in progress",
            Problem::ResponseNotKept(_) => "The operation is done, its response is not kept",
            Problem::Unresolved => "The outcome of the operation is unknown",
            Problem::Unavailable => "The operation cannot be recorded at present",
            Problem::Overloaded => "Too many requests are in progress",
        }
    }

    /// A sentence for the developer of the client: what happened, and what to do.
    pub fn detail(&self) -> Cow<'static, str> {
        match self {
            Problem::MissingKey => {
                "Send an idempotency key, in the header Idempotency-Key unless this API says \
                 otherwise: a new random text, such as a UUID, for each operation, and the same \
                 one whenever the operation is retried."
                    .into()
            }
            Problem::MalformedKey(fault) => format!("Nothing was executed: {fault}.").into(),
            Problem::NoCaller => "The server could not tell which caller the key belongs to. Nothing was \
                 executed."
                .into(),
            Problem::BodyTooLarge(limit) => {
                format!("The body is longer than {limit} bytes. Nothing was executed.").into()
            }
            Problem::BodyIncomplete => "The body broke off. Nothing was executed: repeat the request.".into(),
            Problem::Unsupported => {
                "Nothing was executed. The server must translate gRPC-Web to gRPC before it \
                 looks at keys."
                    .into()
            }
            Problem::Mismatch => {
                "The key belongs to another request. Use a new key for a new operation, and \
                 send the same method, path, query and body when you retry one."
                    .into()
            }
            Problem::InProgress => "The first request with this key has not finished. Repeat the request \
                 later, with the same key."
                .into(),
            Problem::ResponseNotKept(_) => {
                "The operation was executed and must not be repeated. Its response \
                 is no longer available here: look the result up."
                    .into()
            }
            Problem::Unresolved => "The operation may or may not have happened, and is being looked into. \
                 Repeat the request later, with the same key; do not use another one."
                .into(),
            Problem::Unavailable => {
                "Nothing was executed. Repeat the request later, with the same key.".into()
            }
            Problem::Overloaded => {
                "Nothing was executed. Repeat the request later, with the same key.".into()
            }
        }
    }

    /// Returns true if the same request, with the same key, may succeed later.
    pub fn is_retryable(&self) -> bool {
        self.retry_after().is_some() || matches!(self, Problem::BodyIncomplete)
    }

    /// The time after which to repeat the request. The remaining lease is no hint, since it is
    /// renewed.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Problem::InProgress | Problem::Unavailable | Problem::Overloaded => Some(Duration::from_secs(1)),
            Problem::Unresolved => Some(Duration::from_secs(60)),
            Problem::MissingKey
            | Problem::MalformedKey(_)
            | Problem::NoCaller
            | Problem::BodyTooLarge(_)
            | Problem::BodyIncomplete
            | Problem::Unsupported
            | Problem::Mismatch
            | Problem::ResponseNotKept(_) => None,
        }
    }

    /// The headers of the answer: `Content-Type`, `Cache-Control`, `Retry-After` where there is
    /// one, and `Location` and `ETag` of a response that is not kept.
    pub fn headers(&self) -> Vec<Header> {
        let mut headers = vec![
            ("content-type".to_owned(), Bytes::from_static(b"application/problem+json")),
            ("cache-control".to_owned(), Bytes::from_static(b"no-store")),
        ];
        headers.extend(self.retry_after().map(retry_after));
        if let Problem::ResponseNotKept(envelope) = self {
            let kept = |(name, _): &&Header| name == "location" || name == "etag";
            headers.extend(envelope.headers.iter().filter(kept).cloned());
        }
        headers
    }

    /// Returns the answer with the problem's own status.
    pub fn answer(&self) -> Answer {
        Answer { status: self.status(), headers: self.headers(), body: self.json(self.status()) }
    }

    /// The `application/problem+json` body (RFC 9457) of an answer with `status`. Beside the
    /// members of that format it has `retryable` and an `error` object as Stripe's answers do:
    /// stripe-node takes a 409 or 422 without one for success.
    pub fn json(&self, status: u16) -> Bytes {
        let kind = match self.status() {
            500.. => "api_error",
            409 | 422 => "idempotency_error",
            _ => "invalid_request_error",
        };
        let mut body = json!({
            "type": self.uri(),
            "title": self.title(),
            "status": status,
            "detail": self.detail(),
            "retryable": self.is_retryable(),
            "error": { "type": kind, "code": self.slug().replace('-', "_"), "message": self.detail() },
        });
        if let Problem::ResponseNotKept(envelope) = self {
            body["original_status"] = envelope.status.into();
        }
        body.to_string().into()
    }
}

/// Returns the header that asks a client to come back after `wait`, in whole seconds, at least one.
pub(crate) fn retry_after(wait: Duration) -> Header {
    let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
    ("retry-after".to_owned(), seconds.max(1).to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_described_on_its_page() {
        let page = include_str!("../problems.md");
        let all = [
            Problem::MissingKey,
            Problem::MalformedKey(KeyFault::Empty),
            Problem::NoCaller,
            Problem::BodyTooLarge(9),
            Problem::BodyIncomplete,
            Problem::Unsupported,
            Problem::Mismatch,
            Problem::InProgress,
            Problem::ResponseNotKept(Envelope::new(201)),
            Problem::Unresolved,
            Problem::Unavailable,
            Problem::Overloaded,
        ];
        for problem in all {
            assert!(page.contains(&format!("\n## {}\n", problem.slug())), "{}", problem.slug());
            assert!(
                page.contains(&format!("| {} | [`{}`]", problem.status(), problem.slug())),
                "{problem:?}"
            );
            let body: serde_json::Value = serde_json::from_slice(&problem.json(418)).unwrap();
            assert_eq!(body["status"], 418);
            assert_eq!(body["error"]["message"], body["detail"]);
            assert!(body["type"].as_str().unwrap().ends_with(problem.slug()));
        }
    }
}
