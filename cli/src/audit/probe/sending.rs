//! Sending requests and parts of them, and cutting their connections.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tokio::time::{Instant, sleep};

use super::{Operation, Probe, Shot};
use crate::audit::check::{Step, Verdict, ensure};
use crate::audit::evidence::{Event, Kind, ShownAnswer, ShownRequest};
use crate::audit::payload::Message;
use crate::audit::wire::{Answer, Failure, Open, Protocol, Ready};

/// The most characters of a body that evidence shows.
const SHOWN: usize = 2000;
/// The tries to make a connection, before the service counts as ended.
const CONNECTIONS: u32 = 3;
/// The pause before the next try, times the number of tries.
const AGAIN: Duration = Duration::from_millis(150);

/// A request that was sent, or a part of one, and whose answer is not awaited.
pub(in crate::audit) struct Pending {
    pub(in crate::audit) open: Open,
    event: Event,
}

impl Probe {
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
    pub(in crate::audit) async fn send(&self, shot: &Shot) -> Step<Result<Answer, Failure>> {
        sleep(self.settings.pause).await;
        match self.prepare(shot.protocol).await? {
            Ok(ready) => self.send_on(ready, shot).await,
            Err(failure) => Ok(Err(failure)),
        }
    }

    /// Makes a connection. A service that refuses it again and again has ended.
    pub(in crate::audit) async fn prepare(&self, protocol: Protocol) -> Step<Result<Ready, Failure>> {
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
    pub(in crate::audit) async fn send_on(&self, ready: Ready, shot: &Shot) -> Step<Result<Answer, Failure>> {
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
    pub(in crate::audit) async fn answer(&self, shot: &Shot) -> Step<Answer> {
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
    pub(in crate::audit) async fn answer_once(&self, shot: &Shot) -> Step<Answer> {
        match self.send(shot).await? {
            Ok(answer) => Ok(answer),
            Err(failure) => Err(self.unanswered(&shot.label, &failure)),
        }
    }

    pub(in crate::audit) fn unanswered(&self, label: &str, failure: &Failure) -> Verdict {
        let why = if *failure == Failure::TimedOut { self.no_answer() } else { told(failure) };
        Verdict::fail(format!("{label}: {why}"))
    }

    /// Sends the first request of an operation, which a working service accepts.
    pub(in crate::audit) async fn first(&self, shot: &Shot) -> Step<Answer> {
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
    pub(in crate::audit) async fn settle(&self, shot: &Shot) -> Step<Answer> {
        self.settle_while(shot, Answer::says_wait).await
    }

    /// Repeats a request while its answers are such.
    pub(in crate::audit) async fn settle_while(
        &self,
        shot: &Shot,
        waits: fn(&Answer) -> bool,
    ) -> Step<Answer> {
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
    pub(in crate::audit) async fn settled(&self, operation: &Operation, what: &str) -> Step<Answer> {
        let answer = self.settle(&operation.shot(format!("repeated after {what}"))).await?;
        ensure(!answer.says_wait(), || {
            let seconds = self.settings.patience.as_secs_f64();
            format!("{what}: the key is stuck, repeats are answered {} for {seconds} s", answer.status)
        })?;
        ensure(answer.is_success(), || format!("{what}: the repeat is answered {}", answer.status))?;
        Ok(answer)
    }

    /// Sends the first `bytes` of a request, or all of it, and does not wait for the answer.
    pub(in crate::audit) async fn open(&self, shot: &Shot, bytes: Option<usize>) -> Step<Pending> {
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
    pub(in crate::audit) fn cut(&self, pending: Pending, result: String) {
        let Pending { open, event } = pending;
        drop(open);
        self.record(event, Kind::Cut, result);
    }

    /// Returns the number of bytes of a request, in its head and in all.
    pub(in crate::audit) fn size(&self, shot: &Shot) -> Step<(usize, usize)> {
        let message = self.message(shot)?;
        let authority = &self.endpoint.authority;
        Ok((message.head_len(authority), message.raw(authority).len()))
    }

    /// Returns the bytes of a request, as text.
    pub(in crate::audit) fn sent(&self, shot: &Shot) -> Step<String> {
        let raw = self.message(shot)?.raw(&self.endpoint.authority);
        Ok(String::from_utf8_lossy(&raw).into_owned())
    }
}

pub(in crate::audit) fn told(failure: &Failure) -> String {
    match failure {
        Failure::Unreachable(why) => format!("no connection: {why}"),
        Failure::TimedOut => "no whole answer in time".to_owned(),
        Failure::Broken(why) => format!("no valid answer: {why}"),
        Failure::NoHttp2 => "no HTTP/2".to_owned(),
    }
}
