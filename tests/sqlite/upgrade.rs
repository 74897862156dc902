//! Files of an older release.

use super::*;

/// The tables as version 1 had them, and what brings them up to version 2: one statement after the other.
const VERSION_1: &str = include_str!("schema-1.sql");
const FROM_VERSION_1: &str = include_str!("../../backends/sqlite/schema-1-to-2.sql");

const KEYS: usize = 100;

/// A file of version 1: completed keys, one held, and one whose deadline is never.
fn version_1() -> File {
    let (file, now) = (File::new(), File::new());
    let engine = engine(SqliteStore::builder(now.path()).synchronous(Synchronous::Normal).open().unwrap());
    for key in 0..KEYS {
        block_on(acquire(&engine, &key.to_string()).complete(format!("r{key}"))).unwrap();
    }
    let _held = acquire(&engine, "held");
    let forever = request("forever").retention(Duration::MAX);
    let Begin::Acquired(lease) = block_on(engine.begin(&forever)).unwrap() else { panic!() };
    block_on(lease.complete("forever")).unwrap();
    drop((lease, _held, engine));

    let db = file.raw();
    db.execute_batch("PRAGMA journal_mode = wal").unwrap();
    db.execute_batch(&VERSION_1.replace("{table}", "nevertwice").replace("{version}", "1")).unwrap();
    db.execute("ATTACH ?1 AS now", [now.path().to_str().unwrap()]).unwrap();
    db.execute_batch(
        "BEGIN;
         INSERT INTO nevertwice SELECT seq, id, stamp, iif(due < 9223372036854775807, due << 26, due), record FROM now.nevertwice;
         UPDATE nevertwice_meta SET high_water = (SELECT high_water FROM now.nevertwice_meta);
         COMMIT",
    )
    .unwrap();
    file
}

fn version(file: &File) -> i64 {
    file.raw().query_row("SELECT version FROM nevertwice_meta", [], |row| row.get(0)).unwrap()
}

/// Opens the file and finds in it whatever [`version_1`] put there.
fn assert_upgraded(file: &File) {
    let engine = file.engine();
    for key in 0..KEYS {
        assert_eq!(replay(&engine, &key.to_string()), format!("r{key}").as_bytes());
    }
    assert_eq!(replay(&engine, "forever"), b"forever");
    assert!(matches!(block_on(engine.begin(&request("held"))).unwrap(), Begin::InProgress(_)));
    let intact: String = file.raw().query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!((version(file), file.rows(), intact.as_str()), (2, KEYS as i64 + 2, "ok"));
}

#[test]
fn s14_tables_of_version_1_are_brought_up_to_date() {
    let file = version_1();
    assert_eq!(version(&file), 1);
    assert_upgraded(&file);
    let schema = |file: &File| -> Vec<String> {
        let db = file.raw();
        // The column's new name is written back as a quoted one.
        let sql =
            "SELECT replace(sql, '\"due\"', 'due') FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name";
        let mut statement = db.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    let new = File::new();
    drop(new.store());
    assert_eq!(schema(&file), schema(&new));
}

#[test]
fn s13_what_was_brought_up_to_date_is_purged_in_its_time() {
    let file = version_1();
    let clock = ManualClock::starting_at(std::time::UNIX_EPOCH.elapsed().unwrap());
    let engine = engine(file.at(&clock).open().unwrap());
    assert_eq!(block_on(engine.purge(usize::MAX)).unwrap(), 0);
    clock.advance(RETENTION * 2);
    assert_eq!(block_on(engine.purge(usize::MAX)).unwrap(), KEYS as u64 + 1);
    assert_eq!(replay(&engine, "forever"), b"forever");
}

#[test]
fn s9_a_kill_while_tables_are_brought_up_to_date_leaves_them_as_they_were() {
    let file = version_1();
    let db = file.raw();
    // So little that most pages are in the log before the commit.
    db.execute_batch("PRAGMA cache_size = 2; BEGIN IMMEDIATE").unwrap();
    let statements = FROM_VERSION_1.replace("{table}", "nevertwice");
    let mut step = 0;
    for statement in statements.split_inclusive(';') {
        db.execute_batch(statement).unwrap();
        let killed = file.killed();
        assert_eq!(version(&killed), 1);
        assert_upgraded(&killed);
        step += 1;
    }
    assert!(step > 5);
    db.execute_batch("COMMIT").unwrap();
    assert_upgraded(&file.killed());
}

#[test]
fn stores_opened_at_once_bring_tables_up_to_date_once() {
    for _ in 0..5 {
        let file = version_1();
        std::thread::scope(|scope| {
            let opening: Vec<_> = (0..8).map(|_| scope.spawn(|| file.store())).collect();
            for store in opening {
                assert_eq!(replay(&engine(store.join().unwrap()), "7"), b"r7");
            }
        });
        assert_upgraded(&file);
    }
}

/// What a process of the older release does that still has the file open.
#[test]
fn s13_the_older_release_writes_nothing_more_and_removes_nothing() {
    let file = version_1();
    let older = file.raw();
    assert_upgraded(&file);
    for sql in [
        "INSERT INTO nevertwice (id, stamp, expires, record) VALUES (?1, 1, 1, ?1) ON CONFLICT (id) DO NOTHING",
        "SELECT seq, stamp, expires, record FROM nevertwice WHERE id = ?1",
        "DELETE FROM nevertwice WHERE seq IN (SELECT seq FROM nevertwice WHERE expires <= ?1)",
    ] {
        assert!(older.execute(sql, [[0_u8; 32].as_slice()]).is_err(), "{sql}");
    }
    assert_upgraded(&file);
}
