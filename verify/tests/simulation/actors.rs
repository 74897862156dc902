//! The users of the engines: callers that retry, consumers, waiters, batches, zombies, operators.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::select;
use futures_util::join;
use nevertwice::decide::{Command, Decision, decide};
use nevertwice::store::{Store, SwapRequest};
use nevertwice::{
    Begin, Body, Error, Failure, Fingerprint, Inspection, Lease, LeaseToken, Owner, Recovery, Request,
    Resolution, Retry, RunError, Stamp, StateKind,
};
use serde::{Deserialize, Serialize};

use super::answers::{Asked, Told};
use super::executor::lock;
use super::ledger::{CallId, Kind};
use super::wire::Connection;
use super::world::{World, request};

type Answer = Result<Begin<Arc<Lease>>, Error>;

/// Runs a persona through its actions. After a crash it continues with those that are left.
pub(crate) async fn act(world: Arc<World>, number: usize) {
    let process = lock(&world.personas)[number].process;
    let me = Actor { world, process, home: process, number };
    loop {
        {
            let persona = &mut lock(&me.world.personas)[number];
            if persona.left == 0 {
                return;
            }
            persona.left -= 1;
        }
        match me.world.dice.percent(6) {
            true => {
                let setup = &me.world.setup;
                let kept = [setup.retention(), setup.retention(), setup.unresolved()][me.world.dice.below(3)];
                me.world.sleep(me.world.dice.any_time(2 * kept)).await;
            }
            false => me.think(4).await,
        }
        let key = me.world.dice.below(me.world.setup.keys.len());
        match me.world.dice.below(16) {
            0..=5 => me.caller(key).await,
            6..=8 => me.consumer(key).await,
            9..=10 => me.batch().await,
            11..=12 => me.hand_over(key).await,
            13 => me.operator().await,
            14 => me.look(key).await,
            _ => me.housekeeper().await,
        }
    }
}

/// Brings a key to its end once the faults are over: in bounded time and a bounded number of calls
/// (L2, L6).
pub(crate) async fn settle(world: Arc<World>, key: usize) {
    let me = Actor { world, process: 0, home: 0, number: usize::MAX };
    let lease = Duration::from_micros(me.world.setup.lease);
    let fingerprints = [fingerprint(0), fingerprint(1)];
    for turn in 0..24 {
        let asked = me.asked(key, fingerprints[turn % 2], None);
        match me.begin_or_wait(asked, 5 * lease).await {
            Ok(Begin::Acquired(lease)) => {
                let told = Told::Complete(me.response(key, &lease));
                me.tell(key, &lease, &told).await.expect("S12: nothing fails any more");
            }
            Ok(Begin::Unresolved(unknown)) => me.resolve(key, unknown.fence(), None).await,
            Ok(Begin::Completed(_)) => return,
            Ok(Begin::Failed(failed)) => match failed.retry_after() {
                Some(wait) => me.world.sleep(wait.as_micros() as u64 + 10).await,
                None => return,
            },
            // The limit of waiters may be reached, so that the call did not wait.
            Ok(Begin::InProgress(busy)) => {
                assert!(busy.lease_remaining() <= lease, "L2: in progress for longer than a lease");
                me.world.sleep(busy.lease_remaining().as_micros() as u64 + 1).await;
            }
            Ok(Begin::Mismatch(_)) => {}
            Err(error) => panic!("L6: {error}"),
        }
    }
    panic!("L6: a key that does not come to its end");
}

/// The fingerprint of a request; callers of a key mostly use the same number.
fn fingerprint(number: u8) -> Fingerprint {
    Fingerprint::of([number])
}

/// A handler's error: its text and its retry disposition.
#[derive(Debug, Serialize, Deserialize)]
struct Trouble(String, Retry);

impl Failure for Trouble {
    fn retry(&self) -> Retry {
        self.1
    }
}

struct Actor {
    world: Arc<World>,
    /// The process whose engine it uses.
    process: usize,
    /// The process that it runs in.
    home: usize,
    number: usize,
}

