//! A store's files as bytes, and their damage.

use std::fs;
use std::path::Path;

use rand::{Rng, RngExt};

use super::*;

const PAGE: usize = 4096;
const KEYS: usize = 160;
/// The first key whose writes are in the log.
const IN_LOG: usize = 120;
/// Every key at this interval is held instead of completed.
const HELD: usize = 16;

/// The files of a store, and its keys in insertion order.
#[derive(Clone)]
pub(crate) struct Image {
    main: Vec<u8>,
    log: Vec<u8>,
    log_index: Vec<u8>,
    pub(crate) keys: Vec<String>,
}

/// The damaged part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    /// The first page: the file's header and its schema.
    Schema,
    /// A page of a table: the records themselves.
    Rows,
    /// A page of an index, including the index on the digests.
    Index,
    /// The end of the file.
    End,
    Log,
    LogIndex,
}

impl Image {
    /// Creates the files of a closed store, or of an open one with some of its data still in the
    /// log.
    pub(crate) fn new(closed: bool) -> Image {
        let dir = tempfile::tempdir().unwrap();
        let engine = open(dir.path());
        let keys: Vec<String> = (0..KEYS).map(|key| format!("key {key}")).collect();
        for (at, key) in keys.iter().enumerate() {
            if at == IN_LOG {
                let db = Connection::open(dir.path().join(FILE)).unwrap();
                db.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).unwrap();
            }
            let lease = acquire(&engine, key);
            if at % HELD != HELD - 1 {
                block_on(lease.complete(response(key))).unwrap();
            }
        }
        let read = |suffix: &str| fs::read(dir.path().join(format!("{FILE}{suffix}"))).unwrap();
        if closed {
            drop(engine);
            return Image { main: read(""), log: Vec::new(), log_index: Vec::new(), keys };
        }
        Image { main: read(""), log: read("-wal"), log_index: read("-shm"), keys }
    }

    /// Returns true if the key at this index was completed. Otherwise it is held.
    pub(crate) fn is_completed(at: usize) -> bool {
        at % HELD != HELD - 1
    }

    /// Returns true if damage to the log may undo the writes of the key at this index.
    pub(crate) fn is_in_log(&self, at: usize) -> bool {
        !self.log.is_empty() && at >= IN_LOG
    }

    pub(crate) fn write(&self, folder: &Path) {
        for (bytes, suffix) in [(&self.main, ""), (&self.log, "-wal"), (&self.log_index, "-shm")] {
            let path = folder.join(format!("{FILE}{suffix}"));
            let _ = fs::remove_file(&path);
            if suffix.is_empty() || !bytes.is_empty() {
                fs::write(path, bytes).unwrap();
            }
        }
    }

    /// Changes some bytes and returns the part they belong to.
    pub(crate) fn damage(&mut self, random: &mut impl Rng) -> Part {
        if !self.log.is_empty() && random.random_bool(0.5) {
            if random.random_bool(0.2) {
                shorten_or_change(&mut self.log_index, random);
                return Part::LogIndex;
            }
            shorten_or_change(&mut self.log, random);
            return Part::Log;
        }
        if random.random_bool(0.1) {
            // Never truncated to nothing: an empty file is one that was never written.
            let left = random.random_range(1..self.main.len());
            self.main.truncate(left);
            return Part::End;
        }
        // A page's first byte gives its kind, so it is read before the change.
        let kinds: Vec<u8> = self.main.iter().step_by(PAGE).copied().collect();
        match change(&mut self.main, random) / PAGE {
            0 => Part::Schema,
            page if matches!(kinds[page], 0x02 | 0x0a) => Part::Index,
            _ => Part::Rows,
        }
    }
}

fn shorten_or_change(bytes: &mut Vec<u8>, random: &mut impl Rng) {
    if random.random_bool(0.3) {
        let left = random.random_range(0..bytes.len());
        bytes.truncate(left);
    } else {
        change(bytes, random);
    }
}

/// Changes some bytes of one page and returns their position.
fn change(bytes: &mut [u8], random: &mut impl Rng) -> usize {
    let at = random.random_range(0..bytes.len());
    let page = at / PAGE * PAGE;
    let end = (page + PAGE).min(bytes.len());
    let run = (at + random.random_range(1..65)).min(end);
    match random.random_range(0..8) {
        0..3 => bytes[at] ^= 1 << random.random_range(0..8),
        3 => bytes[at] = random.random(),
        4 => bytes[at..run].fill(0),
        5 => random.fill(&mut bytes[at..run]),
        6 => bytes[page..end].fill(0),
        _ => random.fill(&mut bytes[page..end]),
    }
    at
}

/// Damage that removes every path to the rows, but not the rows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Blow {
    /// The schema has no entries, according to a field of its page's header.
    NoSchema,
    /// The index on the digests has the root page of the other index.
    WrongRoot,
    /// The file is empty, its log is not.
    EmptyBesideLog,
    /// The file is gone, its log is not.
    GoneBesideLog,
}

impl Image {
    pub(crate) fn strike(&self, blow: Blow, folder: &Path) {
        let mut image = self.clone();
        match blow {
            Blow::NoSchema => image.main[103..105].fill(0),
            Blow::EmptyBesideLog => image.main.clear(),
            Blow::WrongRoot | Blow::GoneBesideLog => {}
        }
        image.write(folder);
        let file = folder.join(FILE);
        match blow {
            Blow::GoneBesideLog => fs::remove_file(file).unwrap(),
            Blow::WrongRoot => {
                let db = Connection::open(file).unwrap();
                db.execute_batch(
                    "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = \
                     (SELECT rootpage FROM sqlite_schema WHERE name = 'nevertwice_due') WHERE name = 'nevertwice_id'",
                )
                .unwrap();
            }
            Blow::NoSchema | Blow::EmptyBesideLog => {}
        }
    }
}
