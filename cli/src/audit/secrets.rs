//! Hiding secrets in evidence: by the names of their values, and by the values wherever they are.

mod names;
mod text;

use std::cell::RefCell;
use std::collections::VecDeque;

use base64::Engine as _;
use http::{HeaderMap, HeaderName};
use serde_json::Value;

use self::text::Form;
pub(super) use self::text::tamed;
use super::payload::Message;

/// The shortest value that is searched for everywhere. A shorter one would hide innocent text.
const SHORTEST: usize = 6;
/// The shortest such value that an answer told: an answer may not hide a word of a report.
const SHORTEST_ANSWERED: usize = 12;
/// The most values of answers that are searched for; older ones are forgotten.
const MOST_ANSWERED: usize = 256;

/// The mark in the place of a secret.
const HIDDEN: &str = "[hidden]";

/// The names and values that no report shows.
#[derive(Debug, Default, Clone)]
pub(super) struct Secrets {
    /// Names that the user added.
    names: Vec<String>,
    /// The header of the key, which the audit made.
    key_header: String,
    /// Values of requests, the longest first: a part must not be replaced inside the whole.
    values: Vec<String>,
    /// Values of answers.
    answered: RefCell<VecDeque<String>>,
}

impl Secrets {
    /// Returns the usual names, and these. The header of the key is no secret.
    pub(super) fn named(more: &[String], key_header: &str) -> Secrets {
        let names = more.iter().map(|name| name.to_ascii_lowercase()).collect();
        Secrets { names, key_header: key_header.to_ascii_lowercase(), ..Secrets::default() }
    }

    /// Learns the secret values of a header of a request, so that they are hidden wherever they
    /// appear.
    pub(super) fn learn_header(&mut self, name: &HeaderName, value: &str) {
        if self.is_public_header(name) {
            self.learn_text(value, Form::Value);
            return;
        }
        self.learn(value);
        if !self.is_secret(name.as_str()) {
            return;
        }
        for word in value.split([' ', ';', ',', '=']) {
            let is_scheme = ["bearer", "basic", "digest", "negotiate", "token", "signature"]
                .iter()
                .any(|scheme| word.eq_ignore_ascii_case(scheme));
            if !is_scheme {
                self.learn(word);
            }
        }
        // A user and a password.
        let basic = value
            .strip_prefix("Basic ")
            .map(|login| base64::engine::general_purpose::STANDARD.decode(login.trim()).unwrap_or_default());
        if let Some((_, password)) = basic
            .as_deref()
            .and_then(|login| std::str::from_utf8(login).ok())
            .and_then(|login| login.split_once(':'))
        {
            self.learn(password);
        }
    }

    /// Learns a secret value, in all forms in which an answer may repeat it.
    pub(super) fn learn(&mut self, value: &str) {
        let value = value.trim().trim_matches('"');
        if value.len() < SHORTEST {
            return;
        }
        for form in forms(value) {
            if !self.values.contains(&form) {
                self.values.push(form);
            }
        }
        self.values.sort_by_key(|value| std::cmp::Reverse(value.len()));
    }

    fn learn_text(&mut self, text: &str, form: Form) {
        for value in self.secrets_in(text, form) {
            self.learn(&value);
            let decoded = text::decoded(&value);
            if decoded != value {
                self.learn(&decoded);
            }
        }
    }

    fn secrets_in(&self, text: &str, form: Form) -> Vec<String> {
        let places = text::secrets(text, form, &|name| self.is_secret(name));
        places.into_iter().map(|place| text[place].to_owned()).collect()
    }

    /// Learns the secret parameters of a request: of its headers, address and body.
    pub(super) fn learn_message(&mut self, message: &Message) {
        for (name, value) in &message.headers {
            self.learn_header(name, &String::from_utf8_lossy(value.as_bytes()));
        }
        self.learn_text(&message.path, Form::Body);
        let body = String::from_utf8_lossy(&message.body);
        match json_lines(&body) {
            Some(values) => {
                let mut found = Vec::new();
                values.iter().for_each(|value| self.secret_members(value, false, &mut found));
                found.iter().for_each(|value| self.learn(value));
            }
            None => self.learn_text(&body, Form::Body),
        }
    }

    /// Learns the secrets that an answer tells: later ones may repeat them elsewhere.
    pub(super) fn learn_answer(&self, headers: &HeaderMap, body: &[u8]) {
        let mut found = Vec::new();
        for (name, value) in headers {
            let value = String::from_utf8_lossy(value.as_bytes());
            if self.is_secret(name.as_str()) {
                found.extend(value.split([' ', ';', ',', '=']).map(str::to_owned));
            } else {
                found.extend(self.secrets_in(&value, Form::Value));
            }
        }
        let body = String::from_utf8_lossy(body);
        match json_lines(&body) {
            Some(values) => values.iter().for_each(|value| self.secret_members(value, false, &mut found)),
            None => found.extend(self.secrets_in(&body, Form::Body)),
        }
        let mut answered = self.answered.borrow_mut();
        for value in found {
            let is_word = value.len() >= SHORTEST_ANSWERED && !value.contains(char::is_whitespace);
            if is_word && !answered.contains(&value) {
                answered.push_back(value);
            }
        }
        let surplus = answered.len().saturating_sub(MOST_ANSWERED);
        answered.drain(..surplus);
    }

