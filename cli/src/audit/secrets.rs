//! Hiding secrets in evidence.

use http::{HeaderMap, HeaderName};
use serde_json::Value;

use super::payload::Message;

/// Parts of names whose values are secret.
const NAMES: [&str; 17] = [
    "authorization",
    "cookie",
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "api-key",
    "apikey",
    "api_key",
    "signature",
    "session",
    "credential",
    "cvc",
    "cvv",
    "iban",
    "private",
];

/// The shortest value that is searched for everywhere. A shorter one would hide innocent text.
const SHORTEST: usize = 6;

/// The mark in the place of a secret.
const HIDDEN: &str = "[hidden]";

/// The names and values that no report shows.
#[derive(Debug, Default, Clone)]
pub(super) struct Secrets {
    names: Vec<String>,
    values: Vec<String>,
}

impl Secrets {
    /// Returns the usual names, and these.
    pub(super) fn named(more: &[String]) -> Secrets {
        let names = NAMES.iter().map(|name| (*name).to_owned());
        let names = names.chain(more.iter().map(|name| name.to_ascii_lowercase())).collect();
        Secrets { names, values: Vec::new() }
    }

    /// Learns the secret values of a header, so that they are hidden wherever they appear.
    pub(super) fn learn_header(&mut self, name: &HeaderName, value: &str) {
        if !self.is_secret(name.as_str()) {
            return;
        }
        self.learn(value);
        for word in value.split([' ', ';', ',', '=']) {
            self.learn(word);
        }
    }

    /// Learns a secret value.
    pub(super) fn learn(&mut self, value: &str) {
        let value = value.trim().trim_matches('"');
        if value.len() >= SHORTEST && !self.values.iter().any(|known| known == value) {
            self.values.push(value.to_owned());
            // The longest first: a part must not be replaced inside the whole.
            self.values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        }
    }

