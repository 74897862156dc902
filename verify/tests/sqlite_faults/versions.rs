//! Tables of another release, and of another program.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};

use nevertwice::StoreError;
use tempfile::TempDir;

use super::disks::say;
use super::*;

/// Creates a store's file with a completed key.
fn used() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    block_on(acquire(&engine, "k").complete(response("k"))).unwrap();
    dir
}

/// Returns the files of a folder with hashes of their contents. Leaves out the index of the log, in
/// which every reader notes its position, and the lock file, which is empty.
fn contents(dir: &TempDir) -> BTreeMap<String, u64> {
    let files = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap());
    let hashed = files.map(|file| {
        let mut hasher = DefaultHasher::new();
        fs::read(file.path()).unwrap().hash(&mut hasher);
        (file.file_name().into_string().unwrap(), hasher.finish())
    });
    hashed.filter(|(name, _)| !name.ends_with("-shm") && !name.ends_with("-lock")).collect()
}

fn assert_refused(dir: &TempDir, what: &str) {
    let opened = SqliteStore::open(dir.path().join(FILE));
    assert!(matches!(opened, Err(StoreError::Unusable { .. })), "{what}: {opened:?}");
}

#[test]
fn s14_another_version_is_refused_with_not_a_byte_of_it_changed() {
    let versions = [i64::MIN, -1, 0, 1, 2, 4, 5, i64::MAX];
    for version in versions {
        let dir = used();
        let other = Connection::open(dir.path().join(FILE)).unwrap();
        other.execute("UPDATE nevertwice_meta SET version = ?1", [version]).unwrap();
        // First while the release that wrote it has it open, with its version in the log; then
        // after that.
        let before = contents(&dir);
        assert_eq!(before.len(), 2, "{before:?}");
        assert_refused(&dir, &version.to_string());
        assert_eq!(contents(&dir), before);
        drop(other);
        let before = contents(&dir);
        assert_eq!(before.len(), 1, "{before:?}");
        assert_refused(&dir, &version.to_string());
        assert_eq!(contents(&dir), before);
    }
    say(&format!(
        "fault: backend=sqlite fault=\"tables of another version\" refused={} changed=0",
        versions.len()
    ));
}

#[test]
fn what_has_a_stores_names_and_is_none_is_refused_with_not_a_byte_of_it_changed() {
    let others = [
        "CREATE VIEW nevertwice AS SELECT 1",
        "CREATE VIEW nevertwice_meta AS SELECT 1 AS one, 1 AS version, 0 AS high_water",
        "CREATE TABLE a (x); CREATE INDEX nevertwice ON a (x)",
        "CREATE TABLE a (x); CREATE TRIGGER nevertwice_meta AFTER INSERT ON a BEGIN SELECT 1; END",
        "CREATE VIRTUAL TABLE nevertwice USING fts5(x)",
        "CREATE TABLE nevertwice (x); CREATE TABLE nevertwice_meta (one, version, high_water);
         INSERT INTO nevertwice_meta VALUES (1, 7, 0)",
    ];
    for sql in others {
        let dir = tempfile::tempdir().unwrap();
        let db = Connection::open(dir.path().join(FILE)).unwrap();
        db.execute_batch(sql).unwrap();
        drop(db);
        let before = contents(&dir);
        assert_refused(&dir, sql);
        assert_eq!(contents(&dir), before, "{sql}");
    }
    say(&format!(
        "fault: backend=sqlite fault=\"tables of another program\" refused={} changed=0",
        others.len()
    ));
}

/// The name of an index is first checked when the tables are created. After the conflict, none of
/// them may exist.
#[test]
fn tables_that_cannot_all_be_made_are_not_made_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let db = Connection::open(dir.path().join(FILE)).unwrap();
    db.execute_batch("CREATE TABLE a (x); CREATE INDEX nevertwice_id ON a (x)").unwrap();
    assert_refused(&dir, "an index");
    let names = "SELECT group_concat(name) FROM sqlite_schema";
    assert_eq!(db.query_row(names, [], |row| row.get::<_, String>(0)).unwrap(), "a,nevertwice_id");
    db.execute_batch("DROP TABLE a").unwrap();
    drop(acquire(&open(dir.path()), "k"));
}