    /// Collects the values of secret members, and all below them.
    fn secret_members(&self, value: &Value, is_secret: bool, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    self.secret_members(value, is_secret || self.is_secret_member(name, value), found);
                }
            }
            Value::Array(values) => {
                values.iter().for_each(|value| self.secret_members(value, is_secret, found));
            }
            Value::String(text) if is_secret => found.push(text.clone()),
            Value::String(text) => found.extend(self.secrets_in(text, Form::Value)),
            Value::Number(number) if is_secret => found.push(number.to_string()),
            Value::Number(number) => found.extend(self.secrets_in(&number.to_string(), Form::Value)),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn is_secret(&self, name: &str) -> bool {
        let lower = name.to_ascii_lowercase();
        lower != self.key_header
            && (names::is_secret(name) || self.names.iter().any(|secret| lower.contains(secret.as_str())))
    }

    /// Returns whether a member of JSON is secret. The code of an error is a word, or a status.
    fn is_secret_member(&self, name: &str, value: &Value) -> bool {
        let is_told = name == "code"
            && match value {
                Value::String(text) => !text.contains(|c: char| c.is_ascii_digit()),
                Value::Number(number) => number.to_string().len() <= 3,
                _ => false,
            };
        let named = self.names.iter().any(|secret| secret == name);
        self.is_secret(name) && (named || !is_told)
    }

    fn is_public_header(&self, name: &HeaderName) -> bool {
        let name = name.as_str();
        (name == self.key_header || names::is_public_header(name)) && !self.is_secret(name)
    }

    /// Returns the text without secret values.
    pub(super) fn hide(&self, text: &str) -> String {
        let answered = self.answered.borrow();
        let values = self.values.iter().chain(answered.iter());
        values.fold(text.to_owned(), |text, value| {
            if text.contains(value.as_str()) { text.replace(value.as_str(), HIDDEN) } else { text }
        })
    }

    /// Returns the text without secret values, in one line that no terminal obeys.
    pub(super) fn hide_line(&self, text: &str) -> String {
        tamed(&self.hide(text))
    }

    fn hide_places(&self, text: &str, form: Form) -> String {
        let places = text::secrets(text, form, &|name| self.is_secret(name));
        text::replaced(text, &places, HIDDEN)
    }

    /// Returns a path with its secret parameters hidden, also those of an address inside it.
    pub(super) fn hide_path(&self, path: &str) -> String {
        let path = self.hide_places(path, Form::Body);
        let Some((path, query)) = path.split_once('?') else { return self.hide(&path) };
        let hide = |pair: &str| match pair.split_once('=') {
            Some((name, value)) if self.is_nested(value) => format!("{name}={HIDDEN}"),
            Some(_) | None => pair.to_owned(),
        };
        let query: Vec<_> = query.split('&').map(hide).collect();
        self.hide(&format!("{path}?{}", query.join("&")))
    }

    /// Returns whether an encoded value holds a secret.
    fn is_nested(&self, value: &str) -> bool {
        let decoded = text::decoded(value);
        decoded != value && !self.secrets_in(&decoded, Form::Value).is_empty()
    }

    /// Returns the value of a header of a request as a report shows it.
    pub(super) fn hide_sent_header(&self, name: &HeaderName, value: &str) -> String {
        if self.is_public_header(name) { self.hide_header(name, value) } else { HIDDEN.to_owned() }
    }

    /// Returns the value of a header of an answer as a report shows it.
    pub(super) fn hide_header(&self, name: &HeaderName, value: &str) -> String {
        let value = &self.hide_places(value, Form::Value);
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
        let whole = String::from_utf8_lossy(body);
        let text = match json_lines(&whole) {
            Some(mut values) => {
                let hidden = values.iter_mut().fold(false, |hidden, value| self.hide_members(value) | hidden);
                if hidden {
                    values.iter().map(Value::to_string).collect::<Vec<_>>().join("\n")
                } else {
                    // As it was sent: the bytes are the evidence.
                    whole.into_owned()
                }
            }
            None => self.hide_places(&whole, Form::Body),
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
                    if !value.is_null() && self.is_secret_member(name, value) {
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
            Value::String(_) | Value::Number(_) => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let shown = self.hide(&self.hide_places(&text, Form::Value));
                let hidden = shown != text;
                if hidden {
                    *value = shown.into();
                }
                hidden
            }
            Value::Null | Value::Bool(_) => false,
        }
    }
}

