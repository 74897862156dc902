//! Bad input for every command: the right exit code, a message, nothing changed, no password.

use crate::lab::{Lab, Ran, command, request};

/// Runs a line on no store.
fn plain(line: &str) -> Ran {
    crate::lab::run(&line.split(' ').collect::<Vec<_>>())
}

#[test]
fn wrong_arguments_are_exit_code_2_and_say_what_is_wrong() {
    let lab = Lab::sqlite().filled();
    let before = std::fs::read(lab.dir.path().join("keys.db")).unwrap();
    let id = request("shop,refunds", "reported").id().to_string();
    for line in [
        "",
        "nonsense",
        "list --limit 0",
        "list --limit x",
        "list --after xyz",
        "list --older-than soon",
        "list --state done",
        "list --reason because",
        "list --scope a,,b",
        "list --scope",
        "list --key k",
        "list --scope s --key k",
        "list extra",
        "unresolved --limit 0",
        "unresolved --scope s --key k",
        "show",
        "show xyz",
        "show ID --scope s",
        "show --all",
        "show --key k",
        "show --scope s",
        "show ID ID",
        "resolve",
        "resolve ID",
        "resolve ID done --yes",
        "resolve completed --yes",
        "resolve ID completed --yes",
        "resolve ID rerun --body x --yes",
        "resolve ID completed --body x --body-file y --yes",
        "resolve ID completed --body-file /nowhere --yes",
        "resolve --all rerun --fence 7 --yes",
        "resolve ID rerun --all --yes",
        "amend ID failed --yes",
        "amend --all rerun --stamp 7 --yes",
        "forget",
        "forget xyz --yes",
        "forget ID --state failed --yes",
        "forget --older-than -1s --yes",
        "purge --limit x",
        "reconcile --yes",
        "reconcile --cmd true --yes",
        "derive-key",
        "derive-key xyz psp",
        "check extra",
        "export --output /nowhere/file",
        "import",
        "import /nowhere",
        "watch --every x --once",
        "completions",
        "completions tcsh",
        "stats --scopes 0",
        "list --prefix p",
        "list --timeout 0s",
        "list --timeout 2days",
        "list --timeout 200000000000y",
        "resolve ID completed --body-file - --head-file - --yes",
        "resolve --all rerun --stamp 7 --yes",
        "forget --all --stamp 7 --yes",
    ] {
        let line = line.replace("ID", &id);
        let arguments: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        let ran = lab.run(&arguments);
        assert_eq!(ran.code, 2, "{line}: {ran:?}");
        assert!(!ran.err.is_empty() && ran.journal().is_empty(), "{line}: {ran:?}");
    }
    assert_eq!(std::fs::read(lab.dir.path().join("keys.db")).unwrap(), before);
}

#[test]
fn help_and_version_are_exit_code_0_and_tell_the_exit_codes() {
    let help = plain("--help");
    assert!(help.code == 0 && help.out.contains("Exit codes:") && help.out.contains("NEVERTWICE_STORE"));
    assert_eq!(plain("--version").code, 0);
    for command in [
        "list",
        "show",
        "unresolved",
        "stats",
        "resolve",
        "amend",
        "forget",
        "purge",
        "reconcile",
        "derive-key",
        "check",
        "export",
        "import",
        "watch",
        "completions",
    ] {
        let ran = plain(&format!("{command} --help"));
        assert!(ran.code == 0 && ran.out.contains("Usage: nevertwice"), "{command}: {ran:?}");
    }
}

#[test]
fn a_store_that_is_none_is_refused_without_being_repeated() {
    assert_eq!(plain("list").code, 2);
    for url in [
        "mysql://u:s3cret@h/d",
        "s3cret",
        "",
        "sqlite:",
        "redis",
        "redis+cluster://u:s3cret@",
        "redis+cluster://u:s3cret@h,,i",
        "redis+cluster://u:s3cret@h/0",
        "redis+clusters://u:s3cret@h",
        "://s3cret",
        "redis+sentinel://u:s3cret@h",
        "redis+sentinel://u:s3cret@h/",
        "redis+sentinel://s3cret@h/service",
        "redis+sentinel://u:s3cret@h/service/zero",
        "redis+sentinel://u:s3cret%ff@h/service",
        "redis+sentinel://h/service?password=s3cret",
    ] {
        let ran = crate::lab::run(&["list", "--store", url]);
        assert!(ran.code == 2 && !ran.err.contains("s3cret"), "{url}: {ran:?}");
        assert!(!ran.err.contains("***"), "what is expected is shown whole: {ran:?}");
    }
    for url in [
        "sqlite:/tmp",
        "sqlite:/nowhere/keys.db",
        "sqlite::memory:",
        "sqlite:keys.db?mode=rwc",
        "sqlite:/dev/null",
        "redis://u:s3cret@",
        "redis://u:s3cret@127.0.0.1:1",
        "redis://u:s3cret@127.0.0.1:1/x",
        "redis://nowhere.invalid",
        "postgres://u:s3cret@127.0.0.1:1/d",
        "postgres://u:s3 cret@:x/",
        "postgres://127.0.0.1:1/d?user=u&password=s3cret",
        "rediss://u:s3cret@127.0.0.1:1",
        "redis+cluster://u:s3cret@127.0.0.1:1,127.0.0.1:2",
        "rediss+cluster://u:s3cret@127.0.0.1:1/",
        "redis+cluster://u:s3 cret@:x",
        "redis+sentinel://u:s3cret@127.0.0.1:1,127.0.0.1:2/service",
        "redis+sentinel://127.0.0.1:1/service/1?sentinel_user=u&sentinel_password=s3cret",
        "postgresql://u:s3cret@nowhere.invalid/d",
    ] {
        let ran = crate::lab::run(&["list", "--timeout", "3s", "--store", url]);
        assert!(ran.code == 3 && !ran.err.contains("cret"), "{url}: {ran:?}");
    }
}

