//! The time anchor of a file, which makes all processes of one boot agree on the time.
//!
//! The rule: **the time is the anchor's stamp plus what the boot clock has counted since**. It is
//! the same number in every process, whatever the wall clocks say and whenever each process opened
//! the file. The wall clock is read only if there is no anchor of this boot: see [`open`]. A write
//! transaction replaces an anchor that is damaged, or whose time is below the high-water mark (the
//! machine was set back to a snapshot). The time then continues from the mark instead of freezing
//! there.
//!
//! Two boots never use a file at once, since each would follow its own clock. Every open store
//! shares the lock of a [`Claim`], so a process that finds an anchor of another boot and gets that
//! lock exclusively knows that no store of that boot is left. Where locks do not reach (a folder
//! shared with a machine that has its own locks), the store that was there first finds the other's
//! anchor in its next write transaction, and writes nothing.

use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::claim::Claim;
use super::error::{Error, Result};
use super::high_water::LAG;
use super::rows::{Table, prepare, signed};
use crate::clock::{Clock, Moment, Timeline};
use crate::observe;
use crate::record::{Stamp, micros};
use crate::store_id::StoreId;

/// A stamp, and the moment of a boot at which it was the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Anchor {
    /// The boot's id, or 0 for clocks without one, which derive nothing from an anchor.
    pub(super) boot: u128,
    pub(super) elapsed: u64,
    pub(super) time: Stamp,
}

/// The time data stored in the file.
pub(super) struct Times {
    pub(super) mark: Stamp,
    /// `None` if it is missing or damaged.
    pub(super) anchor: Option<Anchor>,
}

/// The rules by which an opening store may use the wall clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    /// The distance beyond the high-water mark up to which the wall clock is believed.
    pub(super) max_step: Duration,
    /// True if the wall clock is believed at any distance, even if there is an anchor.
    pub(super) accept: bool,
}

impl Anchor {
    const BYTES: usize = 32;

    pub(super) fn time_at(&self, elapsed: u64) -> Stamp {
        let (time, before) = (i128::from(self.time.0), i128::from(self.elapsed));
        let time = (time + i128::from(elapsed) - before).clamp(0, i128::from(u64::MAX));
        Stamp(time as u64)
    }

    /// Returns true if the anchor's time is below the mark by more than a process may be ahead of
    /// it.
    pub(super) fn is_behind(&self, mark: Stamp, elapsed: u64) -> bool {
        self.boot != 0 && self.time_at(elapsed).after(LAG) < mark
    }

    fn encode(&self) -> Vec<u8> {
        let parts = [&self.boot.to_le_bytes()[..], &self.elapsed.to_le_bytes(), &self.time.0.to_le_bytes()];
        sealed(parts.concat())
    }

    fn decode(bytes: &[u8]) -> Option<Anchor> {
        let bytes: [u8; Anchor::BYTES] = opened(bytes)?;
        let &[low, high, elapsed, time] = bytes.as_chunks().0 else { return None };
        let [low, high, elapsed, time] = [low, high, elapsed, time].map(u64::from_le_bytes);
        Some(Anchor { boot: u128::from(high) << 64 | u128::from(low), elapsed, time: Stamp(time) })
    }
}

/// Appends a checksum to `bytes`.
pub(super) fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = crc32fast::hash(&bytes);
    bytes.extend(sum.to_le_bytes());
    bytes
}

/// Returns the bytes given to [`sealed`], or `None` if they are damaged.
fn opened<const BYTES: usize>(sealed: &[u8]) -> Option<[u8; BYTES]> {
    let (bytes, sum) = sealed.split_last_chunk::<4>()?;
    let sound = crc32fast::hash(bytes) == u32::from_le_bytes(*sum);
    if sound { bytes.try_into().ok() } else { None }
}

