//! `forget`: removes records.

use std::time::Duration;

use clap::Args;
use nevertwice::store::{Snapshot, Swap, SwapRequest};
use nevertwice::{Inspection, RecordId, Stamp, StateKind};
use serde_json::{Value, json};

use super::bulk::Plan;
use super::change::{Change, Mode, changed, told_if_lost};
use crate::args::Global;
use crate::failure::{Failure, or_no_reader};
use crate::journal::Journal;
use crate::output::time;
use crate::select::{Matcher, Target};
use crate::session::Session;
use crate::view::View;
use crate::walk::Found;

/// The number of times that a removal is tried.
const TRIES: usize = 3;

/// Removes the record of one operation, or of all that the filters match, finished ones included:
/// --scope erases a tenant. The next begin of each executes. A record that changed since it was
/// shown is left as it is. In bulk, operations whose lease runs are refused (with --at-most, once
/// nothing else is left), and records that cannot be read are left alone.
#[derive(Debug, Args)]
pub struct Forget {
    #[command(flatten)]
    change: Change,
}

impl Forget {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let target = self.change.target()?;
        let (session, mode) = (self.change.consent.open(global).await?, self.change.consent.mode(global));
        match target {
            Target::One(id) => self.one(&session, mode, id).await,
            Target::Many(matcher) => self.many(&session, mode, &matcher).await,
        }
    }

    async fn many(&self, session: &Session, mode: Mode, matcher: &Matcher) -> Result<(), Failure> {
        // What has expired is still there until it is purged, and a tenant is erased with it.
        let select = &self.change.select;
        let expired = select.state.is_none() && select.reason.is_none();
        let at_most = self.change.at_most();
        // Every part would find the same leases, and the part for which there is nothing else would
        // never come.
        let (skips, mut skipped) = (at_most.is_some(), 0_u64);
        let matches = |found: &Found| {
            let skip = skips && running(&found.seen).is_some() && matcher.matches(&found.seen);
            skipped += u64::from(skip);
            !skip && matcher.matches(&found.seen)
        };
        let plan = Plan::find(session, mode, at_most, expired, matches).await?;
        if plan.count == 0 && skipped > 0 {
            return Err(Failure::Refused(format!(
                "{skipped} operations have a lease that runs, and nothing else is left: repeat the command when it has ended"
            )));
        }
        let doing = "forget, so that the next begin executes";
        let change = async |id: &RecordId, shown: &Inspection| {
            if let Some(left) = shown.lease_remaining.filter(|left| !left.is_zero()) {
                let left = time(left);
                return Err(Failure::Refused(format!(
                    "its lease runs for {left}: repeat the command after that"
                )));
            }
            // One that is gone already is erased.
            remove(session, id, shown.stamp).await?;
            Ok(Value::Null)
        };
        plan.carry_out(mode, &Journal::new("forget"), doing, change).await
    }

    async fn one(&self, session: &Session, mode: Mode, id: RecordId) -> Result<(), Failure> {
        let (shown, before, warning) = match self.change.show(session, mode, &id).await {
            Ok(seen) => (Some(seen.stamp), json!(View::of(&id, &seen)), consequence(&seen)),
            Err(Failure::Corrupt(error)) => {
                self.change.expect(None)?;
                let warning = "It cannot be read: its effect may have happened, and the next begin executes";
                (None, json!({ "unreadable": error }), warning.to_owned())
            }
            Err(error) => return Err(error),
        };
        if mode.dry_run {
            if mode.output.json {
                return mode.output.json(&json!({ "dry_run": true, "then": warning, "before": before }));
            }
            return mode.output.line(&format!("dry run, nothing was changed. {warning}."));
        }
        mode.confirm(&format!("{warning}. Remove the record?"))?;
        let removed = match shown {
            Some(stamp) => remove(session, &id, stamp).await,
            None => discard(session, &id).await,
        };
        let existed = told_if_lost(removed, "forget", &id, &before)?;
        if !existed {
            return Err(Failure::NothingFound(format!("there is no record of {id} any more")));
        }
        Journal::new("forget").removed(&id.to_string(), &before);
        or_no_reader(match mode.output.json {
            true => mode.output.json(&json!({ "done": 1 })),
            false => mode.output.line("done: the next begin executes"),
        })
    }
}

/// Removes the record with this stamp, and returns false if there is none any more. Another one is
/// left as it is.
async fn remove(session: &Session, id: &RecordId, stamp: Stamp) -> Result<bool, Failure> {
    let swap = SwapRequest { id: *id, expected: Some(stamp), next: None };
    let mut last = None;
    for tries in 1..=TRIES {
        match tokio::time::timeout(session.timeout(), session.store.swap(&swap)).await {
            Ok(Ok(Swap::Done(_))) => return Ok(true),
            // An earlier try, whose answer was lost, has most likely removed it.
            Ok(Ok(Swap::Conflict(Snapshot { record: None, .. }))) => return Ok(tries > 1),
            Ok(Ok(Swap::Conflict(_))) => return Err(changed()),
            Ok(Err(error)) if error.is_transient() => last = Some(error.into()),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {}
        }
    }
    Err(last.unwrap_or_else(|| Failure::Unreachable("no answer in time: see --timeout".to_owned())))
}

/// Removes a record that cannot be read, unless it can be read by now.
async fn discard(session: &Session, id: &RecordId) -> Result<bool, Failure> {
    match session.engine.inspect_id(id).await.map_err(Failure::from) {
        Err(Failure::Corrupt(_)) => Ok(session.engine.forget_id(id).await?),
        Err(error) => Err(error),
        Ok(Some(_)) => Err(changed()),
        Ok(None) => Ok(false),
    }
}

/// Returns the remaining time of a lease that runs.
fn running(seen: &Inspection) -> Option<Duration> {
    seen.lease_remaining.filter(|left| *left > Duration::ZERO)
}

/// Says what the next begin of a forgotten operation does.
fn consequence(seen: &Inspection) -> String {
    match (seen.state, running(seen)) {
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
