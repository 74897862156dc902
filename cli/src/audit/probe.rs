//! [`Probe`]: the sending, cutting, counting and recording that checks do, within the limits.
//!
//! [`Shot`] is a request of a check; `sending` sends and cuts them, `counting` counts their
//! effects, `answers` compares their answers.

mod answers;
mod counting;
mod sending;
mod shot;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use tokio::time::Instant;
use uuid::Uuid;

pub(super) use self::counting::Seen;
pub(super) use self::sending::{Pending, told};
pub(super) use self::shot::{Operation, Shot};
use super::check::{Step, Verdict};
use super::effects::Counter;
use super::evidence::{Event, Kind};
use super::payload::RequestSpec;
use super::secrets::Secrets;
use super::wire::Endpoint;

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
}
