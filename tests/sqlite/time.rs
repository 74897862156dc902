//! Stamps, fences and deadlines, across restarts and wrong clocks.

use super::*;

#[test]
fn records_survive_a_reopen_byte_for_byte() {
    let file = File::new();
    let engine = file.engine();
    let body: Vec<u8> = (0..=255).collect();
    block_on(acquire(&engine, "done").complete(body.clone())).unwrap();
    let held = acquire(&engine, "held");
    drop(engine);
    let engine = file.engine();
    assert_eq!(replay(&engine, "done"), body);
    assert!(matches!(block_on(engine.begin(&request("held"))).unwrap(), Begin::InProgress(_)));
    block_on(async { engine.resume(&held.token()).await.unwrap().complete("late").await }).unwrap();
    assert_eq!(replay(&engine, "held"), b"late");
}

#[test]
fn s5_fences_increase_across_restart_with_the_clock_set_back() {
    let file = File::new();
    let mut last = Stamp::ZERO;
    for day in (1..=5).rev() {
        let clock = ManualClock::starting_at(Duration::from_secs(day * 86_400));
        let engine = engine(file.at(&clock).open().unwrap());
        for _ in 0..3 {
            let lease = acquire(&engine, "k");
            assert!(lease.fence() > last, "{:?} after {last:?}", lease.fence());
            last = lease.fence();
            block_on(lease.release()).unwrap();
        }
        assert!(!block_on(engine.forget("tests", "k")).unwrap());
    }
}

#[test]
fn s5_fences_increase_across_purge_and_discard() {
    let file = File::new();
    let clock = ManualClock::new();
    let store = file.at(&clock).open().unwrap();
    let engine_ = engine(store.clone());
    let first = acquire(&engine_, "k").fence();
    clock.advance(RETENTION * 2);
    assert_eq!(block_on(engine_.purge(10)).unwrap(), 1);
    drop((engine_, store));
    let back = ManualClock::starting_at(Duration::from_secs(1));
    let store = file.at(&back).open().unwrap();
    let engine = engine(store.clone());
    let second = acquire(&engine, "k").fence();
    // The purge itself showed that the retention had passed, so the time does not fall behind it.
    assert!(second.since(first) >= RETENTION * 2);
    assert!(block_on(store.discard(&request("k").id())).unwrap());
    assert!(!block_on(store.discard(&request("k").id())).unwrap());
    assert!(acquire(&engine, "k").fence() > second);
}

#[test]
fn s13_a_clock_set_back_revives_no_lease() {
    let file = File::new();
    let clock = ManualClock::starting_at(Duration::from_secs(1_000_000));
    let engine_ = engine(file.at(&clock).open().unwrap());
    let first = acquire(&engine_, "k");
    clock.advance(LEASE);
    clock.set_wall(Duration::ZERO); // a running store does not even notice
    let second = acquire(&engine_, "k");
    assert!(second.takeover());
    let [first, second] = [first, second].map(|lease| lease.token());
    drop(engine_);
    let back = ManualClock::starting_at(Duration::ZERO);
    let engine = engine(file.at(&back).open().unwrap());
    let complete = |token: &LeaseToken| block_on(async { engine.resume(token).await?.complete("x").await });
    assert!(matches!(complete(&first), Err(Error::LeaseLost { .. })));
    // The time continues from the greatest stamp of the file, so the second lease ends as planned.
    back.advance(LEASE - Duration::from_micros(2));
    assert!(matches!(block_on(engine.begin(&request("k"))).unwrap(), Begin::InProgress(_)));
    back.advance(Duration::from_micros(2));
    assert_eq!(acquire(&engine, "k").attempt(), 3);
    assert!(matches!(complete(&second), Err(Error::LeaseLost { .. })));
}

#[test]
fn s13_a_lease_that_was_over_is_over_after_a_restart_with_the_clock_set_back() {
    let file = File::new();
    let clock = ManualClock::new();
    let before = engine(file.at(&clock).open().unwrap());
    drop(acquire(&before, "k"));
    clock.advance(LEASE);
    let _ = acquire(&before, "another");
    drop(before);
    let after = engine(file.at(&ManualClock::starting_at(Duration::ZERO)).open().unwrap());
    assert!(acquire(&after, "k").takeover());
}

