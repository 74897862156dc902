//! `resolve`: settles unresolved operations.

use clap::Args;
use nevertwice::{Inspection, Need, RecordId, Resolution};
use serde_json::json;

use super::bulk::{Mode, Plan, refuse_if_changed};
use super::settle::Outcome;
use crate::args::Global;
use crate::confirm::confirm;
use crate::failure::{Failure, or_no_reader};
use crate::journal::Journal;
use crate::output::Output;
use crate::select::{Matcher, Select, Target};
use crate::session::{Access, Session};
use crate::view::{View, details};

/// Settles one unresolved operation, or all that the filters match. Repeating the same resolution
/// is safe. An operation that changed since it was shown is refused.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct Resolve {
    /// Its id, as `unresolved` shows it
    id: Option<String>,
    #[command(flatten)]
    outcome: Outcome,
    #[command(flatten)]
    select: Select,
    /// Refuses if the operation has another fence, as `show` tells it
    #[arg(long)]
    fence: Option<u64>,
    /// Refuses if the record has another stamp, as `show` tells it: if anything changed since
    #[arg(long)]
    stamp: Option<u64>,
    /// Only shows what would be done
    #[arg(long)]
    dry_run: bool,
    /// Does not ask
    #[arg(long, short)]
    yes: bool,
}

impl Resolve {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let target = self.select.target(self.id.as_deref())?;
        let resolution = self.outcome.resolution()?;
        let session = Session::open(global, if self.dry_run { Access::Read } else { Access::Write }).await?;
        let mode = Mode { dry_run: self.dry_run, yes: self.yes, output: Output { json: global.json } };
        match target {
            Target::One(id) => self.one(&session, mode, id, resolution).await,
            Target::Many(matcher) if self.fence.is_none() && self.stamp.is_none() => {
                self.many(&session, mode, matcher, resolution).await
            }
            Target::Many(_) => Err(Failure::Usage("a fence or stamp belongs to one operation".to_owned())),
        }
    }

    async fn one(
        &self,
        session: &Session,
        mode: Mode,
        id: RecordId,
        resolution: Resolution,
    ) -> Result<(), Failure> {
        let Some(before) = session.engine.inspect_id(&id).await? else {
            return Err(Failure::NothingFound(format!(
                "there is no record of {id}: the next begin executes"
            )));
        };
        if !mode.output.json {
            or_no_reader(mode.output.table(&[], details(&id, &before)))?;
        }
        if self.fence.is_some_and(|fence| fence != before.fence.0) {
            return Err(Failure::Refused(format!("its fence is {}: it was executed since", before.fence.0)));
        }
        if self.stamp.is_some_and(|stamp| stamp != before.stamp.0) {
            return Err(Failure::Refused(format!("its stamp is {}: it changed since", before.stamp.0)));
        }
        let consequence = self.outcome.consequence();
        if mode.dry_run {
            return dry(mode.output, &id, &before, consequence);
        }
        confirm(&format!("Settle it under fence {}: {consequence}?", before.fence.0), mode.yes)?;
        refuse_if_changed(session, &id, &before).await?;
        session.engine.resolve_id(&id, before.fence, resolution).await?;
        settled(session, mode.output, "resolve", &id, &before, consequence).await
    }

    async fn many(
        &self,
        session: &Session,
        mode: Mode,
        matcher: Matcher,
        resolution: Resolution,
    ) -> Result<(), Failure> {
        let matcher = Matcher { filter: matcher.filter.need(Need::Operator), ..matcher };
        let plan = Plan::find(session, false, |seen| matcher.matches(seen)).await?;
        let doing = format!("resolve as {:?}", self.outcome.outcome).to_lowercase();
        let journal = Journal::new("resolve");
        let change = async |id: &RecordId, seen: &Inspection| {
            refuse_if_changed(session, id, seen).await?;
            session.engine.resolve_id(id, seen.fence, resolution.clone()).await?;
            Ok(json!(after(session, id).await))
        };
        plan.carry_out(mode, &journal, &doing, change).await
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

/// Returns the state after a change. The change stands, so an error of reading it again is none of
/// the command's.
pub(super) async fn after(session: &Session, id: &RecordId) -> Option<View> {
    session.engine.inspect_id(id).await.ok().flatten().map(|seen| View::of(id, &seen))
}
