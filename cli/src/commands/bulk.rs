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
use crate::walk::{Found, NAMED, Unreadable, Walk};

/// The number of changes that are under way at a time.
const AT_ONCE: usize = 32;
/// The number of operations that a table shows; JSON shows [`NAMED`].
pub(super) const SHOWN: usize = 20;
/// The largest number of operations that are changed by one command: what is known of each, some
/// 400 bytes, is held in memory from its showing to its change.
const MOST: usize = 250_000;

/// The operations that a search keeps.
#[derive(Debug, Clone, Copy)]
enum Keep {
    /// All. More than this many are refused.
    All(usize),
    /// The first.
    First(usize),
}

impl Keep {
    /// Returns true if another one is kept beside this many.
    fn takes(self, count: usize) -> bool {
        match self {
            Keep::All(_) => true,
            Keep::First(first) => count < first,
        }
    }
}

/// The operations that a command would change.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// All of them; of a dry run the first [`NAMED`].
    pub(super) operations: Vec<(RecordId, Inspection)>,
    /// The number of those that match.
    pub(super) count: usize,
    /// Ids whose record could not be read: it is not known if they match.
    pub(super) unreadable: Unreadable,
    /// True for the next part of a change in parts.
    is_part: bool,
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
        matches: impl FnMut(&Found) -> bool,
    ) -> Result<Plan, Failure> {
        let keep = if mode.dry_run { Keep::First(NAMED) } else { Keep::All(MOST) };
        Plan::search(session, keep, at_most, expired, matches).await
    }

    /// Finds the operations that match, and keeps all of them, also of a dry run.
    ///
    /// # Errors
    /// As for [`find`](Plan::find).
    pub(super) async fn whole(
        session: &Session,
        at_most: Option<usize>,
        matches: impl FnMut(&Found) -> bool,
    ) -> Result<Plan, Failure> {
        Plan::search(session, Keep::All(MOST), at_most, false, matches).await
    }

    async fn search(
        session: &Session,
        keep: Keep,
        at_most: Option<usize>,
        expired: bool,
        mut matches: impl FnMut(&Found) -> bool,
    ) -> Result<Plan, Failure> {
        let mut plan = Plan { is_part: at_most.is_some(), ..Plan::default() };
        let at_most = at_most.unwrap_or(usize::MAX);
        let mut walk = Walk::all(session, "searching");
        while plan.count < at_most
            && let Some(step) = walk.next().await?
        {
            let others = step.expired.into_iter().filter(|_| expired);
            let found = step.found.into_iter().chain(others).filter(|found| matches(found));
            for found in found.take(at_most - plan.count) {
                plan.count += 1;
                if keep.takes(plan.operations.len()) {
                    plan.operations.push((found.id, found.seen));
                }
            }
            plan.unreadable.add(step.unreadable);
            if let Keep::All(most) = keep
                && plan.count > most
            {
                return Err(Failure::Refused(format!(
                    "more than {most} operations match, and nothing was changed: narrow the filters, or go on in \
                     parts by --at-most {most}"
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
        match self.unreadable.count {
            0 if count == 0 => return Err(Failure::NothingFound("no operation matches".to_owned())),
            // Parts must come to an end, and none changes these.
            unreadable if count == 0 && self.is_part => {
                return Err(Failure::NothingFound(format!(
                    "no operation matches, and {unreadable} records cannot be read: see `check`"
                )));
            }
            _ => {}
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
                    Err(error @ Failure::Unreachable(_)) => {
                        bar.suspend(|| journal.unknown(&id.to_string(), &View::of(id, seen)));
                        lost = Some(error);
                    }
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

#[cfg(test)]
mod tests {
    use clap::Parser;
    use nevertwice::{Begin, Request};

    use super::*;
    use crate::args::Cli;
    use crate::session::Access;

    #[tokio::test]
    async fn more_than_are_kept_in_memory_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", dir.path().join("keys.db").display());
        let cli = Cli::try_parse_from(["nevertwice", "list", "--store", &url]).unwrap();
        let session = Session::open(&cli.global, Access::Create).await.unwrap();
        for key in ["a", "b", "c"] {
            let begun = session.engine.begin(&Request::new("s", key).unwrap()).await.unwrap();
            let Begin::Acquired(lease) = begun else { panic!("{key} is not new") };
            lease.complete("done").await.unwrap();
        }
        let search = async |keep, at_most| Plan::search(&session, keep, at_most, false, |_| true).await;
        let kept = async |keep, at_most| {
            let plan = search(keep, at_most).await.unwrap();
            (plan.count, plan.operations.len())
        };
        let refused = search(Keep::All(2), None).await;
        assert!(
            matches!(&refused, Err(Failure::Refused(text)) if text.contains("more than 2")),
            "{refused:?}"
        );
        assert!(search(Keep::All(2), Some(3)).await.is_err());
        assert_eq!(kept(Keep::All(2), Some(2)).await, (2, 2));
        assert_eq!(kept(Keep::All(3), None).await, (3, 3));
        // A dry run counts all.
        assert_eq!(kept(Keep::First(2), None).await, (3, 2));
    }
}
