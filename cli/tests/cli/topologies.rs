//! Redis clusters, and servers behind sentinels: the same commands as on one server.

use crate::children;
use crate::lab::{Lab, Ran, fill, request};

#[test]
fn commands_work_on_a_cluster_and_behind_sentinels_as_on_one_server() {
    let one = Lab::redis().filled();
    let states = |lab: &Lab| {
        let text = lab.json(&["stats"]);
        (text["operations"].clone(), text["by_state"].clone())
    };
    let expected = states(&one);
    assert!(expected.0 == 6, "{expected:?}");
    for lab in [Lab::cluster(), Lab::sentinel()] {
        let lab = lab.filled();
        assert_eq!(states(&lab), expected, "{}", lab.url);
        let servers = &lab.json(&["check"])["servers"];
        let nodes = servers["nodes"].as_array().unwrap();
        let is_cluster = servers["topology"] == "a cluster";
        assert!(is_cluster || servers["topology"] == "sentinels" && nodes.len() == 1, "{servers}");
        assert!(nodes.iter().all(|node| node["role"] == "primary" && node["fault"].is_null()), "{servers}");
        let id = request("shop,refunds", "reported").id().to_string();
        let settled = lab.run(&["resolve", &id, "completed", "--body", "x", "--yes"]);
        assert!(settled.code == 0 && settled.journal().len() == 1, "{settled:?}");
        let shown = lab.json(&["show", &id, "--content"]);
        assert_eq!(shown["state"], "completed", "{shown}");

        let export = lab.dir.path().join("export");
        let export = export.to_str().unwrap();
        assert_eq!(lab.run(&["export", "--output", export]).code, 0);
        let target = Lab::sqlite();
        let moved = target.run(&["import", export, "--create", "--yes"]);
        assert_eq!(moved.code, 0, "{moved:?}");
        assert_eq!(states(&target), states(&lab));

        let erased = lab.run(&["forget", "--scope", "other", "--yes"]);
        assert_eq!((erased.code, erased.journal().len()), (0, 1), "{erased:?}");
        assert_eq!(states(&lab).0, 5);
    }
}

#[test]
fn a_user_of_a_cluster_that_may_only_read_can_look() {
    let lab = Lab::cluster().filled();
    let server = lab.redis.as_ref().unwrap();
    let rights = "+get +time +scan +cluster|slots +cluster|nodes +cluster|countkeysinslot";
    server.ask::<()>(&format!("ACL SETUSER reader on >s3cret resetkeys %R~nevertwice:* -@all {rights}"));
    let url = lab.url.replace("://", "://reader:s3cret@");
    for arguments in [&["list"][..], &["unresolved"], &["stats"], &["check"], &["purge", "--dry-run"]] {
        let ran = Ran::of(children::output(lab.command(arguments).env("NEVERTWICE_STORE", &url)));
        assert!(ran.code == 0 && !ran.err.contains("s3cret"), "{arguments:?}: {ran:?}");
    }
}

#[test]
fn a_change_waits_for_the_replicas_that_it_is_told_of() {
    let lab = Lab::redis();
    lab.application(fill);
    let id = request("shop,refunds", "reported").id().to_string();
    let refused = lab.run(&["resolve", &id, "rerun", "--yes", "--replicas", "1"]);
    assert!(refused.code == 3 && refused.err.contains("replicas"), "{refused:?}");
    assert_eq!(lab.json(&["show", &id])["state"], "failed");
    // Reading asks for none, and a check tells that they are missing.
    assert_eq!(lab.run(&["list", "--replicas", "1"]).code, 0);
    for arguments in [&["check", "--replicas", "1"][..], &["check", "--replicas", "1", "--settings-only"]] {
        let ran = lab.run(arguments);
        assert!(ran.code == 4 && ran.out.contains("0 replicas are in step"), "{ran:?}");
        assert!(!ran.out.contains("forget"), "no record is at fault: {ran:?}");
    }
    assert_eq!(lab.run(&["check"]).code, 0);
    let sqlite = Lab::sqlite().run(&["list", "--replicas", "1"]);
    assert!(sqlite.code == 2 && sqlite.err.contains("--replicas is for Redis"), "{sqlite:?}");
}

#[test]
fn what_sentinels_do_not_know_is_named_and_passwords_are_not() {
    let lab = Lab::sentinel();
    let unknown = lab.url.replace("/payments", "/refunds");
    let ran = Ran::of(children::output(lab.command(&["list"]).env("NEVERTWICE_STORE", &unknown)));
    assert!(ran.code == 3 && ran.err.contains("refunds"), "{ran:?}");
    // The login is that of the server, which has no such user.
    let wrong = lab.url.replace("://", "://carl:s3cr%20et@");
    let ran = Ran::of(children::output(lab.command(&["list"]).env("NEVERTWICE_STORE", &wrong)));
    assert!(ran.code == 3 && !ran.err.contains("s3cr"), "{ran:?}");
    let server = lab.redis.as_ref().unwrap();
    server.ask::<()>("ACL SETUSER carl on >s3cr:et resetkeys ~* -@all +@all");
    let right = lab.url.replace("://", "://carl:s3cr%3Aet@");
    let ran = Ran::of(children::output(lab.command(&["list"]).env("NEVERTWICE_STORE", &right)));
    assert_eq!(ran.code, 1, "nothing is there: {ran:?}");
}
