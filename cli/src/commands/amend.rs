//! `amend`: corrects an earlier resolution.

use clap::Args;
use nevertwice::{Amendment, Inspection, RecordId};
use serde_json::json;

use super::bulk::{Mode, Plan};
use super::resolve::{after, dry, settled};
use super::settle::{Outcome, OutcomeName};
use crate::args::Global;
use crate::confirm::confirm;
use crate::failure::{Failure, or_no_reader};
use crate::journal::Journal;
use crate::output::Output;
use crate::select::{Matcher, Select, Target};
use crate::session::{Access, Session};
use crate::view::details;

/// Corrects an operator's earlier resolution of one operation, or of all that the filters match. An
/// outcome that an application recorded is refused. Duplicates may have received the earlier
/// outcome.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct Amend {
    /// Its id
    id: Option<String>,
    #[command(flatten)]
    outcome: Outcome,
    #[command(flatten)]
    select: Select,
    /// Refuses if the record has another stamp, as `show` tells it
    #[arg(long)]
    stamp: Option<u64>,
    /// Only shows what would be done
    #[arg(long)]
    dry_run: bool,
    /// Does not ask
    #[arg(long, short)]
    yes: bool,
}

impl Amend {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let target = self.select.target(self.id.as_deref())?;
        let amendment = self.amendment()?;
        let session = Session::open(global, if self.dry_run { Access::Read } else { Access::Write }).await?;
        let mode = Mode { dry_run: self.dry_run, yes: self.yes, output: Output { json: global.json } };
        match target {
            Target::One(id) => self.one(&session, mode, id, amendment).await,
            Target::Many(matcher) if self.stamp.is_none() => {
                self.many(&session, mode, matcher, amendment).await
            }
            Target::Many(_) => Err(Failure::Usage("a stamp belongs to one operation".to_owned())),
        }
    }

    async fn one(
        &self,
        session: &Session,
        mode: Mode,
        id: RecordId,
        amendment: Amendment,
    ) -> Result<(), Failure> {
        let Some(before) = session.engine.inspect_id(&id).await? else {
            return Err(Failure::NothingFound(format!(
                "there is no record of {id}: the next begin executes"
            )));
        };
        if !mode.output.json {
            or_no_reader(mode.output.table(&[], details(&id, &before)))?;
        }
        if self.stamp.is_some_and(|stamp| stamp != before.stamp.0) {
            return Err(Failure::Refused(format!("its stamp is {}: it changed since", before.stamp.0)));
        }
        if !before.resolved {
            return Err(Failure::Refused("no operator has settled it: there is nothing to amend".to_owned()));
        }
        let consequence = self.outcome.consequence();
        if mode.dry_run {
            return dry(mode.output, &id, &before, consequence);
        }
        let question = "Duplicates may have received the earlier outcome. Amend it";
        confirm(&format!("{question}: {consequence}?"), mode.yes)?;
        session.engine.amend_id(&id, before.stamp, amendment).await?;
        settled(session, mode.output, "amend", &id, &before, consequence).await
    }

    async fn many(
        &self,
        session: &Session,
        mode: Mode,
        matcher: Matcher,
        amendment: Amendment,
    ) -> Result<(), Failure> {
        let plan = Plan::find(session, false, |seen| seen.resolved && matcher.matches(seen)).await?;
        let doing = format!("amend to {:?}", self.outcome.outcome).to_lowercase();
        let journal = Journal::new("amend");
        let change = async |id: &RecordId, seen: &Inspection| {
            session.engine.amend_id(id, seen.stamp, amendment.clone()).await?;
            Ok(json!(after(session, id).await))
        };
        plan.carry_out(mode, &journal, &doing, change).await
    }

    fn amendment(&self) -> Result<Amendment, Failure> {
        let resolution = self.outcome.resolution()?;
        // The operator wrote `rerun`, and is told about duplicates before it is done.
        Ok(if self.outcome.outcome == OutcomeName::Rerun { Amendment::rerun() } else { resolution.into() })
    }
}
