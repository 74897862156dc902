//! The options and steps that the commands which change something share: [`Change`].

use clap::Args;
use nevertwice::{Inspection, RecordId, Stamp};
use serde::Serialize;
use serde_json::json;

use crate::args::Global;
use crate::confirm::confirm;
use crate::failure::{Failure, or_no_reader};
use crate::journal::Journal;
use crate::output::Output;
use crate::select::{Select, Target};
use crate::session::{Access, Session};
use crate::view::{View, details};

/// The options of a command that changes one operation, or all that the filters match.
#[derive(Debug, Args)]
pub(super) struct Change {
    /// Its id, as `list` and `unresolved` show it
    id: Option<String>,
    #[command(flatten)]
    pub(super) select: Select,
    /// Refuses if the record has another stamp, as `show` tells it: if anything changed since
    #[arg(long)]
    stamp: Option<u64>,
    /// Changes at most this many of those that the filters match: the first that are found
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    at_most: Option<u32>,
    #[command(flatten)]
    pub(super) consent: Consent,
}

/// The options of every command that changes something.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Consent {
    /// Only shows what would be done
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Does not ask
    #[arg(long, short)]
    yes: bool,
}

/// The way in which something is changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mode {
    pub(super) dry_run: bool,
    pub(super) output: Output,
    pub(super) yes: bool,
}

impl Consent {
    pub(super) fn mode(self, global: &Global) -> Mode {
        Mode { dry_run: self.dry_run, yes: self.yes, output: Output { json: global.json } }
    }

    /// Opens the store: for reading only if nothing is to be changed.
    pub(super) async fn open(self, global: &Global) -> Result<Session, Failure> {
        Session::open(global, if self.dry_run { Access::Read } else { Access::Write }).await
    }
}

impl Mode {
    /// Asks, unless the operator said `--yes`. With `--json` nothing was shown that a question
    /// could be about, so that `--yes` is required.
    pub(super) fn confirm(self, question: &str) -> Result<(), Failure> {
        if self.output.json && !self.yes {
            return Err(Failure::Refused(format!(
                "{question} Nothing was changed: with --json, confirm with --yes"
            )));
        }
        confirm(question, self.yes)
    }
}

impl Change {
    /// Returns what is to be changed.
    pub(super) fn target(&self) -> Result<Target, Failure> {
        match self.select.target(self.id.as_deref())? {
            Target::Many(_) if self.stamp.is_some() => {
                Err(Failure::Usage("a stamp belongs to one operation".to_owned()))
            }
            Target::One(_) if self.at_most.is_some() => {
                Err(Failure::Usage("--at-most is for those that the filters match".to_owned()))
            }
            target => Ok(target),
        }
    }

    /// Returns the number of operations to change at most, if the operator gave one.
    pub(super) fn at_most(&self) -> Option<usize> {
        self.at_most.map(|number| number as usize)
    }

    /// Shows the operation that is to be changed, and returns what was shown.
    pub(super) async fn show(
        &self,
        session: &Session,
        mode: Mode,
        id: &RecordId,
    ) -> Result<Inspection, Failure> {
        let Some(seen) = session.engine.inspect_id(id).await? else {
            return Err(Failure::NothingFound(format!(
                "there is no record of {id}: the next begin executes"
            )));
        };
        if !mode.output.json {
            or_no_reader(mode.output.table(&[], details(id, &seen)))?;
        }
        self.expect(Some(seen.stamp))?;
        Ok(seen)
    }

    /// Refuses a record with this stamp if the operator named another one. `None`: it cannot be
    /// read.
    pub(super) fn expect(&self, found: Option<Stamp>) -> Result<(), Failure> {
        match (self.stamp.map(Stamp), found) {
            (None, _) => Ok(()),
            (expected, found) if expected == found => Ok(()),
            (_, Some(found)) => Err(Failure::Refused(format!("its stamp is {}: it changed since", found.0))),
            (_, None) => Err(Failure::Refused(
                "it cannot be read, and its stamp is not known: leave out --stamp".to_owned(),
            )),
        }
    }
}

/// Shows what would be done to one operation.
pub(super) fn dry(
    output: Output,
    id: &RecordId,
    before: &Inspection,
    consequence: &str,
) -> Result<(), Failure> {
    if output.json {
        return output.json(&json!({ "dry_run": true, "then": consequence, "before": View::of(id, before) }));
    }
    output.line(&format!("dry run, nothing was changed; if it were done, {consequence}"))
}

/// Writes the account of a change of one operation.
pub(super) async fn settled(
    session: &Session,
    output: Output,
    command: &'static str,
    id: &RecordId,
    before: &Inspection,
    consequence: &str,
) -> Result<(), Failure> {
    let after = after(session, id).await;
    Journal::new(command).write(&id.to_string(), &View::of(id, before), &after);
    or_no_reader(match output.json {
        true => output.json(&after),
        false => output.line(&format!("done: {consequence}")),
    })
}

/// Writes the line of a change of one operation if its answer is lost: it may have been made.
pub(super) fn told_if_lost<T>(
    changed: Result<T, Failure>,
    command: &'static str,
    id: &RecordId,
    before: &impl Serialize,
) -> Result<T, Failure> {
    if let Err(Failure::Unreachable(_)) = &changed {
        Journal::new(command).unknown(&id.to_string(), before);
    }
    changed
}

/// Returns the state after a change. The change stands, so an error of reading it again is none of
/// the command's.
pub(super) async fn after(session: &Session, id: &RecordId) -> Option<View> {
    session.engine.inspect_id(id).await.ok().flatten().map(|seen| View::of(id, &seen))
}

/// Turns the refusal of a change that goes by what was shown into one that says so, if that is the
/// reason: the record, which is read again, is not what was shown.
pub(super) async fn why_refused(
    session: &Session,
    id: &RecordId,
    shown: &Inspection,
    error: nevertwice::Error,
) -> Failure {
    match session.engine.inspect_id(id).await {
        Ok(now) if now.as_ref().is_none_or(|now| now.stamp != shown.stamp) => changed(),
        _ => error.into(),
    }
}

/// The refusal of an operation that is not as it was shown.
pub(super) fn changed() -> Failure {
    Failure::Refused("it changed since it was shown: look at it again".to_owned())
}
