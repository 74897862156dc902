//! The stored form of a response's head: [`Envelope`].

use std::fmt;

use bytes::{Buf, Bytes};
use thiserror::Error;

use crate::record::Body;
use crate::varint;

/// A header or trailer: its name in lower case, and its value.
pub type Header = (String, Bytes);

/// The status, the kept headers and the trailers of a response: the head of a recorded [`Body`],
/// which is kept even if the body itself is not. `Debug` shows no values.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Envelope {
    /// The status code.
    pub status: u16,
    /// The kept headers, in order.
    pub headers: Vec<Header>,
    /// The trailers, in order.
    pub trailers: Vec<Header>,
}

/// The reason why the head of a record is not the envelope of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// A later release wrote it.
    #[error("the recorded head is that of a later release")]
    Newer,
    /// Another part of the application wrote it, or nothing.
    #[error("the recorded head is not that of an HTTP response")]
    Other,
}

/// The first byte of an envelope, with the number of its format in the lower four bits. No text
/// begins with it, since UTF-8 has two more such bytes behind it.
const FORMAT: u8 = 0xe1;
const FORMATS: std::ops::RangeInclusive<u8> = 0xe2..=0xef;

/// The headers that are kept unless the application adds more. A coded body is of no use without
/// its `Content-Encoding`.
const KEPT: [&str; 6] = ["content-encoding", "content-language", "content-type", "etag", "link", "location"];

/// Headers that are never kept: they belong to one connection, to one moment, or to one client.
const NEVER_KEPT: [&str; 17] = [
    "age",
    "connection",
    "content-length",
    "date",
    "idempotency-replayed",
    "idempotent-replayed",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "www-authenticate",
];

impl Envelope {
    /// An envelope without headers.
    pub fn new(status: u16) -> Envelope {
        Envelope { status, headers: Vec::new(), trailers: Vec::new() }
    }

    /// Returns true if a response header of this name (in lower case) is kept by default, or is one
    /// of `also` and may be kept at all: `Set-Cookie`, `WWW-Authenticate`, `Date`,
    /// `Content-Length`, `Access-Control-*` and the headers of a connection never are.
    pub fn keeps(name: &str, also: &[String]) -> bool {
        let may = Envelope::may_keep(name);
        may && (KEPT.contains(&name) || also.iter().any(|kept| kept == name))
    }

    /// Returns true if a header of this name may be sent again with a stored response.
    pub(crate) fn may_keep(name: &str) -> bool {
        !NEVER_KEPT.contains(&name) && !name.starts_with("access-control-")
    }

    /// Returns the same envelope for a response without its body.
    pub(crate) fn without_content(mut self) -> Envelope {
        self.headers.retain(|(name, _)| !name.starts_with("content-") && name != "etag");
        self
    }

    /// Returns the value of the first header of this name.
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// Encodes it as the head of a record. Of headers that do not fit into [`Body::MAX_HEAD`], the
    /// longest are left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut kept = self.clone();
        loop {
            let head = kept.encode_all();
            if head.len() <= Body::MAX_HEAD {
                return head;
            }
            let longest = |headers: &[Header]| {
                let longest = headers.iter().enumerate().max_by_key(|(_, header)| length(header));
                longest.map(|(at, header)| (at, length(header)))
            };
            match (longest(&kept.headers), longest(&kept.trailers)) {
                (Some((at, header)), trailer) if trailer.is_none_or(|(_, trailer)| trailer <= header) => {
                    kept.headers.remove(at);
                }
                (_, Some((at, _))) => {
                    kept.trailers.remove(at);
                }
                (_, None) => return head,
            }
        }
    }

    fn encode_all(&self) -> Vec<u8> {
        let mut out = vec![FORMAT];
        varint::put(&mut out, self.status.into());
        for headers in [&self.headers, &self.trailers] {
            varint::put(&mut out, headers.len() as u64);
            for (name, value) in headers {
                for bytes in [name.as_bytes(), value] {
                    varint::put(&mut out, bytes.len() as u64);
                    out.extend_from_slice(bytes);
                }
            }
        }
        out
    }

    /// Decodes the head of a record. Never panics, for any bytes.
    ///
    /// # Errors
    /// [`EnvelopeError`] for a head that was not made by [`encode`](Envelope::encode).
    pub fn decode(head: &[u8]) -> Result<Envelope, EnvelopeError> {
        let mut input = head;
        match input.try_get_u8() {
            Ok(FORMAT) => {}
            Ok(newer) if FORMATS.contains(&newer) => return Err(EnvelopeError::Newer),
            Ok(_) | Err(_) => return Err(EnvelopeError::Other),
        }
        let status = u16::try_from(number(&mut input)?).map_err(|_| EnvelopeError::Other)?;
        if !(100..=999).contains(&status) {
            return Err(EnvelopeError::Other);
        }
        let headers = decode_headers(&mut input)?;
        let trailers = decode_headers(&mut input)?;
        if input.is_empty() { Ok(Envelope { status, headers, trailers }) } else { Err(EnvelopeError::Other) }
    }
}

