//! All operations of an application: their preparation, the right answer, and the required state
//! afterwards.

use std::time::Duration;

use bytes::Bytes;
use futures_util::join;
use nevertwice::testing::until_over;
use nevertwice::{
    Begin, Body, Engine, Error, Failure, Fingerprint, Lease, Owner, Request, Resolution, Retry, Stamp,
    StateKind,
};

use crate::bench::{Bench, acquire, outcome};
use crate::ledger::request;

/// An operation and, where it matters, the state that it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    BeginFresh,
    BeginBusy,
    BeginDone,
    BeginMismatch,
    Takeover,
    BeginMany,
    BeginOrWait,
    Wait,
    Run,
    Renew,
    Checkpoint,
    MarkEffect,
    Complete,
    CompleteMany,
    FailNow,
    FailAfter,
    FailNever,
    FailUnresolved,
    Release,
    Resume,
    ResolveCompleted,
    ResolveFailed,
    ResolveRerun,
    Forget,
    Inspect,
}

use Operation::{
    BeginBusy, BeginDone, BeginFresh, BeginMany, BeginMismatch, BeginOrWait, Checkpoint, Complete,
    CompleteMany, FailAfter, FailNever, FailNow, FailUnresolved, Forget, Inspect, MarkEffect, Release, Renew,
    ResolveCompleted, ResolveFailed, ResolveRerun, Resume, Run, Takeover, Wait,
};

impl Operation {
    /// Operations that end by themselves and can be repeated after an error.
    pub(crate) const REPEATABLE: [Operation; 23] = [
        BeginFresh,
        BeginBusy,
        BeginDone,
        BeginMismatch,
        Takeover,
        BeginMany,
        BeginOrWait,
        Renew,
        Checkpoint,
        MarkEffect,
        Complete,
        CompleteMany,
        FailNow,
        FailAfter,
        FailNever,
        FailUnresolved,
        Release,
        Resume,
        ResolveCompleted,
        ResolveFailed,
        ResolveRerun,
        Forget,
        Inspect,
    ];

    /// True if it asks for a new grant, the only thing that a full server may refuse.
    pub(crate) fn asks_for_a_grant(self) -> bool {
        [BeginFresh, Takeover, BeginMany, BeginOrWait].contains(&self)
    }

    /// Returns the number of keys: several in a batch.
    fn keys(self) -> usize {
        if [BeginMany, CompleteMany].contains(&self) { 3 } else { 1 }
    }
}

/// One operation on keys of its own.
pub(crate) struct Case {
    pub(crate) operation: Operation,
    keys: Vec<String>,
    /// The owners to begin as, if the application itself repeats a begin; otherwise each call draws
    /// one.
    owners: Option<Vec<Owner>>,
    /// The leases held before.
    held: Vec<Lease>,
    /// The leases that the operation was granted.
    granted: Vec<Option<Lease>>,
}

impl Case {
    /// Prepares the state that the operation needs. `repeats`: true if it will be repeated after an
    /// error.
    pub(crate) async fn prepare(operation: Operation, name: &str, bench: &Bench, repeats: bool) -> Case {
        let count = operation.keys();
        let keys: Vec<_> = (0..count).map(|number| format!("{operation:?}/{name}/{number}")).collect();
        let owners = repeats.then(|| keys.iter().map(|_| Owner::random().unwrap()).collect());
        let granted = keys.iter().map(|_| None).collect();
        let mut case = Case { operation, keys, owners, held: Vec::new(), granted };
        match operation {
            BeginFresh | BeginMany | BeginOrWait | Run => {}
            BeginBusy | BeginMismatch | Wait | Resume | Inspect => case.execute(bench, &bench.direct).await,
            BeginDone => {
                case.execute(bench, &bench.direct).await;
                bench.finish(case.key(), &case.held[0]).await;
            }
            Takeover => case.crash(bench).await,
            Renew | Checkpoint | MarkEffect | Complete | CompleteMany | FailAfter | FailNever
            | FailUnresolved => {
                case.execute(bench, &bench.through).await;
            }
            FailNow | Release => case.hold(&bench.through).await,
            ResolveCompleted | ResolveFailed => {
                case.execute(bench, &bench.direct).await;
                case.held[0].fail("?", Retry::Unresolved).await.unwrap();
            }
            ResolveRerun => {
                case.hold(&bench.direct).await;
                case.held[0].fail("?", Retry::Unresolved).await.unwrap();
            }
            Forget => case.hold(&bench.direct).await,
        }
        case
    }

    async fn hold(&mut self, engine: &Engine) {
        for key in &self.keys {
            self.held.push(acquire(engine, &request(key)).await);
        }
    }

    async fn execute(&mut self, bench: &Bench, engine: &Engine) {
        self.hold(engine).await;
        self.keys.iter().for_each(|key| bench.ledger.effect(key));
    }

