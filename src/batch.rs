//! Many operations in one call: [`Engine::begin_many`], [`Engine::complete_many`] and similar.

use std::borrow::Borrow;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::begin::Begin;
use crate::call::within;
use crate::decide::{Command, Reply};
use crate::engine::{Answer, Engine, Step, View};
use crate::error::{Error, StoreError};
use crate::key::RecordId;
use crate::lease::Lease;
use crate::observe::{self, Op, Trouble};
use crate::owner::Owner;
use crate::policy::Retry;
use crate::record::Stamp;
use crate::request::Request;
use crate::store::{Snapshot, Swap, SwapRequest};

impl Engine {
    /// [`begin`](Engine::begin) for each of `requests`, at about the cost of one if the store can:
    /// one commit on SQLite, one round trip on Redis. Answers come in the order of the requests and
    /// are independent: one error does not affect the others. Of several requests for the same key,
    /// the first is granted and the others find it in progress.
    ///
    /// ```
    /// use nevertwice::{Begin, Engine, MemoryStore, Request};
    /// # futures_executor::block_on(async {
    /// let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let messages = ["a", "b", "a"].map(|id| Request::new("orders", id).unwrap());
    /// let mut leases = Vec::new();
    /// for begin in engine.begin_many(&messages).await {
    ///     match begin? {
    ///         Begin::Acquired(lease) => leases.push(lease),
    ///         other => assert!(matches!(other, Begin::InProgress(_))), // the second "a"
    ///     }
    /// }
    /// // ... act ...
    /// let outcomes: Vec<_> = leases.iter().map(|lease| (lease, "done".into())).collect();
    /// assert!(engine.complete_many(&outcomes).await.into_iter().all(|result| result.is_ok()));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn begin_many(&self, requests: &[Request]) -> Vec<Result<Begin, Error>> {
        self.try_begin_many(requests.iter().map(Ok::<_, Error>)).await
    }

    /// [`begin_many`](Engine::begin_many) for requests some of which could not be made, for example
    /// because a message has no usable key: each of those is answered with its error, in its place.
    ///
    /// ```
    /// use nevertwice::{Engine, Error, MemoryStore, Request};
    /// # futures_executor::block_on(async {
    /// let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let messages = ["a", "", "b"];
    /// let begins = engine.try_begin_many(messages.map(|id| Request::new("orders", id))).await;
    /// assert!(matches!(begins[..], [Ok(_), Err(Error::Key(_)), Ok(_)]));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub fn try_begin_many<I, R, E>(&self, requests: I) -> impl Future<Output = Vec<Result<Begin, Error>>>
    where
        I: IntoIterator<Item = Result<R, E>>,
        R: Borrow<Request>,
        E: Into<Error>,
    {
        let seen = observe::call(self, Op::BeginMany, &|| None);
        let wanted = requests.into_iter().map(|request| Wanted::of(request.map_err(E::into)?.borrow(), self));
        let wanted: Vec<Result<Wanted, Error>> = wanted.collect();
        async move {
            let tasks = wanted.iter().flatten();
            let tasks =
                tasks.map(|Wanted { id, command, .. }| Task { id: *id, command, view: Believed::Absent });
            let mut answers = observe::in_span(&seen, self.execute_many(tasks.collect())).await.into_iter();
            let begin = |wanted: Result<Wanted, Error>| {
                let Wanted { id, owner, .. } = wanted?;
                self.begun(id, owner, answers.next().unwrap_or_else(unanswered)?)
            };
            wanted.into_iter().map(begin).inspect(|begin| seen.begun(begin)).collect()
        }
    }

    /// [`complete`](Lease::complete) for each of `outcomes`, as [`begin_many`](Engine::begin_many)
    /// does for begins.
    ///
    /// A batch that is completed together is also lost together: a crash before this call leaves
    /// every operation of the batch whose effect has happened unfinished, and if the effect was
    /// marked, each of them is left to an operator. In a test, a consumer that was killed once left
    /// 65 of 600 messages that way, and 1 where each was completed at once. Complete in small
    /// batches, or one at a time if the effect cannot be repeated.
    pub async fn complete_many(&self, outcomes: &[(&Lease, Bytes)]) -> Vec<Result<(), Error>> {
        let commands = outcomes.iter().map(|(lease, response)| (*lease, lease.completion(response.clone())));
        self.command_many(Op::CompleteMany, commands.collect()).await
    }

    /// [`fail`](Lease::fail) for each of `outcomes`, in one call.
    ///
    /// ```
    /// # use nevertwice::{Begin, Engine, MemoryStore, Request, Retry};
    /// # futures_executor::block_on(async {
    /// # let engine = Engine::builder(MemoryStore::new()).build()?;
    /// # let requests = ["a", "b"].map(|id| Request::new("orders", id).unwrap());
    /// # let begins = engine.begin_many(&requests).await.into_iter();
    /// # let granted = |begin| if let Ok(Begin::Acquired(lease)) = begin { Some(lease) } else { None };
    /// # let leases: Vec<_> = begins.filter_map(granted).collect();
    /// let still_held: Vec<_> = leases.iter().collect();
    /// engine.renew_many(&still_held).await;
    /// let down: Vec<_> = leases.iter().map(|lease| (lease, "down".into(), Retry::Now)).collect();
    /// assert!(engine.fail_many(&down).await.into_iter().all(|result| result.is_ok()));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn fail_many(&self, outcomes: &[(&Lease, Bytes, Retry)]) -> Vec<Result<(), Error>> {
        let commands =
            outcomes.iter().map(|(lease, error, retry)| (*lease, lease.failure(error.clone(), *retry)));
        self.command_many(Op::FailMany, commands.collect()).await
    }

    /// [`renew`](Lease::renew) for each of `leases`, in one call.
    pub async fn renew_many(&self, leases: &[&Lease]) -> Vec<Result<(), Error>> {
        let commands = leases.iter().map(|lease| (*lease, lease.ready(Command::Renew)));
        self.command_many(Op::RenewMany, commands.collect()).await
    }

    /// [`mark_effect`](Lease::mark_effect) for each of `leases`, in one call. Do not cause the
    /// effect of a lease whose answer is an error.
    pub async fn mark_effect_many(&self, leases: &[&Lease]) -> Vec<Result<(), Error>> {
        let commands = leases.iter().map(|lease| (*lease, lease.ready(Command::MarkEffect)));
        self.command_many(Op::MarkEffectMany, commands.collect()).await
    }

    /// Executes one command per lease, except those that were refused beforehand.
    async fn command_many(
        &self,
        op: Op,
        commands: Vec<(&Lease, Result<Command, Error>)>,
    ) -> Vec<Result<(), Error>> {
        let seen = observe::call(self, op, &|| None);
        let here = |(lease, command): (_, Result<Command, Error>)| {
            (lease, command.and_then(|command| self.check_origin(&command).map(|()| command)))
        };
        let commands: Vec<(&Lease, Result<Command, Error>)> = commands.into_iter().map(here).collect();
        let tasks = commands.iter().filter_map(|(lease, command)| {
            Some(Task { id: lease.id(), command: command.as_ref().ok()?, view: Believed::Held(lease) })
        });
        let mut answers = observe::in_span(&seen, self.execute_many(tasks.collect())).await.into_iter();
        let learn = |(lease, command): (&Lease, Result<Command, Error>)| {
            command?;
            let answer = answers.next().unwrap_or_else(unanswered);
            let result = seen.inside(|| lease.learn(answer?));
            seen.answered(lease.attempt(), &result);
            result
        };
        commands.into_iter().map(learn).collect()
    }

    /// Tries all commands in one store call, by what is believed of their records. Commands that
    /// this does not settle continue one by one.
    pub(crate) async fn execute_many(&self, tasks: Vec<Task<'_>>) -> Vec<Result<Answer, Error>> {
        let sent = self.clock().monotonic();
        let mut swaps = Vec::with_capacity(tasks.len());
        let mut replies = Vec::with_capacity(tasks.len());
        for task in &tasks {
            replies.push(task.first_step(sent).map(|Step { expected, next, reply }| {
                swaps.push(SwapRequest { id: task.id, expected, next });
                reply
            }));
        }
        let limit = self.policy().call_timeout;
        let answered = match swaps.is_empty() {
            true => Some(Vec::new()),
            false => within(self.clock(), limit / 2, self.store().swap_many(&swaps)).await,
        };
        let mut answered = answered.unwrap_or_default().into_iter();
        let mut swaps = swaps.into_iter();
        let mut answers = Vec::with_capacity(tasks.len());
        let mut rest = Vec::new();
        for (task, reply) in tasks.into_iter().zip(replies) {
            let first = reply.map(|reply| First { reply, swap: swaps.next(), answer: answered.next() });
            answers.push(match self.settle(&task, first, sent) {
                Ok(answer) => Some(answer),
                Err(view) => {
                    rest.push(self.go_on(task, view, sent));
                    None
                }
            });
        }
        let mut rest = join_all(rest).await.into_iter();
        let answers = answers.into_iter().map(|answer| answer.or_else(|| rest.next()));
        answers.map(|answer| answer.unwrap_or_else(unanswered)).collect()
    }

    /// The result of the first try, or what is known of the record if the command is not done yet.
    fn settle<'a>(
        &self,
        task: &Task<'a>,
        first: Option<First>,
        sent: Duration,
    ) -> Result<Result<Answer, Error>, View<'a>> {
        let Some(First { reply, swap, answer }) = first else { return Err(task.view()) };
        match answer {
            Some(Ok(Swap::Done(stamp))) => {
                let next = swap.and_then(|swap| swap.next);
                Ok(Ok(Answer::written(sent, Step { expected: None, next, reply }, stamp)))
            }
            Some(Ok(Swap::Conflict(mut found))) => match Step::on(&mut found, task.command) {
                Err(reply) => Ok(Ok(Answer::found(sent, reply, found))),
                Ok(_) => Err(View::Found(Box::new((found, sent)))),
            },
            Some(Err(error)) if !error.is_transient() => Ok(Err(error.into())),
            Some(Err(_)) => {
                observe::repeated(self, Trouble::Unavailable, 1);
                Err(task.view())
            }
            None => {
                observe::repeated(self, Trouble::NoAnswer, 1);
                Err(task.view())
            }
        }
    }

    /// Continues a command that the first try did not settle. A write of the first try whose answer
    /// was lost is recognised.
    async fn go_on(&self, task: Task<'_>, view: View<'_>, sent: Duration) -> Result<Answer, Error> {
        if let Believed::Held(lease) = task.view {
            // A release may have been sent meanwhile.
            lease.open_for(task.command)?;
        }
        // The rest of the time limit of the whole batch, but at least enough for one try.
        let limit = self.policy().call_timeout;
        let passed = self.clock().monotonic().saturating_sub(sent);
        let finishes = matches!(task.command, Command::Complete(..) | Command::Fail(..));
        let left = match task.view {
            Believed::Held(lease) if finishes => lease.finish_limit(passed),
            Believed::Held(_) | Believed::Absent | Believed::Found(_) => limit.saturating_sub(passed),
        };
        let left = left.max(limit / 8);
        self.execute_within(left, &task.id, task.command, view).await
    }
}

