//! One shard of a memory store, with lookup and expiry: [`Shard`].

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Bound;

use super::index::{Index, hash_of};
use super::linked_list::{Linked, Links, List};
use super::packed::{self, Base};
use super::segment::{CAPACITY, OFFSET_BITS, Segment};
use crate::backends::shared::Registry;
use crate::key::RecordId;
use crate::label::Label;
use crate::record::{Record, Stamp};
use crate::wake::{ForeignWaker, discard};

/// A part of the store's records, under its own lock.
///
/// Finished records are packed into segments. The others (in progress, with a large body or with a
/// checkpoint) are *loose*: kept unpacked. Both kinds are listed by class of retention time, in the
/// order they were written. Expired records are therefore at the front of a list, and expiry reads
/// nothing else.
pub(super) struct Shard {
    index: Index,
    loose: Vec<Loose>,
    segments: Vec<Segment>,
    /// The numbers of unused segments.
    free: Vec<u32>,
    /// Buffers of former segments, for reuse.
    spare: Vec<Vec<u8>>,
    /// Sorted by number.
    classes: Vec<Class>,
    /// The ids of the records that are evidence of an effect that may have happened.
    evidence: BTreeSet<RecordId>,
    /// Nothing expires before this.
    due: Stamp,
    /// The greatest stamp given out here, including those of removed records.
    pub(super) last: Stamp,
    pub(super) waiters: Registry<ForeignWaker>,
    /// The approximate memory use of the records in bytes.
    bytes: usize,
    /// This shard's part of the store's totals.
    pub(super) reported: Size,
    /// True if removals must report the scopes of removed records.
    counts_scopes: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Size {
    pub(super) records: usize,
    pub(super) bytes: usize,
    /// The number of records that are evidence of an effect that may have happened.
    pub(super) evidence: usize,
}

/// The result of a removal.
#[derive(Default)]
pub(super) struct Removed {
    pub(super) records: usize,
    /// The number of removed records that were evidence of an effect that may have happened.
    pub(super) evidence: usize,
    /// Boxed, since most removals leave nothing behind.
    remains: Option<Box<Remains>>,
}

/// The remains of a removal, to be counted or dropped.
#[derive(Default)]
struct Remains {
    /// The scope of each record, if scopes are counted.
    scopes: Vec<Label>,
    /// Memory that is slow to free and must be dropped outside the lock: an allocator may return
    /// much of it to the system at once.
    large: Vec<Record>,
    buffers: Vec<Vec<u8>>,
}

impl Removed {
    /// The scope of each record, if scopes are counted.
    pub(super) fn scopes(&self) -> &[Label] {
        self.remains.as_ref().map_or(&[], |remains| &remains.scopes)
    }

    /// Takes over the memory that another removal left to be dropped.
    pub(super) fn absorb(&mut self, other: Removed) {
        if let Some(mut other) = other.remains {
            let remains = self.remains();
            remains.large.append(&mut other.large);
            remains.buffers.append(&mut other.buffers);
        }
    }

    fn remains(&mut self) -> &mut Remains {
        self.remains.get_or_insert_default()
    }
}

impl Drop for Remains {
    /// Drops the large records with care: their bytes come from the application, and dropping them
    /// may run its code.
    fn drop(&mut self) {
        for record in &mut self.large {
            discard(record.checkpoint.take());
        }
        discard(self.large.drain(..));
    }
}

struct Loose {
    id: RecordId,
    record: Record,
    class: u16,
    links: Links,
}

impl Linked for Loose {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// The records with about the same retention time. A class has at least one record.
#[derive(Clone, Copy)]
struct Class {
    number: u16,
    /// No record of the class expires before this.
    due: Stamp,
    loose: List,
    segments: List,
}

/// The location of a record, packed into the 32 bits that the index stores: the number of a loose
/// record, or a segment and the offset in it.
#[derive(Clone, Copy)]
enum Location {
    Loose(usize),
    Packed(u32, usize),
}

const LOOSE: u32 = 1 << 31;
/// The number of segments at which a shard stops packing records until some are removed: 2 GiB.
const MAX_SEGMENTS: usize = 1 << (31 - OFFSET_BITS);
const MAX_LOOSE: usize = LOOSE as usize - 1;

impl Location {
    fn of(location: u32) -> Location {
        if location & LOOSE != 0 {
            return Location::Loose((location & !LOOSE) as usize);
        }
        Location::Packed(location >> OFFSET_BITS, (location & ((1 << OFFSET_BITS) - 1)) as usize)
    }

