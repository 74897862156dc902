//! `reconcile`: a program settles.

use serde_json::Value;

use crate::lab::{Lab, report, request};

fn reconcile(lab: &Lab, cmd: &str, options: &[&str]) -> (crate::lab::Ran, Value) {
    let ran = lab.run(&[&["reconcile", "--cmd", cmd, "--label", "psp", "--json"], options].concat());
    let answer = serde_json::from_str(&ran.out).unwrap_or_default();
    (ran, answer)
}

#[test]
fn what_a_program_answers_by_the_derived_key_is_settled() {
    for lab in Lab::all().map(Lab::filled) {
        let (derived, ids) = lab.application(async |engine| {
            let ids = ["reported", "marked"].map(|key| request("shop,refunds", key).id());
            (engine.derive_key(&ids[0], "psp"), ids)
        });
        // Knows the first, and not the second.
        let cmd = format!(
            "test \"$NEVERTWICE_KEY\" = {derived} && printf 'completed\\nreceipt %s' \"$NEVERTWICE_SCOPE\" || echo unknown"
        );
        let (dry, answer) = reconcile(&lab, &cmd, &["--dry-run"]);
        assert_eq!((dry.code, &answer["settled"], &answer["unknown"]), (0, &1.into(), &1.into()), "{dry:?}");
        assert_eq!(lab.json(&["stats"])["unresolved"], 2);
        let (ran, answer) = reconcile(&lab, &cmd, &["--yes"]);
        assert_eq!((ran.code, &answer["settled"], ran.journal().len()), (0, &1.into(), 1), "{ran:?}");
        let shown = lab.json(&["show", &ids[0].to_string(), "--content"]);
        assert_eq!(shown["content"]["response"], "receipt shop,refunds");
        assert_eq!(lab.json(&["stats"])["unresolved"], 1);
    }
}

#[test]
fn a_program_that_fails_or_babbles_or_hangs_settles_nothing() {
    let lab = Lab::sqlite();
    lab.application(async |engine| report(&engine, "s", 2).await);
    for cmd in [
        "exit 1",
        "echo completed; exit 3",
        "echo nonsense",
        "echo completed",
        "printf failed",
        "true",
        "sleep 600",
        "kill -9 $$",
        "/nowhere",
        "printf 'rerun\\nbody'",
        "head -c 20000000 /dev/zero",
        "sleep 600 & echo completed",
    ] {
        let (ran, answer) = reconcile(&lab, cmd, &["--yes", "--cmd-timeout", "1s"]);
        assert_eq!((ran.code, &answer["settled"]), (4, &0.into()), "{cmd}: {ran:?}");
        assert!(ran.journal().is_empty());
        assert_eq!(lab.json(&["stats"])["unresolved"], 2);
    }
    let (ran, _) = reconcile(&lab, "echo unknown", &["--yes"]);
    assert_eq!(ran.code, 0);
    assert_eq!(lab.json(&["stats"])["unresolved"], 2);
}

#[test]
fn a_program_does_not_get_the_stores_password() {
    let lab = Lab::sqlite();
    lab.application(async |engine| report(&engine, "s", 1).await);
    let (_, answer) =
        reconcile(&lab, "env | grep -q NEVERTWICE_STORE && echo rerun || printf 'failed\\n\\n'", &["--yes"]);
    assert_eq!(answer["settled"], 1);
    assert_eq!(lab.json(&["stats"])["states"], serde_json::json!({ "failed": 1 }));
    assert_eq!(lab.json(&["stats"])["retryable"], 0);
}

#[test]
fn records_that_cannot_be_read_are_told() {
    let lab = Lab::sqlite().filled();
    let spoiled = request("shop,refunds", "marked").id();
    lab.spoil(&spoiled);
    let unreadable = serde_json::json!([spoiled.to_string()]);
    let (ran, answer) = reconcile(&lab, "echo rerun", &["--yes"]);
    assert_eq!((ran.code, &answer["settled"]), (4, &1.into()), "{ran:?}");
    assert_eq!(answer["unreadable"], unreadable);
    // Also if nothing else needs an operator.
    let (ran, answer) = reconcile(&lab, "echo rerun", &[]);
    assert_eq!((ran.code, &answer["settled"], &answer["unreadable"]), (4, &0.into(), &unreadable), "{ran:?}");
    let table = lab.run(&["reconcile", "--cmd", "echo rerun", "--label", "psp", "--yes"]);
    assert!(table.code == 4 && table.out.contains(&spoiled.to_string()), "{table:?}");
}

#[test]
fn s3_an_operation_that_another_operator_settles_meanwhile_is_left() {
    let lab = Lab::sqlite();
    lab.application(async |engine| report(&engine, "s", 1).await);
    // The fence stays as it is.
    let cmd = format!(
        "NEVERTWICE_STORE={} {} resolve $NEVERTWICE_ID rerun --yes >&2 && printf 'completed\\nreceipt'",
        lab.url,
        env!("CARGO_BIN_EXE_nevertwice")
    );
    let (ran, answer) = reconcile(&lab, &cmd, &["--yes"]);
    assert_eq!((ran.code, &answer["settled"]), (4, &0.into()), "{ran:?}");
    assert!(answer["refused"][0]["why"].as_str().unwrap().contains("changed"), "{answer}");
    assert_eq!(lab.json(&["stats"])["retryable"], 1);
}

#[test]
fn a_part_is_asked_about_and_a_table_shows_the_first() {
    let lab = Lab::sqlite();
    lab.application(async |engine| report(&engine, "s", 30).await);
    let (ran, answer) = reconcile(&lab, "echo rerun", &["--yes", "--at-most", "2"]);
    assert_eq!((ran.code, &answer["settled"], ran.journal().len()), (0, &2.into(), 2), "{ran:?}");
    let table = lab.run(&["reconcile", "--cmd", "echo unknown", "--label", "psp", "--yes"]);
    assert!(table.code == 0 && table.out.contains("28 unknown"), "{table:?}");
    assert_eq!(table.out.matches("uncertain").count(), 20, "{table:?}");
}
