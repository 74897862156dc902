//! The effects: rows that can be counted afterwards.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use nevertwice::{Fingerprint, Lease};
use serde_json::json;

use crate::input::Line;

/// Stands for what must not happen twice: the charge, the shipment, the mail. It knows nothing of idempotency.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Books>);

#[derive(Default)]
struct Books {
    /// Of each effect, its key, and whether its worker was dropped before it could say so.
    rows: Vec<(usize, bool)>,
    /// By key, what every duplicate is to be told, and for which payload.
    answers: HashMap<usize, (Fingerprint, Option<Bytes>)>,
}

/// What the ledger says of a run.
pub(crate) struct Effects {
    pub(crate) rows: usize,
    pub(crate) by_dropped: usize,
    pub(crate) double: usize,
}

impl Ledger {
    /// The effect of `line`; the answer is its receipt.
    pub(crate) fn append(&self, line: &Line, lease: &Lease, dropped: bool) -> Bytes {
        let mut books = self.books();
        books.rows.push((line.key, dropped));
        let (row, id, attempt) = (books.rows.len(), line.request.id(), lease.attempt());
        let receipt = json!({ "row": row, "id": id, "attempt": attempt, "fence": lease.fence().0 });
        let receipt = Bytes::from(receipt.to_string());
        if !dropped {
            books.answers.entry(line.key).or_insert((line.fingerprint, Some(receipt.clone())));
        }
        receipt
    }

    /// Whether a replay says, byte for byte, what was recorded, and for this very payload. For a key that an earlier
    /// run has executed, the first answer is what the others are held to.
    pub(crate) fn confirms(&self, line: &Line, response: Option<&Bytes>) -> bool {
        let answer = (line.fingerprint, response.cloned());
        *self.books().answers.entry(line.key).or_insert_with(|| answer.clone()) == answer
    }

    pub(crate) fn count(&self) -> Effects {
        let books = self.books();
        let (mut seen, mut double) = (HashSet::new(), HashSet::new());
        for (key, _) in &books.rows {
            if !seen.insert(*key) {
                double.insert(*key);
            }
        }
        let by_dropped = books.rows.iter().filter(|(_, dropped)| *dropped).count();
        Effects { rows: books.rows.len(), by_dropped, double: double.len() }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().expect("nobody panics while writing the books")
    }
}
