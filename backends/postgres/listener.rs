//! The task that learns of changes from a server: [`PostgresListener`].

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};
use tokio_postgres::Notification;
use tokio_postgres::types::Type;

use super::Inner;
use super::connection::{Connection, Lane};
use super::notifier::{NOTIFY, channel, decode, prefix};
use crate::backends::shared::waiters::{Listener, ListenerHandle, Superseded};
use crate::clock::{Clock, SystemClock};
use crate::error::StoreError;
use crate::key::RecordId;

/// Interval at which every awaited record is read although no notification came: a writer may have
/// died before it sent one.
const TICK: Duration = Duration::from_secs(1);
/// Number of ticks without a waiter after which the connection is closed.
const IDLE_TICKS: u32 = 10;
/// Polling interval without notifications: first and longest.
const POLLS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(50)];
/// Delay before another attempt to connect: first and longest.
const RETRIES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// The same if notifications do not arrive, as through a pooler that lends connections for one
/// transaction each.
const RETRY_MUTE: Duration = Duration::from_secs(60);
/// The time for which a store waits for its own first notification.
const PROBE: Duration = Duration::from_millis(500);
/// The records whose stamps are read in one statement.
const READ_AT_ONCE: usize = 1000;

/// Keeps one connection that receives notifications, and polls while there is none.
pub(super) struct PostgresListener {
    inner: Weak<Inner>,
    heartbeat_limit: Duration,
}

/// The reason why listening ended.
enum Stop {
    /// The task must end.
    Superseded,
    /// There is no connection that receives notifications.
    Lost { is_mute: bool },
}

impl From<Superseded> for Stop {
    fn from(_: Superseded) -> Stop {
        Stop::Superseded
    }
}

const LOST: Stop = Stop::Lost { is_mute: false };

impl Listener for PostgresListener {
    fn heartbeat_limit(&self) -> Duration {
        self.heartbeat_limit
    }

    async fn run(self: Arc<Self>, handle: ListenerHandle) {
        let mut retry = RETRIES[0];
        loop {
            let Some(inner) = self.inner.upgrade() else { return };
            let mut was_live = false;
            let Err(stop) = listen(&inner, &handle, &mut was_live).await;
            let pause = match stop {
                Stop::Superseded => return,
                Stop::Lost { is_mute: true } => RETRY_MUTE,
                Stop::Lost { is_mute: false } if was_live => RETRIES[0],
                Stop::Lost { is_mute: false } => (retry * 2).min(RETRIES[1]),
            };
            retry = pause.min(RETRIES[1]);
            if poll(&inner, &handle, pause).await.is_err() {
                return;
            }
        }
    }
}

impl PostgresListener {
    /// No step takes longer than to connect, inspect, get an answer, have another connection
    /// notify, and wait for the next tick.
    pub(super) fn new(inner: Weak<Inner>, connect: Duration, answer: Duration) -> PostgresListener {
        let heartbeat_limit = connect
            .saturating_add(answer.saturating_mul(2))
            .saturating_mul(2)
            .saturating_add(TICK * 2 + PROBE);
        PostgresListener { inner, heartbeat_limit }
    }
}

