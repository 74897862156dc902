//! The execution of a command: load, decide and swap, until it is done or its time is up.
//!
//! A store that answers at once is asked without a future: [`Execution::now`]. A command that has
//! to wait goes on in one: [`Execution::run`].

mod tries;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub(crate) use self::tries::{Call, within};

use self::tries::Pause;
use crate::clock::Clock;
use crate::decide::{Command, Current, Decision, Reply, decide, decide_again};
use crate::error::Error;
use crate::key::RecordId;
use crate::observe::{self, RetryCause};
use crate::policy::Policy;
use crate::record::{Record, Stamp};
use crate::store::{Snapshot, Store, Swap, SwapRequest, Update};
use crate::store_id::StoreId;
use crate::sync::atomic::{AtomicBool, Ordering};

/// The longest body that a store may have to hash under its lock, to compare it with a digest.
const SHORT: usize = 4096;

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
    /// There is most likely no record. It is loaded if the store answers at once, and otherwise a
    /// write to an absent record is tried: a conflict shows the record.
    Absent,
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
enum Decided {
    Write(Step),
    Reply(Reply),
}

/// The next part of an execution.
enum Next {
    Write(Step),
    Answer(Answer),
}

/// The result of a command.
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    /// The record as the reply leaves it. `None` with a reply that tells the caller nothing more of
    /// it.
    pub(crate) record: Option<Box<Record>>,
    /// The stamp of the record, if there is one.
    pub(crate) stamp: Option<Stamp>,
    /// The time, on the engine's monotonic clock, until which the record's lease can be relied on.
    pub(crate) until: Duration,
}

/// A command under execution: its store calls so far, and what they have shown.
pub(crate) struct Execution<'a> {
    call: Call<'a>,
    /// The pauses after conflicts.
    pause: Pause,
    /// The swap that is due.
    expected: Option<Step>,
    /// The snapshot to decide on.
    found: Option<Snapshot>,
    /// True if the record is most likely absent and was not asked for yet.
    absent: bool,
    /// True if a pause is due before the next store call.
    rests: bool,
    lapsed: bool,
    removes: bool,
}

impl Core {
    /// Executes a command, starting from `view`.
    pub(crate) async fn execute(&self, task: &Task<'_>, view: View) -> Result<Answer, Error> {
        if let View::Unknown = view
            && let Some(answer) = self.update_now(task)?
        {
            return Ok(answer);
        }
        let mut execution = Execution::new(self, task, view);
        match execution.now(task)? {
            Some(answer) => Ok(answer),
            None => execution.run(task).await,
        }
    }

    /// Executes a command on the record in its store; `None` if the store cannot at once.
    #[inline]
    pub(crate) fn update_now(&self, task: &Task<'_>) -> Result<Option<Answer>, Error> {
        self.check_origin(task.command)?;
        let is_long = task.command.body().is_some_and(|body| body.bytes().map_or(0, Bytes::len) > SHORT);
        if task.limit.is_zero() || is_long {
            return Ok(None);
        }
        let mut decided = None;
        let mut decide = |now: Stamp, record: Option<Cow<'_, Record>>| {
            let (update, answer) = task.update(now, record);
            decided = Some(answer);
            update
        };
        let (update, stamp) = match self.store.update_now(&task.id, &mut decide) {
            Some(Ok(updated)) => updated,
            // Nothing was written; and if it was, the rules recognise a grant and an outcome.
            Some(Err(error)) if error.is_transient() => {
                observe::repeated(self, RetryCause::Unavailable, 1);
                return Ok(None);
            }
            Some(Err(error)) => return Err(error.into()),
            None => return Ok(None),
        };
        let Some((answer, lapsed)) = decided.transpose()? else { return Ok(None) };
        let next = match update {
            Update::Keep => return Ok(Some(answer)),
            Update::Replace(next) => Some(next),
            Update::Remove => None,
        };
        observe::expired_unsettled(self, u64::from(lapsed));
        Ok(Some(Answer::written(task.started, answer.reply, next, stamp)))
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

impl<'a> Execution<'a> {
    #[inline]
    pub(crate) fn new(core: &'a Core, task: &Task<'_>, view: View) -> Execution<'a> {
        let mut execution = Execution {
            call: Call::since(task.started, core, &task.id, task.limit),
            pause: Pause::after(8),
            expected: None,
            found: None,
            absent: false,
            rests: false,
            lapsed: false,
            removes: false,
        };
        match view {
            View::Unknown => {}
            View::Absent => execution.absent = true,
            View::Expected(step) => execution.expected = Some(step),
            View::Found(found) => {
                let (snapshot, sent) = *found;
                execution.call.sent = sent;
                execution.found = Some(snapshot);
            }
        }
        execution
    }

