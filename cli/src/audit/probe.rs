//! [`Probe`]: the sending, cutting, counting and recording that checks do, within the limits.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::check::{Step, Verdict, ensure};
use super::effects::Counter;
use super::evidence::{Event, Kind, ShownAnswer, ShownRequest};
use super::payload::{Message, Payload, RequestSpec};
use super::secrets::Secrets;
use super::wire::{Answer, Endpoint, Failure, Open, Protocol, Ready};

/// The most characters of a body that evidence shows.
const SHOWN: usize = 2000;

/// Everything that a check needs.
pub(super) struct Probe {
    pub(super) endpoint: Endpoint,
    pub(super) spec: RequestSpec,
    pub(super) secrets: Secrets,
    pub(super) counter: Option<Counter>,
    pub(super) settings: Settings,
    /// Known after the first requests.
    pub(super) baseline: RefCell<Baseline>,
    pub(super) run: RunState,
}

/// The choices of the user.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) seed: u64,
    pub(super) copies: u32,
    pub(super) max_requests: u32,
    pub(super) max_time: Duration,
    pub(super) timeout: Duration,
    pub(super) patience: Duration,
    pub(super) settle: Duration,
    pub(super) id_pointer: Option<String>,
    pub(super) replay_header: Option<HeaderName>,
    pub(super) other_headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) fail_headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) slow_headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) kill_cmd: Option<String>,
    pub(super) start_cmd: Option<String>,
}

/// Facts of plain requests under fresh keys.
#[derive(Debug, Default, Clone)]
pub(super) struct Baseline {
    pub(super) latency: Duration,
    /// Answers to different operations differ.
    pub(super) distinct: bool,
}

/// The state of a run.
#[derive(Debug)]
pub(super) struct RunState {
    pub(super) start: Instant,
    check_start: Cell<Instant>,
    /// The check and the number of its run, of which keys are made.
    scope: RefCell<String>,
    keys: Cell<u32>,
    pub(super) spent: Cell<u32>,
    /// The service accepts no connection any more.
    pub(super) down: Cell<bool>,
    events: RefCell<Vec<Event>>,
    /// Operations that were delivered more than once and counted, and effects too many.
    pub(super) tally: Cell<Tally>,
}

/// Operations delivered more than once, of which the effects are known.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) operations: u64,
    pub(super) doubled: u64,
}

impl RunState {
    pub(super) fn new() -> RunState {
        let now = Instant::now();
        RunState {
            start: now,
            check_start: Cell::new(now),
            scope: RefCell::default(),
            keys: Cell::new(0),
            spent: Cell::new(0),
            down: Cell::new(false),
            events: RefCell::default(),
            tally: Cell::default(),
        }
    }
}

/// An operation: a key and the requests under it.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    pub(super) key: String,
    unique: String,
}

/// A request of a check.
#[derive(Debug, Clone)]
pub(super) struct Shot {
    label: String,
    keys: Vec<String>,
    unique: String,
    payload: Payload,
    extra: Vec<(HeaderName, HeaderValue)>,
    method: Option<Method>,
    protocol: Protocol,
}

impl Operation {
    pub(super) fn shot(&self, label: impl Into<String>) -> Shot {
        Shot {
            label: label.into(),
            keys: vec![self.key.clone()],
            unique: self.unique.clone(),
            payload: Payload::Described,
            extra: Vec::new(),
            method: None,
            protocol: Protocol::Http1,
        }
    }
}

impl Shot {
    pub(super) fn keys(mut self, keys: &[&str]) -> Shot {
        self.keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self
    }

    pub(super) fn other_payload(mut self) -> Shot {
        self.payload = Payload::Other;
        self
    }

    pub(super) fn with(mut self, headers: &[(HeaderName, HeaderValue)]) -> Shot {
        self.extra.extend(headers.iter().cloned());
        self
    }

    pub(super) fn get(mut self) -> Shot {
        self.method = Some(Method::GET);
        self.payload = Payload::None;
        self
    }

