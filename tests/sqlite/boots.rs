//! One time for all processes of a boot, and its course when the machine or the clock changes.

use std::sync::{Arc, Mutex};

use nevertwice::sqlite;
use rusqlite::TransactionBehavior;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn now(store: &SqliteStore) -> Stamp {
    block_on(store.load(&id("any"))).unwrap().now
}

/// Asserts that two stores agree on the time, with a tolerance: several writes within a microsecond
/// take a store ahead of its clock, and these clocks stand still.
#[track_caller]
fn assert_agree(one: &SqliteStore, two: &SqliteStore) {
    let (one, two) = (now(one), now(two));
    assert!(one.since(two).max(two.since(one)) < Duration::from_millis(1), "{one:?} and {two:?}");
}

fn stamp(wall: Duration) -> Stamp {
    Stamp::ZERO.after(wall)
}

#[track_caller]
fn assert_refused(opened: Result<SqliteStore, StoreError>, words: &str) {
    match opened {
        Err(StoreError::Unusable { detail, .. }) => assert!(detail.contains(words), "{detail}"),
        other => panic!("{other:?}"),
    }
}

/// Uses the keys `done`, `marked` and `live` as their names say. Returns the leases of the latter
/// two.
fn use_keys(engine: &Engine) -> [Lease; 2] {
    block_on(acquire(engine, "done").complete("r")).unwrap();
    let marked = acquire(engine, "marked");
    block_on(marked.mark_effect()).unwrap();
    [marked, acquire(engine, "live")]
}

/// Asserts that no key left by [`use_keys`] is granted.
#[track_caller]
fn assert_kept(engine: &Engine) {
    assert_eq!(replay(engine, "done"), b"r");
    for key in ["marked", "live"] {
        let begin = block_on(engine.begin(&request(key))).unwrap();
        assert!(matches!(begin, Begin::InProgress(_)), "{key}: {begin:?}");
    }
    assert_eq!(block_on(engine.purge(usize::MAX)).unwrap(), 0);
}

/// From a year before to seventy years after: the first wall clock to open the file sets the time,
/// and the other changes nothing.
#[test]
fn s13_processes_of_one_boot_see_one_time_whatever_their_wall_clocks_say() {
    let clock = ManualClock::new();
    let right = clock.wall();
    for wrong in
        [right - 365 * DAY, right - 3 * DAY, right + 25 * HOUR, right + 70 * 365 * DAY, Duration::ZERO]
    {
        for (first, second) in [(wrong, right), (right, wrong)] {
            let file = File::new();
            let one = file.at(&same_boot(&clock, first)).open().unwrap();
            let _held = use_keys(&engine(one.clone()));
            clock.advance(5 * SECOND);
            let two = file.at(&same_boot(&clock, second)).open().unwrap();
            assert_agree(&one, &two);
            assert!(now(&one).since(stamp(first)) < 6 * SECOND);
            assert_kept(&engine(two.clone()));
            assert_kept(&engine(one.clone()));
            clock.advance(HOUR);
            assert_agree(&one, &two);
        }
    }
}

#[test]
fn s13_a_holder_believes_in_its_lease_no_longer_than_the_store_over_a_suspend() {
    let file = File::new();
    let clock = ManualClock::new();
    let at = |wall| {
        Engine::builder(file.at(&same_boot(&clock, wall)).open().unwrap()).lease(LEASE).clock(clock.clone())
    };
    let one = at(clock.wall()).build().unwrap();
    let lease = acquire(&one, "k");
    clock.advance(LEASE); // asleep
    assert_eq!(lease.remaining(), Duration::ZERO);
    let two = at(clock.wall() - 3 * DAY).build().unwrap();
    assert!(acquire(&two, "k").takeover());
}

#[test]
fn s13_racing_openers_agree() {
    let file = File::new();
    let clock = ManualClock::new();
    for _ in 0..5 {
        let stores: Vec<_> = std::thread::scope(|scope| {
            let open = |hour: u32| {
                let clock = same_boot(&clock, clock.wall() + hour * HOUR);
                let file = &file;
                scope.spawn(move || file.at(&clock).busy_timeout(Duration::from_secs(60)).open().unwrap())
            };
            let opening: Vec<_> = (0..8).map(open).collect();
            opening.into_iter().map(|store| store.join().unwrap()).collect()
        });
        stores.iter().for_each(|store| assert_eq!(now(store), now(&stores[0])));
        drop(stores);
        clock.reboot();
    }
}

