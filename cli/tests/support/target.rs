//! A small payment service with one fault that is chosen, to audit.
//!
//! It keeps its records in a log, so that it can be killed and started again.
#![allow(dead_code, reason = "not every test needs all of it")]

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HOST, LOCATION, RETRY_AFTER, SET_COOKIE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, Version};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, body};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// The host of a service that serves one only.
pub(crate) const NAMED: &str = "api.example.com";
/// The time after which an effect is counted by a service that counts late.
const LATE: Duration = Duration::from_millis(100);
/// The effects that a service counts of which only a page is counted.
const PAGE: usize = 5;
/// The time that an answer takes which is late for once.
const PAUSE: Duration = Duration::from_millis(2500);
/// The time after which a repeat of a stored failure is due.
const BACK_OFF: Duration = Duration::from_secs(1);

/// The fault of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// None at all.
    None,
    /// Keys are ignored.
    Naive,
    /// Looks for a record before it works, and writes one after.
    ChecksThenRuns,
    /// Another payload under a used key gets the stored answer.
    ByKeyOnly,
    /// The refusal of another payload shows the stored answer.
    TellsTooMuch,
    /// Work ends with its connection, and the key is free again.
    FreesOnDrop,
    /// Work ends with its connection, and the key stays in progress.
    SticksOnDrop,
    /// Failures are stored as outcomes.
    CachesFailures,
    /// A failure after the effect frees the key.
    FailsAfterEffect,
    /// Keys of all callers are one.
    MixesCallers,
    /// A key of one caller blocks it for others.
    BlocksCallers,
    /// All headers are stored, also cookies.
    ReplaysCookies,
    /// All headers are stored, also those of the connection.
    ReplaysConnection,
    /// Keys are cut at 255 characters.
    TruncatesKeys,
    /// Stored answers are cut.
    TruncatesAnswers,
    /// A replay has another status.
    ChangesStatus,
    /// The empty text is a key.
    EmptyIsAKey,
    /// Of two keys the first one counts.
    FirstOfTwo,
    /// A body that is cut off is executed.
    RunsParts,
    /// A body that is cut off leaves its key in progress.
    SpoiledByParts,
    /// A GET gets stored answers.
    ReplaysGets,
    /// Keys belong to a version of HTTP.
    SplitsVersions,
    /// Records are in memory only.
    ForgetsOnCrash,
    /// Copies in flight get 500.
    FailsCopies,
    /// Copies in flight are not told when to repeat.
    SaysNoTime,
    /// Keys may be left out.
    OptionalKeys,
    /// Replays are not marked.
    Unmarked,
    /// Quotes are a part of the key.
    KeepsQuotes,
    /// No fault: effects are counted late.
    CountsLate,
    /// No fault: each caller counts its own effects.
    CountsOwn,
    /// No fault: the count is of one page, which is soon full.
    CountsPage,
    /// No fault: two answers come late, as after a pause of the machine.
    Pauses,
    /// No fault: a failure is stored until a repeat is due.
    BacksOff,
    /// No fault: answers and refusals repeat the key.
    EchoesKey,
    /// No fault: it serves one host only.
    NeedsHost,
    /// No fault: it limits the rate.
    LimitsRate,
    /// No service at all: it redirects.
    Redirects,
}

