//! The high-water mark, which keeps the time of a file from moving back across removals, restarts
//! and several processes.
//!
//! Two rules hold at every commit of every process:
//!
//! 1. **The mark is at least the stamp of every removed row.** The transaction that removes a row
//!    raises it. A write takes a stamp greater than the mark and than the row it replaces, so no
//!    fence of a key is given twice, whether its row exists or not, and whatever the processes'
//!    clocks say.
//! 2. **No row's stamp is more than [`LAG`] above the mark.** A write that would break this raises
//!    the mark. So the mark costs a page in some commits but not in all, and a process that opens
//!    the file finds there, to within `LAG`, the time reached so far. Every row it reads moves its
//!    time further, and a store that closes sets the mark to its own time.
//!
//! So if the machine restarts with its clock set back, up to `LAG` may be counted twice: a lease
//! that was not taken over ends that much later. A lease that was taken over is never revived,
//! because the row of the takeover shows the time.
//!
//! The time reached since is derived from the [`anchor`](super::anchor), which is maintained here
//! too.

use std::time::Duration;

use rusqlite::Connection;

use super::anchor::{Anchor, Times, taken_over};
use super::error::Result;
use super::rows::Table;
use crate::clock::{Moment, Timeline};
use crate::record::Stamp;

/// The maximum distance of the stamps of a file's rows above its mark.
pub(super) const LAG: Duration = Duration::from_millis(100);

/// The source of stamps for one write transaction, which also maintains the mark.
pub(super) struct HighWater<'a> {
    timeline: &'a Timeline,
    /// The mark in this transaction.
    mark: Stamp,
    /// The greatest stamp given out.
    last: Stamp,
}

impl<'a> HighWater<'a> {
    /// Loads the mark in the transaction of `db`. It must have the write lock: rows that
    /// another process removed are known only by the mark.
    ///
    /// # Errors
    /// Fails if the anchor is of another boot, whose processes use another clock.
    pub(super) fn load(db: &Connection, table: &Table, timeline: &'a Timeline) -> Result<HighWater<'a>> {
        let Times { mark, anchor } = table.times(db)?;
        let Moment { boot, elapsed } = timeline.moment();
        match anchor {
            Some(anchor) if anchor.boot != boot => return Err(taken_over()),
            // Another process may have replaced the anchor.
            Some(anchor) if boot != 0 => timeline.align(anchor.elapsed, anchor.time),
            Some(_) | None => {}
        }
        timeline.align(elapsed, mark);
        if anchor.is_none_or(|anchor| anchor.is_behind(mark, elapsed)) {
            table.save_anchor(db, Anchor { boot, elapsed, time: timeline.time_at(elapsed) })?;
        }
        Ok(HighWater { timeline, mark, last: mark })
    }

    /// Returns the stamp of a write that replaces a row with stamp `found`.
    pub(super) fn next(&mut self, found: Option<Stamp>) -> Stamp {
        self.last = self.timeline.stamp_after(self.last.max(found.unwrap_or_default()));
        self.last
    }

    /// Returns the present time.
    pub(super) fn now(&self) -> Stamp {
        self.timeline.now().max(self.last)
    }

    /// Ensures the second rule before a row is written with `stamp`.
    pub(super) fn cover(&mut self, db: &Connection, table: &Table, stamp: Stamp) -> Result<()> {
        if stamp > self.mark.after(LAG) { self.raise(db, table, stamp) } else { Ok(()) }
    }

    /// Ensures the first rule where a row is removed whose stamp is at most `stamp`.
    pub(super) fn raise(&mut self, db: &Connection, table: &Table, stamp: Stamp) -> Result<()> {
        if stamp > self.mark {
            table.save_high_water(db, stamp)?;
            self.mark = stamp;
            self.last = self.last.max(stamp);
        }
        Ok(())
    }

    /// Returns a stamp that no row exceeds, by the second rule, not even an unreadable one.
    pub(super) fn above_all(&self) -> Stamp {
        self.now().max(self.mark.after(LAG))
    }
}
