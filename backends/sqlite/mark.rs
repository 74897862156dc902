//! The high-water mark: what keeps time in a file from going back, over removals, restarts and several processes.
//!
//! The rule, which holds at every commit, whoever makes it:
//!
//! 1. **The mark is not less than the stamp of any row that was removed.** It is raised in the very transaction that removes. A write
//!    takes a stamp greater than the mark and greater than that of the row it replaces, so no fence of a key is given
//!    twice, whether its row is there or gone, and whatever the clocks of the processes say.
//! 2. **No row's stamp is more than [`LAG`] above the mark.** The write that would be raises it. So the mark costs a page in some
//!    commits and not in all; and whoever opens the file finds there, up to `LAG`, how far time had got. Every row that he reads
//!    lifts his time further, and a store that is closed leaves the mark where its time is.
//!
//! So after a restart of the machine together with a clock set back, up to `LAG` may be counted a second time: a lease that nobody
//! took ends that much later. None is revived that was taken: the row that took it shows the time.
//!
//! How far time has got meanwhile is derived from the [`anchor`](super::anchor), which is seen to here as well.

use std::time::Duration;

use rusqlite::Connection;

use super::anchor::{Anchor, Times, taken_over};
use super::rows::Table;
use super::trouble::Trouble;
use crate::clock::{Moment, Timeline};
use crate::record::Stamp;

/// How far the stamps of a file's rows may be above its mark.
pub(super) const LAG: Duration = Duration::from_millis(100);

/// The stamps that a write transaction gives, and what it does to the mark.
pub(super) struct Stamps<'a> {
    timeline: &'a Timeline,
    /// The mark as it stands in this transaction.
    mark: Stamp,
    /// The greatest stamp given.
    last: Stamp,
}

impl<'a> Stamps<'a> {
    /// For the transaction that `db` is in. It must have the write lock: what another process has removed is known by
    /// the mark alone.
    ///
    /// # Errors
    /// If the anchor is another boot's: its processes go by another clock.
    pub(super) fn of(db: &Connection, table: &Table, timeline: &'a Timeline) -> Result<Stamps<'a>, Trouble> {
        let Times { mark, anchor } = table.times(db)?;
        let Moment { boot, elapsed } = timeline.moment();
        match anchor {
            Some(anchor) if anchor.boot != boot => return Err(taken_over()),
            // Another process may have anchored anew.
            Some(anchor) if boot != 0 => timeline.align(anchor.elapsed, anchor.time),
            Some(_) | None => {}
        }
        timeline.align(elapsed, mark);
        if anchor.is_none_or(|anchor| anchor.is_behind(mark, elapsed)) {
            table.save_anchor(db, Anchor { boot, elapsed, time: timeline.time_at(elapsed) })?;
        }
        Ok(Stamps { timeline, mark, last: mark })
    }

    /// The stamp of a write that replaces a row with stamp `found`.
    pub(super) fn next(&mut self, found: Option<Stamp>) -> Stamp {
        self.last = self.timeline.stamp_after(self.last.max(found.unwrap_or_default()));
        self.last
    }

    /// The present time.
    pub(super) fn now(&self) -> Stamp {
        self.timeline.now().max(self.last)
    }

    /// Sees to the second rule, before a row is written with `stamp`.
    pub(super) fn cover(&mut self, db: &Connection, table: &Table, stamp: Stamp) -> Result<(), Trouble> {
        if stamp > self.mark.after(LAG) { self.raise(db, table, stamp) } else { Ok(()) }
    }

    /// Sees to the first rule, where a row is removed that had no greater stamp than `stamp`.
    pub(super) fn raise(&mut self, db: &Connection, table: &Table, stamp: Stamp) -> Result<(), Trouble> {
        if stamp > self.mark {
            table.save_high_water(db, stamp)?;
            self.mark = stamp;
            self.last = self.last.max(stamp);
        }
        Ok(())
    }

    /// A stamp that no row of the file is above, by the second rule: also where one cannot be read.
    pub(super) fn above_all(&self) -> Stamp {
        self.now().max(self.mark.after(LAG))
    }
}