impl Fault {
    /// All faults, and the check that must find each, if it is one. Those with `--strict` are
    /// advice.
    pub(crate) const ALL: [(Fault, &str, &str, bool); 37] = [
        (Fault::None, "none", "", false),
        (Fault::Naive, "naive", "replay-same", false),
        (Fault::ChecksThenRuns, "checks-then-runs", "simultaneous-copies", false),
        (Fault::ByKeyOnly, "by-key-only", "other-payload-refused", false),
        (Fault::TellsTooMuch, "tells-too-much", "other-payload-refused", false),
        (Fault::FreesOnDrop, "frees-on-drop", "cut-after-request", false),
        (Fault::SticksOnDrop, "sticks-on-drop", "client-time-out", false),
        (Fault::CachesFailures, "caches-failures", "failing-first-try", false),
        (Fault::FailsAfterEffect, "fails-after-effect", "failing-first-try", false),
        (Fault::MixesCallers, "mixes-callers", "other-caller", false),
        (Fault::BlocksCallers, "blocks-callers", "other-caller", false),
        (Fault::ReplaysCookies, "replays-cookies", "replayed-cookies", false),
        (Fault::ReplaysConnection, "replays-connection", "hop-by-hop", false),
        (Fault::TruncatesKeys, "truncates-keys", "long-keys", false),
        (Fault::TruncatesAnswers, "truncates-answers", "cut-in-answer", false),
        (Fault::ChangesStatus, "changes-status", "replay-same", false),
        (Fault::EmptyIsAKey, "empty-is-a-key", "empty-key", false),
        (Fault::FirstOfTwo, "first-of-two", "doubled-key", false),
        (Fault::RunsParts, "runs-parts", "cut-in-request", false),
        (Fault::SpoiledByParts, "spoiled-by-parts", "cut-in-request", false),
        (Fault::ReplaysGets, "replays-gets", "get-ignored", false),
        (Fault::SplitsVersions, "splits-versions", "http2", false),
        (Fault::ForgetsOnCrash, "forgets-on-crash", "crash", false),
        (Fault::FailsCopies, "fails-copies", "simultaneous-copies", false),
        (Fault::SaysNoTime, "says-no-time", "simultaneous-copies", true),
        (Fault::OptionalKeys, "optional-keys", "missing-key", true),
        (Fault::Unmarked, "unmarked", "replay-marked", true),
        (Fault::KeepsQuotes, "keeps-quotes", "quoted-key", true),
        (Fault::CountsLate, "counts-late", "", false),
        (Fault::CountsOwn, "counts-own", "", false),
        (Fault::CountsPage, "counts-page", "", false),
        (Fault::Pauses, "pauses", "", false),
        (Fault::BacksOff, "backs-off", "", false),
        (Fault::EchoesKey, "echoes-key", "", false),
        (Fault::NeedsHost, "needs-host", "", false),
        (Fault::LimitsRate, "limits-rate", "", false),
        (Fault::Redirects, "redirects", "", false),
    ];

    pub(crate) fn named(name: &str) -> Option<Fault> {
        Fault::ALL.iter().find(|(_, known, ..)| *known == name).map(|(fault, ..)| *fault)
    }

    pub(crate) fn name(self) -> &'static str {
        Fault::ALL.iter().find(|(fault, ..)| *fault == self).map_or("", |(_, name, ..)| name)
    }
}

/// A service.
pub(crate) struct Target {
    fault: Fault,
    latency: Duration,
    state: Mutex<Book>,
}

/// Its records and effects.
struct Book {
    records: HashMap<String, Record>,
    /// Each with its time and its scope, which begins with the caller.
    effects: Vec<(Instant, String, Value)>,
    requests: u32,
    log: Option<File>,
}

#[derive(Clone)]
enum Record {
    InProgress,
    /// A failure, until a repeat is due.
    Failed(Instant),
    Done {
        payload: Bytes,
        answer: Stored,
    },
}

/// An answer as it is stored.
#[derive(Clone)]
struct Stored {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Target {
    /// Makes a service; with a log it remembers what happened before.
    pub(crate) fn new(fault: Fault, latency: Duration, log: Option<&Path>) -> Arc<Target> {
        let mut book = Book { records: HashMap::new(), effects: Vec::new(), requests: 0, log: None };
        if let Some(path) = log {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
                book.recall(&line, fault);
            }
            book.log = Some(OpenOptions::new().create(true).append(true).open(path).unwrap());
        }
        Arc::new(Target { fault, latency, state: Mutex::new(book) })
    }

