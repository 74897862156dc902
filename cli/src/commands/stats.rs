//! `stats`: counts, sizes and ages.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use clap::Args;
use nevertwice::{Stamp, StateKind};
use serde::Serialize;

use crate::args::Global;
use crate::failure::Failure;
use crate::output::{Output, bytes, time};
use crate::session::{Access, Session};
use crate::view::state;
use crate::walk::{Found, Walk};

/// The number of different scopes that are counted: the others are counted together.
const SCOPES: usize = 10_000;

/// Counts operations by state and scope, and measures them. Reads the whole store.
#[derive(Debug, Args)]
pub struct Stats {
    /// The number of scopes to show at most, the largest
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    scopes: u32,
}

/// The figures of a store.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) operations: u64,
    pub(crate) states: BTreeMap<&'static str, u64>,
    /// Operations that need an operator.
    pub(crate) unresolved: u64,
    pub(crate) oldest_unresolved_seconds: Option<f64>,
    /// Those that the next begin executes.
    pub(crate) retryable: u64,
    /// The bytes of the records, without the store's own.
    pub(crate) bytes: u64,
    pub(crate) oldest_seconds: Option<f64>,
    /// Expired records that were not removed yet.
    pub(crate) due: u64,
    pub(crate) unreadable: u64,
    /// The grants and the writes that ended an operation, in the last minute.
    pub(crate) granted_last_minute: u64,
    pub(crate) finished_last_minute: u64,
    pub(crate) scopes: Vec<ScopeFigures>,
}

/// The figures of a scope.
#[derive(Debug, Default, Clone, Serialize)]
pub(crate) struct ScopeFigures {
    scope: String,
    operations: u64,
    unresolved: u64,
    bytes: u64,
}

impl Stats {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let session = Session::open(global, Access::Read).await?;
        let figures = Figures::read(&session, self.scopes as usize).await?;
        let output = Output { json: global.json };
        if output.json {
            return output.json(&figures);
        }
        figures.show(output)
    }
}

impl Figures {
    /// Reads the whole store.
    pub(crate) async fn read(session: &Session, scopes: usize) -> Result<Figures, Failure> {
        let (mut figures, mut by_scope) = (Figures::default(), HashMap::new());
        let mut walk = Walk::all(session, "counting");
        while let Some(step) = walk.next().await? {
            figures.due += step.expired.len() as u64;
            figures.unreadable += step.unreadable.len() as u64;
            for found in &step.found {
                figures.count(found, &mut by_scope);
            }
        }
        figures.scopes = by_scope.into_values().collect();
        figures.scopes.sort_by(|a, b| b.operations.cmp(&a.operations).then_with(|| a.scope.cmp(&b.scope)));
        figures.scopes.truncate(scopes);
        Ok(figures)
    }

    fn count(&mut self, Found { id, record, seen }: &Found, scopes: &mut HashMap<String, ScopeFigures>) {
        let bytes = record.encode(id, Stamp::ZERO).len() as u64;
        let unresolved = seen.unresolved || seen.reason().is_some();
        let is_free = match seen.state {
            StateKind::InProgress => seen.lease_remaining == Some(Duration::ZERO),
            StateKind::Failed => seen.retry != Some(nevertwice::Retry::Never),
            StateKind::Completed | StateKind::Absent => false,
        };
        self.operations += 1;
        *self.states.entry(state(seen.state)).or_default() += 1;
        self.unresolved += u64::from(unresolved);
        self.retryable += u64::from(is_free && !unresolved);
        self.bytes += bytes;
        self.oldest_seconds = oldest(self.oldest_seconds, seen.age);
        if unresolved {
            self.oldest_unresolved_seconds = oldest(self.oldest_unresolved_seconds, seen.age);
        }
        let minute = Duration::from_secs(60);
        self.granted_last_minute += u64::from(seen.granted_ago < minute);
        self.finished_last_minute += u64::from(seen.age < minute && seen.state != StateKind::InProgress);
        let is_new = !scopes.contains_key(&seen.scope);
        let name = if is_new && scopes.len() >= SCOPES { "(others)" } else { &seen.scope };
        let scope = scopes.entry(name.to_owned()).or_default();
        name.clone_into(&mut scope.scope);
        scope.operations += 1;
        scope.unresolved += u64::from(unresolved);
        scope.bytes += bytes;
    }

    /// Writes the tables.
    pub(crate) fn show(&self, output: Output) -> Result<(), Failure> {
        let age = |seconds: Option<f64>| {
            seconds.map_or("-".to_owned(), |seconds| time(Duration::from_secs_f64(seconds)))
        };
        let mut rows: Vec<(&str, String)> = vec![("operations", self.operations.to_string())];
        rows.extend(self.states.iter().map(|(state, count)| (*state, count.to_string())));
        rows.extend([
            ("unresolved", self.unresolved.to_string()),
            ("oldest unresolved", age(self.oldest_unresolved_seconds)),
            ("free for the next begin", self.retryable.to_string()),
            ("bytes of records", bytes(self.bytes)),
            ("oldest", age(self.oldest_seconds)),
            ("expired, to be purged", self.due.to_string()),
            ("unreadable", self.unreadable.to_string()),
            ("granted in the last minute", self.granted_last_minute.to_string()),
            ("finished in the last minute", self.finished_last_minute.to_string()),
        ]);
        output.table(&[], rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect())?;
        if self.scopes.is_empty() {
            return Ok(());
        }
        let row = |scope: &ScopeFigures| {
            let numbers = [scope.operations.to_string(), scope.unresolved.to_string(), bytes(scope.bytes)];
            [vec![scope.scope.clone()], numbers.to_vec()].concat()
        };
        output.table(&["scope", "operations", "unresolved", "bytes"], self.scopes.iter().map(row).collect())
    }
}

fn oldest(known: Option<f64>, age: Duration) -> Option<f64> {
    Some(known.unwrap_or_default().max(age.as_secs_f64()))
}
