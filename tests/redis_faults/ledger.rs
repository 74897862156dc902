//! The ledger: what was executed, and what applications were told.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use futures_util::future::join_all;
use nevertwice::{Begin, Engine, Fingerprint, Request};

/// The operation under a key.
pub(crate) fn request(key: &str) -> Request {
    Request::new("faults", key).unwrap().fingerprint(Fingerprint::of(key))
}

/// What a begin replays, if it does.
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
    /// How often the operation was executed.
    effects: u32,
    /// What somebody was told first.
    outcome: Option<Vec<u8>>,
    /// Whether somebody was told something else later.
    contradicted: bool,
}

/// What was executed, and what applications were told.
#[derive(Default)]
pub(crate) struct Ledger(Mutex<HashMap<String, Entry>>);

impl Ledger {
    /// The operation under `key` was executed.
    pub(crate) fn effect(&self, key: &str) {
        self.entries().entry(key.to_owned()).or_default().effects += 1;
    }

    /// Somebody was told that this is the outcome: the one who executed, or a duplicate.
    pub(crate) fn acknowledge(&self, key: &str, outcome: impl Into<Vec<u8>>) {
        let mut entries = self.entries();
        let entry = entries.entry(key.to_owned()).or_default();
        let outcome = outcome.into();
        let first = entry.outcome.get_or_insert_with(|| outcome.clone());
        if *first != outcome {
            entry.contradicted = true;
        }
    }

    /// How many keys have an outcome that somebody was told of.
    pub(crate) fn acknowledged(&self) -> usize {
        self.entries().values().filter(|entry| entry.outcome.is_some()).count()
    }

    /// Compares with what `engine` says now.
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

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    /// Keys of whose outcome somebody was told.
    pub(crate) acknowledged: usize,
    /// Those whose outcome is another now, or was for somebody else.
    pub(crate) lost: usize,
    /// Keys that were executed more than once.
    pub(crate) duplicated: usize,
    /// Keys that have an outcome although nobody executed.
    pub(crate) invented: usize,
    /// Some of all those.
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

    /// Prints what was done, one line that a script can read.
    #[allow(clippy::print_stdout)] // that is what it is for
    pub(crate) fn report(&self, fault: &str, numbers: &[(&str, &dyn fmt::Display)]) {
        let numbers: String = numbers.iter().map(|(name, number)| format!(" {name}={number}")).collect();
        let Audit { acknowledged, lost, duplicated, .. } = self;
        println!(
            "fault: backend=redis fault=\"{fault}\"{numbers} acknowledged={acknowledged} lost={lost} \
             duplicated={duplicated}"
        );
    }

    /// The same, and requires that all is well.
    #[track_caller]
    pub(crate) fn require(&self, fault: &str, numbers: &[(&str, &dyn fmt::Display)]) {
        self.report(fault, numbers);
        assert!(self.acknowledged > 0, "{fault}: nothing was acknowledged");
        assert_eq!((self.lost, self.duplicated, self.invented), (0, 0, 0), "{fault}: {:?}", self.examples);
    }
}
