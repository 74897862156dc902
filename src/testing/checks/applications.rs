//! Checks of what applications and operators call: waiting, run, batches, handover, resolutions.

use super::*;

/// L4: every waiter of a key gets its outcome, byte for byte, and none of them executes.
pub async fn l4_waiters_get_the_outcome(store: Shared) {
    let engine = engine(&store);
    let request = request("awaited");
    let lease = acquire(&engine, &request).await;
    let waits = join_all((0..50).map(|_| engine.begin_or_wait(&request, LONG)));
    let work = async {
        lease.renew().await.unwrap();
        lease.complete("the outcome").await.unwrap();
    };
    let (answers, ()) = futures_util::future::join(waits, work).await;
    for answer in answers {
        match answer.unwrap() {
            Begin::Completed(done) => assert_eq!(done.response().unwrap(), "the outcome"),
            other => panic!("{other:?}"),
        }
    }
}

/// L4: when the holder fails and allows an immediate retry, one of the waiters is granted.
pub async fn l4_one_waiter_goes_on_after_a_failure(store: Shared) {
    let engine = engine(&store);
    let request = request("awaited");
    let lease = acquire(&engine, &request).await;
    let wait = async || match engine.begin_or_wait(&request, LONG).await.unwrap() {
        Begin::Acquired(lease) => {
            assert_eq!(lease.attempt(), 2);
            lease.complete("the second").await.unwrap();
            1
        }
        Begin::Completed(_) => 0,
        other => panic!("{other:?}"),
    };
    let waits = join_all((0..20).map(|_| wait()));
    let (granted, failed) = futures_util::future::join(waits, lease.fail("again", Retry::Now)).await;
    failed.unwrap();
    assert_eq!(granted.iter().sum::<usize>(), 1);
}

/// L3: a holder whose lease expired knows it before another caller is granted, and for good once
/// one has been.
pub async fn l3_a_holder_that_was_overtaken_knows(store: Shared) {
    let engine = engine(&store);
    let request = request("overtaken");
    let zombie = crash(&engine, &store, &request).await;
    assert!(zombie.is_lost() && zombie.remaining().is_zero());
    zombie.lost().await;
    // No caller has taken it yet: the holder can still renew it.
    zombie.renew().await.unwrap();
    let successor = match engine.begin_or_wait(&request, LONG).await.unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    };
    assert!(successor.takeover() && !successor.is_lost());
    assert_eq!(lost(zombie.mark_effect().await), StateKind::InProgress);
    assert!(zombie.is_lost());
    zombie.lost().await;
    successor.complete("done").await.unwrap();
    assert!(!successor.is_lost());
}

