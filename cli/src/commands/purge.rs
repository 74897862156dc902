//! `purge`: removes expired records.

use clap::Args;
use serde_json::json;

use super::change::Consent;
use crate::args::Global;
use crate::failure::{Failure, or_no_reader};
use crate::journal::Journal;
use crate::output::progress;
use crate::session::{Access, Kind, Session};
use crate::walk::Walk;

/// The number of records that are removed in one call.
const STEP: usize = 1000;

/// Removes expired records, in steps that do not block other callers. Redis removes them by itself.
#[derive(Debug, Args)]
pub struct Purge {
    /// The number of records to remove at most
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    limit: u64,
    #[command(flatten)]
    consent: Consent,
}

impl Purge {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mode = self.consent.mode(global);
        let output = mode.output;
        if mode.dry_run {
            let session = Session::open(global, Access::Read).await?;
            let mut walk = Walk::all(&session, "counting");
            let mut due = 0_u64;
            while let Some(step) = walk.next().await? {
                due += step.expired.len() as u64;
            }
            drop(walk);
            return match output.json {
                true => output.json(&json!({ "dry_run": true, "due": due })),
                false => output.line(&format!("{due} records have expired (dry run: nothing was removed)")),
            };
        }
        let session = Session::open(global, Access::Write).await?;
        mode.confirm("Remove what has expired? `purge --dry-run` counts it.")?;
        let mut removed = 0;
        let ended = self.remove(&session, &mut removed).await;
        let before = json!({ "expired": "unknown" });
        Journal::new("purge").write("expired records", &before, &json!({ "removed": removed }));
        ended?;
        if output.json {
            return or_no_reader(output.json(&json!({ "removed": removed })));
        }
        let redis =
            if matches!(session.kind, Kind::Redis(_)) { "; Redis removes them by itself" } else { "" };
        or_no_reader(output.line(&format!("{removed} expired records removed{redis}")))
    }

    /// Removes step by step, and counts in `removed` also if a later step fails.
    async fn remove(&self, session: &Session, removed: &mut u64) -> Result<(), Failure> {
        let bar = progress("purging");
        while *removed < self.limit {
            let step = usize::try_from(self.limit - *removed).map_or(STEP, |left| left.min(STEP));
            let done = session.engine.purge(step).await?;
            *removed += done;
            bar.set_position(*removed);
            if done < step as u64 {
                break;
            }
        }
        bar.finish_and_clear();
        Ok(())
    }
}
