//! The world of one seed: its drawn setup, its processes, and the loop that drives it.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use nevertwice::store::Store;
use nevertwice::{Engine, EngineBuilder, MemoryStore, Oversized, Owner, Recovery, Request, Stamp};

use super::actors;
use super::executor::{Dice, Executor, MachineClock, Time, Timer, lock};
use super::ledger::{Call, CallId, Counts, KeySetup, Kind, Ledger};
use super::wire::{Connection, FAULTS, Fate, Wire};

const MILLI: u64 = 1000;
const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3600 * SECOND;

/// The parameters drawn for a seed. Chances are per million, times in microseconds.
#[derive(Debug)]
pub(crate) struct Setup {
    processes: usize,
    actors: usize,
    actions: usize,
    pub(crate) keys: Vec<KeySetup>,
    pub(crate) lease: u64,
    pub(crate) call_timeout: Duration,
    pub(crate) run_wait: Duration,
    max_waiters: usize,
    pub(crate) max_response: usize,
    response_retention: Option<Duration>,
    max_records: usize,
    latency: u64,
    /// The longest delay of a late message.
    pub(crate) latest: u64,
    faults: Vec<Fate>,
    fault: u32,
    crash: u32,
    process_crash: u32,
    pause: u32,
    cut: u32,
    jump: u32,
    heals_at: u64,
}

impl Setup {
    fn draw(dice: &Dice, heals: bool) -> Setup {
        let lease = dice.one_of(&[200 * MILLI, SECOND, 5 * SECOND, 30 * SECOND]);
        let retention = dice.one_of(&[lease, lease, 10 * lease, HOUR, 24 * HOUR]);
        let unresolved = retention * dice.one_of(&[1, 4, 90]);
        let names = [
            ("payments", "a"),
            ("mails", "a"),
            ("payments", "b"),
            ("exports/daily", "a"),
            ("exports", "daily/a"),
            ("mails", "b"),
        ];
        let shown = [None, None, Some(retention / 2), Some(retention)];
        let response_retention = dice.one_of(&shown).map(Duration::from_micros);
        let recoveries = [Recovery::RerunUnlessEffect, Recovery::Rerun, Recovery::Never];
        let key = |(scope, key): &(&'static str, &'static str)| KeySetup {
            scope,
            key,
            recovery: recoveries[[0, 0, 1, 2][dice.below(4)]],
            assumes: dice.percent(20),
            max_attempts: dice.one_of(&[u32::MAX, u32::MAX, 1, 3]),
            retention: Duration::from_micros(retention),
            unresolved: Duration::from_micros(unresolved),
            response: response_retention,
        };
        let sometimes =
            |most: u32| if dice.percent(60) { dice.between(0, u64::from(most)) as u32 } else { 0 };
        // Each world has a subset of the faults, so that those which are rare elsewhere are
        // frequent in some.
        let faults: Vec<Fate> = FAULTS.into_iter().filter(|_| dice.percent(45)).collect();
        Setup {
            processes: dice.between(1, 4) as usize,
            actors: dice.between(2, 9) as usize,
            actions: dice.between(3, 14) as usize,
            keys: names[..dice.one_of(&[1, 1, 2, 3, 4, 6])].iter().map(key).collect(),
            lease,
            call_timeout: Duration::from_micros(dice.one_of(&[100 * MILLI, SECOND, 5 * SECOND])),
            run_wait: Duration::from_micros(dice.any_time(4 * lease)),
            max_waiters: dice.one_of(&[1, 3, 10_000]),
            max_response: dice.one_of(&[0, 1 << 20, 1 << 20]),
            response_retention,
            max_records: if heals { 1000 } else { dice.one_of(&[1, 1000, 1000]) },
            latency: dice.one_of(&[MILLI, MILLI, 20 * MILLI, 200 * MILLI]),
            latest: dice.one_of(&[50 * MILLI, lease, 4 * lease]),
            fault: if faults.is_empty() { 0 } else { dice.one_of(&[0, 20_000, 100_000, 400_000]) },
            faults,
            crash: sometimes(60_000),
            process_crash: sometimes(8_000),
            pause: sometimes(30_000),
            cut: sometimes(20_000),
            jump: sometimes(20_000),
            heals_at: dice.between(lease / 2, 20 * lease),
        }
    }
}

