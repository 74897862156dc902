//! [`Probe`]: the sending, cutting, counting and recording that checks do, within the limits.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};
use uuid::Uuid;

use super::check::{Step, Verdict, ensure};
use super::effects::Counter;
use super::evidence::{Event, Kind, ShownAnswer, ShownRequest};
use super::payload::{Message, Payload, RequestSpec};
use super::secrets::Secrets;
use super::wire::{Answer, Endpoint, Failure, Open, Protocol, Ready};

/// The most characters of a body that evidence shows.
const SHOWN: usize = 2000;
/// The tries to make a connection, before the service counts as ended.
const CONNECTIONS: u32 = 3;
/// The pause before the next try, times the number of tries.
const AGAIN: Duration = Duration::from_millis(150);
/// The failures of the counter, one after the other, after which it is not asked any more.
const COUNT_FAILURES: u32 = 2;
/// The readings that a count may take until it is stable.
const READINGS: u32 = 6;

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
    /// The least time after which an effect is counted.
    pub(super) settle: Duration,
    pub(super) pause: Duration,
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
    /// The service was killed, and not yet started again.
    pub(super) killed: Cell<bool>,
    /// The time after which an effect was seen to be counted, if that is late.
    lag: Cell<Duration>,
    /// Effects of requests that were sent since the last stable count may not be counted yet.
    unsettled: Cell<bool>,
    count_failures: Cell<u32>,
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
            killed: Cell::new(false),
            lag: Cell::default(),
            unsettled: Cell::new(false),
            count_failures: Cell::new(0),
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
        let result = self.secrets.hide_line(&result);
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

    /// The time at which everything ends.
    pub(super) fn deadline(&self) -> Instant {
        self.run.start + self.settings.max_time
    }

    /// The verdict of a check that time ends.
    pub(super) fn time_is_over(&self) -> Verdict {
        let seconds = self.settings.max_time.as_secs();
        Verdict::not_shown(format!("the {seconds} s of --max-seconds are over"))
    }

    /// Requires that the budget has a request left.
    pub(super) fn has_budget(&self) -> Step<()> {
        let spent = self.run.spent.get();
        if spent >= self.settings.max_requests {
            let limit = self.settings.max_requests;
            return Err(Verdict::not_shown(format!("the {limit} requests of --max-requests are used up")));
        }
        if Instant::now() >= self.deadline() {
            return Err(self.time_is_over());
        }
        Ok(())
    }

    /// Takes a request from the budget.
    fn spend(&self) -> Step<()> {
        self.has_budget()?;
        self.run.spent.set(self.run.spent.get() + 1);
        self.run.unsettled.set(true);
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
            (name.to_string(), self.secrets.hide_sent_header(name, &value))
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
        event.result = self.secrets.hide_line(&result);
        self.run.events.borrow_mut().push(event);
    }

    /// Sends a request on a new connection, and waits for the whole answer.
    pub(super) async fn send(&self, shot: &Shot) -> Step<Result<Answer, Failure>> {
        sleep(self.settings.pause).await;
        match self.prepare(shot.protocol).await? {
            Ok(ready) => self.send_on(ready, shot).await,
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// Makes a connection. A service that refuses it again and again has ended.
    pub(super) async fn prepare(&self, protocol: Protocol) -> Step<Result<Ready, Failure>> {
        let mut attempt = 1;
        loop {
            match self.endpoint.prepare(protocol).await {
                Err(Failure::Unreachable(why)) if attempt >= CONNECTIONS => return Err(self.is_down(&why)),
                Err(Failure::Unreachable(_)) => sleep(AGAIN * attempt).await,
                prepared => return Ok(prepared),
            }
            attempt += 1;
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
                self.secrets.learn_answer(&answer.headers, &answer.body);
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

    /// Sends a request that must be answered, with whatever status. A service that takes none for
    /// now is asked again.
    pub(super) async fn answer(&self, shot: &Shot) -> Step<Answer> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(100);
        loop {
            let answer = self.answer_once(shot).await?;
            if !answer.is_overload() {
                return Ok(answer);
            }
            let wait = answer.retry_after().unwrap_or(pause).max(pause);
            if start.elapsed() + wait > self.settings.patience {
                let limits = answer.status == 429;
                return if limits { Err(self.rate_is_limited(&shot.label)) } else { Ok(answer) };
            }
            sleep(wait).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    fn rate_is_limited(&self, label: &str) -> Verdict {
        let patience = self.settings.patience.as_millis();
        Verdict::not_shown(format!(
            "{label}: answered 429 for {patience} ms, or told to wait longer: see --pause-ms and --patience-ms"
        ))
    }

    /// Sends a request once that must be answered, with whatever status.
    pub(super) async fn answer_once(&self, shot: &Shot) -> Step<Answer> {
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
    pub(super) async fn settle(&self, shot: &Shot) -> Step<Answer> {
        self.settle_while(shot, Answer::says_wait).await
    }

    /// Repeats a request while its answers are such.
    pub(super) async fn settle_while(&self, shot: &Shot, waits: fn(&Answer) -> bool) -> Step<Answer> {
        let patience = self.settings.patience;
        let start = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            let answer = self.answer(shot).await?;
            if !waits(&answer) || start.elapsed() + pause > patience {
                return Ok(answer);
            }
            let told = answer.retry_after().map_or(pause, |told| told.min(Duration::from_secs(2)));
            sleep(told.max(pause).min(patience)).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// Settles an interrupted operation, which must end in success.
    pub(super) async fn settled(&self, operation: &Operation, what: &str) -> Step<Answer> {
        let answer = self.settle(&operation.shot(format!("repeated after {what}"))).await?;
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
        sleep(self.settings.pause).await;
        let mut attempt = 1;
        loop {
            match self.endpoint.open(part, self.settings.timeout).await {
                Ok(open) => return Ok(Pending { open, event }),
                Err(Failure::Unreachable(why)) if attempt >= CONNECTIONS => return Err(self.is_down(&why)),
                Err(Failure::Unreachable(_)) => sleep(AGAIN * attempt).await,
                Err(failure) => {
                    let verdict = self.unanswered(&shot.label, &failure);
                    self.record(event, Kind::Broken, told(&failure));
                    return Err(verdict);
                }
            }
            attempt += 1;
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

    /// Returns the bytes of a request, as text.
    pub(super) fn sent(&self, shot: &Shot) -> Step<String> {
        let raw = self.message(shot)?.raw(&self.endpoint.authority);
        Ok(String::from_utf8_lossy(&raw).into_owned())
    }

    /// The time after which an effect is counted: as the user says, or longer if that was seen.
    fn settle_time(&self) -> Duration {
        self.settings.settle.max(self.run.lag.get())
    }

    /// Counts the effects, if the user has said how, when those of earlier requests are counted.
    pub(super) async fn count(&self) -> Step<Option<i64>> {
        let mut count = self.count_now().await?;
        for _ in 1..READINGS {
            if count.is_none() || !self.run.unsettled.get() {
                break;
            }
            sleep(self.settle_time()).await;
            let now = self.count_now().await?;
            self.run.unsettled.set(now != count);
            count = now;
        }
        self.run.unsettled.set(false);
        Ok(count)
    }

    /// Counts the effects, if the user has said how, as they are counted now.
    pub(super) async fn count_now(&self) -> Step<Option<i64>> {
        let Some(counter) = &self.counter else { return Ok(None) };
        let failures = self.run.count_failures.get();
        if failures >= COUNT_FAILURES {
            return Err(Verdict::not_shown("the effects cannot be counted any more"));
        }
        let from = self.now_ms();
        match timeout_at(self.deadline(), counter.count()).await {
            Ok(Ok(count)) => {
                self.run.count_failures.set(0);
                self.note(Kind::Count, from, "effects counted", count.to_string());
                Ok(Some(count))
            }
            Ok(Err(why)) => {
                self.run.count_failures.set(failures + 1);
                Err(Verdict::not_shown(format!("the effects cannot be counted: {why}")))
            }
            Err(_) => Err(self.time_is_over()),
        }
    }

    /// Counts the effects since `before`, after the time that one may take to be counted.
    pub(super) async fn effects_since(&self, before: Option<i64>) -> Step<Option<i64>> {
        let Some(before) = before else { return Ok(None) };
        sleep(self.settle_time()).await;
        Ok(self.count_now().await?.map(|now| now - before))
    }

    /// Counts the effects since `before` until they are as many as expected, and no more come. A
    /// count that lags behind gets more time, and its lag is remembered.
    pub(super) async fn settled_effects(&self, before: Option<i64>, expected: i64) -> Step<Option<i64>> {
        let start = Instant::now();
        let Some(mut effects) = self.effects_since(before).await? else { return Ok(None) };
        let mut late = effects < expected;
        for _ in 1..READINGS {
            if effects > expected {
                break;
            }
            let more = if effects < expected { Duration::from_millis(100) } else { Duration::ZERO };
            sleep(more).await;
            let now = self.effects_since(before).await?.unwrap_or(effects);
            if late && now >= expected {
                late = false;
                self.run.lag.set(self.run.lag.get().max(start.elapsed()));
            }
            let stable = now == effects && now >= expected;
            effects = now;
            if stable {
                self.run.unsettled.set(false);
                break;
            }
        }
        Ok(Some(effects))
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
        if let Some(effects) = self.settled_effects(before, operations).await? {
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

pub(super) fn told(failure: &Failure) -> String {
    match failure {
        Failure::Unreachable(why) => format!("no connection: {why}"),
        Failure::TimedOut => "no whole answer in time".to_owned(),
        Failure::Broken(why) => format!("no valid answer: {why}"),
        Failure::NoHttp2 => "no HTTP/2".to_owned(),
    }
}
