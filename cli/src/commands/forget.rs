//! `forget`: removes records.

use std::time::Duration;

use clap::Args;
use nevertwice::store::{Snapshot, Swap, SwapRequest};
use nevertwice::{Error, Inspection, RecordId, StateKind, StoreError};
use serde_json::{Value, json};

use super::bulk::{Mode, Plan};
use crate::args::Global;
use crate::confirm::confirm;
use crate::failure::Failure;
use crate::journal::Journal;
use crate::output::{Output, time};
use crate::select::{Matcher, Select, Target};
use crate::session::{Access, Session};
use crate::view::{View, details};

/// The number of times that a removal is tried.
const TRIES: usize = 3;

/// Removes the record of one operation, or of all that the filters match, finished ones included:
/// --scope erases a tenant. The next begin of each executes. In bulk, operations whose lease runs
/// are refused, and records that cannot be read are left alone.
#[derive(Debug, Args)]
pub struct Forget {
    /// Its id, as `list` shows it; also that of a record that cannot be read
    id: Option<String>,
    #[command(flatten)]
    select: Select,
    /// Only shows what would be done
    #[arg(long)]
    dry_run: bool,
    /// Does not ask
    #[arg(long, short)]
    yes: bool,
}

impl Forget {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let target = self.select.target(self.id.as_deref())?;
        let session = Session::open(global, if self.dry_run { Access::Read } else { Access::Write }).await?;
        let mode = Mode { dry_run: self.dry_run, yes: self.yes, output: Output { json: global.json } };
        match target {
            Target::One(id) => one(&session, mode, id).await,
            Target::Many(matcher) => self.many(&session, mode, &matcher).await,
        }
    }

    async fn many(&self, session: &Session, mode: Mode, matcher: &Matcher) -> Result<(), Failure> {
        // What has expired is still there until it is purged, and a tenant is erased with it.
        let expired = self.select.state.is_none() && self.select.reason.is_none();
        let plan = Plan::find(session, expired, |seen| matcher.matches(seen)).await?;
        let doing = "forget, so that the next begin executes";
        let change = async |id: &RecordId, seen: &Inspection| {
            remove(session, id, seen).await?;
            Ok(Value::Null)
        };
        plan.carry_out(mode, &Journal::new("forget"), doing, change).await
    }
}

async fn one(session: &Session, mode: Mode, id: RecordId) -> Result<(), Failure> {
    let (before, warning) = match session.engine.inspect_id(&id).await {
        Ok(Some(seen)) => {
            if !mode.output.json {
                mode.output.table(&[], details(&id, &seen))?;
            }
            (json!(View::of(&id, &seen)), consequence(&seen))
        }
        Ok(None) => return Err(Failure::NothingFound(format!("there is no record of {id}"))),
        Err(Error::Store(error @ StoreError::Corrupt { .. })) => {
            let warning = "It cannot be read: its effect may have happened, and the next begin executes";
            (json!({ "unreadable": error.to_string() }), warning.to_owned())
        }
        Err(error) => return Err(error.into()),
    };
    if mode.dry_run {
        if mode.output.json {
            return mode.output.json(&json!({ "dry_run": true, "then": warning, "before": before }));
        }
        return mode.output.line(&format!("dry run, nothing was changed. {warning}."));
    }
    confirm(&format!("{warning}. Remove the record?"), mode.yes)?;
    if !session.engine.forget_id(&id).await? {
        return Err(Failure::NothingFound(format!("there is no record of {id} any more")));
    }
    Journal::new("forget").removed(&id.to_string(), &before);
    if mode.output.json {
        return mode.output.json(&json!({ "done": 1 }));
    }
    mode.output.line("done: the next begin executes")
}

/// Removes a record if it is still as it was found, and its lease does not run.
async fn remove(session: &Session, id: &RecordId, seen: &Inspection) -> Result<(), Failure> {
    if let Some(left) = seen.lease_remaining.filter(|left| *left > Duration::ZERO && !seen.kept_for.is_zero())
    {
        let left = time(left);
        return Err(Failure::Refused(format!("its lease runs for {left}: repeat the command after that")));
    }
    let swap = SwapRequest { id: *id, expected: Some(seen.stamp), next: None };
    let mut last = None;
    for _ in 0..TRIES {
        match tokio::time::timeout(session.timeout(), session.store.swap(&swap)).await {
            // Without a record an earlier try has removed it.
            Ok(Ok(Swap::Done(_) | Swap::Conflict(Snapshot { record: None, .. }))) => return Ok(()),
            Ok(Ok(Swap::Conflict(_))) => {
                return Err(Failure::Refused("it changed since it was found".to_owned()));
            }
            Ok(Err(error)) if error.is_transient() => last = Some(error.into()),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {}
        }
    }
    Err(last.unwrap_or_else(|| Failure::Unreachable("no answer in time: see --timeout".to_owned())))
}

/// Says what the next begin of a forgotten operation does.
fn consequence(seen: &Inspection) -> String {
    let running = seen.lease_remaining.filter(|left| *left > Duration::ZERO);
    match (seen.state, running) {
        (_, Some(left)) => format!(
            "Its lease runs for {}: its holder goes on, and the next begin executes beside it",
            time(left)
        ),
        (StateKind::Completed, _) => "It was done: the next begin executes it a second time".to_owned(),
        _ if seen.unresolved || seen.effect_marked => {
            "Its effect may have happened: the next begin executes it, perhaps a second time".to_owned()
        }
        _ => "The next begin executes it".to_owned(),
    }
}
