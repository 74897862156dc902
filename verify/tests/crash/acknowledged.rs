//! The acknowledgements of workers, compared with the state afterwards.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use nevertwice::{Begin, Engine, Reason};

use super::worker::{block_on, request, response};

/// The furthest state that a key is known to have reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Granted,
    Marked,
    /// With this effect.
    Completed(u64),
}

#[derive(Default)]
pub(crate) struct Acknowledged {
    /// The number of acknowledged operations.
    pub(crate) operations: u64,
    keys: HashMap<u64, Known>,
}

impl Acknowledged {
    /// Records one acknowledgement. Two outcomes of one key are always an error.
    pub(crate) fn note(&mut self, line: &str) {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap();
        let (what, key, effect) = (word(), word().parse().unwrap(), word().parse().unwrap());
        let known = match what {
            "granted" => Known::Granted,
            "marked" => Known::Marked,
            "completed" => Known::Completed(effect),
            other => panic!("{other}"),
        };
        self.operations += 1;
        self.learn(key, known);
    }

    fn learn(&mut self, key: u64, known: Known) {
        let before = self.keys.entry(key).or_insert(known);
        if let (Known::Completed(one), Known::Completed(other)) = (*before, known) {
            assert_eq!(one, other, "key {key}: two outcomes");
        }
        *before = known.max(*before);
    }

    pub(crate) fn add(&mut self, other: &Acknowledged) {
        self.operations += other.operations;
        other.keys.iter().for_each(|(key, known)| self.learn(*key, *known));
    }

    /// Returns the keys of which something acknowledged is gone.
    pub(crate) fn lost(&self, engine: &Engine) -> Vec<u64> {
        let is_lost = |(key, known): &(&u64, &Known)| !is_there(engine, **key, **known);
        self.keys.iter().filter(is_lost).map(|(key, _)| *key).collect()
    }

    /// Returns the keys whose acknowledged effect is not in the ledger.
    pub(crate) fn not_done(&self, ledger: &Ledger) -> Vec<u64> {
        let not_done = |(key, known): &(&u64, &Known)| match known {
            Known::Completed(effect) => !ledger.0.get(*key).is_some_and(|all| all.contains(effect)),
            Known::Granted | Known::Marked => false,
        };
        self.keys.iter().filter(not_done).map(|(key, _)| *key).collect()
    }
}

fn is_there(engine: &Engine, key: u64, known: Known) -> bool {
    loop {
        return match (known, block_on(engine.begin(&request(key))).unwrap()) {
            // The last worker's lease may run for two more milliseconds.
            (_, Begin::InProgress(_)) => continue,
            (Known::Completed(effect), Begin::Completed(done)) => {
                done.response().unwrap() == &response(effect)
            }
            (Known::Completed(_), _) => false,
            (_, Begin::Completed(_)) => true,
            (_, Begin::Unresolved(unknown)) => unknown.reason() == Reason::EffectMarked,
            // The acknowledged grant was at least the first.
            (Known::Granted, Begin::Acquired(lease)) => lease.attempt() > 1 && lease.takeover(),
            (Known::Granted | Known::Marked, _) => false,
        };
    }
}

/// The effects that happened outside the store, by key.
pub(crate) struct Ledger(HashMap<u64, Vec<u64>>);

impl Ledger {
    pub(crate) fn read(path: &Path) -> Ledger {
        let mut effects: HashMap<u64, Vec<u64>> = HashMap::new();
        for line in fs::read_to_string(path).unwrap().lines() {
            let (key, effect) = line.trim_end().split_once(' ').unwrap();
            effects.entry(key.parse().unwrap()).or_default().push(effect.parse().unwrap());
        }
        Ledger(effects)
    }

    pub(crate) fn duplicated(&self) -> Vec<u64> {
        self.0.iter().filter(|(_, effects)| effects.len() > 1).map(|(key, _)| *key).collect()
    }
}

/// Checks the file with SQLite's own integrity check.
pub(crate) fn assert_intact(folder: &Path) {
    let db = rusqlite::Connection::open(folder.join("keys.db")).unwrap();
    let intact: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(intact, "ok");
}