/// One begin of a batch.
struct Wanted {
    id: RecordId,
    owner: Owner,
    command: Command,
}

impl Wanted {
    fn of(request: &Request, engine: &Engine) -> Result<Wanted, Error> {
        let ask = engine.ask(request)?;
        Ok(Wanted { id: request.id(), owner: ask.owner, command: Command::Begin(ask) })
    }
}

/// One command of a batch.
pub(crate) struct Task<'a> {
    pub(crate) id: RecordId,
    pub(crate) command: &'a Command,
    pub(crate) view: Believed<'a>,
}

/// The record that a command most likely finds.
pub(crate) enum Believed<'a> {
    /// None: a begin of a fresh key.
    Absent,
    /// The record that this lease's holder saw last.
    Held(&'a Lease),
    /// The record that a listing found.
    Found(&'a Snapshot),
}

/// The first try of a command.
struct First {
    /// The answer once the swap is done.
    reply: Reply,
    swap: Option<SwapRequest>,
    answer: Option<Result<Swap, StoreError>>,
}

impl<'a> Task<'a> {
    /// The view from which a separate try starts.
    fn view(&self) -> View<'a> {
        match self.view {
            Believed::Absent => View::Absent,
            Believed::Held(lease) => View::Held(lease),
            Believed::Found(_) => View::Unknown,
        }
    }

    /// The write that the command needs if what is believed is true. `None`: the record must be
    /// loaded first.
    fn first_step(&self, now: Duration) -> Option<Step> {
        match self.view {
            Believed::Absent => Step::guess(Stamp::ZERO, None, self.command),
            Believed::Held(lease) => lease.step(now, self.command),
            Believed::Found(found) => Step::guess(found.now, found.record.as_deref(), self.command),
        }
    }
}

/// The answer for a swap to which the store gave none. A store must answer every swap; if it does
/// not, the outcome of the others is unknown.
fn unanswered<T>() -> Result<T, Error> {
    let detail = "no answer".to_owned();
    Err(StoreError::Unavailable { backend: "engine", detail }.into())
}