impl Actor {
    /// Sleeps for up to so many leases.
    async fn think(&self, leases: u64) {
        self.world.sleep(self.world.dice.any_time(leases * self.world.setup.lease)).await;
    }

    fn now(&self) -> Stamp {
        Stamp(self.world.store_now())
    }

    fn effect(&self, key: usize, lease: &Lease, alone: bool) {
        self.note("effect", key, lease, 0);
        lock(&self.world.ledger).effect(key, lease.fence(), alone);
    }

    fn note(&self, what: &str, key: usize, lease: &Lease, detail: u64) {
        self.world.note(what, [key as u64, lease.fence().0 % 1_000_000_000_000, detail]);
    }

    fn response(&self, key: usize, lease: &Lease) -> Bytes {
        Bytes::from(format!("\"{key} {} {}\"", lease.fence().0, self.world.dice.between(0, 999)))
    }

    fn asked(&self, key: usize, fingerprint: Fingerprint, owner: Option<Owner>) -> Asked {
        Asked { key, call: 0, place: 0, fingerprint, owner }
    }

    /// Draws a begin, perhaps by the owner that this actor used before it crashed.
    fn any_asked(&self, key: usize) -> Asked {
        let dice = &self.world.dice;
        let persona = &mut lock(&self.world.personas)[self.number];
        let fingerprint = fingerprint(u8::from(dice.percent(5)));
        let known = persona.orphan.filter(|(of, _)| *of == key && dice.percent(80)).map(|(_, owner)| owner);
        let owner = known.or_else(|| dice.percent(40).then(|| Owner::random().unwrap()));
        persona.orphan = owner.map(|owner| (key, owner)).or(persona.orphan);
        lock(&self.world.ledger).kept_owners.extend(owner);
        self.asked(key, fingerprint, owner)
    }

    fn request(&self, asked: &Asked) -> Request {
        let world = &self.world;
        let lease = [world.setup.lease, world.setup.lease, world.setup.lease / 2][world.dice.below(3)];
        let request = request(&world.setup.keys[asked.key])
            .fingerprint(asked.fingerprint)
            .lease(Duration::from_micros(lease));
        asked.owner.into_iter().fold(request, Request::owner)
    }

    async fn begin(&self, mut asked: Asked) -> Answer {
        let (world, request) = (&self.world, self.request(&asked));
        let calm = world.is_calm();
        let engine = world.engine(self.process);
        let limit = Some(world.setup.call_timeout);
        let (call, answer) = world.call(self.home, Kind::Begin, limit, engine.begin(&request)).await;
        asked.call = call;
        self.begun(&asked, answer, calm)
    }

    async fn begin_or_wait(&self, mut asked: Asked, wait: Duration) -> Answer {
        let (world, request) = (&self.world, self.request(&asked));
        let (calm, settled, since) = (world.is_calm(), world.is_settled(), world.time.now());
        let engine = world.engine(self.process);
        let limit = Some(world.setup.call_timeout.max(wait) + world.setup.call_timeout);
        let work = engine.begin_or_wait(&request, wait);
        let (call, answer) = world.call(self.home, Kind::Begin, limit, work).await;
        asked.call = call;
        lock(&world.ledger).counts.waits += 1;
        if let (true, Ok(Begin::Completed(_) | Begin::Failed(_))) = (settled, &answer) {
            let finished = lock(&world.ledger).last_finish[asked.key];
            let late = world.time.now() - since.max(finished.min(world.time.now()));
            assert!(late <= 50_000, "L4: woken {late} µs after the finish");
        }
        self.begun(&asked, answer, calm)
    }

