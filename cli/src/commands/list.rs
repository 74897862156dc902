//! `list`: operations, page by page.

use std::cmp::Reverse;

use clap::Args;
use nevertwice::Cursor;
use serde_json::json;

use crate::args::Global;
use crate::failure::Failure;
use crate::output::Output;
use crate::select::Select;
use crate::session::{Access, Session};
use crate::view::{COLUMNS, View, row};
use crate::walk::{Found, Unreadable, Walk};

/// Lists operations in the store's own order. Within a page, those unchanged for the longest time
/// come first.
#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    select: Select,
    /// About how many operations to list: whole pages are
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// The position to continue from, which the page before ended with
    #[arg(long, value_name = "POSITION")]
    after: Option<String>,
}

impl List {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        if self.select.key.is_some() {
            return Err(Failure::Usage("one operation is shown by `show`".to_owned()));
        }
        let matcher = self.select.matcher()?;
        let after = self.after.as_deref().map(hex::decode).transpose();
        let after =
            after.map_err(|_| Failure::Usage("--after is not a position that `list` shows".to_owned()))?;
        let session = Session::open(global, Access::Read).await?;
        let limit = self.limit as usize;
        let mut walk = Walk::all(&session, "listing").from(after.map(Cursor), limit);
        let (mut found, mut unreadable) = (Vec::new(), Unreadable::default());
        while found.len() < limit
            && let Some(mut step) = walk.next().await?
        {
            step.found.retain(|found| matcher.matches(&found.seen));
            found.append(&mut step.found);
            unreadable.add(step.unreadable);
        }
        found.sort_by_key(|found| Reverse(found.seen.age));
        let next = walk.position().map(|next| hex::encode(&next.0));
        drop(walk);
        let written = write(Output { json: global.json }, &found, &unreadable, next.as_deref());
        if found.is_empty() && unreadable.count == 0 && next.is_none() {
            return Err(Failure::NothingFound("no such operation".to_owned()));
        }
        written
    }
}

fn write(
    output: Output,
    found: &[Found],
    unreadable: &Unreadable,
    next: Option<&str>,
) -> Result<(), Failure> {
    if output.json {
        let operations: Vec<View> = found.iter().map(|found| View::of(&found.id, &found.seen)).collect();
        return output
            .json(&json!({ "operations": operations, "unreadable": unreadable.names(), "next": next }));
    }
    if !found.is_empty() {
        output.table(&COLUMNS, found.iter().map(|found| row(&found.id, &found.seen)).collect())?;
    }
    unreadable.show(output)?;
    if let Some(next) = next {
        output.line(&format!("more: --after {next}"))?;
    }
    Ok(())
}
