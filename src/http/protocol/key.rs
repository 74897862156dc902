//! The value of the `Idempotency-Key` header: [`parse_key`].

use thiserror::Error;

/// The longest key, in bytes, without its quotes and escapes.
pub const MAX_KEY_BYTES: usize = crate::MAX_KEY_BYTES;

/// The reason why a header does not carry a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyFault {
    /// The header appears more than once.
    #[error("the header appears more than once")]
    Repeated,
    /// The key is empty.
    #[error("the key is empty")]
    Empty,
    /// The key is longer than [`MAX_KEY_BYTES`].
    #[error("the key has more than {MAX_KEY_BYTES} bytes")]
    TooLong,
    /// The key contains a control character or one outside of ASCII.
    #[error("the key may contain only printable ASCII characters")]
    Characters,
    /// A quoted key is not closed, is followed by anything else, or has an escape other than `\"`
    /// and `\\`.
    #[error("a quoted key must be one structured-field string, such as \"8d7f-11\"")]
    Quotes,
    /// A key without quotes contains a quote or a comma. Proxies join repeated headers by commas.
    #[error("a key without quotes must not contain a quote or a comma: is the header sent twice?")]
    Comma,
    /// The place in which the key is expected holds something else than a text.
    #[error("the key must be a text")]
    NotText,
    /// The request carries several events, each with a key of its own.
    #[error("the request carries several events: deliver each in a request of its own")]
    Batch,
}

/// Returns the key that the values of an `Idempotency-Key` header carry; `None` if there are none.
///
/// A key is a structured-field string (RFC 9651), as the draft demands, or the bare text that most
/// clients send; `"8d7f"` and `8d7f` are one key. Parameters behind a string are refused, since the
/// draft defines none.
///
/// ```
/// use nevertwice::http::protocol::{KeyFault, parse_key};
/// assert_eq!(parse_key([&b"8d7f-11"[..]])?.as_deref(), Some("8d7f-11"));
/// assert_eq!(parse_key([&br#""8d7f-11""#[..]])?.as_deref(), Some("8d7f-11"));
/// assert_eq!(parse_key([&b"a, b"[..]]), Err(KeyFault::Comma));
/// assert_eq!(parse_key([&b"a"[..], b"b"]), Err(KeyFault::Repeated));
/// # Ok::<(), KeyFault>(())
/// ```
///
/// # Errors
/// [`KeyFault`]: the request must be refused, and must not be executed.
pub fn parse_key<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<String>, KeyFault> {
    let mut values = values.into_iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(KeyFault::Repeated);
    }
    let value = std::str::from_utf8(value).map_err(|_| KeyFault::Characters)?;
    let value = value.trim_matches([' ', '\t']);
    if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err(KeyFault::Characters);
    }
    let key = match value.strip_prefix('"') {
        Some(rest) => unquote(rest)?,
        None if value.contains(['"', ',']) => return Err(KeyFault::Comma),
        None => value.to_owned(),
    };
    check(&key)?;
    Ok(Some(key))
}

/// Checks a key that comes from elsewhere than the header.
pub(crate) fn check(key: &str) -> Result<(), KeyFault> {
    match key.len() {
        0 => Err(KeyFault::Empty),
        length if length > MAX_KEY_BYTES => Err(KeyFault::TooLong),
        _ if key.chars().any(char::is_control) => Err(KeyFault::Characters),
        _ => Ok(()),
    }
}

/// Reads a string behind its opening quote.
pub(crate) fn unquote(rest: &str) -> Result<String, KeyFault> {
    let mut key = String::with_capacity(rest.len());
    let mut characters = rest.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' if characters.as_str().is_empty() => return Ok(key),
            '"' => return Err(KeyFault::Quotes),
            '\\' => match characters.next() {
                Some(escaped @ ('"' | '\\')) => key.push(escaped),
                _ => return Err(KeyFault::Quotes),
            },
            plain => key.push(plain),
        }
    }
    Err(KeyFault::Quotes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(value: &str) -> Result<Option<String>, KeyFault> {
        parse_key([value.as_bytes()])
    }

    #[test]
    fn a_key_is_a_quoted_string_or_a_bare_text() {
        for (value, key) in [
            ("8d7f", "8d7f"),
            (" 8d7f\t", "8d7f"),
            ("\"8d7f\"", "8d7f"),
            ("\"a, b\"", "a, b"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            ("arn:aws:sqs:eu/1", "arn:aws:sqs:eu/1"),
            ("a b", "a b"),
            (r"a\b", r"a\b"),
        ] {
            assert_eq!(parsed(value), Ok(Some(key.to_owned())), "{value}");
        }
        assert_eq!(parse_key([]), Ok(None));
        let longest = "k".repeat(MAX_KEY_BYTES);
        assert_eq!(parsed(&longest), Ok(Some(longest.clone())));
        assert_eq!(parsed(&format!("\"{longest}\"")), Ok(Some(longest)));
    }

    #[test]
    fn a_malformed_key_is_refused() {
        let long = "k".repeat(MAX_KEY_BYTES + 1);
        let quoted = format!("\"{long}\"");
        for (value, fault) in [
            ("", KeyFault::Empty),
            ("  ", KeyFault::Empty),
            ("\"\"", KeyFault::Empty),
            (&long, KeyFault::TooLong),
            (&quoted, KeyFault::TooLong),
            ("a\tb", KeyFault::Characters),
            ("a\u{7f}", KeyFault::Characters),
            ("é", KeyFault::Characters),
            ("\"é\"", KeyFault::Characters),
            ("\"a", KeyFault::Quotes),
            ("\"", KeyFault::Quotes),
            ("\"a\\", KeyFault::Quotes),
            (r#""a\n""#, KeyFault::Quotes),
            (r#""a", "b""#, KeyFault::Quotes),
            (r#""a";p=1"#, KeyFault::Quotes),
            ("\"a\"b", KeyFault::Quotes),
            ("a\"", KeyFault::Comma),
            ("a,b", KeyFault::Comma),
            ("a, b", KeyFault::Comma),
        ] {
            assert_eq!(parsed(value), Err(fault), "{value:?}");
        }
        assert_eq!(parse_key([&[0xff, 0xfe][..]]), Err(KeyFault::Characters));
        assert_eq!(parse_key([&b"a"[..], b"a"]), Err(KeyFault::Repeated));
    }
}
