//! `unresolved`: what needs an operator.

use std::cmp::Reverse;

use clap::Args;
use nevertwice::{Inspection, Need, RecordId};
use serde_json::json;

use super::fitness::warn_if_stale;
use crate::args::Global;
use crate::failure::Failure;
use crate::output::Output;
use crate::select::Select;
use crate::session::{Access, Session};
use crate::view::{COLUMNS, View, row};
use crate::walk::{Unreadable, Walk};

/// Lists what needs an operator, oldest first, and why.
#[derive(Debug, Args)]
pub struct Unresolved {
    #[command(flatten)]
    select: Select,
    /// The number of operations to show at most, the oldest
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Only operations whose effect may have happened. SQLite finds them by an index; PostgreSQL
    /// reads every row, but only their contents; Redis reads everything
    #[arg(long)]
    settling: bool,
}

impl Unresolved {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        if self.select.key.is_some() {
            return Err(Failure::Usage("one operation is shown by `show`".to_owned()));
        }
        let mut matcher = self.select.matcher()?;
        matcher.filter = matcher.filter.need(if self.settling { Need::Settling } else { Need::Operator });
        let session = Session::open(global, Access::Read).await?;
        warn_if_stale(&session);
        let walk = Walk::all(&session, "searching");
        let mut walk = if self.settling { walk.evidence() } else { walk };
        let limit = self.limit as usize;
        let (mut found, mut unreadable, mut count) = (Vec::new(), Unreadable::default(), 0_u64);
        while let Some(mut step) = walk.next().await? {
            step.found.retain(|found| matcher.matches(&found.seen));
            count += step.found.len() as u64;
            found.extend(step.found.into_iter().map(|found| (found.id, found.seen)));
            unreadable.add(step.unreadable);
            // The oldest of all that were seen so far.
            if found.len() > 2 * limit {
                found.sort_by_key(|(_, seen)| Reverse(seen.age));
                found.truncate(limit);
            }
        }
        found.sort_by_key(|(_, seen)| Reverse(seen.age));
        found.truncate(limit);
        drop(walk);
        let written = write(Output { json: global.json }, count, &found, &unreadable);
        if count == 0 && unreadable.count == 0 {
            return Err(Failure::NothingFound("nothing is unresolved".to_owned()));
        }
        written
    }
}

fn write(
    output: Output,
    count: u64,
    found: &[(RecordId, Inspection)],
    unreadable: &Unreadable,
) -> Result<(), Failure> {
    if output.json {
        let operations: Vec<View> = found.iter().map(|(id, seen)| View::of(id, seen)).collect();
        return output
            .json(&json!({ "count": count, "operations": operations, "unreadable": unreadable.names() }));
    }
    if !found.is_empty() {
        output.table(&COLUMNS, found.iter().map(|(id, seen)| row(id, seen)).collect())?;
        output.line(&format!("{count} unresolved, {} shown", found.len()))?;
    }
    unreadable.show(output)
}