impl Table {
    /// Reads the high-water mark and the anchor. See [`HighWater`](super::high_water::HighWater).
    pub(super) fn times(&self, db: &Connection) -> Result<Times> {
        let row = |row: &rusqlite::Row<'_>| -> rusqlite::Result<_> {
            Ok((row.get(0)?, Anchor::decode(row.get_ref(1)?.as_blob()?)))
        };
        let found: Option<(i64, _)> = prepare(db, &self.times)?.query_row([], row).optional()?;
        let times =
            found.and_then(|(mark, anchor)| Some(Times { mark: Stamp(mark.try_into().ok()?), anchor }));
        times.ok_or_else(|| Error::unusable(format!("table {}_meta holds no high-water mark", self.name)))
    }

    /// Raises the high-water mark. It never moves back.
    pub(super) fn save_high_water(&self, db: &Connection, stamp: Stamp) -> Result<()> {
        prepare(db, &self.set_high_water)?.execute([signed(stamp)?])?;
        Ok(())
    }

    pub(super) fn save_anchor(&self, db: &Connection, anchor: Anchor) -> Result<()> {
        prepare(db, &self.set_anchor)?.execute([anchor.encode()])?;
        Ok(())
    }

    /// Returns the store's identity, made of an id stored with the table and the table's name.
    pub(super) fn identity(&self, db: &Connection) -> Result<StoreId> {
        let read = |row: &rusqlite::Row<'_>| Ok(opened::<16>(row.get_ref(0)?.as_blob()?));
        let id = prepare(db, &self.store)?.query_row([], read)?;
        let id =
            id.ok_or_else(|| Error::unusable(format!("the id in table {}_meta is damaged", self.name)))?;
        // SQLite treats names that differ only in case as the same table.
        Ok(StoreId::of("sqlite", &[&id, self.name.to_ascii_lowercase().as_bytes()]))
    }

    /// Returns true if the file allows deriving the time for the boot of `moment`.
    fn is_anchored(&self, db: &Connection, moment: Moment) -> Result<bool> {
        let Times { mark, anchor } = self.times(db)?;
        let own = anchor.filter(|anchor| anchor.boot == moment.boot);
        Ok(own.is_some_and(|anchor| !anchor.is_behind(mark, moment.elapsed)))
    }
}

/// Determines the store's time for a process that opens it. If there is an anchor of this boot, the
/// time is derived from it. Otherwise the wall clock is read and a new anchor is written, or the
/// open is refused because the file is open in another boot. On return, `claim` is held shared.
pub(super) fn open(
    db: &Connection,
    table: &Table,
    claim: &Claim,
    clock: Arc<dyn Clock>,
    start: Start,
) -> Result<Timeline> {
    let now = Moment::of(&*clock);
    if start.accept || !table.is_anchored(db, now)? {
        anchor_anew(db, table, claim, &*clock, start)?;
    }
    claim.share()?;
    // From here on no process of another boot can replace the anchor. It may have done so before.
    let Times { mark, anchor } = table.times(db)?;
    let anchor = anchor.filter(|anchor| anchor.boot == now.boot).ok_or_else(in_use_elsewhere)?;
    let timeline = if now.boot == 0 {
        observe::clock_without_boot(super::NAME);
        let time = start.by_wall(mark, &*clock);
        Timeline::starting(clock, now, time)
    } else {
        Timeline::starting(clock, Moment { elapsed: anchor.elapsed, ..now }, anchor.time)
    };
    timeline.observe(mark);
    Ok(timeline)
}

/// Determines the store's time as [`open`] does, for a process that only reads: nothing is written
/// and no claim is taken. Without an anchor of this boot it is the wall clock's, as the next store
/// that opens the file will find it.
pub(super) fn timeline(
    db: &Connection,
    table: &Table,
    clock: Arc<dyn Clock>,
    start: Start,
) -> Result<Timeline> {
    let now = Moment::of(&*clock);
    let Times { mark, anchor } = table.times(db)?;
    let own = anchor.filter(|anchor| now.boot != 0 && anchor.boot == now.boot);
    let timeline = match own {
        Some(anchor) => Timeline::starting(clock, Moment { elapsed: anchor.elapsed, ..now }, anchor.time),
        None => {
            let time = start.by_wall(mark, &*clock);
            Timeline::starting(clock, now, time)
        }
    };
    timeline.observe(mark);
    Ok(timeline)
}

