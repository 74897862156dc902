//! [`audit`]: runs an application's handler under every fault, and counts its effects.

mod case;
mod drive;
mod verdict;

use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use self::case::{Case, FAULTS};
pub use self::verdict::{End, Finding, Row};
use super::FaultyStore;
use crate::backends::memory::MemoryStore;
use crate::builder::EngineBuilder;
use crate::clock::{Clock, ManualClock, SystemClock};
use crate::engine::Engine;
use crate::request::Request;
use crate::store::Store;

/// Runs `handler` under every fault, with the memory store and the default settings.
///
/// Each schedule has a key of its own. It disturbs one delivery, then delivers
/// the request again until the outcome stands:
///
/// * undisturbed;
/// * one store call fails before or after it is done, is lost, is done with its answer lost, or is
///   done twice: for every call;
/// * the store is away from a call on, until the next delivery: from every call on;
/// * the handler is dropped, as by a crash, and delivered again after its lease or at once; or the
///   delivery that takes over is dropped too: at each of its awaits;
/// * a second delivery comes while the first is in progress: at each of its awaits;
/// * the handler pauses until its lease has ended and a second delivery was handled, then
///   continues: at each of its awaits.
///
/// `request` makes the request of a key, as the handler does; it is used to look at the record.
/// `handler` deals with one delivery under the engine and the key. `Ok` is an outcome: a first
/// answer or its replay, which all have to be equal. `Err` is no outcome: in progress, unresolved,
/// refused, failed; its value is ignored. `effects` counts the effects so far, of all keys.
///
/// Engine and store have one [`ManualClock`], which is advanced while the handler waits for it
/// alone. The handler may wait for anything else too (a server of the test, a channel, a timer of
/// the executor's), at most for 30 seconds; it must not be `spawn`ed, since only its own
/// future can be dropped. Handlers that do real work decide how long an audit takes: it runs them
/// some 50 times.
///
/// ```
/// use nevertwice::testing::{audit, block_on};
/// use nevertwice::{Begin, Engine, Request};
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// let charges = AtomicU64::new(0);
/// let request = |key: &str| Request::new("acct_42/charges", key).unwrap();
/// let charge = async |engine: Engine, key: String| {
///     match engine.begin(&request(&key)).await.map_err(drop)? {
///         Begin::Acquired(lease) => {
///             lease.mark_effect().await.map_err(drop)?;
///             charges.fetch_add(1, Ordering::SeqCst);
///             lease.complete("receipt").await.map_err(drop)?;
///             Ok("receipt".to_owned())
///         }
///         Begin::Completed(done) => Ok(String::from_utf8(done.response().unwrap().to_vec()).unwrap()),
///         _ => Err(()),
///     }
/// };
/// let audit = block_on(audit(request, charge, async || charges.load(Ordering::SeqCst)));
/// println!("{audit}");
/// audit.assert_safe();
/// ```
///
/// # Panics
/// As for [`Auditor::run`].
pub async fn audit<T, E>(
    request: impl Fn(&str) -> Request,
    handler: impl AsyncFn(Engine, String) -> Result<T, E>,
    effects: impl AsyncFn() -> u64,
) -> Audit
where
    T: PartialEq + Debug,
{
    Auditor::new().run(request, handler, effects).await
}

/// Runs audits with the settings and the store of the application's choice: see [`audit`].
#[derive(Clone)]
pub struct Auditor {
    settings: Arc<dyn Fn(EngineBuilder) -> EngineBuilder>,
    store: Arc<dyn Store>,
    clock: ManualClock,
    effects: u64,
}

impl Auditor {
    /// Creates an auditor with the default settings, whose store keeps records in memory.
    #[allow(clippy::new_without_default)] // it is a builder
    pub fn new() -> Auditor {
        let clock = ManualClock::new();
        Auditor::on(MemoryStore::builder().clock(clock.clone()).build(), clock)
    }

    /// Creates an auditor with a store that was opened with this clock, such as an
    /// [`SqliteStore`](crate::SqliteStore) on a file in which the handler has transactions of its
    /// own. The handler may use the store too.
    pub fn on(store: impl Store, clock: ManualClock) -> Auditor {
        Auditor { settings: Arc::new(|engine| engine), store: Arc::new(store), clock, effects: 1 }
    }

    /// Sets the settings of the engines. Their clock is the auditor's.
    pub fn engine(mut self, settings: impl Fn(EngineBuilder) -> EngineBuilder + 'static) -> Auditor {
        self.settings = Arc::new(settings);
        self
    }

    /// Sets the number of effects of one operation. **Default: 1.**
    pub fn effects(mut self, number: u64) -> Auditor {
        self.effects = number;
        self
    }

