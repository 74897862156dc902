//! The content of an HTTP request, condensed: [`Fingerprinted`].

use crate::fingerprint::{Fingerprint, FingerprintBuilder};

/// The parts of a request that a retry repeats. They belong to the fingerprint and not to the
/// scope: a retry that is sent to another path is refused, instead of executed a second time.
#[derive(Debug, Clone, Copy)]
pub struct Fingerprinted<'a> {
    /// The method.
    pub method: &'a str,
    /// The path.
    pub path: &'a str,
    /// The query, if there is one.
    pub query: Option<&'a str>,
    /// The `Content-Type`. Only its media type counts, without parameters.
    pub content_type: &'a [u8],
    /// The body.
    pub body: &'a [u8],
}

impl Fingerprinted<'_> {
    /// Returns the fingerprint, with the body byte for byte. The boundary of a multipart body does
    /// not count, since clients draw a new one for each try.
    pub fn bytes(&self) -> Fingerprint {
        let body = match boundary(self.content_type) {
            Some(boundary) => &with_constant_boundary(self.body, &boundary)[..],
            None => self.body,
        };
        self.head().bytes("body", body).build()
    }

    /// Returns the fingerprint, with the body as JSON: white space, the order of members and the
    /// spelling of numbers do not count. A body that is not JSON counts byte for byte.
    pub fn json(&self) -> Fingerprint {
        self.head().json("body", self.body).map_or_else(|_| self.bytes(), FingerprintBuilder::build)
    }

    fn head(&self) -> FingerprintBuilder {
        Fingerprint::builder()
            .bytes("method", self.method)
            .bytes("path", self.path)
            .bytes("query", self.query.unwrap_or_default())
            .bytes("type", essence(self.content_type))
    }
}

/// Returns the media type of a `Content-Type`, in lower case and without its parameters.
pub(crate) fn essence(content_type: &[u8]) -> Vec<u8> {
    let essence = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
    essence.trim_ascii().to_ascii_lowercase()
}

/// Returns the boundary of a multipart body.
fn boundary(content_type: &[u8]) -> Option<Vec<u8>> {
    if !essence(content_type).starts_with(b"multipart/") {
        return None;
    }
    content_type.split(|byte| *byte == b';').skip(1).find_map(|parameter| {
        let (name, value) = parameter.split_at_checked(parameter.iter().position(|byte| *byte == b'=')?)?;
        let value = value[1..].trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        let is_boundary = name.trim_ascii().eq_ignore_ascii_case(b"boundary") && !value.is_empty();
        is_boundary.then(|| value.to_vec())
    })
}

/// Returns the lines of the body, those that delimit parts without the boundary. Each has a tag and
/// a length, so that no content passes for a delimiter.
fn with_constant_boundary(body: &[u8], boundary: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 64);
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        let delimiter = line.strip_prefix(b"--").and_then(|line| line.strip_prefix(boundary));
        let delimiter = delimiter.filter(|rest| matches!(rest.trim_ascii(), b"" | b"--"));
        out.push(u8::from(delimiter.is_some()));
        let kept = delimiter.unwrap_or(line);
        crate::varint::put(&mut out, kept.len() as u64);
        out.extend_from_slice(kept);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYMENT: Fingerprinted<'_> = Fingerprinted {
        method: "POST",
        path: "/pay",
        query: None,
        content_type: b"application/json",
        body: br#"{"amount": 1}"#,
    };

    #[test]
    fn every_part_counts_and_parameters_of_the_media_type_do_not() {
        let same = Fingerprinted { content_type: b"Application/JSON ; charset=utf-8", ..PAYMENT };
        assert_eq!(same.bytes(), PAYMENT.bytes());
        for other in [
            Fingerprinted { method: "PATCH", ..PAYMENT },
            Fingerprinted { path: "/pay/", ..PAYMENT },
            Fingerprinted { query: Some("a=1"), ..PAYMENT },
            Fingerprinted { content_type: b"text/plain", ..PAYMENT },
            Fingerprinted { body: br#"{"amount":1}"#, ..PAYMENT },
        ] {
            assert_ne!(other.bytes(), PAYMENT.bytes(), "{other:?}");
        }
        assert_eq!(Fingerprinted { body: br#"{"amount":1.0}"#, ..PAYMENT }.json(), PAYMENT.json());
        assert_ne!(Fingerprinted { body: br#"{"amount":2}"#, ..PAYMENT }.json(), PAYMENT.json());
        let text = Fingerprinted { body: b"not JSON", ..PAYMENT };
        assert_eq!(text.json(), text.bytes());
    }

    #[test]
    fn the_boundary_of_a_multipart_body_does_not_count() {
        let form = |boundary: &str, value: &str, content_type: &str| {
            let body = format!("--{boundary}\r\nname: a\r\n\r\n{value}\r\n--{boundary}--\r\n");
            let content_type = content_type.as_bytes();
            Fingerprinted { content_type, body: body.as_bytes(), ..PAYMENT }.bytes()
        };
        let one = form("x1", "7", "multipart/form-data; boundary=x1");
        assert_eq!(form("y22", "7", "multipart/form-data; charset=a; Boundary=\"y22\""), one);
        assert_ne!(form("x1", "8", "multipart/form-data; boundary=x1"), one);
        // A value that looks like a delimiter is not one.
        let of = |body: &[u8]| {
            let content_type = b"multipart/form-data; boundary=x1";
            Fingerprinted { content_type, body, ..PAYMENT }.bytes()
        };
        assert_ne!(
            of(b"--x1\r\na\r\n--boundary\r\nb\r\n--x1--\r\n"),
            of(b"--x1\r\na\r\n--x1\r\nb\r\n--x1--\r\n")
        );
        assert_ne!(of(b"--x1y\r\n"), of(b"--x1\r\n"));
        // Without a boundary the body counts as it is.
        assert_ne!(form("x1", "7", "multipart/form-data"), form("x2", "7", "multipart/form-data"));
    }
}