    pub(super) fn http2(mut self) -> Shot {
        self.protocol = Protocol::Http2;
        self
    }
}

/// The way in which effects became known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    Counted,
    /// By the ids in the answers, so only of requests that were answered.
    ById,
    Unseen,
}

/// A request that was sent, or a part of one, and whose answer is not awaited.
pub(super) struct Pending {
    pub(super) open: Open,
    event: Event,
}

impl Probe {
    /// Begins a run of a check, and returns the events of the last one.
    pub(super) fn begin(&self, scope: String) -> Vec<Event> {
        self.run.check_start.set(Instant::now());
        self.run.keys.set(0);
        *self.run.scope.borrow_mut() = scope;
        self.take_events()
    }

    pub(super) fn take_events(&self) -> Vec<Event> {
        let mut events = self.run.events.take();
        events.sort_by(|a, b| a.from_ms.total_cmp(&b.from_ms));
        events
    }

    /// A fresh key: the same for the same seed, check, run and place in it.
    pub(super) fn operation(&self) -> Operation {
        let number = self.run.keys.get();
        self.run.keys.set(number + 1);
        let name = format!("{}/{}/{number}", self.settings.seed, self.run.scope.borrow());
        let key = Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes());
        Operation { key: key.to_string(), unique: key.simple().to_string()[..12].to_owned() }
    }

    pub(super) fn now_ms(&self) -> f64 {
        self.run.check_start.get().elapsed().as_secs_f64() * 1000.0
    }

    /// Writes down an event that is no request, and ends now.
    pub(super) fn note(&self, kind: Kind, from_ms: f64, label: &str, result: String) {
        let result = self.secrets.hide(&result);
        let event = Event {
            from_ms,
            to_ms: self.now_ms(),
            kind,
            label: label.to_owned(),
            request: None,
            answer: None,
            result,
        };
        self.run.events.borrow_mut().push(event);
    }

    /// Takes a request from the budget.
    fn spend(&self) -> Step<()> {
        let spent = self.run.spent.get();
        if spent >= self.settings.max_requests {
            let limit = self.settings.max_requests;
            return Err(Verdict::not_shown(format!("the {limit} requests of --max-requests are used up")));
        }
        if self.run.start.elapsed() >= self.settings.max_time {
            let seconds = self.settings.max_time.as_secs();
            return Err(Verdict::not_shown(format!("the {seconds} s of --max-seconds are over")));
        }
        self.run.spent.set(spent + 1);
        Ok(())
    }

    fn message(&self, shot: &Shot) -> Step<Message> {
        let message = self.spec.message(&shot.unique, &shot.keys, shot.payload, &shot.extra);
        let mut message = message.map_err(|problem| Verdict::not_shown(problem.to_string()))?;
        if let Some(method) = &shot.method {
            message.method = method.clone();
        }
        Ok(message)
    }

    fn event(&self, shot: &Shot, message: &Message) -> Event {
        let now = self.now_ms();
        let shown = |(name, value): &(HeaderName, HeaderValue)| {
            let value = String::from_utf8_lossy(value.as_bytes());
            (name.to_string(), self.secrets.hide_header(name, &value))
        };
        let request = ShownRequest {
            method: message.method.to_string(),
            path: self.secrets.hide_path(&message.path),
            protocol: if shot.protocol == Protocol::Http2 { "HTTP/2" } else { "HTTP/1.1" },
            headers: message.headers.iter().map(shown).collect(),
            body: self.secrets.hide_body(&message.body, SHOWN),
        };
        Event {
            from_ms: now,
            to_ms: now,
            kind: Kind::Broken,
            label: shot.label.clone(),
            request: Some(request),
            answer: None,
            result: String::new(),
        }
    }

    fn record(&self, mut event: Event, kind: Kind, result: String) {
        event.to_ms = self.now_ms();
        event.kind = kind;
        event.result = self.secrets.hide(&result);
        self.run.events.borrow_mut().push(event);
    }

    /// Sends a request on a new connection, and waits for the whole answer.
    pub(super) async fn send(&self, shot: &Shot) -> Step<Result<Answer, Failure>> {
        match self.prepare(shot.protocol).await? {
            Ok(ready) => self.send_on(ready, shot).await,
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// Makes a connection. A service that refuses it has ended.
    pub(super) async fn prepare(&self, protocol: Protocol) -> Step<Result<Ready, Failure>> {
        match self.endpoint.prepare(protocol).await {
            Err(Failure::Unreachable(why)) => Err(self.is_down(&why)),
            prepared => Ok(prepared),
        }
    }

    fn is_down(&self, why: &str) -> Verdict {
        self.run.down.set(true);
        Verdict::fail(format!("the service accepts no connections any more: {why}"))
    }

    /// Sends a request on a connection that stands ready.
    pub(super) async fn send_on(&self, ready: Ready, shot: &Shot) -> Step<Result<Answer, Failure>> {
        self.spend()?;
        let message = self.message(shot)?;
        let mut event = self.event(shot, &message);
        let result = self.endpoint.exchange(ready, &message, self.settings.timeout).await;
        match &result {
            Ok(answer) => {
                event.answer = Some(ShownAnswer {
                    status: answer.status,
                    headers: self.secrets.hide_headers(&answer.headers),
                    body: self.secrets.hide_body(&answer.body, SHOWN),
                });
                let mark = if self.mark(answer).is_some() { ", marked as a replay" } else { "" };
                self.record(event, Kind::Answered, format!("{}{mark}", answer.status));
            }
            Err(Failure::TimedOut) => self.record(event, Kind::TimedOut, self.no_answer()),
            Err(failure) => self.record(event, Kind::Broken, told(failure)),
        }
        Ok(result)
    }

    fn no_answer(&self) -> String {
        format!("no whole answer within {} ms", self.settings.timeout.as_millis())
    }

    /// Sends a request that must be answered, with whatever status.
    pub(super) async fn answer(&self, shot: &Shot) -> Step<Answer> {
        match self.send(shot).await? {
            Ok(answer) => Ok(answer),
            Err(failure) => Err(self.unanswered(&shot.label, &failure)),
        }
    }

    pub(super) fn unanswered(&self, label: &str, failure: &Failure) -> Verdict {
        let why = if *failure == Failure::TimedOut { self.no_answer() } else { told(failure) };
        Verdict::fail(format!("{label}: {why}"))
    }

    /// Sends the first request of an operation, which a working service accepts.
    pub(super) async fn first(&self, shot: &Shot) -> Step<Answer> {
        let answer = self.answer(shot).await?;
        if let Some(mark) = self.mark(&answer) {
            return Err(Verdict::not_shown(format!(
                "the service has seen this key before ({mark}): choose another --seed"
            )));
        }
        if !answer.is_success() {
            let status = answer.status;
            return Err(Verdict::not_shown(format!(
                "{}: a request under a fresh key was answered {status}",
                shot.label
            )));
        }
        Ok(answer)
    }

    /// Repeats a request while the service says to wait, and returns its last answer.
    pub(super) async fn settle(&self, shot: &Shot, patience: Duration) -> Step<Answer> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let answer = self.answer(shot).await?;
            if !answer.says_wait() || start.elapsed() + pause > patience {
                return Ok(answer);
            }
            let told = answer.retry_after().map_or(pause, |seconds| Duration::from_secs(seconds.min(2)));
            sleep(told.max(pause).min(patience)).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// Settles an interrupted operation, which must end in success.
    pub(super) async fn settled(&self, operation: &Operation, what: &str) -> Step<Answer> {
        let answer =
            self.settle(&operation.shot(format!("repeated after {what}")), self.settings.patience).await?;
        ensure(!answer.says_wait(), || {
            let seconds = self.settings.patience.as_secs_f64();
            format!("{what}: the key is stuck, repeats are answered {} for {seconds} s", answer.status)
        })?;
        ensure(answer.is_success(), || format!("{what}: the repeat is answered {}", answer.status))?;
        Ok(answer)
    }

    /// Sends the first `bytes` of a request, or all of it, and does not wait for the answer.
    pub(super) async fn open(&self, shot: &Shot, bytes: Option<usize>) -> Step<Pending> {
        self.spend()?;
        let message = self.message(shot)?;
        let event = self.event(shot, &message);
        let raw = message.raw(&self.endpoint.authority);
        let part = &raw[..bytes.unwrap_or(raw.len()).min(raw.len())];
        match self.endpoint.open(part, self.settings.timeout).await {
            Ok(open) => Ok(Pending { open, event }),
            Err(Failure::Unreachable(why)) => Err(self.is_down(&why)),
            Err(failure) => {
                let verdict = self.unanswered(&shot.label, &failure);
                self.record(event, Kind::Broken, told(&failure));
                Err(verdict)
            }
        }
    }

    /// Cuts a connection.
    pub(super) fn cut(&self, pending: Pending, result: String) {
        let Pending { open, event } = pending;
        drop(open);
        self.record(event, Kind::Cut, result);
    }

    /// Returns the number of bytes of a request, in its head and in all.
    pub(super) fn size(&self, shot: &Shot) -> Step<(usize, usize)> {
        let message = self.message(shot)?;
        let authority = &self.endpoint.authority;
        Ok((message.head_len(authority), message.raw(authority).len()))
    }

    /// Counts the effects, if the user has said how.
    pub(super) async fn count(&self) -> Step<Option<i64>> {
        let Some(counter) = &self.counter else { return Ok(None) };
        let from = self.now_ms();
        match counter.count().await {
            Ok(count) => {
                self.note(Kind::Count, from, "effects counted", count.to_string());
                Ok(Some(count))
            }
            Err(why) => Err(Verdict::not_shown(format!("the effects cannot be counted: {why}"))),
        }
    }

    /// Counts the effects since `before`, after the time that one may take to be counted.
    pub(super) async fn effects_since(&self, before: Option<i64>) -> Step<Option<i64>> {
        let Some(before) = before else { return Ok(None) };
        sleep(self.settings.settle).await;
        Ok(self.count().await?.map(|now| now - before))
    }

    /// Requires that as many operations as `expected`, each delivered more than once, had one
    /// effect each.
    pub(super) async fn one_effect_each(
        &self,
        before: Option<i64>,
        expected: u32,
        answers: &[&Answer],
        what: &str,
    ) -> Step<Seen> {
        self.effects_are(before, expected, answers, what, true).await
    }

    /// Requires one effect of each of the operations. Those that were `repeated` are tallied.
    pub(super) async fn effects_are(
        &self,
        before: Option<i64>,
        expected: u32,
        answers: &[&Answer],
        what: &str,
        repeated: bool,
    ) -> Step<Seen> {
        let operations = i64::from(expected);
        if let Some(mut effects) = self.effects_since(before).await? {
            // A count that lags behind gets more time.
            for _ in 0..4 {
                if effects >= operations {
                    break;
                }
                sleep(self.settings.settle.max(Duration::from_millis(100))).await;
                effects = self.effects_since(before).await?.unwrap_or(effects);
            }
            self.tally(repeated, expected, effects - operations);
            let unit = if expected == 1 { "operation" } else { "operations" };
            ensure(effects <= operations, || format!("{what}: {effects} effects of {expected} {unit}"))?;
            ensure(effects == operations, || {
                format!(
                    "{what}: answered with success, but {effects} effects of {expected} {unit} are counted (late ones: --settle-ms)"
                )
            })?;
            return Ok(Seen::Counted);
        }
        let ids: BTreeSet<_> = answers
            .iter()
            .filter(|answer| answer.is_success())
            .filter_map(|answer| self.id(answer))
            .collect();
        if ids.is_empty() {
            return Ok(Seen::Unseen);
        }
        let extra = i64::try_from(ids.len()).unwrap_or(i64::MAX) - operations;
        // An answer that was lost hides its id.
        let all_seen = answers.len() > usize::try_from(expected).unwrap_or(usize::MAX);
        self.tally(repeated && all_seen, expected, extra);
        ensure(extra <= 0, || format!("{what}: {} different ids of {expected} operations", ids.len()))?;
        Ok(Seen::ById)
    }

    /// Adds operations that were delivered more than once, and their effects too many.
    fn tally(&self, repeated: bool, operations: u32, extra: i64) {
        if !repeated {
            return;
        }
        let mut tally = self.run.tally.get();
        tally.operations += u64::from(operations);
        // An operation counts as doubled once, however many effects it had.
        tally.doubled += u64::try_from(extra).unwrap_or(0).min(u64::from(operations));
        self.run.tally.set(tally);
    }

    /// Returns the id of the effect in an answer.
    pub(super) fn id(&self, answer: &Answer) -> Option<String> {
        let pointer = self.settings.id_pointer.as_deref()?;
        let value: Value = serde_json::from_slice(&answer.body).ok()?;
        match value.pointer(pointer)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            value => Some(value.to_string()),
        }
    }

    /// Returns the header that marks an answer as a replay.
    pub(super) fn mark(&self, answer: &Answer) -> Option<String> {
        let marks = answer.headers.iter().find(|(name, value)| {
            let known = matches!(
                name.as_str(),
                "idempotency-replayed"
                    | "idempotent-replayed"
                    | "idempotency-replay"
                    | "idempotent-replay"
                    | "x-idempotency-replayed"
                    | "x-idempotent-replayed"
                    | "x-idempotent-replay"
            );
            let named = self.settings.replay_header.as_ref() == Some(name);
            (known || named) && !matches!(value.as_bytes(), b"false" | b"0" | b"?0" | b"no")
        });
        marks.map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
    }

    /// Returns whether two answers with success tell of the same operation, if that can be known.
    pub(super) fn same_operation(&self, first: &Answer, second: &Answer) -> Option<bool> {
        if let (Some(first), Some(second)) = (self.id(first), self.id(second)) {
            return Some(first == second);
        }
        if self.mark(second).is_some() {
            return Some(true);
        }
        self.baseline.borrow().distinct.then(|| first.body == second.body)
    }

    /// Requires the same status, bytes and kept headers.
    pub(super) fn same_answer(&self, first: &Answer, again: &Answer, what: &str) -> Step<()> {
        ensure(first.status == again.status, || {
            format!("{what}: answered {} first, and then {}", first.status, again.status)
        })?;
        ensure(first.body == again.body, || match (self.id(first), self.id(again)) {
            (Some(first), Some(again)) if first != again => {
                format!("{what}: another id, {again} in place of {first}")
            }
            _ => format!(
                "{what}: the bytes differ from the first answer's ({} and {} bytes)",
                first.body.len(),
                again.body.len()
            ),
        })?;
        for name in [http::header::CONTENT_TYPE, http::header::LOCATION] {
            ensure(first.headers.get(&name) == again.headers.get(&name), || {
                format!("{what}: the header {name} differs from the first answer's")
            })?;
        }
        Ok(())
    }
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        (200..400).contains(&self.status)
    }

    pub(super) fn is_refusal(&self) -> bool {
        (400..500).contains(&self.status)
    }

    /// Returns whether it tells to repeat the request later.
    pub(super) fn says_wait(&self) -> bool {
        matches!(self.status, 409 | 425 | 429) || self.status == 503 && self.retry_after().is_some()
    }

    /// The seconds of `Retry-After`.
    pub(super) fn retry_after(&self) -> Option<u64> {
        self.headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
    }
}

pub(super) fn told(failure: &Failure) -> String {
    match failure {
        Failure::Unreachable(why) => format!("no connection: {why}"),
        Failure::TimedOut => "no whole answer in time".to_owned(),
        Failure::Broken(why) => format!("no valid answer: {why}"),
        Failure::NoHttp2 => "no HTTP/2".to_owned(),
    }
}
