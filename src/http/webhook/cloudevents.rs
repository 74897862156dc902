//! The key of a CloudEvent.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use serde::Deserialize;

use super::join;
use crate::http::key_source::KeySource;
use crate::http::protocol::{KeyFault, essence, unquote};

/// The `source` and the `id` of a [CloudEvent][doc], which are unique together: the headers
/// `ce-source` and `ce-id`, or members of the body if its type is
/// `application/cloudevents+json`. An event has the same key in both modes. A batch is refused, and
/// so is a structured event in another format than JSON.
///
/// [doc]: https://github.com/cloudevents/spec/tree/main/cloudevents
pub fn cloudevents() -> KeySource {
    KeySource::custom(|parts, body| {
        let content_type = parts.headers.get(CONTENT_TYPE).map(|value| essence(value.as_bytes()));
        let content_type = content_type.unwrap_or_default();
        if content_type.starts_with(b"application/cloudevents-batch") {
            return Err(KeyFault::Batch);
        }
        if content_type.starts_with(b"application/cloudevents") {
            return structured(body);
        }
        let (source, id) = (attribute(parts, "ce-source")?, attribute(parts, "ce-id")?);
        source.zip(id).map(|(source, id)| joined(&source, &id)).transpose()
    })
}

#[derive(Deserialize)]
struct Event {
    source: String,
    id: String,
}

/// Returns the key of an event in a JSON body. Unlike a `Value`, an `Event` has no member twice.
fn structured(body: &Bytes) -> Result<Option<String>, KeyFault> {
    match serde_json::from_slice::<Event>(body) {
        Ok(Event { source, id }) => joined(&source, &id).map(Some),
        Err(_) => Ok(None),
    }
}

fn joined(source: &str, id: &str) -> Result<String, KeyFault> {
    if source.is_empty() || id.is_empty() { Err(KeyFault::Empty) } else { Ok(join(source, id)) }
}

/// Returns an attribute that is in a header: quoted or not, then percent-encoded.
fn attribute(parts: &Parts, name: &str) -> Result<Option<String>, KeyFault> {
    let mut values = parts.headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(KeyFault::Repeated);
    }
    let value = value.to_str().map_err(|_| KeyFault::Characters)?.trim_matches([' ', '\t']);
    let value = match value.strip_prefix('"') {
        Some(rest) => unquote(rest)?,
        // A URI may have commas; joined headers have a space behind them.
        None if value.contains(", ") => return Err(KeyFault::Comma),
        None => value.to_owned(),
    };
    decoded(&value).map(Some).ok_or(KeyFault::Characters)
}

/// Decodes percent-encoding once; `None` if an escape is incomplete or the bytes are not UTF-8.
fn decoded(text: &str) -> Option<String> {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.extend(hex::decode(digits).ok()?);
            rest = after;
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Found, find, key};
    use super::*;

    fn binary(source: &str, id: &str) -> Found {
        let headers = [
            ("ce-specversion", "1.0"),
            ("ce-type", "com.example.someevent"),
            ("ce-id", id),
            ("ce-source", source),
            ("Content-Type", "application/json; charset=utf-8"),
        ];
        find(&cloudevents(), &headers, "{}")
    }

    fn json(content_type: &str, body: &str) -> Found {
        find(&cloudevents(), &[("Content-Type", content_type)], body)
    }

    #[test]
    fn an_event_has_the_same_key_in_both_modes() {
        let event = r#"{"specversion": "1.0", "type": "com.example.someevent",
            "source": "/mycontext/subcontext", "id": "1234-1234-1234", "data": {"id": "other"}}"#;
        let expected = key("21:/mycontext/subcontext1234-1234-1234");
        assert_eq!(json("application/cloudevents+json; charset=UTF-8", event), expected);
        assert_eq!(binary("/mycontext/subcontext", "1234-1234-1234"), expected);
        assert_eq!(binary("\"/mycontext/subcontext\"", "\"1234-1234-1234\""), expected);

        let event = r#"{"source": "/a,b", "id": "Euro € 😀"}"#;
        let expected = key("4:/a,bEuro € 😀");
        assert_eq!(json("application/cloudevents+json", event), expected);
        assert_eq!(binary("/a,b", "Euro%20%E2%82%AC%20%f0%9f%98%80"), expected);
        assert_ne!(binary("/a", "bc"), binary("/ab", "c"));
    }

    #[test]
    fn a_long_source_is_condensed() {
        let source = format!("https://example.com/{}", "x".repeat(300));
        let key = binary(&source, "1").unwrap().unwrap();
        assert!(key.starts_with("blake3:") && key.len() == 71, "{key}");
        assert_ne!(binary(&source, "2").unwrap().unwrap(), key);
    }

    #[test]
    fn an_event_without_a_key_or_with_an_unclear_one_is_refused() {
        let structured = "application/cloudevents+json";
        for nothing in [
            "",
            "{}",
            "[]",
            r#"{"id": "1"}"#,
            r#"{"source": "/a", "id": 1}"#,
            r#"{"source":"/a","id":"1","id":"2"}"#,
        ] {
            assert_eq!(json(structured, nothing), Ok(None), "{nothing}");
        }
        assert_eq!(json(structured, r#"{"source": "/a", "id": ""}"#), Err(KeyFault::Empty));
        assert_eq!(json("application/cloudevents-batch+json", "[]"), Err(KeyFault::Batch));
        assert_eq!(json("application/cloudevents+avro", "?"), Ok(None));
        assert_eq!(json("application/json", r#"{"source": "/a", "id": "1"}"#), Ok(None));
        assert_eq!(binary("/a", ""), Err(KeyFault::Empty));
        assert_eq!(binary("/a", "1, 2"), Err(KeyFault::Comma));
        // Half an escape, and an overlong encoding of a space.
        assert_eq!(binary("/a", "50%"), Err(KeyFault::Characters));
        assert_eq!(binary("/a", "%C0%A0"), Err(KeyFault::Characters));
        let twice = [("ce-id", "1"), ("ce-id", "1"), ("ce-source", "/a")];
        assert_eq!(find(&cloudevents(), &twice, ""), Err(KeyFault::Repeated));
    }
}
