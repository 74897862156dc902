//! Counting effects, by what the user gives.

use std::time::Duration;

use http::Method;
use serde_json::Value;

use super::args::Args;
use super::payload::{Message, headers, parse_url};
use super::wire::{Endpoint, Failure, Protocol};
use super::{Problem, command};

/// The time that a count may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A way to count effects.
pub(super) enum Counter {
    Command(String),
    Url(Box<CountUrl>),
}

/// A request whose answer holds the number.
pub(super) struct CountUrl {
    endpoint: Endpoint,
    message: Message,
    pointer: String,
}

impl Counter {
    pub(super) async fn of(args: &Args) -> Result<Option<Counter>, Problem> {
        if let Some(command) = &args.count_cmd {
            return Ok(Some(Counter::Command(command.clone())));
        }
        let Some(url) = &args.count_url else { return Ok(None) };
        let pointer = args.count_pointer.clone();
        if !pointer.is_empty() && !pointer.starts_with('/') {
            return Err(Problem::usage("--count-pointer: a JSON pointer begins with /"));
        }
        let url = parse_url(url)?;
        let endpoint = Endpoint::of(&url, &args.i_may_test, args.ca_cert.as_deref(), PATIENCE / 3).await?;
        let path = url[url::Position::BeforePath..url::Position::AfterQuery].to_owned();
        let headers = headers(&args.count_header)?;
        let message = Message { method: Method::GET, path, headers, body: bytes::Bytes::new() };
        Ok(Some(Counter::Url(Box::new(CountUrl { endpoint, message, pointer }))))
    }

    /// The request that counts, if it is one.
    pub(super) fn message(&self) -> Option<&Message> {
        match self {
            Counter::Command(_) => None,
            Counter::Url(url) => Some(&url.message),
        }
    }

    /// The name of the way, for reports. The command itself may hold a password.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Counter::Command(_) => "--count-cmd",
            Counter::Url(_) => "--count-url",
        }
    }

    /// Counts now.
    pub(super) async fn count(&self) -> Result<i64, String> {
        match self {
            Counter::Command(command) => {
                let output = command::output(command, PATIENCE)
                    .await
                    .map_err(|error| format!("--count-cmd: {error}"))?;
                let line = output.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
                line.parse().map_err(|_| "--count-cmd: its last line is no whole number".to_owned())
            }
            Counter::Url(url) => {
                let CountUrl { endpoint, message, pointer } = &**url;
                let answer =
                    fetch(endpoint, message).await.map_err(|failure| format!("--count-url: {failure}"))?;
                let value: Value =
                    serde_json::from_slice(&answer).map_err(|_| "--count-url: the answer is no JSON")?;
                number(value.pointer(pointer)).ok_or_else(|| {
                    format!("--count-url: {} holds no whole number and no list", shown(pointer))
                })
            }
        }
    }
}

async fn fetch(endpoint: &Endpoint, message: &Message) -> Result<Vec<u8>, String> {
    let ready = endpoint.prepare(Protocol::Http1).await.map_err(|failure| told(&failure))?;
    let answer = endpoint.exchange(ready, message, PATIENCE).await.map_err(|failure| told(&failure))?;
    if !(200..300).contains(&answer.status) {
        return Err(format!("the answer has the status {}", answer.status));
    }
    Ok(answer.body.to_vec())
}

fn told(failure: &Failure) -> String {
    match failure {
        Failure::Unreachable(why) => format!("cannot be reached: {why}"),
        Failure::TimedOut => "no answer in time".to_owned(),
        Failure::Broken(why) => why.clone(),
        Failure::NoHttp2 => "no HTTP/2".to_owned(),
    }
}

fn number(value: Option<&Value>) -> Option<i64> {
    match value? {
        Value::Array(values) => values.len().try_into().ok(),
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Object(_) => None,
    }
}

fn shown(pointer: &str) -> &str {
    if pointer.is_empty() { "the whole answer (see --count-pointer)" } else { pointer }
}