    fn begun(&self, asked: &Asked, answer: Result<Begin, Error>, calm: bool) -> Answer {
        let answer = answer.map(|begin| match begin {
            Begin::Acquired(lease) => Begin::Acquired(Arc::new(lease)),
            Begin::Completed(done) => Begin::Completed(done),
            Begin::InProgress(busy) => Begin::InProgress(busy),
            Begin::Failed(failed) => Begin::Failed(failed),
            Begin::Unresolved(unknown) => Begin::Unresolved(unknown),
            Begin::Mismatch(other) => Begin::Mismatch(other),
        });
        let now = self.now();
        lock(&self.world.ledger).begun(asked, &answer, now, calm);
        answer
    }

    /// Makes one call of a lease and checks its answer.
    async fn tell(&self, key: usize, lease: &Lease, told: &Told) -> Result<(), Error> {
        let world = &self.world;
        let (calm, fence) = (world.is_calm(), lease.fence());
        self.note(told.name(), key, lease, self.number as u64);
        let kind = match told {
            Told::Renew | Told::Checkpoint(_) | Told::Mark => Kind::Rewrite,
            Told::Complete(_) | Told::Fail(..) => Kind::Finish,
            Told::Release => Kind::Release,
            Told::Resume => Kind::Look,
        };
        if matches!(kind, Kind::Finish | Kind::Release) {
            lock(&world.ledger).end(key, fence);
        }
        let released = lock(&world.ledger).is_released(lease);
        if kind == Kind::Release {
            lock(&world.ledger).release(lease);
        }
        let work = async {
            match told.clone() {
                Told::Renew | Told::Resume => lease.renew().await,
                Told::Checkpoint(bytes) => lease.save_checkpoint(bytes).await,
                Told::Mark => lease.mark_effect().await,
                Told::Complete(response) => lease.complete(response).await,
                Told::Fail(error, retry) => lease.fail(error, retry).await,
                Told::Release => lease.release().await,
            }
        };
        // A finish is retried until the lease ends.
        let limit = match kind {
            Kind::Finish => world.setup.call_timeout.max(lease.remaining()),
            _ => world.setup.call_timeout,
        };
        let (call, answer) = world.call(self.home, kind, Some(limit), work).await;
        let now = self.now();
        let mut ledger = lock(&world.ledger);
        if released && kind != Kind::Release {
            ledger.counts.released += 1;
            assert!(matches!(answer, Err(Error::LeaseLost { .. })), "S3: heard after a release: {answer:?}");
        } else {
            ledger.told((key, fence), call, told, &answer, now, calm);
        }
        ledger.believes(key, lease, now);
        drop(ledger);
        answer
    }

    /// Repeats a call until it is answered, and sometimes once more.
    async fn insist(&self, key: usize, lease: &Lease, told: &Told) -> bool {
        for _ in 0..self.world.dice.between(1, 6) {
            match self.tell(key, lease, told).await {
                Ok(()) if self.world.dice.percent(10) => {}
                Ok(()) => return true,
                Err(Error::LeaseLost { .. } | Error::AlreadyFinished { .. }) => return false,
                Err(_) => self.think(1).await,
            }
        }
        false
    }

    /// Begins again until the key has an outcome or the tries are used up.
    async fn caller(&self, key: usize) {
        let asked = self.any_asked(key);
        self.world.note("caller", [key as u64, self.number as u64, u64::from(asked.owner.is_some())]);
        for _ in 0..self.world.dice.between(1, 5) {
            let wait = Duration::from_micros(self.world.dice.any_time(3 * self.world.setup.lease));
            let answer = match self.world.dice.percent(40) {
                true => self.begin_or_wait(asked, wait).await,
                false => self.begin(asked).await,
            };
            match answer {
                Ok(Begin::Acquired(lease)) => return self.work(key, &lease, true).await,
                Ok(Begin::Completed(_) | Begin::Mismatch(_)) => return,
                Ok(Begin::InProgress(busy)) => {
                    let wait = busy.lease_remaining().as_micros() as u64;
                    self.world.sleep(self.world.dice.between(0, wait)).await;
                }
                Ok(Begin::Failed(failed)) => match failed.retry_after() {
                    Some(wait) => self.world.sleep(wait.as_micros() as u64 + 1).await,
                    None => return,
                },
                Ok(Begin::Unresolved(unknown)) if self.world.dice.percent(30) => {
                    self.resolve(key, unknown.fence(), None).await;
                }
                Ok(Begin::Unresolved(_)) => return,
                Err(_) => self.think(1).await,
            }
        }
    }

