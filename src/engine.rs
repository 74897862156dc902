//! [`Engine`]: the entry point of the crate.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either};

use crate::begin::Begin;
use crate::builder::EngineBuilder;
use crate::call::{Answer, Call, Core, Execution, Task, View};
use crate::clock::Clock;
use crate::decide::{BeginParams, Command};
use crate::error::Error;
use crate::key::RecordId;
use crate::lease::Lease;
use crate::observe::{self, Op, Seen, Source};
use crate::owner::{DrawOwner, Owner};
use crate::policy::Policy;
use crate::request::Request;
use crate::store::{Snapshot, Store};
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
    core: Core,
    waiting: WaitingRoom,
    /// The source of the owners of begins.
    owner: DrawOwner,
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
        let core = Core { store, policy, clock, identity };
        Engine(Arc::new(Inner { core, waiting: WaitingRoom::default(), owner }))
    }

    /// The policy that this engine was built with.
    pub fn policy(&self) -> &Policy {
        &self.0.core.policy
    }

    pub(crate) fn core(&self) -> &Core {
        &self.0.core
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.0.core.clock
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.0.core.store
    }

    /// The parameters of a begin for `request`, completed from this engine's policy.
    #[inline]
    pub(crate) fn params(&self, request: &Request) -> Result<BeginParams, Error> {
        request.params(self.policy(), self.0.owner)
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
    ///     Begin::Unresolved(unknown) => println!("an operator must decide: {:?}", unknown.reason()),
    ///     Begin::Mismatch(_) => println!("422"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`Error::Policy`] if the request's windows cannot be safe; [`Error::Store`] and
    /// [`Error::TimedOut`] if the store failed or did not answer. An error is never a grant: do not
    /// act. After a timeout the store may still hold a grant; its lease expires, or
    /// [`Request::owner`] finds it again.
    pub async fn begin(&self, request: &Request) -> Result<Begin, Error> {
        let seen = observe::call(self, Op::Begin, &|| Some(request.label()));
        // Without a future in between, which would be moved.
        match self.begin_now(request, &seen) {
            Either::Left(begin) => begin,
            Either::Right(started) => self.begin_later(started, &seen).await,
        }
    }

    /// Begins an operation of this crate's own, which is not reported to operators.
    pub(crate) async fn begin_quietly(&self, request: &Request) -> Result<Begin, Error> {
        let seen = observe::quiet_call(self, Op::Begin);
        let begin = match self.begin_now(request, &seen) {
            Either::Left(begin) => begin,
            Either::Right(started) => self.begin_later(started, &seen).await,
        };
        match begin? {
            Begin::Acquired(lease) => Ok(Begin::Acquired(lease.quietly())),
            answer @ (Begin::Completed(_)
            | Begin::InProgress(_)
            | Begin::Failed(_)
            | Begin::Unresolved(_)
            | Begin::Mismatch(_)) => Ok(answer),
        }
    }

    /// Begins, as far as the store answers at once.
    fn begin_now(
        &self,
        request: &Request,
        seen: &Seen<'_>,
    ) -> Either<Result<Begin, Error>, Box<Started<'_>>> {
        let begin = match seen.inside(|| self.start(request)) {
            Ok(Start::Answered { id, owner, answer }) => self.begun(id, owner, answer),
            Ok(Start::Waits(started)) => return Either::Right(started),
            Err(error) => Err(error),
        };
        seen.begun(&begin);
        Either::Left(begin)
    }

    /// Continues a begin whose store call has to wait. The future is boxed, since it is large to
    /// move and most stores box theirs too.
    fn begin_later<'a>(
        &'a self,
        mut started: Box<Started<'a>>,
        seen: &'a Seen<'_>,
    ) -> BoxFuture<'a, Result<Begin, Error>> {
        Box::pin(async move {
            let begin = observe::in_span(seen, async {
                let answer = started.answer(self).await?;
                self.begun(started.id, started.owner, answer)
            });
            let begin = begin.await;
            seen.begun(&begin);
            begin
        })
    }

    /// Starts a begin for `request`, as far as the store answers at once.
    #[inline]
    pub(crate) fn start(&self, request: &Request) -> Result<Start<'_>, Error> {
        let (id, owner) = (request.id(), request.owner_or(self.0.owner)?);
        request.check(self.policy())?;
        let command = Command::Begin(request.params_of(self.policy(), owner));
        let (started, limit) = (self.clock().monotonic(), self.policy().call_timeout);
        let task = Task { id, command: &command, started, limit, released: None };
        if let Some(answer) = self.core().update_now(&task)? {
            return Ok(Start::Answered { id, owner, answer });
        }
        let mut execution = Execution::new(self.core(), &task, View::Absent);
        Ok(match execution.now(&task)? {
            Some(answer) => Start::Answered { id, owner, answer },
            None => Start::Waits(Box::new(Started { id, owner, command, started, execution })),
        })
    }

    /// Returns `request` with an owner of its own, under which a begin can be repeated.
    #[cfg(feature = "http")]
    pub(crate) fn owned(&self, request: Request) -> Result<Request, Error> {
        Ok(request.new_owner((self.0.owner)()?))
    }

    /// Removes the grant that a begin of an [`owned`](Engine::owned) request may have left when its
    /// answer was lost. No work may have been done under it. Gives up when its lease is over.
    #[cfg(feature = "http")]
    pub(crate) async fn disown(&self, request: &Request) {
        let until = self.clock().monotonic().saturating_add(self.policy().lease);
        let (mut pause, mut absent) = (Duration::from_millis(100), 0);
        // A swap that was sent late may still arrive after the first look.
        while absent < 2 && self.clock().monotonic() < until {
            self.clock().sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
            match self.load(&request.id()).await {
                Ok(Snapshot { record: Some(record), .. }) if request.was_granted(&record) => {
                    if let Ok(Begin::Acquired(lease)) = self.begin_quietly(request).await
                        && lease.release().await.is_ok()
                    {
                        return;
                    }
                }
                Ok(_) => absent += 1,
                Err(_) => {}
            }
        }
    }

    /// Returns the answer that a begin for `request` would get now, without beginning; `None` if it
    /// would be a grant.
    #[cfg(feature = "http")]
    pub(crate) async fn peek(&self, request: &Request) -> Result<Option<Begin>, Error> {
        use crate::decide::{Decision, Reply, decide};
        let command = Command::Begin(self.params(request)?);
        let Snapshot { record, now } = self.load(&request.id()).await?;
        let reply = match decide(now, record.as_deref(), &command) {
            Decision::Reply(Reply::Acquired) | Decision::Write { .. } => return Ok(None),
            Decision::Reply(reply) => Some(reply),
            Decision::Replay => Reply::replay(record),
        };
        let granted = || Err(Error::Internal { detail: "a grant without a write" });
        reply.map(|reply| Begin::of(reply, granted)).transpose()
    }

    /// The result that the caller of a begin gets.
    #[inline]
    pub(crate) fn begun(&self, id: RecordId, owner: Owner, answer: Answer) -> Result<Begin, Error> {
        let (record, until) = (answer.record, answer.until);
        Begin::of(answer.reply, || {
            let record = record.ok_or(Error::Internal { detail: "a grant without a record" })?;
            let origin = Origin { store: self.0.core.identity, in_transaction: false };
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
        self.0.core.identity
    }

    /// Executes `command` within the policy's `call_timeout`, starting from `view`.
    pub(crate) async fn execute(
        &self,
        id: &RecordId,
        command: &Command,
        view: View,
    ) -> Result<Answer, Error> {
        let (started, limit) = (self.clock().monotonic(), self.policy().call_timeout);
        let task = Task { id: *id, command, started, limit, released: None };
        self.core().execute(&task, view).await
    }

    /// Loads the record under `id`.
    pub(crate) async fn load(&self, id: &RecordId) -> Result<Snapshot, Error> {
        Call::within(self.core(), id, self.policy().call_timeout).load().await
    }
}

/// The start of a begin.
pub(crate) enum Start<'a> {
    /// The store answered at once.
    Answered {
        id: RecordId,
        owner: Owner,
        answer: Answer,
    },
    Waits(Box<Started<'a>>),
}

/// A begin whose store call has to wait.
pub(crate) struct Started<'a> {
    pub(crate) id: RecordId,
    pub(crate) owner: Owner,
    pub(crate) command: Command,
    /// The time of the start, on the engine's monotonic clock.
    pub(crate) started: Duration,
    execution: Execution<'a>,
}

impl Started<'_> {
    /// The answer. The execution stays where it is, since it is large to move.
    pub(crate) async fn answer(&mut self, engine: &Engine) -> Result<Answer, Error> {
        let Started { id, command, started, execution, .. } = self;
        let limit = engine.policy().call_timeout;
        execution.run(&Task { id: *id, command, started: *started, limit, released: None }).await
    }
}

impl Source for Engine {
    fn name(&self) -> &'static str {
        self.core().name()
    }

    fn clock(&self) -> &dyn Clock {
        Engine::clock(self)
    }
}