    /// Executes the command as far as the store answers at once; `None` if a store call has to
    /// wait: then [`run`](Execution::run) goes on.
    pub(crate) fn now(&mut self, task: &Task<'_>) -> Result<Option<Answer>, Error> {
        self.call.core.check_origin(task.command)?;
        while !self.rests {
            let step = match self.expected.take() {
                Some(step) => step,
                None => {
                    let snapshot = match self.found.take() {
                        Some(snapshot) => Some(snapshot),
                        None => self.call.load_now()?,
                    };
                    match (snapshot, std::mem::take(&mut self.absent)) {
                        (Some(snapshot), _) => match self.decide(task, snapshot)? {
                            Next::Write(step) => step,
                            Next::Answer(answer) => return Ok(Some(answer)),
                        },
                        (None, true) => match task.guess() {
                            Some(step) => step,
                            None => return Ok(None),
                        },
                        (None, false) => return Ok(None),
                    }
                }
            };
            match self.call.swap_now(&step.swap)? {
                Some(swap) => {
                    if let Some(answer) = self.swapped(step, swap) {
                        return Ok(Some(answer));
                    }
                    self.rests = !self.pause.is_free();
                }
                None => {
                    self.expected = Some(step);
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }

    /// Goes on until the command is answered or its time is up.
    pub(crate) async fn run(&mut self, task: &Task<'_>) -> Result<Answer, Error> {
        loop {
            if std::mem::take(&mut self.rests) {
                self.call.rest(&mut self.pause).await;
            }
            match self.expected.take() {
                Some(step) => {
                    let swap = self.call.swap(&step.swap).await?;
                    if let Some(answer) = self.swapped(step, swap) {
                        return Ok(answer);
                    }
                    self.rests = true;
                }
                None => {
                    let snapshot = match self.found.take() {
                        Some(snapshot) => snapshot,
                        None => self.call.load().await?,
                    };
                    match self.decide(task, snapshot)? {
                        Next::Write(step) => self.expected = Some(step),
                        Next::Answer(answer) => return Ok(answer),
                    }
                }
            }
        }
    }

    #[inline]
    fn decide(&mut self, task: &Task<'_>, mut snapshot: Snapshot) -> Result<Next, Error> {
        // A release may have removed the record meanwhile: then it is not lost.
        task.check_released()?;
        self.lapsed = task.replaces_evidence(snapshot.now, snapshot.record.as_deref());
        Ok(match task.decide(&mut snapshot, self.removes)? {
            Decided::Write(step) => Next::Write(step),
            Decided::Reply(reply) => Next::Answer(Answer::found(self.call.sent, reply, snapshot)),
        })
    }

    /// The answer after a swap; `None` after a conflict, on whose record is decided next.
    #[inline]
    fn swapped(&mut self, step: Step, swap: Swap) -> Option<Answer> {
        match swap {
            Swap::Done(stamp) => {
                observe::expired_unsettled(self.call.core, u64::from(self.lapsed));
                Some(Answer::written(self.call.sent, step.reply, step.swap.next, stamp))
            }
            Swap::Conflict(snapshot) => {
                self.removes = step.swap.next.is_none();
                self.found = Some(snapshot);
                None
            }
        }
    }
}

impl Task<'_> {
    /// The step of the command if there is no record.
    fn guess(&self) -> Option<Step> {
        Step::expecting(&self.id, Stamp::ZERO, None, self.command)
    }

    /// Applies the rules to a snapshot. `removes` is true after a removal that found it instead of
    /// the expected record. A reply with a response takes the response out of the snapshot.
    fn decide(&self, found: &mut Snapshot, removes: bool) -> Result<Decided, Error> {
        let expected = found.record.as_ref().map(|record| record.stamp);
        Ok(match decide_again(found.now, found.record.as_deref(), self.command, removes) {
            Decision::Write { next, reply } => {
                Decided::Write(Step { swap: SwapRequest { id: self.id, expected, next }, reply })
            }
            Decision::Reply(reply) => Decided::Reply(reply),
            Decision::Replay => Decided::Reply(Reply::replay(found.record.take()).ok_or(NOT_COMPLETED)?),
        })
    }

    /// The reply to the command, if it needs no write on this snapshot.
    pub(crate) fn answer(&self, found: &mut Snapshot) -> Result<Option<Reply>, Error> {
        self.check_released()?;
        Ok(match self.decide(found, false)? {
            Decided::Reply(reply) => Some(reply),
            Decided::Write(_) => None,
        })
    }

    /// Returns true if a begin would replace evidence that expired before it was settled.
    fn replaces_evidence(&self, now: Stamp, found: Option<&Record>) -> bool {
        let lapsed = |record: &Record| record.is_evidence() && !record.is_kept(now);
        matches!(self.command, Command::Begin(_)) && found.is_some_and(lapsed)
    }

    /// Applies the rules to a record in its store. The answer to an update is complete once it is
    /// [written](Answer::written). True with it if the update replaces evidence that expired.
    #[inline]
    fn update(&self, now: Stamp, found: Option<Cow<'_, Record>>) -> (Update, Result<(Answer, bool), Error>) {
        if let Err(error) = self.check_released() {
            return (Update::Keep, Err(error));
        }
        let stamp = found.as_ref().map(|record| record.stamp);
        let lapsed = self.replaces_evidence(now, found.as_deref());
        let answer = |reply, record, until| Ok((Answer { reply, record, stamp, until }, lapsed));
        match decide(now, found.as_deref(), self.command) {
            Decision::Write { next, reply } => {
                (next.map_or(Update::Remove, Update::Replace), answer(reply, None, self.started))
            }
            Decision::Reply(reply) => {
                let left = found.as_ref().and_then(|record| record.lease_remaining(now)).unwrap_or_default();
                let record = match found {
                    Some(record) if reply.leaves_record() => Some(Box::new(record.into_owned())),
                    Some(_) | None => None,
                };
                (Update::Keep, answer(reply, record, self.started.saturating_add(left)))
            }
            Decision::Replay => {
                let state = found.map(|record| match record {
                    Cow::Owned(record) => record.state,
                    Cow::Borrowed(record) => record.state.clone(),
                });
                let reply = state.and_then(Reply::replay_of).ok_or(NOT_COMPLETED);
                (Update::Keep, reply.and_then(|reply| answer(reply, None, self.started)))
            }
        }
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
        Step::expecting(id, now, record, command).map_or(View::Unknown, View::Expected)
    }
}

impl Step {
    /// The step of a command on this record, if it needs a write.
    #[inline]
    fn expecting(id: &RecordId, now: Stamp, record: Option<&Record>, command: &Command) -> Option<Step> {
        let expected = record.map(|record| record.stamp);
        match decide(now, record, command) {
            Decision::Write { next, reply } => {
                Some(Step { swap: SwapRequest { id: *id, expected, next }, reply })
            }
            Decision::Reply(_) | Decision::Replay => None,
        }
    }
}

impl Answer {
    /// The answer from a snapshot that was requested at `sent`.
    pub(crate) fn found(sent: Duration, reply: Reply, found: Snapshot) -> Answer {
        let left = found.record.as_deref().and_then(|record| record.lease_remaining(found.now));
        let stamp = found.record.as_ref().map(|record| record.stamp);
        let used = reply.leaves_record();
        Answer {
            reply,
            record: found.record.filter(|_| used),
            stamp,
            until: sent.saturating_add(left.unwrap_or_default()),
        }
    }

    /// The answer of a swap that was sent at `sent` and succeeded.
    pub(crate) fn written(
        sent: Duration,
        reply: Reply,
        mut record: Option<Box<Record>>,
        stamp: Stamp,
    ) -> Answer {
        if let Some(record) = &mut record {
            record.stamp_with(stamp);
        }
        let left = record.as_ref().and_then(|record| record.lease_remaining(stamp)).unwrap_or_default();
        let written = record.is_some().then_some(stamp);
        Answer { reply, record, stamp: written, until: sent.saturating_add(left) }
    }
}

impl Reply {
    /// Returns true if the caller holds the record that the reply is about, and goes on from it.
    fn leaves_record(&self) -> bool {
        matches!(self, Reply::Acquired | Reply::Done { .. })
    }

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