    pub(crate) fn router(self: Arc<Target>) -> Router {
        Router::new().route("/pay", any(pay)).route("/count", get(count)).with_state(self)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    /// Reads a line of the log: an effect names its key and its payload, so that the answer can be
    /// made again.
    fn recall(&mut self, line: &Value, fault: Fault) {
        let effect = line["effect"].clone();
        if fault != Fault::ForgetsOnCrash {
            let payload = Bytes::from(line["payload"].as_str().unwrap_or_default().to_owned());
            let answer = Stored::paid(&effect);
            let key = line["key"].as_str().unwrap_or_default().to_owned();
            self.records.insert(key, Record::Done { payload, answer });
        }
        let scope = line["key"].as_str().unwrap_or_default().to_owned();
        self.effects.push((Instant::now(), scope, effect));
    }

    /// The effect, with its key in one write.
    fn effect(&mut self, key: &str, payload: &Bytes) -> Value {
        let sent: Value = serde_json::from_slice(payload).unwrap_or_default();
        let id = format!("pay_{:08}", self.effects.len() + 1);
        let effect = json!({ "id": id, "amount": sent["amount"], "client_secret": format!("{id}_secret") });
        if let Some(log) = &mut self.log {
            let line = json!({ "key": key, "payload": String::from_utf8_lossy(payload), "effect": effect });
            log.write_all(format!("{line}\n").as_bytes()).unwrap();
        }
        self.effects.push((Instant::now(), key.to_owned(), effect.clone()));
        effect
    }
}

impl Stored {
    fn paid(effect: &Value) -> Stored {
        let headers = [(CONTENT_TYPE, "application/json".parse().unwrap())].into_iter().collect();
        Stored { status: StatusCode::CREATED, headers, body: effect.to_string().into() }
    }

    fn response(&self) -> Response {
        (self.status, self.headers.clone(), self.body.clone()).into_response()
    }
}

async fn count(State(target): State<Arc<Target>>, headers: HeaderMap) -> Json<Value> {
    let late = if target.fault == Fault::CountsLate { LATE } else { Duration::ZERO };
    let book = target.book();
    let caller = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_own = |scope: &str| target.fault != Fault::CountsOwn || scope.starts_with(caller);
    let counted = book.effects.iter().filter(|(at, scope, _)| at.elapsed() >= late && is_own(scope)).count();
    let counted = if target.fault == Fault::CountsPage { counted.min(PAGE) } else { counted };
    Json(json!({ "total": counted }))
}

/// Refuses a request before anything is known of it, if the service is such.
fn refused(target: &Target, parts: &Parts) -> Option<Response> {
    // In HTTP/2 the host is a part of the address.
    let host = parts.uri.host().or_else(|| parts.headers.get(HOST)?.to_str().ok());
    match target.fault {
        Fault::NeedsHost if host != Some(NAMED) => Some(problem(404, "no such host")),
        Fault::LimitsRate => {
            let mut book = target.book();
            book.requests += 1;
            let mut response = problem(429, "too fast");
            response.headers_mut().insert(RETRY_AFTER, "0".parse().unwrap());
            book.requests.is_multiple_of(3).then_some(response)
        }
        Fault::Redirects => {
            let mut response = problem(307, "elsewhere");
            response.headers_mut().insert(LOCATION, "/pay/?token=abcdefgh".parse().unwrap());
            Some(response)
        }
        _ => None,
    }
}

fn problem(status: u16, title: &str) -> Response {
    let body = json!({ "title": title, "status": status }).to_string();
    (StatusCode::from_u16(status).unwrap(), [(CONTENT_TYPE, "application/problem+json")], body)
        .into_response()
}

async fn pay(State(target): State<Arc<Target>>, request: Request) -> Response {
    let fault = target.fault;
    let (parts, body) = request.into_parts();
    if fault == Fault::Pauses {
        let number = {
            let mut book = target.book();
            book.requests += 1;
            book.requests
        };
        if [7, 8].contains(&number) {
            sleep(PAUSE).await;
        }
    }
    if let Some(response) = refused(&target, &parts) {
        return response;
    }
    let Some(caller) = parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()) else {
        return problem(401, "who are you?");
    };
    if parts.method == Method::GET && fault != Fault::ReplaysGets {
        return Json(json!({ "payments": true })).into_response();
    }
    let key = match key(&parts.headers, fault) {
        Ok(key) => key,
        Err(why) => return problem(400, why),
    };
    let scope = match fault {
        Fault::MixesCallers | Fault::BlocksCallers => key.clone().unwrap_or_default(),
        Fault::SplitsVersions => format!("{caller} {:?} {}", parts.version, key.clone().unwrap_or_default()),
        _ => format!("{caller} {}", key.clone().unwrap_or_default()),
    };
    if parts.method == Method::GET {
        let stored = target.book().records.get(&scope).cloned();
        return match stored {
            Some(Record::Done { answer, .. }) => answer.response(),
            _ => Json(json!({ "payments": true })).into_response(),
        };
    }
    let claims = fault == Fault::SpoiledByParts && !target.book().records.contains_key(&scope);
    if claims {
        target.book().records.insert(scope.clone(), Record::InProgress);
    }
    let keyed = key.is_some() && !claims;
    let work = Work { target, scope, headers: parts.headers, version: parts.version, keyed };
    match fault {
        Fault::RunsParts => tokio::spawn(async move { work.run(part(body).await).await }).await.unwrap(),
        Fault::FreesOnDrop | Fault::SticksOnDrop => match body::to_bytes(body, 1 << 20).await {
            Ok(payload) => work.run(payload).await,
            Err(_) => problem(400, "the body is cut off"),
        },
        _ => match body::to_bytes(body, 1 << 20).await {
            Ok(payload) => tokio::spawn(work.run(payload)).await.unwrap(),
            Err(_) => problem(400, "the body is cut off"),
        },
    }
}

