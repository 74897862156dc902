//! The task that serves the [waiters](super::waiters): it keeps one connection that receives
//! changes, and polls while there is none.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::line::{Line, Message, Messages};
use super::records::READ_AT_ONCE;
use super::refusal::is_forbidden;
use super::waiters::{Post, Relieved};
use crate::error::StoreError;
use crate::key::RecordId;
use crate::store::Snapshot;

/// Interval at which every awaited record is read although no message came: only a reply proves
/// that the connection still works.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// Number of ticks without a waiter after which the connection is closed.
const IDLE_TICKS: u32 = 10;
/// Polling interval without a connection that receives changes: first and longest.
const LOOKS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(100)];
/// Delay before another attempt to connect: first and longest.
const RETRIES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// The same if the user lacks the permission.
const RETRY_FORBIDDEN: Duration = Duration::from_secs(60);

/// The reason why listening ended.
enum End {
    /// The task must stop.
    Relieved,
    /// There is no connection that receives changes.
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

/// Polls the awaited records for a while, at growing intervals.
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
        for ids in ids.chunks(READ_AT_ONCE) {
            let found = post.hall.records.load_many(ids).await;
            // A transient failure: the next round reads the records again.
            if show(post, ids, found, false)?.is_err() {
                break;
            }
        }
        sleep(pause).await;
        waited += pause;
        pause = (pause * 2).min(LOOKS[1]);
    }
    Ok(())
}

/// Listens until the connection is lost. Reading a record makes the server announce its next
/// change.
async fn live(post: &Post, was_live: &mut bool) -> Result<std::convert::Infallible, End> {
    let opened = Line::open(&post.hall.client, post.hall.limits).await;
    let (mut line, mut messages) =
        opened.map_err(|error| End::Lost { is_forbidden: is_forbidden(&error) })?;
    post.ask_for_all()?;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut idle = 0_u32;
    loop {
        let asked = post.take_asked()?;
        look(post, &mut line, &asked).await?;
        *was_live |= !asked.is_empty();
        // Messages are taken only after the read. One that was sent before the read causes a
        // spurious wake-up at most.
        match next(post, &mut messages, &mut ticks).await {
            Event::Message(Message::Lost) => return Err(LOST),
            Event::Message(Message::Changed(names)) => {
                for id in names.iter().filter_map(|name| post.hall.records.id(name)) {
                    post.changed(&id)?;
                }
            }
            Event::Message(Message::AllChanged) => {
                for id in post.all()? {
                    post.changed(&id)?;
                }
            }
            Event::Nudge => {}
            Event::Tick => {
                let ids = post.all()?;
                look(post, &mut line, &ids).await?;
                idle = if ids.is_empty() { idle + 1 } else { 0 };
                if idle > IDLE_TICKS {
                    post.leave()?;
                }
            }
        }
    }
}

async fn look(post: &Post, line: &mut Line, ids: &[RecordId]) -> Result<(), End> {
    for ids in ids.chunks(READ_AT_ONCE) {
        let found = line.read(&post.hall.records, ids).await;
        show(post, ids, found, true)?.map_err(|_| LOST)?;
    }
    Ok(())
}

/// Wakes the waiters whose record no longer has the stamp they know. Returns transient errors.
/// Other errors wake the waiters of the record, which then find them themselves.
fn show(
    post: &Post,
    ids: &[RecordId],
    found: Result<Vec<Result<Snapshot, StoreError>>, StoreError>,
    is_live: bool,
) -> Result<Result<(), StoreError>, Relieved> {
    let found = match found {
        Ok(found) => found,
        Err(error) if error.is_transient() => return Ok(Err(error)),
        Err(_) => {
            for id in ids {
                post.seen(id, None, is_live)?;
            }
            return Ok(Ok(()));
        }
    };
    for (id, found) in ids.iter().zip(found) {
        match found {
            Ok(found) => post.seen(id, found.record.map(|record| record.stamp), is_live)?,
            Err(error) if error.is_transient() => return Ok(Err(error)),
            Err(_) => post.seen(id, None, is_live)?,
        }
    }
    Ok(Ok(()))
}

enum Event {
    Message(Message),
    Nudge,
    Tick,
}

async fn next(post: &Post, messages: &mut Messages, ticks: &mut Interval) -> Event {
    let mut nudge = pin!(post.nudge.notified());
    let mut message = pin!(messages.next());
    poll_fn(|cx| {
        // Ticks first: messages may come without end.
        if ticks.poll_tick(cx).is_ready() {
            return Poll::Ready(Event::Tick);
        }
        if let Poll::Ready(message) = message.as_mut().poll(cx) {
            return Poll::Ready(Event::Message(message));
        }
        nudge.as_mut().poll(cx).map(|()| Event::Nudge)
    })
    .await
}
