//! The commands that read.

use serde_json::Value;

use crate::lab::{Lab, SECRETS, request};

/// Returns the operation of a key in a listing.
fn of_key<'a>(listing: &'a Value, scope: &str, key: &str) -> &'a Value {
    let id = request(scope, key).id().to_string();
    let operations = listing["operations"].as_array().unwrap();
    operations.iter().find(|found| found["id"] == id.as_str()).unwrap_or_else(|| panic!("{key}: {listing}"))
}

#[test]
fn every_operation_is_listed_with_its_state_and_no_content() {
    for lab in Lab::all().map(Lab::filled) {
        let listing = lab.json(&["list"]);
        assert_eq!(listing["operations"].as_array().unwrap().len(), 6, "{listing}");
        assert_eq!(listing["next"], Value::Null);
        for (scope, key, state, reason) in [
            ("shop,charges", "secret-key", "completed", Value::Null),
            ("shop,charges", "running", "in_progress", Value::Null),
            ("shop,refunds", "crashed", "in_progress", Value::Null),
            ("shop,refunds", "marked", "in_progress", "effect_marked".into()),
            ("shop,refunds", "reported", "failed", "reported".into()),
            ("other", "declined", "failed", Value::Null),
        ] {
            let found = of_key(&listing, scope, key);
            assert_eq!((&found["state"], &found["reason"]), (&state.into(), &reason), "{key}");
            assert!(found.get("key").is_none());
        }
        let table = lab.run(&["list"]);
        for secret in SECRETS {
            assert!(!listing.to_string().contains(secret) && !table.out.contains(secret), "{secret}");
        }
        // Not a terminal, so no colours, and nothing on stderr.
        assert!(!table.out.contains('\u{1b}') && table.err.is_empty(), "{table:?}");
    }
}

#[test]
fn listings_are_filtered_by_scope_state_age_and_reason() {
    let lab = Lab::sqlite().filled();
    let count = |filters: &[&str]| {
        let ran = lab.run(&[&["list", "--json"], filters].concat());
        let listing: Value = serde_json::from_str(&ran.out).unwrap();
        let count = listing["operations"].as_array().unwrap().len();
        assert_eq!(ran.code, i32::from(count == 0), "{filters:?}");
        count
    };
    assert_eq!(count(&["--scope", "shop"]), 5);
    assert_eq!(count(&["--scope", "shop,refunds"]), 3);
    assert_eq!(count(&["--scope", "sho"]), 0);
    assert_eq!(count(&["--state", "completed"]), 1);
    assert_eq!(count(&["--state", "in_progress", "--scope", "shop,refunds"]), 2);
    assert_eq!(count(&["--reason", "reported"]), 1);
    assert_eq!(count(&["--older-than", "1h"]), 0);
    assert_eq!(count(&["--older-than", "0s"]), 6);
}

#[test]
fn pages_are_bounded_and_continue_where_they_ended() {
    for lab in Lab::all() {
        lab.application(async |engine| crate::lab::complete(&engine, "many", 25).await);
        let (mut ids, mut after) = (Vec::new(), None::<String>);
        loop {
            let position: Vec<&str> = after.iter().flat_map(|after| ["--after", after]).collect();
            let page = lab.json(&[&["list", "--limit", "10"], position.as_slice()].concat());
            let found = page["operations"].as_array().unwrap();
            ids.extend(found.iter().map(|found| found["id"].as_str().unwrap().to_owned()));
            match page["next"].as_str() {
                Some(next) => after = Some(next.to_owned()),
                None => break,
            }
        }
        ids.sort();
        ids.dedup();
        assert_eq!(ids.len(), 25, "{}", lab.url);
    }
}

#[test]
fn one_operation_is_shown_by_id_or_key_and_its_content_only_where_asked() {
    for lab in Lab::all().map(Lab::filled) {
        let id = request("shop,charges", "secret-key").id().to_string();
        let by_key = ["show", "--scope", "shop,charges", "--key", "secret-key"];
        let shown = lab.json(&["show", &id]);
        assert_eq!((&shown["id"], &shown["state"]), (&id.as_str().into(), &"completed".into()));
        assert_eq!(lab.json(&by_key)["fence"], shown["fence"]);
        assert!(shown["fence"].as_u64().unwrap() > 0 && shown["body_bytes"] == 15);
        let table = lab.run(&["show", &id]);
        for secret in SECRETS {
            assert!(!shown.to_string().contains(secret) && !table.out.contains(secret), "{secret}");
        }
        let content = lab.json(&["show", &id, "--content"]);
        assert_eq!(content["content"]["response"], "secret-response");
        assert_eq!(content["key"], "secret-key");
        assert!(lab.run(&["show", &id, "--content"]).out.contains("secret-response"));
        let running = lab.json(&["show", "--scope", "shop,charges", "--key", "running"]);
        assert_eq!(running["holder"], "web-1");
        assert!(running["lease_remaining_seconds"].as_f64().unwrap() > 0.0);
        let missing = lab.run(&["show", "--scope", "shop", "--key", "never"]);
        assert_eq!(missing.code, 1, "{missing:?}");
    }
}

#[test]
fn what_needs_an_operator_is_listed_oldest_first_with_the_reason() {
    for lab in Lab::all().map(Lab::filled) {
        for arguments in [&["unresolved"][..], &["unresolved", "--settling"]] {
            let found = lab.json(arguments);
            assert_eq!(found["count"], 2, "{found}");
            let operations = found["operations"].as_array().unwrap();
            let ages: Vec<f64> =
                operations.iter().map(|seen| seen["age_seconds"].as_f64().unwrap()).collect();
            assert!(ages[0] >= ages[1], "{ages:?}");
        }
        let table = lab.run(&["unresolved"]);
        assert!(table.out.contains("the effect was marked") && table.out.contains("uncertain"), "{table:?}");
        let oldest = lab.json(&["unresolved", "--limit", "1"]);
        assert_eq!((oldest["count"].as_u64(), oldest["operations"].as_array().unwrap().len()), (Some(2), 1));
        assert_eq!(lab.run(&["unresolved", "--scope", "other"]).code, 1);
    }
}

