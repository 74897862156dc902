//! The bytes of a SQLite file: arbitrary, or a store's file with bytes changed or its end missing.
//! Whatever they are, there is no panic, the file is not recreated, and begins are answered by what
//! its rows still say.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use nevertwice::testing::block_on;
use nevertwice::{Begin, Engine, ManualClock, Owner, RecordId, Request, Retry, SqliteStore};
use rusqlite::{Connection, OptionalExtension};
use tempfile::TempDir;

/// The keys of the store whose file is damaged, each in another state.
const KEYS: [&str; 4] = ["done", "failed", "unresolved", "held"];
const RESPONSE: &str = "receipt 7";

pub(crate) fn run(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let bytes = match kind % 4 {
        0 => rest.to_vec(),
        1 => {
            let Some((end, patches)) = rest.split_first_chunk::<2>() else { return };
            let mut bytes = patched(patches);
            bytes.truncate(usize::from(u16::from_le_bytes(*end)));
            bytes
        }
        _ => patched(rest),
    };
    let dir = folder();
    let file = dir.path().join("keys.db");
    fs::write(&file, &bytes).expect("room for a small file");
    match engine(&file) {
        None => {
            let left = fs::read(&file).expect("S10: the file is gone");
            // SQLite may note in its header that the file was opened. Nothing else was written.
            let same = left.get(100..) == bytes.get(100..);
            assert!(same, "S10, S14: a file that was refused was changed");
        }
        Some(engine) => {
            // A grant writes, and may increase the damage; later results would no longer concern
            // these bytes.
            let _ =
                (0..KEYS.len()).all(|turn| check(&engine, KEYS[(turn + usize::from(kind >> 2)) % 4], &bytes));
        }
    }
}

/// Begins a key that was settled before the damage. Returns true if that wrote nothing.
fn check(engine: &Engine, key: &str, bytes: &[u8]) -> bool {
    match block_on(engine.begin(&request(key))) {
        Ok(Begin::Completed(done)) => {
            assert_eq!(
                (key, done.response().map(|bytes| &bytes[..])),
                ("done", Some(RESPONSE.as_bytes())),
                "S2"
            );
        }
        Ok(Begin::Failed(_)) => assert_eq!(key, "failed", "S2"),
        Ok(Begin::Unresolved(_)) => assert_eq!(key, "unresolved", "S8"),
        Ok(Begin::InProgress(_)) => assert_eq!(key, "held", "S1"),
        Ok(Begin::Mismatch(_)) => panic!("S4: another fingerprint"),
        Ok(Begin::Acquired(_)) => {
            assert!(is_blameless(&request(key).id(), bytes), "S10: a grant from damage, for the key `{key}`");
            return false;
        }
        Err(_) => {}
    }
    true
}

/// True if a store that sees these bytes cannot know better than to grant a lease: SQLite itself
/// finds no row and no fault, or the store's time has been changed (data without a checksum is
/// trusted).
fn is_blameless(id: &RecordId, bytes: &[u8]) -> bool {
    let dir = folder();
    let file = dir.path().join("copy.db");
    fs::write(&file, bytes).expect("room for a small file");
    let db = Connection::open(&file).expect("it could be opened before");
    let number = |sql: &str, id: &[u8]| {
        let row = db.prepare(sql).and_then(|mut query| {
            if query.parameter_count() == 0 {
                query.query_row([], |row| row.get::<_, i64>(0)).optional()
            } else {
                query.query_row([id], |row| row.get::<_, i64>(0)).optional()
            }
        });
        row.map_err(|_| ())
    };
    // By the index, as the store does.
    let found = number(
        "SELECT stamp FROM nevertwice WHERE substr(id, 1, 6) = substr(?1, 1, 6) AND id = ?1",
        id.as_bytes(),
    );
    let time = number("SELECT high_water FROM nevertwice_meta WHERE one = 1", &[]);
    let no_store = number("SELECT count(*) FROM sqlite_schema WHERE name = 'nevertwice'", &[]);
    found == Ok(None) || no_store == Ok(Some(0)) || bytes.is_empty() || time != Ok(Some(template().time))
}

fn engine(file: &Path) -> Option<Engine> {
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(60));
    let store = SqliteStore::builder(file).clock(clock).busy_timeout(Duration::ZERO).open().ok()?;
    let build = Engine::builder(store)
        .call_timeout(Duration::from_millis(20))
        .lease(Duration::from_secs(3600))
        .build();
    Some(build.expect("windows that are safe"))
}

fn request(key: &str) -> Request {
    Request::new("fuzz", key).expect("a scope and a key")
}

/// The holder of the keys before the damage. Always the same, so that the file is too.
fn holder(key: &str) -> Request {
    let owner: Owner = serde_json::from_value(format!("{:032x}", key.len()).into()).expect("16 bytes in hex");
    request(key).owner(owner)
}

/// Creates a folder in memory, if the machine has one.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
        .expect("a temporary folder")
}

struct Template {
    bytes: Vec<u8>,
    time: i64,
}

/// Returns the file before the damage, always the same.
fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let dir = folder();
        let file = dir.path().join("keys.db");
        let store = SqliteStore::builder(&file).clock(ManualClock::new()).open().expect("a new file");
        let engine = Engine::builder(store).lease(Duration::from_secs(3600)).build().expect("safe windows");
        let lease = |key: &str| match block_on(engine.begin(&holder(key))) {
            Ok(Begin::Acquired(lease)) => lease,
            other => panic!("a new key is granted, not {other:?}"),
        };
        block_on(lease("done").complete(RESPONSE)).expect("a finish");
        block_on(lease("failed").fail("declined", Retry::Never)).expect("a finish");
        block_on(lease("unresolved").fail("timed out", Retry::Unresolved)).expect("a finish");
        drop(lease("held"));
        drop(engine);
        let db = Connection::open(&file).expect("the store's file");
        db.busy_timeout(Duration::from_secs(5)).expect("a number");
        db.pragma_update_and_check(None, "journal_mode", "delete", |_| Ok(()))
            .expect("no other store has it open");
        let sql = "SELECT high_water FROM nevertwice_meta WHERE one = 1";
        let time = db.query_row(sql, [], |row| row.get(0)).expect("a store's table");
        db.close().expect("nothing is open");
        Template { bytes: fs::read(&file).expect("it is there"), time }
    })
}

/// Returns the file with bytes changed: four bytes of input for each, three of them its position.
fn patched(patches: &[u8]) -> Vec<u8> {
    let mut bytes = template().bytes.clone();
    for patch in patches.chunks_exact(4) {
        let place = u32::from_le_bytes([patch[0], patch[1], patch[2], 0]) as usize;
        let place = place % bytes.len();
        bytes[place] ^= patch[3];
    }
    bytes
}
