//! Commands that read change nothing: not a byte, with users that may not.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::children;
use crate::lab::{Lab, Ran, request};

/// Each command that reads, on a filled store.
fn commands() -> Vec<Vec<String>> {
    let id = request("shop,refunds", "reported").id().to_string();
    let lines = [
        "list",
        "unresolved",
        "stats",
        "check",
        "watch --once",
        "export --accept-stale",
        "purge --dry-run",
        "forget --all --dry-run",
        "resolve --all rerun --dry-run",
        &format!("show {id} --content"),
        &format!("resolve {id} completed --body x --dry-run"),
        &format!("forget {id} --dry-run"),
        &format!("derive-key {id} psp"),
    ];
    lines.iter().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

/// The names and contents of a folder.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entry = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.display().to_string(), std::fs::read(&path).unwrap())
    };
    std::fs::read_dir(dir).unwrap().map(entry).collect()
}

/// Runs a command as a user that owns nothing, if this one may do anything.
fn as_nobody(program: &Path, arguments: &[String], url: &str) -> Ran {
    let is_root =
        std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let mut command = if is_root {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.args(arguments).stdin(Stdio::null()).env("NEVERTWICE_STORE", url);
    Ran::of(children::output(&mut command))
}

#[test]
fn reads_change_no_byte_of_a_file_and_need_no_right_to() {
    for in_use in [false, true] {
        let lab = Lab::sqlite().filled();
        let copy = tempfile::tempdir().unwrap();
        std::fs::set_permissions(copy.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let program = copy.path().join("nevertwice");
        std::fs::copy(env!("CARGO_BIN_EXE_nevertwice"), &program).unwrap();
        let mode =
            |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        // A store that was killed leaves its log and its index.
        let open = in_use.then(|| nevertwice::SqliteStore::open(&lab.url[7..]).unwrap());
        let folder = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(lab.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let to = folder.path().join(path.file_name().unwrap());
            std::fs::copy(&path, &to).unwrap();
            mode(&to, 0o444);
        }
        mode(folder.path(), 0o555);
        drop(open);
        let before = contents(folder.path());
        assert_eq!(before.len() > 2, in_use, "{:?}", before.keys());
        let url = format!("sqlite:{}", folder.path().join("keys.db").display());
        for arguments in commands() {
            let ran = as_nobody(&program, &arguments, &url);
            assert_eq!(ran.code, 0, "in use: {in_use}, {arguments:?}: {ran:?}");
            assert_eq!(contents(folder.path()), before, "{arguments:?}");
        }
        mode(folder.path(), 0o755);
        // With the right to write, they make nothing either.
        for arguments in commands() {
            let mut command = Command::new(&program);
            command.args(&arguments).env("NEVERTWICE_STORE", &url);
            assert_eq!(Ran::of(children::output(&mut command)).code, 0, "{arguments:?}");
            assert_eq!(contents(folder.path()), before, "{arguments:?}");
        }
    }
}

#[test]
fn a_file_in_use_is_read_as_it_is_now() {
    let lab = Lab::sqlite();
    lab.application(async |engine| {
        crate::lab::complete(&engine, "s", 3).await;
        assert_eq!(lab.json(&["stats"])["operations"], 3);
        crate::lab::complete(&engine, "t", 2).await;
        assert_eq!(lab.json(&["stats"])["operations"], 5);
    });
    assert_eq!(lab.json(&["stats"])["operations"], 5);
}

#[test]
fn what_is_missing_is_reported_and_not_created() {
    let lab = Lab::sqlite();
    let id = request("s", "k").id().to_string();
    let with_id = |line: &str| line.replace("ID", &id);
    let export = lab.dir.path().join("export");
    std::fs::write(
        &export,
        "{\"line\":\"start\",\"version\":1,\"store\":\"x\",\"store_id\":\"x\",\"now\":0}\n",
    )
    .unwrap();
    let lines = [
        "list",
        "show ID",
        "unresolved",
        "stats",
        "check",
        "export",
        "watch --once",
        "purge",
        "purge --dry-run",
        "resolve ID rerun --yes",
        "amend ID rerun --yes",
        "forget ID --yes",
        "forget --all --yes",
        "reconcile --cmd true --label psp --yes",
        &format!("import {}", export.display()),
    ];
    let before = contents(lab.dir.path());
    for line in lines {
        let line = with_id(line);
        let ran = lab.run(&line.split(' ').collect::<Vec<_>>());
        assert!(ran.code == 3 && ran.err.contains("no file"), "{line}: {ran:?}");
        assert_eq!(contents(lab.dir.path()), before, "{line}");
    }
    // A database of something else.
    let other = lab.dir.path().join("other.db");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
    let before = contents(lab.dir.path());
    for line in lines {
        let line = with_id(line);
        let mut command = lab.command(&line.split(' ').collect::<Vec<_>>());
        command.env("NEVERTWICE_STORE", format!("sqlite:{}", other.display()));
        let ran = Ran::of(children::output(&mut command));
        assert!(ran.code == 3 && ran.err.contains("no table nevertwice"), "{line}: {ran:?}");
        assert_eq!(contents(lab.dir.path()), before, "{line}");
    }
    let lab = Lab::postgres();
    for line in lines {
        let line = with_id(line);
        let ran = lab.run(&line.split(' ').collect::<Vec<_>>());
        assert!(ran.code == 3 && ran.err.contains("there is no table public.nevertwice"), "{line}: {ran:?}");
    }
    let server = lab.postgres.as_ref().unwrap();
    assert_eq!(server.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"), "0");
}

#[test]
fn a_redis_user_that_may_only_read_can_look() {
    let lab = Lab::redis().filled();
    let server = lab.redis.as_ref().unwrap();
    server.ask::<()>("ACL SETUSER reader on >s3cret resetkeys %R~nevertwice:* -@all +get +time +scan");
    let url = server.url_as("reader", "s3cret");
    let dump = || {
        let mut names: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut server.raw()).unwrap();
        names.sort();
        let get = |name: &Vec<u8>| redis::cmd("GET").arg(name).query::<Vec<u8>>(&mut server.raw()).unwrap();
        names.iter().map(get).collect::<Vec<_>>()
    };
    let before = dump();
    for arguments in commands() {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = lab.command(&arguments);
        let ran = Ran::of(children::output(command.env("NEVERTWICE_STORE", &url)));
        assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
        assert!(!ran.err.contains("s3cret") && !ran.out.contains("s3cret"));
    }
    assert_eq!(dump(), before);
    let id = request("shop,refunds", "reported").id().to_string();
    let mut command = lab.command(&["resolve", &id, "rerun", "--yes"]);
    let refused = Ran::of(children::output(command.env("NEVERTWICE_STORE", &url)));
    assert!(refused.code == 3 && refused.err.contains("permission"), "{refused:?}");
    assert_eq!(dump(), before);
}

#[test]
fn a_postgres_role_with_select_only_and_a_standby_can_be_looked_at() {
    let lab = Lab::postgres().filled();
    let server = lab.postgres.as_ref().unwrap();
    server.sql("CREATE ROLE reader LOGIN; ALTER ROLE reader SET default_transaction_read_only = on");
    server.sql("GRANT SELECT ON nevertwice, nevertwice_meta TO reader");
    let dump = || server.sql("SELECT * FROM nevertwice ORDER BY id");
    let before = dump();
    let standby = server.standby("eve", &["fsync=off"]);
    for url in [server.url_as("reader", "", "postgres"), standby.url()] {
        for arguments in commands() {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let mut command = lab.command(&arguments);
            let ran = Ran::of(children::output(command.env("NEVERTWICE_STORE", &url)));
            assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
        }
        let mut command = lab.command(&["forget", "--all", "--yes"]);
        let refused = Ran::of(children::output(command.env("NEVERTWICE_STORE", &url)));
        assert_eq!(refused.code, 3, "{refused:?}");
    }
    assert_eq!(dump(), before);
}