    /// Encodes the location. Neither part overflows its bits: see [`MAX_LOOSE`], [`MAX_SEGMENTS`]
    /// and the capacity of a segment.
    fn bits(self) -> u32 {
        match self {
            Location::Loose(at) => LOOSE | at as u32,
            Location::Packed(segment, at) => segment << OFFSET_BITS | at as u32,
        }
    }
}

impl Shard {
    pub(super) fn new(counts_scopes: bool) -> Shard {
        Shard {
            index: Index::default(),
            loose: Vec::new(),
            segments: Vec::new(),
            free: Vec::new(),
            spare: Vec::new(),
            classes: Vec::new(),
            evidence: BTreeSet::new(),
            due: Stamp(u64::MAX),
            last: Stamp::ZERO,
            waiters: Registry::default(),
            bytes: 0,
            reported: Size::default(),
            counts_scopes,
        }
    }

    pub(super) fn size(&self) -> Size {
        Size { records: self.index.len(), bytes: self.bytes, evidence: self.evidence.len() }
    }

    /// Returns true if another record has room.
    pub(super) fn has_room(&self) -> bool {
        self.loose.len() < MAX_LOOSE
    }

    /// Returns the location of a record, valid until the next call that changes the shard.
    pub(super) fn find(&self, id: &RecordId) -> Option<u32> {
        self.index.find(hash_of(id), |location| self.id_at(location) == id.as_bytes())
    }

    fn id_at(&self, location: u32) -> &[u8] {
        match Location::of(location) {
            Location::Loose(at) => self.loose[at].id.as_bytes(),
            Location::Packed(segment, at) => self.segments[segment as usize].id_at(at),
        }
    }

    fn id(&self, location: u32) -> RecordId {
        match Location::of(location) {
            Location::Loose(at) => self.loose[at].id,
            Location::Packed(segment, at) => self.segments[segment as usize].view(at).id(),
        }
    }

    pub(super) fn stamp(&self, location: u32) -> Stamp {
        match Location::of(location) {
            Location::Loose(at) => self.loose[at].record.stamp,
            Location::Packed(segment, at) => self.segments[segment as usize].view(at).stamp,
        }
    }

    /// Returns true if the record is slow to free, copy or hash.
    pub(super) fn is_large(&self, location: u32) -> bool {
        match Location::of(location) {
            Location::Loose(at) => loose_weight(&self.loose[at].record) > LARGE,
            Location::Packed(..) => false,
        }
    }

    pub(super) fn read(&self, location: u32) -> Record {
        self.show(location, |record| record.into_owned())
    }

    /// Calls `see` with the record: a copy only if it is packed.
    #[inline]
    pub(super) fn show<T>(&self, location: u32, see: impl FnOnce(Cow<'_, Record>) -> T) -> T {
        match Location::of(location) {
            Location::Loose(at) => see(Cow::Borrowed(&self.loose[at].record)),
            Location::Packed(segment, at) => {
                see(Cow::Owned(self.segments[segment as usize].view(at).record()))
            }
        }
    }

    /// Lists up to `limit` records with their ids, in id order after `after`.
    pub(super) fn list(&self, after: Option<RecordId>, limit: usize) -> Vec<(RecordId, Record)> {
        let mut slots: Vec<(u32, u32)> = self.index.since(after.as_ref().map_or(0, hash_of)).collect();
        // Ids of one hash may lie on both sides of a boundary, so whole hashes are taken first,
        // including the hash of `after`.
        let passed = |location: u32| after.is_some_and(|after| self.id(location) <= after);
        slots.retain(|(hash, location)| Some(*hash) != after.as_ref().map(hash_of) || !passed(*location));
        if slots.len() > limit {
            let (.., (end, _), _) = slots.select_nth_unstable(limit);
            let end = *end;
            slots.retain(|(hash, _)| *hash <= end);
        }
        slots.sort_unstable_by_key(|(_, location)| self.id(*location));
        let location = |(_, location): (u32, u32)| (self.id(location), self.read(location));
        slots.into_iter().take(limit).map(location).collect()
    }

    /// Like [`Shard::list`], but only the evidence of effects that may have happened.
    pub(super) fn list_evidence(&self, after: Option<RecordId>, limit: usize) -> Vec<(RecordId, Record)> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ids = self.evidence.range((start, Bound::Unbounded)).take(limit);
        ids.filter_map(|id| Some((*id, self.read(self.find(id)?)))).collect()
    }

