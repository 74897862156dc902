//! The commands that settle and remove.

use nevertwice::Begin;
use serde_json::Value;

use crate::lab::{Lab, Ran, acquire, complete, report, request};

fn state(lab: &Lab, id: &str) -> Value {
    lab.json(&["show", id])["state"].clone()
}

fn unresolved(lab: &Lab) -> u64 {
    lab.json(&["stats"])["unresolved"].as_u64().unwrap()
}

#[test]
fn an_operation_is_settled_under_its_fence_and_the_change_is_told() {
    for lab in Lab::all().map(Lab::filled) {
        let reported = request("shop,refunds", "reported");
        let id = reported.id().to_string();
        let fence = lab.json(&["show", &id])["fence"].as_u64().unwrap();
        let wrong = lab.run(&["resolve", &id, "completed", "--body", "r7", "--yes", "--fence", "7"]);
        assert!(wrong.code == 4 && wrong.journal().is_empty(), "{wrong:?}");
        let done =
            lab.run(&["resolve", &id, "completed", "--body", "r7", "--yes", "--fence", &fence.to_string()]);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.out.contains(&fence.to_string()), "the fence is shown before: {done:?}");
        let [line] = done.journal().try_into().unwrap();
        assert!(line["who"].as_str().unwrap().starts_with("ann@") && line["command"] == "resolve");
        assert_eq!((&line["what"], &line["before"]["state"]), (&Value::from(id.as_str()), &"failed".into()));
        assert_eq!(
            (&line["after"]["state"], &line["after"]["resolved"]),
            (&"completed".into(), &true.into())
        );
        assert!(!done.err.contains("r7"), "no body in the account");
        lab.application(async |engine| {
            let Begin::Completed(done) = engine.begin(&reported).await.unwrap() else { panic!() };
            assert_eq!(done.response().unwrap(), "r7");
        });
        // Repeating it is safe; another outcome is not.
        assert_eq!(lab.run(&["resolve", &id, "completed", "--body", "r7", "--yes"]).code, 0);
        let other = lab.run(&["resolve", &id, "rerun", "--yes"]);
        assert!(other.code == 4 && other.journal().is_empty(), "{other:?}");

        let amended = lab.run(&["amend", &id, "failed", "--body", "r8", "--yes"]);
        assert_eq!((amended.code, amended.journal().len()), (0, 1), "{amended:?}");
        assert_eq!(state(&lab, &id), "failed");
        assert_eq!(lab.run(&["amend", &id, "rerun", "--yes", "--stamp", "7"]).code, 4);
        assert_eq!(lab.run(&["amend", &id, "rerun", "--yes"]).code, 0);
        lab.application(async |engine| drop(acquire(&engine, reported.clone()).await));
    }
}

#[test]
fn s2_an_outcome_that_an_application_recorded_is_not_changed() {
    for lab in Lab::all().map(Lab::filled) {
        let id = request("shop,charges", "secret-key").id().to_string();
        for arguments in [["resolve", &id, "rerun", "--yes"], ["amend", &id, "rerun", "--yes"]] {
            let ran = lab.run(&arguments);
            assert!(ran.code == 4 && ran.journal().is_empty(), "{ran:?}");
        }
        // Nor is one whose lease runs.
        let running = request("shop,charges", "running").id().to_string();
        assert_eq!(lab.run(&["resolve", &running, "rerun", "--yes"]).code, 4);
        assert_eq!(state(&lab, &id), "completed");
    }
}

#[test]
fn nothing_is_changed_without_a_confirmation() {
    let lab = Lab::sqlite().filled();
    let id = request("shop,refunds", "reported").id().to_string();
    let before = lab.json(&["show", &id])["stamp"].clone();
    let export = lab.dir.path().join("export");
    std::fs::write(&export, lab.run(&["export"]).out).unwrap();
    for line in [
        "resolve ID rerun",
        "forget ID",
        "forget --scope shop",
        "resolve --all rerun",
        "reconcile --cmd true --label x",
        "purge",
        "import EXPORT",
    ] {
        let line = line.replace("ID", &id).replace("EXPORT", export.to_str().unwrap());
        let ran = lab.run(&line.split(' ').collect::<Vec<_>>());
        assert!(ran.code == 4 && ran.err.contains("--yes") && ran.journal().is_empty(), "{line}: {ran:?}");
    }
    assert_eq!(lab.json(&["show", &id])["stamp"], before);
    assert_eq!(lab.json(&["stats"])["operations"], 6);
}

