//! Many operations at once: [`Engine::begin_many`] and [`Engine::complete_many`].

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::begin::Begin;
use crate::call::within;
use crate::decide::{Command, Decision, Reply, decide};
use crate::engine::{Answer, Engine, View};
use crate::error::{Error, StoreError};
use crate::key::RecordId;
use crate::lease::Lease;
use crate::observe::{self, Op, Trouble};
use crate::record::Record;
use crate::request::Request;
use crate::store::{Snapshot, Swap, SwapRequest};

impl Engine {
    /// [`begin`](Engine::begin) for every one of `requests`, at about the cost of one where the store can: a commit on SQLite,
    /// a round trip on Redis. Answers come in the order of the requests, each for itself: one error spoils no other. Of
    /// requests for the same key the first is granted and the others find it in progress.
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
        let seen = observe::call(self, Op::BeginMany, &|| None);
        let mut refused = Vec::new();
        let mut wanted = Vec::new();
        for (at, request) in requests.iter().enumerate() {
            match request.ask(self.policy()) {
                Ok(ask) => wanted.push((at, request.id(), ask.owner, Command::Begin(ask))),
                Err(error) => refused.push((at, Err(Error::from(error)))),
            }
        }
        let tasks =
            wanted.iter().map(|(_, id, _, command)| Task { id: *id, command, believed: None }).collect();
        let answers = observe::in_span(&seen, self.execute_many(tasks)).await;
        let begun = answers.into_iter().zip(&wanted).map(|(answer, (at, id, owner, _))| {
            (*at, answer.and_then(|answer| self.begun(*id, *owner, answer)))
        });
        let mut all: Vec<_> = begun.chain(refused).collect();
        all.sort_by_key(|(at, _)| *at);
        all.into_iter().map(|(_, begin)| begin).inspect(|begin| seen.begun(begin)).collect()
    }

    /// [`complete`](Lease::complete) for every one of `outcomes`, as [`begin_many`](Engine::begin_many) does for begins.
    pub async fn complete_many(&self, outcomes: &[(&Lease, Bytes)]) -> Vec<Result<(), Error>> {
        let seen = observe::call(self, Op::CompleteMany, &|| None);
        let commands: Vec<(&Lease, Result<Command, Error>)> =
            outcomes.iter().map(|(lease, response)| (*lease, lease.completion(response.clone()))).collect();
        let tasks = commands
            .iter()
            .filter_map(|(lease, command)| {
                let command = command.as_ref().ok()?;
                Some(Task { id: lease.id(), command, believed: lease.believed() })
            })
            .collect();
        let mut answers = observe::in_span(&seen, self.execute_many(tasks)).await.into_iter();
        let learn = |(lease, command): (&Lease, Result<Command, Error>)| {
            command?;
            let unanswered = || StoreError::Unavailable { backend: "engine", detail: "no answer".to_owned() };
            let answer = answers.next().unwrap_or_else(|| Err(unanswered().into()));
            let result = seen.inside(|| lease.learn(answer?));
            seen.answered(lease.attempt(), &result);
            result
        };
        commands.into_iter().map(learn).collect()
    }

    /// Tries every command at once by what is believed; whatever is not settled by that goes its own way.
    async fn execute_many(&self, tasks: Vec<Task<'_>>) -> Vec<Result<Answer, Error>> {
        let sent = self.clock().monotonic();
        let tries: Vec<Try> = tasks.iter().map(Task::first_try).collect();
        let swaps: Vec<SwapRequest> = tries.iter().flatten().map(|(swap, _)| swap.clone()).collect();
        let limit = self.policy().call_timeout;
        let answered = match swaps.is_empty() {
            true => Some(Vec::new()),
            false => within(self.clock(), limit / 2, self.store().swap_many(&swaps)).await,
        };
        let mut answered = answered.unwrap_or_default().into_iter();
        let rest = tasks.into_iter().zip(tries).map(|(task, first)| {
            let answer = first.as_ref().and_then(|_| answered.next());
            self.settle(task, first, answer, sent)
        });
        join_all(rest.collect::<Vec<_>>()).await
    }

    async fn settle(
        &self,
        task: Task<'_>,
        first: Try,
        answer: Option<Result<Swap, StoreError>>,
        sent: Duration,
    ) -> Result<Answer, Error> {
        match (&first, &answer) {
            (Some(_), Some(Err(error))) if error.is_transient() => {
                observe::repeated(self, Trouble::Unavailable, 1);
            }
            (Some(_), None) => observe::repeated(self, Trouble::NoAnswer, 1),
            (Some(_) | None, _) => {}
        }
        let view = match (first, answer) {
            (Some((SwapRequest { next, .. }, reply)), Some(Ok(Swap::Done(stamp)))) => {
                let record = next.map(|next| next.stamped(stamp));
                return Ok(Answer::at(sent, reply, Snapshot { record, now: stamp }));
            }
            (Some(_), Some(Ok(Swap::Conflict(found)))) => View::Believed(Box::new(found), sent),
            (Some(_), Some(Err(error))) if !error.is_transient() => return Err(error.into()),
            (None, _) if !matches!(task.command, Command::Begin(_)) => View::Unknown,
            // Not answered: from the start, one by one. What was done is recognised.
            (_, Some(Err(_)) | None) | (None, Some(Ok(_))) => {
                task.believed.map_or_else(View::absent, View::believed)
            }
        };
        // What is left of the time for the whole batch, but enough for a try.
        let limit = self.policy().call_timeout;
        let left = limit.saturating_sub(self.clock().monotonic().saturating_sub(sent)).max(limit / 8);
        self.execute_within(left, &task.id, task.command, view).await
    }
}

/// One command of a batch.
struct Task<'a> {
    id: RecordId,
    command: &'a Command,
    /// The record that most likely is there.
    believed: Option<Record>,
}

/// What a command comes to if what is believed is true: a swap and the answer once it is done. `None`: it has an answer
/// already, or wants to look first.
type Try = Option<(SwapRequest, Reply)>;

impl Task<'_> {
    fn first_try(&self) -> Try {
        let begins = matches!(self.command, Command::Begin(_));
        if self.believed.is_none() && !begins {
            return None;
        }
        let expected = self.believed.as_ref().map(|record| record.stamp);
        match decide(expected.unwrap_or_default(), self.believed.as_ref(), self.command) {
            Decision::Write { next, reply } => Some((SwapRequest { id: self.id, expected, next }, reply)),
            Decision::Reply(_) => None,
        }
    }
}