#[test]
fn an_anchored_file_is_opened_without_the_write_lock() {
    let file = File::new();
    let clock = ManualClock::new();
    let first = file.at(&clock).open().unwrap();
    let other = file.raw();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let second = file.at(&clock).busy_timeout(Duration::ZERO).open().unwrap();
    assert_agree(&first, &second);
}

/// Restarts the machine with a wall clock that is off by `step`. Returns how far the time is then
/// ahead of, and behind, the last time before the restart.
fn after_reboot(
    step: i64,
    set: impl FnOnce(SqliteStoreBuilder) -> SqliteStoreBuilder,
) -> (Duration, Duration) {
    let file = File::new();
    let clock = ManualClock::new();
    let before = file.at(&clock).open().unwrap();
    block_on(acquire(&engine(before.clone()), "done").complete("r")).unwrap();
    let last = now(&before);
    drop(before);
    clock.reboot();
    let wall = i64::try_from(clock.wall().as_secs()).unwrap() + step;
    clock.set_wall(Duration::from_secs(wall.try_into().unwrap()));
    let store = set(file.at(&clock)).open().unwrap();
    let start = now(&store);
    clock.set_wall(Duration::ZERO);
    clock.advance(HOUR);
    let others = file.at(&clock).open().unwrap();
    assert_agree(&others, &store);
    assert_eq!(now(&store).since(start), HOUR, "time goes on");
    assert!(acquire(&engine(store), "new").fence() > last);
    (start.since(last), last.since(start))
}

#[test]
fn s13_after_a_restart_the_wall_clock_takes_time_30_days_forward_at_most_and_never_back() {
    let days = |days: i64| days * 86_400;
    for back in [1, days(1), days(29), days(31), days(365)] {
        assert_eq!(after_reboot(-back, |builder| builder), (Duration::ZERO, Duration::ZERO), "{back} s back");
    }
    for forward in [1, days(1), days(29), days(30) - 1] {
        let (ahead, _) = after_reboot(forward, |builder| builder);
        let off = Duration::from_secs(forward.unsigned_abs()).abs_diff(ahead);
        assert!(off < SECOND, "{forward} s forward gave {ahead:?}");
    }
    for forward in [days(31), days(70 * 365)] {
        assert_eq!(after_reboot(forward, |builder| builder).0, Duration::ZERO, "{forward} s forward");
        let (ahead, _) = after_reboot(forward, |builder| builder.max_clock_step(Duration::MAX));
        assert!(Duration::from_secs(forward.unsigned_abs()).abs_diff(ahead) < SECOND);
        let (ahead, _) = after_reboot(forward, |builder| builder.accept_clock());
        assert!(Duration::from_secs(forward.unsigned_abs()).abs_diff(ahead) < SECOND);
    }
    assert_eq!(after_reboot(60, |builder| builder.max_clock_step(50 * SECOND)).0, Duration::ZERO);
}

#[test]
fn s13_a_start_in_2096_purges_nothing() {
    let file = File::new();
    let clock = ManualClock::new();
    let right = clock.wall();
    let first = engine(file.at(&clock).open().unwrap());
    block_on(acquire(&first, "done").complete("r")).unwrap();
    clock.set_wall(right + 70 * 365 * DAY);
    let assert_nothing_is_over = || {
        let ahead = engine(file.at(&clock).open().unwrap());
        assert_eq!(block_on(ahead.purge(usize::MAX)).unwrap(), 0);
        assert_eq!(replay(&ahead, "done"), b"r");
    };
    assert_nothing_is_over();
    drop(first);
    assert_nothing_is_over();
    clock.reboot();
    assert_nothing_is_over();
}

#[test]
fn an_accepted_clock_counts_for_every_process_and_once() {
    let file = File::new();
    let clock = ManualClock::new();
    let one = file.at(&clock).open().unwrap();
    let engine_ = engine(one.clone());
    block_on(acquire(&engine_, "done").complete("r")).unwrap();
    let later = clock.wall() + 400 * DAY;
    let two = file.at(&same_boot(&clock, later)).accept_clock().open().unwrap();
    assert_eq!(now(&two), stamp(later));
    // The store that was open sees it with its next write.
    let _ = acquire(&engine_, "another");
    assert_agree(&one, &two);
    assert_eq!(acquire(&engine_, "done").attempt(), 1);
    // The time does not move back for a clock that is behind.
    let three = file.at(&same_boot(&clock, later - 100 * DAY)).accept_clock().open().unwrap();
    assert!(now(&three) >= now(&two));
    let four = file.at(&clock).open().unwrap();
    assert_agree(&four, &three);
}

