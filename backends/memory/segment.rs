//! Finished records of like deadlines, packed one behind the other: [`Segment`].

use super::list::{Linked, Links};
use super::packed::{Base, Log, View};
use crate::key::RecordId;
use crate::record::{Record, Stamp};

/// How many bits of a place say where in its segment a record starts.
pub(super) const OFFSET_BITS: u32 = 15;
pub(super) const CAPACITY: usize = 1 << OFFSET_BITS;
/// What a segment starts with, so that few records of their own deadline do not take the room of many.
const FIRST: usize = 1 << 10;

/// Records in the order they were written in. What dies stays where it is until the segment is dropped or rewritten.
pub(super) struct Segment {
    log: Log,
    base: Base,
    /// How many of the records are alive.
    pub(super) records: u32,
    /// How many bytes are those of dead records.
    dead: usize,
    /// All records that start before here are dead.
    swept: usize,
    pub(super) class: u16,
    links: Links,
}

impl Default for Segment {
    /// What stands where no segment is.
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
    /// A segment in `bytes` for records like the one that `base` is of.
    pub(super) fn new(class: u16, base: Base, bytes: Vec<u8>) -> Segment {
        Segment { log: Log::new(bytes), base, class, ..Segment::default() }
    }

    /// Whether a record of `bytes` bytes can be written here.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        self.log.bytes.len() + bytes <= CAPACITY
    }

    /// Writes a record that there is room for, and says where.
    pub(super) fn write(&mut self, id: &RecordId, record: &Record, stamp: Stamp, bytes: usize) -> usize {
        let (length, capacity) = (self.log.bytes.len(), self.log.bytes.capacity());
        if length + bytes > capacity {
            let wanted = (capacity * 2).max(FIRST).max(length + bytes).min(CAPACITY);
            self.log.bytes.reserve_exact(wanted - length);
        }
        self.records += 1;
        self.log.write(self.base, id, record, stamp)
    }

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

    /// The first record that is alive, and where it is.
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

    /// The bytes that it was in.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.log.bytes
    }

    pub(super) fn is_wasteful(&self) -> bool {
        self.dead > self.log.bytes.len() / 2
    }

    /// Drops what is dead. `moved` is told of each record: its id, where it was and where it is.
    /// Gives back the bytes that it was in.
    pub(super) fn rewrite(&mut self, mut moved: impl FnMut(&RecordId, usize, usize)) -> Vec<u8> {
        // A scope that was shared with a record that is dead is written out.
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
    /// How many bytes of memory it takes.
    pub(super) fn footprint(&self) -> usize {
        self.log.bytes.capacity() + size_of::<Segment>()
    }

    /// Where the live records are, after a look at whether the segment counts them and the dead ones' bytes rightly.
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
