//! The described request, and the messages made of it.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use serde_json::Value;
use url::Url;

use super::args::Args;
use super::curl::{Curl, Piece};
use super::{Problem, checked};

/// The place that each operation fills with a text of its own, for services that accept a payload
/// once.
const UNIQUE: &str = "{{unique}}";

/// The request that is audited, without a key.
#[derive(Debug, Clone)]
pub(super) struct RequestSpec {
    pub(super) method: Method,
    pub(super) url: Url,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    other: Option<Vec<u8>>,
    pub(super) key_header: HeaderName,
}

/// One of the two payloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Payload {
    Described,
    Other,
    None,
}

/// A request as it is sent.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) body: Bytes,
}

impl RequestSpec {
    pub(super) fn of(args: &Args) -> Result<RequestSpec, Problem> {
        let mut spec = match &args.curl {
            Some(line) => RequestSpec::of_curl(&Curl::parse_line(line)?)?,
            None => RequestSpec::of_options(args)?,
        };
        spec.key_header = args
            .key_header
            .parse()
            .map_err(|_| Problem::usage("--key-header: that is no name of a header"))?;
        // The audit sends keys of its own.
        let key_header = spec.key_header.clone();
        spec.headers.retain(|(name, _)| !name.eq_ignore_ascii_case(key_header.as_str()));
        spec.take_password()?;
        spec.other = match &args.other_data {
            Some(data) => Some(data_or_file(data)?),
            None => other_body(&spec.body, &spec.content_type()),
        };
        spec.message("check", &[], Payload::Described, &[])?;
        Ok(spec)
    }

    fn of_options(args: &Args) -> Result<RequestSpec, Problem> {
        let (method, url) = match &*args.what {
            [url] => ("POST", url),
            [method, url] => (&**method, url),
            _ => return Err(Problem::usage("give a method and a URL, or --curl")),
        };
        let mut spec = RequestSpec::new(method, url)?;
        spec.headers = args.header.iter().map(|header| split(header)).collect::<Result<_, _>>()?;
        if let Some(json) = &args.json {
            serde_json::from_str::<Value>(json)
                .map_err(|error| Problem::usage(format!("--json is no JSON: {error}")))?;
            spec.default_type("application/json");
            spec.body = json.clone().into_bytes();
        } else if !args.form.is_empty() {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            for field in &args.form {
                let (name, value) = field
                    .split_once('=')
                    .ok_or_else(|| Problem::usage("--form: write a field as key=value"))?;
                form.append_pair(name, value);
            }
            spec.default_type("application/x-www-form-urlencoded");
            // The place of a unique text is not encoded.
            spec.body = form.finish().replace("%7B%7Bunique%7D%7D", UNIQUE).into_bytes();
        } else if let Some(data) = &args.data {
            spec.body = data_or_file(data)?;
            let is_json = serde_json::from_slice::<Value>(&spec.body).is_ok();
            spec.default_type(if is_json { "application/json" } else { "application/x-www-form-urlencoded" });
        }
        Ok(spec)
    }

    fn of_curl(curl: &Curl) -> Result<RequestSpec, Problem> {
        let url = curl.address()?;
        let pieces = curl.pieces()?;
        let has_body = !pieces.is_empty() || !curl.json.is_empty();
        let method = curl.request.as_deref().unwrap_or(if has_body { "POST" } else { "GET" });
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let mut spec = RequestSpec::new(method, &url)?;
        spec.headers = curl.headers().iter().map(|header| split(header)).collect::<Result<_, _>>()?;
        if let Some(user) = &curl.user {
            spec.headers.push(basic(user));
        }
        if curl.json.is_empty() {
            let mut bodies = Vec::new();
            for piece in pieces {
                bodies.push(match piece {
                    Piece::Text(text) => text.into_bytes(),
                    Piece::File(path) => read(&path)?,
                });
            }
            if has_body {
                spec.default_type("application/x-www-form-urlencoded");
            }
            spec.body = bodies.join(&b'&');
        } else {
            spec.default_type("application/json");
            for json in &curl.json {
                spec.body.extend(data_or_file(json)?);
            }
        }
        Ok(spec)
    }

