//! Several stores, transactions and processes on one file.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::task::{Context, Waker};

use futures_util::future::join_all;
use nevertwice::store::{Snapshot, Swap, SwapRequest};

use super::children::Deadline;
use super::*;

#[test]
fn two_stores_on_one_file_see_each_other() {
    let file = File::new();
    let (one, two) = (file.engine(), file.engine());
    let lease = acquire(&one, "k");
    assert!(matches!(block_on(two.begin(&request("k"))).unwrap(), Begin::InProgress(_)));
    block_on(async { two.resume(&lease.token()).await.unwrap().complete("r").await }).unwrap();
    assert_eq!(replay(&one, "k"), b"r");
    assert_eq!(replay(&two, "k"), b"r");
}

#[test]
fn s5_stamps_increase_across_stores_whose_wall_clocks_disagree() {
    let file = File::new();
    let clock = ManualClock::new();
    let behind = file.at(&same_boot(&clock, Duration::from_secs(1))).open().unwrap();
    let one = engine(behind.clone());
    let two = engine(file.at(&clock).open().unwrap());
    let mut last = Stamp::ZERO;
    for turn in 0..6 {
        let lease = acquire(if turn % 2 == 0 { &one } else { &two }, "k");
        assert!(lease.fence() > last);
        last = lease.fence();
        block_on(lease.release()).unwrap();
    }
    clock.advance(Duration::from_secs(1));
    let _ = acquire(&two, "other");
    let Snapshot { record, now } = block_on(behind.load(&request("other").id())).unwrap();
    assert!(now >= record.unwrap().stamp);
}

/// Several writes within a microsecond take the store that makes them ahead of the clock.
#[test]
fn s5_a_store_that_is_behind_the_row_that_it_replaces_stamps_it_later() {
    let file = File::new();
    let clock = ManualClock::new();
    let (one, two) = (engine(file.at(&clock).open().unwrap()), engine(file.at(&clock).open().unwrap()));
    let _ = acquire(&one, "another");
    for turn in 0..3 {
        for number in 0..50 {
            let _ = acquire(&two, &format!("ahead {turn} {number}"));
        }
        let lease = acquire(&two, "k");
        let stamp = stored(&file.at(&clock).open().unwrap(), "k").unwrap().stamp;
        block_on(async { one.resume(&lease.token()).await.unwrap().complete("r").await }).unwrap();
        assert!(stored(&file.at(&clock).open().unwrap(), "k").unwrap().stamp > stamp);
        assert!(block_on(one.forget("tests", "k")).unwrap());
        let again = acquire(&two, "k");
        assert!(again.fence() > stamp);
        block_on(again.release()).unwrap();
    }
}

#[test]
fn stores_opened_at_once_make_the_tables_once() {
    for _ in 0..5 {
        let file = File::new();
        std::thread::scope(|scope| {
            let opening: Vec<_> = (0..8).map(|_| scope.spawn(|| file.store())).collect();
            let engines: Vec<Engine> =
                opening.into_iter().map(|store| engine(store.join().unwrap())).collect();
            block_on(acquire(&engines[0], "k").complete("r")).unwrap();
            engines.iter().for_each(|engine| assert_eq!(replay(engine, "k"), b"r"));
        });
    }
}

#[test]
fn a_file_that_stays_locked_is_not_opened_and_left_as_it_is() {
    let file = File::new();
    let open = || SqliteStore::builder(file.path()).busy_timeout(Duration::from_millis(20)).open();
    let other = file.raw();
    other.execute_batch("CREATE TABLE payments (amount INTEGER)").unwrap();
    for lock in ["BEGIN; SELECT * FROM payments", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"] {
        other.execute_batch(lock).unwrap();
        let _: i64 = other.query_row("SELECT count(*) FROM payments", [], |row| row.get(0)).unwrap();
        let opened = open();
        assert!(matches!(opened, Err(StoreError::Unavailable { .. })), "{lock}: {opened:?}");
        other.execute_batch("ROLLBACK").unwrap();
        assert_eq!(
            other.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0)).unwrap(),
            "delete"
        );
    }
    assert_eq!(acquire(&engine(open().unwrap()), "k").attempt(), 1);
}