#[test]
fn many_are_settled_by_filter_after_a_dry_run_that_changes_nothing() {
    for lab in Lab::all() {
        lab.application(async |engine| {
            report(&engine, "shop,refunds", 70).await;
            report(&engine, "other", 3).await;
            complete(&engine, "shop,charges", 5).await;
        });
        let dry = lab.json(&["resolve", "rerun", "--scope", "shop", "--dry-run"]);
        assert_eq!((&dry["count"], unresolved(&lab)), (&70.into(), 73));
        let done = lab.run(&["resolve", "--scope", "shop", "rerun", "--yes", "--json"]);
        let answer: Value = serde_json::from_str(&done.out).unwrap();
        assert_eq!((done.code, &answer["done"], done.journal().len()), (0, &70.into(), 70), "{}", done.out);
        assert_eq!(unresolved(&lab), 3);
        let line = &done.journal()[0];
        assert_eq!(
            (&line["before"]["reason"], &line["after"]["resolved"]),
            (&"reported".into(), &true.into())
        );
        let none = lab.run(&["resolve", "--scope", "shop", "rerun", "--yes"]);
        assert_eq!((none.code, none.journal().len()), (1, 0), "{none:?}");
        // All that operators settled, and no other.
        let amended = lab.run(&["amend", "--scope", "shop", "failed", "--body", "no", "--yes"]);
        assert_eq!(amended.journal().len(), 70, "{}", amended.out);
        assert_eq!(lab.json(&["stats"])["states"], serde_json::json!({ "completed": 5, "failed": 73 }));
    }
}

#[test]
fn many_are_changed_a_part_at_a_time() {
    for lab in Lab::all() {
        lab.application(async |engine| report(&engine, "shop,refunds", 25).await);
        let asked = ["resolve", "rerun", "--scope", "shop", "--at-most", "10"];
        assert_eq!(lab.json(&[&asked[..], &["--dry-run"]].concat())["count"], 10);
        for (changed, code) in [(10, 0), (10, 0), (5, 0), (0, 1)] {
            let ran = lab.run(&[&asked[..], &["--yes"]].concat());
            assert_eq!((ran.journal().len(), ran.code), (changed, code), "{ran:?}");
        }
        assert_eq!(unresolved(&lab), 0);
        let id = request("shop,refunds", "1").id().to_string();
        assert_eq!(lab.run(&["forget", &id, "--at-most", "1", "--yes"]).code, 2);
    }
}

#[test]
fn many_are_amended_a_part_at_a_time() {
    for lab in Lab::all() {
        lab.application(async |engine| report(&engine, "shop,refunds", 25).await);
        assert_eq!(lab.run(&["resolve", "--all", "rerun", "--yes"]).code, 0);
        for outcome in [&["failed", "--body", "no"][..], &["completed", "--body", ""], &["rerun"]] {
            for (changed, code) in [(10, 0), (10, 0), (5, 0), (0, 1)] {
                let ran = lab.run(&[&["amend", "--all", "--at-most", "10", "--yes"][..], outcome].concat());
                assert_eq!((ran.journal().len(), ran.code), (changed, code), "{outcome:?}: {ran:?}");
            }
        }
        assert_eq!(lab.json(&["stats"])["retryable"], 25);
    }
}

