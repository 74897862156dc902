//! The store's handling of the files it is given.

use std::fs;

use super::*;

#[test]
fn what_is_not_a_database_is_left_as_it_is() {
    let file = File::new();
    let text = "a letter, ".repeat(1000);
    fs::write(file.path(), &text).unwrap();
    assert_unusable(&file.path(), "not a SQLite database");
    assert_eq!(fs::read_to_string(file.path()).unwrap(), text);
    assert_eq!(fs::read_dir(file.0.path()).unwrap().count(), 1);
}

#[test]
fn a_missing_folder_and_a_folder_are_refused() {
    let file = File::new();
    assert_unusable(&file.0.path().join("missing").join("keys.db"), "cannot be created");
    assert_unusable(file.0.path(), "is a folder");
    assert_unusable(Path::new(":memory:"), "MemoryStore");
}

#[test]
fn a_read_only_file_is_refused() {
    let file = File::new();
    let engine = file.engine();
    block_on(acquire(&engine, "k").complete("r")).unwrap();
    drop(engine);
    // Byte 18 of a database states which releases of SQLite may write to it, and none knows 3. This
    // works even for root.
    let mut bytes = fs::read(file.path()).unwrap();
    bytes[18] = 3;
    fs::write(file.path(), &bytes).unwrap();
    assert_unusable(&file.path(), "read-only");
    assert!(fs::read(file.path()).unwrap() == bytes);
}

#[test]
fn names_that_are_no_identifiers_are_refused() {
    let file = File::new();
    for name in ["", "1a", "a b", "a\"b", "é", "sqlite_x", &"x".repeat(64)] {
        let opened = SqliteStore::builder(file.path()).table(name).open();
        assert!(matches!(opened, Err(StoreError::Unusable { .. })), "{name}");
    }
    for name in ["_", "a1", "order", &"x".repeat(63)] {
        let engine = engine(SqliteStore::builder(file.path()).table(name).open().unwrap());
        assert_eq!(acquire(&engine, "k").attempt(), 1, "{name}: tables do not mix");
    }
}

#[test]
fn s14_tables_of_a_newer_version_are_refused_and_left_alone() {
    let file = File::new();
    drop(file.store());
    file.raw().execute("UPDATE nevertwice_meta SET version = 4", []).unwrap();
    let before = fs::read(file.path()).unwrap();
    assert_unusable(&file.path(), "version 4");
    assert!(fs::read(file.path()).unwrap() == before);
}

#[test]
fn s14_tables_of_before_the_first_release_are_refused_and_left_alone() {
    for version in [1, 2] {
        let file = File::new();
        drop(file.store());
        file.raw().execute("UPDATE nevertwice_meta SET version = ?1", [version]).unwrap();
        let before = fs::read(file.path()).unwrap();
        assert_unusable(&file.path(), "before the first release");
        assert!(fs::read(file.path()).unwrap() == before);
    }
}

#[test]
fn tables_that_are_not_a_stores_are_refused_and_left_alone() {
    for sql in [
        "CREATE TABLE nevertwice (x)",
        "CREATE TABLE nevertwice_meta (x)",
        "CREATE TABLE Nevertwice (x)",
        "CREATE TABLE nevertwice (x); CREATE TABLE nevertwice_meta (x)",
        "CREATE TABLE nevertwice (x); CREATE TABLE nevertwice_meta (one, version, high_water)",
        "CREATE TABLE nevertwice (x); CREATE TABLE nevertwice_meta (one, version, high_water);
         INSERT INTO nevertwice_meta VALUES (1, 1, 0)",
    ] {
        let file = File::new();
        file.raw().execute_batch(sql).unwrap();
        let schema = |db: Connection| -> i64 {
            db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap()
        };
        let before = schema(file.raw());
        assert!(matches!(SqliteStore::open(file.path()), Err(StoreError::Unusable { .. })), "{sql}");
        assert_eq!(schema(file.raw()), before);
    }
}

#[test]
fn a_lost_high_water_mark_is_refused() {
    for damage in
        ["high_water = -1, mirror = 0", "one = -1", "high_water = high_water + (1 << 50)", "mirror = 0"]
    {
        let file = File::new();
        drop(file.store());
        let sql = format!("PRAGMA ignore_check_constraints = ON; UPDATE nevertwice_meta SET {damage}");
        file.raw().execute_batch(&sql).unwrap();
        assert!(matches!(SqliteStore::open(file.path()), Err(StoreError::Unusable { .. })), "{damage}");
    }
}

/// Changes the stored record of `key` behind the store's back.
fn damage(file: &File, key: &str, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let db = file.raw();
    let id = request(key).id();
    let sql = "SELECT record FROM nevertwice WHERE id = ?1";
    let mut record: Vec<u8> = db.query_row(sql, [id.as_bytes()], |row| row.get(0)).unwrap();
    change(&mut record);
    let sql = "UPDATE nevertwice SET record = ?2 WHERE id = ?1";
    assert_eq!(db.execute(sql, rusqlite::params![id.as_bytes(), record]).unwrap(), 1);
    record
}

