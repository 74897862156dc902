//! Changes between the question and its answer: what was shown is changed, and nothing else.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Duration;

use nevertwice::Retry;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

use crate::children::{self, Deadline};
use crate::lab::{Lab, Ran, acquire, request};

/// The output on a terminal that asks.
const QUESTION: &str = "[y/N] ";

/// Opens a terminal, and returns its ends: the user's, and the command's.
fn terminal() -> (File, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let terminal = openpt(flags).unwrap();
    unlockpt(&terminal).unwrap();
    let line = ioctl_tiocgptpeer(&terminal, flags).unwrap();
    (File::from(terminal), line)
}

/// Runs the command on a terminal, with its account in a file, calls `meanwhile` once it asks, and
/// answers yes.
fn confirmed(lab: &Lab, arguments: &[&str], meanwhile: impl FnOnce()) -> Ran {
    let (mut terminal, line) = terminal();
    let account = tempfile::tempfile().unwrap();
    let mut command = lab.command(arguments);
    command.stdin(line.try_clone().unwrap()).stdout(line).stderr(account.try_clone().unwrap());
    let mut child = command.spawn().unwrap();
    // Its ends of the terminal are its own.
    drop(command);
    let deadline = Deadline::of(&child);
    let mut shown = Vec::new();
    while !shown.ends_with(QUESTION.as_bytes()) {
        let more = read(&mut terminal, &mut shown);
        assert!(more, "it ended without a question: {}", String::from_utf8_lossy(&shown));
    }
    meanwhile();
    terminal.write_all(b"y\n").unwrap();
    while read(&mut terminal, &mut shown) {}
    let code = child.wait().unwrap().code().unwrap_or(-1);
    drop(deadline);
    let (out, mut err) = (String::from_utf8(shown).unwrap(), String::new());
    (&account).rewind().unwrap();
    (&account).read_to_string(&mut err).unwrap();
    Ran { code, out, err }
}

/// Reads a byte, and returns false once no program has the terminal.
fn read(terminal: &mut File, shown: &mut Vec<u8>) -> bool {
    let mut byte = [0];
    let is_read = matches!(terminal.read(&mut byte), Ok(1));
    if is_read {
        shown.extend(byte);
    }
    is_read
}

/// Runs the command with a terminal to read from, and none that it could ask on.
fn unasked(lab: &Lab, arguments: &[&str]) -> Ran {
    let (_terminal, line) = terminal();
    let mut command = lab.command(arguments);
    command.stdin(line).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    Ran::of(children::end(child))
}

#[test]
fn a_question_that_would_not_be_seen_is_not_asked() {
    let lab = Lab::sqlite().filled();
    let id = request("shop,refunds", "reported").id().to_string();
    let ran = unasked(&lab, &["resolve", &id, "rerun"]);
    assert!(ran.code == 4 && ran.err.contains("confirm with --yes") && ran.journal().is_empty(), "{ran:?}");
    assert!(!ran.err.contains(QUESTION), "{ran:?}");
}

#[test]
fn a_question_about_what_is_not_shown_is_not_asked() {
    let lab = Lab::sqlite().filled();
    let id = request("shop,refunds", "reported").id().to_string();
    // On a whole terminal.
    let (mut terminal, line) = terminal();
    let mut command = lab.command(&["resolve", &id, "rerun", "--json"]);
    command.stdin(line.try_clone().unwrap()).stdout(line.try_clone().unwrap()).stderr(line);
    let mut child = command.spawn().unwrap();
    drop(command);
    let (deadline, mut shown) = (Deadline::of(&child), Vec::new());
    while read(&mut terminal, &mut shown) {
        assert!(!shown.ends_with(QUESTION.as_bytes()), "it asks");
    }
    let code = child.wait().unwrap().code();
    drop(deadline);
    let shown = String::from_utf8_lossy(&shown);
    assert!(code == Some(4) && shown.contains("with --json, confirm with --yes"), "{shown}");
    assert_eq!(lab.json(&["stats"])["unresolved"], 2);
}

