//! The log beside a long-lived reader, and a purge beside callers that do not stop.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nevertwice::sqlite::Warning;
use nevertwice::store::{Swap, SwapRequest};

use super::*;

const MIB: u64 = 1 << 20;

fn log_of(file: &File) -> u64 {
    fs::metadata(file.0.path().join("keys.db-wal")).map_or(0, |log| log.len())
}

fn reader(file: &File) -> Connection {
    let reader = file.raw();
    reader.execute_batch("BEGIN").unwrap();
    let _: i64 = reader.query_row("SELECT count(*) FROM nevertwice", [], |row| row.get(0)).unwrap();
    reader
}

/// Returns a record whose response is a million equal bytes.
fn large(byte: u8) -> Box<Record> {
    let file = File::new();
    let store = file.store();
    block_on(acquire(&engine(store.clone()), "any").complete(vec![byte; 1_000_000])).unwrap();
    Box::new(stored(&store, "any").unwrap())
}

fn write(store: &SqliteStore, record: &Record, keys: std::ops::Range<usize>) {
    for key in keys {
        let swap = block_on(store.swap(&SwapRequest::new(&id(&key.to_string()), None, Some(record))));
        assert!(matches!(swap, Ok(Swap::Done(_))), "{key}: {swap:?}");
    }
}

#[test]
fn a_log_that_a_reader_made_long_is_warned_of_and_cut_once_the_reader_is_gone() {
    let file = File::new();
    let store = SqliteStore::builder(file.path()).synchronous(Synchronous::Normal).open().unwrap();
    let (record, other) = (large(7), reader(&file));
    write(&store, &record, 0..70);
    assert!(log_of(&file) > 64 * MIB);
    assert!(
        store
            .warnings()
            .iter()
            .any(|warning| matches!(warning, Warning::LongLog { bytes } if *bytes > 64 * MIB))
    );
    drop(other);
    let mut key = 100;
    let small = sample();
    // A separate thread moves the large log, while these writes continue.
    while log_of(&file) > 8 * MIB {
        write(&store, &small, key..key + 1);
        key += 1;
        assert!(key < 200_000, "{} bytes", log_of(&file));
    }
    write(&store, &small, key..key + 1);
    assert!(store.warnings().is_empty());
    drop(store);
    assert_eq!(file.rows(), 70 + key as i64 + 1 - 100);
}

#[test]
fn s12_the_log_counts_where_the_file_is_limited() {
    let file = File::new();
    let store = SqliteStore::builder(file.path())
        .synchronous(Synchronous::Normal)
        .max_bytes(40 * MIB)
        .open()
        .unwrap();
    let engine = engine(store.clone());
    let held = acquire(&engine, "held");
    let other = reader(&file);
    // The rows are few, and written repeatedly. Unchanged pages would not be written.
    let records = [large(7), large(8)];
    write(&store, &records[1], 0..1);
    let mut stamp = stored(&store, "0").unwrap().stamp;
    for turn in 0..60 {
        match block_on(store.swap(&SwapRequest::new(&id("0"), Some(stamp), Some(&records[turn % 2]))))
            .unwrap()
        {
            Swap::Done(next) => stamp = next,
            other => panic!("{other:?}"),
        }
    }
    match store_error(block_on(engine.begin(&request("new")))) {
        StoreError::Full { detail, .. } => assert!(detail.contains("in its log"), "{detail}"),
        other => panic!("{other}"),
    }
    block_on(held.complete("r")).unwrap();
    drop(other);
    // Room becomes available by itself, even if all begins are refused.
    let mut tries = 0;
    while let Err(error) = block_on(engine.begin(&request("new"))) {
        assert!(matches!(error, Error::Store(StoreError::Full { .. })), "{error}");
        tries += 1;
        assert!(tries < 100_000, "{} bytes in the log", log_of(&file));
    }
}

fn batch(record: &Record, key: &AtomicUsize, rows: usize) -> Vec<SwapRequest> {
    let first = key.fetch_add(rows, Ordering::SeqCst);
    let swap = |key: usize| SwapRequest {
        id: id(&key.to_string()),
        expected: None,
        next: Some(Box::new(record.clone())),
    };
    (first..first + rows).map(swap).collect()
}

/// Measured by the rows removed per commit, not by the clock, so that a slow machine cannot fail
/// it.
#[test]
fn l5_a_purge_removes_at_least_as_much_as_comes_in_meanwhile() {
    const OLD: usize = 12_000;
    for (callers, rows) in [(4, 500), (32, 1)] {
        let file = File::new();
        let clock = ManualClock::new();
        let store = file.at(&clock).synchronous(Synchronous::Normal).open().unwrap();
        let (record, key) = (sample(), AtomicUsize::new(0));
        for _ in 0..OLD / 1000 {
            block_on(store.swap_many(&batch(&record, &key, 1000)))
                .into_iter()
                .for_each(|swap| drop(swap.unwrap()));
        }
        clock.advance(RETENTION * 3);
        let (purged, before) = (AtomicBool::new(false), key.load(Ordering::SeqCst));
        std::thread::scope(|scope| {
            for _ in 0..callers {
                scope.spawn(|| {
                    while !purged.load(Ordering::SeqCst) {
                        let answers = block_on(store.swap_many(&batch(&record, &key, rows)));
                        assert!(answers.iter().all(|swap| matches!(swap, Ok(Swap::Done(_)))));
                    }
                });
            }
            scope.spawn(|| {
                while key.load(Ordering::SeqCst) < before + callers * rows {
                    std::thread::yield_now();
                }
                let from = key.load(Ordering::SeqCst);
                let removed = block_on(store.purge(usize::MAX));
                let came = key.load(Ordering::SeqCst) - from;
                purged.store(true, Ordering::SeqCst);
                assert_eq!(removed.unwrap().removed, OLD as u64);
                // The writes queued at its beginning and end come on top.
                assert!(came <= OLD + 4 * callers * rows, "{came} came in while {OLD} were removed");
            });
        });
    }
}

#[test]
fn a_purge_is_bounded_by_its_limit() {
    let file = File::new();
    let clock = ManualClock::new();
    let store = file.at(&clock).open().unwrap();
    let (record, key) = (sample(), AtomicUsize::new(0));
    block_on(store.swap_many(&batch(&record, &key, 450)));
    clock.advance(RETENTION * 3);
    for (limit, removed) in [(0, 0), (1, 1), (101, 101), (300, 300), (1000, 48), (1, 0)] {
        assert_eq!(block_on(store.purge(limit)).unwrap().removed, removed, "{limit}");
    }
}
