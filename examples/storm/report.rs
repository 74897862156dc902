//! The result of a run, checked against the store.

use std::time::Duration;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use futures_util::{StreamExt, TryStreamExt, stream};
use nevertwice::{Engine, Error, Key, StateKind};

use crate::input::SCOPE;
use crate::ledger::Effects;
use crate::worker::Tally;

/// The number of keys by their state in the store.
#[derive(Default)]
pub(crate) struct Found {
    completed: usize,
    open: usize,
    lost: usize,
}

/// Queries the store itself.
pub(crate) async fn inspect(engine: &Engine, keys: &[Key]) -> Result<Found, Error> {
    stream::iter(keys)
        .map(|key| engine.inspect(SCOPE, key))
        .buffer_unordered(64)
        .try_fold(Found::default(), async |mut found, inspection| {
            match inspection.map(|inspection| inspection.state) {
                Some(StateKind::Completed | StateKind::Failed) => found.completed += 1,
                Some(StateKind::InProgress) => found.open += 1,
                Some(StateKind::Absent) | None => found.lost += 1,
            }
            Ok(found)
        })
        .await
}

/// Prints the table and the line for machines. Returns true if every promise was kept.
pub(crate) fn print(
    deliveries: usize,
    keys: usize,
    found: &Found,
    effects: &Effects,
    tally: &Tally,
    took: Duration,
) -> bool {
    let seconds = took.as_secs_f64();
    let rate = |count: usize| format!("{:.0} a second", count as f64 / seconds);
    let (delivery_rate, key_rate) = (rate(deliveries), rate(keys));
    let by_dropped = format!("{} of them by a worker that was dropped right after", effects.by_dropped);
    let rows = [
        ("deliveries", deliveries, delivery_rate.as_str()),
        ("  executed", tally.executions.len(), &latencies(&tally.executions)),
        ("  replayed", tally.replays, "got the recorded response"),
        ("  mismatch", tally.mismatches, "refused: the key belongs to another payload"),
        ("  unresolved", tally.unresolved, "refused: the effect may have happened, left to an operator"),
        ("  failed", tally.failed, "got a recorded error"),
        ("in progress", tally.in_progress, "another worker held the key: the delivery came again"),
        ("workers dropped", tally.crashes, "the delivery came again"),
        ("takeovers", tally.takeovers, "of what a dropped worker had begun, but not marked"),
        ("leases lost", tally.leases_lost, "a worker too slow for its lease was told so, before the effect"),
        ("store errors", tally.store_errors, "after the engine's own retries: the delivery came again"),
        ("keys", keys, &key_rate),
        ("  completed", found.completed, ""),
        ("  open", found.open, "marked, but not completed: see Engine::resolve"),
        ("  lost", found.lost, "must be 0"),
        ("effects", effects.rows, &by_dropped),
        ("  double", effects.double, "must be 0"),
        ("wrong replays", tally.wrong_replays, "must be 0"),
    ];
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(["what", "count", "meaning"]);
    table.add_rows(rows.map(|(what, count, note)| [what.to_owned(), count.to_string(), note.to_owned()]));
    if let Some(counts) = table.column_mut(1) {
        counts.set_cell_alignment(CellAlignment::Right);
    }
    println!("{}", table.trim_fmt());

    let kept = effects.double == 0 && tally.wrong_replays == 0 && found.lost == 0;
    if !kept {
        eprintln!(
            "storm: FAILED: {} keys with a double effect, {} wrong replays, {} lost keys",
            effects.double, tally.wrong_replays, found.lost
        );
    }
    println!(
        "storm: deliveries={deliveries} keys={keys} effects={} double_effects={} replays={} in_progress={} \
         mismatches={} takeovers={} unresolved={} lost={} seconds={seconds:.3}",
        effects.rows,
        effects.double,
        tally.replays,
        tally.in_progress,
        tally.mismatches,
        tally.takeovers,
        tally.unresolved,
        found.lost,
    );
    kept
}

/// Formats the latencies from `begin` to `complete`: median and slow percentiles.
fn latencies(executions: &[Duration]) -> String {
    let mut sorted = executions.to_vec();
    sorted.sort_unstable();
    let at = |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)));
    match (at(50), at(95), at(99)) {
        (Some(p50), Some(p95), Some(p99)) => format!("p50 {p50:.1?}, p95 {p95:.1?}, p99 {p99:.1?}"),
        (_, _, _) => String::new(),
    }
}
