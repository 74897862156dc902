//! A change of many operations: those that were shown, and no others.

use futures_util::future::join_all;
use nevertwice::{Inspection, RecordId};
use serde_json::{Value, json};

use super::change::Mode;
use crate::failure::{Failure, or_no_reader};
use crate::journal::Journal;
use crate::output::{Output, progress};
use crate::session::Session;
use crate::view::{COLUMNS, View, row};
use crate::walk::{NAMED, Unreadable, Walk};

/// The number of changes that are under way at a time.
const AT_ONCE: usize = 32;
/// The number of operations that a table shows; JSON shows [`NAMED`].
const SHOWN: usize = 20;
/// The largest number of operations that are changed by one command: what is known of each, some
/// 400 bytes, is held in memory from its showing to its change.
const MOST: usize = 250_000;

/// The operations that a command would change.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// All of them; of a dry run the first [`NAMED`].
    pub(super) operations: Vec<(RecordId, Inspection)>,
    /// The number of those that match.
    pub(super) count: usize,
    /// Ids whose record could not be read: it is not known if they match.
    pub(super) unreadable: Unreadable,
}

impl Plan {
    /// Finds the operations that match, the first `at_most`. With `expired`, also those that only
    /// await their removal.
    ///
    /// # Errors
    /// [`Failure::Refused`] for more than [`MOST`], before anything is changed.
    pub(super) async fn find(
        session: &Session,
        mode: Mode,
        at_most: Option<usize>,
        expired: bool,
        matches: impl Fn(&Inspection) -> bool,
    ) -> Result<Plan, Failure> {
        let (mut plan, at_most) = (Plan::default(), at_most.unwrap_or(usize::MAX));
        let mut walk = Walk::all(session, "searching");
        while plan.count < at_most
            && let Some(step) = walk.next().await?
        {
            let others = step.expired.into_iter().filter(|_| expired);
            let found = step.found.into_iter().chain(others).filter(|found| matches(&found.seen));
            for found in found.take(at_most - plan.count) {
                plan.count += 1;
                if !mode.dry_run || plan.operations.len() < NAMED {
                    plan.operations.push((found.id, found.seen));
                }
            }
            plan.unreadable.add(step.unreadable);
            if !mode.dry_run && plan.count > MOST {
                return Err(Failure::Refused(format!(
                    "more than {MOST} operations match, and nothing was changed: narrow the filters, or repeat the \
                     command with --at-most {MOST} until nothing is left"
                )));
            }
        }
        Ok(plan)
    }

    /// Shows the operations, asks, and changes each by `change`, which returns the state after it.
    /// `doing` says what that is.
    pub(super) async fn carry_out(
        self,
        mode: Mode,
        journal: &Journal,
        doing: &str,
        change: impl AsyncFn(&RecordId, &Inspection) -> Result<Value, Failure>,
    ) -> Result<(), Failure> {
        let count = self.count;
        if count == 0 && self.unreadable.count == 0 {
            return Err(Failure::NothingFound("no operation matches".to_owned()));
        }
        if mode.dry_run {
            return self.show(mode);
        }
        if !mode.output.json {
            or_no_reader(self.show(mode))?;
        }
        mode.confirm(&format!("{doing}: {count} operations?"))?;
        let (mut done, mut refused) = (0_u64, Vec::new());
        let bar = progress("changing");
        for part in self.operations.chunks(AT_ONCE) {
            let changes = part.iter().map(|(id, seen)| change(id, seen));
            let results = join_all(changes).await;
            let mut lost = None;
            for ((id, seen), result) in part.iter().zip(results) {
                bar.inc(1);
                match result {
                    Ok(after) => {
                        done += 1;
                        bar.suspend(|| journal.write(&id.to_string(), &View::of(id, seen), &after));
                    }
                    Err(error @ Failure::Unreachable(_)) => lost = Some(error),
                    Err(error) => refused.push((id, error.to_string())),
                }
            }
            if let Some(error) = lost {
                return Err(Failure::Unreachable(format!(
                    "{error}; {done} of {count} were changed for certain: repeat the command for the others"
                )));
            }
        }
        bar.finish_and_clear();
        self.report(mode.output, done, &refused)
    }

    fn show(&self, mode: Mode) -> Result<(), Failure> {
        let output = mode.output;
        if output.json {
            let operations: Vec<View> = self.operations.iter().map(|(id, seen)| View::of(id, seen)).collect();
            return output.json(&json!({
                "dry_run": true, "count": self.count, "operations": operations,
                "unreadable": self.unreadable.names(),
            }));
        }
        let shown = self.operations.iter().take(SHOWN);
        output.table(&COLUMNS, shown.map(|(id, seen)| row(id, seen)).collect())?;
        let (count, unreadable) = (self.count, self.unreadable.count);
        let note = if mode.dry_run { " (dry run: nothing was changed)" } else { "" };
        output.line(&format!("{count} operations match{note}"))?;
        if unreadable > 0 {
            output.line(&format!("{unreadable} records cannot be read, and are left alone: see `check`"))?;
        }
        Ok(())
    }

    fn report(&self, output: Output, done: u64, refused: &[(&RecordId, String)]) -> Result<(), Failure> {
        let unreadable = self.unreadable.count;
        let written = write(output, done, refused, unreadable);
        if refused.is_empty() && unreadable == 0 {
            return or_no_reader(written);
        }
        Err(Failure::Refused(format!(
            "{} operations were refused, and {unreadable} records cannot be read",
            refused.len()
        )))
    }
}

fn write(output: Output, done: u64, refused: &[(&RecordId, String)], unreadable: u64) -> Result<(), Failure> {
    if output.json {
        let refused: Vec<Value> =
            refused.iter().map(|(id, why)| json!({ "id": id.to_string(), "why": why })).collect();
        return output.json(&json!({ "done": done, "refused": refused, "unreadable": unreadable }));
    }
    output.line(&format!("{done} changed, {} refused", refused.len()))?;
    for (id, why) in refused.iter().take(SHOWN) {
        output.line(&format!("refused: {id}: {why}"))?;
    }
    Ok(())
}
