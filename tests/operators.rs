//! The operators' calls: their output, their filters and their changes.
#![cfg(feature = "memory")]

use std::time::Duration;

use nevertwice::store::Store;
use nevertwice::testing::{Fault, FaultyStore, block_on};
use nevertwice::{
    Amendment, Begin, Body, Bulk, Engine, Error, Failure, Filter, Inspection, Key, KeyError, Lease,
    ManualClock, MemoryStore, Need, Reason, RecordId, Recovery, Request, Resolution, Retry, RunError, Scope,
    StateKind, StoreError, Unfinished, Verdict,
};
use proptest::collection::vec;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

fn setup() -> (ManualClock, MemoryStore, Engine) {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let engine = Engine::builder(store.clone()).clock(clock.clone()).build().unwrap();
    (clock, store, engine)
}

fn request(scope: &str, key: &str) -> Request {
    Request::new(scope.parse::<Scope>().unwrap(), key).unwrap()
}

fn granted(begin: Result<Begin, Error>) -> Lease {
    match begin {
        Ok(Begin::Acquired(lease)) => lease,
        other => panic!("expected a lease, got {other:?}"),
    }
}

fn acquire(engine: &Engine, request: &Request) -> Lease {
    granted(block_on(engine.begin(request)))
}

fn body(text: &'static str) -> Body {
    Body::kept(text.into())
}

fn reported(engine: &Engine, request: &Request) {
    block_on(acquire(engine, request).fail("?", Retry::Unresolved)).unwrap();
}

/// Returns all operations that a filter selects, read two records at a time.
fn chosen(engine: &Engine, filter: &Filter) -> Vec<Unfinished> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = block_on(engine.unfinished_by(filter, after.as_ref(), 2)).unwrap();
        found.extend(page.operations);
        after = page.next;
        if after.is_none() {
            return found;
        }
    }
}

fn scopes(engine: &Engine, filter: &Filter) -> Vec<String> {
    let mut found: Vec<String> =
        chosen(engine, filter).into_iter().map(|operation| operation.inspection.scope).collect();
    found.sort();
    found
}

// Display and parsing