#[test]
fn a_password_is_never_shown() {
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    server.ask::<()>("ACL SETUSER carl on >s3cret ~* +@all");
    let url = server.url_as("carl", "s3cret");
    let wrong = server.url_as("carl", "wr0ng");
    let shows =
        |ran: &Ran| ["s3cret", "wr0ng"].iter().any(|word| ran.out.contains(word) || ran.err.contains(word));
    // As an argument in a wrong place, of a wrong option, and from the environment.
    for arguments in [
        vec![url.as_str()],
        vec!["show", &url],
        vec!["list", "--limit", &url],
        vec!["list", "--scope", "s", "--state", &url],
        vec!["list", "--strange", &url],
        vec!["list", "--store", &wrong],
        vec!["list", "--store", &url],
        vec!["--store", &url, "--help"],
        vec!["--store", &url, "check"],
        vec!["import", &url],
    ] {
        let ran = crate::lab::run(&arguments);
        assert!(!shows(&ran), "{arguments:?}: {ran:?}");
    }
    for line in ["--help", "list", "show", "nonsense", "check", "stats", "export", "watch --once", "purge"] {
        let mut command = command(&line.split(' ').collect::<Vec<_>>());
        let ran = Ran::of(crate::children::output(command.env("NEVERTWICE_STORE", &url)));
        assert!(!shows(&ran), "{line}: {ran:?}");
    }
    let lab = Lab::postgres().filled();
    let server = lab.postgres.as_ref().unwrap();
    let ran = crate::lab::run(&["list", "--store", &server.url_as("postgres", "s3cret", "nowhere")]);
    assert!(ran.code == 3 && !shows(&ran), "{ran:?}");
}

#[test]
fn a_password_that_holds_quotes_and_spaces_is_never_shown() {
    for url in [
        "redis://u:p'w0rd@h",
        "redis://u:p\"w0rd s3cret@h",
        "postgres://h/d?user=u&password=p'w0rd s3cret",
        "host=h password='w0rd s3cret' dbname=d",
        "host=h password='a\\' s3cret' dbname=d",
    ] {
        for arguments in [&["list", url][..], &["list", "--limit", url], &[url]] {
            let ran = crate::lab::run(arguments);
            assert!(ran.code == 2 && !ran.err.is_empty(), "{ran:?}");
            assert!(!["w0rd", "s3cret"].iter().any(|word| ran.err.contains(word)), "{ran:?}");
        }
    }
}

#[test]
fn a_time_limit_without_sense_is_refused() {
    for url in ["redis://127.0.0.1:1", "postgres://u@127.0.0.1:1/d"] {
        let ran = crate::lab::run(&["list", "--timeout", "200000000000y", "--store", url]);
        assert!(ran.code == 2 && ran.err.contains("timeout"), "{ran:?}");
    }
}

#[test]
fn a_server_that_stays_silent_is_given_up_in_time() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    for url in
        [format!("redis://127.0.0.1:{port}"), format!("postgres://u@127.0.0.1:{port}/d?sslmode=disable")]
    {
        let ran = crate::lab::run(&["list", "--timeout", "1s", "--store", &url]);
        assert!(ran.code == 3 && !ran.err.is_empty(), "{url}: {ran:?}");
    }
}

#[test]
fn names_of_files_and_tables_may_be_strange() {
    let lab = Lab::sqlite();
    let path = lab.dir.path().join("keys #1%20?.db");
    drop(nevertwice::SqliteStore::open(&path).unwrap());
    let url = format!("sqlite:{}", path.display());
    assert_eq!(crate::lab::run(&["stats", "--store", &url]).code, 0);
    let other = crate::lab::run(&["stats", "--store", &url, "--table", "other"]);
    assert!(other.code == 3 && other.err.contains("no table other"), "{other:?}");
    assert_eq!(crate::lab::run(&["stats", "--store", &url, "--table", "a\"b"]).code, 3);
    let lab = Lab::postgres().filled();
    assert_eq!(lab.run(&["stats", "--table", "public.nevertwice"]).code, 0);
    assert_eq!(lab.run(&["stats", "--table", "nowhere.nevertwice"]).code, 3);
}