/// Reads a body, or what there is of it.
async fn part(body: Body) -> Bytes {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(Ok(part)) = stream.next().await {
        bytes.extend_from_slice(&part);
    }
    bytes.into()
}

/// The key of a request; none if it may be left out.
fn key(headers: &HeaderMap, fault: Fault) -> Result<Option<String>, &'static str> {
    let values: Vec<_> =
        headers.get_all("idempotency-key").iter().filter_map(|value| value.to_str().ok()).collect();
    let key = match &*values {
        [] if fault == Fault::OptionalKeys => return Ok(None),
        [] => return Err("the key is missing"),
        [key] => *key,
        [key, ..] if fault == Fault::FirstOfTwo => key,
        [_, _, ..] => return Err("there are two keys"),
    };
    let inner = key.strip_prefix('"').and_then(|key| key.strip_suffix('"'));
    let key = if fault == Fault::KeepsQuotes { key } else { inner.unwrap_or(key) };
    if key.is_empty() && fault != Fault::EmptyIsAKey {
        return Err("the key is empty");
    }
    if key.len() > 255 && fault != Fault::TruncatesKeys {
        return Err("the key is too long");
    }
    Ok(Some(key.chars().take(255).collect()))
}

/// A payment under way.
struct Work {
    target: Arc<Target>,
    scope: String,
    headers: HeaderMap,
    version: Version,
    /// The key is to be claimed.
    keyed: bool,
}

/// Frees a key when it is dropped.
struct Free<'a>(&'a Target, &'a str);

impl Drop for Free<'_> {
    fn drop(&mut self) {
        let mut book = self.0.book();
        if matches!(book.records.get(self.1), Some(Record::InProgress)) {
            book.records.remove(self.1);
        }
    }
}

impl Work {
    async fn run(self, payload: Bytes) -> Response {
        let fault = self.target.fault;
        let mut known = payload.to_vec();
        if fault == Fault::BlocksCallers {
            known.extend_from_slice(self.headers[AUTHORIZATION].as_bytes());
        }
        let known = Bytes::from(known);
        let claimed = self.keyed && fault != Fault::Naive;
        if claimed && let Some(response) = self.begin(&known) {
            return response;
        }
        let _free = (fault == Fault::FreesOnDrop).then(|| Free(&self.target, &self.scope));
        let fails = self.headers.contains_key("x-fail");
        sleep(self.target.latency / 2).await;
        if fails && fault != Fault::FailsAfterEffect {
            return self.fail(&known);
        }
        let mut effect = self.target.book().effect(&self.scope, &payload);
        if fault == Fault::EchoesKey {
            effect["idempotency_key"] = self.sent_key().into();
        }
        sleep(self.target.latency / 2).await;
        if fails {
            return self.fail(&known);
        }
        let mut answer = Stored::paid(&effect);
        self.store(&known, &mut answer, &effect)
    }

    fn sent_key(&self) -> String {
        let key = self.headers.get("idempotency-key").and_then(|key| key.to_str().ok());
        key.unwrap_or_default().to_owned()
    }

