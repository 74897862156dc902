//! `amend`: corrects an earlier resolution.

use clap::Args;
use nevertwice::store::{Record, State};
use nevertwice::{Amendment, Body, Error, Inspection, RecordId, Resolution, Retry};
use serde_json::json;

use super::bulk::Plan;
use super::change::{Change, Mode, after, dry, settled, told_if_lost, why_refused};
use super::settle::{Outcome, OutcomeName};
use crate::args::Global;
use crate::failure::Failure;
use crate::journal::Journal;
use crate::select::{Matcher, Target};
use crate::session::Session;
use crate::view::View;
use crate::walk::Found;

/// Corrects an operator's earlier resolution of one operation, or of all that the filters match but
/// those that have this outcome already. An outcome that an application recorded is refused.
/// Duplicates may have received the earlier outcome.
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
        let resolution = self.outcome.resolution()?;
        let (session, mode) = (self.change.consent.open(global).await?, self.change.consent.mode(global));
        match target {
            Target::One(id) => self.one(&session, mode, id, self.amendment(resolution)).await,
            Target::Many(matcher) => self.many(&session, mode, matcher, resolution).await,
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
        let changed = amend(session, &id, &shown, amendment).await;
        told_if_lost(changed, "amend", &id, &View::of(&id, &shown))?;
        settled(session, mode.output, "amend", &id, &shown, consequence).await
    }

    async fn many(
        &self,
        session: &Session,
        mode: Mode,
        matcher: Matcher,
        resolution: Resolution,
    ) -> Result<(), Failure> {
        // Those that are as asked already would be found again by each part of a change in parts.
        let matches = |found: &Found| {
            found.seen.resolved && matcher.matches(&found.seen) && !has(&found.record, &resolution)
        };
        let plan = Plan::find(session, mode, self.change.at_most(), false, matches).await?;
        let doing = format!("amend to {:?}", self.outcome.outcome).to_lowercase();
        let (journal, amendment) = (Journal::new("amend"), self.amendment(resolution));
        let change = async |id: &RecordId, shown: &Inspection| {
            amend(session, id, shown, amendment.clone()).await?;
            Ok(json!(after(session, id).await))
        };
        plan.carry_out(mode, &journal, &doing, change).await
    }

    fn amendment(&self, resolution: Resolution) -> Amendment {
        // The operator wrote `rerun`, and is told about duplicates before it is done.
        if self.outcome.outcome == OutcomeName::Rerun { Amendment::rerun() } else { resolution.into() }
    }
}

/// Returns true if a record has this outcome already.
fn has(record: &Record, outcome: &Resolution) -> bool {
    match (&record.state, outcome) {
        (State::Completed(body), Resolution::Completed(other))
        | (State::Failed(body, Retry::Never), Resolution::Failed(other)) => is_same(body, other),
        (State::Failed(_, Retry::Now), Resolution::Rerun) => true,
        _ => false,
    }
}

/// Returns true if both bodies are the same, also once the bytes of the recorded one were dropped.
fn is_same(recorded: &Body, wanted: &Body) -> bool {
    match wanted.bytes() {
        Some(bytes) if recorded.is_omitted() => {
            *recorded == Body::new(bytes.clone(), 0).with_head(wanted.head())
        }
        _ => recorded == wanted,
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
