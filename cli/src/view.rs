//! An operation as it is shown: [`View`].

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use nevertwice::{Content, Inspection, Reason, RecordId, Recovery, Retry, StateKind};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::output::time;

/// An operation as it is written as JSON. Times are in seconds. The key is shown only where the
/// operator asked for the content.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct View {
    id: String,
    scope: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    state: &'static str,
    unresolved: bool,
    reason: Option<&'static str>,
    attempt: u32,
    fence: u64,
    stamp: u64,
    age_seconds: f64,
    granted_seconds_ago: f64,
    holder: Option<String>,
    lease_remaining_seconds: Option<f64>,
    kept_for_seconds: f64,
    effect_marked: bool,
    recovery: Option<&'static str>,
    retry: Option<String>,
    resolved: bool,
    checkpoint_bytes: Option<usize>,
    body_bytes: Option<u64>,
    head_bytes: Option<usize>,
}

impl View {
    /// The view of an operation, without its key.
    pub(crate) fn of(id: &RecordId, seen: &Inspection) -> View {
        View {
            id: id.to_string(),
            scope: seen.scope.clone(),
            key: None,
            state: state(seen.state),
            unresolved: seen.unresolved || seen.reason().is_some(),
            reason: seen.reason().map(reason),
            attempt: seen.attempt,
            fence: seen.fence.0,
            stamp: seen.stamp.0,
            age_seconds: seen.age.as_secs_f64(),
            granted_seconds_ago: seen.granted_ago.as_secs_f64(),
            holder: seen.holder.clone(),
            lease_remaining_seconds: seen.lease_remaining.map(|left| left.as_secs_f64()),
            kept_for_seconds: seen.kept_for.as_secs_f64(),
            effect_marked: seen.effect_marked,
            recovery: seen.recovery.map(recovery),
            retry: seen.retry.map(retry),
            resolved: seen.resolved,
            checkpoint_bytes: seen.checkpoint_bytes,
            body_bytes: seen.body_bytes,
            head_bytes: seen.head_bytes,
        }
    }

    /// The view with the key, if the store has it.
    pub(crate) fn with_key(mut self, seen: &Inspection) -> View {
        self.key.clone_from(&seen.key);
        self
    }
}

/// The columns of a table of operations.
pub(crate) const COLUMNS: [&str; 6] = ["id", "scope", "state", "why", "attempt", "age"];

/// The row of an operation in a table with [`COLUMNS`].
pub(crate) fn row(id: &RecordId, seen: &Inspection) -> Vec<String> {
    vec![
        id.to_string(),
        seen.scope.clone(),
        state(seen.state).to_owned(),
        why(seen),
        seen.attempt.to_string(),
        time(seen.age),
    ]
}

/// The rows of a table about one operation.
pub(crate) fn details(id: &RecordId, seen: &Inspection) -> Vec<Vec<String>> {
    let yes = |on: bool| if on { "yes" } else { "no" }.to_owned();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    [
        ("id", id.to_string()),
        ("scope", seen.scope.clone()),
        ("state", state(seen.state).to_owned()),
        ("needs an operator", why(seen)),
        ("attempt", seen.attempt.to_string()),
        ("last written", format!("{} ago", time(seen.age))),
        ("granted", format!("{} ago", time(seen.granted_ago))),
        ("holder", or_dash(seen.holder.clone())),
        ("lease", or_dash(seen.lease_remaining.map(lease))),
        ("effect marked", yes(seen.effect_marked)),
        ("recovery", or_dash(seen.recovery.map(|way| recovery(way).to_owned()))),
        ("retry", or_dash(seen.retry.map(retry))),
        ("settled by an operator", yes(seen.resolved)),
        ("kept for", time(seen.kept_for)),
        ("fence", seen.fence.0.to_string()),
        ("stamp", seen.stamp.0.to_string()),
        ("checkpoint", or_dash(seen.checkpoint_bytes.map(|bytes| format!("{bytes} bytes")))),
        ("body", or_dash(seen.body_bytes.map(|bytes| format!("{bytes} bytes")))),
    ]
    .map(|(name, value)| vec![name.to_owned(), value])
    .into()
}

/// The content of an operation as JSON: text where it is text, and base64 under another name where
/// it is not.
pub(crate) fn content(content: &Content) -> Value {
    let parts =
        [("response", &content.response), ("error", &content.error), ("checkpoint", &content.checkpoint)];
    let mut shown = Map::new();
    for (name, bytes) in parts {
        let Some(bytes) = bytes else { continue };
        match std::str::from_utf8(bytes) {
            Ok(text) => shown.insert(name.to_owned(), json!(text)),
            Err(_) => shown.insert(format!("{name}_base64"), json!(BASE64_STANDARD.encode(bytes))),
        };
    }
    Value::Object(shown)
}

pub(crate) fn state(state: StateKind) -> &'static str {
    match state {
        StateKind::Absent => "absent",
        StateKind::InProgress => "in_progress",
        StateKind::Completed => "completed",
        StateKind::Failed => "failed",
    }
}

pub(crate) fn reason(reason: Reason) -> &'static str {
    match reason {
        Reason::EffectMarked => "effect_marked",
        Reason::CrashedAttempt => "crashed_attempt",
        Reason::Reported => "reported",
        Reason::AttemptsExhausted => "attempts_exhausted",
        _ => "other",
    }
}

fn why(seen: &Inspection) -> String {
    let text = match seen.reason() {
        Some(Reason::EffectMarked) => "the effect was marked, then the attempt crashed",
        Some(Reason::CrashedAttempt) => "an attempt crashed, and none may be rerun",
        Some(Reason::Reported) => "an attempt reported that its effect is uncertain",
        Some(Reason::AttemptsExhausted) => "the attempts are used up",
        Some(_) => "no caller may execute it",
        None if seen.unresolved => "its effect is uncertain",
        None => "-",
    };
    text.to_owned()
}

fn recovery(recovery: Recovery) -> &'static str {
    match recovery {
        Recovery::RerunUnlessEffect => "rerun_unless_effect",
        Recovery::Rerun => "rerun",
        Recovery::Never => "never",
    }
}

fn retry(retry: Retry) -> String {
    match retry {
        Retry::Now => "now".to_owned(),
        Retry::After(delay) => format!("after {}", time(delay)),
        Retry::Never => "never".to_owned(),
        Retry::Unresolved => "unresolved".to_owned(),
    }
}

fn lease(left: Duration) -> String {
    if left.is_zero() { "expired".to_owned() } else { format!("runs for {}", time(left)) }
}