    /// Runs the handler under every fault: see [`audit`].
    ///
    /// # Panics
    /// If the settings are invalid, a delivery that nothing disturbs has no effect, no outcome, or
    /// neither an await nor a call of the engine, or
    /// a delivery takes more than 30 seconds: then there is nothing to audit. A panic of the
    /// handler is not caught.
    pub async fn run<T, E>(
        &self,
        request: impl Fn(&str) -> Request,
        handler: impl AsyncFn(Engine, String) -> Result<T, E>,
        effects: impl AsyncFn() -> u64,
    ) -> Audit
    where
        T: PartialEq + Debug,
    {
        // A store and a provider may know the keys of earlier audits.
        let audit = SystemClock.wall().as_nanos();
        let run = async |number: usize, case: Case| {
            let key = format!("audit-{audit}-{number}");
            let clock = self.clock.clone();
            let store = FaultyStore::yielding(Arc::clone(&self.store), clock.clone());
            let world = drive::World {
                engine: self.build(&store),
                id: request(&key).id(),
                key,
                clock,
                store,
                effects: self.effects,
            };
            world.play(case, &handler, &effects).await
        };
        let (first, size) = run(0, Case::Undisturbed).await;
        verdict::check(&first, size);
        let mut rows = vec![first];
        for case in cases(size) {
            let (row, _) = run(rows.len(), case).await;
            rows.push(row);
        }
        Audit { rows }
    }

    #[allow(clippy::panic)] // a check fails by panicking
    fn build(&self, store: &FaultyStore<Arc<dyn Store>>) -> Engine {
        let builder = (self.settings)(Engine::builder(store.clone())).clock(self.clock.clone());
        builder.build().unwrap_or_else(|error| panic!("the settings are refused: {error}"))
    }
}

impl Debug for Auditor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auditor").finish_non_exhaustive()
    }
}

/// The store calls and the awaits of a delivery that nothing disturbs.
#[derive(Debug, Clone, Copy)]
struct Size {
    calls: u64,
    awaits: usize,
}

/// Returns the schedules for a handler, the simplest first.
fn cases(size: Size) -> impl Iterator<Item = Case> {
    let at_awaits = |case: fn(usize) -> Case| (1..=size.awaits).map(case);
    let faults = (1..=size.calls).flat_map(|call| FAULTS.map(|fault| Case::Fault { call, fault }));
    at_awaits(|at| Case::Dropped { at })
        .chain(at_awaits(|at| Case::DroppedThenAtOnce { at }))
        .chain(at_awaits(|at| Case::DroppedTwice { at }))
        .chain(faults)
        .chain((1..=size.calls).map(|call| Case::Away { call }))
        .chain(at_awaits(|at| Case::Twice { at }))
        .chain(at_awaits(|at| Case::Zombie { at }))
}

/// The result of an audit: a row for each schedule. Its `Display` is a table.
#[derive(Debug, Clone)]
pub struct Audit {
    rows: Vec<Row>,
}

impl Audit {
    /// Returns all schedules, the simplest first.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Returns the schedules that the handler does not survive, the simplest first.
    pub fn failures(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.finding.is_some())
    }

    /// Checks that the handler survives every schedule.
    ///
    /// # Panics
    /// If it does not: with the simplest schedule, what to change, and the table.
    #[track_caller]
    #[allow(clippy::panic)] // a check fails by panicking
    pub fn assert_safe(&self) {
        if let Some(Row { schedule, finding: Some(finding), .. }) = self.failures().next() {
            panic!("{schedule}: {finding}\n\n{self}");
        }
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.schedule.len()).max().unwrap_or_default();
        writeln!(f, "{:width$}  effects  outcome     verdict", "schedule")?;
        for row in &self.rows {
            let verdict = row.finding.as_ref().map_or("ok", Finding::name);
            writeln!(
                f,
                "{:width$}  {:>7}  {:<10}  {verdict}",
                row.schedule,
                row.effects,
                row.end.to_string()
            )?;
        }
        let failed = self.failures().count();
        write!(f, "{} schedules, {failed} failed", self.rows.len())
    }
}

/// The real time after which a handler that nothing wakes waits for the clock, if it can.
const IDLE: Duration = Duration::from_millis(2);
/// The real time after which the store is back for a handler that tries for ever.
const AWAY: Duration = Duration::from_secs(2);
/// The real time after which a second delivery is believed to wait for the first.
const BLOCKED: Duration = Duration::from_secs(1);
/// The real time that a delivery may take, and that a handler may wait for something else than the
/// clock.
const PATIENCE: Duration = Duration::from_secs(30);
