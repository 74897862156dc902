//! Bodies from stdin and from a named pipe, which can be read once.

use std::io::Write;
use std::process::{Command, Stdio};

use nevertwice::{Begin, RecordId};

use crate::children;
use crate::lab::{Lab, Ran, report, request};

/// Runs the command with this text on stdin.
fn piped(lab: &Lab, arguments: &[&str], text: &str) -> Ran {
    let mut command = lab.command(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    Ran::of(children::end(child))
}

/// Runs the command with this text in a named pipe, whose path is the last argument.
fn through_a_pipe(lab: &Lab, arguments: &[&str], text: &'static str) -> Ran {
    let path = lab.dir.path().join("pipe");
    if !path.exists() {
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    }
    let pipe = path.clone();
    // Waits for the command to open it.
    let writer = std::thread::spawn(move || std::fs::write(pipe, text).unwrap());
    let ran = lab.run(&[arguments, &[path.to_str().unwrap()]].concat());
    writer.join().unwrap();
    ran
}

fn bodies(lab: &Lab, name: &str, ids: &[RecordId]) -> Vec<String> {
    let body = |id: &RecordId| {
        let shown = lab.json(&["show", &id.to_string(), "--content"]);
        shown["content"][name].as_str().unwrap().to_owned()
    };
    ids.iter().map(body).collect()
}

#[test]
fn a_body_from_stdin_is_recorded_whole_for_one_and_for_many() {
    for lab in Lab::all() {
        lab.application(async |engine| report(&engine, "s", 3).await);
        let ids = ["0", "1", "2"].map(|key| request("s", key).id());
        let id = ids[0].to_string();
        for (arguments, text) in [
            (&["resolve", &id, "completed", "--body-file", "-", "--yes"][..], "receipt 1"),
            (&["resolve", "--all", "completed", "--body-file", "-", "--yes"], "receipt 2"),
        ] {
            let ran = piped(&lab, arguments, text);
            assert_eq!(ran.code, 0, "{ran:?}");
        }
        assert_eq!(bodies(&lab, "response", &ids), ["receipt 1", "receipt 2", "receipt 2"]);
        let one = ["amend", &id, "failed", "--body-file", "-", "--yes"];
        assert_eq!(piped(&lab, &one, "no 1").code, 0);
        assert_eq!(bodies(&lab, "error", &ids[..1]), ["no 1"]);
        let many = ["amend", "--scope", "s", "failed", "--body-file", "-", "--yes"];
        assert_eq!(piped(&lab, &many, "no 2").code, 0);
        assert_eq!(bodies(&lab, "error", &ids), ["no 2", "no 2", "no 2"]);
    }
}

#[test]
fn a_body_or_head_from_a_pipe_is_recorded_whole() {
    let lab = Lab::sqlite();
    lab.application(async |engine| report(&engine, "s", 2).await);
    let ids = ["0", "1"].map(|key| request("s", key).id());
    let id = ids[0].to_string();
    let ran = through_a_pipe(&lab, &["resolve", &id, "completed", "--yes", "--body-file"], "receipt 1");
    assert_eq!((ran.code, bodies(&lab, "response", &ids[..1])), (0, vec!["receipt 1".to_owned()]), "{ran:?}");
    let many = ["resolve", "--all", "completed", "--body", "receipt 2", "--yes", "--head-file"];
    assert_eq!(through_a_pipe(&lab, &many, "head 2").code, 0);
    let one = ["amend", &id, "completed", "--yes", "--body-file"];
    assert_eq!(through_a_pipe(&lab, &one, "receipt 3").code, 0);
    assert_eq!(bodies(&lab, "response", &ids), ["receipt 3", "receipt 2"]);
    lab.application(async |engine| {
        let Begin::Completed(done) = engine.begin(&request("s", "1")).await.unwrap() else { panic!() };
        assert_eq!(done.head(), b"head 2");
    });
}
