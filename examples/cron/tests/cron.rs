//! The example `cron_job`, run as cron runs it: by several processes at once, and killed while it
//! works.

#[path = "../../../tests/support/children.rs"]
mod children;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use children::Deadline;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_cron_job");
const FIRST: &str = "2026-11-26T13:00Z";

/// A folder with the store and the ledger.
struct Site(TempDir);

impl Site {
    fn new() -> Site {
        Site(tempfile::tempdir().unwrap())
    }

    /// The job as a machine starts it at `now`.
    fn job(&self, now: &str, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.current_dir(self.0.path()).args(["--first", FIRST, "--now", now]).args(args);
        command
    }

    fn run(&self, now: &str, args: &[&str]) -> Output {
        children::output(&mut self.job(now, args))
    }

    /// Starts processes at once, and waits for all.
    fn run_at_once(&self, processes: usize, now: &str, args: &[&str]) -> Vec<Output> {
        let start = || {
            let mut command = self.job(now, args);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let started: Vec<Child> = (0..processes).map(|_| start()).collect();
        started.into_iter().map(children::end).collect()
    }

    /// Kills a process, as `kill -9` does, once it has reached the step.
    fn kill_at(&self, step: &str, now: &str, args: &[&str]) {
        let mut command = self.job(now, args);
        let mut child = command.args(["--hang-at", step]).stdout(Stdio::piped()).spawn().unwrap();
        let deadline = Deadline::of(&child);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let hangs = lines.map_while(Result::ok).any(|line| line.contains("hangs at"));
        child.kill().unwrap();
        child.wait().unwrap();
        drop(deadline);
        assert!(hangs, "it did not reach {step}");
    }

    /// The number of times that each slot's report was sent.
    fn sent(&self) -> BTreeMap<String, usize> {
        let mut sent = BTreeMap::new();
        for line in fs::read_to_string(self.0.path().join("ledger.tsv")).unwrap_or_default().lines() {
            *sent.entry(line.split('\t').next().unwrap().to_owned()).or_default() += 1;
        }
        sent
    }
}

fn once(slots: &[&str]) -> BTreeMap<String, usize> {
    slots.iter().map(|slot| (format!("2026-11-26T{slot}Z"), 1)).collect()
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{}\n{out}{err}", output.status)
}

#[test]
fn processes_at_once_run_each_slot_once_and_catch_up() {
    let site = Site::new();
    let slots = ["13:00", "13:05", "13:10"];
    for output in site.run_at_once(6, "2026-11-26T13:14:59Z", &[]) {
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(text(&output).matches(" ran").count(), slots.len(), "{}", text(&output));
    }
    assert_eq!(site.sent(), once(&slots));
    // No machine ran at 13:15 and 13:20.
    for output in site.run_at_once(3, "2026-11-26T13:25:00Z", &[]) {
        assert!(output.status.success(), "{}", text(&output));
    }
    let caught_up = once(&["13:00", "13:05", "13:10", "13:15", "13:20", "13:25"]);
    assert_eq!(site.sent(), caught_up);
    // A clock that is behind runs nothing again, and another job is another operation.
    assert!(site.run("2026-11-26T13:10Z", &[]).status.success());
    assert_eq!(site.sent(), caught_up);
    assert!(site.run("2026-11-26T13:00Z", &["--job", "other"]).status.success());
    assert_eq!(site.sent()["2026-11-26T13:00Z"], 2);
}

#[test]
fn a_slot_killed_before_its_mark_is_taken_over() {
    let site = Site::new();
    site.kill_at("begun", FIRST, &["--lease-ms", "2000"]);
    assert!(site.sent().is_empty());
    // Only the killed one's lease is short: these may stall on a busy machine.
    for output in site.run_at_once(3, FIRST, &[]) {
        assert!(output.status.success(), "{}", text(&output));
    }
    assert_eq!(site.sent(), once(&["13:00"]));
}

#[test]
fn a_slot_killed_after_its_mark_is_left_to_an_operator_and_holds_up_no_other() {
    for (step, sent, settled) in [("mark", 0, "rerun"), ("effect", 1, "done")] {
        let site = Site::new();
        site.kill_at(step, FIRST, &["--lease-ms", "2000"]);
        assert_eq!(site.sent().values().sum::<usize>(), sent);
        for output in site.run_at_once(3, "2026-11-26T13:05Z", &[]) {
            let told = text(&output);
            assert!(output.status.code() == Some(1) && told.contains("13:00Z: a process ended"), "{told}");
            assert!(told.contains("13:05Z: ran"), "{told}");
        }
        assert_eq!(site.sent().get(FIRST).copied().unwrap_or(0), sent);
        assert_eq!(site.sent()["2026-11-26T13:05Z"], 1);
        let output = site.run(FIRST, &["--resolve", &format!("{FIRST}={settled}")]);
        assert!(output.status.success(), "{}", text(&output));
        for output in site.run_at_once(3, "2026-11-26T13:05Z", &[]) {
            assert!(output.status.success(), "{}", text(&output));
        }
        assert_eq!(site.sent(), once(&["13:00", "13:05"]));
    }
}

#[test]
fn a_published_slot_is_taken_over_at_every_step() {
    for step in ["begun", "mark", "effect"] {
        let site = Site::new();
        let publishes = ["--publish", "reports"];
        site.kill_at(step, FIRST, &[&["--lease-ms", "2000"], &publishes[..]].concat());
        for output in site.run_at_once(3, "2026-11-26T13:05Z", &publishes) {
            assert!(output.status.success(), "{step}: {}", text(&output));
        }
        let reports = fs::read_dir(site.0.path().join("reports")).unwrap().map(|entry| entry.unwrap().path());
        let reports: Vec<String> = reports.map(|path| fs::read_to_string(path).unwrap()).collect();
        let of = |slot: &str| reports.iter().filter(|report| report.contains(slot)).count();
        assert_eq!((reports.len(), of("13:00Z"), of("13:05Z")), (2, 1, 1), "{step}: {reports:?}");
        assert!(site.sent().is_empty());
    }
}

#[test]
fn what_cannot_work_is_an_error_that_says_so_and_runs_nothing() {
    let site = Site::new();
    fs::write(site.0.path().join("notes.txt"), "these are notes, and no database\n".repeat(200)).unwrap();
    for (args, says) in [
        (["--first", "tomorrow"], "a slot is a time such as 2026-11-26T13:00Z"),
        (["--first", "2026-11-26T13:00:30Z"], "a slot begins at a full minute"),
        (["--first", "2026-11-26T13:00"], "a slot is a time such as"), // no zone
        (["--every", "0"], "not in 1.."),
        (["--catch-up", "0"], "not in 1.."),
        (["--lease-ms", "0"], "lease must not be 0"),
        (["--job", ""], "scope is empty"),
        (["--job", "a\nb"], "control character"),
        (["--store", "notes.txt"], "cannot open the store notes.txt:"),
        (["--store", "nowhere/at/all.db"], "cannot open the store nowhere/at/all.db:"),
        (["--ledger", "."], "cannot open .:"),
        (["--publish", "notes.txt"], "cannot create notes.txt:"),
        (["--resolve", "2026-11-26T13:00Z"], "SLOT=done or SLOT=rerun"),
        (["--resolve", "2026-11-26T13:00Z=yes"], "the outcome is done or rerun"),
        (["--resolve", "2026-11-26T13:00Z=done"], "never ran"),
    ] {
        let mut command = Command::new(BINARY);
        command.current_dir(site.0.path());
        if args[0] != "--first" {
            command.args(["--first", FIRST]);
        }
        let output = children::output(command.args(["--now", FIRST]).args(args));
        let told = text(&output);
        assert!(!output.status.success() && told.contains(says), "{args:?}: {told}");
        assert!(!told.contains("panicked"), "{args:?}: {told}");
    }
    assert!(site.sent().is_empty());
    assert_eq!(fs::read(site.0.path().join("notes.txt")).unwrap().len(), 200 * 33);
    // Before its first slot a job has nothing to do.
    assert!(site.run("2026-11-26T12:59Z", &[]).status.success());
    assert!(site.sent().is_empty());
}
