//! Exports and imports, between stores of every kind.

use std::path::PathBuf;
use std::time::Duration;

use nevertwice::{Begin, Clock, Engine, ManualClock, SqliteStore, SystemClock};
use serde_json::Value;

use crate::lab::{Lab, acquire, complete, request};

fn export(lab: &Lab) -> PathBuf {
    let file = lab.dir.path().join("export.jsonl");
    let ran = lab.run(&["export", "--output", file.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{ran:?}");
    file
}

fn import(lab: &Lab, file: &std::path::Path, options: &[&str]) -> crate::lab::Ran {
    lab.run(&[&["import", file.to_str().unwrap(), "--json", "--yes"], options].concat())
}

fn listing(lab: &Lab) -> Vec<(String, String, u64, u64)> {
    let listing = lab.json(&["list", "--limit", "1000"]);
    let text = |found: &Value, name: &str| found[name].to_string();
    let number = |found: &Value, name: &str| found[name].as_u64().unwrap();
    let row = |found: &Value| {
        (text(found, "id"), text(found, "state"), number(found, "fence"), number(found, "attempt"))
    };
    let mut rows: Vec<_> = listing["operations"].as_array().unwrap().iter().map(row).collect();
    rows.sort();
    rows
}

#[test]
fn s5_records_move_between_all_stores_and_fences_stay_below_new_ones() {
    for source in Lab::all().map(Lab::filled) {
        let file = export(&source);
        let lines = std::fs::read_to_string(&file).unwrap();
        assert_eq!(lines.lines().count(), 8);
        for target in Lab::all() {
            let ran = import(&target, &file, &["--create"]);
            let answer: Value = serde_json::from_str(&ran.out).unwrap();
            assert_eq!((ran.code, &answer["imported"]), (0, &6.into()), "{ran:?}");
            assert_eq!(ran.journal()[0]["after"]["imported"], 6);
            assert_eq!(listing(&target), listing(&source), "{} to {}", source.url, target.url);
            // Repeated, it does nothing.
            let again: Value = serde_json::from_str(&import(&target, &file, &[]).out).unwrap();
            assert_eq!((&again["imported"], &again["already"]), (&0.into(), &6.into()));
            let fences: Vec<u64> = listing(&source).iter().map(|row| row.2).collect();
            target.application(async |engine| {
                let Begin::Completed(done) =
                    engine.begin(&request("shop,charges", "secret-key")).await.unwrap()
                else {
                    panic!()
                };
                assert_eq!(done.response().unwrap(), "secret-response");
                let new = acquire(&engine, request("shop,charges", "new")).await;
                assert!(fences.iter().all(|fence| *fence < new.fence().0));
            });
        }
    }
}

#[test]
fn a_token_of_the_old_store_finishes_on_the_new_one() {
    let (source, target) = (Lab::sqlite(), Lab::sqlite());
    let token = source.application(async |engine| {
        let lease = acquire(&engine, request("s", "k")).await;
        lease.token()
    });
    let file = export(&source);
    let start: Value =
        serde_json::from_str(std::fs::read_to_string(&file).unwrap().lines().next().unwrap()).unwrap();
    assert_eq!(import(&target, &file, &["--create"]).code, 0);
    let store = SqliteStore::open(&target.url[7..]).unwrap();
    let old = start["store_id"].as_str().unwrap().parse().unwrap();
    let engine = Engine::builder(store).accept_tokens_from(old).build().unwrap();
    nevertwice_block_on(async {
        engine.resume(&token).await.unwrap().complete("done").await.unwrap();
    });
}

fn nevertwice_block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

#[test]
fn s5_a_store_whose_clock_is_behind_is_refused() {
    let (source, target) = (Lab::sqlite(), Lab::sqlite());
    let clock = ManualClock::starting_at(SystemClock.wall() + Duration::from_secs(3600));
    let store = SqliteStore::builder(&source.url[7..]).clock(clock.clone()).open().unwrap();
    let engine = Engine::builder(store).clock(clock).build().unwrap();
    nevertwice_block_on(complete(&engine, "s", 3));
    drop(engine);
    let file = export(&source);
    let ran = import(&target, &file, &["--create", "--wait", "100ms"]);
    assert!(ran.code == 4 && ran.err.contains("behind"), "{ran:?}");
    assert_eq!(target.json(&["stats"])["operations"], 0);
}

#[test]
fn a_record_that_is_there_already_is_never_overwritten() {
    for target in Lab::all() {
        let source = Lab::sqlite().filled();
        target.application(async |engine| {
            acquire(&engine, request("shop,charges", "secret-key")).await.complete("another").await.unwrap();
        });
        let file = export(&source);
        let dry = import(&target, &file, &["--dry-run"]);
        let answer: Value = serde_json::from_str(&dry.out).unwrap();
        assert_eq!((dry.code, &answer["imported"]), (4, &5.into()), "{dry:?}");
        assert_eq!(target.json(&["stats"])["operations"], 1);
        let ran = import(&target, &file, &[]);
        let answer: Value = serde_json::from_str(&ran.out).unwrap();
        assert_eq!((ran.code, answer["differing"].as_array().unwrap().len()), (4, 1), "{ran:?}");
        let shown = target.json(&["show", "--scope", "shop,charges", "--key", "secret-key", "--content"]);
        assert_eq!(shown["content"]["response"], "another");
    }
}

#[test]
fn a_file_that_is_cut_or_damaged_anywhere_is_noticed() {
    let source = Lab::sqlite().filled();
    let file = export(&source);
    let whole = std::fs::read(&file).unwrap();
    let target = Lab::sqlite();
    let ends = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let ends: Vec<usize> = ends.filter(|at| *at < whole.len()).collect();
    for cut in (0..12).map(|step| whole.len() * step / 12).chain(ends) {
        std::fs::write(&file, &whole[..cut]).unwrap();
        let ran = import(&target, &file, &["--create"]);
        assert!(ran.code == 4 && !ran.err.contains("secret"), "cut at {cut}: {ran:?}");
    }
    for step in 1..40 {
        let mut damaged = whole.clone();
        let at = whole.len() * step / 40;
        damaged[at] ^= 1;
        std::fs::write(&file, &damaged).unwrap();
        let fresh = Lab::sqlite();
        let ran = import(&fresh, &file, &["--create"]);
        // A change of what is only there for readers is harmless.
        assert!([0, 4].contains(&ran.code), "byte {at}: {ran:?}");
        if ran.code == 0 {
            let rows =
                |lab: &Lab| listing(lab).into_iter().map(|row| (row.0, row.1, row.2)).collect::<Vec<_>>();
            assert_eq!(rows(&fresh), rows(&source), "byte {at}");
        }
    }
    std::fs::write(&file, &whole).unwrap();
    assert_eq!(import(&target, &file, &[]).code, 0, "repeating it with the whole file ends the job");
    assert_eq!(listing(&target), listing(&source));
}

#[test]
fn exports_are_private_and_replace_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::sqlite().filled();
    let file = export(&lab);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let before = std::fs::read(&file).unwrap();
    let again = lab.run(&["export", "--output", file.to_str().unwrap()]);
    assert_eq!(again.code, 2, "{again:?}");
    assert_eq!(std::fs::read(&file).unwrap(), before);
    let piped = lab.run(&["export"]);
    assert!(piped.err.contains("warning: the events of an outbox are not in an export"), "{piped:?}");
    assert_eq!((piped.code, piped.out.lines().count()), (0, 8));
    assert_eq!(Lab::redis().run(&["export"]).code, 1);
}