    /// Learns the secret parameters of a request: of its headers, address and body.
    pub(super) fn learn_message(&mut self, message: &Message) {
        for (name, value) in &message.headers {
            self.learn_header(name, &String::from_utf8_lossy(value.as_bytes()));
        }
        let query = message.path.split_once('?').map_or("", |(_, query)| query);
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if self.is_secret(&name) {
                self.learn(&value);
            }
        }
        match serde_json::from_slice(&message.body) {
            Ok(value) => self.learn_members(&value),
            Err(_) => {
                for (name, value) in url::form_urlencoded::parse(&message.body) {
                    if self.is_secret(&name) {
                        self.learn(&value);
                    }
                }
            }
        }
    }

    fn learn_members(&mut self, value: &Value) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    match value {
                        Value::String(text) if self.is_secret(name) => self.learn(text),
                        value => self.learn_members(value),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| self.learn_members(value)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    fn is_secret(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        // "Idempotency-Key" and its like are no secrets here: the audit made the key.
        self.names.iter().any(|secret| name.contains(secret.as_str()))
    }

    /// Returns the text without secret values.
    pub(super) fn hide(&self, text: &str) -> String {
        self.values.iter().fold(text.to_owned(), |text, value| text.replace(value.as_str(), HIDDEN))
    }

    /// Returns a path with its secret parameters hidden.
    pub(super) fn hide_path(&self, path: &str) -> String {
        let Some((path, query)) = path.split_once('?') else { return self.hide(path) };
        let hide = |pair: &str| match pair.split_once('=') {
            Some((name, _)) if self.is_secret(name) => format!("{name}={HIDDEN}"),
            Some(_) | None => pair.to_owned(),
        };
        let query: Vec<_> = query.split('&').map(hide).collect();
        self.hide(&format!("{path}?{}", query.join("&")))
    }

    /// Returns the value of a header as a report shows it.
    pub(super) fn hide_header(&self, name: &HeaderName, value: &str) -> String {
        if self.is_secret(name.as_str()) { HIDDEN.to_owned() } else { self.hide(value) }
    }

    /// Returns headers as a report shows them.
    pub(super) fn hide_headers(&self, headers: &HeaderMap) -> Vec<(String, String)> {
        let shown = headers.iter().map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            (name.to_string(), self.hide_header(name, &value))
        });
        shown.collect()
    }

    /// Returns a body as a report shows it: secret members and fields hidden, cut at `most` bytes.
    pub(super) fn hide_body(&self, body: &[u8], most: usize) -> String {
        let text = match serde_json::from_slice::<Value>(body) {
            Ok(mut value @ (Value::Object(_) | Value::Array(_))) => {
                if self.hide_members(&mut value) {
                    value.to_string()
                } else {
                    // As it was sent: the bytes are the evidence.
                    String::from_utf8_lossy(body).into_owned()
                }
            }
            Ok(_) | Err(_) => self.hide_fields(&String::from_utf8_lossy(body)),
        };
        let text = self.hide(&text);
        match text.char_indices().nth(most) {
            Some((at, _)) => format!("{}.. ({} bytes in all)", &text[..at], body.len()),
            None => text,
        }
    }

    fn hide_members(&self, value: &mut Value) -> bool {
        match value {
            Value::Object(members) => {
                let mut hidden = false;
                for (name, value) in members {
                    if self.is_secret(name) && !value.is_null() {
                        *value = HIDDEN.into();
                        hidden = true;
                    } else {
                        hidden |= self.hide_members(value);
                    }
                }
                hidden
            }
            Value::Array(values) => {
                values.iter_mut().fold(false, |hidden, value| self.hide_members(value) | hidden)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }

    fn hide_fields(&self, text: &str) -> String {
        if !text.contains('=') || text.contains(char::is_whitespace) {
            return text.to_owned();
        }
        self.hide_path(&format!("?{text}")).split_off(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> Secrets {
        let mut secrets = Secrets::named(&["x-tenant".to_owned()]);
        secrets.learn_header(&HeaderName::from_static("authorization"), "Bearer sk_live_12345");
        secrets
    }

    #[test]
    fn a_secret_is_hidden_wherever_it_appears() {
        let secrets = secrets();
        assert_eq!(secrets.hide("you sent sk_live_12345"), "you sent [hidden]");
        assert_eq!(secrets.hide_path("/v1?api_key=abc&n=1"), "/v1?api_key=[hidden]&n=1");
        assert_eq!(secrets.hide_header(&HeaderName::from_static("set-cookie"), "a=b"), HIDDEN);
        assert_eq!(secrets.hide_header(&HeaderName::from_static("x-tenant"), "acme"), HIDDEN);
        assert_eq!(secrets.hide_header(&HeaderName::from_static("idempotency-key"), "k"), "k");
        let body = secrets.hide_body(br#"{"id": "x", "a": [{"client_secret": "pi_secret"}]}"#, 1000);
        assert_eq!(body, r#"{"a":[{"client_secret":"[hidden]"}],"id":"x"}"#);
        assert_eq!(secrets.hide_body(b"amount=1&password=p", 1000), "amount=1&password=[hidden]");
    }

    #[test]
    fn a_secret_of_the_body_is_hidden_where_it_is_repeated() {
        for body in [r#"{"card": {"token": "tok_12345"}}"#, "card[token]=tok_12345"] {
            let mut secrets = Secrets::named(&[]);
            let body = bytes::Bytes::from(body);
            let path = "/".to_owned();
            secrets.learn_message(&Message { method: http::Method::POST, path, headers: Vec::new(), body });
            assert_eq!(secrets.hide("tok_12345 is used up"), "[hidden] is used up");
        }
    }

    #[test]
    fn a_long_body_is_cut_and_bytes_that_are_no_text_are_shown() {
        let body = secrets().hide_body(&[b'x'; 5000], 10);
        assert_eq!(body, "xxxxxxxxxx.. (5000 bytes in all)");
        assert_eq!(secrets().hide_body(&[0xff, b'a'], 10), "\u{fffd}a");
    }
}
