//! Listing the records of a store.

use std::collections::BTreeMap;

use nevertwice::Cursor;
use nevertwice::store::{Page, SwapRequest};

use super::*;

fn filled(file: &File, keys: std::ops::Range<usize>) -> SqliteStore {
    let store = file.store();
    let next = Some(Box::new(sample()));
    let put = |key: usize| SwapRequest { id: id(&key.to_string()), expected: None, next: next.clone() };
    let puts: Vec<SwapRequest> = keys.map(put).collect();
    assert!(block_on(store.swap_many(&puts)).iter().all(Result::is_ok));
    store
}

fn page(store: &SqliteStore, after: Option<&Cursor>, limit: usize) -> Page {
    let page = block_on(store.scan(after, limit)).unwrap();
    assert!(page.records.len() + page.unreadable.len() <= limit);
    assert!(page.records.iter().all(|(_, record)| record.stamp <= page.now));
    page
}

/// Counts how often each id appears in a scan with pages of `limit`, calling `meanwhile` between
/// them.
fn scan(store: &SqliteStore, limit: usize, mut meanwhile: impl FnMut(usize)) -> BTreeMap<RecordId, usize> {
    let (mut seen, mut after, mut pages) = (BTreeMap::new(), None, 0);
    loop {
        let page = page(store, after.as_ref(), limit);
        for (id, record) in page.records {
            assert_eq!(block_on(store.load(&id)).unwrap().record.as_deref(), Some(&record));
            *seen.entry(id).or_default() += 1;
        }
        let Some(next) = page.next else { return seen };
        after = Some(next);
        pages += 1;
        meanwhile(pages);
    }
}

#[test]
fn every_record_comes_exactly_once_whatever_the_size_of_the_pages() {
    let file = File::new();
    assert_eq!(page(&file.store(), None, 10).next, None);
    let store = filled(&file, 0..60);
    for limit in [1, 7, 20, 59, 60, 61, usize::MAX] {
        let mut pages = 1;
        let seen = scan(&store, limit, |_| pages += 1);
        assert_eq!((seen.len(), seen.values().sum::<usize>()), (60, 60), "pages of {limit}");
        assert_eq!(pages, 60_usize.div_ceil(limit));
    }
    assert!(page(&store, None, 0).next.is_some(), "nothing was listed, so this is not the end");
}

#[test]
fn what_is_there_all_the_time_comes_once_while_others_come_and_go() {
    let file = File::new();
    let store = filled(&file, 0..60);
    let seen = scan(&store, 5, |pages| {
        // Every third record is removed, from both ends; new ones are added, and those that stay
        // are written again.
        let gone = id(&(3 * (if pages % 2 == 0 { pages } else { 20 - pages.min(20) })).to_string());
        let _ = block_on(store.discard(&gone)).unwrap();
        if pages < 10 {
            filled(&file, 100 + pages..101 + pages);
        }
        let stays = id(&(3 * (pages % 19) + 1).to_string());
        let record = block_on(store.load(&stays)).unwrap().record.unwrap();
        block_on(store.swap(&SwapRequest::new(&stays, Some(record.stamp), Some(&record)))).unwrap();
    });
    assert!(seen.values().all(|times| *times == 1));
    for key in (0..60).filter(|key| key % 3 != 0) {
        assert_eq!(seen.get(&id(&key.to_string())), Some(&1), "{key}");
    }
}

#[test]
fn s10_damaged_rows_are_reported_and_spoil_no_page() {
    let file = File::new();
    let store = filled(&file, 0..9);
    let damaged = [id("2"), id("5")];
    for (id, change) in damaged.iter().zip(["record = x'00'", "stamp = -1"]) {
        file.raw().execute(&format!("UPDATE nevertwice SET {change} WHERE id = x'{id}'"), []).unwrap();
    }
    // No key leads to these rows.
    let sql = "INSERT INTO nevertwice (id, stamp, due, record) VALUES (x'', 1, 1, x''), (x'0102', 1, 1, x'')";
    file.raw().execute(sql, []).unwrap();
    for limit in [3, 100] {
        let (mut readable, mut unreadable, mut after) = (0, Vec::new(), None);
        loop {
            let page = page(&store, after.as_ref(), limit);
            readable += page.records.len();
            unreadable.extend(page.unreadable);
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!((readable, unreadable.as_slice()), (7, damaged.as_slice()));
    }
}

#[test]
fn large_records_make_short_pages_and_none_is_left_out() {
    let file = File::new();
    let engine = file.engine();
    for key in 0..12 {
        block_on(acquire(&engine, &key.to_string()).complete(vec![1; 1_000_000])).unwrap();
    }
    let store = file.store();
    let mut pages = 1;
    assert_eq!(scan(&store, 100, |_| pages += 1).len(), 12);
    assert!(pages > 1);
}

#[test]
fn a_cursor_that_is_none_is_refused() {
    let file = File::new();
    let store = filled(&file, 0..3);
    for bytes in [vec![], vec![1; 7], vec![1; 9]] {
        let refused = block_on(store.scan(Some(&Cursor(bytes)), 10));
        assert!(matches!(refused, Err(StoreError::Unusable { .. })), "{refused:?}");
    }
}
