//! Stores that only read their file.

use std::collections::BTreeMap;
use std::fs;

use nevertwice::sqlite::SqliteReader;
use nevertwice::store::SwapRequest;

use super::*;

fn open(path: &Path) -> SqliteReader {
    SqliteStore::builder(path).open_read_only().unwrap()
}

/// The names and contents of a folder.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn count(store: &SqliteReader) -> usize {
    block_on(store.scan(None, 100)).unwrap().records.len()
}

#[test]
fn a_reader_sees_what_is_written_meanwhile_and_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.db");
    let writer = engine(SqliteStore::open(&path).unwrap());
    block_on(acquire(&writer, "a").complete("done")).unwrap();
    let reader = open(&path);
    assert_eq!((count(&reader), reader.identity()), (1, writer.store_id()));
    block_on(acquire(&writer, "b").complete("done")).unwrap();
    assert_eq!(count(&reader), 2);
    drop(writer);
    assert_eq!(count(&reader), 2);
    let writer = engine(SqliteStore::open(&path).unwrap());
    block_on(acquire(&writer, "c").fail("?", nevertwice::Retry::Unresolved)).unwrap();
    assert_eq!(count(&reader), 3);
    assert_eq!(block_on(reader.unsettled(None, 100)).unwrap().records.len(), 1);
    let seen = block_on(reader.load(&id("c"))).unwrap();
    assert!(seen.now >= seen.record.unwrap().stamp);
    assert!(reader.check().unwrap().is_empty());
}

/// A file system tells the time of a change by ticks, and a change may leave the length as it is.
#[test]
fn a_reader_sees_a_change_that_the_file_does_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.db");
    let writer = engine(SqliteStore::open(&path).unwrap());
    block_on(acquire(&writer, "a").complete("done")).unwrap();
    drop(writer);
    let reader = open(&path);
    assert_eq!(count(&reader), 1);
    let seen = || fs::metadata(&path).map(|file| (file.len(), file.modified().unwrap())).unwrap();
    let before = seen();
    let db = Connection::open(&path).unwrap();
    db.execute("DELETE FROM nevertwice", []).unwrap();
    drop(db);
    fs::File::options().write(true).open(&path).unwrap().set_modified(before.1).unwrap();
    assert_eq!((seen(), count(&reader)), (before, 0));
}

#[test]
fn a_reader_changes_no_byte_and_creates_no_file_in_any_state_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.db");
    let writer = engine(SqliteStore::open(&path).unwrap());
    block_on(acquire(&writer, "a").complete("done")).unwrap();
    // As a killed process leaves them.
    let killed = tempfile::tempdir().unwrap();
    for (from, bytes) in contents(dir.path()) {
        fs::write(killed.path().join(from.file_name().unwrap()), bytes).unwrap();
    }
    let beside = |end: &str| killed.path().join(format!("keys.db{end}"));
    for step in ["all", "no lock file", "an empty log", "a log of its header", "no index", "no log"] {
        match step {
            "no lock file" => fs::remove_file(beside("-nevertwice-lock")).unwrap(),
            // Moves the log into the file, and leaves both behind.
            "an empty log" => {
                let db = Connection::open(beside("")).unwrap();
                db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
                drop(db);
                fs::write(beside("-wal"), "").unwrap();
                fs::write(beside("-shm"), vec![0; 32_768]).unwrap();
            }
            "a log of its header" => fs::write(beside("-wal"), vec![0; 32]).unwrap(),
            "no index" => fs::remove_file(beside("-shm")).unwrap(),
            "no log" => fs::remove_file(beside("-wal")).unwrap(),
            _ => {}
        }
        let before = contents(killed.path());
        let reader = open(&beside(""));
        assert_eq!((count(&reader), reader.check().unwrap()), (1, Vec::new()), "{step}");
        drop(reader);
        assert_eq!(contents(killed.path()), before, "{step}");
    }
}

#[test]
fn what_a_reader_cannot_read_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |path: &Path| {
        let before = contents(dir.path());
        let error = SqliteStore::builder(path).open_read_only().unwrap_err().to_string();
        assert_eq!(contents(dir.path()), before);
        error
    };
    assert!(refused(&dir.path().join("none.db")).contains("no file"));
    let text = dir.path().join("text.db");
    fs::write(&text, vec![b'x'; 5000]).unwrap();
    assert!(refused(&text).contains("not a SQLite database"));
    let other = dir.path().join("other.db");
    Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    assert!(refused(&other).contains("no table nevertwice"));
    // A log that was copied without its index.
    let path = dir.path().join("keys.db");
    let writer = engine(SqliteStore::open(&path).unwrap());
    block_on(acquire(&writer, "a").complete("done")).unwrap();
    let copied = dir.path().join("copied.db");
    fs::copy(&path, &copied).unwrap();
    fs::copy(dir.path().join("keys.db-wal"), dir.path().join("copied.db-wal")).unwrap();
    assert!(refused(&copied).contains("without its index"));
}

#[test]
fn a_reader_refuses_every_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.db");
    drop(SqliteStore::open(&path).unwrap());
    let reader = open(&path);
    let unusable = |error: StoreError| assert!(matches!(error, StoreError::Unusable { .. }), "{error}");
    unusable(block_on(reader.swap(&SwapRequest::new(&id("a"), None, Some(&sample())))).unwrap_err());
    unusable(block_on(reader.purge(1)).unwrap_err());
    unusable(block_on(reader.discard(&id("a"))).unwrap_err());
    let engine = Engine::builder(reader).build().unwrap();
    assert!(block_on(engine.begin(&request("a"))).is_err());
}