    fn new(method: &str, url: &str) -> Result<RequestSpec, Problem> {
        let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes())
            .map_err(|_| Problem::usage("that is no method"))?;
        if matches!(method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::CONNECT) {
            let message = format!("{method} has no effect to protect: describe a POST, PATCH, PUT or DELETE");
            return Err(Problem::usage(message));
        }
        let url = parse_url(url)?;
        let key_header = HeaderName::from_static("idempotency-key");
        Ok(RequestSpec { method, url, headers: Vec::new(), body: Vec::new(), other: None, key_header })
    }

    /// Moves a password of the address into a header.
    fn take_password(&mut self) -> Result<(), Problem> {
        if self.url.username().is_empty() && self.url.password().is_none() {
            return Ok(());
        }
        self.headers.push(basic(&format!(
            "{}:{}",
            self.url.username(),
            self.url.password().unwrap_or_default()
        )));
        let cleared = self.url.set_username("").and_then(|()| self.url.set_password(None));
        cleared.map_err(|()| Problem::usage("the URL has no host"))
    }

    fn default_type(&mut self, content_type: &str) {
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            self.headers.push(("content-type".to_owned(), content_type.to_owned()));
        }
    }

    fn content_type(&self) -> String {
        let found = self.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        found.map(|(_, value)| value.to_ascii_lowercase()).unwrap_or_default()
    }

    pub(super) fn has_other(&self) -> bool {
        self.other.is_some()
    }

    pub(super) fn has_body(&self) -> bool {
        !self.body.is_empty()
    }

    /// Makes a message: `unique` fills its place, and `extra` headers stand for those of the same
    /// names.
    pub(super) fn message(
        &self,
        unique: &str,
        keys: &[String],
        payload: Payload,
        extra: &[(HeaderName, HeaderValue)],
    ) -> Result<Message, Problem> {
        let body = match payload {
            Payload::Described => self.body.clone(),
            Payload::Other => self.other.clone().unwrap_or_default(),
            Payload::None => Vec::new(),
        };
        let body = fill(&body, unique);
        let path = self.url[url::Position::BeforePath..url::Position::AfterQuery]
            .replace("%7B%7Bunique%7D%7D", unique)
            .replace(UNIQUE, unique);
        let mut headers = Vec::new();
        for (name, value) in &self.headers {
            let header = header(name, &value.replace(UNIQUE, unique))?;
            let replaced = extra.iter().any(|(name, _)| *name == header.0);
            let of_the_body = payload == Payload::None && header.0.as_str().starts_with("content-");
            if !replaced && !of_the_body && header.0 != http::header::CONTENT_LENGTH {
                headers.push(header);
            }
        }
        headers.extend(extra.iter().cloned());
        for key in keys {
            let value = HeaderValue::from_bytes(key.as_bytes())
                .map_err(|_| Problem::usage("a key is not sendable"))?;
            headers.push((self.key_header.clone(), value));
        }
        Ok(Message { method: self.method.clone(), path, headers, body: body.into() })
    }
}