    /// Leaves an expired lease of a holder that got half way.
    async fn crash(&mut self, bench: &Bench) {
        let brief = Duration::from_micros(1);
        let lease = acquire(&bench.direct, &request(self.key()).lease(brief)).await;
        lease.save_checkpoint("half").await.unwrap();
        until_over(&bench.store, &request(self.key()).id(), brief).await;
        self.held.push(lease);
    }

    fn key(&self) -> &str {
        &self.keys[0]
    }

    fn requests(&self) -> Vec<Request> {
        let with_owner = |(number, key): (usize, &String)| {
            let owner = self.owners.as_ref().map(|owners| owners[number]);
            owner.map_or_else(|| request(key), |owner| request(key).owner(owner))
        };
        self.keys.iter().enumerate().map(with_owner).collect()
    }

    /// Performs the operation. Panics on a wrong answer.
    pub(crate) async fn perform(&mut self, bench: &Bench) -> Result<(), Error> {
        let engine = &bench.through;
        let requests = self.requests();
        let request = &requests[0];
        match self.operation {
            BeginFresh | Takeover => {
                let begin = engine.begin(request).await?;
                self.grant(bench, 0, begin);
            }
            BeginOrWait => {
                let begin = engine.begin_or_wait(request, Duration::from_secs(30)).await?;
                self.grant(bench, 0, begin);
            }
            BeginMany => {
                let mut errors = Vec::new();
                for (number, begin) in engine.begin_many(&requests).await.into_iter().enumerate() {
                    match begin {
                        Ok(begin) => self.grant(bench, number, begin),
                        Err(error) => errors.push(error),
                    }
                }
                return errors.pop().map_or(Ok(()), Err);
            }
            BeginBusy => {
                let begin = engine.begin(request).await?;
                let Begin::InProgress(busy) = begin else { panic!("{}: {begin:?}", self.key()) };
                assert!(busy.attempt() == 1 && busy.lease_remaining() > Duration::from_secs(60), "{busy:?}");
            }
            BeginMismatch => {
                let other = request.clone().fingerprint(Fingerprint::of("another"));
                let begin = engine.begin(&other).await?;
                assert!(matches!(begin, Begin::Mismatch(_)), "{}: {begin:?}", self.key());
            }
            BeginDone => {
                let begin = engine.begin(request).await?;
                self.replay(bench, begin);
            }
            Wait => {
                let waiting = engine.begin_or_wait(request, Duration::from_secs(60));
                let finishing = async {
                    bench.until_waited_for().await;
                    self.held[0].complete(outcome(self.key())).await.unwrap();
                };
                let (begin, ()) = join!(waiting, finishing);
                self.replay(bench, begin?);
            }
            Run => self.run(bench, request).await,
            Renew => self.held[0].renew().await?,
            Checkpoint => self.held[0].save_checkpoint("half").await?,
            MarkEffect => self.held[0].mark_effect().await?,
            Complete => self.held[0].complete(outcome(self.key())).await?,
            CompleteMany => {
                let responses = self.keys.iter().map(|key| Bytes::from(outcome(key)));
                let outcomes: Vec<_> = self.held.iter().zip(responses).collect();
                return engine.complete_many(&outcomes).await.into_iter().collect();
            }
            FailNow => self.held[0].fail(outcome(self.key()), Retry::Now).await?,
            FailAfter => {
                let later = Retry::After(Duration::from_secs(3600));
                self.held[0].fail(outcome(self.key()), later).await?;
            }
            FailNever => self.held[0].fail(outcome(self.key()), Retry::Never).await?,
            FailUnresolved => self.held[0].fail(outcome(self.key()), Retry::Unresolved).await?,
            Release => self.held[0].release().await?,
            Resume => {
                let lease = engine.resume(&self.held[0].token()).await?;
                assert!(!lease.is_lost() && lease.attempt() == 1, "{}: {lease:?}", self.key());
            }
            ResolveCompleted | ResolveFailed | ResolveRerun => {
                let (fence, body) = (self.held[0].fence(), Body::new(outcome(self.key()).into(), 1024));
                let word = match self.operation {
                    ResolveCompleted => Resolution::Completed(body),
                    ResolveFailed => Resolution::Failed(body),
                    _ => Resolution::Rerun,
                };
                engine.resolve("faults", self.key(), fence, word).await?;
            }
            Forget => {
                let existed = engine.forget("faults", self.key()).await?;
                // Repeated after an error, it may find that the record is gone.
                assert!(existed || self.owners.is_some(), "{}", self.key());
            }
            Inspect => {
                let seen = engine.inspect("faults", self.key()).await?.expect("there is a record");
                assert_eq!((seen.state, seen.fence), (StateKind::InProgress, self.held[0].fence()));
            }
        }
        Ok(())
    }

    fn grant(&mut self, bench: &Bench, number: usize, begin: Begin) {
        let Begin::Acquired(lease) = begin else { panic!("{}: {begin:?}", self.keys[number]) };
        match &self.granted[number] {
            // The same owner gets the same grant again.
            Some(known) => assert_eq!(known.fence(), lease.fence(), "{}", self.keys[number]),
            None => bench.ledger.effect(&self.keys[number]),
        }
        self.granted[number] = Some(lease);
    }