#[test]
fn a_change_in_parts_ends_beside_records_that_cannot_be_read() {
    let lab = Lab::sqlite();
    lab.application(async |engine| report(&engine, "s", 5).await);
    lab.spoil(&request("s", "0").id());
    for (changed, code) in [(2, 4), (2, 4), (0, 1)] {
        let ran = lab.run(&["resolve", "--all", "rerun", "--at-most", "2", "--yes"]);
        assert_eq!((ran.journal().len(), ran.code), (changed, code), "{ran:?}");
        assert!(ran.err.contains("1 records cannot be read"), "{ran:?}");
    }
}

#[test]
fn an_erasure_in_parts_is_not_held_up_by_running_leases() {
    for lab in Lab::all() {
        lab.application(async |engine| {
            complete(&engine, "shop", 5).await;
            for key in ["a", "b", "c", "d", "e"] {
                drop(acquire(&engine, request("shop", key)).await);
            }
        });
        for changed in [2, 2, 1] {
            let ran = lab.run(&["forget", "--scope", "shop", "--at-most", "2", "--yes"]);
            assert_eq!((ran.journal().len(), ran.code), (changed, 0), "{ran:?}");
        }
        let ran = lab.run(&["forget", "--scope", "shop", "--at-most", "2", "--yes"]);
        assert!(ran.code == 4 && ran.err.contains("5 operations have a lease that runs"), "{ran:?}");
        assert!(ran.journal().is_empty(), "{ran:?}");
    }
}

#[test]
fn a_dry_run_counts_all_and_names_the_first() {
    let lab = Lab::sqlite();
    lab.application(async |engine| report(&engine, "s", 1200).await);
    let dry = lab.json(&["forget", "--scope", "s", "--dry-run"]);
    assert_eq!((&dry["count"], dry["operations"].as_array().unwrap().len()), (&1200.into(), 1000));
}

#[test]
fn s3_an_operation_that_was_executed_since_is_refused_and_the_others_are_done() {
    // A bulk call settles what it showed: here one of two is taken over in between.
    let lab = Lab::sqlite().filled();
    let counted = lab.json(&["resolve", "--all", "rerun", "--dry-run"])["count"].clone();
    assert_eq!(counted, 2);
    let id = request("shop,refunds", "reported").id().to_string();
    let fence = lab.json(&["show", &id])["fence"].to_string();
    assert_eq!(lab.run(&["resolve", &id, "rerun", "--yes"]).code, 0);
    lab.application(async |engine| {
        acquire(&engine, request("shop,refunds", "reported")).await.complete("x").await.unwrap();
    });
    let stale = lab.run(&["resolve", &id, "rerun", "--yes", "--fence", &fence]);
    assert!(stale.code == 4 && stale.journal().is_empty(), "{stale:?}");
    assert_eq!(state(&lab, &id), "completed");
}

#[test]
fn forgetting_says_what_the_next_begin_will_do() {
    for lab in Lab::all().map(Lab::filled) {
        for (scope, key, says) in [
            ("shop,charges", "secret-key", "a second time"),
            ("shop,charges", "running", "executes beside it"),
            ("shop,refunds", "reported", "perhaps a second time"),
            ("shop,refunds", "crashed", "The next begin executes"),
        ] {
            let asked = ["forget", "--scope", scope, "--key", key];
            let dry = lab.run(&[&asked[..], &["--dry-run"]].concat());
            assert!(dry.code == 0 && dry.out.contains(says), "{key}: {dry:?}");
            let done = lab.run(&[&asked[..], &["--yes"]].concat());
            assert_eq!((done.code, done.journal().len()), (0, 1), "{done:?}");
            assert_eq!(done.journal()[0]["after"], Value::Null);
            assert_eq!(lab.run(&[&asked[..], &["--yes"]].concat()).code, 1);
        }
    }
}

