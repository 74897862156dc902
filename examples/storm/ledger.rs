//! The effects: rows that can be counted afterwards.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use nevertwice::{Fingerprint, Lease};
use serde_json::json;

use crate::input::Line;

/// The external effect that must not happen twice: the charge, the shipment, the mail. It knows
/// nothing of idempotency.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<Books>);

#[derive(Default)]
struct Books {
    /// The key of each effect, and true if its worker was dropped before it could report it.
    rows: Vec<(usize, bool)>,
    /// By key, the answer that every duplicate must get, and its payload.
    answers: HashMap<usize, (Fingerprint, Option<Bytes>)>,
}

/// The counts of a run.
pub(crate) struct Effects {
    pub(crate) rows: usize,
    pub(crate) by_dropped: usize,
    pub(crate) double: usize,
}

impl Ledger {
    /// Executes the effect of `line`. Returns its receipt.
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

    /// Returns true if a replay repeats the recorded answer byte for byte, and for this very
    /// payload. For a key that an earlier run executed, the first answer counts as the recorded
    /// one.
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
        self.0.lock().expect("no worker panics while it writes")
    }
}
