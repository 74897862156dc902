//! Power cuts: a file system is cut off from its disk under a working process, and restarted from
//! what the disk has.
//!
//! Everything written to the device counts as kept, synced or not: the cut loses what is still in
//! the machine's memory.

use std::path::Path;

use nevertwice::sqlite::Synchronous;
use nevertwice::store::Store;
use nevertwice::{Durability, SqliteStore};
use rand::rngs::Xoshiro256PlusPlus;
use rand::{RngExt, SeedableRng};

use super::acknowledged::{Acknowledged, Ledger, assert_intact};
use super::disks::{Disk, Kind, say};
use super::worker::{self, Orders, Running, Target};
use super::{scaled, seed};

/// The maximum number of acknowledgements before the cut.
const MOST: u64 = 400;

#[derive(Default)]
struct Toll {
    cuts: u64,
    acknowledged: Acknowledged,
    lost: usize,
    duplicated: usize,
}

#[test]
fn s8_s9_a_power_cut_takes_back_nothing_that_was_acknowledged() {
    if worker::is_worker() {
        return worker::work();
    }
    let test = "power::s8_s9_a_power_cut_takes_back_nothing_that_was_acknowledged";
    for toll in on_each_disk(test, Synchronous::Full, scaled(30)) {
        assert_eq!((toll.lost, toll.duplicated), (0, 0), "lost, duplicated in {} cuts", toll.cuts);
    }
}

/// The weaker level loses what it documents. This also shows that the cuts really lose data.
#[test]
fn a_power_cut_takes_back_commits_at_the_level_that_says_so() {
    if worker::is_worker() {
        return worker::work();
    }
    let dir = tempfile::tempdir().unwrap();
    let store =
        SqliteStore::builder(dir.path().join("x.db")).synchronous(Synchronous::Normal).open().unwrap();
    assert_eq!(store.durability(), Durability::Process);
    let test = "power::a_power_cut_takes_back_commits_at_the_level_that_says_so";
    for toll in on_each_disk(test, Synchronous::Normal, scaled(5)) {
        assert!(toll.lost > 0, "{} cuts took nothing", toll.cuts);
    }
}

/// Makes `cuts` on each kind of disk that this machine has, both at once, and returns the results.
fn on_each_disk(test: &str, level: Synchronous, cuts: u64) -> Vec<Toll> {
    let on = |kind: Kind| {
        let fault = format!("power cut, {}, synchronous={level:?}", kind.name());
        let disk = match Disk::new(kind, if kind == Kind::Xfs { 320 } else { 64 }) {
            Ok(disk) => disk,
            Err(reason) => {
                say(&format!("LEFT OUT: backend=sqlite fault=\"{fault}\": {reason}"));
                return None;
            }
        };
        let toll = cut_again_and_again(test, &disk, level, cuts);
        say(&format!(
            "fault: backend=sqlite fault=\"{fault}\" cuts={} acknowledged={} lost={} duplicated={}",
            toll.cuts, toll.acknowledged.operations, toll.lost, toll.duplicated
        ));
        Some(toll)
    };
    std::thread::scope(|scope| {
        let disks = [Kind::Ext4, Kind::Xfs].map(|kind| scope.spawn(move || on(kind)));
        disks.into_iter().filter_map(|disk| disk.join().unwrap()).collect()
    })
}

fn cut_again_and_again(test: &str, disk: &Disk, level: Synchronous, cuts: u64) -> Toll {
    let world = tempfile::tempdir().unwrap();
    let ledger = world.path().join("effects");
    let folder = disk.path();
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed());
    let mut toll = Toll::default();
    // A machine that happens to write back all of its memory saves unsynced data for a while.
    let is_enough = |toll: &Toll| toll.lost > 0 || level == Synchronous::Full || toll.cuts >= 20 * cuts;
    while toll.cuts < cuts || !is_enough(&toll) {
        let seed = random.random::<u64>() >> 1;
        let orders = Orders {
            test,
            target: Target::File(&folder, level),
            ledger: &ledger,
            seed,
            first: toll.cuts * 10,
        };
        let said = work_until_a_cut(disk, orders, random.random_range(1..MOST));
        disk.come_up();
        assert_intact(&folder);
        let lost = said.lost(&worker::engine(Target::File(&folder, level)));
        toll.lost += lost.len();
        toll.cuts += 1;
        if lost.is_empty() {
            toll.acknowledged.add(&said);
        } else {
            // An operation that is repeated may end differently.
            toll.acknowledged.operations += said.operations;
        }
    }
    if toll.lost == 0 {
        toll.lost += toll.acknowledged.lost(&worker::engine(Target::File(&folder, level))).len();
    }
    toll.duplicated = count_duplicates(&ledger);
    toll
}

fn work_until_a_cut(disk: &Disk, orders: Orders<'_>, most: u64) -> Acknowledged {
    let mut said = Acknowledged::default();
    let mut worker = Running::start(orders);
    worker.follow(most, &mut |line| said.note(line));
    // Frozen first: without power the worker could not acknowledge anything after the cut.
    worker.freeze();
    disk.cut();
    worker.kill(&mut |line| said.note(line));
    said
}

fn count_duplicates(ledger: &Path) -> usize {
    Ledger::read(ledger).duplicated().len()
}