impl Setup {
    /// The retention of all keys.
    pub(crate) fn retention(&self) -> u64 {
        self.keys[0].retention.as_micros() as u64
    }

    /// The retention of all keys while they are unresolved.
    pub(crate) fn unresolved(&self) -> u64 {
        self.keys[0].unresolved.as_micros() as u64
    }

    /// Returns true if a replay may lack its bytes.
    pub(crate) fn leaves_out_bytes(&self) -> bool {
        self.max_response == 0 || self.response_retention.is_some()
    }
}

/// A process: an engine with its own clocks and its own connection to the store.
struct Process {
    engine: Engine,
    clock: MachineClock,
    /// The end of its current pause.
    runs_from: u64,
    /// The total time of its pauses.
    stood: u64,
    /// The end of its current partition from the store.
    cut_until: u64,
    /// True if its calls get no answer during the partition, instead of errors.
    silent: bool,
}

/// The plan of an actor, which outlives its crashes.
#[derive(Debug)]
pub(crate) struct Persona {
    pub(crate) process: usize,
    pub(crate) left: usize,
    /// The key and owner of its last begin under an owner of its own, for a repetition after a
    /// crash.
    pub(crate) orphan: Option<(usize, Owner)>,
}

/// The world of one seed.
pub(crate) struct World {
    pub(crate) dice: Dice,
    pub(crate) time: Arc<Time>,
    pub(crate) setup: Setup,
    pub(crate) store: MemoryStore,
    store_clock: MachineClock,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) wire: Mutex<Wire>,
    processes: Mutex<Vec<Process>>,
    pub(crate) personas: Mutex<Vec<Persona>>,
    /// The call that is being polled.
    current: AtomicUsize,
    calm_since: Mutex<Option<u64>>,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("setup", &self.setup).finish_non_exhaustive()
    }
}

/// The result of a seed.
pub(crate) struct Report {
    pub(crate) counts: Counts,
    pub(crate) trace: u64,
}

/// Runs one seed. With `heals`, faults stop at some time, and then everything must come to its end.
pub(crate) fn live(seed: u64, heals: bool, aloud: bool) -> Report {
    let world = World::draw(seed, heals, aloud);
    let mut executor = Executor::default();
    let mut of_task = Vec::new();
    for number in 0..world.setup.actors {
        let process = world.dice.below(world.setup.processes);
        let left = world.setup.actions;
        lock(&world.personas).push(Persona { process, left, orphan: None });
        executor.spawn(process, Box::pin(actors::act(Arc::clone(&world), number)));
        of_task.push(number);
    }
    let mut settling = false;
    for step in 0.. {
        assert!(step < 1_000_000, "L1: it goes on for ever");
        world.deliver();
        if heals && world.time.now() >= world.setup.heals_at {
            world.heal();
        }
        if executor.is_done() {
            if settling || !heals {
                break;
            }
            settling = true;
            world.heal();
            for key in 0..world.setup.keys.len() {
                executor.spawn(0, Box::pin(actors::settle(Arc::clone(&world), key)));
                of_task.push(usize::MAX);
            }
        }
        let ready = executor.ready(|process| world.runs(process));
        let next = world.next_event();
        if ready.is_empty() || world.dice.percent(10) && next.is_some_and(|at| at < world.time.now() + MILLI)
        {
            world.time.pass_until(next.expect("L1, L4: a caller waits, and nothing will ever wake it"));
            continue;
        }
        let task = ready[world.dice.below(ready.len())];
        let process = executor.process_of(task);
        world.time.pass_until(world.time.now() + world.dice.between(1, 20));
        world.note("polls", [task as u64, 0, 0]);
        if executor.poll(task) && !world.is_calm() {
            for crashed in world.strike(&executor, task, process) {
                executor.crash(crashed);
                let number = of_task[crashed];
                let process = world.dice.below(world.setup.processes);
                lock(&world.personas)[number].process = process;
                executor.spawn(process, Box::pin(actors::act(Arc::clone(&world), number)));
                of_task.push(number);
            }
        }
    }
    world.end()
}