#[test]
fn a_change_whose_answer_is_lost_is_told() {
    let reported = request("shop,refunds", "reported").id().to_string();
    let marked = request("shop,refunds", "marked").id().to_string();
    for (arguments, what) in [
        (&["resolve", &reported, "rerun"][..], &reported),
        (&["amend", &marked, "failed", "--body", "x"], &marked),
        (&["forget", &reported], &reported),
        (&["resolve", "--reason", "reported", "rerun"], &reported),
        (&["amend", "--all", "failed", "--body", "x"], &marked),
        (&["forget", "--scope", "shop,refunds", "--reason", "reported"], &reported),
        (&["reconcile", "--label", "psp", "--cmd", "echo rerun"], &reported),
    ] {
        let lab = Lab::redis().filled();
        let server = lab.redis.as_ref().unwrap();
        assert_eq!(lab.run(&["resolve", &marked, "rerun", "--yes"]).code, 0);
        let ran = confirmed(&lab, &[arguments, &["--timeout", "1s"]].concat(), || server.signal("STOP"));
        server.signal("CONT");
        assert_eq!(ran.code, 3, "{arguments:?}: {ran:?}");
        let [line] = ran.journal().try_into().unwrap_or_else(|_| panic!("{arguments:?}: {ran:?}"));
        assert_eq!((&line["what"], &line["after"]), (&what.as_str().into(), &"unknown".into()), "{line}");
        assert!(arguments[0] != "reconcile" || ran.out.contains("0 settled"), "{ran:?}");
    }
}

fn refused(ran: &Ran) {
    assert!(ran.code == 4 && ran.err.contains("changed since it was shown"), "{ran:?}");
    assert!(ran.journal().is_empty(), "{ran:?}");
}

#[test]
fn s3_a_record_that_changed_since_it_was_shown_is_not_forgotten() {
    for lab in Lab::all().map(Lab::filled) {
        let crashed = request("shop,refunds", "crashed");
        let id = crashed.id().to_string();
        // A redelivery executes it.
        let ran = confirmed(&lab, &["forget", &id], || {
            lab.application(async |engine| acquire(&engine, crashed).await.complete("paid").await.unwrap());
        });
        refused(&ran);
        assert_eq!(lab.json(&["show", &id, "--content"])["content"]["response"], "paid");
        // One that is gone meanwhile, and one that stays as it is.
        let gone = confirmed(&lab, &["forget", &id], || {
            assert_eq!(lab.run(&["forget", &id, "--yes"]).code, 0);
        });
        assert!(gone.code == 1 && gone.journal().is_empty(), "{gone:?}");
        let id = request("shop,refunds", "reported").id().to_string();
        let same = confirmed(&lab, &["forget", &id], || ());
        assert_eq!((same.code, same.journal().len()), (0, 1), "{same:?}");
    }
}

#[test]
fn s3_a_record_that_can_be_read_again_is_not_forgotten() {
    let lab = Lab::sqlite().filled();
    let id = request("shop,refunds", "reported").id();
    let bytes = lab.spoil(&id);
    let ran = confirmed(&lab, &["forget", &id.to_string()], || lab.write(id.as_bytes(), &bytes));
    refused(&ran);
    assert_eq!(lab.json(&["show", &id.to_string()])["state"], "failed");
}

#[test]
fn s3_an_operation_that_changed_under_its_fence_is_not_settled() {
    for lab in Lab::all().map(Lab::filled) {
        let id = request("shop,refunds", "reported").id().to_string();
        // Another operator settles it otherwise.
        let rerun = || assert_eq!(lab.run(&["resolve", &id, "rerun", "--yes"]).code, 0);
        refused(&confirmed(&lab, &["resolve", &id, "completed", "--body", "x"], rerun));
        assert_eq!(lab.json(&["show", &id])["retry"], "now");
    }
}

#[test]
fn s3_an_operation_whose_holder_goes_on_is_not_settled() {
    let lab = Lab::sqlite();
    let stalled = request("s", "k").lease(Duration::from_millis(100));
    let id = stalled.id();
    let token = lab.application(async |engine| {
        let lease = acquire(&engine, stalled).await;
        let _ = lease.mark_effect().await;
        while !engine.inspect_id(&id).await.unwrap().unwrap().unresolved {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        lease.token()
    });
    let id = id.to_string();
    let shown = lab.json(&["show", &id]);
    // It finds out that there was no effect.
    let ran = confirmed(&lab, &["resolve", &id, "completed", "--body", "x"], || {
        lab.application(async |engine| {
            engine.resume(&token).await.unwrap().fail("declined", Retry::Now).await.unwrap();
        });
    });
    refused(&ran);
    let now = lab.json(&["show", &id]);
    assert_eq!((&now["state"], &now["fence"]), (&"failed".into(), &shown["fence"]));
}

#[test]
fn s3_of_many_those_that_changed_are_refused() {
    for lab in Lab::all().map(Lab::filled) {
        let id = request("shop,refunds", "reported").id().to_string();
        let rerun = || assert_eq!(lab.run(&["resolve", &id, "rerun", "--yes"]).code, 0);
        let ran = confirmed(&lab, &["resolve", "--all", "completed", "--body", "x"], rerun);
        assert!(ran.code == 4 && ran.out.contains("1 changed, 1 refused"), "{ran:?}");
        assert_eq!(ran.journal().len(), 1, "{ran:?}");
        assert_eq!(lab.json(&["show", &id])["retry"], "now");
    }
}
