//! Bytes of a store's files that change while nobody looks: no key of which a response was acknowledged is given out anew.
//!
//! Two things no store can tell from a crash or from another's will, and they are counted apart: a log that breaks off, which takes
//! back the commits behind the break, and a damaged page of an index, which may hide a row.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;

use super::disks::say;
use super::image::{Image, Part};
use super::*;

const TRIALS: u64 = 3000;
const PATIENCE: Duration = Duration::from_millis(50);

/// How the keys of a damaged store answered.
#[derive(Default)]
struct Answers {
    refused: bool,
    right: usize,
    errors: usize,
    /// The places of keys that were given out anew.
    hidden: Vec<usize>,
    /// The places of completed keys that are in progress: an earlier state.
    stale: Vec<usize>,
    removed: u64,
}

/// What became of the trials that hit one part.
#[derive(Default)]
struct Toll {
    trials: u32,
    refused: u32,
    with_errors: u32,
    with_hidden: u32,
    taken_back: u32,
    recreated: u32,
}

static PANICS: AtomicU32 = AtomicU32::new(0);

#[test]
fn s10_damage_is_never_a_grant_nor_another_answer_nor_a_new_file() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
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
    for part in [Part::Rows, Part::End, Part::Log, Part::LogIndex] {
        assert_eq!(tolls[&part].with_hidden, 0, "{part:?}");
    }
    assert!(tolls.values().all(|toll| toll.recreated == 0));
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
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
            let last_commits = (gone[0]..image.keys.len()).eq(gone.iter().copied());
            assert!(last_commits, "seed {seed}: not only the last commits are gone: {gone:?}");
            toll.taken_back += 1;
            continue;
        }
        assert!(answers.stale.is_empty(), "seed {seed}, {part:?}: {:?} in progress", answers.stale);
        toll.with_hidden += u32::from(!answers.hidden.is_empty());
        toll.recreated += u32::from(!answers.refused && answers.hidden.len() == image.keys.len());
        if !answers.hidden.is_empty() && std::env::var_os("NEVERTWICE_TEST_VERBOSE").is_some() {
            say(&format!(
                "seed {seed}, {part:?}: {} hidden, {} errors, {} right",
                answers.hidden.len(),
                answers.errors,
                answers.right
            ));
        }
    }
    tolls
}

/// Has a store look at what is left of `image`. Another answer than the one that was acknowledged is never right.
fn answers(image: &Image, what: &str) -> Answers {
    // In memory, where it can be: no disk has a part in this.
    let memory = Path::new("/dev/shm");
    let dir =
        tempfile::tempdir_in(if memory.is_dir() { memory.into() } else { std::env::temp_dir() }).unwrap();
    image.write(dir.path());
    let mut answers = Answers::default();
    let store = SqliteStore::builder(dir.path().join(FILE)).busy_timeout(PATIENCE / 5).open();
    let Ok(store) = store else { return Answers { refused: true, ..answers } };
    let engine = engine(store, PATIENCE);
    answers.removed = block_on(engine.purge(1000)).unwrap_or(0);
    for (at, key) in image.keys.iter().enumerate() {
        match (block_on(engine.begin(&request(key))), Image::is_completed(at)) {
            (Err(_), _) => answers.errors += 1,
            (Ok(Begin::Completed(done)), true) => {
                assert_eq!(done.response().unwrap(), &response(key), "{what}: {key}");
                answers.right += 1;
            }
            (Ok(Begin::InProgress(_)), false) => answers.right += 1,
            (Ok(Begin::InProgress(_)), true) => answers.stale.push(at),
            (Ok(Begin::Acquired(_)), _) => answers.hidden.push(at),
            (other, _) => panic!("{what}: {key}: {other:?}"),
        }
    }
    answers
}
