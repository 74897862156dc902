//! Servers that evict or lag behind: `check` and the commands that read tell of them.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::children;
use crate::lab::{Lab, Ran, request};
use crate::redis;

/// Commands that read, and their ends where what is read may be late or incomplete.
const READS: [(&[&str], i32); 3] =
    [(&["unresolved"], 0), (&["export"], 4), (&["export", "--accept-stale"], 0)];

fn texts(value: &Value) -> String {
    value.as_array().unwrap().iter().map(|text| format!("{}\n", text.as_str().unwrap())).collect()
}

/// Runs the command on another server of the lab's store.
fn run_on(lab: &Lab, url: &str, arguments: &[&str]) -> Ran {
    let mut command: Command = lab.command(arguments);
    Ran::of(children::output(command.env("NEVERTWICE_STORE", url)))
}

fn json_of(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("{what}: not within 120 s");
}

#[test]
fn a_redis_that_evicts_is_a_fault_and_reads_say_so() {
    let lab = Lab::redis().filled();
    let server = lab.redis.as_ref().unwrap();
    let sound = lab.json(&["check"]);
    assert_eq!(sound["servers"]["topology"], "one server", "{sound}");
    let node = &sound["servers"]["nodes"][0];
    assert_eq!(
        (&node["role"], &node["replicas"], &node["fault"]),
        (&"primary".into(), &0.into(), &Value::Null)
    );
    // Without a limit nothing is evicted yet.
    server.ask::<()>("CONFIG SET maxmemory-policy allkeys-lru");
    let warned = lab.json(&["check"]);
    assert!(texts(&warned["warnings"]).contains("with a limit, records would be evicted"), "{warned}");
    server.ask::<()>("CONFIG SET maxmemory 100mb");
    for arguments in [&["check"][..], &["check", "--settings-only"]] {
        let ran = lab.run(&[arguments, &["--json"]].concat());
        let report = json_of(&ran);
        assert!(ran.code == 4 && texts(&report["faults"]).contains("noeviction"), "{ran:?}");
    }
    let shown = lab.run(&["check"]);
    assert!(shown.code == 4 && shown.out.contains("it evicts") && shown.out.contains("primary"), "{shown:?}");
    for (arguments, code) in READS {
        let ran = lab.run(arguments);
        assert!(ran.code == code && ran.err.contains("it evicts"), "{ran:?}");
        assert_eq!(ran.out.is_empty(), code != 0, "{ran:?}");
    }
    // Nothing is settled there.
    let id = request("shop,refunds", "reported").id().to_string();
    let refused = lab.run(&["resolve", &id, "rerun", "--yes"]);
    assert!(refused.code == 3 && refused.err.contains("noeviction"), "{refused:?}");
}

#[test]
fn a_redis_replica_is_shown_as_one() {
    let lab = Lab::redis().filled();
    let primary = lab.redis.as_ref().unwrap();
    let port = primary.port().to_string();
    let replica = redis::Server::start(&["--replicaof", &format!("127.0.0.1 {port}")]);
    until("the replica is in step", || {
        replica.ask::<String>("INFO replication").contains("master_link_status:up")
            && primary.ask::<String>("INFO replication").contains("state=online")
    });
    // One that reports late counts as out of step for a moment.
    until("the replica is shown", || {
        let node = &lab.json(&["check"])["servers"]["nodes"][0];
        assert_eq!(node["role"], "primary", "{node}");
        node["replicas"] == 1 && node["replica_lag_bytes"].is_number()
    });
    let ran = run_on(&lab, &replica.url(), &["check", "--json"]);
    let report = json_of(&ran);
    assert_eq!((ran.code, &report["faults"]), (0, &Value::Array(vec![])), "{ran:?}");
    assert_eq!((&report["records"], &report["servers"]["nodes"][0]["role"]), (&6.into(), &"replica".into()));
    assert!(texts(&report["warnings"]).contains("it is a replica"), "{report}");
    for (arguments, code) in READS {
        let ran = run_on(&lab, &replica.url(), arguments);
        assert!(ran.code == code && ran.err.contains("what is read may be late"), "{ran:?}");
        assert_eq!(ran.out.is_empty(), code != 0, "{ran:?}");
    }
    let id = request("shop,refunds", "reported").id().to_string();
    let refused = run_on(&lab, &replica.url(), &["forget", &id, "--yes"]);
    assert!(refused.code == 3 && refused.err.contains("replica"), "{refused:?}");
}

#[test]
fn a_postgres_standby_is_shown_as_one() {
    let lab = Lab::postgres().filled();
    let server = lab.postgres.as_ref().unwrap();
    assert!(!texts(&lab.json(&["check"])["warnings"]).contains("standby"));
    let standby = server.standby("eve", &["fsync=off"]);
    let ran = run_on(&lab, &standby.url(), &["check", "--json"]);
    let report = json_of(&ran);
    assert_eq!((ran.code, &report["faults"]), (0, &Value::Array(vec![])), "{ran:?}");
    assert!(texts(&report["warnings"]).contains("it is a standby: what is read may be late"), "{report}");
    for (arguments, code) in READS {
        let ran = run_on(&lab, &standby.url(), arguments);
        assert!(ran.code == code && ran.err.contains("it is a standby"), "{ran:?}");
        assert_eq!(ran.out.is_empty(), code != 0, "{ran:?}");
    }
}

#[test]
fn a_redis_that_has_evicted_keys_is_not_exported_unasked() {
    let lab = Lab::redis();
    let server = lab.redis.as_ref().unwrap();
    server.ask::<()>("SET other x");
    server.ask::<()>("CONFIG SET maxmemory-policy allkeys-lru");
    server.ask::<()>("CONFIG SET maxmemory 1");
    until("the key is evicted", || server.ask::<String>("INFO stats").contains("evicted_keys:1"));
    server.ask::<()>("CONFIG SET maxmemory 0");
    server.ask::<()>("CONFIG SET maxmemory-policy noeviction");
    let lab = lab.filled();
    for (arguments, code) in READS {
        let ran = lab.run(arguments);
        assert!(ran.code == code && ran.err.contains("keys were evicted"), "{ran:?}");
    }
}

#[test]
fn a_check_that_cannot_read_the_records_shows_what_it_found() {
    let lab = Lab::redis().filled();
    let server = lab.redis.as_ref().unwrap();
    server.ask::<()>("ACL SETUSER carl on >s3cret ~* +@all -scan");
    let ran = run_on(&lab, &server.url_as("carl", "s3cret"), &["check", "--json"]);
    let report = json_of(&ran);
    assert!(ran.code == 4 && texts(&report["faults"]).contains("could not be read to their end"), "{ran:?}");
    assert_eq!(
        (&report["records"], &report["servers"]["nodes"][0]["role"]),
        (&Value::Null, &"primary".into())
    );
    let shown = run_on(&lab, &server.url_as("carl", "s3cret"), &["check"]);
    assert!(shown.code == 4 && shown.out.contains("replicas in step"), "{shown:?}");
    assert!(!shown.out.contains("forget"), "no record is at fault: {shown:?}");
}