    /// A holder at work: it may be slow, outlive its lease, repeat an action or abandon the lease.
    /// If another holder shares its token, it never reports that there was no effect.
    async fn work(&self, key: usize, lease: &Lease, alone: bool) {
        let dice = &self.world.dice;
        if dice.percent(25) {
            let bytes = self.response(key, lease);
            if !self.insist(key, lease, &Told::Checkpoint(bytes)).await {
                return;
            }
        }
        self.think(if dice.percent(15) { 3 } else { 1 }).await;
        if dice.percent(25) && !self.insist(key, lease, &Told::Renew).await {
            return;
        }
        let acts = dice.percent(75);
        if acts {
            // A grant that marks the effect needs no mark of the holder. Under `Rerun` the mark
            // keeps a restarted owner from finding the grant again.
            let setup = &self.world.setup.keys[key];
            let marked = setup.assumes && setup.recovery != Recovery::Rerun && dice.percent(80);
            if !marked && !self.insist(key, lease, &Told::Mark).await {
                return;
            }
            self.think(if dice.percent(10) { 3 } else { 1 }).await;
            self.effect(key, lease, alone);
        }
        self.end(key, lease, acts || !alone).await;
    }

    async fn end(&self, key: usize, lease: &Lease, acted: bool) {
        let dice = &self.world.dice;
        let body = self.response(key, lease);
        let error = |retry| {
            let error = Trouble(format!("{key} {}", lease.fence().0), retry);
            Told::Fail(serde_json::to_vec(&error).expect("an error is JSON").into(), retry)
        };
        let told = match dice.below(if acted { 14 } else { 20 }) {
            0..=7 => Told::Complete(body),
            8..=10 => return,
            11 => error(Retry::Never),
            12 | 13 => error(Retry::Unresolved),
            14 | 15 => error(Retry::Now),
            16 | 17 => error(Retry::After(Duration::from_millis(dice.between(1, 2000)))),
            _ => Told::Release,
        };
        if dice.percent(15) {
            // A heartbeat that continues beside the finish must do no harm.
            let (ended, _) = join!(self.insist(key, lease, &told), self.insist(key, lease, &Told::Renew));
            assert!(!ended || lease.remaining().is_zero(), "S11: a renewal opened again what was finished");
        } else {
            self.insist(key, lease, &told).await;
        }
        if dice.percent(if matches!(told, Told::Release) { 40 } else { 5 }) {
            self.insist(key, lease, &Told::Complete(self.response(key, lease))).await;
        }
    }

    /// Calls `run` with a handler that may take several leases.
    async fn consumer(&self, key: usize) {
        let (world, mut asked) = (&self.world, self.any_asked(key));
        let (dice, request) = (&world.dice, self.request(&asked));
        world.note("consumer", [key as u64, self.number as u64, u64::from(asked.owner.is_some())]);
        let calm = world.is_calm();
        let engine = world.engine(self.process);
        let value = format!("value {key} {}", dice.between(0, 999_999));
        let trouble = match dice.below(10) {
            0 => Some(Retry::Never),
            1 => Some(Retry::Unresolved),
            _ => None,
        };
        let held = std::sync::Mutex::new(None);
        let (seen, returned) = (&held, &value);
        let handler = |lease: Arc<Lease>| async move {
            lock(&world.ledger).hold(key, &lease);
            *lock(seen) = Some(lease.fence());
            self.think(if dice.percent(30) { 4 } else { 1 }).await;
            if self.insist(key, &lease, &Told::Mark).await {
                self.think(1).await;
                self.effect(key, &lease, true);
            } else if !lease.is_lost() {
                lock(&world.ledger).end(key, lease.fence());
                return Err(Trouble("not marked".to_owned(), Retry::Now));
            }
            lock(&world.ledger).end(key, lease.fence());
            trouble.map_or(Ok(returned.clone()), |retry| Err(Trouble(returned.clone(), retry)))
        };
        let (call, answer) = world.call(self.home, Kind::Run, None, engine.run(&request, handler)).await;
        asked.call = call;
        let (now, fence) = (self.now(), *lock(&held));
        self.ran(&asked, fence, &answer, now, calm);
    }