#[test]
fn s10_a_damaged_record_spoils_only_its_key() {
    let file = File::new();
    let engine = file.engine();
    for key in ["good", "bad", "moved"] {
        block_on(acquire(&engine, key).complete(key)).unwrap();
    }
    let held = acquire(&engine, "held");
    damage(&file, "bad", |record| *record.last_mut().unwrap() ^= 1);
    damage(&file, "held", |record| *record.last_mut().unwrap() ^= 1);
    // A stamp that does not belong to its record, and an invalid one.
    let sql = "UPDATE nevertwice SET stamp = ?2 WHERE id = ?1";
    for stamp in [9_000_000_000_000_000_000_i64, -1] {
        file.raw().execute(sql, rusqlite::params![request("moved").id().as_bytes(), stamp]).unwrap();
        let error = store_error(block_on(engine.begin(&request("moved"))));
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    }
    let error = store_error(block_on(engine.begin(&request("bad"))));
    assert!(matches!(error, StoreError::Corrupt { id, .. } if id == request("bad").id()), "{error}");
    assert!(matches!(block_on(held.complete("x")), Err(Error::Store(StoreError::Corrupt { .. }))));
    assert_eq!(replay(&engine, "good"), b"good");
    assert!(block_on(engine.forget("tests", "bad")).unwrap());
    assert_eq!(acquire(&engine, "bad").attempt(), 1);
}

#[test]
fn s14_a_record_of_a_newer_format_is_refused_and_left_alone() {
    let file = File::new();
    let engine = file.engine();
    let lease = acquire(&engine, "k");
    let newer = damage(&file, "k", |record| record[0] += 1);
    let refused = |error: Error| match error {
        Error::Store(StoreError::Corrupt { source, .. }) => assert!(source.to_string().contains("newer")),
        other => panic!("{other:?}"),
    };
    refused(block_on(engine.begin(&request("k"))).unwrap_err());
    refused(block_on(lease.complete("x")).unwrap_err());
    refused(block_on(engine.forget("tests", "k")).unwrap_err());
    let stored: Vec<u8> =
        file.raw().query_row("SELECT record FROM nevertwice", [], |row| row.get(0)).unwrap();
    assert_eq!(stored, newer);
}

#[cfg(unix)]
#[test]
fn the_files_are_their_owners_only() {
    use std::os::unix::fs::PermissionsExt;
    let file = File::new();
    let engine = file.engine();
    let _lease = acquire(&engine, "k");
    for name in ["keys.db", "keys.db-wal", "keys.db-shm"] {
        let mode = fs::metadata(file.0.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn s12_over_the_soft_limit_begins_are_refused_and_finishes_are_not() {
    let file = File::new();
    let clock = ManualClock::new();
    let store = file.at(&clock).max_bytes(256 << 10).open().unwrap();
    let engine = engine(store);
    let mut held = Vec::new();
    let error = loop {
        match block_on(engine.begin(&request(&held.len().to_string()))) {
            Ok(Begin::Acquired(lease)) => held.push(lease),
            other => break store_error(other),
        }
        assert!(held.len() < 10_000);
    };
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    for lease in &held {
        block_on(lease.complete(vec![7; 500])).unwrap();
    }
    assert_eq!(replay(&engine, "0"), vec![7; 500]);
    assert!(matches!(store_error(block_on(engine.begin(&request("new")))), StoreError::Full { .. }));
    // Expired records make room.
    clock.advance(RETENTION * 2);
    for key in 0..held.len() {
        let again = request(&key.to_string()).recovery(Recovery::Rerun);
        if let Ok(Begin::Acquired(_)) = block_on(engine.begin(&again)) {
            return;
        }
    }
    panic!("nothing made way");
}

#[test]
fn durability_is_what_was_asked_for() {
    let file = File::new();
    assert_eq!(file.store().durability(), Durability::Power);
    let normal = SqliteStore::builder(file.path()).synchronous(Synchronous::Normal).open().unwrap();
    assert_eq!(normal.durability(), Durability::Process);
    assert!(format!("{normal:?}").contains("keys.db"));
}

#[test]
fn no_key_or_payload_is_in_the_file_in_the_clear_but_the_response() {
    let file = File::new();
    let engine = file.engine();
    let request = Request::new("tests", "sk_live_secret").unwrap().fingerprint(Fingerprint::of("4200 EUR"));
    let Begin::Acquired(lease) = block_on(engine.begin(&request)).unwrap() else { panic!() };
    block_on(lease.complete("receipt")).unwrap();
    drop((lease, engine));
    let bytes = fs::read(file.path()).unwrap();
    let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(has("receipt") && !has("sk_live_secret") && !has("4200 EUR"));
}
