//! Changes between the question and its answer: what was shown is changed, and nothing else.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Stdio;
use std::time::Duration;

use nevertwice::Retry;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};

use crate::children::Deadline;
use crate::lab::{Lab, Ran, acquire, request};

/// Runs the command on a terminal, calls `meanwhile` once it asks, and answers yes.
fn confirmed(lab: &Lab, arguments: &[&str], meanwhile: impl FnOnce()) -> Ran {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let terminal = openpt(flags).unwrap();
    unlockpt(&terminal).unwrap();
    let line = ioctl_tiocgptpeer(&terminal, flags).unwrap();
    let mut terminal = File::from(terminal);
    let mut command = lab.command(arguments);
    command.stdin(line).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let deadline = Deadline::of(&child);
    let mut stderr = child.stderr.take().unwrap();
    let (mut told, mut byte) = (Vec::new(), [0]);
    while !told.ends_with(b"[y/N] ") {
        let read = stderr.read(&mut byte).unwrap();
        assert_eq!(read, 1, "it ended without a question: {}", String::from_utf8_lossy(&told));
        told.extend(byte);
    }
    meanwhile();
    terminal.write_all(b"y\n").unwrap();
    told.push(b'\n');
    stderr.read_to_end(&mut told).unwrap();
    let mut output = child.wait_with_output().unwrap();
    drop(deadline);
    output.stderr = told;
    Ran::of(output)
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
