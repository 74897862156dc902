//! A reader of stdout that has gone: a confirmed change is made, and the exit code tells the end.

use std::process::Stdio;

use crate::children;
use crate::lab::{Lab, Ran, request};

/// Runs the command with nothing that reads its output.
fn unread(lab: &Lab, arguments: &[&str]) -> Ran {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = lab.command(arguments);
    let child = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
    drop(command);
    Ran::of(children::end(child))
}

fn figure(lab: &Lab, name: &str) -> u64 {
    lab.json(&["stats"])[name].as_u64().unwrap()
}

#[test]
fn a_confirmed_change_is_made() {
    for json in [&[][..], &["--json"]] {
        let lab = Lab::sqlite().filled();
        let id = request("shop,refunds", "reported").id().to_string();
        for (arguments, changes) in [
            (&["resolve", &id, "completed", "--body", "x", "--yes"][..], 1),
            (&["resolve", "--all", "failed", "--body", "x", "--yes"], 1),
            (&["amend", &id, "rerun", "--yes"], 1),
            (&["amend", "--all", "failed", "--body", "y", "--yes"], 2),
            (&["forget", &id, "--yes"], 1),
            (&["forget", "--scope", "shop,refunds", "--yes"], 2),
            (&["purge", "--yes"], 1),
        ] {
            let ran = unread(&lab, &[arguments, json].concat());
            assert_eq!((ran.code, ran.journal().len()), (0, changes), "{arguments:?} {json:?}: {ran:?}");
        }
        assert_eq!((figure(&lab, "operations"), figure(&lab, "unresolved")), (3, 0));
        let lab = Lab::sqlite().filled();
        let asked = ["reconcile", "--cmd", "echo rerun", "--label", "psp", "--yes"];
        let ran = unread(&lab, &[&asked[..], json].concat());
        assert_eq!((ran.code, ran.journal().len(), figure(&lab, "unresolved")), (0, 2, 0), "{ran:?}");
    }
}

#[test]
fn what_was_refused_or_found_is_told_by_the_exit_code() {
    for json in [&[][..], &["--json"]] {
        let lab = Lab::sqlite().filled();
        let refused = |arguments: &[&str], says: &str| {
            let ran = unread(&lab, &[arguments, json].concat());
            assert!(ran.code == 4 && ran.err.contains(says), "{arguments:?} {json:?}: {ran:?}");
        };
        // One whose lease runs.
        refused(&["forget", "--scope", "shop,charges", "--yes"], "1 operations were refused");
        assert_eq!(figure(&lab, "operations"), 5);
        refused(
            &["reconcile", "--cmd", "echo nonsense", "--label", "psp", "--yes"],
            "2 operations were left",
        );
        refused(&["reconcile", "--cmd", "exit 1", "--label", "psp", "--dry-run"], "2 operations were left");
        for arguments in [&["unresolved", "--scope", "nowhere"][..], &["list", "--scope", "nowhere"]] {
            let ran = unread(&lab, &[arguments, json].concat());
            assert_eq!(ran.code, 1, "{arguments:?}: {ran:?}");
        }
        // A command that only reads has ended as it was asked to.
        assert_eq!(unread(&lab, &[&["list"][..], json].concat()).code, 0);
        lab.spoil(&request("other", "declined").id());
        refused(&["check"], "faults were found");
    }
}

#[test]
fn an_export_that_is_not_read_to_its_end_is_none_and_an_import_says_what_is_missing() {
    let lab = Lab::sqlite().filled();
    let ran = unread(&lab, &["export"]);
    assert!(ran.code == 4 && ran.err.contains("before its end"), "{ran:?}");
    let file = lab.dir.path().join("export.jsonl");
    let name = file.to_str().unwrap();
    assert_eq!(lab.run(&["export", "--output", name]).code, 0);
    let whole = std::fs::read_to_string(&file).unwrap();
    let cut: String = whole.lines().take(4).flat_map(|line| [line, "\n"]).collect();
    for json in [&[][..], &["--json"]] {
        let target = Lab::sqlite();
        std::fs::write(&file, &cut).unwrap();
        let ran = unread(&target, &[&["import", name, "--create", "--yes"][..], json].concat());
        assert!(ran.code == 4 && ran.err.contains("was cut"), "{ran:?}");
        std::fs::write(&file, &whole).unwrap();
        let ran = unread(&target, &[&["import", name, "--yes"][..], json].concat());
        assert_eq!((ran.code, figure(&target, "operations")), (0, 6), "{ran:?}");
    }
}