/// A machine that was set back to a snapshot: its boot id and boot clock are those of before.
#[derive(Debug, Clone)]
struct Resumed(ManualClock, Arc<Mutex<Duration>>);

impl Clock for Resumed {
    fn wall(&self) -> Duration {
        self.0.wall()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic().saturating_sub(*self.1.lock().unwrap())
    }

    fn sleep(&self, time: Duration) -> Sleep {
        self.0.sleep(time)
    }

    fn boot(&self) -> Option<Boot> {
        self.0.boot().map(|boot| Boot { elapsed: self.monotonic(), ..boot })
    }
}

#[test]
fn s13_a_machine_set_back_to_a_snapshot_goes_on_from_the_mark() {
    let file = File::new();
    let clock = Resumed(ManualClock::new(), Arc::default());
    let survivor = file.at(&clock).open().unwrap();
    let _ = acquire(&engine(survivor.clone()), "first");
    clock.0.advance(DAY);
    let lease = acquire(&engine(file.at(&clock).open().unwrap()), "k");
    let mark = lease.fence();
    *clock.1.lock().unwrap() = DAY;
    // One store that opens the file, one that opens it later, and one that had it open all along.
    let one = file.at(&clock).open().unwrap();
    assert!(now(&one) >= mark);
    clock.0.advance(10 * SECOND);
    let two = file.at(&clock).open().unwrap();
    assert!(now(&one).since(mark) >= 10 * SECOND, "time does not freeze");
    assert_agree(&one, &two);
    assert!(acquire(&engine(survivor.clone()), "another").fence() > mark);
    assert_agree(&survivor, &two);
    clock.0.advance(LEASE);
    assert!(acquire(&engine(two), "k").takeover());
    drop((one, survivor));
}

#[test]
fn s13_a_store_that_was_open_in_the_snapshot_anchors_anew_for_all() {
    let file = File::new();
    let clock = Resumed(ManualClock::new(), Arc::default());
    let store = file.at(&clock).open().unwrap();
    let engine = engine(store.clone());
    clock.0.advance(DAY);
    let mark = acquire(&engine, "k").fence();
    *clock.1.lock().unwrap() = DAY;
    assert!(acquire(&engine, "another").fence() > mark);
    clock.0.advance(HOUR);
    let other = file.at(&clock).open().unwrap();
    assert!(now(&other).since(mark) >= HOUR);
    assert_agree(&store, &other);
}

const DAMAGES: [&str; 4] = [
    "x''",
    "x'00'",
    "CAST(substr(anchor, 1, 20) || x'ff' || substr(anchor, 22) AS BLOB)",
    "CAST(anchor || x'00' AS BLOB)",
];

#[test]
fn s13_a_damaged_anchor_moves_no_time_by_years() {
    for damage in DAMAGES {
        let file = File::new();
        let clock = ManualClock::new();
        let before = file.at(&clock).open().unwrap();
        block_on(acquire(&engine(before.clone()), "done").complete("r")).unwrap();
        clock.advance(SECOND);
        let last = now(&before);
        drop(before);
        file.raw().execute_batch(&format!("UPDATE nevertwice_meta SET anchor = {damage}")).unwrap();
        clock.set_wall(clock.wall() + 70 * 365 * DAY);
        let after = file.at(&clock).open().unwrap();
        assert!(now(&after) >= last && now(&after).since(last) < SECOND, "{damage}");
        assert_eq!(replay(&engine(after), "done"), b"r");
    }
}

#[test]
fn s13_an_anchor_damaged_under_an_open_store_is_mended_by_its_next_write() {
    for damage in DAMAGES {
        let file = File::new();
        let clock = ManualClock::new();
        let store = file.at(&clock).open().unwrap();
        clock.advance(HOUR);
        let last = now(&store);
        file.raw().execute_batch(&format!("UPDATE nevertwice_meta SET anchor = {damage}")).unwrap();
        let opened = file.at(&clock).open();
        assert!(matches!(opened, Err(StoreError::Unavailable { .. })), "{damage}: {opened:?}");
        block_on(acquire(&engine(store.clone()), "k").complete("r")).unwrap();
        let other = file.at(&clock).open().unwrap();
        assert_agree(&other, &store);
        assert!(now(&other) >= last);
    }
}