/// Writes an anchor of this boot, unless another process already did.
fn anchor_anew(db: &Connection, table: &Table, claim: &Claim, clock: &dyn Clock, start: Start) -> Result<()> {
    let transaction = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
    let Times { mark, anchor } = table.times(&transaction)?;
    let Moment { boot, elapsed } = Moment::of(clock);
    let own = anchor.filter(|anchor| anchor.boot == boot);
    if own.is_none() && !claim.take_alone()? {
        return Err(if anchor.is_some() { in_use_elsewhere() } else { damaged() });
    }
    let derived = own.map_or(mark, |own| own.time_at(elapsed).max(mark));
    let time = match own {
        // Clocks without a boot derive nothing from an anchor.
        _ if boot == 0 => Stamp::ZERO,
        Some(_) if !start.accept => derived,
        Some(_) | None => start.by_wall(mark, clock).max(derived),
    };
    if own.is_none_or(|own| own.time_at(elapsed) < time) {
        table.save_anchor(&transaction, Anchor { boot, elapsed, time })?;
    }
    // The claim is still exclusive: a process that shares it later has seen the new anchor.
    transaction.commit()?;
    Ok(())
}

impl Start {
    /// Returns the wall-clock time, never below the mark and not too far above it.
    fn by_wall(self, mark: Stamp, clock: &dyn Clock) -> Stamp {
        let wall = Stamp(micros(clock.wall()));
        // A file without a mark holds no record that could end early.
        if mark == Stamp::ZERO || self.accept || wall <= mark.after(self.max_step) {
            return wall.max(mark);
        }
        observe::clock_step(super::NAME, wall.since(mark));
        mark
    }
}

fn in_use_elsewhere() -> Error {
    Error::unusable(
        "another machine has it open, or a container with a boot id or a time namespace of its own, or a store with a `Clock` of \
         another boot, and its time is not the one here: close it there first, or open it there",
    )
}

fn damaged() -> Error {
    Error::unavailable(
        "the anchor of its time is damaged, and other processes have it open: the next write of theirs mends it, and so \
         does the first open once all have closed it",
    )
}

/// Returns the error for an anchor of another boot under an open store.
pub(super) fn taken_over() -> Error {
    Error::unusable(
        "another machine, or a container with a boot id or a time namespace of its own, has opened it meanwhile, and its clock is \
         not the one here; nothing was written. Close it on one of the two, and open it anew on the other"
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANCHOR: Anchor = Anchor { boot: 7 << 100 | 9, elapsed: 5_000_000, time: Stamp(9_000_000) };

    #[test]
    fn s13_an_anchor_gives_the_time_before_and_after_it() {
        assert_eq!(ANCHOR.time_at(6_000_000), Stamp(10_000_000));
        assert_eq!(ANCHOR.time_at(1_000_000), Stamp(5_000_000));
        let early = Anchor { time: Stamp(1), ..ANCHOR };
        assert_eq!([early.time_at(0), early.time_at(5_000_001)], [Stamp(0), Stamp(2)]);
    }

    #[test]
    fn s13_an_anchor_reads_back_and_no_damage_to_it_is_believed() {
        let bytes = ANCHOR.encode();
        assert_eq!(Anchor::decode(&bytes), Some(ANCHOR));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Anchor::decode(&damaged), None);
        }
        for length in 0..bytes.len() {
            assert_eq!(Anchor::decode(&bytes[..length]), None);
        }
        assert_eq!(Anchor::decode(&sealed(vec![0; 33])), None);
    }

    #[test]
    fn s13_an_anchor_is_behind_only_by_more_than_rows_may_be_ahead() {
        let lag = micros(LAG);
        assert!(!ANCHOR.is_behind(Stamp(9_000_000 + lag), 5_000_000));
        assert!(ANCHOR.is_behind(Stamp(9_000_001 + lag), 5_000_000));
        assert!(!Anchor { boot: 0, ..ANCHOR }.is_behind(Stamp(u64::MAX), 5_000_000));
    }
}