#[test]
fn stats_and_watch_count_by_state_and_scope() {
    for lab in Lab::all().map(Lab::filled) {
        for arguments in [&["stats"][..], &["watch", "--once"]] {
            let figures = lab.json(arguments);
            assert_eq!(figures["operations"], 6, "{figures}");
            assert_eq!(
                figures["states"],
                serde_json::json!({ "completed": 1, "failed": 2, "in_progress": 3 })
            );
            assert_eq!((&figures["unresolved"], &figures["retryable"]), (&2.into(), &1.into()));
            assert!(figures["bytes"].as_u64().unwrap() > 300 && figures["finished_last_minute"] == 3);
            assert_eq!(figures["scopes"][0]["scope"], "shop,refunds");
        }
        assert!(lab.run(&["watch", "--once"]).out.contains("oldest unresolved"));
        assert_eq!(lab.run(&["stats"]).code, 0);
    }
}

#[test]
fn the_derived_key_is_the_applications_and_needs_no_store() {
    let request = request("shop,charges", "k");
    let lab = Lab::sqlite();
    let derived = lab.application(async |engine| engine.derive_key(&request.id(), "psp"));
    let id = request.id().to_string();
    for arguments in
        [&["derive-key", &id, "psp"][..], &["derive-key", "psp", "--scope", "shop,charges", "--key", "k"]]
    {
        let ran = crate::lab::run(arguments);
        assert_eq!((ran.code, ran.out.trim()), (0, derived.as_str()), "{ran:?}");
    }
    assert_eq!(crate::lab::run(&["derive-key", &id]).code, 2);
}

#[test]
fn completions_are_written_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = crate::lab::run(&["completions", shell]);
        assert!(ran.code == 0 && ran.out.contains("unresolved"), "{shell}");
        // Those of `audit` are arguments of their own.
        assert!(ran.out.contains("count-url") && ran.out.contains("max-requests"), "{shell}");
    }
}

#[test]
fn a_check_tells_levels_and_finds_damage() {
    for lab in Lab::all().map(Lab::filled) {
        let sound = lab.json(&["check"]);
        assert_eq!((&sound["records"], &sound["faults"]), (&6.into(), &serde_json::json!([])), "{sound}");
        assert!(sound["durability"].is_string());
        // Another record's bytes under this id.
        let [from, to] = ["secret-key", "running"].map(|key| *request("shop,charges", key).id().as_bytes());
        if let Some(server) = &lab.redis {
            let name = |id: [u8; 32]| [&b"nevertwice:"[..], &id].concat();
            let mut raw = server.raw();
            let value: Vec<u8> = redis::cmd("GET").arg(name(from)).query(&mut raw).unwrap();
            redis::cmd("SET").arg(name(to)).arg(value).exec(&mut raw).unwrap();
        } else if let Some(server) = &lab.postgres {
            let [from, to] = [from, to].map(hex::encode);
            server.sql(&format!(
                "UPDATE nevertwice SET record = (SELECT record FROM nevertwice WHERE id = '\\x{from}') WHERE id = '\\x{to}'"
            ));
        } else {
            let db = rusqlite::Connection::open(lab.dir.path().join("keys.db")).unwrap();
            let sql =
                "UPDATE nevertwice SET record = (SELECT record FROM nevertwice WHERE id = ?1) WHERE id = ?2";
            assert_eq!(db.execute(sql, [from, to]).unwrap(), 1);
        }
        let damaged = lab.run(&["check", "--json"]);
        let report: Value = serde_json::from_str(&damaged.out).unwrap();
        assert_eq!((damaged.code, report["faults"].as_array().unwrap().len()), (4, 1), "{damaged:?}");
        let id = hex::encode(to);
        let shown = lab.run(&["show", &id]);
        assert!(shown.code == 4 && shown.err.contains("error"), "{shown:?}");
        let listed = lab.json(&["list"]);
        assert_eq!(listed["unreadable"], serde_json::json!([id]));
        // The remedy that the runbook names.
        let gone = lab.run(&["forget", &id, "--yes"]);
        assert_eq!(gone.code, 0, "{gone:?}");
        assert!(gone.journal()[0]["before"]["unreadable"].is_string());
        assert_eq!(lab.json(&["check"])["records"], 5);
    }
}

#[test]
fn an_index_entry_that_disagrees_with_its_record_is_found() {
    let lab = Lab::sqlite().filled();
    let db = rusqlite::Connection::open(lab.dir.path().join("keys.db")).unwrap();
    db.execute("UPDATE nevertwice SET due = -due WHERE due < 0", []).unwrap();
    drop(db);
    let found = lab.run(&["check"]);
    assert!(found.code == 4 && found.out.matches("disagree about evidence").count() == 2, "{found:?}");
}

#[test]
fn a_reader_that_goes_early_is_no_error() {
    let lab = Lab::sqlite();
    lab.application(async |engine| crate::lab::complete(&engine, "many", 2000).await);
    let shell = format!("{} list --limit 5000 | head -1", env!("CARGO_BIN_EXE_nevertwice"));
    let mut command = std::process::Command::new("bash");
    command.args(["-c", &format!("set -o pipefail; {shell}")]).env("NEVERTWICE_STORE", &lab.url);
    let ran = crate::lab::Ran::of(crate::children::output(&mut command));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}
