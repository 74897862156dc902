//! Finished records of similar deadlines, packed one after the other: [`Segment`].

use super::linked_list::{Linked, Links};
use super::packed::{Base, Log, View};
use crate::key::RecordId;
use crate::record::{Record, Stamp};

/// The bits of a location that hold a record's offset in its segment.
pub(super) const OFFSET_BITS: u32 = 15;
pub(super) const CAPACITY: usize = 1 << OFFSET_BITS;
/// The initial size of a segment, so that a few records with a deadline of their own take little
/// room.
const FIRST: usize = 1 << 10;

/// Records in the order they were written. A dead record stays in place until the segment is
/// dropped or rewritten.
pub(super) struct Segment {
    log: Log,
    base: Base,
    /// The number of live records.
    pub(super) records: u32,
    /// The number of bytes that dead records occupy.
    dead: usize,
    /// All records that start before this offset are dead.
    swept: usize,
    pub(super) class: u16,
    links: Links,
}

impl Default for Segment {
    /// Returns the placeholder for an unused segment number.
    fn default() -> Segment {
        let log = Log::default();
        Segment { log, base: Base::default(), records: 0, dead: 0, swept: 0, class: 0, links: Links::NONE }
    }
}

impl Linked for Segment {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl Segment {
    /// Creates a segment in `bytes` for records that share `base`.
    pub(super) fn new(class: u16, base: Base, bytes: Vec<u8>) -> Segment {
        Segment { log: Log::new(bytes), base, class, ..Segment::default() }
    }

    /// Returns true if `bytes` more bytes fit.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.log.bytes.len() + bytes <= CAPACITY
    }

    /// Writes a record that there is room for, and returns its offset.
    pub(super) fn write(&mut self, id: &RecordId, record: &Record, stamp: Stamp, bytes: usize) -> usize {
        let (length, capacity) = (self.log.bytes.len(), self.log.bytes.capacity());
        if length + bytes > capacity {
            let wanted = (capacity * 2).max(FIRST).max(length + bytes).min(CAPACITY);
            self.log.bytes.reserve_exact(wanted - length);
        }
        self.records += 1;
        self.log.write(self.base, id, record, stamp)
    }

    #[inline]
    pub(super) fn view(&self, at: usize) -> View<'_> {
        View::read(&self.log.bytes, self.base, at)
    }

    pub(super) fn id_at(&self, at: usize) -> &[u8] {
        self.log.id_at(at)
    }

    /// Marks the record as dead.
    pub(super) fn kill(&mut self, at: usize) {
        self.dead += self.view(at).end - at;
        self.records -= 1;
        self.log.kill(at);
    }

    /// Returns the first live record and its offset.
    pub(super) fn first(&mut self) -> Option<(usize, View<'_>)> {
        while self.swept < self.log.bytes.len() {
            let view = self.view(self.swept);
            if !view.is_dead() {
                break;
            }
            self.swept = view.end;
        }
        (self.swept < self.log.bytes.len()).then(|| (self.swept, self.view(self.swept)))
    }

    /// Returns the underlying buffer.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.log.bytes
    }

    pub(super) fn is_wasteful(&self) -> bool {
        self.dead > self.log.bytes.len() / 2
    }

    /// Drops the dead records, and calls `moved` for each live one with its id, old offset and new
    /// offset. Returns the old buffer.
    pub(super) fn rewrite(&mut self, mut moved: impl FnMut(&RecordId, usize, usize)) -> Vec<u8> {
        // A scope that was shared with a dead record is written out again.
        let mut log = Log::new(Vec::with_capacity(self.log.bytes.len() - self.dead + 64));
        let mut at = self.swept;
        while at < self.log.bytes.len() {
            let view = self.view(at);
            if !view.is_dead() {
                moved(&view.id(), at, log.copy(&view));
            }
            at = view.end;
        }
        (self.dead, self.swept) = (0, 0);
        std::mem::replace(&mut self.log, log).bytes
    }
}

#[cfg(test)]
impl Segment {
    /// Returns the memory use in bytes.
    pub(super) fn footprint(&self) -> usize {
        self.log.bytes.capacity() + size_of::<Segment>()
    }

    /// Returns the offsets of the live records, after checking the counts of live records and dead
    /// bytes.
    pub(super) fn live(&self) -> Vec<usize> {
        let (mut live, mut dead, mut at) = (Vec::new(), 0, 0);
        while at < self.log.bytes.len() {
            let view = self.view(at);
            if view.is_dead() {
                dead += view.end - at;
            } else {
                assert!(at >= self.swept);
                live.push(at);
            }
            at = view.end;
        }
        assert_eq!((live.len(), dead), (self.records as usize, self.dead));
        assert!(!live.is_empty() && !self.is_wasteful(), "{dead} of {at} bytes are dead");
        live
    }
}
