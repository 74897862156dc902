//! Each system call of a fixed workload fails once, or from some call on. The failures are injected
//! with `strace`.
//!
//! Where the machine has disks that can be cut off, writes acknowledged under a failing sync are
//! checked after a power cut. Elsewhere they are checked in the same boot, which is weaker: the
//! system's cache may hold data that the disk does not.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use futures_util::future::join_all;
use nevertwice::Error;

use super::disks::{Disk, Kind, say};
use super::*;

/// Environment variables of a child: its folder, and the time limit of its calls.
const FOLDER: &str = "NEVERTWICE_TEST_SYSCALLS";
const LIMIT: &str = "NEVERTWICE_TEST_LIMIT";
/// Keys that are completed before anything fails.
const OLD: [&str; 3] = ["old 1", "old 2", "old 3"];

macro_rules! sweep {
    ($name:ident, $calls:literal, $error:literal, $times:expr) => {
        #[test]
        fn $name() {
            match std::env::var_os(FOLDER) {
                Some(folder) => work(Path::new(&folder)),
                None => sweep(concat!("syscalls::", stringify!($name)), $calls, $error, $times),
            }
        }
    };
}

sweep!(s9_s10_one_sync_fails, "fdatasync,fsync", "EIO", Times::Once);
sweep!(s9_s10_every_sync_fails_from_one_on, "fdatasync,fsync", "EIO", Times::EverAfter);
sweep!(s9_s10_one_write_fails, "pwrite64", "EIO", Times::Once);
sweep!(s9_s10_every_write_finds_a_full_disk_from_one_on, "pwrite64", "ENOSPC", Times::EverAfter);
sweep!(s10_one_read_fails, "pread64", "EIO", Times::Once);
sweep!(s10_every_read_fails_from_one_on, "pread64", "EIO", Times::EverAfter);
sweep!(s9_s10_the_log_cannot_be_cut_or_removed, "ftruncate,unlink", "EIO", Times::EverAfter);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Times {
    Once,
    EverAfter,
}

#[derive(Default)]
struct Toll {
    runs: u32,
    acknowledged: usize,
    refused: usize,
}

fn sweep(test: &str, calls: &str, error: &str, times: Times) {
    let when = if times == Times::Once { "the n-th time" } else { "from the n-th time on" };
    let fault = format!("{error} of {calls} {when}");
    let allowed = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    if !allowed.unwrap_or_else(|error| panic!("strace: {error}; tests/run installs it")).status.success() {
        return say(&format!("LEFT OUT: backend=sqlite fault=\"{fault}\": tracing is not permitted"));
    }
    // The damage of a failed sync shows only after a power cut.
    let disk = if calls.contains("sync") { Disk::new(Kind::Ext4, 64).ok() } else { None };
    let mut toll = Toll::default();
    for n in 0.. {
        let home = tempfile::tempdir().unwrap();
        let folder = disk.as_ref().map_or(home.path().to_owned(), |disk| disk.path().join(n.to_string()));
        fs::create_dir_all(&folder).unwrap();
        let before = open(&folder);
        OLD.iter().for_each(|key| block_on(acquire(&before, key).complete(response(key))).unwrap());
        drop(before);
        let inject = (n > 0).then(|| {
            format!("inject={calls}:error={error}:when={n}{}", if times == Times::Once { "" } else { "+" })
        });
        let Some((failed, output)) = run(test, &folder, calls, inject.as_deref()) else { continue };
        assert!(n > 0 || !output.contains("ERR "), "nothing fails yet: {output}");
        if n > 0 && !failed {
            break;
        }
        if let Some(disk) = &disk {
            disk.cut();
            disk.come_up();
        }
        toll.runs += 1;
        verify(&folder, &output, &mut toll);
        if disk.is_some() {
            fs::remove_dir_all(&folder).unwrap();
        }
    }
    assert!(toll.runs > 2, "only {} runs", toll.runs);
    say(&format!(
        "fault: backend=sqlite fault=\"{fault}\" runs={} acknowledged={} refused={} lost=0 duplicated=0 looked=\"{}\"",
        toll.runs,
        toll.acknowledged,
        toll.refused,
        if disk.is_some() { "after a power cut" } else { "in the same boot" },
    ));
}