impl World {
    fn draw(seed: u64, heals: bool, aloud: bool) -> Arc<World> {
        let dice = Dice::new(seed);
        let setup = Setup::draw(&dice, heals);
        let time = Arc::new(Time::default());
        let store_clock = MachineClock::new(&time, &dice);
        let ids: Vec<_> = setup.keys.iter().map(|key| request(key).id()).collect();
        let store = MemoryStore::builder().clock(store_clock.clone()).max_records(setup.max_records).build();
        let world = Arc::new(World {
            ledger: Mutex::new(Ledger::new(&setup.keys, &ids, aloud)),
            wire: Mutex::default(),
            processes: Mutex::default(),
            personas: Mutex::default(),
            current: AtomicUsize::new(0),
            calm_since: Mutex::default(),
            dice,
            time,
            setup,
            store,
            store_clock,
        });
        for number in 0..world.setup.processes {
            let process = World::start(&world, number);
            lock(&world.processes).push(process);
        }
        world
    }

    fn start(world: &Arc<World>, number: usize) -> Process {
        let clock = MachineClock::new(&world.time, &world.dice);
        let setup = &world.setup;
        let connection = Connection { world: Arc::clone(world), process: number };
        let builder = Engine::builder(connection)
            .clock(clock.clone())
            .lease(Duration::from_micros(setup.lease))
            .retention(setup.keys[0].retention)
            .unresolved_retention(setup.keys[0].unresolved)
            .call_timeout(setup.call_timeout)
            .run_wait(setup.run_wait)
            .max_waiters(setup.max_waiters)
            .max_response(setup.max_response)
            .oversized(Oversized::Marker);
        let builder = setup.response_retention.into_iter().fold(builder, EngineBuilder::response_retention);
        let engine = builder.build().expect("windows that are safe");
        Process { engine, clock, runs_from: 0, stood: 0, cut_until: 0, silent: false }
    }

    pub(crate) fn engine(&self, process: usize) -> Engine {
        lock(&self.processes)[process].engine.clone()
    }

    /// Draws any process, including the caller's own.
    pub(crate) fn any_process(&self) -> usize {
        self.dice.below(self.setup.processes)
    }

    pub(crate) fn sleep(&self, micros: u64) -> Timer {
        self.time.timer(micros)
    }

    pub(crate) fn latency(&self) -> u64 {
        50 + if self.is_calm() { self.dice.between(0, 850) } else { self.dice.any_time(self.setup.latency) }
    }

    /// Draws the fate of a process's next message.
    pub(crate) fn fate(&self, process: usize) -> Fate {
        let mut ledger = lock(&self.ledger);
        ledger.counts.messages += 1;
        if self.is_calm() {
            return Fate::Fine;
        }
        let way = &lock(&self.processes)[process];
        let fate = match () {
            () if way.cut_until > self.time.now() && way.silent => Fate::RequestLost,
            () if way.cut_until > self.time.now() => Fate::FailsBefore,
            () if self.dice.chance(self.setup.fault) => self.dice.one_of(&self.setup.faults),
            () => Fate::Fine,
        };
        ledger.counts.faults += u64::from(fate != Fate::Fine);
        ledger.counts.kinds[fate as usize] += 1;
        fate
    }

    pub(crate) fn note(&self, what: &str, numbers: [u64; 3]) {
        lock(&self.ledger).note(self.time.now(), what, numbers);
    }

    pub(crate) fn current(&self) -> CallId {
        self.current.load(Ordering::Relaxed)
    }

    pub(crate) fn is_calm(&self) -> bool {
        lock(&self.calm_since).is_some()
    }

    /// Returns true if faults ended so long ago that no wait can still miss a change because of
    /// one.
    pub(crate) fn is_settled(&self) -> bool {
        lock(&self.calm_since).is_some_and(|since| self.time.now() > since + 6 * SECOND)
    }

    /// Makes a call and checks that it ends in time (L1). Pauses of its process do not count.
    pub(crate) async fn call<T>(
        &self,
        process: usize,
        kind: Kind,
        limit: Option<Duration>,
        work: impl Future<Output = T>,
    ) -> (CallId, T) {
        let since = Stamp(self.store_now());
        let call = {
            let mut ledger = lock(&self.ledger);
            ledger.counts.calls += 1;
            ledger.calls.push(Call { kind, since });
            ledger.calls.len() - 1
        };
        self.note("calls", [call as u64, kind as u64, process as u64]);
        let (started, stood) = (self.time.now(), self.stood(process));
        let mut work = pin!(work);
        let answer = poll_fn(|context| {
            let outer = self.current.swap(call, Ordering::Relaxed);
            let polled = work.as_mut().poll(context);
            self.current.store(outer, Ordering::Relaxed);
            polled
        })
        .await;
        let stood = self.stood(process).saturating_sub(stood);
        let took = (self.time.now() - started).saturating_sub(stood);
        let slack = Duration::from_millis(20);
        if let Some(limit) = limit {
            let took = Duration::from_micros(took);
            assert!(took <= limit + slack, "L1: a {kind:?} took {took:?}, allowed are {limit:?}");
        }
        self.note("answered", [call as u64, took, 0]);
        (call, answer)
    }