#[test]
fn s13_a_file_that_is_open_in_another_boot_is_refused_and_opens_at_once_when_it_is_closed() {
    let file = File::new();
    let (here, there) = (ManualClock::new(), ManualClock::new());
    for _ in 0..3 {
        let store = file.at(&here).open().unwrap();
        assert_refused(file.at(&there).open(), "another machine");
        assert_refused(file.at(&there).accept_clock().open(), "another machine");
        let second = file.at(&here).open().unwrap();
        drop(store);
        assert_refused(file.at(&there).open(), "another machine");
        assert!(acquire(&engine(second.clone()), "k").attempt() > 0);
        assert!(block_on(engine(second).forget("tests", "k")).unwrap());
        drop(file.at(&there).open().unwrap());
    }
}

#[test]
fn s13_racing_openers_of_two_boots_are_of_one_boot_in_the_end() {
    let file = File::new();
    let clocks = [ManualClock::new(), ManualClock::new()];
    for _ in 0..20 {
        let opened: Vec<_> = std::thread::scope(|scope| {
            let open = |at: usize| {
                let (clock, file) = (clocks[at % 2].clone(), &file);
                scope.spawn(move || (at % 2, file.at(&clock).busy_timeout(Duration::from_secs(60)).open()))
            };
            let opening: Vec<_> = (0..6).map(open).collect();
            opening.into_iter().map(|store| store.join().unwrap()).collect()
        });
        let boots: Vec<usize> =
            opened.iter().filter(|(_, store)| store.is_ok()).map(|(boot, _)| *boot).collect();
        assert!(!boots.is_empty() && boots.iter().all(|boot| *boot == boots[0]), "{opened:?}");
    }
}

/// The tables of one file are opened one after the other. Those not yet opened still have the
/// anchor of the previous boot.
#[test]
fn s13_another_table_of_the_same_file_is_opened_after_a_restart() {
    let file = File::new();
    let clock = ManualClock::new();
    let open = |table: &str| file.at(&clock).table(table).open();
    drop((open("a").unwrap(), open("b").unwrap()));
    clock.reboot();
    let a = open("a").unwrap();
    let b = open("b").unwrap();
    drop((a, b));
    let _a = open("a").unwrap();
    // SQLite treats it as the same table, so it has the same claim.
    assert_refused(file.at(&ManualClock::new()).table("A").open(), "another machine");
}

/// As if locks did not reach the other machine.
#[test]
fn s10_a_store_whose_file_was_taken_over_by_another_boot_writes_nothing_more() {
    let (file, elsewhere) = (File::new(), File::new());
    let clock = ManualClock::new();
    let store = file.at(&clock).open().unwrap();
    let engine = engine(store.clone());
    block_on(acquire(&engine, "done").complete("r")).unwrap();
    let held = acquire(&engine, "held");
    drop(elsewhere.store());
    let anchor: Vec<u8> =
        elsewhere.raw().query_row("SELECT anchor FROM nevertwice_meta", [], |row| row.get(0)).unwrap();
    let own: Vec<u8> =
        file.raw().query_row("SELECT anchor FROM nevertwice_meta", [], |row| row.get(0)).unwrap();
    let set = |anchor: &[u8]| file.raw().execute("UPDATE nevertwice_meta SET anchor = ?1", [anchor]).unwrap();
    set(&anchor);
    let taken = |error: &StoreError| matches!(error, StoreError::Unusable { detail, .. } if detail.contains("opened it meanwhile"));
    assert!(taken(&store_error(block_on(engine.begin(&request("new"))))));
    assert!(matches!(block_on(held.complete("x")), Err(Error::Store(error)) if taken(&error)));
    assert!(matches!(block_on(engine.purge(1)), Err(Error::Store(error)) if taken(&error)));
    let mut db = file.raw();
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    let begin = sqlite::begin_in(&tx, &store, engine.policy(), &request("new"));
    assert!(matches!(begin, Err(Error::Store(error)) if taken(&error)));
    drop(tx);
    // Final outcomes are still answered.
    assert_eq!(replay(&engine, "done"), b"r");
    assert_eq!(file.rows(), 2);
    set(&own);
    block_on(held.complete("x")).unwrap();
    // It does not leave its own time behind either.
    clock.advance(DAY);
    set(&anchor);
    let mark = |file: &File| -> i64 {
        file.raw().query_row("SELECT high_water FROM nevertwice_meta", [], |row| row.get(0)).unwrap()
    };
    let before = mark(&file);
    drop((held, engine, store, db));
    assert_eq!(mark(&file), before);
}