#[test]
fn a_tenant_is_erased_with_all_that_it_has_but_running_leases() {
    for lab in Lab::all().map(Lab::filled) {
        let dry = lab.json(&["forget", "--scope", "shop", "--dry-run"]);
        assert_eq!(dry["count"], 5);
        let ran = lab.run(&["forget", "--scope", "shop", "--yes"]);
        assert!(ran.code == 4 && ran.out.contains("its lease runs"), "{ran:?}");
        assert_eq!(ran.journal().len(), 4);
        let left = lab.json(&["list"]);
        let scopes: Vec<&str> = left["operations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|seen| seen["scope"].as_str().unwrap())
            .collect();
        assert_eq!(left["operations"].as_array().unwrap().len(), 2, "{left}");
        assert!(scopes.contains(&"other"));
    }
}

#[test]
fn a_tenant_is_erased_with_its_expired_records() {
    let lab = Lab::sqlite();
    lab.fill_with_expired(30);
    let ran: Ran = lab.run(&["forget", "--scope", "old", "--yes"]);
    assert_eq!((ran.code, ran.journal().len()), (0, 30), "{ran:?}");
    assert_eq!(lab.json(&["purge", "--dry-run"])["due"], 0);
}

#[test]
fn a_tenant_is_erased_with_attempts_that_crashed_and_expired() {
    let lab = Lab::sqlite();
    lab.application_of_the_past(async |engine| {
        for key in ["a", "b"] {
            let lease = acquire(&engine, request("old", key)).await;
            lease.save_checkpoint("personal data").await.unwrap();
        }
        complete(&engine, "old", 3).await;
    });
    assert_eq!(lab.json(&["purge", "--dry-run"])["due"], 5);
    let young = lab.run(&["forget", "--scope", "old", "--older-than", "3days", "--yes"]);
    assert_eq!(young.code, 1, "{young:?}");
    let ran = lab.run(&["forget", "--scope", "old", "--older-than", "1h", "--yes"]);
    assert_eq!((ran.code, ran.journal().len()), (0, 5), "{ran:?}");
    assert_eq!(lab.json(&["purge", "--dry-run"])["due"], 0);
}

#[test]
fn s3_a_stamp_names_the_record_that_is_forgotten_or_settled() {
    for lab in Lab::all().map(Lab::filled) {
        let id = request("shop,refunds", "reported").id().to_string();
        let stamp = lab.json(&["show", &id])["stamp"].to_string();
        // The fence stays as it is.
        assert_eq!(lab.run(&["resolve", &id, "rerun", "--yes", "--stamp", &stamp]).code, 0);
        for stale in [
            &["resolve", &id, "completed", "--body", "x", "--yes", "--stamp", &stamp][..],
            &["forget", &id, "--yes", "--stamp", &stamp],
        ] {
            let ran = lab.run(stale);
            assert!(ran.code == 4 && ran.journal().is_empty(), "{ran:?}");
        }
        assert_eq!(lab.json(&["show", &id])["retry"], "now");
        let stamp = lab.json(&["show", &id])["stamp"].to_string();
        assert_eq!(lab.run(&["forget", &id, "--yes", "--stamp", &stamp]).code, 0);
        assert_eq!(lab.run(&["show", &id]).code, 1);
    }
}

#[test]
fn a_purge_removes_what_expired_and_nothing_else() {
    let lab = Lab::sqlite();
    lab.fill_with_expired(1500);
    lab.application(async |engine| complete(&engine, "new", 10).await);
    assert_eq!(lab.json(&["purge", "--dry-run"])["due"], 1500);
    assert_eq!(lab.json(&["purge", "--limit", "400", "--yes"])["removed"], 400);
    let ran = lab.run(&["purge", "--yes"]);
    assert!(ran.code == 0 && ran.out.contains("1100 expired records removed"), "{ran:?}");
    assert_eq!(ran.journal()[0]["after"]["removed"], 1100);
    assert_eq!(
        (lab.json(&["stats"])["operations"].clone(), lab.json(&["stats"])["due"].clone()),
        (10.into(), 0.into())
    );
    for lab in [Lab::redis().filled(), Lab::postgres().filled()] {
        assert_eq!(lab.json(&["purge", "--yes"])["removed"], 0);
        assert_eq!(lab.json(&["stats"])["operations"], 6);
    }
}
