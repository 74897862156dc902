//! The place of the key in a request ([`KeySource`]) and the content that a retry must repeat
//! ([`RequestFingerprint`]).

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderName;
use http::header::CONTENT_TYPE;
use http::request::Parts;

use super::protocol::{Fingerprinted, KeyFault, check_key, parse_key};
use crate::fingerprint::Fingerprint;

type FindInHead = dyn Fn(&Parts) -> Result<Option<String>, KeyFault> + Send + Sync;
type FindKey = dyn Fn(&Parts, &Bytes) -> Result<Option<String>, KeyFault> + Send + Sync;
type Condense = dyn Fn(&Parts, &Bytes) -> Fingerprint + Send + Sync;

/// The place of the key in a request. **Default: the `Idempotency-Key` header.**
#[derive(Clone)]
pub struct KeySource(Source);

#[derive(Clone)]
enum Source {
    Header(HeaderName),
    Head(Arc<FindInHead>),
    Custom(Arc<FindKey>),
}

impl KeySource {
    /// A header, whose value is read as by [`parse_key`].
    pub fn header(name: HeaderName) -> KeySource {
        KeySource(Source::Header(name))
    }

    /// A text in a JSON body, by its JSON pointer (RFC 6901): `/idempotency_key` for Square's API.
    /// A body that is not JSON, or has nothing there, has no key.
    pub fn json_pointer(pointer: impl Into<String>) -> KeySource {
        let pointer = pointer.into();
        KeySource::custom(move |_, body| {
            let Ok(body) = serde_json::from_slice::<serde_json::Value>(body) else { return Ok(None) };
            match body.pointer(&pointer) {
                None | Some(serde_json::Value::Null) => Ok(None),
                Some(serde_json::Value::String(key)) => Ok(Some(key.clone())),
                Some(_) => Err(KeyFault::NotText),
            }
        })
    }

    /// A function of the request's head, which is called before the body is read. Otherwise as
    /// [`custom`](KeySource::custom).
    pub fn head<F>(find: F) -> KeySource
    where
        F: Fn(&Parts) -> Result<Option<String>, KeyFault> + Send + Sync + 'static,
    {
        KeySource(Source::Head(Arc::new(find)))
    }

    /// A function of the request's head and body. `Ok(None)` means that the request has no key. An
    /// empty key, one over 255 bytes or one with control characters is refused as malformed.
    pub fn custom<F>(find: F) -> KeySource
    where
        F: Fn(&Parts, &Bytes) -> Result<Option<String>, KeyFault> + Send + Sync + 'static,
    {
        KeySource(Source::Custom(Arc::new(find)))
    }

    /// Returns true if the key is known before the body is read.
    pub(super) fn is_early(&self) -> bool {
        match self.0 {
            Source::Header(_) | Source::Head(_) => true,
            Source::Custom(_) => false,
        }
    }

    pub(super) fn find(&self, parts: &Parts, body: &Bytes) -> Result<Option<String>, KeyFault> {
        match &self.0 {
            Source::Header(name) => {
                parse_key(parts.headers.get_all(name).iter().map(|value| value.as_bytes()))
            }
            Source::Head(find) => checked(find(parts)?),
            Source::Custom(find) => checked(find(parts, body)?),
        }
    }
}

fn checked(key: Option<String>) -> Result<Option<String>, KeyFault> {
    key.iter().try_for_each(|key| check_key(key))?;
    Ok(key)
}

impl Default for KeySource {
    fn default() -> KeySource {
        KeySource::header(HeaderName::from_static("idempotency-key"))
    }
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Header(name) => f.debug_tuple("Header").field(name).finish(),
            Source::Head(_) => f.write_str("Head"),
            Source::Custom(_) => f.write_str("Custom"),
        }
    }
}

/// The content that a retry must repeat: a request under a used key that differs in it is refused
/// with [`Problem::Mismatch`](super::Problem::Mismatch). **Default: [`body`](Self::body).**
#[derive(Clone)]
pub struct RequestFingerprint(Condensed);

#[derive(Clone)]
enum Condensed {
    Body,
    Json,
    Path,
    Custom(Arc<Condense>),
}

impl RequestFingerprint {
    /// Method, path, query, media type and body, byte for byte.
    pub fn body() -> RequestFingerprint {
        RequestFingerprint(Condensed::Body)
    }

    /// The same, with the body as JSON: clients that serialise a retry anew may order members
    /// otherwise.
    pub fn json() -> RequestFingerprint {
        RequestFingerprint(Condensed::Json)
    }

    /// Method and path only: a key that is reused for another body gets the first one's response.
    /// For webhooks, whose bodies differ between deliveries of one event.
    pub fn path() -> RequestFingerprint {
        RequestFingerprint(Condensed::Path)
    }

    /// A function of the request's head and body. Include method and path.
    pub fn custom<F>(condense: F) -> RequestFingerprint
    where
        F: Fn(&Parts, &Bytes) -> Fingerprint + Send + Sync + 'static,
    {
        RequestFingerprint(Condensed::Custom(Arc::new(condense)))
    }

    /// Returns the fingerprint of a request, whose path counts as `path`.
    pub(super) fn of(&self, parts: &Parts, path: &str, body: &Bytes) -> Fingerprint {
        let request = Fingerprinted {
            method: parts.method.as_str(),
            path,
            query: parts.uri.query(),
            content_type: parts.headers.get(CONTENT_TYPE).map_or(&[], |value| value.as_bytes()),
            body,
        };
        match &self.0 {
            Condensed::Body => request.bytes(),
            Condensed::Json => request.json(),
            Condensed::Path => Fingerprinted { query: None, content_type: b"", body: b"", ..request }.bytes(),
            Condensed::Custom(condense) => condense(parts, body),
        }
    }
}

impl Default for RequestFingerprint {
    fn default() -> RequestFingerprint {
        RequestFingerprint::body()
    }
}

impl fmt::Debug for RequestFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Condensed::Body => "Body",
            Condensed::Json => "Json",
            Condensed::Path => "Path",
            Condensed::Custom(_) => "Custom",
        })
    }
}
