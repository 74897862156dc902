//! `amend`: corrects an earlier resolution.

use clap::Args;
use nevertwice::{Amendment, Error, Inspection, RecordId};
use serde_json::json;

use super::bulk::Plan;
use super::change::{Change, Mode, after, dry, settled, why_refused};
use super::settle::{Outcome, OutcomeName};
use crate::args::Global;
use crate::failure::Failure;
use crate::journal::Journal;
use crate::select::{Matcher, Target};
use crate::session::Session;

/// Corrects an operator's earlier resolution of one operation, or of all that the filters match. An
/// outcome that an application recorded is refused. Duplicates may have received the earlier
/// outcome.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct Amend {
    #[command(flatten)]
    change: Change,
    #[command(flatten)]
    outcome: Outcome,
}

impl Amend {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let target = self.change.target()?;
        let amendment = self.amendment()?;
        let (session, mode) = (self.change.consent.open(global).await?, self.change.consent.mode(global));
        match target {
            Target::One(id) => self.one(&session, mode, id, amendment).await,
            Target::Many(matcher) => self.many(&session, mode, matcher, amendment).await,
        }
    }

    async fn one(
        &self,
        session: &Session,
        mode: Mode,
        id: RecordId,
        amendment: Amendment,
    ) -> Result<(), Failure> {
        let shown = self.change.show(session, mode, &id).await?;
        if !shown.resolved {
            return Err(Failure::Refused("no operator has settled it: there is nothing to amend".to_owned()));
        }
        let consequence = self.outcome.consequence();
        if mode.dry_run {
            return dry(mode.output, &id, &shown, consequence);
        }
        let question = "Duplicates may have received the earlier outcome. Amend it";
        mode.confirm(&format!("{question}: {consequence}?"))?;
        amend(session, &id, &shown, amendment).await?;
        settled(session, mode.output, "amend", &id, &shown, consequence).await
    }

    async fn many(
        &self,
        session: &Session,
        mode: Mode,
        matcher: Matcher,
        amendment: Amendment,
    ) -> Result<(), Failure> {
        let matches = |seen: &Inspection| seen.resolved && matcher.matches(seen);
        let plan = Plan::find(session, mode, self.change.at_most(), false, matches).await?;
        let doing = format!("amend to {:?}", self.outcome.outcome).to_lowercase();
        let journal = Journal::new("amend");
        let change = async |id: &RecordId, shown: &Inspection| {
            amend(session, id, shown, amendment.clone()).await?;
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

/// Amends an operation, unless it is not as it was shown.
async fn amend(
    session: &Session,
    id: &RecordId,
    shown: &Inspection,
    amendment: Amendment,
) -> Result<(), Failure> {
    match session.engine.amend_id(id, shown.stamp, amendment).await {
        Err(error @ Error::NotAmendable { .. }) => Err(why_refused(session, id, shown, error).await),
        other => Ok(other?),
    }
}
