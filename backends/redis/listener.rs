//! The task that learns of changes from a server: [`RedisListener`].

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use ::redis::Client;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::error::is_forbidden;
use super::records::{READ_AT_ONCE, Records};
use super::tracking::{Message, Messages, TrackingConnection};
use crate::backends::shared::waiters::{Listener, ListenerHandle, Superseded};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::store::Snapshot;

/// Interval at which every awaited record is read although no message came: only a reply proves
/// that the connection still works.
const TICK: Duration = Duration::from_secs(1);
/// Number of ticks without a waiter after which the connection is closed.
const IDLE_TICKS: u32 = 10;
/// Polling interval without a connection that receives changes: first and longest.
const POLLS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(100)];
/// Delay before another attempt to connect: first and longest.
const RETRIES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// The same if the user lacks the permission.
const RETRY_FORBIDDEN: Duration = Duration::from_secs(60);

/// Keeps one connection that receives changes, and polls while there is none.
pub(super) struct RedisListener {
    pub(super) records: Arc<Records>,
    pub(super) client: Client,
    /// Timeouts for connecting and for an answer.
    pub(super) limits: [Duration; 2],
}

/// The reason why listening ended.
enum Stop {
    /// The task must end.
    Superseded,
    /// There is no connection that receives changes.
    Lost { is_forbidden: bool },
}

impl From<Superseded> for Stop {
    fn from(_: Superseded) -> Stop {
        Stop::Superseded
    }
}

const LOST: Stop = Stop::Lost { is_forbidden: false };

impl Listener for RedisListener {
    /// No step takes longer than to connect, get an answer, and wait for the next tick.
    fn heartbeat_limit(&self) -> Duration {
        let [connect, answer] = self.limits;
        connect.saturating_add(answer).saturating_add(TICK * 2)
    }

    async fn run(self: Arc<Self>, handle: ListenerHandle) {
        let mut retry = RETRIES[0];
        loop {
            let mut was_live = false;
            let Err(stop) = self.listen(&handle, &mut was_live).await;
            let pause = match stop {
                Stop::Superseded => return,
                Stop::Lost { is_forbidden: true } => RETRY_FORBIDDEN,
                Stop::Lost { is_forbidden: false } if was_live => RETRIES[0],
                Stop::Lost { is_forbidden: false } => (retry * 2).min(RETRIES[1]),
            };
            retry = pause.min(RETRIES[1]);
            if self.poll(&handle, pause).await.is_err() {
                return;
            }
        }
    }
}

impl RedisListener {
    /// Polls the awaited records for a while, at growing intervals.
    async fn poll(&self, handle: &ListenerHandle, during: Duration) -> Result<(), Superseded> {
        let (mut waited, mut idle) = (Duration::ZERO, Duration::ZERO);
        let mut pause = POLLS[0];
        handle.request_all()?;
        while waited < during {
            if !handle.take_requested()?.is_empty() {
                pause = POLLS[0];
            }
            let ids = handle.ids()?;
            idle = if ids.is_empty() { idle + pause } else { Duration::ZERO };
            if idle >= TICK * IDLE_TICKS {
                handle.leave()?;
            }
            for ids in ids.chunks(READ_AT_ONCE) {
                let found = self.records.poll(ids).await;
                // Otherwise the next round reads the records again.
                if !report(handle, ids, found, false)? {
                    break;
                }
            }
            sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(POLLS[1]);
        }
        Ok(())
    }

    /// Listens until the connection is lost. Reading a record makes the server announce its next
    /// change.
    async fn listen(&self, handle: &ListenerHandle, was_live: &mut bool) -> Result<Infallible, Stop> {
        let opened = TrackingConnection::open(&self.client, self.limits).await;
        let (mut connection, mut messages) =
            opened.map_err(|error| Stop::Lost { is_forbidden: is_forbidden(&error) })?;
        handle.request_all()?;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut idle = 0_u32;
        loop {
            let requested = handle.take_requested()?;
            self.read(handle, &mut connection, &requested).await?;
            *was_live |= !requested.is_empty();
            // Messages are taken only after the read. One that was sent before the read causes a
            // spurious wake-up at most.
            match next(handle, &mut messages, &mut ticks).await {
                Event::Message(Message::Lost) => return Err(LOST),
                // With replicas to wait for, records are also written back as they are.
                Event::Message(Message::Changed(names)) if self.records.settings.replication.is_some() => {
                    let ids = names.iter().filter_map(|name| self.records.id(name));
                    // Reading one makes the server announce its next change, for ever.
                    let ids = handle.awaited(ids)?;
                    self.read(handle, &mut connection, &ids).await?;
                }
                Event::Message(Message::Changed(names)) => {
                    for id in names.iter().filter_map(|name| self.records.id(name)) {
                        handle.changed(&id)?;
                    }
                }
                Event::Message(Message::AllChanged) => {
                    for id in handle.ids()? {
                        handle.changed(&id)?;
                    }
                }
                Event::Wake => {}
                Event::Tick => {
                    let ids = handle.ids()?;
                    self.read(handle, &mut connection, &ids).await?;
                    idle = if ids.is_empty() { idle + 1 } else { 0 };
                    if idle > IDLE_TICKS {
                        handle.leave()?;
                    }
                }
            }
        }
    }

    async fn read(
        &self,
        handle: &ListenerHandle,
        connection: &mut TrackingConnection,
        ids: &[RecordId],
    ) -> Result<(), Stop> {
        for ids in ids.chunks(READ_AT_ONCE) {
            let found = connection.read(&self.records, ids).await;
            if !report(handle, ids, found, true)? {
                return Err(LOST);
            }
        }
        Ok(())
    }
}

/// Wakes the waiters whose record no longer has the stamp they know. Returns false after a
/// transient error. Other errors wake the waiters of the record, which then find them themselves.
fn report(
    handle: &ListenerHandle,
    ids: &[RecordId],
    found: Result<Vec<Result<Snapshot, StoreError>>, StoreError>,
    is_live: bool,
) -> Result<bool, Superseded> {
    let found = found.unwrap_or_else(|error| ids.iter().map(|_| Err(error.clone())).collect());
    for (id, found) in ids.iter().zip(found) {
        match found {
            Ok(found) => handle.seen(id, found.record.map(|record| record.stamp), is_live)?,
            Err(error) if error.is_transient() => return Ok(false),
            Err(_) => handle.seen(id, None, is_live)?,
        }
    }
    Ok(true)
}

enum Event {
    Message(Message),
    Wake,
    Tick,
}

async fn next(handle: &ListenerHandle, messages: &mut Messages, ticks: &mut Interval) -> Event {
    let mut wake = pin!(handle.woken());
    let mut message = pin!(messages.next());
    poll_fn(|cx| {
        // Ticks first: messages may come without end.
        if ticks.poll_tick(cx).is_ready() {
            return Poll::Ready(Event::Tick);
        }
        if let Poll::Ready(message) = message.as_mut().poll(cx) {
            return Poll::Ready(Event::Message(message));
        }
        wake.as_mut().poll(cx).map(|()| Event::Wake)
    })
    .await
}
