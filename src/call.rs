//! The execution of a command: load, decide and swap, until it is done or its time is up.

mod tries;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::tries::{Call, within};

use self::tries::Pause;
use crate::clock::Clock;
use crate::decide::{Command, Current, Decision, Reply, decide, decide_again};
use crate::error::Error;
use crate::key::RecordId;
use crate::observe;
use crate::policy::Policy;
use crate::record::{Record, Stamp};
use crate::store::{Snapshot, Store, Swap, SwapRequest};
use crate::store_id::StoreId;
use crate::sync::atomic::{AtomicBool, Ordering};

/// The parts of an engine that executing a command needs.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) store: Box<dyn Store>,
    pub(crate) policy: Policy,
    pub(crate) clock: Arc<dyn Clock>,
    /// The store's identity, as tokens carry it.
    pub(crate) identity: StoreId,
}

/// A command on one record, and the limits of its execution.
pub(crate) struct Task<'a> {
    pub(crate) id: RecordId,
    pub(crate) command: &'a Command,
    /// The time, on the engine's monotonic clock, at which its execution started.
    pub(crate) started: Duration,
    /// The time from then on after which it is given up.
    pub(crate) limit: Duration,
    /// The flag of the lease that the command belongs to: set once the lease sent a release.
    pub(crate) released: Option<&'a AtomicBool>,
}

/// The knowledge about a record before a command is executed.
pub(crate) enum View {
    /// None: the record is loaded first.
    Unknown,
    /// A step that is most likely the right one, and is tried at once: a conflict shows the record.
    Expected(Step),
    /// A snapshot, requested at this time on the engine's monotonic clock. (Boxed, so that a view
    /// is small to move.)
    Found(Box<(Snapshot, Duration)>),
}

/// The write that a command needs: a swap, and the reply once it is done.
pub(crate) struct Step {
    pub(crate) swap: SwapRequest,
    pub(crate) reply: Reply,
}

/// The consequence of the rules for a command on a snapshot.
enum Next {
    Write(Step),
    Answer(Reply),
}

/// The result of a command.
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    /// The record as the reply leaves it. `None` with a replay, which does not use it.
    pub(crate) record: Option<Box<Record>>,
    /// The time, on the engine's monotonic clock, until which the record's lease can be relied on.
    pub(crate) until: Duration,
}

impl Core {
    /// Executes a command, starting from `view`.
    pub(crate) async fn execute(&self, task: &Task<'_>, view: View) -> Result<Answer, Error> {
        let Task { id, command, started, limit, .. } = task;
        self.check_origin(command)?;
        let mut call = Call::since(*started, self, id, *limit);
        let mut pause = Pause::after(8);
        let (mut expected, mut found) = match view {
            View::Unknown => (None, None),
            View::Expected(step) => (Some(step), None),
            View::Found(found) => {
                call.sent = found.1;
                (None, Some(found.0))
            }
        };
        let (mut lapsed, mut removes) = (false, false);
        loop {
            let step = match expected.take() {
                Some(step) => step,
                None => {
                    let mut snapshot = match found.take() {
                        Some(snapshot) => snapshot,
                        None => call.load().await?,
                    };
                    // A release may have removed the record meanwhile: then it is not lost.
                    task.check_released()?;
                    lapsed = task.replaces_evidence(&snapshot);
                    match task.decide(&mut snapshot, removes)? {
                        Next::Write(step) => step,
                        Next::Answer(reply) => return Ok(Answer::found(call.sent, reply, snapshot)),
                    }
                }
            };
            match call.swap(&step.swap).await? {
                Swap::Done(stamp) => {
                    observe::expired_unsettled(self, u64::from(lapsed));
                    return Ok(Answer::written(call.sent, step, stamp));
                }
                Swap::Conflict(snapshot) => {
                    removes = step.swap.next.is_none();
                    found = Some(snapshot);
                }
            }
            call.rest(&mut pause).await;
        }
    }

    /// Refuses a command whose token belongs to another store.
    pub(crate) fn check_origin(&self, command: &Command) -> Result<(), Error> {
        command.token().map_or(Ok(()), |token| self.policy.check_origin(token, self.identity))
    }
}

impl observe::Source for Core {
    fn name(&self) -> &'static str {
        self.store.name()
    }

    fn clock(&self) -> &dyn Clock {
        &*self.clock
    }
}