    /// Claims the key, or returns the answer of a duplicate.
    fn begin(&self, payload: &Bytes) -> Option<Response> {
        let fault = self.target.fault;
        let mut book = self.target.book();
        match book.records.get(&self.scope) {
            None => {
                if fault != Fault::ChecksThenRuns {
                    book.records.insert(self.scope.clone(), Record::InProgress);
                }
                None
            }
            Some(Record::InProgress) => Some(self.wait()),
            Some(Record::Failed(due)) if Instant::now() < *due => Some(self.failed(*due)),
            Some(Record::Failed(_)) => {
                book.records.insert(self.scope.clone(), Record::InProgress);
                None
            }
            Some(Record::Done { payload: first, answer }) => Some(self.replay(first == payload, answer)),
        }
    }

    fn wait(&self) -> Response {
        match self.target.fault {
            Fault::FailsCopies => problem(500, "duplicate key value"),
            Fault::SaysNoTime => problem(409, "in progress"),
            _ => {
                let mut response = problem(409, "in progress");
                response.headers_mut().insert(RETRY_AFTER, "0".parse().unwrap());
                response
            }
        }
    }

    /// The stored failure, which tells when a repeat is due.
    fn failed(&self, due: Instant) -> Response {
        let left = due.saturating_duration_since(Instant::now()).as_secs_f64().ceil();
        let mut response = problem(500, "failed");
        response.headers_mut().insert(RETRY_AFTER, format!("{left}").parse().unwrap());
        response.headers_mut().insert("idempotency-replayed", "true".parse().unwrap());
        response
    }

    fn replay(&self, same: bool, answer: &Stored) -> Response {
        let fault = self.target.fault;
        if !same && fault == Fault::TellsTooMuch {
            return problem(422, &format!("used before: {}", String::from_utf8_lossy(&answer.body)));
        }
        if !same && fault == Fault::EchoesKey {
            return problem(422, &format!("{} was used for another payment", self.sent_key()));
        }
        if !same && fault != Fault::ByKeyOnly {
            return problem(422, "the key was used for another payment");
        }
        let mut answer = answer.clone();
        match fault {
            Fault::ChangesStatus => answer.status = StatusCode::OK,
            Fault::TruncatesAnswers => answer.body.truncate(answer.body.len() / 2),
            _ => {}
        }
        let mut response = answer.response();
        if fault != Fault::Unmarked {
            response.headers_mut().insert("idempotency-replayed", "true".parse().unwrap());
        }
        response
    }

    fn fail(&self, payload: &Bytes) -> Response {
        let mut book = self.target.book();
        if self.target.fault == Fault::CachesFailures {
            let answer = Stored {
                status: StatusCode::INTERNAL_SERVER_ERROR,
                headers: HeaderMap::new(),
                body: "failed".into(),
            };
            book.records.insert(self.scope.clone(), Record::Done { payload: payload.clone(), answer });
        } else if self.target.fault == Fault::BacksOff {
            book.records.insert(self.scope.clone(), Record::Failed(Instant::now() + BACK_OFF));
        } else {
            book.records.remove(&self.scope);
        }
        problem(500, "failed")
    }

    /// Records the answer and returns it, with the headers that are for the first one only.
    fn store(&self, payload: &Bytes, answer: &mut Stored, effect: &Value) -> Response {
        let fault = self.target.fault;
        let id = effect["id"].as_str().unwrap_or_default();
        let mut first = answer.clone();
        first.headers.insert(SET_COOKIE, format!("session={id}; HttpOnly").parse().unwrap());
        if self.version == Version::HTTP_11
            && self.headers.get(CONNECTION).is_some_and(|value| value == "close")
        {
            first.headers.insert(CONNECTION, "close".parse().unwrap());
        }
        if fault == Fault::ReplaysCookies {
            answer.headers.insert(SET_COOKIE, first.headers[SET_COOKIE].clone());
        }
        if fault == Fault::ReplaysConnection
            && let Some(value) = first.headers.get(CONNECTION)
        {
            answer.headers.insert(CONNECTION, value.clone());
        }
        let record = Record::Done { payload: payload.clone(), answer: answer.clone() };
        self.target.book().records.insert(self.scope.clone(), record);
        first.response()
    }
}
