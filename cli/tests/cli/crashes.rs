//! `kill -9` in the middle: nothing is lost, and repeating the command ends the job.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::children::{self, Deadline};
use crate::lab::{Lab, Ran, complete, report};

/// The attempts to kill a command before it ends by itself.
const ATTEMPTS: usize = 20;

fn start(lab: &Lab, arguments: &[&str]) -> Child {
    lab.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn kill(mut child: Child) -> bool {
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

fn figure(lab: &Lab, name: &str) -> u64 {
    lab.json(&["stats"])[name].as_u64().unwrap()
}

#[test]
fn a_bulk_resolution_that_is_killed_goes_on_where_it_ended() {
    for lab in Lab::all() {
        lab.application(async |engine| report(&engine, "s", 2000).await);
        let mut child = start(&lab, &["resolve", "--all", "failed", "--body", "no", "--yes"]);
        let deadline = Deadline::of(&child);
        let mut account = BufReader::new(child.stderr.take().unwrap()).lines();
        // The first change was told.
        let told = account.next().unwrap().unwrap();
        assert!(told.starts_with('{'), "{told}");
        assert!(kill(child), "it was killed on the way");
        drop(deadline);
        let mut settled: Vec<Value> = vec![serde_json::from_str(&told).unwrap()];
        settled.extend(account.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()));
        let left = figure(&lab, "unresolved");
        assert!(left > 0 && left <= 2000 - settled.len() as u64, "{left} of {}", settled.len());
        assert_eq!(figure(&lab, "operations"), 2000);
        let again = lab.run(&["resolve", "--all", "failed", "--body", "no", "--yes"]);
        assert_eq!((again.code, again.journal().len() as u64), (0, left), "{}", again.out);
        let figures = lab.json(&["stats"]);
        assert_eq!((&figures["unresolved"], &figures["states"]["failed"]), (&0.into(), &2000.into()));
    }
}

#[test]
fn an_erasure_that_is_killed_goes_on_where_it_ended() {
    let lab = Lab::sqlite();
    lab.application(async |engine| {
        complete(&engine, "tenant", 2000).await;
        complete(&engine, "other", 20).await;
    });
    let mut child = start(&lab, &["forget", "--scope", "tenant", "--yes"]);
    let deadline = Deadline::of(&child);
    let mut account = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(account.next().unwrap().unwrap().starts_with('{'));
    assert!(kill(child), "it was killed on the way");
    drop(deadline);
    let left = figure(&lab, "operations");
    assert!((20..2020).contains(&left), "{left}");
    assert_eq!(lab.run(&["forget", "--scope", "tenant", "--yes"]).code, 0);
    assert_eq!(figure(&lab, "operations"), 20);
}

#[test]
fn an_import_that_is_killed_is_repeated() {
    let source = Lab::sqlite();
    source.application(async |engine| complete(&engine, "s", 4000).await);
    let file = source.dir.path().join("export.jsonl");
    let file = file.to_str().unwrap();
    assert_eq!(source.run(&["export", "--output", file]).code, 0);
    for target in Lab::all() {
        // The tables are there, so that the count below can be asked for.
        target.application(async |_| ());
        let mut killed = false;
        for attempt in 0..ATTEMPTS {
            let child = start(&target, &["import", file, "--yes"]);
            let deadline = Deadline::of(&child);
            // Later in each attempt, so that it is killed in several places.
            std::thread::sleep(Duration::from_millis(20 * attempt as u64));
            killed |= kill(child) && (1..4000).contains(&figure(&target, "operations"));
            drop(deadline);
            if killed {
                break;
            }
        }
        assert!(killed, "{}: no attempt was killed on the way", target.url);
        let before = figure(&target, "operations");
        let again = target.run(&["import", file, "--json", "--yes"]);
        let answer: Value = serde_json::from_str(&again.out).unwrap();
        assert_eq!((again.code, answer["imported"].as_u64()), (0, Some(4000 - before)), "{again:?}");
        assert_eq!((figure(&target, "operations"), figure(&target, "unreadable")), (4000, 0));
    }
}

#[test]
fn a_purge_that_is_killed_leaves_a_sound_file_and_is_repeated() {
    let lab = Lab::sqlite();
    lab.fill_with_expired(20_000);
    lab.application(async |engine| complete(&engine, "new", 30).await);
    let mut killed = false;
    for attempt in 0..ATTEMPTS {
        let child = start(&lab, &["purge", "--yes"]);
        std::thread::sleep(Duration::from_millis(15 * (attempt as u64 + 1)));
        killed |= kill(child) && (1..20_000).contains(&figure(&lab, "due"));
        if killed {
            break;
        }
    }
    assert!(killed, "no attempt was killed on the way");
    assert_eq!(lab.run(&["check"]).code, 0);
    let ran = Ran::of(children::output(&mut lab.command(&["purge", "--yes"])));
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!((figure(&lab, "due"), figure(&lab, "operations")), (0, 30));
}

#[test]
fn an_export_that_is_killed_is_known_by_its_missing_end() {
    let lab = Lab::sqlite();
    lab.application(async |engine| complete(&engine, "s", 5000).await);
    let file = lab.dir.path().join("export.jsonl");
    let name = file.to_str().unwrap();
    let child = start(&lab, &["export", "--output", name]);
    let deadline = Deadline::of(&child);
    let is_begun = || std::fs::metadata(&file).is_ok_and(|file| file.len() > 5000);
    for _ in 0..10_000 {
        if is_begun() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(is_begun() && kill(child), "it was killed on the way");
    drop(deadline);
    let target = Lab::sqlite();
    let ran = target.run(&["import", name, "--create", "--yes"]);
    assert_eq!(ran.code, 4, "{ran:?}");
}
