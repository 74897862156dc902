//! Many operations in one call: [`Engine::begin_many`], [`Engine::complete_many`] and similar.

use std::borrow::Borrow;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::begin::Begin;
use crate::call::{Answer, Core, Step, Task, View, within};
use crate::decide::Command;
use crate::engine::Engine;
use crate::error::{Error, StoreError};
use crate::key::RecordId;
use crate::lease::Lease;
use crate::observe::{self, Op, RetryCause};
use crate::owner::Owner;
use crate::record::Retry;
use crate::request::Request;
use crate::store::Swap;

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
            let (started, limit) = (self.clock().monotonic(), self.policy().call_timeout);
            let tasks = wanted.iter().flatten().map(|Wanted { id, command, .. }| {
                let task = Task { id: *id, command, started, limit, released: None };
                (task, |task: &Task<'_>| View::absent(&task.id, task.command))
            });
            let answers = self.core().execute_many(tasks.collect());
            let mut answers = observe::in_span(&seen, answers).await.into_iter();
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
        let core = self.core();
        let here = |(lease, command): (_, Result<Command, Error>)| {
            (lease, command.and_then(|command| core.check_origin(&command).map(|()| command)))
        };
        let commands: Vec<(&Lease, Result<Command, Error>)> = commands.into_iter().map(here).collect();
        let now = self.clock().monotonic();
        let tasks = commands.iter().filter_map(|(lease, command)| {
            let command = command.as_ref().ok()?;
            let finishes = matches!(command, Command::Complete(..) | Command::Fail(..));
            let limit = match finishes {
                true => lease.finish_limit(now),
                false => self.policy().call_timeout,
            };
            Some((lease.task(command, limit, now), |task: &Task<'_>| lease.view(task)))
        });
        let answers = core.execute_many(tasks.collect());
        let mut answers = observe::in_span(&seen, answers).await.into_iter();
        let learn = |(lease, command): (&Lease, Result<Command, Error>)| {
            command?;
            let answer = answers.next().unwrap_or_else(unanswered);
            let result = seen.inside(|| lease.learn(answer?));
            seen.answered(lease.attempt(), &result);
            result
        };
        commands.into_iter().map(learn).collect()
    }
}

impl Core {
    /// Executes commands on their records in the store, as far as it can at once. The others are
    /// tried by what `view` expects of their records.
    pub(crate) async fn execute_many<'a, V>(&self, tasks: Vec<(Task<'a>, V)>) -> Vec<Result<Answer, Error>>
    where
        V: FnOnce(&Task<'a>) -> View,
    {
        let (mut answers, mut open) = (Vec::with_capacity(tasks.len()), Vec::new());
        for (task, view) in tasks {
            let answer = self.update_now(&task).transpose();
            if answer.is_none() {
                let view = view(&task);
                open.push((task, view));
            }
            answers.push(answer);
        }
        let open = if open.is_empty() { Vec::new() } else { self.try_many(open).await };
        let mut open = open.into_iter();
        let answers = answers.into_iter().map(|answer| answer.or_else(|| open.next()));
        answers.map(|answer| answer.unwrap_or_else(unanswered)).collect()
    }

    /// Tries all commands in one store call, by what is expected of their records. Commands that
    /// this does not settle continue one by one.
    async fn try_many(&self, tasks: Vec<(Task<'_>, View)>) -> Vec<Result<Answer, Error>> {
        let sent = self.clock.monotonic();
        let (mut swaps, mut first) = (Vec::with_capacity(tasks.len()), Vec::with_capacity(tasks.len()));
        for (task, view) in tasks {
            first.push(match view {
                View::Expected(Step { swap, reply }) => {
                    swaps.push(swap);
                    (task, Ok(reply))
                }
                view @ (View::Unknown | View::Absent | View::Found(_)) => (task, Err(view)),
            });
        }
        let limit = self.policy.call_timeout;
        let answered = match swaps.is_empty() {
            true => Some(Vec::new()),
            false => within(&*self.clock, limit / 2, self.store.swap_many(&swaps)).await,
        };
        let mut answered = answered.unwrap_or_default().into_iter();
        let mut swaps = swaps.into_iter();
        let (mut answers, mut rest) = (Vec::with_capacity(first.len()), Vec::new());
        for (task, tried) in first {
            let tried = match tried {
                Err(view) => Tried::Open(view),
                Ok(reply) => match swaps.next() {
                    Some(swap) => self.settle(&task, Step { swap, reply }, answered.next(), sent),
                    None => Tried::Settled(unanswered()),
                },
            };
            answers.push(match tried {
                Tried::Settled(answer) => Some(answer),
                Tried::Open(view) => {
                    rest.push(self.finish_alone(task, view, sent));
                    None
                }
            });
        }
        let mut rest = join_all(rest).await.into_iter();
        let answers = answers.into_iter().map(|answer| answer.or_else(|| rest.next()));
        answers.map(|answer| answer.unwrap_or_else(unanswered)).collect()
    }

    /// Interprets the store's answer to the first try of a command.
    fn settle(
        &self,
        task: &Task<'_>,
        step: Step,
        answer: Option<Result<Swap, StoreError>>,
        sent: Duration,
    ) -> Tried {
        match answer {
            Some(Ok(Swap::Done(stamp))) => {
                Tried::Settled(Ok(Answer::written(sent, step.reply, step.swap.next, stamp)))
            }
            Some(Ok(Swap::Conflict(mut found))) => match task.answer(&mut found) {
                Ok(Some(reply)) => Tried::Settled(Ok(Answer::found(sent, reply, found))),
                Ok(None) => Tried::Open(View::Found(Box::new((found, sent)))),
                Err(error) => Tried::Settled(Err(error)),
            },
            Some(Err(error)) if !error.is_transient() => Tried::Settled(Err(error.into())),
            Some(Err(_)) => {
                observe::repeated(self, RetryCause::Unavailable, 1);
                Tried::Open(View::Expected(step))
            }
            None => {
                observe::repeated(self, RetryCause::NoAnswer, 1);
                Tried::Open(View::Expected(step))
            }
        }
    }

    /// Executes a command that the first try did not settle. If that try was carried out all the
    /// same, the rules recognise it.
    async fn finish_alone(&self, task: Task<'_>, view: View, sent: Duration) -> Result<Answer, Error> {
        // The rest of the time for the whole batch, but enough for one try.
        let started = self.clock.monotonic();
        let left = task.limit.saturating_sub(started.saturating_sub(sent));
        let limit = left.max(self.policy.call_timeout / 8);
        self.execute(&Task { started, limit, ..task }, view).await
    }
}

/// The state of a command after its first try.
enum Tried {
    Settled(Result<Answer, Error>),
    /// To be continued from this view.
    Open(View),
}

/// One begin of a batch.
struct Wanted {
    id: RecordId,
    owner: Owner,
    command: Command,
}

impl Wanted {
    fn of(request: &Request, engine: &Engine) -> Result<Wanted, Error> {
        let params = engine.params(request)?;
        Ok(Wanted { id: request.id(), owner: params.owner, command: Command::Begin(params) })
    }
}

/// The answer for a swap to which the store gave none. A store must answer every swap; if it does
/// not, the outcome of the others is unknown.
fn unanswered<T>() -> Result<T, Error> {
    Err(Error::Internal { detail: "the store returned fewer answers than there were swaps" })
}
