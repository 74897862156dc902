//! Ids with a common prefix: the index contains only the start of an id.

use nevertwice::store::{Swap, SwapRequest};
use rusqlite::TransactionBehavior;

use super::*;

/// Returns ids that differ only in their last byte.
fn alike(last: u8) -> RecordId {
    let mut bytes = [7; 32];
    bytes[31] = last;
    RecordId::from_bytes(bytes)
}

fn done(swap: Swap) -> Stamp {
    match swap {
        Swap::Done(stamp) => stamp,
        other => panic!("{other:?}"),
    }
}

#[test]
fn s7_records_whose_ids_start_alike_are_kept_apart() {
    let file = File::new();
    let (store, record) = (file.store(), sample());
    let swap = |last, expected| {
        block_on(store.swap(&SwapRequest::new(&alike(last), expected, Some(&record)))).unwrap()
    };
    let load = |last| block_on(store.load(&alike(last))).unwrap().record.map(|record| record.stamp);
    let first: Vec<Stamp> = (0..5).map(|last| done(swap(last, None))).collect();
    let next = done(swap(2, Some(first[2])));
    assert!(matches!(swap(3, Some(next)), Swap::Conflict(_)));
    assert!(matches!(swap(4, None), Swap::Conflict(_)));
    done(block_on(store.swap(&SwapRequest::new(&alike(1), Some(first[1]), None))).unwrap());
    assert!(block_on(store.discard(&alike(0))).unwrap());
    assert!(!block_on(store.discard(&alike(0))).unwrap());
    let kept: Vec<_> = (0..6).map(load).collect();
    assert_eq!(kept, [None, None, Some(next), Some(first[3]), Some(first[4]), None]);
    assert_eq!(file.rows(), 3);
}

/// Inserts a row with `id` that belongs to no key of the tests.
fn plant(file: &File, id: RecordId) {
    let sql = "INSERT INTO nevertwice (id, stamp, due, record) VALUES (?1, 1, 1, ?2)";
    let record = sample().encode(&id, Stamp(1));
    file.raw().execute(sql, (id.as_bytes().as_slice(), record)).unwrap();
}

/// The index leads to the row of a key whose id was damaged after its start.
#[test]
fn s10_a_row_whose_id_is_damaged_is_not_taken_for_anothers() {
    let file = File::new();
    let (store, request) = (file.store(), request("k"));
    let engine = engine(store.clone());
    block_on(acquire(&engine, "k").complete("r")).unwrap();
    let mut damaged = *request.id().as_bytes();
    damaged[20] ^= 1;
    file.raw().execute("UPDATE nevertwice SET id = ?1", [damaged.as_slice()]).unwrap();
    let begun = block_on(engine.begin(&request));
    assert!(matches!(begun, Err(Error::Store(StoreError::Corrupt { .. }))), "{begun:?}");
    // The operator's remedy.
    assert!(block_on(engine.forget("tests", "k")).unwrap());
    assert!(matches!(block_on(engine.begin(&request)).unwrap(), Begin::Acquired(_)));
}

#[test]
fn s7_a_transaction_is_not_misled_by_an_id_that_starts_alike() {
    let file = File::new();
    let (store, request) = (file.store(), request("k"));
    let engine = engine(store.clone());
    let mut other = *request.id().as_bytes();
    other[31] ^= 1;
    plant(&file, RecordId::from_bytes(other));
    for turn in 0..2 {
        let mut db = file.raw();
        let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
        match nevertwice::sqlite::begin_in(&tx, &store, engine.policy(), &request).unwrap() {
            Begin::Acquired(lease) if turn == 0 => nevertwice::sqlite::complete_in(&tx, &lease, "r").unwrap(),
            begin if turn == 1 => assert_eq!(completed(begin), b"r"),
            other => panic!("{other:?}"),
        }
        tx.commit().unwrap();
    }
    assert_eq!(replay(&engine, "k"), b"r");
    assert_eq!(file.rows(), 2);
}

#[test]
fn s1_two_deferred_transactions_do_not_both_add_a_key() {
    let file = File::new();
    let (store, request) = (file.store(), request("k"));
    let engine = engine(store.clone());
    let (mut one, mut two) = (file.raw(), file.raw());
    let (one, two) = (one.transaction().unwrap(), two.transaction().unwrap());
    // Both have read the file before either writes.
    for tx in [&one, &two] {
        let _: i64 = tx.query_row("SELECT count(*) FROM nevertwice", [], |row| row.get(0)).unwrap();
    }
    let first = nevertwice::sqlite::begin_in(&one, &store, engine.policy(), &request).unwrap();
    assert!(matches!(first, Begin::Acquired(_)));
    one.commit().unwrap();
    let second = nevertwice::sqlite::begin_in(&two, &store, engine.policy(), &request);
    assert!(matches!(second, Err(Error::Store(StoreError::Unavailable { .. }))), "{second:?}");
    drop(two);
    assert_eq!(file.rows(), 1);
}
