//! A file that is moved, replaced or linked under an open store, or whose log is removed. From its
//! detection on every call fails, and no acknowledged write is lost.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::{Child, Command, Stdio};

use nevertwice::sqlite;
use rusqlite::TransactionBehavior;

use super::*;

/// A store with a completed key and a held lease, in a folder with space to tamper with its file.
struct Scene {
    folder: TempDir,
    clock: ManualClock,
    store: SqliteStore,
    engine: Engine,
    held: Lease,
}

impl Scene {
    fn new() -> Scene {
        let folder = tempfile::tempdir().unwrap();
        for release in ["r1", "r2"] {
            fs::create_dir(folder.path().join(release)).unwrap();
        }
        symlink("r1", folder.path().join("current")).unwrap();
        let clock = ManualClock::new();
        let path = folder.path().join("current/keys.db");
        let store = SqliteStore::builder(path).clock(clock.clone()).open().unwrap();
        let engine = engine(store.clone());
        block_on(acquire(&engine, "done").complete("r")).unwrap();
        let held = acquire(&engine, "held");
        Scene { folder, clock, store, engine, held }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Asserts that every write fails, and every read once the last check has expired.
    fn assert_lost(&self, words: &str) {
        let lost = |error: StoreError| match error {
            StoreError::Unusable { detail, .. } => assert!(detail.contains(words), "{detail}"),
            other => panic!("{other}"),
        };
        match block_on(self.held.complete("never acknowledged")) {
            Err(Error::Store(error)) => lost(error),
            other => panic!("{other:?}"),
        }
        lost(store_error(block_on(self.engine.begin(&request("new")))));
        lost(store_error(block_on(self.engine.begin(&request("done")))));
        lost(block_on(self.store.load(&id("done"))).unwrap_err());
        lost(block_on(self.store.scan(None, 10)).unwrap_err());
        lost(block_on(self.store.purge(10)).unwrap_err());
        lost(block_on(self.store.changed(&id("done"), Stamp::ZERO, Duration::from_secs(60))).unwrap_err());
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| store_error(block_on(self.engine.begin(&request("done")))));
            lost(thread.join().unwrap());
        });
    }
}

/// The name of a case, a phrase of the store's error, and the change to make.
type Sign = (&'static str, &'static str, fn(&Scene));

const SIGNS: [Sign; 11] = [
    ("moved", "was moved or removed", |s| fs::rename(s.at("r1/keys.db"), s.at("r1/old.db")).unwrap()),
    ("its folder moved", "was moved or removed", |s| fs::rename(s.at("r1"), s.at("r3")).unwrap()),
    ("removed", "was moved or removed", |s| fs::remove_file(s.at("r1/keys.db")).unwrap()),
    ("replaced", "it was replaced", |s| {
        drop(SqliteStore::open(s.at("r2/keys.db")).unwrap());
        fs::rename(s.at("r2/keys.db"), s.at("r1/keys.db")).unwrap();
    }),
    ("a link moved", "was moved or removed", |s| relink(s)),
    ("a link moved to another store", "leads elsewhere", |s| {
        drop(SqliteStore::open(s.at("r2/keys.db")).unwrap());
        relink(s);
    }),
    ("linked", "2 names", |s| fs::hard_link(s.at("r1/keys.db"), s.at("r1/other.db")).unwrap()),
    ("log removed", "its log", |s| fs::remove_file(s.at("r1/keys.db-wal")).unwrap()),
    ("log replaced", "its log", |s| {
        fs::rename(s.at("r1/keys.db-wal"), s.at("r1/kept")).unwrap();
        fs::copy(s.at("r1/kept"), s.at("r1/keys.db-wal")).unwrap();
    }),
    ("index removed", "the index of its log", |s| fs::remove_file(s.at("r1/keys.db-shm")).unwrap()),
    ("replaced by nothing", "was moved or removed", |s| {
        fs::remove_dir_all(s.at("r1")).unwrap();
        fs::write(s.at("r1"), "").unwrap();
    }),
];

