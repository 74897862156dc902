//! The task that serves the [waiters](super::waiters): one subscription for all of them, and looks where that is not
//! enough.

use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use ::redis::RedisError;
use ::redis::aio::{PubSubSink, PubSubStream};
use futures_util::StreamExt;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use super::records::READ_AT_ONCE;
use super::refusal::is_forbidden;
use super::waiters::{Hall, Post, Relieved};
use crate::error::StoreError;
use crate::key::RecordId;

/// How often every record is looked at although no message came.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// After how many ticks the connection has to show that it is still one.
const PROBE_TICKS: u32 = 3;
/// After how many ticks without a waiter it is closed.
const IDLE_TICKS: u32 = 10;
/// How many channels a command names.
const CHANNELS_AT_ONCE: usize = 512;
/// How often records are looked at that no message would tell of: at first, and at last.
const LOOKS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(100)];
/// When a subscription is tried again: at first and at last.
const RETRIES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// The same if the user lacks the permission.
const RETRY_FORBIDDEN: Duration = Duration::from_secs(60);

/// Why the task does something else.
enum End {
    /// For good.
    Relieved,
    /// There is no subscription.
    Lost { is_forbidden: bool },
}

impl From<Relieved> for End {
    fn from(_: Relieved) -> End {
        End::Relieved
    }
}

const LOST: End = End::Lost { is_forbidden: false };

pub(super) async fn run(post: Post) {
    let mut retry = RETRIES[0];
    loop {
        let mut was_live = false;
        let Err(end) = live(&post, &mut was_live).await;
        let pause = match end {
            End::Relieved => return,
            End::Lost { is_forbidden: true } => RETRY_FORBIDDEN,
            End::Lost { is_forbidden: false } if was_live => RETRIES[0],
            End::Lost { is_forbidden: false } => (retry * 2).min(RETRIES[1]),
        };
        retry = pause.min(RETRIES[1]);
        if poll(&post, pause).await.is_err() {
            return;
        }
    }
}

/// Looks at what is waited for, again and again and ever more seldom, for a while.
async fn poll(post: &Post, during: Duration) -> Result<(), Relieved> {
    let (mut waited, mut idle) = (Duration::ZERO, Duration::ZERO);
    let mut pause = LOOKS[0];
    post.ask_for_all()?;
    while waited < during {
        let asked = post.take_asked()?;
        if !asked.is_empty() {
            pause = LOOKS[0];
        }
        let ids = post.all()?;
        idle = if ids.is_empty() { idle + pause } else { Duration::ZERO };
        if idle >= TICK * IDLE_TICKS {
            post.leave()?;
        }
        // What cannot be read at present is looked at again.
        let _ = look(post, &ids, false).await?;
        sleep(pause).await;
        waited += pause;
        pause = (pause * 2).min(LOOKS[1]);
    }
    Ok(())
}

/// Listens until the connection is lost. What happened before a subscription was confirmed is seen by the look after it.
async fn live(post: &Post, was_live: &mut bool) -> Result<std::convert::Infallible, End> {
    let (mut line, mut messages) = Line::open(&post.hall).await?;
    post.ask_for_all()?;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut count, mut idle) = (0_u32, 0_u32);
    loop {
        let ids = post.take_asked()?;
        if !ids.is_empty() {
            line.subscribe(post, &ids).await?;
            *was_live = true;
            look(post, &ids, true).await?.map_err(|_| LOST)?;
        }
        match next(post, &mut messages, &mut ticks).await {
            Event::Lost => return Err(LOST),
            Event::Nudge => {}
            Event::Message(channel) => {
                if let Some(id) = post.hall.records.id(&channel) {
                    post.changed(&id)?;
                }
            }
            Event::Tick => {
                line.unsubscribe(post).await?;
                let ids = post.all()?;
                look(post, &ids, true).await?.map_err(|_| LOST)?;
                count = count.wrapping_add(1);
                if count.is_multiple_of(PROBE_TICKS) {
                    line.probe(post).await?;
                }
                idle = if ids.is_empty() { idle + 1 } else { 0 };
                if idle > IDLE_TICKS {
                    post.leave()?;
                }
            }
        }
    }
}