#[test]
fn s7_scopes_are_shown_so_that_they_can_be_typed_back() {
    let shown = |parts: &[&str]| Scope::new(parts).unwrap().to_string();
    assert_eq!(shown(&["acct_42/charges"]), "acct_42/charges");
    assert_eq!(shown(&["acct_42", "charges"]), "acct_42,charges");
    assert_eq!(shown(&["acct_42,charges"]), r"acct_42\,charges");
    assert_eq!(shown(&[r"a\", ",b", "…"]), r"a\\,\,b,\…");
    let (_, _, engine) = setup();
    for parts in [&["acct_42/charges"][..], &["acct_42", "charges"], &["acct_42,charges"], &[r"a\", "…"]] {
        let scope = Scope::new(parts).unwrap();
        drop(acquire(&engine, &Request::new(&scope, "k").unwrap()));
        let seen = block_on(engine.inspect(&scope, "k")).unwrap().unwrap();
        assert_eq!(seen.scope.parse(), Ok(scope), "{}", seen.scope);
    }
}

#[test]
fn a_scope_that_was_cut_is_known_by_its_mark_and_refused() {
    let (_, _, engine) = setup();
    let fits = ["x".repeat(46), "y".to_owned()];
    for (parts, cut) in [
        (vec!["x".repeat(48)], false),
        (fits.to_vec(), false),
        (vec!["x".repeat(49)], true),
        (vec!["x".repeat(44), "yyyy".to_owned()], true),
        (vec![",".repeat(25)], true),
        (vec!["…".repeat(12), "y".to_owned()], true),
        (vec![format!("{}…", "x".repeat(44))], false), // 48 bytes of text, a backslash, and the character itself
    ] {
        let scope = Scope::new(&parts).unwrap();
        let cut = cut || scope.to_string().len() > 48;
        drop(acquire(&engine, &Request::new(&scope, "k").unwrap()));
        let seen = block_on(engine.inspect(&scope, "k")).unwrap().unwrap().scope;
        assert!(seen.len() <= 48, "{seen}");
        assert_eq!(seen.ends_with('…') && !seen.ends_with(r"\…"), cut, "{seen}");
        let read = seen.parse::<Scope>();
        assert_eq!(read, if cut { Err(KeyError::Cut) } else { Ok(scope.clone()) }, "{seen}");
        assert_eq!(Filter::new().scope(&scope).is_err(), cut || scope.to_string().len() > 44);
        if cut {
            let kept = seen.strip_suffix('…').unwrap();
            assert!(
                scope.to_string().starts_with(kept) && (kept.ends_with(',') || kept.parse::<Scope>().is_ok()),
                "{seen}"
            );
        }
    }
    assert_eq!(r"a\b".parse::<Scope>(), Err(KeyError::Escape { what: "scope", at: 1 }));
    assert_eq!(r"ab\".parse::<Scope>(), Err(KeyError::Escape { what: "scope", at: 2 }));
    assert_eq!("a,,b".parse::<Scope>(), Err(KeyError::Empty { what: "scope" }));
    assert_eq!("".parse::<Scope>(), Err(KeyError::Empty { what: "scope" }));
}

/// A filter that matches a scope matches every scope that starts with its parts, however long, or
/// is refused.
#[test]
fn a_filter_misses_no_scope_that_is_shown_cut() {
    for length in 40..=48 {
        let tenant = "t".repeat(length);
        let (_, _, engine) = setup();
        reported(&engine, &Request::new([tenant.as_str(), "charges of this tenant"], "k").unwrap());
        match Filter::new().scope([tenant.as_str()]) {
            Ok(filter) => assert_eq!(scopes(&engine, &filter).len(), 1, "{length}"),
            Err(error) => assert!(error == KeyError::Cut && length > 44, "{length}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn s7_every_scope_and_key_reads_back_from_what_is_shown(
        parts in vec(r"[a,/\\…é]{1,9}", 1..5),
        other in vec(r"[a,/\\…é]{1,9}", 1..5),
        key in vec(any::<u8>(), 1..255),
    ) {
        let (scope, another) = (Scope::new(&parts).unwrap(), Scope::new(&other).unwrap());
        prop_assert_eq!(scope.to_string().parse(), Ok(scope.clone()));
        prop_assert_eq!(scope.to_string() == another.to_string(), parts == other);
        let key = Key::from_bytes(&key).unwrap();
        prop_assert_eq!(key.to_typed().parse::<Key>(), Ok(key));
    }
}

#[test]
fn s7_binary_keys_meet_no_text() {
    let id = |key: Key| RecordId::new(&Scope::try_from("s").unwrap(), &key);
    let text = |key: &str| Key::try_from(key).unwrap();
    let binary = Key::from_bytes(b"\x00\xff").unwrap();
    assert_eq!(binary.to_typed(), r"\x00ff");
    assert_eq!((binary.as_bytes(), binary.as_str()), (&b"\x00\xff"[..], None));
    for other in [r"\x00ff", "x00ff", "00ff", r"\\x00ff", "\u{fffd}"] {
        assert_ne!(id(text(other)), id(binary.clone()), "{other}");
        assert_eq!(text(other).to_typed().parse(), Ok(text(other)));
        assert_eq!(Key::from_bytes(other.as_bytes()), Ok(text(other)));
    }
    // Text has no control characters: "a\n" is accepted as bytes, and refused as text.
    assert_eq!(Key::from_bytes(b"a\n").unwrap().to_typed(), r"\x610a");
    assert!(Key::try_from("a\n").is_err());
    // A text has only one typed form.
    for wrong in [r"\x6161", r"\x", r"\x0", r"\xzz", r"\a", r"\"] {
        assert!(wrong.parse::<Key>().is_err(), "{wrong}");
    }
    assert_eq!(Key::from_bytes(b""), Err(KeyError::Empty { what: "key" }));
    assert_eq!(Key::from_bytes(&[0; 256]), Err(KeyError::TooLong { what: "key", bytes: 256 }));
    assert!(!format!("{binary:?}").contains("00ff"));
}

/// The longest binary key, kept readable: in the store, in an inspection and in a token.
#[test]
fn a_binary_key_is_kept_and_shown_as_it_is_typed() {
    let store = MemoryStore::new();
    let engine = Engine::builder(store).keep_keys(true).build().unwrap();
    let key = Key::from_bytes(&[0xfe; 255]).unwrap();
    let lease = acquire(&engine, &Request::new("s", &key).unwrap());
    let token = serde_json::from_str(&serde_json::to_string(&lease.token()).unwrap()).unwrap();
    let resumed = block_on(engine.resume(&token)).unwrap();
    block_on(resumed.complete("done")).unwrap();
    let seen = block_on(engine.inspect("s", &key)).unwrap().unwrap();
    assert_eq!(seen.key.unwrap().parse(), Ok(key));
}

#[test]
fn a_record_id_reads_back_from_what_is_shown() {
    let (_, _, engine) = setup();
    let request = request("s", "k");
    let lease = acquire(&engine, &request);
    let id = request.id();
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_eq!(format!("{id:?}").parse(), Ok(id));
    for wrong in ["", "12", &"z".repeat(64), &"0".repeat(66), "RecordId(", "RecordId()"] {
        assert_eq!(wrong.parse::<RecordId>(), Err(KeyError::Id), "{wrong}");
    }
    assert_eq!(block_on(engine.inspect_id(&id)).unwrap(), block_on(engine.inspect("s", "k")).unwrap());
    assert_eq!(engine.derive_key(&id, "psp"), lease.derive_key("psp"));
    block_on(lease.complete_with_head(b"head", "done")).unwrap();
    assert_eq!(block_on(engine.content_id(&id)).unwrap().unwrap().response.unwrap(), "done");
    assert_eq!(block_on(engine.inspect_id(&id)).unwrap().unwrap().head_bytes, Some(4));
}

#[test]
fn an_inspection_says_why_no_caller_may_execute_and_until_when_it_is_kept() {
    let (clock, store, engine) = setup();
    let two = Engine::builder(store).clock(clock.clone()).max_attempts(2).build().unwrap();
    let seen = |engine: &Engine, key: &str| block_on(engine.inspect("s", key)).unwrap().unwrap();
    let marked = acquire(&engine, &request("s", "marked"));
    block_on(marked.mark_effect()).unwrap();
    let running = seen(&engine, "marked");
    assert_eq!((running.unresolved, running.reason(), running.resolved), (false, None, false));
    assert_eq!(running.recovery, Some(Recovery::RerunUnlessEffect));
    drop(acquire(&engine, &request("s", "never").recovery(Recovery::Never)));
    let rerun = acquire(&engine, &request("s", "rerun").recovery(Recovery::Rerun));
    block_on(rerun.mark_effect()).unwrap();
    drop(acquire(&engine, &request("s", "crashed")));
    reported(&engine, &request("s", "reported"));
    for _ in 0..2 {
        block_on(acquire(&engine, &request("s", "twice")).fail("", Retry::Now)).unwrap();
    }
    clock.advance(31 * SECOND);
    for (key, unresolved, reason) in [
        ("marked", true, Some(Reason::EffectMarked)),
        ("never", false, Some(Reason::CrashedAttempt)),
        ("rerun", false, None),
        ("crashed", false, None),
        ("reported", true, Some(Reason::Reported)),
        ("twice", false, None),
    ] {
        let found = seen(&engine, key);
        assert_eq!((found.unresolved, found.reason()), (unresolved, reason), "{key}");
        assert_eq!(found.kept_for > 80 * DAY, unresolved, "{key}");
    }
    assert_eq!(seen(&two, "twice").reason(), Some(Reason::AttemptsExhausted));
    let found = seen(&engine, "marked");
    assert!(found.stamp > found.fence);
    block_on(engine.resolve("s", "marked", found.fence, Resolution::Completed(body("done")))).unwrap();
    let settled = seen(&engine, "marked");
    assert_eq!((settled.resolved, settled.unresolved, settled.reason()), (true, false, None));
    assert!(settled.stamp > found.stamp);
}

#[test]
fn the_inspection_of_a_scanned_record_is_that_of_its_key() {
    let (clock, store, engine) = setup();
    block_on(acquire(&engine, &request("s", "done")).complete("x")).unwrap();
    reported(&engine, &request("s", "reported"));
    let page = block_on(store.scan(None, 10)).unwrap();
    assert_eq!(page.records.len(), 2);
    for (id, record) in &page.records {
        let known = block_on(engine.inspect_id(id)).unwrap();
        assert_eq!(engine.inspection(record.clone(), page.now), known);
        assert!(known.is_some());
    }
    clock.advance(100 * DAY);
    let now = block_on(store.load(&page.records[0].0)).unwrap().now;
    assert!(page.records.into_iter().all(|(_, record)| engine.inspection(record, now).is_none()));
}

// Filters

#[test]
fn unfinished_operations_are_chosen_by_need_scope_reason_and_age() {
    let (clock, _, engine) = setup();
    reported(&engine, &request("acct_4,charges", "k"));
    clock.advance(60 * SECOND);
    for scope in ["acct_42,charges", "acct_42,refunds", "acct_421", r"acct_42\,x"] {
        reported(&engine, &request(scope, "k"));
    }
    block_on(acquire(&engine, &request("acct_42,marked", "k")).mark_effect()).unwrap();
    drop(acquire(&engine, &request("retry", "crashed")));
    drop(acquire(&engine, &request("never", "k").recovery(Recovery::Never)));
    block_on(acquire(&engine, &request("retry", "failed")).fail("", Retry::Now)).unwrap();
    block_on(acquire(&engine, &request("done", "k")).complete("")).unwrap();
    clock.advance(31 * SECOND);
    drop(acquire(&engine, &request("running", "k")));
    block_on(acquire(&engine, &request("running", "marked")).mark_effect()).unwrap();

    let all = Filter::new();
    let evidence = ["acct_42,charges", "acct_42,marked", "acct_42,refunds", "acct_421", "acct_42\\,x"];
    let mut evidence = [&["acct_4,charges"], &evidence[..]].concat();
    evidence.sort();
    assert_eq!(scopes(&engine, &all).len(), evidence.len() + 3);
    assert_eq!(scopes(&engine, &all.clone().need(Need::Settling)), evidence);
    let operator = [&evidence[..], &["never"]].concat();
    assert_eq!(scopes(&engine, &all.clone().need(Need::Operator)), operator);
    assert_eq!(scopes(&engine, &all.clone().need(Need::Retry)), ["retry", "retry"]);
    let within = |scope: &[&str]| scopes(&engine, &Filter::new().scope(scope).unwrap());
    assert_eq!(within(&["acct_42"]), ["acct_42,charges", "acct_42,marked", "acct_42,refunds"]);
    assert_eq!(within(&["acct_42", "charges"]), ["acct_42,charges"]);
    assert_eq!(within(&["acct_42,x"]), [r"acct_42\,x"]);
    assert_eq!(within(&["acct"]), [""; 0]);
    assert_eq!(scopes(&engine, &all.clone().scope_starts_with("acct_42")).len(), 5);
    let by = |reason| scopes(&engine, &Filter::new().reason(reason));
    assert_eq!(by(Reason::EffectMarked), ["acct_42,marked"]);
    assert_eq!(by(Reason::CrashedAttempt), ["never"]);
    assert_eq!(by(Reason::Reported).len(), 5);
    assert_eq!(scopes(&engine, &all.clone().older_than(60 * SECOND)), ["acct_4,charges"]);
    assert_eq!(block_on(engine.unresolved_count()).unwrap(), evidence.len() as u64);
}

/// Unresolved operations are found without a walk over the others.
#[test]
fn l5_what_is_unresolved_is_listed_without_a_walk() {
    let (clock, store, _) = setup();
    let store = FaultyStore::with_clock(store, clock.clone());
    let engine = Engine::builder(store.clone()).clock(clock).build().unwrap();
    for key in 0..100 {
        block_on(acquire(&engine, &request("done", &key.to_string())).complete("")).unwrap();
    }
    reported(&engine, &request("s", "k"));
    assert!(store.finds_unsettled());
    let before = store.calls();
    assert_eq!(block_on(engine.unresolved_count()).unwrap(), 1);
    let settling = Filter::new().need(Need::Settling);
    let page = block_on(engine.unfinished_by(&settling, None, 2)).unwrap();
    assert_eq!((page.operations.len(), page.next), (1, None));
    assert_eq!(store.calls() - before, 2);
}

// Changes

#[test]
fn many_are_resolved_as_a_dry_run_foretold() {
    let (_, _, engine) = setup();
    for at in 0..7 {
        reported(&engine, &request("lost", &at.to_string()));
        reported(&engine, &request("other", &at.to_string()));
    }
    block_on(acquire(&engine, &request("lost", "retried")).fail("", Retry::Now)).unwrap();
    let lost = Filter::new().scope("lost").unwrap();
    let all = |bulk| {
        let (mut done, mut after) = (Vec::new(), None);
        loop {
            let done_so = Resolution::Completed(body("by hand"));
            let page = block_on(engine.resolve_many(&lost, &done_so, bulk, after.as_ref(), 4)).unwrap();
            assert!(page.refused.is_empty() && page.done.len() <= 4);
            done.extend(page.done.into_iter().map(|operation| operation.id));
            after = page.next;
            if after.is_none() {
                return done;
            }
        }
    };
    let foretold = all(Bulk::DryRun);
    assert_eq!(foretold.len(), 7, "what may simply be retried is left alone");
    assert_eq!(block_on(engine.unresolved_count()).unwrap(), 14);
    assert_eq!(all(Bulk::Apply), foretold);
    assert_eq!(block_on(engine.unresolved_count()).unwrap(), 7);
    assert!(matches!(block_on(engine.begin(&request("lost", "0"))), Ok(Begin::Completed(_))));
    assert!(matches!(block_on(engine.begin(&request("other", "0"))), Ok(Begin::Unresolved(_))));
    assert_eq!(acquire(&engine, &request("lost", "retried")).attempt(), 2);
    assert!(all(Bulk::Apply).is_empty());
}

/// A store whose listings are stale: the records have changed since.
#[derive(Debug)]
struct Stale {
    inner: MemoryStore,
    page: nevertwice::store::Page,
}

#[nevertwice::store::async_trait]
impl Store for Stale {
    async fn load(&self, id: &RecordId) -> Result<nevertwice::store::Snapshot, StoreError> {
        self.inner.load(id).await
    }

    async fn swap(
        &self,
        swap: &nevertwice::store::SwapRequest,
    ) -> Result<nevertwice::store::Swap, StoreError> {
        self.inner.swap(swap).await
    }

    async fn scan(
        &self,
        _: Option<&nevertwice::Cursor>,
        _: usize,
    ) -> Result<nevertwice::store::Page, StoreError> {
        Ok(self.page.clone())
    }
}

#[test]
fn s3_what_changed_since_it_was_listed_is_refused_in_bulk() {
    let (clock, store, engine) = setup();
    let late = acquire(&engine, &request("s", "late"));
    let gone = acquire(&engine, &request("s", "gone"));
    let lost = acquire(&engine, &request("s", "lost"));
    for lease in [&late, &gone, &lost] {
        block_on(lease.mark_effect()).unwrap();
    }
    clock.advance(31 * SECOND);
    let page = block_on(store.scan(None, 10)).unwrap();
    block_on(late.complete("after all")).unwrap();
    assert!(block_on(engine.forget("s", "gone")).unwrap());
    drop(acquire(&engine, &request("s", "gone")));
    let stale = Stale { inner: store, page };
    let stale = Engine::builder(stale).clock(clock).build().unwrap();
    let all = Filter::new();
    for which in 0..2 {
        let page = match which {
            0 => block_on(stale.forget_many(&all, Bulk::Apply, None, 10)).unwrap(),
            _ => block_on(stale.resolve_many(&all, &Resolution::Rerun, Bulk::Apply, None, 10)).unwrap(),
        };
        let done: Vec<RecordId> = page.done.iter().map(|operation| operation.id).collect();
        assert_eq!(done, if which == 0 { vec![request("s", "lost").id()] } else { vec![] });
        for refused in page.refused {
            assert!(matches!(refused.error, Error::NotResolvable { .. }), "{}", refused.error);
        }
    }
    assert!(matches!(block_on(engine.begin(&request("s", "late"))), Ok(Begin::Completed(_))));
    assert!(matches!(block_on(engine.begin(&request("s", "gone"))), Ok(Begin::InProgress(_))));
    assert_eq!(acquire(&engine, &request("s", "lost")).attempt(), 1);
}

/// The fence stays while the holder goes on, fails, and while another operator settles.
#[test]
fn s2_an_operation_that_changed_since_it_was_shown_is_not_settled() {
    let (clock, _, engine) = setup();
    let request = request("s", "k");
    let lease = acquire(&engine, &request);
    let seen = || block_on(engine.inspect_id(&request.id())).unwrap().unwrap();
    let settle = |shown: &Inspection, resolution: &Resolution| {
        block_on(engine.resolve_shown(&request.id(), shown, resolution.clone()))
    };
    let refused = |answer| matches!(answer, Err(Error::NotResolvable { .. }));
    let (done, rerun) = (Resolution::Completed(body("done")), Resolution::Rerun);
    clock.advance(31 * SECOND);
    let unmarked = seen();
    block_on(lease.mark_effect()).unwrap();
    clock.advance(31 * SECOND);
    assert!(refused(settle(&unmarked, &rerun)), "it was marked since");
    let marked = seen();
    block_on(lease.fail("no effect", Retry::Now)).unwrap();
    assert!(refused(settle(&marked, &done)), "it failed since, without an effect");
    assert_eq!((seen().fence, seen().resolved), (marked.fence, false));
    let failed = seen();
    settle(&failed, &rerun).unwrap();
    settle(&failed, &rerun).unwrap(); // repeating it is safe
    assert!(refused(settle(&failed, &done)), "another operator settled it since");
    assert!(matches!(block_on(engine.begin(&request)), Ok(Begin::Acquired(_))));
}

#[test]
fn an_operators_word_is_amended_by_the_stamp_shown() {
    let (clock, _, engine) = setup();
    let request = request("s", "k");
    let lease = acquire(&engine, &request);
    block_on(lease.fail("?", Retry::Unresolved)).unwrap();
    let seen = || block_on(engine.inspect("s", "k")).unwrap().unwrap();
    let amend = |stamp, amendment: Amendment| block_on(engine.amend("s", "k", stamp, amendment));
    let (right, wrong) = (Resolution::Completed(body("right")), Resolution::Failed(body("wrong")));
    // An outcome that no operator recorded cannot be amended.
    let early = amend(seen().stamp, wrong.clone().into());
    assert!(matches!(early, Err(Error::NotAmendable { .. })), "{early:?}");
    block_on(engine.resolve("s", "k", lease.fence(), wrong.clone())).unwrap();
    let shown = seen();
    assert!(shown.resolved && shown.state == StateKind::Failed);
    // Neither the fence of a resolution nor an outdated stamp is accepted.
    let again = block_on(engine.resolve("s", "k", lease.fence(), right.clone()));
    assert!(matches!(again, Err(Error::NotResolvable { .. })), "{again:?}");
    assert!(matches!(amend(shown.fence, right.clone().into()), Err(Error::NotAmendable { .. })));
    let silent = amend(shown.stamp, Resolution::Rerun.into());
    assert!(matches!(silent, Err(Error::RerunNotMeant)), "{silent:?}");
    amend(shown.stamp, right.clone().into()).unwrap();
    amend(shown.stamp, right.into()).unwrap(); // the same word, its answer lost
    let Ok(Begin::Completed(done)) = block_on(engine.begin(&request)) else { panic!() };
    assert_eq!(done.response().unwrap(), "right");
    assert!(matches!(amend(shown.stamp, wrong.into()), Err(Error::NotAmendable { .. })));
    clock.advance(SECOND);
    amend(seen().stamp, Amendment::rerun()).unwrap();
    let lease = acquire(&engine, &request);
    block_on(lease.complete("done")).unwrap();
    let late = amend(seen().stamp, Amendment::rerun());
    assert!(matches!(late, Err(Error::NotAmendable { .. })), "an application's outcome stands");
    assert!(late.unwrap_err().to_string().starts_with("nothing to amend under this stamp"));
}

#[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Declined {
    code: u32,
}

impl Failure for Declined {
    fn retry(&self) -> Retry {
        Retry::Never
    }
}

#[test]
fn a_typed_resolution_is_what_run_reads() {
    let (_, _, engine) = setup();
    let run =
        |request: &Request| block_on(engine.run(request, |_| async { Ok::<String, Declined>("ran".into()) }));
    let (good, bad) = (request("s", "good"), request("s", "bad"));
    for (request, resolution) in [
        (&good, Resolution::completed("by hand").unwrap()),
        (&bad, Resolution::failed(&Declined { code: 7 }).unwrap()),
    ] {
        let lease = acquire(&engine, request);
        block_on(lease.fail("null", Retry::Unresolved)).unwrap();
        block_on(engine.resolve_id(&request.id(), lease.fence(), resolution)).unwrap();
    }
    assert_eq!(run(&good).unwrap().into_value(), "by hand");
    match run(&bad) {
        Err(RunError::Failed { error, replayed: true, .. }) => assert_eq!(error, Declined { code: 7 }),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_resolution_over_the_limit_is_refused_and_not_cut() {
    let clock = ManualClock::new();
    let engine = Engine::builder(MemoryStore::new()).clock(clock).max_response(4).build().unwrap();
    let request = request("s", "k");
    let lease = acquire(&engine, &request);
    block_on(lease.fail("?", Retry::Unresolved)).unwrap();
    let long_head = Body::kept("".into()).with_head(&[0; Body::MAX_HEAD + 1]);
    for long in [
        Resolution::Completed(body("12345")),
        Resolution::Failed(body("12345")),
        Resolution::Completed(long_head),
    ] {
        let one = block_on(engine.resolve("s", "k", lease.fence(), long.clone()));
        assert!(matches!(one, Err(Error::TooLarge { .. })), "{one:?}");
        let many = block_on(engine.resolve_many(&Filter::new(), &long, Bulk::DryRun, None, 9));
        assert!(matches!(many, Err(Error::TooLarge { .. })), "{many:?}");
        let amended = block_on(engine.amend("s", "k", lease.fence(), long));
        assert!(matches!(amended, Err(Error::TooLarge { .. })), "{amended:?}");
    }
    let fits = Resolution::Completed(body("1234"));
    block_on(engine.resolve("s", "k", lease.fence(), fits)).unwrap();
}

// Evidence that expires unsettled

#[test]
fn evidence_that_expires_is_counted_by_the_purge_after_it() {
    let (clock, store, engine) = setup();
    for key in 0..3 {
        reported(&engine, &request("s", &key.to_string()));
        block_on(acquire(&engine, &request("done", &key.to_string())).complete("")).unwrap();
    }
    clock.advance(2 * DAY);
    let purge = block_on(store.purge(100)).unwrap();
    assert_eq!((purge.removed, purge.unsettled), (3, 0));
    clock.advance(100 * DAY);
    // New records make room for themselves: the records that they remove are counted too.
    for key in 0..1000 {
        drop(acquire(&engine, &request("new", &key.to_string())));
    }
    let purge = block_on(store.purge(100)).unwrap();
    assert_eq!((purge.unsettled, block_on(engine.unresolved_count()).unwrap()), (3, 0));
    assert!(purge.removed < 3);
    assert_eq!(block_on(store.purge(100)).unwrap().unsettled, 0);
}

#[test]
fn a_full_store_says_how_many_are_unresolved() {
    let clock = ManualClock::new();
    let store = MemoryStore::builder().max_records(5).max_records_per_scope(3).clock(clock.clone()).build();
    let engine = Engine::builder(store).clock(clock).build().unwrap();
    reported(&engine, &request("s", "a"));
    let marked = acquire(&engine, &request("s", "b"));
    block_on(marked.mark_effect()).unwrap();
    drop(acquire(&engine, &request("s", "c")));
    let full = |request| match block_on(engine.begin(&request)) {
        Err(Error::Store(full @ StoreError::Full { .. })) => full.to_string(),
        other => panic!("{other:?}"),
    };
    let quota = full(request("s", "d"));
    assert!(quota.contains("3 records of 3 for one scope; 2 in the store have"), "{quota}");
    for key in ["a", "b"] {
        drop(acquire(&engine, &request("t", key)));
    }
    let all = full(request("t", "c"));
    assert!(
        all.contains("5 records of 5") && all.contains("; 2 in the store have an effect marked"),
        "{all}"
    );
    // Once they are settled, none is left.
    let settling = Filter::new().need(Need::Settling);
    let done = Resolution::Completed(body(""));
    block_on(engine.resolve_many(&settling, &done, Bulk::Apply, None, 9)).unwrap();
    block_on(marked.complete("")).unwrap();
    assert!(!full(request("t", "c")).contains("in the store"));
}

// Batches

#[test]
fn batches_renew_mark_and_fail_each_for_itself() {
    let (clock, store, engine) = setup();
    let requests: Vec<Request> = (0..4).map(|key| request("s", &key.to_string())).collect();
    let leases: Vec<Lease> = block_on(engine.begin_many(&requests)).into_iter().map(granted).collect();
    let held: Vec<&Lease> = leases.iter().collect();
    block_on(leases[3].release()).unwrap();
    clock.advance(20 * SECOND);
    let is_ok = |results: Vec<Result<(), Error>>| results.iter().map(Result::is_ok).collect::<Vec<_>>();
    assert_eq!(is_ok(block_on(engine.renew_many(&held))), [true, true, true, false]);
    assert_eq!(leases[0].remaining(), 30 * SECOND);
    assert_eq!(is_ok(block_on(engine.mark_effect_many(&held[1..]))), [true, true, false]);
    assert_eq!(
        held.iter().map(|lease| lease.effect_marked()).collect::<Vec<_>>(),
        [false, true, true, false]
    );
    // Another caller took the first, which was not marked.
    clock.advance(31 * SECOND);
    drop(acquire(&engine, &requests[0]));
    let outcomes: Vec<_> = held.iter().map(|lease| (*lease, "no".into(), Retry::Never)).collect();
    assert_eq!(is_ok(block_on(engine.fail_many(&outcomes))), [false, true, true, false]);
    assert!(leases[0].is_lost());
    assert!(matches!(block_on(engine.begin(&requests[1])), Ok(Begin::Failed(_))));
    // Another store's leases are refused before anything is sent.
    let named = Engine::builder(Named(store)).build().unwrap();
    for result in block_on(named.complete_many(&[(&leases[1], "".into())])) {
        assert!(matches!(result, Err(Error::WrongStore { .. })), "{result:?}");
    }
}

/// A store whose name differs from the memory store's.
#[derive(Debug)]
struct Named(MemoryStore);

#[nevertwice::store::async_trait]
impl Store for Named {
    async fn load(&self, id: &RecordId) -> Result<nevertwice::store::Snapshot, StoreError> {
        panic!("nothing is looked up under {id}")
    }

    async fn swap(
        &self,
        swap: &nevertwice::store::SwapRequest,
    ) -> Result<nevertwice::store::Swap, StoreError> {
        panic!("nothing of {:?} is written under {}", self.0, swap.id)
    }

    fn name(&self) -> &'static str {
        "named"
    }
}

#[test]
fn s10_a_request_that_could_not_be_made_is_answered_in_its_place() {
    let (clock, store, _) = setup();
    let store = FaultyStore::with_clock(store, clock.clone());
    let engine = Engine::builder(store.clone()).clock(clock).build().unwrap();
    let messages: [&[u8]; 4] = [b"a", b"", b"\xff\x00", b"a"];
    let requests = messages.map(|id| Key::from_bytes(id).and_then(|id| Request::new("orders", id)));
    let begins = block_on(engine.try_begin_many(requests));
    assert!(matches!(
        begins[..],
        [
            Ok(Begin::Acquired(_)),
            Err(Error::Key(KeyError::Empty { .. })),
            Ok(Begin::Acquired(_)),
            Ok(Begin::InProgress(_))
        ]
    ));
    assert_eq!(store.calls(), 1, "one batch");
    store.from_call(2, Fault::FailBefore);
    assert!(block_on(engine.try_begin_many(std::iter::empty::<Result<Request, KeyError>>())).is_empty());
}

#[test]
fn a_verdict_never_asks_for_a_message_at_once() {
    let (clock, _, engine) = setup();
    let lease = acquire(&engine, &request("s", "k"));
    block_on(lease.fail("", Retry::After(Duration::from_nanos(1500)))).unwrap();
    let Ok(begin) = block_on(engine.begin(&request("s", "k"))) else { panic!() };
    assert_eq!(begin.verdict(), Verdict::Requeue(SECOND)); // a broker that counts in seconds is not told 0
    let Begin::Failed(failed) = begin else { panic!() };
    assert_eq!(failed.retry_after_secs(), Some(1));
    clock.advance(SECOND);
    let _lease = acquire(&engine, &request("s", "k"));
    clock.advance(30 * SECOND - Duration::from_micros(1));
    let Ok(busy) = block_on(engine.begin(&request("s", "k"))) else { panic!() };
    assert_eq!(busy.verdict(), Verdict::Requeue(SECOND));
}