fn relink(scene: &Scene) {
    symlink("r2", scene.at("next")).unwrap();
    fs::rename(scene.at("next"), scene.at("current")).unwrap();
}

#[test]
fn s10_from_the_first_sign_that_the_file_is_another_every_call_fails() {
    for (_, words, happens) in SIGNS {
        let scene = Scene::new();
        happens(&scene);
        scene.assert_lost(words);
    }
}

#[test]
fn a_reader_alone_notices_within_50_ms_and_a_new_connection_at_once() {
    for (name, _, happens) in SIGNS {
        let scene = Scene::new();
        happens(&scene);
        scene.clock.advance(Duration::from_millis(50));
        let read = block_on(scene.store.load(&id("done")));
        assert!(matches!(read, Err(StoreError::Unusable { .. })), "{name}: {read:?}");
    }
    // Every thread has its own connection, up to four: one of these opens one.
    let scene = Scene::new();
    fs::rename(scene.at("r1/keys.db"), scene.at("r1/old.db")).unwrap();
    let refused = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| block_on(scene.store.load(&id("done"))))).collect();
        threads
            .into_iter()
            .filter(|_| true)
            .map(|thread| thread.join().unwrap())
            .filter(Result::is_err)
            .count()
    });
    assert!(refused > 0);
}

#[test]
fn a_lost_file_stays_lost_when_it_is_put_back_and_a_store_opened_anew_works() {
    let scene = Scene::new();
    fs::rename(scene.at("r1/keys.db"), scene.at("r1/old.db")).unwrap();
    scene.assert_lost("was moved or removed");
    fs::rename(scene.at("r1/old.db"), scene.at("r1/keys.db")).unwrap();
    scene.assert_lost("was moved or removed");
    let (folder, token) = (scene.folder.path().to_owned(), scene.held.token());
    let again =
        SqliteStore::builder(folder.join("current/keys.db")).clock(scene.clock.clone()).open().unwrap();
    let again = engine(again);
    assert_eq!(replay(&again, "done"), b"r");
    block_on(async { again.resume(&token).await.unwrap().complete("late").await }).unwrap();
    assert_eq!(replay(&again, "held"), b"late");
}

/// A waiter gets the error: the watcher checks even if there are no calls.
#[test]
fn a_waiter_is_told_that_the_file_is_lost() {
    let scene = Scene::new();
    let (id, stamp) = (id("held"), stored(&scene.store, "held").unwrap().stamp);
    let mut changed = scene.store.changed(&id, stamp, Duration::from_secs(60));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(changed.as_mut().poll(&mut context).is_pending());
    fs::remove_file(scene.at("r1/keys.db-wal")).unwrap();
    scene.clock.advance(Duration::from_millis(50));
    let ended = block_on(changed);
    assert!(matches!(ended, Err(StoreError::Unusable { .. })), "{ended:?}");
}

/// A store that lost its log must neither move it into the file when it is closed nor remove its
/// successor's.
#[test]
fn s9_a_store_whose_log_was_removed_takes_nothing_from_its_successor() {
    if let Some(path) = std::env::var_os(CHILD) {
        return block_on(acquire(&engine(SqliteStore::open(path).unwrap()), "k2").complete("two")).unwrap();
    }
    let file = File::new();
    drop(file.store());
    let engine = file.engine();
    let lease = acquire(&engine, "k1");
    for end in ["-wal", "-shm"] {
        fs::remove_file(file.0.path().join(format!("keys.db{end}"))).unwrap();
    }
    assert!(matches!(block_on(lease.complete("one")), Err(Error::Store(StoreError::Unusable { .. }))));
    elsewhere("s9_a_store_whose_log_was_removed_takes_nothing_from_its_successor", &file.path());
    drop((engine, lease));
    assert_eq!(replay(&file.engine(), "k2"), b"two");
}

