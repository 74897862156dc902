//! A change of many operations: those that were shown, and no others.

use futures_util::future::join_all;
use nevertwice::{Inspection, RecordId};
use serde_json::{Value, json};

use crate::confirm::confirm;
use crate::failure::{Failure, or_no_reader};
use crate::journal::Journal;
use crate::output::{Output, progress};
use crate::session::Session;
use crate::view::{COLUMNS, View, row};
use crate::walk::Walk;

/// The number of changes that are under way at a time.
const AT_ONCE: usize = 32;
/// The number of operations that a table shows; JSON shows all.
const SHOWN: usize = 20;

/// The operations that a command would change.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) operations: Vec<(RecordId, Inspection)>,
    /// Ids whose record could not be read: it is not known if they match.
    pub(super) unreadable: Vec<RecordId>,
}

/// The way in which they are changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mode {
    pub(super) dry_run: bool,
    pub(super) yes: bool,
    pub(super) output: Output,
}

impl Plan {
    /// Finds the operations that match. With `expired`, also those that only await their removal.
    pub(super) async fn find(
        session: &Session,
        expired: bool,
        matches: impl Fn(&Inspection) -> bool,
    ) -> Result<Plan, Failure> {
        let mut plan = Plan::default();
        let mut walk = Walk::all(session, "searching");
        while let Some(step) = walk.next().await? {
            let others = step.expired.into_iter().filter(|_| expired);
            let found = step.found.into_iter().chain(others).filter(|found| matches(&found.seen));
            plan.operations.extend(found.map(|found| (found.id, found.seen)));
            plan.unreadable.extend(step.unreadable);
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
        let count = self.operations.len();
        if count == 0 && self.unreadable.is_empty() {
            return Err(Failure::NothingFound("no operation matches".to_owned()));
        }
        if mode.dry_run {
            return self.show(mode);
        }
        if !mode.output.json {
            or_no_reader(self.show(mode))?;
        }
        confirm(&format!("{doing}: {count} operations?"), mode.yes)?;
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
            let unreadable: Vec<String> = self.unreadable.iter().map(ToString::to_string).collect();
            return output.json(&json!({
                "dry_run": true, "count": operations.len(), "operations": operations, "unreadable": unreadable,
            }));
        }
        let shown = self.operations.iter().take(SHOWN);
        output.table(&COLUMNS, shown.map(|(id, seen)| row(id, seen)).collect())?;
        let (count, unreadable) = (self.operations.len(), self.unreadable.len());
        let note = if mode.dry_run { " (dry run: nothing was changed)" } else { "" };
        output.line(&format!("{count} operations match{note}"))?;
        if unreadable > 0 {
            output.line(&format!("{unreadable} records cannot be read, and are left alone: see `check`"))?;
        }
        Ok(())
    }

    fn report(&self, output: Output, done: u64, refused: &[(&RecordId, String)]) -> Result<(), Failure> {
        let unreadable = self.unreadable.len();
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

fn write(
    output: Output,
    done: u64,
    refused: &[(&RecordId, String)],
    unreadable: usize,
) -> Result<(), Failure> {
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

/// Refuses if an operation is not as it was `seen`. A settlement is decided by the fence, which
/// stays when a holder renews, marks, saves a checkpoint or fails, and when another operator
/// settles: what was shown is compared by the stamp, which each of these changes. Called right
/// before the settlement, which a write in between can still overtake.
pub(super) async fn refuse_if_changed(
    session: &Session,
    id: &RecordId,
    seen: &Inspection,
) -> Result<(), Failure> {
    let now = session.engine.inspect_id(id).await?;
    if now.is_some_and(|now| now.stamp == seen.stamp) {
        return Ok(());
    }
    Err(changed())
}

/// The refusal of an operation that is not as it was shown.
pub(super) fn changed() -> Failure {
    Failure::Refused("it changed since it was shown: look at it again".to_owned())
}
