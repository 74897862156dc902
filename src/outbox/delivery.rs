//! The failure of a delivery: [`DeliveryError`].

use std::fmt::Display;
use std::time::Duration;

/// The longest text of an error that is kept with its event, in bytes.
const MAX_TEXT: usize = 1000;

/// The reason why a closure did not deliver an event, and what the relay does about it.
///
/// Every [`std::error::Error`] converts into one that is retried with back-off, so `?` works. The
/// text is kept with the event, for operators; it appears in no log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryError {
    pub(crate) text: String,
    pub(crate) then: Then,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    BackOff,
    After(Duration),
    Reject,
}

impl DeliveryError {
    /// A failure that may pass: the event is retried with the relay's back-off.
    pub fn retry(text: impl Display) -> DeliveryError {
        DeliveryError::new(text, Then::BackOff)
    }

    /// A failure that says when to come back, such as a `Retry-After` header: the event is retried
    /// after this time. Counts as an attempt.
    pub fn retry_after(after: Duration, text: impl Display) -> DeliveryError {
        DeliveryError::new(text, Then::After(after))
    }

    /// A failure that does not pass: the event becomes a dead letter at once.
    pub fn reject(text: impl Display) -> DeliveryError {
        DeliveryError::new(text, Then::Reject)
    }

    fn new(text: impl Display, then: Then) -> DeliveryError {
        let mut text = text.to_string();
        let end = (0..=MAX_TEXT.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        text.truncate(end);
        // PostgreSQL's texts cannot hold it.
        if text.contains('\0') {
            text = text.replace('\0', "\u{fffd}");
        }
        DeliveryError { text, then }
    }
}

impl<E: std::error::Error> From<E> for DeliveryError {
    fn from(error: E) -> DeliveryError {
        DeliveryError::retry(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_a_character_and_holds_no_nul() {
        assert_eq!(DeliveryError::retry("ä".repeat(600)).text.len(), 1000);
        assert_eq!(DeliveryError::retry(format!("x{}", "ä".repeat(600))).text.len(), 999);
        assert_eq!(DeliveryError::reject("a\0b").text, "a\u{fffd}b");
        let error: DeliveryError = std::io::Error::other("down").into();
        assert_eq!(error, DeliveryError::retry("down"));
    }
}
