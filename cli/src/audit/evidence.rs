//! The record of everything that was sent and received.

use serde::Serialize;

/// An event of a check, with its times in milliseconds since the start of the check.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Event {
    pub(super) from_ms: f64,
    pub(super) to_ms: f64,
    pub(super) kind: Kind,
    pub(super) label: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request: Option<ShownRequest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) answer: Option<ShownAnswer>,
    /// The end of it in few words.
    pub(super) result: String,
}

/// A kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    Answered,
    Cut,
    TimedOut,
    Broken,
    Count,
    Crash,
}

impl Kind {
    /// The name of its class in pages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Answered => "answered",
            Kind::Cut => "cut",
            Kind::TimedOut => "timed-out",
            Kind::Broken => "broken",
            Kind::Count => "count",
            Kind::Crash => "crash",
        }
    }
}

/// A request without its secrets.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ShownRequest {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) protocol: &'static str,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

/// An answer without its secrets.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ShownAnswer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}