    /// Writes a record, replacing the one at `old` if there is one.
    pub(super) fn put(&mut self, id: &RecordId, record: &Record, stamp: Stamp, old: Option<u32>) -> Removed {
        let deadline = stamp.after(record.keep());
        let class = self.class(deadline, stamp);
        let listed = &mut self.classes[class];
        listed.due = listed.due.min(deadline);
        self.due = self.due.min(deadline);
        let mut removed = Removed::default();
        let packed = self.pack(class, id, record, stamp);
        match (packed, old.map(Location::of)) {
            (None, Some(Location::Loose(at))) => self.rewrite_loose(at, class, record, stamp, &mut removed),
            (packed, _) => {
                let location = packed.unwrap_or_else(|| self.keep_loose(class, id, record, stamp));
                match old {
                    None => self.index.insert(hash_of(id), location.bits()),
                    Some(old) => {
                        self.index.replace(hash_of(id), old, location.bits());
                        self.vacate(old, &mut removed);
                    }
                }
            }
        }
        if record.is_evidence() {
            self.evidence.insert(*id);
        }
        removed
    }

    pub(super) fn remove(&mut self, id: &RecordId, location: u32) -> Removed {
        let mut removed = Removed::default();
        self.index.remove(hash_of(id), location);
        self.vacate(location, &mut removed);
        removed
    }

    /// Returns true if a record may have expired at `now`.
    pub(super) fn is_due(&self, now: Stamp) -> bool {
        now >= self.due
    }

    /// Removes up to `limit` records that have expired at `now`.
    pub(super) fn expire(&mut self, now: Stamp, limit: usize) -> Removed {
        let mut removed = Removed::default();
        if !self.is_due(now) {
            return removed;
        }
        let mut at = 0;
        while at < self.classes.len() && removed.records < limit {
            if self.classes[at].due <= now && self.expire_first(at, now, &mut removed) {
                continue;
            }
            at += 1;
        }
        self.due = self.classes.iter().map(|class| class.due).min().unwrap_or(Stamp(u64::MAX));
        removed
    }

    /// Removes the first record of a class if it has expired. This may remove the class, and the
    /// next one then takes its index.
    fn expire_first(&mut self, class: usize, now: Stamp, removed: &mut Removed) -> bool {
        let Some((location, deadline)) = self.first(class) else { return false };
        self.classes[class].due = deadline;
        let over = deadline <= now && deadline != Stamp(u64::MAX);
        if over {
            self.index.remove(hash_of(&self.id(location)), location);
            self.vacate(location, removed);
        }
        over
    }

    /// Returns the record of a class that expires first, and its deadline.
    fn first(&mut self, class: usize) -> Option<(u32, Stamp)> {
        let Class { loose, segments, .. } = self.classes[class];
        let loose = self
            .loose
            .get(loose.first as usize)
            .map(|first| (Location::Loose(loose.first as usize), first.record.deadline()));
        let packed = self.segments.get_mut(segments.first as usize).and_then(|segment| {
            let (at, view) = segment.first()?;
            Some((Location::Packed(segments.first, at), view.deadline()))
        });
        let first = loose.into_iter().chain(packed).min_by_key(|(_, deadline)| *deadline);
        first.map(|(location, deadline)| (location.bits(), deadline))
    }