impl Task<'_> {
    /// Applies the rules to a snapshot. `removes` is true after a removal that found it instead of
    /// the expected record. A reply with a response takes the response out of the snapshot.
    fn decide(&self, found: &mut Snapshot, removes: bool) -> Result<Next, Error> {
        let expected = found.record.as_ref().map(|record| record.stamp);
        Ok(match decide_again(found.now, found.record.as_deref(), self.command, removes) {
            Decision::Write { next, reply } => {
                Next::Write(Step { swap: SwapRequest { id: self.id, expected, next }, reply })
            }
            Decision::Reply(reply) => Next::Answer(reply),
            Decision::Replay => Next::Answer(Reply::replay(found.record.take()).ok_or(NOT_COMPLETED)?),
        })
    }

    /// The reply to the command, if it needs no write on this snapshot.
    pub(crate) fn answer(&self, found: &mut Snapshot) -> Result<Option<Reply>, Error> {
        self.check_released()?;
        Ok(match self.decide(found, false)? {
            Next::Answer(reply) => Some(reply),
            Next::Write(_) => None,
        })
    }

    /// Returns true if a begin would replace evidence that expired before it was settled.
    fn replaces_evidence(&self, found: &Snapshot) -> bool {
        let lapsed = |record: &Record| record.is_evidence() && !record.is_kept(found.now);
        matches!(self.command, Command::Begin(_)) && found.record.as_deref().is_some_and(lapsed)
    }

    /// Refuses to decide for a lease that sent a release, which may have removed the record: a
    /// finish would take that for a record that the store lost, and a renewal for a lost lease.
    fn check_released(&self) -> Result<(), Error> {
        let released = self.released.is_some_and(|released| released.load(Ordering::SeqCst));
        if released && !matches!(self.command, Command::Release(_)) {
            return Err(Error::LeaseLost { current: Current::of(None) });
        }
        Ok(())
    }
}

/// The error of a replay of a record that is not completed, which the rules exclude.
pub(crate) const NOT_COMPLETED: Error = Error::Internal { detail: "a replay of an operation in progress" };

impl View {
    /// The view of a key that most likely has no record.
    pub(crate) fn absent(id: &RecordId, command: &Command) -> View {
        View::expecting(id, Stamp::ZERO, None, command)
    }

    /// The view of a key that most likely has this record.
    #[inline]
    pub(crate) fn expecting(id: &RecordId, now: Stamp, record: Option<&Record>, command: &Command) -> View {
        let expected = record.map(|record| record.stamp);
        match decide(now, record, command) {
            Decision::Write { next, reply } => {
                View::Expected(Step { swap: SwapRequest { id: *id, expected, next }, reply })
            }
            Decision::Reply(_) | Decision::Replay => View::Unknown,
        }
    }
}

impl Answer {
    /// The answer from a snapshot that was requested at `sent`.
    pub(crate) fn found(sent: Duration, reply: Reply, found: Snapshot) -> Answer {
        let left = found.record.as_deref().and_then(|record| record.lease_remaining(found.now));
        let used = !matches!(reply, Reply::Completed(_));
        Answer {
            reply,
            record: found.record.filter(|_| used),
            until: sent.saturating_add(left.unwrap_or_default()),
        }
    }

    /// The answer of a swap that was sent at `sent` and succeeded.
    pub(crate) fn written(sent: Duration, step: Step, stamp: Stamp) -> Answer {
        let mut record = step.swap.next;
        if let Some(record) = &mut record {
            record.stamp_with(stamp);
        }
        let left = record.as_ref().and_then(|record| record.lease_remaining(stamp)).unwrap_or_default();
        Answer { reply: step.reply, record, until: sent.saturating_add(left) }
    }
}

impl Reply {
    /// Converts the reply to a command that is either carried out or refused.
    pub(crate) fn into_done(self) -> Result<(), Error> {
        match self {
            Reply::Done { .. } => Ok(()),
            Reply::LeaseLost(current) => Err(Error::LeaseLost { current }),
            Reply::AlreadyFinished(current) => Err(Error::AlreadyFinished { current }),
            Reply::NotResolvable(current) => Err(Error::NotResolvable { current }),
            // Only a begin has these replies. If another command should get one, it was not carried
            // out.
            Reply::Acquired
            | Reply::Completed(_)
            | Reply::InProgress { .. }
            | Reply::Failed { .. }
            | Reply::Unresolved { .. }
            | Reply::Mismatch => Err(Error::LeaseLost { current: Current::of(None) }),
        }
    }
}