    fn ran(
        &self,
        asked: &Asked,
        fence: Option<Stamp>,
        answer: &Result<nevertwice::Outcome<String>, RunError<String, Trouble>>,
        now: Stamp,
        calm: bool,
    ) {
        let mut ledger = lock(&self.world.ledger);
        let json = |value: serde_json::Result<Vec<u8>>| Bytes::from(value.expect("it was JSON before"));
        match (answer, fence) {
            (Ok(outcome), _) => {
                assert_eq!(outcome.is_replayed(), fence.is_none(), "S2: executed and replayed");
                ledger.ran(asked, fence, &json(serde_json::to_vec(outcome.value())), None, now);
            }
            (Err(RunError::Failed { error, replayed, .. }), _) => {
                assert_eq!(*replayed, fence.is_none(), "S2: failed and replayed");
                ledger.ran(asked, fence, &json(serde_json::to_vec(error)), Some(error.1), now);
            }
            (Err(RunError::LeaseLost { .. }), Some(_)) => {
                let excused = !calm || ledger.was_removed(asked);
                assert!(excused, "L3: a renewed lease was lost, and nothing failed");
            }
            // An operator settled it, or a finish from an earlier life of this owner arrived late.
            (Err(RunError::Unrecorded { error, .. }), Some(fence)) => match &**error {
                Error::AlreadyFinished { .. } => {
                    assert!(ledger.is_finished(asked.key, fence), "S2: said to be finished otherwise");
                }
                error => ledger.failed(error, calm, false),
            },
            (Err(RunError::Engine(error)), None) => ledger.failed(error, calm, true),
            (Err(RunError::Unreadable { .. }), None) => {
                assert!(self.world.setup.leaves_out_bytes(), "S2: unreadable");
            }
            (Err(RunError::InProgress { .. } | RunError::Unresolved(_) | RunError::Mismatch), None) => {}
            (Err(other), _) => panic!("S10: {other}, fence {fence:?}"),
        }
    }

    /// Begins and completes batches, duplicates included.
    async fn batch(&self) {
        let (world, dice) = (&self.world, &self.world.dice);
        let keys: Vec<usize> = (0..dice.between(1, 5)).map(|_| dice.below(world.setup.keys.len())).collect();
        let asked: Vec<Asked> = keys.iter().map(|key| self.asked(*key, fingerprint(0), None)).collect();
        let requests: Vec<Request> = asked.iter().map(|asked| self.request(asked)).collect();
        let (calm, engine) = (world.is_calm(), world.engine(self.process));
        let limit = Some(world.setup.call_timeout + world.setup.call_timeout / 4);
        let work = engine.begin_many(&requests);
        let (call, answers) = world.call(self.home, Kind::BeginMany, limit, work).await;
        assert_eq!(answers.len(), requests.len(), "S15: every request has its answer");
        let mut leases = Vec::new();
        for (place, (asked, answer)) in asked.into_iter().zip(answers).enumerate() {
            if let Ok(Begin::Acquired(lease)) = self.begun(&Asked { call, place, ..asked }, answer, calm) {
                leases.push((asked.key, lease));
            }
        }
        self.think(2).await;
        for _ in 0..dice.between(1, 3) {
            self.complete_all(&leases, limit).await;
        }
    }