    /// Returns the index of the class for a record, which is created if necessary.
    fn class(&mut self, deadline: Stamp, stamp: Stamp) -> usize {
        let number = class_of(deadline, stamp);
        self.classes.binary_search_by_key(&number, |class| class.number).unwrap_or_else(|at| {
            let due = Stamp(u64::MAX);
            self.classes.insert(at, Class { number, due, loose: List::EMPTY, segments: List::EMPTY });
            at
        })
    }

    /// Writes the record into the class's last segment, if it can be packed.
    fn pack(&mut self, class: usize, id: &RecordId, record: &Record, stamp: Stamp) -> Option<Location> {
        let (bytes, weight) = packed::fits(record)?;
        let Class { number, segments, .. } = self.classes[class];
        let last = self.segments.get(segments.last as usize).is_some_and(|segment| segment.has_room(bytes));
        let segment = if last { segments.last } else { self.open(class, number, Base::of(record, stamp))? };
        let at = self.segments[segment as usize].write(id, record, stamp, bytes);
        self.bytes += weight;
        Some(Location::Packed(segment, at))
    }

    /// Opens a new segment at the end of a class, unless there are too many.
    fn open(&mut self, class: usize, number: u16, base: Base) -> Option<u32> {
        let list = &mut self.classes[class].segments;
        let bytes = if list.is_empty() {
            Vec::new() // few records may ever come: it starts small
        } else {
            self.spare.pop().unwrap_or_else(|| Vec::with_capacity(CAPACITY))
        };
        let segment = Segment::new(number, base, bytes);
        let at = match self.free.pop() {
            Some(at) => {
                self.segments[at as usize] = segment;
                at
            }
            None if self.segments.len() < MAX_SEGMENTS => {
                self.segments.push(segment);
                self.segments.len() as u32 - 1
            }
            None => return None,
        };
        list.push(&mut self.segments, at);
        Some(at)
    }

    fn keep_loose(&mut self, class: usize, id: &RecordId, record: &Record, stamp: Stamp) -> Location {
        let at = self.loose.len();
        self.loose.push(Loose { id: *id, record: record.clone(), class: 0, links: Links::NONE });
        self.enlist_loose(at, class, stamp);
        Location::Loose(at)
    }

    /// Replaces a loose record by another that stays loose, where it is.
    fn rewrite_loose(
        &mut self,
        at: usize,
        class: usize,
        record: &Record,
        stamp: Stamp,
        removed: &mut Removed,
    ) {
        removed.records += 1;
        let (weight, before) = self.delist_loose(at, removed);
        let place = &mut self.loose[at].record;
        if weight > LARGE {
            removed.remains().large.push(std::mem::replace(place, record.clone()));
        } else {
            place.clone_from(record);
        }
        self.enlist_loose(at, class, stamp);
        self.drop_class_if_empty(before);
    }

    /// Puts a loose record that was just written at the end of its class.
    fn enlist_loose(&mut self, at: usize, class: usize, stamp: Stamp) {
        let Loose { record, class: number, .. } = &mut self.loose[at]; // where it is: it is long to move
        *number = self.classes[class].number;
        record.stamp_with(stamp);
        record.detach();
        self.bytes += loose_weight(record);
        self.classes[class].loose.push(&mut self.loose, at as u32);
    }

    /// Takes a loose record out of its class. Returns its weight, and the index of the class.
    fn delist_loose(&mut self, at: usize, removed: &mut Removed) -> (usize, usize) {
        let class = self.class_at(self.loose[at].class);
        self.classes[class].loose.take(&mut self.loose, at as u32);
        let record = &self.loose[at].record;
        if record.is_evidence() {
            removed.evidence += usize::from(self.evidence.remove(&self.loose[at].id));
        }
        let weight = loose_weight(record);
        self.bytes -= weight;
        if self.counts_scopes {
            removed.remains().scopes.push(record.scope);
        }
        (weight, class)
    }

    /// Frees the space of a record that the index no longer knows.
    fn vacate(&mut self, location: u32, removed: &mut Removed) {
        removed.records += 1;
        let class = match Location::of(location) {
            Location::Loose(at) => self.take_loose(at, removed),
            Location::Packed(segment, at) => self.take_packed(segment, at, removed),
        };
        self.drop_class_if_empty(class);
    }

