//! The task that serves the [waiters](super::waiters): one connection that the server tells of changes, and looks where
//! there is none.

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

/// How often every record is looked at although no message came: the connection has to show that it is still one.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// After how many ticks without a waiter it is closed.
const IDLE_TICKS: u32 = 10;
/// How often records are looked at that no message would tell of: at first, and at last.
const LOOKS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(100)];
/// When another connection is tried: at first and at last.
const RETRIES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// The same if the user lacks the permission.
const RETRY_FORBIDDEN: Duration = Duration::from_secs(60);

/// Why the task does something else.
enum End {
    /// For good.
    Relieved,
    /// There is no connection that tells of changes.
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
        for ids in ids.chunks(READ_AT_ONCE) {
            let found = post.hall.records.load_many(ids).await;
            // What cannot be read at present is looked at again.
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

/// Listens until the connection is lost. A look makes the server tell of what happens after it.
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
        // A message that was sent before the last look and is read after it wakes for nothing; none is taken before it.
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

/// Tells those whose record is no longer what they wait at. What is wrong with a record is for the callers to see for
/// themselves; what will pass is an error.
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
        // Ticks first: messages can come without end.
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
