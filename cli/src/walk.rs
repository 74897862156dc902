//! A walk over the records of a store: [`Walk`].

use std::collections::HashSet;
use std::time::Duration;

use indicatif::ProgressBar;
use nevertwice::store::{Cursor, Record};
use nevertwice::{Inspection, RecordId, Request, Stamp};

use crate::failure::Failure;
use crate::output::{Output, progress};
use crate::session::{Kind, Session};

/// The number of ids and the like that an answer names at most.
pub(crate) const NAMED: usize = 1000;
/// The number of ids of a Redis store that are compared, at some 40 bytes each. Of a larger store a
/// record may be met twice, while the server resizes its table.
const COMPARED: usize = 2_000_000;
/// The number of records that are read at once.
const PAGE: usize = 500;

/// A walk over the records of a store, page by page. The purgers' own operation is left out.
pub(crate) struct Walk<'a> {
    session: &'a Session,
    evidence: bool,
    limit: usize,
    after: Option<Cursor>,
    is_over: bool,
    purger: Option<RecordId>,
    /// The ids of a store that may return one twice.
    seen: Option<HashSet<RecordId>>,
    bar: ProgressBar,
}

/// A record that was found, with its inspection.
pub(crate) struct Found {
    pub(crate) id: RecordId,
    pub(crate) record: Record,
    pub(crate) seen: Inspection,
}

/// A page of a walk.
pub(crate) struct Step {
    pub(crate) found: Vec<Found>,
    pub(crate) unreadable: Vec<RecordId>,
    /// Expired records that were not removed yet: each in the state in which it was written, and
    /// kept for no time any more.
    pub(crate) expired: Vec<Found>,
    /// The store's time.
    pub(crate) now: Stamp,
}

impl<'a> Walk<'a> {
    /// A walk over all records, shown on a terminal under this title.
    pub(crate) fn all(session: &'a Session, title: &'static str) -> Walk<'a> {
        let purger = Request::new(["nevertwice", "background"], "purge").ok().map(|request| request.id());
        let seen = matches!(session.kind, Kind::Redis(_)).then(HashSet::new);
        let bar = progress(title);
        Walk { session, evidence: false, limit: PAGE, after: None, is_over: false, purger, seen, bar }
    }

    /// The same, over those that may be evidence of an effect only.
    pub(crate) fn evidence(mut self) -> Walk<'a> {
        self.evidence = true;
        self
    }

    /// The same, from this position on, in pages of this size.
    pub(crate) fn from(mut self, after: Option<Cursor>, limit: usize) -> Walk<'a> {
        self.after = after;
        self.limit = limit.clamp(1, PAGE);
        self
    }

    /// The position at which to go on; `None` once the walk is over.
    pub(crate) fn position(&self) -> Option<&Cursor> {
        self.after.as_ref()
    }

    /// Reads the next page; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Step>, Failure> {
        if self.is_over {
            self.bar.finish_and_clear();
            return Ok(None);
        }
        let page = self.session.page(self.evidence, self.after.as_ref(), self.limit).await?;
        self.after = page.next;
        self.is_over = self.after.is_none();
        self.bar.inc(page.records.len() as u64);
        let unreadable = page.unreadable.into_iter().filter(|id| !self.is_again(*id)).collect();
        let mut step = Step { found: Vec::new(), unreadable, expired: Vec::new(), now: page.now };
        for (id, record) in page.records {
            if self.purger == Some(id) || self.is_again(id) {
                continue;
            }
            match self.session.engine.inspection(record.clone(), page.now) {
                Some(seen) => step.found.push(Found { id, record, seen }),
                None => {
                    let seen = expired(self.session, &record, page.now);
                    step.expired.extend(seen.map(|seen| Found { id, record, seen }));
                }
            }
        }
        Ok(Some(step))
    }

    /// Returns true if this record was met before.
    fn is_again(&mut self, id: RecordId) -> bool {
        self.seen.as_mut().is_some_and(|seen| match seen.len() < COMPARED {
            true => !seen.insert(id),
            false => seen.contains(&id),
        })
    }
}

/// The records that could not be read: their number, and the first [`NAMED`] of them.
#[derive(Debug, Default)]
pub(crate) struct Unreadable {
    pub(crate) count: u64,
    first: Vec<RecordId>,
}

impl Unreadable {
    pub(crate) fn add(&mut self, ids: Vec<RecordId>) {
        self.count += ids.len() as u64;
        self.first.extend(ids.into_iter().take(NAMED - self.first.len()));
    }

    /// Returns the first ids, for JSON.
    pub(crate) fn names(&self) -> Vec<String> {
        self.first.iter().map(ToString::to_string).collect()
    }

    /// Writes a line for each of the first.
    pub(crate) fn show(&self, output: Output) -> Result<(), Failure> {
        for id in &self.first {
            output.line(&format!("unreadable: {id} (see `check`; `forget` removes it)"))?;
        }
        match self.count.saturating_sub(self.first.len() as u64) {
            0 => Ok(()),
            more => output.line(&format!("unreadable: {more} more")),
        }
    }
}

/// Returns the inspection of a record that has expired at `now`.
fn expired(session: &Session, record: &Record, now: Stamp) -> Option<Inspection> {
    let mut kept = record.clone();
    // One that is kept for no time counts as absent from its start.
    kept.retention = kept.retention.max(Duration::from_secs(1));
    let mut seen = session.engine.inspection(kept, record.stamp)?;
    let passed = now.since(record.stamp);
    (seen.age, seen.granted_ago) = (passed, now.since(record.fence));
    seen.lease_remaining = seen.lease_remaining.map(|left| left.saturating_sub(passed));
    seen.kept_for = Duration::ZERO;
    Some(seen)
}

impl Drop for Walk<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