#[test]
fn s13_purge_removes_nothing_before_its_deadline() {
    let file = File::new();
    let clock = ManualClock::new();
    let store = file.at(&clock).open().unwrap();
    let engine = engine(store.clone());
    for key in 0..250 {
        let _ = acquire(&engine, &key.to_string());
    }
    let for_ever = request("for ever").retention(Duration::MAX);
    assert!(matches!(block_on(engine.begin(&for_ever)).unwrap(), Begin::Acquired(_)));
    clock.advance(RETENTION - Duration::from_micros(1000));
    assert_eq!(block_on(engine.purge(usize::MAX)).unwrap(), 0);
    assert_eq!(file.rows(), 251);
    // Deadlines are stored in units of about a minute.
    clock.advance(Duration::from_secs(120));
    assert_eq!(block_on(engine.purge(7)).unwrap(), 7);
    assert_eq!(block_on(engine.purge(usize::MAX)).unwrap(), 243);
    clock.advance(Duration::from_secs(1 << 40));
    assert_eq!(block_on(engine.purge(usize::MAX)).unwrap(), 0);
    assert_eq!(file.rows(), 1);
}

#[test]
fn s13_a_purge_follows_a_deadline_that_was_moved() {
    let file = File::new();
    let clock = ManualClock::new();
    let engine = engine(file.at(&clock).open().unwrap());
    let lease = acquire(&engine, "k");
    clock.advance(RETENTION / 2);
    block_on(lease.renew()).unwrap();
    clock.advance(RETENTION / 2 + Duration::from_secs(120));
    assert_eq!(block_on(engine.purge(usize::MAX)).unwrap(), 0);
    assert_eq!(file.rows(), 1);
    clock.advance(RETENTION / 2);
    assert_eq!(block_on(engine.purge(usize::MAX)).unwrap(), 1);
}

/// The column that a purge finds rows by has no checksum; the record does.
#[test]
fn s13_a_damaged_deadline_removes_nothing_early() {
    let file = File::new();
    let clock = ManualClock::new();
    let engine = engine(file.at(&clock).open().unwrap());
    block_on(acquire(&engine, "k").complete("r")).unwrap();
    file.raw().execute("UPDATE nevertwice SET due = 1", []).unwrap();
    assert_eq!(block_on(engine.purge(usize::MAX)).unwrap(), 0);
    assert_eq!(replay(&engine, "k"), b"r");
    // It was corrected: the row is removed in due time.
    clock.advance(2 * RETENTION);
    assert_eq!(block_on(engine.purge(usize::MAX)).unwrap(), 1);
}

/// The maximum distance of rows' stamps above the high-water mark.
const LAG: Duration = Duration::from_millis(100);

fn high_water(file: &File) -> Stamp {
    let sql = "SELECT high_water FROM nevertwice_meta";
    Stamp(file.raw().query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap().try_into().unwrap())
}

/// Runs `remove` on the key right before the process is killed.
fn killed_after(remove: impl FnOnce(&ManualClock, &Engine, &SqliteStore, &Lease)) -> (Stamp, Stamp) {
    let file = File::new();
    let clock = ManualClock::new();
    let store = file.at(&clock).open().unwrap();
    let before = engine(store.clone());
    let _ = acquire(&before, "another");
    clock.advance(LAG / 2);
    let lease = acquire(&before, "k");
    assert!(high_water(&file) < lease.fence(), "nothing was removed yet");
    remove(&clock, &before, &store, &lease);
    let killed = file.killed();
    assert_eq!(stored(&store, "k"), None);
    let after = engine(killed.at(&ManualClock::starting_at(Duration::ZERO)).open().unwrap());
    (lease.fence(), acquire(&after, "k").fence())
}