#[test]
fn a_file_with_two_names_and_a_link_to_nothing_are_not_opened() {
    let file = File::new();
    drop(file.store());
    fs::hard_link(file.path(), file.0.path().join("other.db")).unwrap();
    assert_unusable(&file.path(), "2 names");
    fs::remove_file(file.0.path().join("other.db")).unwrap();
    drop(file.store());
    let link = file.0.path().join("link.db");
    symlink("nowhere.db", &link).unwrap();
    assert_unusable(&link, "leads to no file");
    fs::remove_file(&link).unwrap();
    // A link to the file is another path to the same log.
    symlink("keys.db", &link).unwrap();
    let (one, two) = (file.engine(), engine(SqliteStore::open(&link).unwrap()));
    block_on(acquire(&one, "k").complete("r")).unwrap();
    assert_eq!(replay(&two, "k"), b"r");
}

#[test]
fn a_store_leaves_no_log_behind_and_no_descriptor() {
    let file = File::new();
    let open = || {
        fs::read_dir("/proc/self/fd").map_or(0, |open| {
            open.flatten()
                .filter(|fd| fs::metadata(fd.path()).is_ok_and(|f| f.ino() == file_inode(&file)))
                .count()
        })
    };
    let engine = file.engine();
    block_on(acquire(&engine, "k").complete("r")).unwrap();
    drop(engine);
    for end in ["-wal", "-shm"] {
        assert!(!file.0.path().join(format!("keys.db{end}")).exists(), "{end}");
    }
    assert_eq!(open(), 0);
    // An application's own connection keeps its locks, and the descriptor with them, until the next
    // store is closed.
    let own = file.raw();
    let _: i64 = own.query_row("SELECT count(*) FROM nevertwice", [], |row| row.get(0)).unwrap();
    drop(file.store());
    drop(own);
    drop(file.store());
    assert_eq!(open(), 0);
}

fn file_inode(file: &File) -> u64 {
    fs::metadata(file.path()).unwrap().ino()
}

/// The file that [`reads_and_closes`] opens.
const CHILD: &str = "NEVERTWICE_TEST_IDENTITY";

/// Runs the test `name` of this file in another process, and waits for it.
fn elsewhere(name: &str, path: &Path) {
    let mut child = Kid(Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("identity::{name}"), "--nocapture", "--test-threads=1"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap());
    let output = BufReader::new(child.0.stdout.take().unwrap());
    let lines: Vec<String> = output.lines().map(Result::unwrap).collect();
    assert!(child.0.wait().unwrap().success(), "{lines:?}");
}

struct Kid(Child);

impl Drop for Kid {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}

/// Another process that opens and closes the file believes that it is the last user if the locks of
/// this one are gone.
#[cfg(target_os = "linux")]
#[test]
fn s9_a_store_whose_file_is_copied_in_its_own_process_keeps_its_locks() {
    if let Some(path) = std::env::var_os(CHILD) {
        let db = Connection::open(path).unwrap();
        let _: i64 = db.query_row("SELECT count(*) FROM nevertwice", [], |row| row.get(0)).unwrap();
        drop(db);
        return;
    }
    let file = File::new();
    let engine = file.engine();
    block_on(acquire(&engine, "one").complete("1")).unwrap();
    for end in ["", "-shm", "-wal"] {
        fs::copy(file.0.path().join(format!("keys.db{end}")), file.0.path().join("copy")).unwrap();
    }
    let log = || fs::metadata(file.0.path().join("keys.db-wal")).map(|log| log.ino()).ok();
    let before = log();
    elsewhere("s9_a_store_whose_file_is_copied_in_its_own_process_keeps_its_locks", &file.path());
    assert!(before.is_some() && log() == before);
    block_on(acquire(&engine, "two").complete("2")).unwrap();
    let other = file.engine();
    assert_eq!((replay(&other, "one"), replay(&other, "two")), (b"1".to_vec(), b"2".to_vec()));
    assert!(file.store().warnings().is_empty());
}