/// Reads the records and tells those whose record is no longer what they wait at.
async fn look(post: &Post, ids: &[RecordId], is_live: bool) -> Result<Result<(), StoreError>, Relieved> {
    for ids in ids.chunks(READ_AT_ONCE) {
        let found = match post.hall.records.load_many(ids).await {
            Ok(found) => found,
            Err(error) if error.is_transient() => return Ok(Err(error)),
            // For the callers to see for themselves.
            Err(_) => {
                for id in ids {
                    post.seen(id, None, is_live)?;
                }
                continue;
            }
        };
        for (id, found) in ids.iter().zip(found) {
            match found {
                Ok(found) => post.seen(id, found.record.map(|record| record.stamp), is_live)?,
                Err(error) if error.is_transient() => return Ok(Err(error)),
                Err(_) => post.seen(id, None, is_live)?,
            }
        }
    }
    Ok(Ok(()))
}

enum Event {
    Message(Vec<u8>),
    Nudge,
    Tick,
    Lost,
}

async fn next(post: &Post, messages: &mut PubSubStream, ticks: &mut Interval) -> Event {
    let mut nudge = pin!(post.nudge.notified());
    poll_fn(|cx| {
        // Ticks first: messages can come without end.
        if ticks.poll_tick(cx).is_ready() {
            return Poll::Ready(Event::Tick);
        }
        if let Poll::Ready(message) = messages.poll_next_unpin(cx) {
            let channel = message.map(|message| message.get_channel().unwrap_or_default());
            return Poll::Ready(channel.map_or(Event::Lost, Event::Message));
        }
        nudge.as_mut().poll(cx).map(|()| Event::Nudge)
    })
    .await
}

/// The connection that listens, and to what.
struct Line {
    sink: PubSubSink,
    subscribed: HashSet<RecordId>,
}

impl Line {
    async fn open(hall: &Hall) -> Result<(Line, PubSubStream), End> {
        let [limit, _] = hall.limits;
        match timeout(limit, hall.client.get_async_pubsub()).await {
            Ok(Ok(connection)) => {
                let (sink, messages) = connection.split();
                Ok((Line { sink, subscribed: HashSet::new() }, messages))
            }
            Ok(Err(_)) | Err(_) => Err(LOST),
        }
    }

    async fn subscribe(&mut self, post: &Post, ids: &[RecordId]) -> Result<(), End> {
        let new: Vec<_> = ids.iter().filter(|id| !self.subscribed.contains(id)).copied().collect();
        for ids in new.chunks(CHANNELS_AT_ONCE) {
            let channels = channels(post, ids);
            confirm(post, self.sink.subscribe(&channels)).await?;
            self.subscribed.extend(ids);
        }
        Ok(())
    }

    /// Ends what nobody waits for any more. Whoever waits again within a tick finds it still there.
    async fn unsubscribe(&mut self, post: &Post) -> Result<(), End> {
        let old = post.deserted(self.subscribed.iter().copied())?;
        for ids in old.chunks(CHANNELS_AT_ONCE) {
            let channels = channels(post, ids);
            confirm(post, self.sink.unsubscribe(&channels)).await?;
            for id in ids {
                self.subscribed.remove(id);
            }
        }
        Ok(())
    }

    /// Subscribes to something once more, which changes nothing: a connection whose peer vanished does not confirm it.
    async fn probe(&mut self, post: &Post) -> Result<(), End> {
        let Some(id) = self.subscribed.iter().next() else { return Ok(()) };
        let channels = channels(post, &[*id]);
        confirm(post, self.sink.subscribe(&channels)).await
    }
}

/// A channel has the name of the record's key.
fn channels(post: &Post, ids: &[RecordId]) -> Vec<Vec<u8>> {
    ids.iter().map(|id| post.hall.records.key(id)).collect()
}

async fn confirm(post: &Post, command: impl Future<Output = Result<(), RedisError>>) -> Result<(), End> {
    let [_, limit] = post.hall.limits;
    let done = timeout(limit, command).await;
    post.beat()?;
    match done {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(End::Lost { is_forbidden: is_forbidden(&error) }),
        Err(_) => Err(LOST),
    }
}
