//! A disk that fills up under a store, and is emptied again.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use nevertwice::{Error, StoreError};

use super::disks::{Disk, Kind, say};
use super::*;

/// The limit at which begins are refused, on a disk several times as large.
const SOFT: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(3);

#[test]
fn s12_a_full_disk_refuses_begins_keeps_what_it_has_and_goes_on_once_there_is_room() {
    for (kind, mib) in [(Kind::Tmpfs, 8), (Kind::Ext4, 16)] {
        match Disk::new(kind, mib) {
            Ok(disk) => fill(kind, disk.path().as_path()),
            Err(reason) => {
                say(&format!("LEFT OUT: backend=sqlite fault=\"disk full, {}\": {reason}", kind.name()))
            }
        }
    }
}

fn fill(kind: Kind, folder: &Path) {
    let path = folder.join(FILE);
    let soft = engine(SqliteStore::builder(&path).max_bytes(SOFT).open().unwrap(), PATIENCE);
    let mut held =
        begin_until_refused(&soft, "soft", |error| matches!(error, Error::Store(StoreError::Full { .. })));
    // Half of them are finished above the soft limit: every one of those must succeed.
    let rest = held.split_off(held.len() / 2);
    let finished = held.len();
    for (key, lease) in held {
        block_on(lease.complete(response(&key))).unwrap();
        assert_replays(&soft, &key);
    }

    let hard = engine(SqliteStore::open(&path).unwrap(), PATIENCE);
    stuff(folder);
    let refuses = |error: &Error| match error {
        Error::Store(error) => matches!(error, StoreError::Full { .. } | StoreError::Unavailable { .. }),
        other => matches!(other, Error::TimedOut { .. }),
    };
    let squeezed = begin_until_refused(&hard, "hard", refuses);
    let granted = squeezed.len();
    let mut late = Vec::new();
    let mut answered = Vec::new();
    for (key, lease) in rest.into_iter().chain(squeezed) {
        match block_on(lease.complete(response(&key))) {
            Ok(()) => answered.push(key),
            Err(error) if refuses(&error) => late.push((key, lease)),
            Err(error) => panic!("{key}: {error}"),
        }
        // One key that waits until its time limit is enough.
        if late.len() > 1 {
            break;
        }
    }
    assert_replays(&hard, "soft 0");

    fs::remove_file(folder.join("stuff")).unwrap();
    for (key, lease) in &late {
        block_on(lease.complete(response(key))).unwrap();
        assert_replays(&hard, key);
    }
    block_on(acquire(&hard, "afterwards").complete(response("afterwards"))).unwrap();
    drop((soft, hard, late));
    assert_intact(folder);
    let again = open(folder);
    (0..finished).for_each(|key| assert_replays(&again, &format!("soft {key}")));
    answered.iter().for_each(|key| assert_replays(&again, key));
    assert_replays(&again, "afterwards");
    say(&format!(
        "fault: backend=sqlite fault=\"disk full, {}\" finished_above_soft_limit={finished} granted_while_full={granted} \
         finished_while_full={} lost=0 duplicated=0",
        kind.name(),
        answered.len()
    ));
}

/// Returns the leases of all begins that found room.
fn begin_until_refused(
    engine: &Engine,
    name: &str,
    refuses: impl Fn(&Error) -> bool,
) -> Vec<(String, Lease)> {
    let mut held = Vec::new();
    loop {
        let key = format!("{name} {}", held.len());
        match block_on(engine.begin(&request(&key))) {
            Ok(Begin::Acquired(lease)) => held.push((key, lease)),
            Err(error) if refuses(&error) => return held,
            other => panic!("{other:?}"),
        }
        assert!(held.len() < 100_000, "never full");
    }
}

/// Fills the disk to the last byte.
fn stuff(folder: &Path) {
    let mut file = File::create(folder.join("stuff")).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while file.write(&vec![7; size]).is_ok_and(|written| written > 0) {}
    }
    let _ = file.sync_all();
}
