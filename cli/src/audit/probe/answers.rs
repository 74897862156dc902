//! Ids in answers, marks of replays, and the comparison of two answers.

use serde_json::Value;

use super::Probe;
use crate::audit::check::{Step, ensure};
use crate::audit::wire::Answer;

impl Probe {
    /// Returns the id of the effect in an answer.
    pub(in crate::audit) fn id(&self, answer: &Answer) -> Option<String> {
        let pointer = self.settings.id_pointer.as_deref()?;
        let value: Value = serde_json::from_slice(&answer.body).ok()?;
        match value.pointer(pointer)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            value => Some(value.to_string()),
        }
    }

    /// Returns the header that marks an answer as a replay.
    pub(in crate::audit) fn mark(&self, answer: &Answer) -> Option<String> {
        let marks = answer.headers.iter().find(|(name, value)| {
            let known = matches!(
                name.as_str(),
                "idempotency-replayed"
                    | "idempotent-replayed"
                    | "idempotency-replay"
                    | "idempotent-replay"
                    | "x-idempotency-replayed"
                    | "x-idempotent-replayed"
                    | "x-idempotent-replay"
            );
            let named = self.settings.replay_header.as_ref() == Some(name);
            (known || named) && !matches!(value.as_bytes(), b"false" | b"0" | b"?0" | b"no")
        });
        marks.map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
    }

    /// Returns whether two answers with success tell of the same operation, if that can be known.
    pub(in crate::audit) fn same_operation(&self, first: &Answer, second: &Answer) -> Option<bool> {
        if let (Some(first), Some(second)) = (self.id(first), self.id(second)) {
            return Some(first == second);
        }
        if self.mark(second).is_some() {
            return Some(true);
        }
        self.baseline.borrow().distinct.then(|| first.body == second.body)
    }

    /// Requires the same status, bytes and kept headers.
    pub(in crate::audit) fn same_answer(&self, first: &Answer, again: &Answer, what: &str) -> Step<()> {
        ensure(first.status == again.status, || {
            format!("{what}: answered {} first, and then {}", first.status, again.status)
        })?;
        ensure(first.body == again.body, || match (self.id(first), self.id(again)) {
            (Some(first), Some(again)) if first != again => {
                format!("{what}: another id, {again} in place of {first}")
            }
            _ => format!(
                "{what}: the bytes differ from the first answer's ({} and {} bytes)",
                first.body.len(),
                again.body.len()
            ),
        })?;
        for name in [http::header::CONTENT_TYPE, http::header::LOCATION] {
            ensure(first.headers.get(&name) == again.headers.get(&name), || {
                format!("{what}: the header {name} differs from the first answer's")
            })?;
        }
        Ok(())
    }
}