#[test]
fn s10_a_locked_file_is_unavailable_with_nothing_written_and_works_again_after() {
    let file = File::new();
    let store = SqliteStore::builder(file.path()).busy_timeout(Duration::from_millis(20)).open().unwrap();
    let engine = engine(store.clone());
    let done = acquire(&engine, "done");
    block_on(done.complete("r")).unwrap();
    let held = acquire(&engine, "held");
    let record = block_on(store.load(&request("held").id())).unwrap().record.unwrap();

    let other = file.raw();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let write =
        block_on(store.swap(&SwapRequest::new(&request("held").id(), Some(record.stamp), Some(&record))));
    assert!(matches!(write, Err(StoreError::Unavailable { .. })), "{write:?}");
    let begin = block_on(store.swap(&SwapRequest::new(&request("new").id(), None, Some(&record))));
    assert!(matches!(begin, Err(StoreError::Unavailable { .. })), "{begin:?}");
    // Replays need no lock.
    assert_eq!(replay(&engine, "done"), b"r");
    other.execute_batch("ROLLBACK").unwrap();

    assert_eq!(file.rows(), 2);
    assert_eq!(block_on(store.load(&request("held").id())).unwrap().record, Some(record));
    block_on(held.complete("late")).unwrap();
    assert_eq!(replay(&engine, "held"), b"late");
}

/// Makes the store's writes fail, as with a bad disk, by adding triggers.
fn sabotage(file: &File, sql: &str) {
    file.raw().execute_batch(sql).unwrap();
}

#[test]
fn s10_a_commit_that_fails_is_no_grant() {
    let file = File::new();
    let engine = file.engine();
    sabotage(
        &file,
        "CREATE TABLE parent (id INTEGER PRIMARY KEY);
         CREATE TABLE child (parent REFERENCES parent DEFERRABLE INITIALLY DEFERRED);
         CREATE TRIGGER sabotage AFTER INSERT ON nevertwice BEGIN INSERT INTO child VALUES (1); END;",
    );
    let keys: Vec<Request> = (0..10).map(|key| request(&key.to_string())).collect();
    for begin in block_on(join_all(keys.iter().map(|key| engine.begin(key)))) {
        assert!(matches!(store_error(begin), StoreError::Unusable { .. }));
    }
    assert_eq!(file.rows(), 0);
    sabotage(&file, "DROP TRIGGER sabotage");
    assert_eq!(acquire(&engine, "0").attempt(), 1);
}

/// Runs ten concurrent begins, with the third failing by `raise`. Returns the store's answers.
fn ten_begins(file: &File, raise: &str) -> Vec<Result<Swap, StoreError>> {
    let store = file.store();
    let id = request("2").id();
    sabotage(
        file,
        &format!(
            "CREATE TRIGGER sabotage BEFORE INSERT ON nevertwice WHEN new.id = x'{id}'
             BEGIN SELECT RAISE({raise}, 'sabotage'); END"
        ),
    );
    let record = {
        let other = File::new();
        let engine = other.engine();
        let _lease = acquire(&engine, "any");
        block_on(other.store().load(&request("any").id())).unwrap().record.unwrap()
    };
    let keys: Vec<Request> = (0..10).map(|key| request(&key.to_string())).collect();
    let requests: Vec<_> = keys.iter().map(|key| SwapRequest::new(&key.id(), None, Some(&record))).collect();
    let swaps = block_on(join_all(requests.iter().map(|swap| store.swap(swap))));
    sabotage(file, "DROP TRIGGER sabotage");
    assert!(matches!(block_on(store.swap(&SwapRequest::new(&id, None, Some(&record)))), Ok(Swap::Done(_))));
    swaps
}

#[test]
fn a_write_that_fails_spoils_no_other_in_its_commit() {
    let file = File::new();
    let swaps = ten_begins(&file, "ABORT");
    assert!(swaps[2].is_err());
    assert_eq!(swaps.iter().filter(|swap| matches!(swap, Ok(Swap::Done(_)))).count(), 9);
    assert_eq!(file.rows(), 10);
}

#[test]
fn a_write_that_rolls_back_its_commit_is_told_to_all_in_it() {
    let file = File::new();
    let swaps = ten_begins(&file, "ROLLBACK");
    assert!(swaps[2].is_err());
    let (done, failed): (Vec<_>, Vec<_>) = swaps.into_iter().partition(Result::is_ok);
    assert!(failed.iter().all(|swap| matches!(swap, Err(StoreError::Unavailable { .. }))));
    assert_eq!(file.rows(), done.len() as i64 + 1);
}

#[test]
fn a_long_read_elsewhere_blocks_no_caller() {
    let file = File::new();
    let engine = file.engine();
    let reader = file.raw();
    reader.execute_batch("BEGIN; SELECT count(*) FROM nevertwice").unwrap();
    let _: i64 = reader.query_row("SELECT count(*) FROM nevertwice", [], |row| row.get(0)).unwrap();
    for key in 0..20 {
        let key = key.to_string();
        block_on(acquire(&engine, &key).complete(vec![1; 100_000])).unwrap();
        assert_eq!(replay(&engine, &key).len(), 100_000);
    }
}