    async fn complete_all(&self, leases: &[(usize, Arc<Lease>)], limit: Option<Duration>) {
        let (world, calm) = (&self.world, self.world.is_calm());
        let response = |lease: &Lease| Bytes::from(format!("\"batch {}\"", lease.fence().0));
        let outcomes: Vec<(&Lease, Bytes)> =
            leases.iter().map(|(_, lease)| (&**lease, response(lease))).collect();
        for (key, lease) in leases {
            lock(&world.ledger).end(*key, lease.fence());
        }
        let engine = world.engine(self.process);
        let longest = outcomes.iter().map(|(lease, _)| lease.remaining()).max();
        let limit = limit.max(longest.map(|longest| longest + world.setup.call_timeout / 4));
        let work = engine.complete_many(&outcomes);
        let (call, answers) = world.call(self.home, Kind::Finish, limit, work).await;
        assert_eq!(answers.len(), leases.len(), "S15: every outcome has its answer");
        let now = self.now();
        for ((key, lease), answer) in leases.iter().zip(answers) {
            let told = Told::Complete(response(lease));
            lock(&world.ledger).told((*key, lease.fence()), call, &told, &answer, now, calm);
        }
    }

    /// Begins in one process and finishes in another; sometimes both continue.
    async fn hand_over(&self, key: usize) {
        let Ok(Begin::Acquired(lease)) = self.begin(self.any_asked(key)).await else { return };
        let message = serde_json::to_string(&lease.token()).expect("a token is JSON");
        self.think(2).await;
        let process = self.world.any_process();
        let there = Actor { world: Arc::clone(&self.world), process, home: self.home, number: self.number };
        let token: LeaseToken = serde_json::from_str(&message).expect("what was written");
        let (world, calm, fence) = (&self.world, self.world.is_calm(), token.fence());
        let engine = world.engine(there.process);
        let limit = Some(world.setup.call_timeout);
        let (call, resumed) = world.call(self.home, Kind::Look, limit, engine.resume(&token)).await;
        let (answer, resumed) = match resumed {
            Ok(lease) => (Ok(()), Some(Arc::new(lease))),
            Err(error) => (Err(error), None),
        };
        lock(&world.ledger).told((key, fence), call, &Told::Resume, &answer, self.now(), calm);
        let Some(resumed) = resumed else { return };
        lock(&world.ledger).hold(key, &resumed);
        let now = self.now();
        lock(&world.ledger).believes(key, &resumed, now);
        match world.dice.percent(30) {
            true => drop(join!(there.work(key, &resumed, false), self.work(key, &lease, false))),
            false => there.work(key, &resumed, true).await,
        }
    }

    fn word(&self) -> Resolution {
        // A resolution whose body exceeds `max_response` is refused, so the limit is applied here.
        let limit = self.world.setup.max_response;
        let body = |text: &'static str| Body::new(Bytes::from_static(text.as_bytes()), limit);
        match self.world.dice.below(3) {
            0 => Resolution::Completed(body("\"an operator's word\"")),
            1 => Resolution::Failed(body("[\"an operator's word\",\"Never\"]")),
            _ => Resolution::Rerun,
        }
    }

    /// Resolves by the fence, or only the version that was `shown`.
    async fn resolve(&self, key: usize, fence: Stamp, shown: Option<&Inspection>) {
        let (world, calm) = (&self.world, self.world.is_calm());
        let setup = &world.setup.keys[key];
        let word = self.word();
        let engine = world.engine(self.process);
        let work = async {
            let Some(shown) = shown else {
                return engine.resolve(setup.scope, setup.key, fence, word.clone()).await;
            };
            lock(&world.ledger).goes_by(world.current(), shown.stamp);
            engine.resolve_shown(&request(setup).id(), shown, word.clone()).await
        };
        let limit = Some(world.setup.call_timeout);
        let (call, answer) = world.call(self.home, Kind::Resolve, limit, work).await;
        let now = self.now();
        lock(&world.ledger).resolved((key, fence), call, &word, &answer, now, calm);
    }