    fn stood(&self, process: usize) -> u64 {
        lock(&self.processes)[process].stood
    }

    fn runs(&self, process: usize) -> bool {
        lock(&self.processes)[process].runs_from <= self.time.now()
    }

    fn next_event(&self) -> Option<u64> {
        let now = self.time.now();
        let processes = lock(&self.processes);
        let wakes = processes.iter().map(|process| process.runs_from).filter(|at| *at > now);
        wakes.chain(self.time.next_timer()).chain(lock(&self.wire).next()).min()
    }

    /// Draws the faults that hit a polled task and its process. Returns the tasks that crash.
    fn strike(self: &Arc<World>, executor: &Executor, task: usize, process: usize) -> Vec<usize> {
        let (dice, setup) = (&self.dice, &self.setup);
        let now = self.time.now();
        let mut crashed = Vec::new();
        if dice.chance(setup.crash) {
            crashed.push(task);
        }
        if dice.chance(setup.process_crash) {
            crashed = executor.tasks_of(process);
            let stood = self.stood(process);
            let started = World::start(self, process);
            let old = std::mem::replace(&mut lock(&self.processes)[process], Process { stood, ..started });
            drop(old);
        }
        let mut processes = lock(&self.processes);
        let struck = &mut processes[process];
        let mut counts = Counts::default();
        if dice.chance(setup.pause) {
            let time = dice.any_time(4 * setup.lease);
            (struck.runs_from, struck.stood) = (now + time, struck.stood + time);
            counts.pauses += 1;
        }
        if dice.chance(setup.cut) {
            (struck.cut_until, struck.silent) = (now + dice.any_time(2 * setup.lease), dice.percent(50));
            counts.cuts += 1;
        }
        if dice.chance(setup.jump) {
            let clock = if dice.percent(20) { &self.store_clock } else { &struck.clock };
            clock.set(dice);
            counts.jumps += 1;
        }
        drop(processes);
        counts.crashes = crashed.len() as u64;
        if counts.crashes + counts.pauses + counts.cuts + counts.jumps > 0 {
            self.note("struck", [process as u64, counts.crashes, counts.pauses]);
            lock(&self.ledger).counts.add(&counts);
        }
        crashed
    }

    /// Ends all faults.
    fn heal(&self) {
        let now = self.time.now();
        let mut calm = lock(&self.calm_since);
        if calm.is_none() {
            *calm = Some(now);
            for process in lock(&self.processes).iter_mut() {
                let left = process.runs_from.saturating_sub(now);
                (process.runs_from, process.cut_until) = (now, now);
                process.stood -= left;
            }
            lock(&self.ledger).note(now, "heals", [0; 3]);
        }
    }

    /// Checks the store a last time and breaks the reference cycle between engines and world.
    fn end(self: Arc<World>) -> Report {
        let mut ledger = lock(&self.ledger);
        for setup in &self.setup.keys {
            let id = request(setup).id();
            let shown = self.store.load(&id).now_or_never().expect("a memory store answers at once");
            ledger.read(&id, &shown.expect("a memory store never fails a load"));
        }
        ledger.counts.seeds = 1;
        ledger.counts.micros = self.time.now();
        let report = Report { counts: ledger.counts.clone(), trace: ledger.trace() };
        drop(ledger);
        let processes = std::mem::take(&mut *lock(&self.processes));
        drop(processes);
        report
    }
}

/// The request for a key, as far as its callers agree.
pub(crate) fn request(setup: &KeySetup) -> Request {
    let request = Request::new(setup.scope, setup.key)
        .expect("a scope and a key")
        .recovery(setup.recovery)
        .max_attempts(setup.max_attempts)
        .retention(setup.retention);
    if setup.assumes { request.assume_effect() } else { request }
}
