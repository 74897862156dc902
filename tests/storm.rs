//! The example `storm`, run as a user runs it.
#![cfg(feature = "memory")]

#[path = "support/children.rs"]
mod children;

use std::collections::HashMap;
use std::io::Write;
use std::process::{Command, Output};

use tempfile::NamedTempFile;

/// Runs the example: the one that `STORM` names, or one that is built with this test's features, so
/// that nothing is compiled twice.
fn storm(args: &[&str]) -> Output {
    if let Some(built) = std::env::var_os("STORM") {
        return children::output(Command::new(built).args(args));
    }
    let features = [
        ("memory", cfg!(feature = "memory")),
        ("sqlite", cfg!(feature = "sqlite")),
        ("postgres", cfg!(feature = "postgres")),
        ("redis", cfg!(feature = "redis")),
        ("testing", cfg!(feature = "testing")),
        ("tracing", cfg!(feature = "tracing")),
        ("metrics", cfg!(feature = "metrics")),
    ];
    let features: Vec<&str> = features.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["run", "--quiet", "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
        .args(["--no-default-features", "--features", &features.join(",")])
        .args(["--example", "storm", "--"])
        .args(args);
    children::output(&mut cargo)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Returns the numbers of the last line, after a check of its names and their order.
fn numbers(output: &Output) -> HashMap<String, f64> {
    assert!(output.status.success(), "{}", text(&output.stderr));
    let stdout = text(&output.stdout);
    let last = stdout.lines().last().unwrap().strip_prefix("storm: ").unwrap();
    let pairs: Vec<(&str, &str)> = last.split(' ').map(|pair| pair.split_once('=').unwrap()).collect();
    let names: Vec<&str> = pairs.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names.join(" "),
        "deliveries keys effects double_effects replays in_progress mismatches takeovers unresolved lost seconds"
    );
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.parse().unwrap())).collect()
}

fn file(lines: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(lines.as_bytes()).unwrap();
    file
}

#[test]
fn the_sample_without_crashes_executes_every_key_once() {
    let storm = numbers(&storm(&["--store", "memory", "--crash-rate", "0"]));
    assert_eq!((storm["deliveries"], storm["keys"], storm["effects"]), (753.0, 236.0, 236.0));
    assert_eq!((storm["mismatches"], storm["replays"]), (12.0, 753.0 - 236.0 - 12.0));
    assert_eq!((storm["double_effects"], storm["takeovers"]), (0.0, 0.0));
    assert_eq!((storm["unresolved"], storm["lost"]), (0.0, 0.0));
}

#[test]
fn a_storm_in_which_every_worker_is_dropped_ends_and_loses_nothing() {
    for copies in ["1", "3"] {
        let args = ["--store", "memory", "--crash-rate", "1", "--lease-ms", "100", "--copies", copies];
        let storm = numbers(&storm(&args));
        assert_eq!((storm["double_effects"], storm["lost"]), (0.0, 0.0));
        assert!(storm["takeovers"] > 0.0 && storm["unresolved"] > 0.0, "{storm:?}");
        assert!(storm["effects"] <= storm["keys"], "{storm:?}");
    }
}

#[test]
fn malformed_lines_are_reported_by_number_without_their_content_and_skipped() {
    let input =
        file("{\"k\":7}\nsecret\n\n{\"k\":[\"secret\"]}\n{\"k\":\"\"}\n{\"k\":\"7\"}\n{\"secret\":1}\n");
    let path = input.path().to_str().unwrap();
    let output = storm(&["--store", "memory", "--crash-rate", "0", "--key", "/k", "--input", path]);
    let stderr: Vec<String> =
        text(&output.stderr).lines().filter(|line| line.starts_with("storm: ")).map(str::to_owned).collect();
    assert_eq!(stderr.len(), 4, "{stderr:?}");
    let stderr = stderr.join("\n");
    for line in ["line 2: ", "line 4: ", "line 5: ", "line 7: "] {
        assert!(stderr.contains(line), "{stderr}");
    }
    assert!(!stderr.contains("secret"), "{stderr}");
    // 7 and "7" are one key with two payloads.
    let storm = numbers(&output);
    assert_eq!((storm["deliveries"], storm["keys"], storm["mismatches"]), (6.0, 1.0, 3.0));
}

#[test]
fn what_cannot_work_is_an_error_that_says_so() {
    let empty = file("\n\n");
    let empty = empty.path().to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.jsonl");
    for (args, says) in [
        (["--input", missing.to_str().unwrap()], "cannot read"),
        (["--input", empty], "is empty"),
        (["--key", "/nowhere"], "no usable line"),
        (["--key", "id"], "starts with a slash"),
        (["--crash-rate", "1.5"], "from 0 to 1"),
        (["--copies", "0"], "not in 1.."),
        (["--store", "papyrus"], "a store is memory"),
    ] {
        let output = storm(&args);
        let stderr = text(&output.stderr);
        assert!(!output.status.success() && stderr.contains(says), "{args:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

#[test]
#[cfg(not(feature = "sqlite"))]
fn a_store_that_is_not_built_in_names_the_command_that_builds_it() {
    let output = storm(&["--store", "sqlite:x.db"]);
    let stderr = text(&output.stderr);
    assert!(!output.status.success() && stderr.contains("cargo run --features sqlite"), "{stderr}");
}

#[test]
#[cfg(feature = "sqlite")]
fn a_second_run_on_the_same_file_executes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", folder.path().join("storm.db").display());
    let args = ["--store", &store, "--crash-rate", "0"];
    let first = numbers(&storm(&args));
    let second = numbers(&storm(&args));
    assert_eq!((first["effects"], second["effects"]), (236.0, 0.0));
    assert_eq!((second["mismatches"], second["replays"], second["lost"]), (12.0, 741.0, 0.0));
}
