//! The ledger of executed operations and of the answers that applications received.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use futures_util::future::join_all;
use nevertwice::{Begin, Engine, Fingerprint, Request};

/// The operation under a key.
pub(crate) fn request(key: &str) -> Request {
    Request::new("faults", key).unwrap().fingerprint(Fingerprint::of(key))
}

/// Returns the body that a begin replays, if it does.
pub(crate) fn replayed(begin: &Begin) -> Option<Vec<u8>> {
    let body = match begin {
        Begin::Completed(done) => done.response(),
        Begin::Failed(failed) => failed.error(),
        Begin::Unresolved(unknown) => unknown.error(),
        Begin::Acquired(_) | Begin::InProgress(_) | Begin::Mismatch(_) => None,
    };
    body.map(|body| body.to_vec())
}

#[derive(Default)]
struct Entry {
    /// The number of executions of the operation.
    effects: u32,
    /// The first outcome that an application received.
    outcome: Option<Vec<u8>>,
    /// True if an application later received another outcome.
    contradicted: bool,
}

/// The ledger of executed operations and of the answers that applications received.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<HashMap<String, Entry>>);

impl Ledger {
    /// Records an execution of the operation under `key`.
    pub(crate) fn effect(&self, key: &str) {
        self.entries().entry(key.to_owned()).or_default().effects += 1;
    }

    /// Records that an application, the executing one or a duplicate, received this outcome.
    pub(crate) fn acknowledge(&self, key: &str, outcome: impl Into<Vec<u8>>) {
        let mut entries = self.entries();
        let entry = entries.entry(key.to_owned()).or_default();
        let outcome = outcome.into();
        let first = entry.outcome.get_or_insert_with(|| outcome.clone());
        if *first != outcome {
            entry.contradicted = true;
        }
    }

    /// Returns the number of keys with an acknowledged outcome.
    pub(crate) fn acknowledged(&self) -> usize {
        self.entries().values().filter(|entry| entry.outcome.is_some()).count()
    }

    /// Compares the entries with the present answers of `engine`.
    pub(crate) async fn audit(&self, engine: &Engine) -> Audit {
        let entries = std::mem::take(&mut *self.entries());
        let mut audit = Audit::default();
        for entries in entries.into_iter().collect::<Vec<_>>().chunks(64) {
            let answers = join_all(entries.iter().map(async |(key, entry)| {
                let Some(outcome) = &entry.outcome else { return true };
                let begin = engine.begin(&request(key)).await.unwrap();
                replayed(&begin).as_ref() == Some(outcome)
            }));
            for ((key, entry), stands) in entries.iter().zip(answers.await) {
                audit.count(key, entry, stands);
            }
        }
        audit
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.lock().unwrap()
    }
}

/// The result of a comparison.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    /// Keys with an acknowledged outcome.
    pub(crate) acknowledged: usize,
    /// Keys whose outcome is another now, or was another for one of the applications.
    pub(crate) lost: usize,
    /// Keys that were executed more than once.
    pub(crate) duplicated: usize,
    /// Keys with an outcome but without an execution.
    pub(crate) invented: usize,
    /// Some of the wrong keys.
    examples: Vec<String>,
}

impl Audit {
    fn count(&mut self, key: &str, entry: &Entry, stands: bool) {
        let known = entry.outcome.is_some();
        let wrong =
            [known && (entry.contradicted || !stands), entry.effects > 1, known && entry.effects == 0];
        self.acknowledged += usize::from(known);
        for (count, wrong) in
            [&mut self.lost, &mut self.duplicated, &mut self.invented].into_iter().zip(wrong)
        {
            *count += usize::from(wrong);
        }
        if wrong.contains(&true) && self.examples.len() < 5 {
            self.examples.push(key.to_owned());
        }
    }

    /// Prints the result as one line that a script can read.
    #[allow(clippy::print_stdout)] // that is what it is for
    pub(crate) fn report(&self, fault: &str, numbers: &[(&str, &dyn fmt::Display)]) {
        let numbers: String = numbers.iter().map(|(name, number)| format!(" {name}={number}")).collect();
        let Audit { acknowledged, lost, duplicated, .. } = self;
        println!(
            "fault: backend={} fault=\"{fault}\"{numbers} acknowledged={acknowledged} lost={lost} \
             duplicated={duplicated}",
            crate::BACKEND
        );
    }

    /// Prints the result and requires that there are no faults.
    #[track_caller]
    pub(crate) fn require(&self, fault: &str, numbers: &[(&str, &dyn fmt::Display)]) {
        self.report(fault, numbers);
        assert!(self.acknowledged > 0, "{fault}: nothing was acknowledged");
        assert_eq!((self.lost, self.duplicated, self.invented), (0, 0, 0), "{fault}: {:?}", self.examples);
    }
}
