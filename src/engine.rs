//! [`Engine`]: loads, decides and swaps, until the command is done or times out.

use std::sync::Arc;
use std::time::Duration;

use crate::begin::Begin;
use crate::builder::EngineBuilder;
use crate::call::{Call, Pause};
use crate::clock::Clock;
use crate::decide::{Ask, Command, Decision, Reply, decide, decide_last};
use crate::error::{Error, StoreError};
use crate::key::RecordId;
use crate::lease::Lease;
use crate::observe::{self, Op, Seen};
use crate::owner::{DrawOwner, Owner};
use crate::policy::Policy;
use crate::record::{Record, Stamp};
use crate::request::Request;
use crate::store::{Snapshot, Store, Swap};
use crate::store_id::StoreId;
use crate::token::{LeaseToken, Origin};
use crate::wait::WaitingRoom;

/// The entry point of this crate: decides, by the rules of [`decide`](mod@crate::decide) and with
/// the records of a store, which caller may act on a key.
///
/// Cheap to clone; clones share everything. Runs on any executor that its store runs on.
#[derive(Debug, Clone)]
pub struct Engine(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Box<dyn Store>,
    policy: Policy,
    clock: Arc<dyn Clock>,
    waiting: WaitingRoom,
    /// Draws the owner of a begin.
    owner: DrawOwner,
    /// The store's identity, which tokens carry.
    identity: StoreId,
}

/// The knowledge about a record before a command is executed.
pub(crate) enum View<'a> {
    /// Nothing: the record is loaded first.
    Unknown,
    /// Most likely there is no record. The first swap tries that; a conflict shows the record.
    Absent,
    /// Most likely the record that this lease's holder saw last. The first swap tries that too.
    Held(&'a Lease),
    /// This snapshot, requested at this time on the engine's monotonic clock. (Boxed, so that a
    /// view moves in two registers.)
    Found(Box<(Snapshot, Duration)>),
}

/// The write that a command needs, given what is known: a swap, and the reply once it is done.
pub(crate) struct Step {
    pub(crate) expected: Option<Stamp>,
    pub(crate) next: Option<Box<Record>>,
    pub(crate) reply: Reply,
}

impl Step {
    /// The write that the rules ask for if `record` is what the store holds at `now`. `None` if
    /// there is nothing to write.
    #[inline]
    pub(crate) fn guess(now: Stamp, record: Option<&Record>, command: &Command) -> Option<Step> {
        let expected = record.map(|record| record.stamp);
        match decide(now, record, command) {
            Decision::Write { next, reply } => Some(Step { expected, next, reply }),
            Decision::Reply(_) => None,
        }
    }

    /// The write that the rules ask for on the snapshot that was found, or the reply if there is
    /// nothing to write. A reply with a response takes the response out of the snapshot.
    pub(crate) fn on(found: &mut Snapshot, command: &Command) -> Result<Step, Reply> {
        let expected = found.record.as_ref().map(|record| record.stamp);
        match decide_last(found.now, &mut found.record, command) {
            Decision::Write { next, reply } => Ok(Step { expected, next, reply }),
            Decision::Reply(reply) => Err(reply),
        }
    }
}

/// The result of a command.
pub(crate) struct Answer {
    pub(crate) reply: Reply,
    /// The record as the reply leaves it. `None` with a replay, which does not use it.
    pub(crate) record: Option<Box<Record>>,
    /// The time, on the engine's monotonic clock, until which the record's lease can be relied on.
    pub(crate) until: Duration,
}

impl Answer {
    /// The answer from a snapshot that was requested at `sent`.
    pub(crate) fn found(sent: Duration, reply: Reply, found: Snapshot) -> Answer {
        let lease = |record: &Record| Some(record.stamp.after(record.lease()?).since(found.now));
        let left = found.record.as_deref().and_then(lease).unwrap_or_default();
        let used = !matches!(reply, Reply::Completed(_));
        Answer { reply, record: found.record.filter(|_| used), until: sent.saturating_add(left) }
    }

    /// The answer of a swap that was sent at `sent` and succeeded.
    pub(crate) fn written(sent: Duration, step: Step, stamp: Stamp) -> Answer {
        let mut record = step.next;
        if let Some(record) = &mut record {
            record.stamp_with(stamp);
        }
        let lease = record.as_ref().and_then(|record| record.lease()).unwrap_or_default();
        let left = stamp.after(lease).since(stamp);
        Answer { reply: step.reply, record, until: sent.saturating_add(left) }
    }
}