#[test]
fn callers_share_commits_and_each_gets_its_own_answer() {
    let file = File::new();
    let engine = file.engine();
    let leases = block_on(join_all((0..500).map(|key| {
        let engine = &engine;
        async move {
            // Every key is requested several times and granted once.
            let key = (key % 150).to_string();
            match engine.begin(&request(&key)).await.unwrap() {
                Begin::Acquired(lease) => Some((key, lease)),
                Begin::InProgress(_) => None,
                other => panic!("{other:?}"),
            }
        }
    })));
    let granted: Vec<_> = leases.into_iter().flatten().collect();
    assert_eq!(granted.len(), 150);
    block_on(join_all(granted.iter().map(|(key, lease)| lease.complete(key.clone()))))
        .into_iter()
        .for_each(|done| done.unwrap());
    granted.iter().for_each(|(key, _)| assert_eq!(replay(&engine, key), key.as_bytes()));
}

#[test]
fn s11_a_dropped_swap_leaves_before_or_after_and_nothing_between() {
    let file = File::new();
    let store = file.store();
    let engine = engine(store.clone());
    for key in 0..50 {
        let key = key.to_string();
        let lease = acquire(&engine, &key);
        let before = block_on(store.load(&request(&key).id())).unwrap().record.unwrap();
        {
            let complete = std::pin::pin!(lease.complete("r"));
            let _ = complete.poll(&mut Context::from_waker(Waker::noop()));
        }
        let after = block_on(store.load(&request(&key).id())).unwrap().record.unwrap();
        assert!(after == before || after.stamp > before.stamp);
        block_on(lease.complete("r")).unwrap();
        assert_eq!(replay(&engine, &key), b"r");
    }
}

/// The file that the processes of the race share.
const RACE: &str = "NEVERTWICE_TEST_RACE";

#[test]
fn s1_200_tasks_in_each_of_2_processes_race_for_a_key_and_one_is_granted() {
    if let Some(path) = std::env::var_os(RACE) {
        return racing_process(Path::new(&path));
    }
    let file = File::new();
    for round in 0..3 {
        let key = format!("k{round}");
        let mut children: Vec<Racer> = (0..2).map(|_| Racer::start(&file, &key)).collect();
        children.iter_mut().for_each(|child| assert_eq!(child.wait_for("READY"), ""));
        children.iter_mut().for_each(|child| writeln!(child.0.stdin.as_ref().unwrap(), "go").unwrap());
        let granted: u32 = children.into_iter().map(Racer::granted).sum();
        assert_eq!(granted, 1);
    }
}

struct Racer(Child, BufReader<std::process::ChildStdout>, #[allow(dead_code)] Deadline);

impl Drop for Racer {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

impl Racer {
    fn start(file: &File, key: &str) -> Racer {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "sharing::s1_200_tasks_in_each_of_2_processes_race_for_a_key_and_one_is_granted",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(RACE, file.path())
            .env("NEVERTWICE_TEST_KEY", key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let deadline = Deadline::of(&child);
        Racer(child, output, deadline)
    }

    /// Reads up to a line that starts with `word`, and returns the rest of it.
    fn wait_for(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.1.read_line(&mut line).unwrap() > 0, "the child ended early");
            if let Some(rest) = line.strip_prefix(word) {
                return rest.trim().to_owned();
            }
        }
    }

    fn granted(mut self) -> u32 {
        let granted = self.wait_for("GRANTED").parse().unwrap();
        assert!(self.0.wait().unwrap().success());
        granted
    }
}

/// The program of each process of the race: the same test, started again.
fn racing_process(path: &Path) {
    let key = std::env::var("NEVERTWICE_TEST_KEY").unwrap();
    let engine = engine(SqliteStore::open(path).unwrap());
    let say = |line: String| std::io::stdout().write_all(line.as_bytes()).unwrap();
    say("\nREADY\n".to_owned());
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let tasks = (0..200).map(|_| {
        let (engine, request) = (engine.clone(), request(&key));
        runtime.spawn(async move { matches!(engine.begin(&request).await.unwrap(), Begin::Acquired(_)) })
    });
    let tasks: Vec<_> = tasks.collect();
    let granted = block_on(join_all(tasks)).into_iter().filter(|granted| *granted.as_ref().unwrap()).count();
    say(format!("\nGRANTED {granted}\n"));
}