    fn drop_class_if_empty(&mut self, class: usize) {
        if self.classes[class].loose.is_empty() && self.classes[class].segments.is_empty() {
            self.classes.remove(class);
        }
    }

    fn take_loose(&mut self, at: usize, removed: &mut Removed) -> usize {
        let (weight, class) = self.delist_loose(at, removed);
        let last = self.loose.len() - 1;
        if at != last {
            self.loose.swap(at, last);
        }
        if weight > LARGE {
            removed.remains().large.extend(self.loose.pop().map(|loose| loose.record));
        } else {
            self.loose.truncate(last); // where it is: a record is long to move
        }
        if let Some(moved) = self.loose.get(at) {
            let (hash, class) = (hash_of(&moved.id), self.class_at(moved.class));
            self.index.replace(hash, Location::Loose(last).bits(), Location::Loose(at).bits());
            self.classes[class].loose.moved(&mut self.loose, at as u32);
        }
        if last < self.loose.capacity() / 4 {
            self.loose.shrink_to((last * 2).max(8));
        }
        class
    }

    fn take_packed(&mut self, number: u32, at: usize, removed: &mut Removed) -> usize {
        let segment = &mut self.segments[number as usize];
        let view = segment.view(at);
        self.bytes -= view.weight();
        if view.is_evidence() {
            removed.evidence += usize::from(self.evidence.remove(&view.id()));
        }
        if self.counts_scopes {
            removed.remains().scopes.push(view.scope());
        }
        segment.kill(at);
        let class = segment.class;
        if segment.records > 0 && segment.is_wasteful() {
            let index = &mut self.index;
            let bytes = segment.rewrite(|id, from, to| {
                let [from, to] = [from, to].map(|at| Location::Packed(number, at).bits());
                index.replace(hash_of(id), from, to);
            });
            self.spare(bytes, removed);
        }
        let is_empty = self.segments[number as usize].records == 0;
        let class = self.class_at(class);
        if is_empty {
            self.classes[class].segments.take(&mut self.segments, number);
            self.close(number, removed);
        }
        class
    }

    /// Frees a segment that is in no list.
    fn close(&mut self, number: u32, removed: &mut Removed) {
        let segment = std::mem::take(&mut self.segments[number as usize]);
        self.free.push(number);
        if self.free.len() == self.segments.len() {
            (self.free, self.segments) = (Vec::new(), Vec::new());
        }
        self.spare(segment.into_bytes(), removed);
    }

    /// Keeps a segment's buffer for reuse, as long as spare buffers are few compared with the live
    /// data.
    fn spare(&mut self, bytes: Vec<u8>, removed: &mut Removed) {
        let most = self.bytes / CAPACITY / 16;
        if bytes.capacity() == CAPACITY && self.spare.len() < most {
            self.spare.push(bytes);
            return;
        }
        let buffers = &mut removed.remains().buffers;
        buffers.push(bytes);
        buffers.extend(self.spare.drain(most.min(self.spare.len())..));
    }

    /// Returns the index of the class of a listed record.
    fn class_at(&self, number: u16) -> usize {
        let found = self.classes.binary_search_by_key(&number, |class| class.number);
        found.unwrap_or_else(|_| unreachable!("a class is there as long as one of its records"))
    }
}

/// The weight above which a freed record is dropped outside the lock.
const LARGE: usize = 4096;

fn loose_weight(record: &Record) -> usize {
    record.weight() + size_of::<Loose>() - size_of::<Record>()
}

/// Returns the class of records kept from `stamp` to `deadline`: the five bits from the highest set
/// bit, and that bit's position. The retention times of one class differ by at most 1/32.
fn class_of(deadline: Stamp, stamp: Stamp) -> u16 {
    if deadline == Stamp(u64::MAX) {
        return u16::MAX; // for ever
    }
    let kept = deadline.0 - stamp.0;
    let shift = (u64::BITS - kept.leading_zeros()).saturating_sub(6);
    (u64::from(shift << 5) + (kept >> shift)) as u16 // at most 58 * 32 + 63
}
