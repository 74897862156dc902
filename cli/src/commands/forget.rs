//! `forget`: removes records.

use std::time::Duration;

use clap::Args;
use nevertwice::store::{Snapshot, Swap, SwapRequest};
use nevertwice::{Error, Inspection, RecordId, Stamp, StateKind, StoreError};
use serde_json::{Value, json};

use super::bulk::{Mode, Plan, changed};
use crate::args::Global;
use crate::confirm::confirm;
use crate::failure::{Failure, or_no_reader};
use crate::journal::Journal;
use crate::output::{Output, time};
use crate::select::{Matcher, Select, Target};
use crate::session::{Access, Session};
use crate::view::{View, details};

/// The number of times that a removal is tried.
const TRIES: usize = 3;

/// Removes the record of one operation, or of all that the filters match, finished ones included:
/// --scope erases a tenant. The next begin of each executes. A record that changed since it was
/// shown is left as it is. In bulk, operations whose lease runs are refused, and records that
/// cannot be read are left alone.
#[derive(Debug, Args)]
pub struct Forget {
    /// Its id, as `list` shows it; also that of a record that cannot be read
    id: Option<String>,
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

impl Forget {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let target = self.select.target(self.id.as_deref())?;
        let session = Session::open(global, if self.dry_run { Access::Read } else { Access::Write }).await?;
        let mode = Mode { dry_run: self.dry_run, yes: self.yes, output: Output { json: global.json } };
        match target {
            Target::One(id) => self.one(&session, mode, id).await,
            Target::Many(matcher) if self.stamp.is_none() => self.many(&session, mode, &matcher).await,
            Target::Many(_) => Err(Failure::Usage("a stamp belongs to one operation".to_owned())),
        }
    }

    async fn many(&self, session: &Session, mode: Mode, matcher: &Matcher) -> Result<(), Failure> {
        // What has expired is still there until it is purged, and a tenant is erased with it.
        let expired = self.select.state.is_none() && self.select.reason.is_none();
        let plan = Plan::find(session, expired, |seen| matcher.matches(seen)).await?;
        let doing = "forget, so that the next begin executes";
        let change = async |id: &RecordId, seen: &Inspection| {
            if let Some(left) = seen.lease_remaining.filter(|left| !left.is_zero()) {
                let left = time(left);
                return Err(Failure::Refused(format!(
                    "its lease runs for {left}: repeat the command after that"
                )));
            }
            // One that is gone already is erased.
            remove(session, id, seen.stamp).await?;
            Ok(Value::Null)
        };
        plan.carry_out(mode, &Journal::new("forget"), doing, change).await
    }

    async fn one(&self, session: &Session, mode: Mode, id: RecordId) -> Result<(), Failure> {
        let (shown, before, warning) = match session.engine.inspect_id(&id).await {
            Ok(Some(seen)) => {
                if !mode.output.json {
                    or_no_reader(mode.output.table(&[], details(&id, &seen)))?;
                }
                (Some(seen.stamp), json!(View::of(&id, &seen)), consequence(&seen))
            }
            Ok(None) => return Err(Failure::NothingFound(format!("there is no record of {id}"))),
            Err(Error::Store(error @ StoreError::Corrupt { .. })) => {
                let warning = "It cannot be read: its effect may have happened, and the next begin executes";
                (None, json!({ "unreadable": error.to_string() }), warning.to_owned())
            }
            Err(error) => return Err(error.into()),
        };
        if self.stamp.is_some_and(|stamp| shown != Some(Stamp(stamp))) {
            return Err(Failure::Refused(match shown {
                Some(stamp) => format!("its stamp is {}: it changed since", stamp.0),
                None => "it cannot be read, and its stamp is not known: leave out --stamp".to_owned(),
            }));
        }
        if mode.dry_run {
            if mode.output.json {
                return mode.output.json(&json!({ "dry_run": true, "then": warning, "before": before }));
            }
            return mode.output.line(&format!("dry run, nothing was changed. {warning}."));
        }
        confirm(&format!("{warning}. Remove the record?"), mode.yes)?;
        let existed = match shown {
            Some(stamp) => remove(session, &id, stamp).await?,
            None => discard(session, &id).await?,
        };
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
    match session.engine.inspect_id(id).await {
        Err(Error::Store(StoreError::Corrupt { .. })) => Ok(session.engine.forget_id(id).await?),
        Err(error) => Err(error.into()),
        Ok(Some(_)) => Err(changed()),
        Ok(None) => Ok(false),
    }
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
