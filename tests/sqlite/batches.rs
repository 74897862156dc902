//! Many swaps in one call.

use nevertwice::store::{Swap, SwapRequest};

use super::*;

type Answers = Vec<Result<Swap, StoreError>>;

fn put(key: &str, expected: Option<Stamp>) -> SwapRequest {
    SwapRequest { id: id(key), expected, next: Some(Box::new(sample())) }
}

fn puts(keys: std::ops::Range<usize>) -> Vec<SwapRequest> {
    let next = Some(Box::new(sample()));
    keys.map(|key| SwapRequest { id: id(&key.to_string()), expected: None, next: next.clone() }).collect()
}

fn remove(key: &str, expected: Option<Stamp>) -> SwapRequest {
    SwapRequest { id: id(key), expected, next: None }
}

fn swap_many(store: &SqliteStore, swaps: &[SwapRequest]) -> Answers {
    block_on(store.swap_many(swaps))
}

#[track_caller]
fn done(answer: &Result<Swap, StoreError>) -> Stamp {
    match answer {
        Ok(Swap::Done(stamp)) => *stamp,
        other => panic!("{other:?}"),
    }
}

/// Returns the stamp in the conflict.
#[track_caller]
fn conflict(answer: &Result<Swap, StoreError>) -> Option<Stamp> {
    match answer {
        Ok(Swap::Conflict(snapshot)) => {
            assert!(snapshot.record.as_ref().is_none_or(|record| record.stamp <= snapshot.now));
            snapshot.record.as_ref().map(|record| record.stamp)
        }
        other => panic!("{other:?}"),
    }
}

fn execute(file: &File, sql: &str) {
    file.raw().execute_batch(sql).unwrap();
}

#[test]
fn answers_come_in_order_each_for_itself() {
    let file = File::new();
    let store = file.store();
    assert!(swap_many(&store, &[]).is_empty());
    let first = swap_many(&store, &[put("a", None), put("b", None)]);
    let (a, b) = (done(&first[0]), done(&first[1]));
    assert!(a < b, "every write has a stamp of its own");
    let answers = swap_many(
        &store,
        &[put("a", None), put("c", None), put("b", Some(a)), remove("none", None), put("b", Some(b))],
    );
    assert_eq!(conflict(&answers[0]), Some(a));
    assert_eq!(stored(&store, "c").map(|record| record.stamp), Some(done(&answers[1])));
    assert_eq!(conflict(&answers[2]), Some(b));
    done(&answers[3]);
    assert_eq!(stored(&store, "b").map(|record| record.stamp), Some(done(&answers[4])));
    assert_eq!(answers.len(), 5);
}

#[test]
fn swaps_of_one_id_in_one_batch_see_each_other() {
    let file = File::new();
    let store = file.store();
    let answers = swap_many(&store, &[put("new", None), put("new", None), put("new", None)]);
    let new = done(&answers[0]);
    assert_eq!((conflict(&answers[1]), conflict(&answers[2])), (Some(new), Some(new)));
    // The record exists before the batch, but not any more when its swap is run.
    let answers = swap_many(
        &store,
        &[
            put("new", None),
            remove("new", Some(new)),
            put("new", None),
            put("new", None),
            put("new", Some(new)),
        ],
    );
    assert_eq!(conflict(&answers[0]), Some(new));
    let newer = done(&answers[2]);
    assert!(done(&answers[1]) < newer && new < newer);
    assert_eq!((conflict(&answers[3]), conflict(&answers[4])), (Some(newer), Some(newer)));
}

#[test]
fn a_batch_is_one_commit_and_its_failure_is_every_callers() {
    let file = File::new();
    let store = file.store();
    // Only the last one's write fails, and only at the commit.
    let last = id("19");
    execute(
        &file,
        &format!(
            "CREATE TABLE parent (id INTEGER PRIMARY KEY);
             CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
             CREATE TRIGGER sabotage AFTER INSERT ON nevertwice WHEN new.id = x'{last}'
             BEGIN INSERT INTO child VALUES (1); END"
        ),
    );
    let answers = swap_many(&store, &puts(0..20));
    assert_eq!(answers.len(), 20);
    assert!(answers.iter().all(|answer| matches!(answer, Err(StoreError::Unusable { .. }))));
    assert_eq!(file.rows(), 0);
    execute(&file, "DROP TRIGGER sabotage");
    swap_many(&store, &puts(0..20)).iter().map(done).for_each(drop);
    assert_eq!(file.rows(), 20);
}

fn sabotaged(raise: &str) -> (File, Answers) {
    let file = File::new();
    let (store, third) = (file.store(), id("2"));
    execute(
        &file,
        &format!(
            "CREATE TRIGGER sabotage BEFORE INSERT ON nevertwice WHEN new.id = x'{third}'
             BEGIN SELECT RAISE({raise}, 'sabotage'); END"
        ),
    );
    let answers = swap_many(&store, &puts(0..10));
    assert_eq!(answers.len(), 10);
    (file, answers)
}

#[test]
fn a_swap_that_fails_spoils_no_other_of_its_batch() {
    let (file, answers) = sabotaged("ABORT");
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.is_err(), number == 2);
    }
    assert_eq!(file.rows(), 9);
}

#[test]
fn nothing_is_written_behind_a_swap_that_rolls_the_batch_back() {
    let (file, answers) = sabotaged("ROLLBACK");
    assert!(answers.iter().all(|answer| matches!(answer, Err(StoreError::Unavailable { .. }))));
    assert_eq!(file.rows(), 0);
}

#[test]
fn a_batch_of_replays_takes_no_write_lock() {
    let file = File::new();
    let store = SqliteStore::builder(file.path()).busy_timeout(Duration::from_millis(20)).open().unwrap();
    let batch = puts(0..50);
    let stamps: Vec<Stamp> = swap_many(&store, &batch).iter().map(done).collect();
    let other = file.raw();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let replays = swap_many(&store, &batch);
    assert!(replays.iter().map(conflict).eq(stamps.iter().copied().map(Some)));
    // In a mixed batch, the swap that has to be written is refused and the others are answered.
    let mixed = swap_many(&store, &[put("1", None), put("fresh", None), put("2", None)]);
    assert_eq!((conflict(&mixed[0]), conflict(&mixed[2])), (Some(stamps[1]), Some(stamps[2])));
    assert!(matches!(mixed[1], Err(StoreError::Unavailable { .. })));
    other.execute_batch("ROLLBACK").unwrap();
    done(&swap_many(&store, &[put("fresh", None)])[0]);
}

#[test]
fn s10_a_damaged_record_spoils_only_its_own_swap() {
    let file = File::new();
    let store = file.store();
    swap_many(&store, &puts(0..3)).iter().map(done).for_each(drop);
    let bad = id("1");
    execute(&file, &format!("UPDATE nevertwice SET record = x'00' WHERE id = x'{bad}'"));
    let answers = swap_many(&store, &puts(0..4));
    assert!(conflict(&answers[0]).is_some() && conflict(&answers[2]).is_some());
    assert!(matches!(answers[1], Err(StoreError::Corrupt { id, .. }) if id == bad));
    done(&answers[3]);
}
