//! Invalid paths, paths that are not files, and too many open files.

use std::fs;
use std::process::Command;

use super::*;

#[test]
fn what_looks_like_a_url_or_leads_to_no_file_is_refused_and_nothing_is_made() {
    let file = File::new();
    for (path, words) in [
        ("sqlite:keys.db", "plain path"),
        ("sqlite://keys.db", "plain path"),
        ("SQLITE:///tmp/keys.db", "plain path"),
        ("file:keys.db", "plain path"),
        ("file:keys.db?mode=rwc", "plain path"),
        ("keys.db?mode=memory&cache=shared", "plain path"),
        ("file::memory:", "MemoryStore"),
        ("file::memory:?cache=shared", "MemoryStore"),
        (":memory:", "MemoryStore"),
        ("", "empty"),
    ] {
        assert_unusable(Path::new(path), words);
        assert!(fs::symlink_metadata(path).is_err() || path.is_empty(), "{path}");
    }
    assert_unusable(file.0.path(), "is a folder");
    #[cfg(unix)]
    {
        let pipe = file.0.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_unusable(&pipe, "not a regular file");
        assert_unusable(Path::new("/dev/null"), "not a regular file");
    }
    // In a folder it is a plain name.
    drop(SqliteStore::open(file.0.path().join("file:keys.db")).unwrap());
}

/// Tells the child its folder.
const CHILD: &str = "NEVERTWICE_TEST_PATHS";

fn child(name: &str, shell: &str, folder: &Path) -> (bool, String) {
    let output = Command::new("timeout")
        .args(["120", "sh", "-c", &format!("{shell} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("paths::{name}"), "--nocapture", "--test-threads=1"])
        .env(CHILD, folder)
        .output()
        .unwrap();
    (
        output.status.success(),
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr),
    )
}

#[cfg(unix)]
#[test]
fn too_many_files_are_an_error_that_says_so_and_passes() {
    let Some(folder) = std::env::var_os(CHILD) else {
        let file = File::new();
        let (success, said) =
            child("too_many_files_are_an_error_that_says_so_and_passes", "ulimit -n 64;", file.0.path());
        return assert!(success, "{said}");
    };
    let says_so = |error: &StoreError| match error {
        StoreError::Unavailable { detail, .. } => assert!(detail.contains("file descriptors"), "{detail}"),
        other => panic!("{other}"),
    };
    let path = |number: usize| Path::new(&folder).join(format!("{number}.db"));
    let mut stores = Vec::new();
    let error = loop {
        match SqliteStore::open(path(stores.len())) {
            Ok(store) => stores.push(store),
            Err(error) => break error,
        }
        assert!(stores.len() < 64);
    };
    says_so(&error);
    assert!(stores.len() >= 6, "{}", stores.len());
    // With no descriptor left, a thread that needs its own connection gets this error.
    let first = stores.swap_remove(0);
    block_on(acquire(&engine(first.clone()), "k").complete("r")).unwrap();
    let mut null = Vec::new();
    while let Ok(file) = fs::File::open("/dev/null") {
        null.push(file);
    }
    let loads = || {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| block_on(first.load(&id("k"))))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        })
    };
    let refused: Vec<_> = loads().into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty());
    refused.iter().for_each(says_so);
    drop((null, stores));
    assert!(loads().iter().all(Result::is_ok));
    drop(SqliteStore::open(path(99)).unwrap());
}

#[cfg(unix)]
#[test]
fn a_relative_path_is_the_same_file_wherever_the_process_goes() {
    let Some(folder) = std::env::var_os(CHILD) else {
        let file = File::new();
        let (success, said) = child(
            "a_relative_path_is_the_same_file_wherever_the_process_goes",
            "cd \"$NEVERTWICE_TEST_PATHS\";",
            file.0.path(),
        );
        assert!(success, "{said}");
        return assert_eq!(replay(&file.engine(), "k"), b"r");
    };
    let store = SqliteStore::open("keys.db").unwrap();
    std::env::set_current_dir("/").unwrap();
    let engine = engine(store);
    block_on(acquire(&engine, "k").complete("r")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(replay(&engine, "k"), b"r"));
        }
    });
    assert!(Path::new(&folder).join("keys.db").exists());
}