fn length((name, value): &Header) -> usize {
    name.len() + value.len()
}

fn number(input: &mut &[u8]) -> Result<u64, EnvelopeError> {
    varint::get(input).map_err(|_| EnvelopeError::Other)
}

fn decode_headers(input: &mut &[u8]) -> Result<Vec<Header>, EnvelopeError> {
    let count = number(input)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let name = String::from_utf8(take(input)?.to_vec()).map_err(|_| EnvelopeError::Other)?;
        headers.push((name, Bytes::copy_from_slice(take(input)?)));
    }
    Ok(headers)
}

fn take<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], EnvelopeError> {
    let length = usize::try_from(number(input)?).map_err(|_| EnvelopeError::Other)?;
    let (taken, rest) = input.split_at_checked(length).ok_or(EnvelopeError::Other)?;
    *input = rest;
    Ok(taken)
}

impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |headers: &[Header]| headers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        f.debug_struct("Envelope")
            .field("status", &self.status)
            .field("headers", &names(&self.headers))
            .field("trailers", &names(&self.trailers))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, value: &[u8]) -> Header {
        (name.to_owned(), Bytes::copy_from_slice(value))
    }

    fn envelope() -> Envelope {
        Envelope {
            status: 201,
            headers: vec![header("location", b"/charges/1"), header("link", b"\xff, a"), header("link", b"")],
            trailers: vec![header("grpc-status", b"0")],
        }
    }

    #[test]
    fn an_envelope_reads_back_and_nothing_else_does() {
        let head = envelope().encode();
        assert_eq!(Envelope::decode(&head), Ok(envelope()));
        for end in 0..head.len() {
            assert_eq!(Envelope::decode(&head[..end]), Err(EnvelopeError::Other), "cut at {end}");
        }
        assert_eq!(Envelope::decode(&[&head[..], &[0]].concat()), Err(EnvelopeError::Other));
        assert_eq!(Envelope::decode(b"receipt 7"), Err(EnvelopeError::Other));
        assert_eq!(Envelope::decode(&[0xe2, 1, 2]), Err(EnvelopeError::Newer));
        // A count that no input could fill neither allocates nor loops.
        assert_eq!(
            Envelope::decode(&[FORMAT, 200, 1, 0xff, 0xff, 0xff, 0xff, 0xf]),
            Err(EnvelopeError::Other)
        );
    }

    #[test]
    fn what_does_not_fit_is_left_out_longest_first() {
        let mut large = envelope();
        large.headers.push(header("etag", &[b'e'; 9_000]));
        large.headers.push(header("x-large", &[b'x'; 9_000]));
        let head = large.encode();
        assert!(head.len() <= Body::MAX_HEAD);
        let kept = Envelope::decode(&head).unwrap();
        assert_eq!((kept.headers.len(), kept.trailers.len(), kept.status), (4, 1, 201));
        assert_eq!(kept.header("location").unwrap(), "/charges/1");
    }

    #[test]
    fn headers_of_one_connection_or_client_are_never_kept() {
        let also = ["x-request-id", "set-cookie", "date", "access-control-allow-origin"].map(str::to_owned);
        for name in ["content-type", "location", "etag", "link", "content-encoding", "x-request-id"] {
            assert!(Envelope::keeps(name, &also), "{name}");
        }
        for name in ["set-cookie", "date", "access-control-allow-origin", "x-other", "content-length"] {
            assert!(!Envelope::keeps(name, &also), "{name}");
        }
        assert!(!Envelope::keeps("x-request-id", &[]));
    }
}