/// Of many concurrent runs of one operation, one executes and all get its value; a failure is
/// replayed too.
pub async fn run_executes_once(store: Shared) {
    #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Declined(String);
    impl Failure for Declined {
        fn retry(&self) -> Retry {
            Retry::Never
        }
    }
    let engine = engine(&store);
    for (key, result) in [("good", Ok(4200_u64)), ("bad", Err(()))] {
        let (executions, request) = (AtomicUsize::new(0), request(key));
        let run = || {
            engine.run(&request, |lease| {
                executions.fetch_add(1, Ordering::SeqCst);
                async move {
                    lease.mark_effect().await.unwrap();
                    result.map_err(|()| Declined("no".to_owned()))
                }
            })
        };
        for ran in join_all((0..30).map(|_| run())).await.into_iter().chain([run().await]) {
            match ran {
                Ok(outcome) => assert_eq!((key, outcome.into_value()), ("good", 4200)),
                Err(RunError::Failed { error, .. }) => {
                    assert_eq!((key, error), ("bad", Declined("no".to_owned())));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(executions.load(Ordering::SeqCst), 1);
    }
}

/// S11: batches of begins and completions are answered in order, with any mix of keys, and can be
/// repeated and dropped.
pub async fn s11_batches_are_whole_or_can_be_repeated(store: Shared) {
    let engine = engine(&store);
    acquire(&engine, &request("batch done")).await.complete("before").await.unwrap();
    drop(crash(&engine, &store, &request("batch crashed")).await);
    let owner = Owner::random().unwrap();
    let mut requests: Vec<_> = (0..100).map(|key| request(&format!("batch {key}")).owner(owner)).collect();
    requests.push(request("batch done"));
    requests.push(request("batch 7"));
    requests.push(request("batch crashed"));
    for awaits in 0..3 {
        drop(dropped_at(awaits, engine.begin_many(&requests[..100])).await);
    }
    let begins = engine.begin_many(&requests).await;
    let mut leases = Vec::new();
    for (at, begin) in begins.into_iter().enumerate() {
        match (at, begin.unwrap()) {
            (0..100, Begin::Acquired(lease)) => {
                assert_eq!(lease.attempt(), 1);
                leases.push(lease);
            }
            (100, Begin::Completed(done)) => assert_eq!(done.response().unwrap(), "before"),
            (101, Begin::InProgress(_)) => {}
            (102, Begin::Acquired(lease)) => assert!(lease.takeover()),
            other => panic!("{other:?}"),
        }
    }
    let outcomes: Vec<_> =
        leases.iter().enumerate().map(|(at, lease)| (lease, Bytes::from(at.to_string()))).collect();
    for awaits in 0..3 {
        drop(dropped_at(awaits, engine.complete_many(&outcomes)).await);
    }
    for result in engine.complete_many(&outcomes).await {
        result.unwrap();
    }
    for (at, begin) in engine.begin_many(&requests[..100]).await.into_iter().enumerate() {
        match begin.unwrap() {
            Begin::Completed(done) => assert_eq!(*done.response().unwrap(), at.to_string()),
            other => panic!("{other:?}"),
        }
    }
}

/// Attempts are counted, and when they are used up the key is left to an operator; each resolution
/// has its effect.
pub async fn an_operator_settles_what_is_unresolved(store: Shared) {
    let engine = engine(&store);
    for resolution in [Resolution::Completed(body("done")), Resolution::Failed(body("no")), Resolution::Rerun]
    {
        let key = format!("{resolution:?}");
        let request = request(&key).max_attempts(2);
        for attempt in 1..=2 {
            let lease = acquire(&engine, &request).await;
            assert_eq!(lease.attempt(), attempt);
            lease.fail("again", Retry::Now).await.unwrap();
        }
        let (why, fence) = reason(&engine, &request).await;
        assert_eq!(why, Reason::AttemptsExhausted);
        let resolve = |fence| engine.resolve("checks", key.as_str(), fence, resolution.clone());
        assert!(matches!(resolve(fence.next()).await, Err(Error::NotResolvable { .. })));
        resolve(fence).await.unwrap();
        resolve(fence).await.unwrap();
        match (engine.begin(&request).await.unwrap(), &resolution) {
            (Begin::Completed(done), Resolution::Completed(_)) => {
                assert_eq!(done.response().unwrap(), "done")
            }
            (Begin::Failed(failed), Resolution::Failed(_)) => assert_eq!(failed.error().unwrap(), "no"),
            (Begin::Acquired(lease), Resolution::Rerun) => assert_eq!(lease.attempt(), 1),
            other => panic!("{other:?}"),
        }
    }
    let lease = acquire(&engine, &request("running")).await;
    let early = engine.resolve("checks", "running", lease.fence(), Resolution::Rerun).await;
    assert!(matches!(early, Err(Error::NotResolvable { .. })), "its lease runs");
}

/// Store: every record that is evidence is listed, page by page, and no other counts as evidence.
pub async fn what_is_unresolved_is_found_and_counted(store: Shared) {
    let engine = engine(&store);
    let mut expected = BTreeSet::new();
    for at in 0..5 {
        let requests =
            ["marked", "unresolved", "settled", "plain"].map(|kind| request(&format!("{kind} {at}")));
        for request in &requests[..3] {
            acquire(&engine, &request.clone().lease(SHORT)).await.mark_effect().await.unwrap();
            until_over(&store, &request.id(), SHORT).await;
        }
        let lease = acquire(&engine, &requests[3]).await;
        lease.complete("done").await.unwrap();
        let reported = acquire(&engine, &request(&format!("reported {at}"))).await;
        reported.fail("?", Retry::Unresolved).await.unwrap();
        let (_, fence) = reason(&engine, &requests[2]).await;
        engine.resolve_id(&requests[2].id(), fence, Resolution::Completed(body("done"))).await.unwrap();
        expected.extend([requests[0].id(), requests[1].id(), request(&format!("reported {at}")).id()]);
    }
    let (mut found, mut after) = (BTreeSet::new(), None);
    loop {
        let page = match store.unsettled(after.as_ref(), 2).await {
            Ok(page) => page,
            Err(StoreError::Unusable { .. }) if after.is_none() && !store.finds_unsettled() => return,
            other => panic!("{other:?}"),
        };
        let unsettled = page.records.iter().filter(|(_, record)| record.is_unsettled(page.now));
        found.extend(unsettled.map(|(id, _)| *id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, expected);
    // A store may list a record more than once, where its server does.
    assert!(engine.unresolved_count().await.unwrap() >= expected.len() as u64);
}

/// A lease handed over by its token is renewed and finished elsewhere; the first holder's finish is
/// then a repetition.
pub async fn a_lease_is_handed_over_by_its_token(store: Shared) {
    let here = engine(&store);
    let there = engine(&store);
    let lease = acquire(&here, &request("handed over")).await;
    lease.save_checkpoint("page 3").await.unwrap();
    let token = serde_json::from_str(&serde_json::to_string(&lease.token()).unwrap()).unwrap();
    let resumed = there.resume(&token).await.unwrap();
    assert_eq!(resumed.checkpoint().unwrap(), "page 3");
    assert_eq!((resumed.fence(), resumed.attempt()), (lease.fence(), 1));
    assert_eq!(resumed.derive_key("psp"), lease.derive_key("psp"));
    resumed.renew().await.unwrap();
    // The first holder knows only an older stamp: a conflict shows it the new one, and it
    // continues.
    lease.renew().await.unwrap();
    resumed.complete("there").await.unwrap();
    lease.complete("there").await.unwrap();
    assert_eq!(response(&here, &request("handed over")).await, "there");
}

/// A response over the limit is replayed as done without a body, and never executed again.
pub async fn an_oversized_response_leaves_a_marker(store: Shared) {
    let engine = Engine::builder(store.clone()).max_response(8).build().unwrap();
    let lease = acquire(&engine, &request("big")).await;
    lease.complete("nine bytes").await.unwrap();
    lease.complete("nine bytes").await.unwrap();
    assert!(matches!(lease.complete("nine bytez").await, Err(Error::AlreadyFinished { .. })));
    match engine.begin(&request("big")).await.unwrap() {
        Begin::Completed(done) => assert_eq!(done.response(), None),
        other => panic!("{other:?}"),
    }
    assert_eq!(engine.inspect("checks", "big").await.unwrap().unwrap().body_bytes, Some(10));
}

/// An inspection shows an operator the state of an operation and none of its content.
pub async fn an_inspection_tells_the_state(store: Shared) {
    let engine = Engine::builder(store.clone()).holder("host-7").build().unwrap();
    let lease = acquire(&engine, &request("seen")).await;
    lease.save_checkpoint("12345").await.unwrap();
    lease.mark_effect().await.unwrap();
    let seen = engine.inspect("checks", "seen").await.unwrap().unwrap();
    assert_eq!((seen.state, seen.attempt, seen.fence), (StateKind::InProgress, 1, lease.fence()));
    assert_eq!((seen.checkpoint_bytes, seen.effect_marked, seen.key), (Some(5), true, None));
    assert!(seen.lease_remaining.unwrap() <= Duration::from_secs(30));
    assert!(seen.holder.as_deref() == Some("host-7") && seen.granted_ago >= seen.age);
    let content = engine.content("checks", "seen").await.unwrap().unwrap();
    assert_eq!((content.checkpoint.unwrap(), content.response), ("12345".into(), None));
    lease.complete("abc").await.unwrap();
    let content = engine.content("checks", "seen").await.unwrap().unwrap();
    assert_eq!((content.response.unwrap(), content.checkpoint), ("abc".into(), None));
    assert_eq!(engine.content("checks", "never").await.unwrap(), None);
    let seen = engine.inspect("checks", "seen").await.unwrap().unwrap();
    assert_eq!((seen.state, seen.body_bytes, seen.lease_remaining), (StateKind::Completed, Some(3), None));
    assert_eq!(seen.scope, "checks");
}