impl Engine {
    /// Returns a builder for an engine over `store`.
    pub fn builder(store: impl Store) -> EngineBuilder {
        EngineBuilder::new(Box::new(store))
    }

    pub(crate) fn assemble(store: Box<dyn Store>, policy: Policy, clock: Arc<dyn Clock>) -> Engine {
        observe::describe();
        let owner: DrawOwner = if store.is_shared() { Owner::random } else { Owner::random_here };
        let identity = store.identity();
        Engine(Arc::new(Inner { store, policy, clock, waiting: WaitingRoom::default(), owner, identity }))
    }

    /// The policy that this engine was built with.
    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.0.store
    }

    /// The parameters of a begin for `request`, completed from this engine's policy.
    pub(crate) fn ask(&self, request: &Request) -> Result<Ask, Error> {
        request.ask(&self.0.policy, self.0.owner)
    }

    pub(crate) fn waiting(&self) -> &WaitingRoom {
        &self.0.waiting
    }

    /// Requests the right to act on `request`, or returns its present state or outcome. One store
    /// call, two after a crash.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let request = Request::new("acct_42/charges", "8d7f-11")?.fingerprint(Fingerprint::of("4200 EUR"));
    /// match engine.begin(&request).await? {
    ///     Begin::Acquired(lease) => lease.complete("receipt 7").await?,
    ///     Begin::Completed(done) => println!("{} bytes to replay", done.response().map_or(0, |r| r.len())),
    ///     Begin::InProgress(busy) => println!("409, Retry-After: {}", busy.retry_after().as_secs()),
    ///     Begin::Failed(failed) => println!("failed, retry after {:?}", failed.retry_after()),
    ///     Begin::Unresolved(unknown) => println!("somebody has to look: {:?}", unknown.reason()),
    ///     Begin::Mismatch(_) => println!("422"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`Error::Policy`] if the request's windows cannot be safe; [`Error::Store`] and
    /// [`Error::TimedOut`] if the store failed or did not answer. An error is never a grant: do not
    /// act. After a time-out the store may still hold a grant; its lease expires, or
    /// [`Request::owner`] finds it again.
    pub async fn begin(&self, request: &Request) -> Result<Begin, Error> {
        let seen = observe::call(self, Op::Begin, &|| Some(request.label()));
        self.begin_seen(request, &seen).await
    }

    /// Begins an operation of this crate's own, which is not reported to operators.
    pub(crate) async fn begin_quietly(&self, request: &Request) -> Result<Begin, Error> {
        match self.begin_seen(request, &observe::quiet_call(self, Op::Begin)).await? {
            Begin::Acquired(lease) => Ok(Begin::Acquired(lease.quietly())),
            answer @ (Begin::Completed(_)
            | Begin::InProgress(_)
            | Begin::Failed(_)
            | Begin::Unresolved(_)
            | Begin::Mismatch(_)) => Ok(answer),
        }
    }

    async fn begin_seen(&self, request: &Request, seen: &Seen<'_>) -> Result<Begin, Error> {
        let begin = observe::in_span(seen, async {
            let ask = self.ask(request)?;
            let owner = ask.owner;
            let command = Command::Begin(ask);
            let id = request.id();
            let answer = self.execute(&id, &command, View::Absent).await?;
            self.begun(id, owner, answer)
        });
        let begin = begin.await;
        seen.begun(&begin);
        begin
    }

    /// The result that the caller of a begin gets.
    pub(crate) fn begun(&self, id: RecordId, owner: Owner, answer: Answer) -> Result<Begin, Error> {
        let (record, until) = (answer.record, answer.until);
        Begin::of(answer.reply, || {
            let record = record.ok_or(Error::Store(StoreError::Unusable {
                backend: "store",
                detail: "it granted a lease and shows no record of it".to_owned(),
            }))?;
            let origin = Origin { store: self.0.identity, in_transaction: false };
            let kept = self.policy().unresolved_retention;
            let token = LeaseToken::of(id, owner, &record, kept, origin);
            Ok(Lease::new(self.clone(), token, Some(record), until))
        })
    }

    /// Takes over a lease by its token, in this or another process, to renew or finish it. This
    /// does not prolong the lease; [`Lease::renew`] does. A lease that is already finished, or
    /// whose record is gone, can be resumed too, so that a finish whose answer was lost can be
    /// repeated.
    ///
    /// ```
    /// # use nevertwice::*;
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let request = Request::new("exports", "2026-11")?;
    /// # let Begin::Acquired(lease) = engine.begin(&request).await? else { panic!() };
    /// let token = lease.token(); // sent to the worker as JSON, say
    /// let lease = engine.resume(&token).await?;
    /// lease.renew().await?;
    /// lease.complete("done").await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`Error::LeaseLost`] if another caller took the key; [`Error::WrongStore`] if another store
    /// made the grant.
    pub async fn resume(&self, token: &LeaseToken) -> Result<Lease, Error> {
        let seen = observe::call(self, Op::Resume, &|| Some(token.scope));
        let lease = observe::in_span(&seen, async {
            let answer = self.execute(&token.id, &Command::Resume(token.clone()), View::Unknown).await?;
            answer.reply.into_done().inspect_err(|error| {
                if let Error::LeaseLost { current } = error {
                    observe::lease_lost(self, token.attempt, *current);
                }
            })?;
            Ok(Lease::new(self.clone(), token.clone(), answer.record, answer.until))
        });
        let lease = lease.await;
        seen.answered(token.attempt, &lease);
        lease
    }

    /// The identity of this engine's store, which its lease tokens carry.
    pub fn store_id(&self) -> StoreId {
        self.0.identity
    }

    /// Refuses a command whose token belongs to another store.
    pub(crate) fn check_origin(&self, command: &Command) -> Result<(), Error> {
        command.token().map_or(Ok(()), |token| self.policy().check_origin(token, self.0.identity))
    }

    /// Executes `command`, starting from `view`.
    pub(crate) fn execute<'a>(
        &'a self,
        id: &'a RecordId,
        command: &'a Command,
        view: View<'a>,
    ) -> impl Future<Output = Result<Answer, Error>> {
        self.execute_within(self.policy().call_timeout, id, command, view)
    }

    /// Executes `command` with its own time limit.
    pub(crate) async fn execute_within(
        &self,
        limit: Duration,
        id: &RecordId,
        command: &Command,
        view: View<'_>,
    ) -> Result<Answer, Error> {
        self.check_origin(command)?;
        let mut call = Call::within(self, id, limit);
        let held = if let View::Held(lease) = &view { Some(*lease) } else { None };
        let guess = match &view {
            View::Absent => Step::guess(Stamp::ZERO, None, command),
            View::Held(lease) => lease.step(call.started, command),
            View::Unknown | View::Found(_) => None,
        };
        // True if a begin replaces evidence that expired before it was settled.
        let lapses = |found: &Snapshot| {
            let lapsed = |record: &Record| record.is_evidence() && !record.is_kept(found.now);
            matches!(command, Command::Begin(_)) && found.record.as_deref().is_some_and(lapsed)
        };
        let mut lapsed = false;
        let mut step = match guess {
            Some(step) => step,
            None => {
                let mut found = match view {
                    View::Found(found) => {
                        call.sent = found.1;
                        found.0
                    }
                    View::Unknown | View::Absent | View::Held(_) => call.load().await?,
                };
                lapsed = lapses(&found);
                held.map_or(Ok(()), |lease| lease.open_for(command))?;
                match Step::on(&mut found, command) {
                    Ok(step) => step,
                    Err(reply) => return Ok(Answer::found(call.sent, reply, found)),
                }
            }
        };
        let mut pause = Pause::after(8);
        loop {
            let mut found = match call.swap(step.expected, step.next.as_deref()).await? {
                Swap::Done(stamp) => {
                    observe::expired_unsettled(self, u64::from(lapsed));
                    return Ok(Answer::written(call.sent, step, stamp));
                }
                // The record is gone, as this command intended: most likely an earlier try removed
                // it and its answer was lost. Other writes whose answer was lost are recognised by
                // the rules, from the record.
                Swap::Conflict(found) if step.next.is_none() && found.record.is_none() => {
                    return Ok(Answer::found(call.sent, step.reply, found));
                }
                Swap::Conflict(found) => found,
            };
            call.rest(&mut pause).await;
            lapsed = lapses(&found);
            // A release that was sent meanwhile may have removed the record.
            held.map_or(Ok(()), |lease| lease.open_for(command))?;
            step = match Step::on(&mut found, command) {
                Ok(step) => step,
                Err(reply) => return Ok(Answer::found(call.sent, reply, found)),
            };
        }
    }
}
