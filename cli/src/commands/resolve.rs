//! `resolve`: settles unresolved operations.

use clap::Args;
use nevertwice::{Error, Inspection, Need, RecordId, Resolution};
use serde_json::json;

use super::bulk::Plan;
use super::change::{Change, Mode, after, dry, settled, told_if_lost, why_refused};
use super::settle::Outcome;
use crate::args::Global;
use crate::failure::Failure;
use crate::journal::Journal;
use crate::select::{Matcher, Target};
use crate::session::Session;
use crate::view::View;

/// Settles one unresolved operation, or all that the filters match. Repeating the same resolution
/// is safe. An operation that changed since it was shown is refused.
#[derive(Debug, Args)]
#[command(allow_missing_positional = true)]
pub struct Resolve {
    #[command(flatten)]
    change: Change,
    #[command(flatten)]
    outcome: Outcome,
    /// Refuses if the operation has another fence, as `show` tells it
    #[arg(long)]
    fence: Option<u64>,
}

impl Resolve {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let target = self.change.target()?;
        let resolution = self.outcome.resolution()?;
        if matches!(target, Target::Many(_)) && self.fence.is_some() {
            return Err(Failure::Usage("a fence belongs to one operation".to_owned()));
        }
        let (session, mode) = (self.change.consent.open(global).await?, self.change.consent.mode(global));
        match target {
            Target::One(id) => self.one(&session, mode, id, resolution).await,
            Target::Many(matcher) => self.many(&session, mode, matcher, resolution).await,
        }
    }

    async fn one(
        &self,
        session: &Session,
        mode: Mode,
        id: RecordId,
        resolution: Resolution,
    ) -> Result<(), Failure> {
        let shown = self.change.show(session, mode, &id).await?;
        if self.fence.is_some_and(|fence| fence != shown.fence.0) {
            return Err(Failure::Refused(format!("its fence is {}: it was executed since", shown.fence.0)));
        }
        let consequence = self.outcome.consequence();
        if mode.dry_run {
            return dry(mode.output, &id, &shown, consequence);
        }
        mode.confirm(&format!("Settle it under fence {}: {consequence}?", shown.fence.0))?;
        let change = async {
            resolve(session, &id, &shown, resolution).await?;
            Ok(())
        };
        told_if_lost(change.await, "resolve", &id, &View::of(&id, &shown))?;
        settled(session, mode.output, "resolve", &id, &shown, consequence).await
    }

    async fn many(
        &self,
        session: &Session,
        mode: Mode,
        matcher: Matcher,
        resolution: Resolution,
    ) -> Result<(), Failure> {
        let matcher = Matcher { filter: matcher.filter.need(Need::Operator), ..matcher };
        let plan =
            Plan::find(session, mode, self.change.at_most(), false, |found| matcher.matches(&found.seen))
                .await?;
        let doing = format!("resolve as {:?}", self.outcome.outcome).to_lowercase();
        let journal = Journal::new("resolve");
        let change = async |id: &RecordId, shown: &Inspection| {
            resolve(session, id, shown, resolution.clone()).await?;
            Ok(json!(after(session, id).await))
        };
        plan.carry_out(mode, &journal, &doing, change).await
    }
}

/// Settles an operation, unless it is not as it was shown.
pub(super) async fn resolve(
    session: &Session,
    id: &RecordId,
    shown: &Inspection,
    resolution: Resolution,
) -> Result<(), Failure> {
    match session.engine.resolve_shown(id, shown, resolution).await {
        Err(error @ Error::NotResolvable { .. }) => Err(why_refused(session, id, shown, error).await),
        other => Ok(other?),
    }
}
