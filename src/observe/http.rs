//! The observation of HTTP requests.

use super::Source;
use crate::http::protocol::{Problem, Reply};

/// The outcome of a request to the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpOutcome {
    Executed,
    Replayed,
    Refused(&'static str),
    FailedOpen,
    /// The handler, or the body of its response, failed before there was anything to record.
    Crashed,
    Lost,
    Unrecorded,
}

impl HttpOutcome {
    pub(crate) fn of(problem: &Problem) -> HttpOutcome {
        HttpOutcome::Refused(match problem {
            Problem::MissingKey => "missing_key",
            Problem::MalformedKey(_) => "malformed_key",
            Problem::NoCaller => "no_caller",
            Problem::BodyTooLarge(_) => "body_too_large",
            Problem::BodyIncomplete => "body_incomplete",
            Problem::Unsupported => "unsupported",
            Problem::Mismatch => "mismatch",
            Problem::InProgress => "in_progress",
            Problem::ResponseNotKept(_) => "not_kept",
            Problem::Unresolved => "unresolved",
            Problem::Unavailable => "unavailable",
            Problem::Overloaded => "overloaded",
        })
    }

    pub(crate) fn of_reply(reply: &Reply) -> HttpOutcome {
        match reply {
            Reply::Stored { .. } => HttpOutcome::Replayed,
            Reply::Problem(problem) => HttpOutcome::of(problem),
        }
    }

    fn label(self) -> &'static str {
        match self {
            HttpOutcome::Executed => "executed",
            HttpOutcome::Replayed => "replayed",
            HttpOutcome::Refused(label) => label,
            HttpOutcome::FailedOpen => "failed_open",
            HttpOutcome::Crashed => "crashed",
            HttpOutcome::Lost => "lost",
            HttpOutcome::Unrecorded => "unrecorded",
        }
    }
}

/// Reports the answer to a request.
pub(crate) fn http_answered(source: &dyn Source, outcome: HttpOutcome) {
    let outcome = outcome.label();
    count!("nevertwice_http_requests_total", source.name(), 1, "outcome" => outcome);
    event!(DEBUG, "nevertwice.http_answered", source.name(), { outcome }, "request answered");
}

/// Reports a request for which the application named no caller.
pub(crate) fn http_no_caller(source: &dyn Source) {
    event!(
        ERROR,
        "nevertwice.http_no_caller",
        source.name(),
        {},
        "the application names no caller: is the authentication outside of this layer?"
    );
}

/// Reports a request that is executed without protection.
pub(crate) fn http_failed_open(source: &dyn Source) {
    event!(WARN, "nevertwice.http_failed_open", source.name(), {}, "executed without protection");
}

/// Reports a response that could not be recorded.
pub(crate) fn http_unrecorded(source: &dyn Source) {
    event!(ERROR, "nevertwice.http_unrecorded", source.name(), {}, "a response could not be recorded");
}

/// Returns `work`, to run in the current span wherever it is polled.
#[cfg(feature = "tracing")]
pub(crate) fn in_current_span<F: Future>(work: F) -> impl Future<Output = F::Output> {
    tracing::Instrument::in_current_span(work)
}

/// Returns `work`.
#[cfg(not(feature = "tracing"))]
pub(crate) fn in_current_span<F: Future>(work: F) -> F {
    work
}