#[test]
fn s5_fences_increase_across_a_kill_after_a_release_a_forget_and_a_purge() {
    let (first, second) = killed_after(|_, _, _, lease| block_on(lease.release()).unwrap());
    assert!(second > first);
    let (first, second) = killed_after(|_, engine, _, _| {
        assert!(block_on(engine.forget("tests", "k")).unwrap());
    });
    assert!(second > first);
    let (first, second) = killed_after(|_, _, store, _| {
        assert!(block_on(store.discard(&id("k"))).unwrap());
    });
    assert!(second > first);
    let (first, second) = killed_after(|clock, engine, _, _| {
        clock.advance(RETENTION * 2);
        assert_eq!(block_on(engine.purge(2)).unwrap(), 2);
    });
    assert!(second.since(first) >= RETENTION * 2);
}

#[test]
fn s5_fences_increase_across_a_kill_and_the_discard_of_a_damaged_record() {
    let file = File::new();
    let clock = ManualClock::new();
    let before = engine(file.at(&clock).open().unwrap());
    let _ = acquire(&before, "another");
    clock.advance(LAG);
    let first = acquire(&before, "k").fence();
    let killed = file.killed();
    let sql = "UPDATE nevertwice SET record = x'01', stamp = 0 WHERE id = ?1";
    assert_eq!(killed.raw().execute(sql, [id("k").as_bytes()]).unwrap(), 1);
    let store = killed.at(&ManualClock::starting_at(Duration::ZERO)).open().unwrap();
    assert!(block_on(store.discard(&id("k"))).unwrap());
    assert!(acquire(&engine(store), "k").fence() > first);
}

#[test]
fn s13_no_stamp_is_far_above_the_mark_that_a_kill_leaves() {
    let file = File::new();
    let clock = ManualClock::new();
    let store = file.at(&clock).open().unwrap();
    let engine_ = engine(store.clone());
    for step in 0..20 {
        clock.advance(LAG / 4 + Duration::from_micros(step));
        let lease = acquire(&engine_, &step.to_string());
        if step % 3 == 0 {
            block_on(lease.complete("r")).unwrap();
        }
        let latest = stored(&store, &step.to_string()).unwrap().stamp;
        assert!(latest.since(high_water(&file)) <= LAG);
    }
    // It is not raised for every write, as that costs a page.
    let mark = high_water(&file);
    let _ = acquire(&engine_, "one more");
    assert_eq!(high_water(&file), mark);
    let (killed, now) = (file.killed(), block_on(store.load(&id("k"))).unwrap().now);
    let after = killed.at(&ManualClock::starting_at(Duration::ZERO)).open().unwrap();
    assert!(now.since(block_on(after.load(&id("k"))).unwrap().now) <= LAG);
}

#[test]
fn s13_a_store_that_is_closed_leaves_its_time() {
    let file = File::new();
    let clock = ManualClock::new();
    let store = file.at(&clock).open().unwrap();
    let _ = acquire(&engine(store.clone()), "k");
    clock.advance(LAG / 2);
    let before = block_on(store.load(&id("any"))).unwrap().now;
    drop(store);
    let after = file.at(&ManualClock::starting_at(Duration::ZERO)).open().unwrap();
    assert!(block_on(after.load(&id("any"))).unwrap().now >= before);
}

#[test]
fn l5_a_deadline_that_comes_much_earlier_is_followed() {
    let file = File::new();
    let clock = ManualClock::new();
    let engine = engine(file.at(&clock).open().unwrap());
    for key in ["done", "held"] {
        let Begin::Acquired(lease) = block_on(engine.begin(&request(key).lease(RETENTION))).unwrap() else {
            panic!()
        };
        if key == "done" {
            block_on(lease.complete("r")).unwrap();
        }
    }
    clock.advance(RETENTION + RETENTION / 4);
    assert_eq!(block_on(engine.purge(usize::MAX)).unwrap(), 1);
    assert!(acquire(&engine, "held").takeover());
}

#[test]
fn to_finish_does_not_move_a_record_in_the_index_of_deadlines() {
    let file = File::new();
    let engine = file.engine();
    let due = || -> i64 { file.raw().query_row("SELECT due FROM nevertwice", [], |row| row.get(0)).unwrap() };
    let lease = acquire(&engine, "k");
    let before = due();
    block_on(lease.complete("r")).unwrap();
    assert_eq!(due(), before);
}