impl Message {
    /// The bytes of the message in HTTP/1.1.
    pub(super) fn raw(&self, authority: &str) -> Vec<u8> {
        let authority = self.host().unwrap_or(authority);
        let mut bytes =
            format!("{} {} HTTP/1.1\r\nHost: {authority}\r\n", self.method, self.path).into_bytes();
        for (name, value) in &self.headers {
            if *name == http::header::HOST {
                continue;
            }
            bytes.extend_from_slice(name.as_str().as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(value.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", self.body.len()).as_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }

    /// The host that the user named in place of that of the address.
    pub(super) fn host(&self) -> Option<&str> {
        let host = self.headers.iter().find(|(name, _)| *name == http::header::HOST);
        host.and_then(|(_, value)| value.to_str().ok())
    }

    /// The number of bytes before the body.
    pub(super) fn head_len(&self, authority: &str) -> usize {
        self.raw(authority).len() - self.body.len()
    }
}

/// Parses an address of HTTP.
pub(super) fn parse_url(text: &str) -> Result<Url, Problem> {
    let url = Url::parse(text).map_err(|error| Problem::usage(format!("that is no URL: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(Problem::usage("the URL must begin with http:// or https://"));
    }
    Ok(url)
}

/// Parses headers, `Name: value` each.
pub(super) fn headers(texts: &[String]) -> Result<Vec<(HeaderName, HeaderValue)>, Problem> {
    texts.iter().map(|text| split(text).and_then(|(name, value)| header(&name, &value))).collect()
}

fn split(text: &str) -> Result<(String, String), Problem> {
    // The text is not shown: it may be a secret.
    let (name, value) =
        text.split_once(':').ok_or_else(|| Problem::usage("a header is written 'Name: value'"))?;
    let pair = (name.trim().to_owned(), value.trim().to_owned());
    header(&pair.0, &pair.1).map(|_| pair)
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Problem> {
    let name: HeaderName = name
        .parse()
        .map_err(|_| Problem::usage("the name of a header has characters that it may not have"))?;
    let value = HeaderValue::from_bytes(value.as_bytes())
        .map_err(|_| Problem::usage(format!("the header {name} has characters that it may not have")))?;
    Ok((name, value))
}

fn basic(user: &str) -> (String, String) {
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(user);
    ("authorization".to_owned(), format!("Basic {encoded}"))
}

fn data_or_file(data: &str) -> Result<Vec<u8>, Problem> {
    data.strip_prefix('@').map_or_else(|| Ok(data.to_owned().into_bytes()), read)
}

/// The longest body that is read from a file.
const MAX_BODY: u64 = 4 << 20;

fn read(path: &str) -> Result<Vec<u8>, Problem> {
    let failed = |error: std::io::Error| Problem::usage(format!("cannot read {path}: {error}"));
    let size = std::fs::metadata(path).map_err(failed)?.len();
    checked(size <= MAX_BODY, || format!("{path} has {size} bytes: at most {MAX_BODY} are sent"))?;
    std::fs::read(path).map_err(failed)
}

fn fill(body: &[u8], unique: &str) -> Vec<u8> {
    match std::str::from_utf8(body) {
        Ok(text) if text.contains(UNIQUE) => text.replace(UNIQUE, unique).into_bytes(),
        Ok(_) | Err(_) => body.to_vec(),
    }
}

/// Returns the body with one value changed, if it is JSON or a form.
fn other_body(body: &[u8], content_type: &str) -> Option<Vec<u8>> {
    if body.is_empty() {
        return None;
    }
    if content_type.contains("json") {
        let mut value = serde_json::from_slice(body).ok()?;
        return (change(&mut value, Kind::Number) || change(&mut value, Kind::Text))
            .then(|| value.to_string().into());
    }
    if content_type.contains("x-www-form-urlencoded") {
        let text = std::str::from_utf8(body).ok()?;
        let fields: Vec<_> = text.split('&').collect();
        let number =
            |field: &&str| field.split_once('=').is_some_and(|(_, value)| value.parse::<i64>().is_ok());
        let at = fields.iter().position(number).or_else(|| fields.iter().rposition(|f| f.contains('=')))?;
        let (name, value) = fields[at].split_once('=')?;
        let value = value
            .parse::<i64>()
            .map_or_else(|_| format!("{value}x"), |value| value.wrapping_add(1).to_string());
        let changed = format!("{name}={value}");
        let fields: Vec<_> =
            fields.iter().enumerate().map(|(n, field)| if n == at { &*changed } else { field }).collect();
        return Some(fields.join("&").into_bytes());
    }
    None
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Number,
    Text,
}

/// Changes the first value of the kind, the outermost first.
fn change(value: &mut Value, kind: Kind) -> bool {
    match value {
        Value::Number(number) if kind == Kind::Number => {
            let other = number.as_i64().map(|number| Value::from(number.wrapping_add(1)));
            let other = other.or_else(|| number.as_f64().map(|number| Value::from(number + 1.0)));
            other.map(|other| *value = other).is_some()
        }
        Value::String(text) if kind == Kind::Text && !text.contains(UNIQUE) => {
            text.push('x');
            true
        }
        Value::Array(values) => values.iter_mut().any(|value| change(value, kind)),
        Value::Object(members) => {
            let (simple, nested): (Vec<_>, Vec<_>) =
                members.values_mut().partition(|value| !value.is_object() && !value.is_array());
            simple.into_iter().chain(nested).any(|value| change(value, kind))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(body: &str, content_type: &str) -> Option<String> {
        other_body(body.as_bytes(), content_type).map(|body| String::from_utf8(body).unwrap())
    }

    #[test]
    fn the_other_payload_differs_in_one_value() {
        assert_eq!(
            other(r#"{"amount":1,"to":"a"}"#, "application/json").as_deref(),
            Some(r#"{"amount":2,"to":"a"}"#)
        );
        assert_eq!(other(r#"{"to":"a"}"#, "application/json").as_deref(), Some(r#"{"to":"ax"}"#));
        assert_eq!(
            other(r#"{"a":{"n":7},"m":1}"#, "application/json").as_deref(),
            Some(r#"{"a":{"n":7},"m":2}"#)
        );
        let form = "application/x-www-form-urlencoded";
        assert_eq!(other("currency=eur&amount=7", form).as_deref(), Some("currency=eur&amount=8"));
        assert_eq!(other("to=a", form).as_deref(), Some("to=ax"));
        assert_eq!(other(r#"{"a":true}"#, "application/json"), None);
        assert_eq!(other("", "application/json"), None);
        assert_eq!(other("<xml/>", "application/xml"), None);
    }

    #[test]
    fn a_host_that_the_user_named_is_sent() {
        let host = (http::header::HOST, HeaderValue::from_static("api.example.com"));
        let message =
            |headers| Message { method: Method::POST, path: "/".to_owned(), headers, body: Bytes::new() };
        let raw = |message: Message| String::from_utf8(message.raw("127.0.0.1:1")).unwrap();
        let named = raw(message(vec![host]));
        assert!(named.contains("\r\nHost: api.example.com\r\n"), "{named}");
        assert_eq!(named.to_ascii_lowercase().matches("host:").count(), 1);
        assert!(raw(message(Vec::new())).contains("\r\nHost: 127.0.0.1:1\r\n"));
    }
}