    fn replay(&self, bench: &Bench, begin: Begin) {
        let Begin::Completed(done) = begin else { panic!("{}: {begin:?}", self.key()) };
        bench.ledger.acknowledge(self.key(), done.response().unwrap().to_vec());
    }

    async fn run(&self, bench: &Bench, request: &Request) {
        let handler = |_| async {
            bench.ledger.effect(self.key());
            Ok::<_, Never>(outcome(self.key()))
        };
        let value = bench.through.run(request, handler).await.unwrap();
        assert_eq!((value.value(), value.is_replayed()), (&outcome(self.key()), false));
        bench.ledger.acknowledge(self.key(), serde_json::to_vec(value.value()).unwrap());
    }

    /// Checks the result from both sides, and brings the keys to an outcome.
    pub(crate) async fn settle(&self, bench: &Bench) {
        match self.operation {
            BeginFresh | BeginMany | BeginOrWait => self.settle_grants(bench, 1).await,
            Takeover => {
                let lease = self.granted[0].as_ref().unwrap();
                assert!(
                    lease.takeover() && lease.checkpoint().is_some_and(|kept| kept == "half"),
                    "{lease:?}"
                );
                assert!(lease.fence() > self.held[0].fence());
                let stale = self.held[0].complete("stale").await;
                assert!(matches!(stale, Err(Error::LeaseLost { .. })), "{}: {stale:?}", self.key());
                self.settle_grants(bench, 2).await;
            }
            BeginBusy | BeginMismatch | Resume | Inspect | Renew | Checkpoint | MarkEffect => {
                self.settle_holder(bench).await;
            }
            Complete | CompleteMany => self.settle_finish(bench).await,
            BeginDone | Wait | Run | ResolveCompleted | ResolveFailed | FailNever | FailAfter
            | FailUnresolved => {
                bench.hear(self.key()).await;
            }
            FailNow => self.settle_rerun(bench, 2).await,
            Release | ResolveRerun | Forget => self.settle_rerun(bench, 1).await,
        }
    }

    /// Checks that there is one grant, the one that was returned.
    async fn settle_grants(&self, bench: &Bench, attempt: u32) {
        for (key, lease) in self.keys.iter().zip(&self.granted) {
            let lease = lease.as_ref().unwrap();
            assert_eq!(self.seen(bench, key).await, (StateKind::InProgress, lease.fence(), attempt), "{key}");
            let begin = bench.direct.begin(&request(key)).await.unwrap();
            assert!(matches!(begin, Begin::InProgress(_)), "{key}: {begin:?}");
            bench.finish(key, lease).await;
        }
    }

    /// Checks that the earlier holder still holds the lease.
    async fn settle_holder(&self, bench: &Bench) {
        let (key, lease) = (self.key(), &self.held[0]);
        assert_eq!(self.seen(bench, key).await, (StateKind::InProgress, lease.fence(), 1), "{key}");
        let seen = bench.direct.inspect("faults", key).await.unwrap().unwrap();
        assert_eq!(seen.effect_marked, self.operation == MarkEffect, "{key}");
        assert_eq!(seen.checkpoint_bytes, (self.operation == Checkpoint).then_some(4), "{key}");
        bench.finish(key, lease).await;
    }

    /// Checks that the outcome is recorded, and that completing again writes nothing.
    async fn settle_finish(&self, bench: &Bench) {
        for (key, lease) in self.keys.iter().zip(&self.held) {
            let before = bench.stamp(key).await;
            lease.complete(outcome(key)).await.unwrap();
            assert_eq!(bench.stamp(key).await, before, "{key}");
            let other = lease.complete("another").await;
            assert!(matches!(other, Err(Error::AlreadyFinished { .. })), "{key}: {other:?}");
            bench.ledger.acknowledge(key, outcome(key));
            bench.hear(key).await;
        }
    }

    /// Checks that there was no execution, and that the next begin executes.
    async fn settle_rerun(&self, bench: &Bench, attempt: u32) {
        let lease = acquire(&bench.direct, &request(self.key())).await;
        assert_eq!(lease.attempt(), attempt, "{}", self.key());
        assert!(lease.fence() > self.held[0].fence(), "{}", self.key());
        bench.ledger.effect(self.key());
        bench.finish(self.key(), &lease).await;
    }

    async fn seen(&self, bench: &Bench, key: &str) -> (StateKind, Stamp, u32) {
        let seen = bench.direct.inspect("faults", key).await.unwrap().expect("there is a record");
        (seen.state, seen.fence, seen.attempt)
    }
}

/// The failure of a handler that does not fail.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Never;

impl Failure for Never {
    fn retry(&self) -> Retry {
        Retry::Unresolved
    }
}