/// Polls the awaited records for a while, at growing intervals.
async fn poll(inner: &Arc<Inner>, handle: &ListenerHandle, during: Duration) -> Result<(), Superseded> {
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
            let found = inner.stamps(ids).await;
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

/// Listens until the connection is lost, or was used for as long as any is.
async fn listen(
    inner: &Arc<Inner>,
    handle: &ListenerHandle,
    was_live: &mut bool,
) -> Result<Infallible, Stop> {
    let until = SystemClock.monotonic().saturating_add(inner.connections.settings.recheck_every.max(TICK));
    let opened = inner.connections.open_listener().await;
    let (connection, mut messages) = opened.map_err(|_| LOST)?;
    subscribe(inner, &connection, &mut messages).await?;
    *was_live = true;
    handle.request_all()?;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idle = 0_u32;
    loop {
        let requested = handle.take_requested()?;
        read(inner, handle, &connection, &requested).await?;
        // Messages are taken only after the read. One that was sent before the read causes a
        // spurious wake-up at most.
        match next(handle, &mut messages, &mut ticks).await {
            Event::Lost => return Err(LOST),
            Event::Changed(first) => {
                let mut changed: HashSet<_> = decode(first.payload()).into_iter().collect();
                while let Ok(more) = messages.try_recv() {
                    changed.extend(decode(more.payload()));
                }
                for id in handle.ids()?.iter().filter(|id| changed.contains(&prefix(id))) {
                    handle.changed(id)?;
                }
            }
            Event::Wake => {}
            Event::Tick if SystemClock.monotonic() >= until => return Err(LOST),
            Event::Tick => {
                let ids = handle.ids()?;
                read(inner, handle, &connection, &ids).await?;
                idle = if ids.is_empty() { idle + 1 } else { 0 };
                if idle > IDLE_TICKS {
                    handle.leave()?;
                }
            }
        }
    }
}

/// Subscribes to the store's notifications, and makes sure by one of another connection that they
/// arrive while this one does nothing: a pooler passes on those that come during a statement.
async fn subscribe(
    inner: &Arc<Inner>,
    connection: &Connection,
    messages: &mut UnboundedReceiver<Notification>,
) -> Result<(), Stop> {
    let channel = channel(&inner.identity);
    let sql = format!("LISTEN {channel}");
    let sent =
        timeout(inner.connections.settings.answer_timeout, connection.client.batch_execute(&sql)).await;
    if !matches!(sent, Ok(Ok(()))) {
        return Err(LOST);
    }
    // The text names no id.
    let text = format!("probe {} {}", std::process::id(), SystemClock.monotonic().as_nanos());
    let probe = vec![text.clone()];
    let sent = inner.connections.run(Lane::Write, async move |connection: Arc<Connection>| {
        connection.client.query_typed(NOTIFY, &[(&channel, Type::TEXT), (&probe, Type::TEXT_ARRAY)]).await
    });
    sent.await.map_err(|_| LOST)?;
    let arrives = async {
        loop {
            match messages.recv().await {
                Some(message) if message.payload() == text => return Ok(()),
                Some(_) => {}
                None => return Err(LOST),
            }
        }
    };
    timeout(PROBE, arrives).await.unwrap_or(Err(Stop::Lost { is_mute: true }))
}

async fn read(
    inner: &Inner,
    handle: &ListenerHandle,
    connection: &Connection,
    ids: &[RecordId],
) -> Result<(), Stop> {
    for ids in ids.chunks(READ_AT_ONCE) {
        let keys: Vec<&[u8]> = ids.iter().map(|id| id.as_bytes().as_slice()).collect();
        let parameters: [super::swap::Parameter<'_>; 1] = [(&keys, Type::BYTEA_ARRAY)];
        let rows = connection.client.query_typed(&inner.reads.stamps, &parameters);
        let Ok(Ok(rows)) = timeout(inner.connections.settings.answer_timeout, rows).await else {
            return Err(LOST);
        };
        if !report(handle, ids, super::reads::stamps_of(&rows), true)? {
            return Err(LOST);
        }
    }
    Ok(())
}

/// Wakes the waiters whose record no longer has the stamp they know. Returns false after an error.
fn report(
    handle: &ListenerHandle,
    ids: &[RecordId],
    found: Result<Vec<(RecordId, crate::record::Stamp)>, StoreError>,
    is_live: bool,
) -> Result<bool, Superseded> {
    let found: std::collections::HashMap<_, _> = match found {
        Ok(found) => found.into_iter().collect(),
        Err(error) if error.is_transient() => return Ok(false),
        // The waiters find the error themselves.
        Err(_) => std::collections::HashMap::new(),
    };
    for id in ids {
        handle.seen(id, found.get(id).copied(), is_live)?;
    }
    Ok(true)
}

enum Event {
    Changed(Notification),
    Lost,
    Wake,
    Tick,
}

async fn next(
    handle: &ListenerHandle,
    messages: &mut UnboundedReceiver<Notification>,
    ticks: &mut Interval,
) -> Event {
    let mut wake = pin!(handle.woken());
    poll_fn(|cx| {
        // Ticks first: messages may come without end.
        if ticks.poll_tick(cx).is_ready() {
            return Poll::Ready(Event::Tick);
        }
        if let Poll::Ready(message) = messages.poll_recv(cx) {
            return Poll::Ready(message.map_or(Event::Lost, Event::Changed));
        }
        wake.as_mut().poll(cx).map(|()| Event::Wake)
    })
    .await
}