/// Runs the child. Returns true if a call was made to fail, and the child's output; `None` if it
/// did not get as far as the store.
fn run(test: &str, folder: &Path, calls: &str, inject: Option<&str>) -> Option<(bool, String)> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let trace = format!("trace={calls}");
    let mut command = Command::new("timeout");
    command.args(["60", "strace", "-f", "--seccomp-bpf", "-e", &trace]);
    if let Some(inject) = inject {
        command.args(["-e", inject]);
    }
    command.arg("-o").arg(log.path()).arg(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]);
    command.env(FOLDER, folder).env(LIMIT, if inject.is_some() { "60" } else { "20000" });
    let output = command.output().unwrap();
    let (said, complained) = (String::from_utf8(output.stdout).unwrap(), output.stderr);
    let complained = String::from_utf8_lossy(&complained);
    if !said.contains("START") && inject.is_some() {
        return None;
    }
    assert!(output.status.success() && said.contains("DONE"), "{inject:?}: {said}{complained}");
    Some((fs::read_to_string(log.path()).unwrap().contains("(INJECTED)"), said))
}

/// Checks that everything the child got an `Ok` for is there, and nothing older is gone.
fn verify(folder: &Path, output: &str, toll: &mut Toll) {
    assert_intact(folder);
    let engine = open(folder);
    OLD.iter().for_each(|key| assert_replays(&engine, key));
    for line in output.lines() {
        if let Some(key) = line.strip_prefix("COMPLETED ") {
            assert_replays(&engine, key);
        } else if let Some(key) = line.strip_prefix("GRANTED ") {
            match block_on(engine.begin(&request(key))).unwrap() {
                Begin::InProgress(_) | Begin::Completed(_) => {}
                other => panic!("{key}: {other:?}"),
            }
        } else {
            toll.refused += usize::from(line.starts_with("ERR "));
            continue;
        }
        toll.acknowledged += 1;
    }
}

fn tell(what: &str, key: &str) {
    std::io::stdout().write_all(format!("\n{what} {key}\n").as_bytes()).unwrap();
}

/// The workload. It ends without closing the store, like a killed process.
fn work(folder: &Path) {
    tell("START", "");
    let limit = Duration::from_millis(std::env::var(LIMIT).unwrap().parse().unwrap());
    let path = folder.join(FILE);
    match SqliteStore::builder(&path).busy_timeout(limit / 4).open() {
        Ok(store) => all_calls(&engine(store, limit), &path),
        Err(error) => tell("ERR open", &error.to_string()),
    }
    tell("DONE", "");
    std::process::exit(0);
}

fn all_calls(engine: &Engine, path: &Path) {
    for key in OLD {
        match block_on(engine.begin(&request(key))) {
            Ok(Begin::Completed(done)) => assert_eq!(done.response().unwrap(), &response(key)),
            Ok(other) => panic!("{key}: {other:?}"),
            Err(error) => tell("ERR replay", &error.to_string()),
        }
    }
    block_on(cycle(engine, "1"));
    block_on(join_all(["a", "b", "c", "d", "e", "f"].map(|key| cycle(engine, key))));
    // This moves the log into the file, and the following writes restart it.
    if let Ok(db) = Connection::open(path) {
        let _ = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }
    block_on(cycle(engine, "2"));
    let released = block_on(engine.begin(&request("released")));
    if let Ok(Begin::Acquired(lease)) = released {
        let _ = block_on(lease.release());
    }
    let _ = block_on(engine.purge(10));
    block_on(cycle(engine, "3"));
}

async fn cycle(engine: &Engine, key: &str) {
    let error: Error = match engine.begin(&request(key)).await {
        Ok(Begin::Acquired(lease)) => {
            tell("GRANTED", key);
            match lease.complete(response(key)).await {
                Ok(()) => return tell("COMPLETED", key),
                Err(error) => error,
            }
        }
        Ok(other) => panic!("{key}: {other:?}"),
        Err(error) => error,
    };
    tell("ERR", &format!("{key} {error}"));
}
