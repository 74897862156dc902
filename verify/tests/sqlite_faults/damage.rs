//! Bytes of a store's files that change unnoticed: no key with an acknowledged response is granted
//! again.
//!
//! Two kinds of damage cannot be told from a crash or a legitimate change, and are counted
//! separately: a truncated log, which undoes the commits behind the break, and a damaged index
//! page, which may hide a row.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use tempfile::TempDir;

use super::disks::say;
use super::image::{Blow, Image, Part};
use super::*;

const TRIALS: u64 = 3000;
const PATIENCE: Duration = Duration::from_millis(100);

/// The answers for the keys of a damaged store.
#[derive(Default)]
struct Answers {
    refused: bool,
    errors: usize,
    /// The indexes of keys that answered as before.
    right: Vec<usize>,
    /// The indexes of keys that were granted again.
    hidden: Vec<usize>,
    /// The indexes of completed keys that are in progress: an earlier state.
    stale: Vec<usize>,
    removed: u64,
}

/// The results of the trials that damaged one part.
#[derive(Default)]
struct Toll {
    trials: u32,
    refused: u32,
    with_errors: u32,
    with_hidden: u32,
    taken_back: u32,
    recreated: u32,
}

/// Panics on the store's own threads. A panic on a caller's thread ends the test.
static PANICS: AtomicU32 = AtomicU32::new(0);

#[test]
fn s10_damage_is_never_a_grant_nor_another_answer_nor_a_new_file() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let by_the_store = std::thread::current().name().is_some_and(|name| name.starts_with("nevertwice"));
        PANICS.fetch_add(u32::from(by_the_store), Ordering::Relaxed);
        report(panic);
    }));
    let trials = if std::env::var_os("NEVERTWICE_LONG").is_some() { 10 * TRIALS } else { TRIALS };
    let halves = std::thread::scope(|scope| {
        let halves =
            [true, false].map(|closed| scope.spawn(move || damage_again_and_again(closed, trials / 2)));
        halves.map(|half| half.join().unwrap())
    });
    let mut tolls: BTreeMap<Part, Toll> = BTreeMap::new();
    for (part, toll) in halves.into_iter().flatten() {
        let sum = tolls.entry(part).or_default();
        sum.trials += toll.trials;
        sum.refused += toll.refused;
        sum.with_errors += toll.with_errors;
        sum.with_hidden += toll.with_hidden;
        sum.taken_back += toll.taken_back;
        sum.recreated += toll.recreated;
    }
    for (part, toll) in &tolls {
        say(&format!(
            "fault: backend=sqlite fault=\"damage: {part:?}\" trials={} refused_at_open={} with_errors={} commits_taken_back={} \
             with_hidden_keys={} recreated={} other_answers=0",
            toll.trials, toll.refused, toll.with_errors, toll.taken_back, toll.with_hidden, toll.recreated
        ));
    }
    for (part, toll) in tolls {
        assert!(toll.trials > 50, "{part:?}: only {} trials", toll.trials);
        assert!(
            100 * toll.with_hidden <= may_hide(part) * toll.trials,
            "{part:?}: {} hidden",
            toll.with_hidden
        );
        assert_eq!(toll.recreated, 0, "{part:?}");
    }
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
}

#[test]
fn s10_a_file_that_lost_what_leads_to_its_rows_is_not_begun_anew() {
    let blows = [Blow::NoSchema, Blow::WrongRoot, Blow::EmptyBesideLog, Blow::GoneBesideLog];
    for blow in blows {
        // A log would contain another copy of the schema.
        let image = Image::new(matches!(blow, Blow::NoSchema));
        let dir = in_memory();
        image.strike(blow, dir.path());
        let answers = look(dir.path(), &image.keys, "");
        assert!(answers.refused, "{blow:?}: {} hidden", answers.hidden.len());
    }
    say(&format!(
        "fault: backend=sqlite fault=\"damage: no way to the rows\" refused={} recreated=0",
        blows.len()
    ));
}

/// Returns the percentage of trials in which a key may be granted again: no more than is known for
/// damage to an index.
fn may_hide(part: Part) -> u32 {
    match part {
        Part::Index => 30,
        // The cut is in the middle of an index page.
        Part::End => 15,
        Part::Schema | Part::Rows | Part::Log | Part::LogIndex => 0,
    }
}

fn damage_again_and_again(closed: bool, trials: u64) -> BTreeMap<Part, Toll> {
    let whole = Image::new(closed);
    let mut tolls: BTreeMap<Part, Toll> = BTreeMap::new();
    for trial in 0..trials {
        let seed = trial << 1 | u64::from(closed);
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut image = whole.clone();
        let part = image.damage(&mut random);
        let answers = answers(&image, &format!("seed {seed}, {part:?}"));
        let toll = tolls.entry(part).or_default();
        toll.trials += 1;
        toll.refused += u32::from(answers.refused);
        toll.with_errors += u32::from(answers.errors > 0);
        assert_eq!(answers.removed, 0, "seed {seed}, {part:?}: removed before its time");
        let mut gone = [answers.hidden.as_slice(), answers.stale.as_slice()].concat();
        gone.sort_unstable();
        if part == Part::Log && gone.first().is_some_and(|first| image.is_in_log(*first)) {
            // Everything after the first lost commit must be lost too.
            let kept = answers.right.iter().filter(|at| **at > gone[0]).count();
            assert_eq!(kept, 0, "seed {seed}: not only the last commits are gone: {gone:?}");
            toll.taken_back += 1;
            continue;
        }
        assert!(answers.stale.is_empty(), "seed {seed}, {part:?}: {:?} in progress", answers.stale);
        toll.with_hidden += u32::from(!answers.hidden.is_empty());
        toll.recreated += u32::from(!answers.refused && answers.hidden.len() == image.keys.len());
    }
    tolls
}

/// Opens a store on the damaged `image` and returns its answers. Any answer other than the
/// acknowledged one is an error.
fn answers(image: &Image, what: &str) -> Answers {
    let dir = in_memory();
    image.write(dir.path());
    look(dir.path(), &image.keys, what)
}

/// Creates a folder in memory where possible: this test needs no disk.
fn in_memory() -> TempDir {
    let memory = Path::new("/dev/shm");
    tempfile::tempdir_in(if memory.is_dir() { memory.into() } else { std::env::temp_dir() }).unwrap()
}

fn look(folder: &Path, keys: &[String], what: &str) -> Answers {
    let mut answers = Answers::default();
    let store = SqliteStore::builder(folder.join(FILE)).busy_timeout(PATIENCE / 5).open();
    let Ok(store) = store else { return Answers { refused: true, ..answers } };
    let engine = engine(store, PATIENCE);
    answers.removed = block_on(engine.purge(1000)).unwrap_or(0);
    for (at, key) in keys.iter().enumerate() {
        match (block_on(engine.begin(&request(key))), Image::is_completed(at)) {
            (Err(_), _) => answers.errors += 1,
            (Ok(Begin::Completed(done)), true) => {
                assert_eq!(done.response().unwrap(), &response(key), "{what}: {key}");
                answers.right.push(at);
            }
            (Ok(Begin::InProgress(_)), false) => answers.right.push(at),
            (Ok(Begin::InProgress(_)), true) => answers.stale.push(at),
            (Ok(Begin::Acquired(_)), _) => answers.hidden.push(at),
            (other, _) => panic!("{what}: {key}: {other:?}"),
        }
    }
    answers
}