#[test]
fn another_journal_mode_is_not_set_under_an_open_store() {
    let file = File::new();
    let engine = file.engine();
    let other = file.raw();
    other.busy_timeout(Duration::ZERO).unwrap();
    let set = other.query_row("PRAGMA journal_mode = DELETE", [], |row| row.get::<_, String>(0));
    assert!(set.is_err(), "{set:?}");
    block_on(acquire(&engine, "k").complete("r")).unwrap();
    assert_eq!(replay(&engine, "k"), b"r");
}

#[track_caller]
fn assert_refused(begin: Result<Begin<sqlite::TxLease>, Error>, words: &str) {
    match begin {
        Err(Error::Store(StoreError::Unusable { detail, .. })) => assert!(detail.contains(words), "{detail}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_transaction_is_told_from_one_on_another_file_by_the_file_and_not_by_its_name() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    let path = |last: u8| folder.path().join(std::ffi::OsStr::from_bytes(&[0xff, last]));
    let (one, two) = (SqliteStore::open(path(b'1')).unwrap(), SqliteStore::open(path(b'2')).unwrap());
    let policy = engine(one.clone()).policy().clone();
    let mut db = Connection::open(path(b'2')).unwrap();
    let tx = db.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    assert_refused(sqlite::begin_in(&tx, &one, &policy, &request("k")), "another database");
    let begin = sqlite::begin_in(&tx, &two, &policy, &request("k")).unwrap();
    assert!(matches!(begin, Begin::Acquired(_)));
    drop(tx);
    let mut memory = Connection::open_in_memory().unwrap();
    let tx = memory.transaction().unwrap();
    assert_refused(sqlite::begin_in(&tx, &one, &policy, &request("k")), "another database");
    drop(tx);
    // The store's file is attached under another name, so the transaction is not on it.
    let mut other = Connection::open_in_memory().unwrap();
    other.execute("ATTACH ?1 AS keys", [folder.path().join("x.db").to_str().unwrap()]).unwrap();
    let tx = other.transaction().unwrap();
    assert_refused(sqlite::begin_in(&tx, &two, &policy, &request("k")), "another database");
}

#[test]
fn a_transaction_on_a_file_that_was_replaced_is_refused_from_both_sides() {
    let file = File::new();
    let old = file.store();
    let policy = engine(old.clone()).policy().clone();
    let mut before = file.raw();
    let _: i64 = before.query_row("SELECT count(*) FROM nevertwice", [], |row| row.get(0)).unwrap();
    for end in ["", "-wal", "-shm"] {
        let at = |name: &str| file.0.path().join(format!("{name}{end}"));
        fs::rename(at("keys.db"), at("old.db")).unwrap();
    }
    let backup = File::new();
    drop(backup.store());
    fs::rename(backup.path(), file.path()).unwrap();
    let new = file.store();
    let mut after = file.raw();
    let tx = after.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    assert_refused(sqlite::begin_in(&tx, &old, &policy, &request("k")), "replaced");
    assert!(matches!(sqlite::begin_in(&tx, &new, &policy, &request("k")).unwrap(), Begin::Acquired(_)));
    drop(tx);
    // This connection has the right name and the wrong file.
    let tx = before.transaction_with_behavior(TransactionBehavior::Immediate).unwrap();
    assert_refused(sqlite::begin_in(&tx, &new, &policy, &request("k")), "another file");
}

#[cfg(feature = "tracing")]
#[test]
fn a_lost_file_is_warned_of_once() {
    use super::warned::Warned;
    let (scene, warned) = (Scene::new(), Warned::default());
    fs::remove_file(scene.at("r1/keys.db-wal")).unwrap();
    scene.clock.advance(Duration::from_millis(50));
    tracing::subscriber::with_default(warned.clone(), || {
        for _ in 0..3 {
            assert!(block_on(scene.store.load(&id("done"))).is_err());
        }
    });
    assert_eq!(warned.take(), ["nevertwice.store_warning"]);
}