    /// Amends an operator's resolution by a stamp that was shown some time before.
    async fn amend(&self, key: usize) {
        let world = &self.world;
        let id = request(&world.setup.keys[key]).id();
        let (word, may_rerun) = (self.word(), world.dice.percent(50));
        let store = Connection { world: Arc::clone(world), process: self.process };
        let work = async {
            let shown = store.load(&id).await.ok()?.record.filter(|record| record.resolved)?;
            self.think(1).await;
            let found = store.load(&id).await.ok()?;
            let amend = Command::Amend { stamp: shown.stamp, resolution: word, may_rerun };
            let Decision::Write { next, .. } = decide(found.now, found.record.as_deref(), &amend) else {
                return None;
            };
            let expected = found.record.as_ref().map(|record| record.stamp);
            assert_eq!(expected, Some(shown.stamp), "S2: amended what was not shown");
            let rerun = next.as_ref().is_some_and(|next| next.attempt == 0);
            assert!(may_rerun || !rerun || shown.attempt == 0, "S2: a rerun that was not meant");
            store.swap(&SwapRequest::new(&id, expected, next.as_deref())).await.ok()
        };
        // The store is called directly here, without an engine that would enforce a deadline.
        let patience = world.sleep(world.setup.call_timeout.as_micros() as u64 + 4 * world.setup.lease);
        let work = async { drop(select(pin!(work), patience).await) };
        world.call(self.home, Kind::Amend, None, work).await;
    }

    /// Resolves what is unfinished, amends resolutions, and sometimes forgets a key.
    async fn operator(&self) {
        let (world, calm) = (&self.world, self.world.is_calm());
        let engine = world.engine(self.process);
        let limit = Some(world.setup.call_timeout);
        let (call, page) = world.call(self.home, Kind::Look, limit, engine.unfinished(None, 100)).await;
        match page {
            Ok(page) => {
                for operation in page.operations {
                    let Some(key) = lock(&world.ledger).number_of(&operation.id) else { continue };
                    self.saw(key, call, Some(&operation.inspection));
                    let inspection = &operation.inspection;
                    let shown = world.dice.percent(50).then_some(inspection);
                    if shown.is_some() {
                        self.think(1).await;
                    }
                    self.resolve(key, inspection.fence, shown).await;
                }
            }
            Err(error) => lock(&world.ledger).failed(&error, calm, false),
        }
        if world.dice.percent(60) {
            self.amend(world.dice.below(world.setup.keys.len())).await;
        }
        if world.dice.percent(30) {
            let key = world.dice.below(world.setup.keys.len());
            let setup = &world.setup.keys[key];
            let work = engine.forget(setup.scope, setup.key);
            let limit = Some(2 * world.setup.call_timeout);
            let (_, answer) = world.call(self.home, Kind::Forget, limit, work).await;
            if let Err(error) = answer {
                lock(&world.ledger).failed(&error, calm, false);
            }
        }
    }

    async fn look(&self, key: usize) {
        let (world, calm) = (&self.world, self.world.is_calm());
        let setup = &world.setup.keys[key];
        let engine = world.engine(self.process);
        let limit = Some(world.setup.call_timeout);
        let work = engine.inspect(setup.scope, setup.key);
        let (call, answer) = world.call(self.home, Kind::Look, limit, work).await;
        match answer {
            Ok(inspection) => self.saw(key, call, inspection.as_ref()),
            Err(error) => lock(&world.ledger).failed(&error, calm, false),
        }
    }

    fn saw(&self, key: usize, call: CallId, inspection: Option<&Inspection>) {
        let seen: Option<(StateKind, u32, Stamp)> =
            inspection.map(|seen| (seen.state, seen.attempt, seen.fence));
        let now = self.now();
        lock(&self.world.ledger).looked(key, call, seen, now);
    }

    async fn housekeeper(&self) {
        let (world, calm) = (&self.world, self.world.is_calm());
        let engine = world.engine(self.process);
        let limit = Some(world.setup.call_timeout);
        let (_, answer) = world.call(self.home, Kind::Look, limit, engine.purge(500)).await;
        if let Err(error) = answer {
            lock(&world.ledger).failed(&error, calm, false);
        }
    }
}