/// The JSON of a body: of the whole, or of each line.
fn json_lines(body: &str) -> Option<Vec<Value>> {
    let holds = |value: &Value| value.is_object() || value.is_array();
    if let Ok(value) = serde_json::from_str::<Value>(body) {
        return holds(&value).then(|| vec![value]);
    }
    let lines = body.lines().filter(|line| !line.trim().is_empty());
    let values: Vec<Value> = lines.map(serde_json::from_str).collect::<Result<_, _>>().ok()?;
    (!values.is_empty() && values.iter().all(holds)).then_some(values)
}

/// The forms in which a value is written: as it is, in JSON, in addresses and in HTML.
fn forms(value: &str) -> Vec<String> {
    let json = Value::from(value).to_string();
    let json = json[1..json.len() - 1].to_owned();
    let percent: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
    let html = value.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    let go = json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e");
    let mut forms = vec![
        value.to_owned(),
        json.replace('/', "\\/"),
        json,
        go,
        percent.replace('+', "%20"),
        percent,
        html.replace('\'', "&#39;"),
        html,
    ];
    forms.dedup();
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets() -> Secrets {
        let mut secrets = Secrets::named(&["x-tenant".to_owned()], "x-key");
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
            let mut secrets = Secrets::named(&[], "idempotency-key");
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

    fn body(text: &str) -> String {
        secrets().hide_body(text.as_bytes(), 1000)
    }

    #[test]
    fn secrets_of_bodies_are_hidden_in_every_form() {
        assert_eq!(
            body("amount=1&cvc=123&card[number]=4242424242424242\n"),
            "amount=1&cvc=[hidden]&card[number]=[hidden]\n"
        );
        assert_eq!(body("{\"pin\": 1234}\n{\"a\": 1}\n"), "{\"pin\":\"[hidden]\"}\n{\"a\":1}");
        assert_eq!(body("<a><pwd>x</pwd></a>"), "<a><pwd>[hidden]</pwd></a>");
        assert_eq!(body(r#"{"number": "4242 4242 4242 4242"}"#), r#"{"number":"[hidden]"}"#);
        assert_eq!(
            body(r#"{"url": "https://h/?client_secret=x1&n=1"}"#),
            r#"{"url":"https://h/?client_secret=[hidden]&n=1"}"#
        );
        assert_eq!(body(r#"{"code": "card_declined"}"#), r#"{"code": "card_declined"}"#);
        assert_eq!(body(r#"{"code": "4/0AX"}"#), r#"{"code":"[hidden]"}"#);
    }

    #[test]
    fn headers_of_requests_are_hidden_unless_they_are_known_to_be_public() {
        let secrets = secrets();
        let sent =
            |name: &'static str, value: &str| secrets.hide_sent_header(&HeaderName::from_static(name), value);
        assert_eq!(sent("x-functions", "abc"), HIDDEN);
        assert_eq!(sent("x-key", "k"), "k");
        assert_eq!(sent("content-type", "text/plain"), "text/plain");
        assert_eq!(sent("referer", "https://h/?token=abc"), "https://h/?token=[hidden]");
        let told =
            secrets.hide_header(&HeaderName::from_static("location"), "https://h/x?client_secret=abc&n=1");
        assert_eq!(told, "https://h/x?client_secret=[hidden]&n=1");
    }

    #[test]
    fn a_secret_is_hidden_however_an_answer_writes_it() {
        let mut secrets = Secrets::named(&[], "idempotency-key");
        secrets.learn_header(&HeaderName::from_static("x-auth"), "abc/d&f+1\"2");
        for text in [
            r#"abc/d&f+1"2"#,
            r#"abc\/d&f+1\"2"#,
            "abc%2Fd%26f%2B1%222",
            "abc/d&amp;f+1&quot;2",
            r#"abc/d\u0026f+1\"2"#,
        ] {
            assert_eq!(secrets.hide(text), HIDDEN, "{text}");
        }
        secrets.learn_header(&HeaderName::from_static("authorization"), "Basic dXNlcjpodW50ZXIyMg==");
        assert_eq!(secrets.hide("hunter22 Basic x"), "[hidden] Basic x");
    }

    #[test]
    fn a_secret_of_an_answer_is_hidden_in_later_ones() {
        let secrets = Secrets::named(&[], "idempotency-key");
        secrets
            .learn_answer(&HeaderMap::new(), br#"{"client_secret": "pi_0001_secret", "token": "effects"}"#);
        assert_eq!(secrets.hide("of pi_0001_secret: effects"), "of [hidden]: effects");
    }
}