#[test]
fn a_file_that_was_copied_to_another_machine_takes_its_wall_clock() {
    let file = File::new();
    let clock = ManualClock::new();
    let store = file.at(&clock).open().unwrap();
    let lease = acquire(&engine(store), "k");
    let copy = file.killed();
    let there = ManualClock::starting_at(clock.wall() + DAY);
    there.advance(HOUR);
    let store = copy.at(&there).open().unwrap();
    assert_eq!(now(&store), stamp(there.wall()));
    assert!(acquire(&engine(store), "other").fence() > lease.fence());
}

/// A clock that does not know its boot.
#[derive(Debug, Clone)]
struct Bootless(ManualClock);

impl Clock for Bootless {
    fn wall(&self) -> Duration {
        self.0.wall()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }

    fn sleep(&self, time: Duration) -> Sleep {
        self.0.sleep(time)
    }
}

#[test]
fn s13_without_a_boot_each_process_goes_by_its_wall_clock_and_never_below_the_mark() {
    let file = File::new();
    let clock = Bootless(ManualClock::new());
    let right = clock.wall();
    let one = file.at(&clock).open().unwrap();
    let held = use_keys(&engine(one.clone()));
    let last = now(&one);
    clock.0.set_wall(right - 3 * DAY);
    let two = file.at(&clock).open().unwrap();
    assert!(last.since(now(&two)) <= Duration::from_millis(100));
    assert_kept(&engine(two.clone()));
    clock.0.set_wall(right + 31 * DAY);
    assert_kept(&engine(file.at(&clock).open().unwrap()));
    // Clocks with and without a boot do not mix.
    assert_refused(file.at(&clock.0).open(), "another machine");
    drop((one, two, held));
    let booted = file.at(&clock.0).open().unwrap();
    assert_refused(file.at(&clock).open(), "another machine");
    drop(booted);
    assert!(file.at(&clock).accept_clock().open().is_ok_and(|store| now(&store) == stamp(clock.wall())));
}

#[test]
fn the_identity_of_a_store_is_its_files_and_its_tables() {
    let file = File::new();
    let clock = ManualClock::new();
    let open = |table: &str| file.at(&clock).table(table).open().unwrap();
    let store = open("keys");
    let id = store.identity();
    assert_eq!(open("keys").identity(), id);
    assert_eq!(open("KEYS").identity(), id, "to SQLite it is the same table");
    assert_ne!(open("others").identity(), id);
    drop(store);
    assert_eq!(open("keys").identity(), id);
    assert_ne!(File::new().store().identity(), File::new().store().identity());
    let _ = acquire(&engine(file.store()), "k");
    let kept = file.store();
    let copy = file.killed().at(&clock).open().unwrap();
    assert_eq!(copy.identity(), kept.identity());
    file.raw().execute("UPDATE keys_meta SET store = zeroblob(20)", []).unwrap();
    assert_refused(file.at(&clock).table("keys").open(), "id in table keys_meta is damaged");
}

#[cfg(unix)]
#[test]
fn the_lock_has_the_permissions_of_the_database_under_every_name() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let file = File::new();
    let db = file.raw();
    db.execute_batch("CREATE TABLE payments (amount)").unwrap();
    std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o660)).unwrap();
    let clock = ManualClock::new();
    let _store = file.at(&clock).open().unwrap();
    let lock = std::fs::metadata(file.0.path().join("keys.db-nevertwice-lock")).unwrap();
    assert_eq!((lock.permissions().mode() & 0o777, lock.len()), (0o660, 0));
    let link = file.0.path().join("link.db");
    symlink(file.path(), &link).unwrap();
    assert_refused(SqliteStore::builder(&link).clock(ManualClock::new()).open(), "another machine");
}

#[cfg(feature = "tracing")]
#[test]
fn a_clock_that_is_not_believed_and_one_without_a_boot_are_warned_of() {
    use super::warned::Warned;
    let file = File::new();
    let clock = ManualClock::new();
    let _ = acquire(&engine(file.at(&clock).open().unwrap()), "k");
    let warned = Warned::default();
    tracing::subscriber::with_default(warned.clone(), || {
        for (days, names) in [(29, &[][..]), (70, &["nevertwice.clock_step"])] {
            clock.reboot();
            clock.set_wall(clock.wall() + days * DAY);
            drop((file.at(&clock).open().unwrap(), file.at(&clock).open().unwrap()));
            assert_eq!(warned.take(), names, "once a boot, after {days} days");
        }
        drop(file.at(&clock).accept_clock().open().unwrap());
        assert!(warned.take().is_empty());
        drop(file.at(&Bootless(clock.clone())).open().unwrap());
        assert!(warned.take().contains(&"nevertwice.clock_without_boot"));
    });
}
