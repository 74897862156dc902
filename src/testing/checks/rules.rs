//! Checks of the rules of begin and of leases, row by row.

use super::*;

/// A begin of an unused key gets attempt 1, without a checkpoint or a takeover.
pub async fn a_fresh_key_is_granted(store: Shared) {
    let lease = acquire(&engine(&store), &request("fresh")).await;
    assert_eq!((lease.attempt(), lease.takeover(), lease.checkpoint()), (1, false, None));
    assert!(lease.fence() > Stamp::ZERO);
    assert!(lease.remaining() > Duration::from_secs(20) && lease.remaining() <= Duration::from_secs(30));
}

/// S1: of many concurrent begins, one is granted; the others learn when to retry.
pub async fn s1_of_many_concurrent_begins_one_is_granted(store: Shared) {
    let engine = engine(&store);
    let request = request("race");
    let begins = join_all((0..32).map(|_| engine.begin(&request))).await;
    let mut granted = 0;
    for begin in begins {
        match begin.unwrap() {
            Begin::Acquired(_) => granted += 1,
            Begin::InProgress(busy) => assert!(busy.retry_after() <= Duration::from_secs(30)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(granted, 1);
}

/// S1: of many begins that find a crashed attempt, one takes over.
pub async fn s1_of_many_takeovers_one_is_granted(store: Shared) {
    let engine = engine(&store);
    let request = request("takeover race");
    drop(crash(&engine, &store, &request).await);
    let begins = join_all((0..32).map(|_| engine.begin(&request))).await;
    let granted = begins.iter().filter(|begin| matches!(begin, Ok(Begin::Acquired(_)))).count();
    assert_eq!(granted, 1);
}

/// S2: once completed, every begin gets the response byte for byte, after any later attempt to
/// change it.
pub async fn s2_an_outcome_is_immutable(store: Shared) {
    let engine = engine(&store);
    let request = request("done");
    let lease = acquire(&engine, &request).await;
    let receipt = Bytes::from_iter(0..=255_u8);
    lease.complete(receipt.clone()).await.unwrap();
    let again = engine.resume(&lease.token()).await.unwrap();
    for holder in [&lease, &again] {
        assert!(matches!(holder.complete("other").await, Err(Error::AlreadyFinished { .. })));
        assert!(matches!(holder.fail("other", Retry::Now).await, Err(Error::AlreadyFinished { .. })));
        for result in [holder.renew().await, holder.mark_effect().await, holder.save_checkpoint("c").await] {
            assert_eq!(lost(result), StateKind::Completed);
        }
        holder.complete(receipt.clone()).await.unwrap();
        assert_eq!(lost(holder.release().await), StateKind::Completed);
    }
    let resolved = engine.resolve("checks", "done", lease.fence(), Resolution::Rerun).await;
    assert!(matches!(resolved, Err(Error::NotResolvable { .. })));
    engine.purge(1000).await.unwrap();
    assert_eq!(response(&engine, &request).await, receipt);
}

/// S3: a holder whose key was taken over changes nothing, by any command, and learns that it lost.
pub async fn s3_stale_token_changes_nothing(store: Shared) {
    let engine = engine(&store);
    let request = request("zombie");
    let zombie = crash(&engine, &store, &request).await;
    let successor = acquire(&engine, &request).await;
    assert!(successor.takeover() && successor.fence() > zombie.fence());
    let before = store.load(&request.id()).await.unwrap().record;
    assert!(engine.resume(&zombie.token()).await.is_err());
    for result in [
        zombie.renew().await,
        zombie.mark_effect().await,
        zombie.save_checkpoint("late").await,
        zombie.complete("late").await,
        zombie.fail("late", Retry::Never).await,
        zombie.release().await,
    ] {
        assert_eq!(lost(result), StateKind::InProgress);
    }
    assert_eq!(store.load(&request.id()).await.unwrap().record, before);
    successor.complete("right").await.unwrap();
    assert_eq!(lost(zombie.release().await), StateKind::Completed);
    lost(zombie.complete("late").await);
    assert_eq!(response(&engine, &request).await, "right");
}

/// S3: a forged token, or one for another payload, changes nothing either.
pub async fn s3_a_forged_token_changes_nothing(store: Shared) {
    let engine = engine(&store);
    let lease = acquire(&engine, &request("forged")).await;
    let genuine = serde_json::to_value(lease.token()).unwrap();
    for (field, value) in [
        ("owner", serde_json::to_value(Owner::random().unwrap()).unwrap()),
        ("fingerprint", serde_json::to_value(Fingerprint::of("other")).unwrap()),
        ("fence", (lease.fence().0 - 1).into()),
        ("fence", (lease.fence().0 + 1).into()),
    ] {
        let mut forged = genuine.clone();
        forged[field] = value;
        let forged = serde_json::from_value(forged).unwrap();
        assert!(engine.resume(&forged).await.is_err(), "{field}");
    }
    lease.complete("genuine").await.unwrap();
}

/// S3: a token of another store is refused, and nothing is written, unless this store accepts that
/// identity as its own earlier one.
pub async fn s3_a_token_of_another_store_is_refused(store: Shared) {
    let here = engine(&store);
    let lease = acquire(&here, &request("elsewhere")).await;
    let before = store.load(&id("elsewhere")).await.unwrap().record;
    let other = StoreId::of("another store", &[b"checks"]);
    let mut json = serde_json::to_value(lease.token()).unwrap();
    json["store"] = serde_json::to_value(other).unwrap();
    let foreign: LeaseToken = serde_json::from_value(json).unwrap();
    match here.resume(&foreign).await {
        Err(Error::WrongStore { token, store }) => assert_eq!((token, store), (other, here.store_id())),
        result => panic!("{result:?}"),
    }
    assert_eq!(store.load(&id("elsewhere")).await.unwrap().record, before);
    // Not even where there is no record, which would be written.
    assert!(here.forget("checks", "elsewhere").await.unwrap());
    assert!(matches!(here.resume(&foreign).await, Err(Error::WrongStore { .. })));
    assert_eq!(store.load(&id("elsewhere")).await.unwrap().record, None);
    let renamed = Engine::builder(store.clone()).accept_tokens_from(other).build().unwrap();
    renamed.resume(&foreign).await.unwrap().complete("done").await.unwrap();
    assert_eq!(response(&here, &request("elsewhere")).await, "done");
}

/// S3: a grant made in a transaction whose record is absent was rolled back, and records nothing.
pub async fn s3_a_grant_that_was_rolled_back_records_nothing(store: Shared) {
    let engine = engine(&store);
    let rolled_back = async |key: &str| {
        let lease = acquire(&engine, &request(key)).await;
        assert!(engine.forget("checks", key).await.unwrap());
        let mut json = serde_json::to_value(lease.token()).unwrap();
        json["in_transaction"] = true.into();
        serde_json::from_value::<LeaseToken>(json).unwrap()
    };
    let token = rolled_back("rolled back").await;
    assert_eq!(lost(engine.resume(&token).await.map(drop)), StateKind::Absent);
    let successor = acquire(&engine, &request("rolled back")).await;
    assert_eq!(lost(engine.resume(&token).await.map(drop)), StateKind::InProgress);
    successor.complete("right").await.unwrap();
    assert_eq!(lost(engine.resume(&token).await.map(drop)), StateKind::Completed);
    assert_eq!(response(&engine, &request("rolled back")).await, "right");
}

/// S3: a lease that sent a release records nothing afterwards, whatever the result of the release.
pub async fn s3_a_released_lease_records_nothing(store: Shared) {
    let engine = engine(&store);
    for awaits in 0..3 {
        let key = format!("released, dropped at {awaits}");
        let lease = acquire(&engine, &request(&key)).await;
        let _ = dropped_at(awaits, lease.release()).await;
        for result in [
            lease.renew().await,
            lease.save_checkpoint("late").await,
            lease.mark_effect().await,
            lease.complete("late").await,
            lease.fail("late", Retry::Never).await,
        ] {
            lost(result);
        }
        let many = engine.complete_many(&[(&lease, "late".into())]).await;
        assert!(matches!(many[..], [Err(Error::LeaseLost { .. })]), "{many:?}");
        lease.release().await.unwrap();
        assert_eq!(store.load(&id(&key)).await.unwrap().record, None);
        let next = acquire(&engine, &request(&key)).await;
        assert_eq!(next.attempt(), 1);
        assert_eq!(lost(lease.release().await), StateKind::InProgress);
        next.complete("right").await.unwrap();
        lost(lease.complete("late").await);
        assert_eq!(response(&engine, &request(&key)).await, "right");
    }
}

/// S4: another payload under the key gets nothing, in any state, not even by its own owner or after
/// a lease expired.
pub async fn s4_another_fingerprint_gets_nothing_in_any_state(store: Shared) {
    let engine = engine(&store);
    let check = async |key: &str, owner: Owner| {
        let other = Request::new("checks", key).unwrap().owner(owner);
        let others = [
            other.clone().fingerprint(Fingerprint::of("other")),
            other.clone().fingerprint(Fingerprint::of("other")).recovery(Recovery::Rerun),
            other,
        ];
        for other in others {
            match engine.begin(&other).await.unwrap() {
                Begin::Mismatch(nothing) => assert_eq!(format!("{nothing:?}"), "Mismatch"),
                begin => panic!("{key}: {begin:?}"),
            }
        }
    };
    let owner = Owner::random().unwrap();
    let own = |key: &str| request(key).owner(owner);
    drop(acquire(&engine, &own("running")).await);
    drop(crash(&engine, &store, &own("crashed")).await);
    acquire(&engine, &own("completed")).await.complete("secret").await.unwrap();
    for (key, retry) in [
        ("now", Retry::Now),
        ("after", Retry::After(LONG)),
        ("never", Retry::Never),
        ("unresolved", Retry::Unresolved),
    ] {
        acquire(&engine, &own(key)).await.fail("secret", retry).await.unwrap();
        check(key, owner).await;
    }
    for key in ["running", "crashed", "completed"] {
        check(key, owner).await;
    }
}

/// S5: fences of a key increase across takeover, failure, release and forget.
pub async fn s5_fences_increase(store: Shared) {
    let engine = engine(&store);
    let request = request("fences");
    let mut last = Stamp::ZERO;
    for round in 0..24 {
        let lease = match round % 4 {
            0 => crash(&engine, &store, &request).await,
            _ => acquire(&engine, &request).await,
        };
        assert!(lease.fence() > last, "round {round}");
        last = lease.fence();
        match round % 4 {
            1 => lease.fail("again", Retry::Now).await.unwrap(),
            2 => lease.release().await.unwrap(),
            3 => assert!(engine.forget("checks", "fences").await.unwrap()),
            _ => {}
        }
    }
}

/// S6: a begin repeated by its owner gets the same grant, and no more time.
pub async fn s6_a_repeated_begin_gets_the_same_grant_and_no_more_time(store: Shared) {
    let engine = engine(&store);
    let request = request("repeat").owner(Owner::random().unwrap());
    let first = acquire(&engine, &request).await;
    let written = store.load(&request.id()).await.unwrap().record.unwrap();
    for _ in 0..3 {
        let again = acquire(&engine, &request).await;
        assert_eq!((again.fence(), again.attempt()), (first.fence(), 1));
        assert!(again.remaining() <= Duration::from_secs(30));
    }
    assert_eq!(store.load(&request.id()).await.unwrap().record.unwrap(), written);
    assert!(matches!(engine.begin(&self::request("repeat")).await.unwrap(), Begin::InProgress(_)));
}

/// S6: a finish repeated, by the same lease or from its token, is Ok and changes nothing.
pub async fn s6_a_repeated_finish_is_ok_and_changes_nothing(store: Shared) {
    let engine = engine(&store);
    for (key, retry) in [("done", None), ("failed", Some(Retry::After(LONG))), ("never", Some(Retry::Never))]
    {
        let lease = acquire(&engine, &request(key)).await;
        let finish = async |lease: &Lease| match retry {
            None => lease.complete("outcome").await,
            Some(retry) => lease.fail("outcome", retry).await,
        };
        finish(&lease).await.unwrap();
        let written = store.load(&id(key)).await.unwrap().record;
        finish(&lease).await.unwrap();
        let resumed = engine.resume(&lease.token()).await.unwrap();
        finish(&resumed).await.unwrap();
        assert_eq!(store.load(&id(key)).await.unwrap().record, written);
    }
    let lease = acquire(&engine, &request("released")).await;
    lease.release().await.unwrap();
    lease.release().await.unwrap();
}

/// S7: the same key in another scope is another operation.
pub async fn s7_nothing_is_readable_under_another_scope(store: Shared) {
    let engine = engine(&store);
    acquire(&engine, &request("k")).await.complete("mine").await.unwrap();
    for scope in [vec!["check", "sk"], vec!["checks", "k"], vec!["checksk"], vec!["other"]] {
        let other = Request::new(scope.clone(), "k").unwrap().fingerprint(Fingerprint::of("payload"));
        drop(acquire(&engine, &other).await);
        assert!(engine.forget(scope, "k").await.unwrap());
    }
    assert_eq!(response(&engine, &request("k")).await, "mine");
}

/// S8: an attempt that marked its effect and crashed is not rerun by default, nor are the attempts
/// after it.
pub async fn s8_a_marked_effect_is_not_rerun(store: Shared) {
    let engine = engine(&store);
    let request = request("marked");
    let first = acquire(&engine, &request.clone().lease(SHORT)).await;
    first.mark_effect().await.unwrap();
    until_over(&store, &request.id(), SHORT).await;
    assert_eq!(reason(&engine, &request).await, (Reason::EffectMarked, first.fence()));
    // A caller may override this explicitly; the mark stays for later callers.
    let second = acquire(&engine, &request.clone().recovery(Recovery::Rerun).lease(SHORT)).await;
    assert!(second.takeover() && second.attempt() == 2);
    until_over(&store, &request.id(), SHORT).await;
    assert_eq!(reason(&engine, &request).await, (Reason::EffectMarked, second.fence()));
    let cautious = request.clone().recovery(Recovery::Never);
    assert_eq!(reason(&engine, &cautious).await.0, Reason::CrashedAttempt);
}

/// S8: a grant may mark the effect itself. An owner kept over a restart does not get it again.
pub async fn s8_an_assumed_effect_is_marked_with_its_grant(store: Shared) {
    let engine = engine(&store);
    let request = request("assumed").assume_effect();
    let owned = request.clone().owner(Owner::random().unwrap()).lease(SHORT);
    let first = acquire(&engine, &owned).await;
    assert!(first.effect_marked() && !first.takeover());
    until_over(&store, &request.id(), SHORT).await;
    for begin in [&request, &owned] {
        assert_eq!(reason(&engine, begin).await, (Reason::EffectMarked, first.fence()));
    }
    first.complete("late").await.unwrap();
    assert_eq!(response(&engine, &request).await, "late");
    let running = self::request("assumed, running").assume_effect().owner(Owner::random().unwrap());
    let lease = acquire(&engine, &running).await;
    assert!(matches!(engine.begin(&running).await.unwrap(), Begin::InProgress(_)));
    lease.fail("nothing happened", Retry::Now).await.unwrap();
    assert!(acquire(&engine, &running).await.effect_marked());
}

/// S8: an owner kept over a restart is granted again only what it has not acted on. After any
/// write, within the lease or later, it is answered as any other owner.
pub async fn s8_an_owner_that_wrote_is_answered_as_any_caller(store: Shared) {
    let engine = engine(&store);
    let write = async |lease: &Lease, what: usize| match what {
        0 => lease.renew().await.unwrap(),
        1 => lease.save_checkpoint("here").await.unwrap(),
        _ => lease.mark_effect().await.unwrap(),
    };
    for what in 0..3 {
        let running = request(&format!("running {what}")).owner(Owner::random().unwrap());
        let first = acquire(&engine, &running).await;
        assert_eq!(acquire(&engine, &running).await.fence(), first.fence());
        write(&first, what).await;
        assert!(matches!(engine.begin(&running).await.unwrap(), Begin::InProgress(_)), "write {what}");
        let over = request(&format!("over {what}")).owner(Owner::random().unwrap());
        let first = acquire(&engine, &over.clone().lease(SHORT)).await;
        write(&first, what).await;
        until_over(&store, &over.id(), SHORT).await;
        match engine.begin(&over).await.unwrap() {
            Begin::Acquired(next) => {
                assert!(what < 2 && (next.attempt(), next.takeover()) == (2, true), "write {what}");
            }
            Begin::Unresolved(unknown) => assert!(what == 2 && unknown.reason() == Reason::EffectMarked),
            other => panic!("{other:?}"),
        }
    }
    // Nothing was written, but the lease has expired: the holder may have acted without a mark.
    let kept = request("kept").owner(Owner::random().unwrap());
    drop(crash(&engine, &store, &kept).await);
    let next = acquire(&engine, &kept).await;
    assert_eq!((next.attempt(), next.takeover()), (2, true));
}

/// S8: a grant that expires before its call learns of it is granted anew, but only to an owner
/// drawn for that call.
pub async fn s8_a_grant_is_given_anew_only_within_its_call(store: Shared) {
    for (key, owner, granted) in
        [("new", None, (1, false)), ("kept", Some(Owner::random().unwrap()), (2, true))]
    {
        let faulty = FaultyStore::new(store.clone());
        faulty.on_call(1, Fault::FailAfter);
        // The pauses between these exceed the milliseconds by which a store may estimate its time.
        (2..=9).for_each(|call| faulty.on_call(call, Fault::FailBefore));
        let engine = Engine::builder(faulty).build().unwrap();
        let request = owner.into_iter().fold(request(key).lease(SHORT), Request::owner);
        let lease = acquire(&engine, &request).await;
        assert_eq!((lease.attempt(), lease.takeover()), granted, "{key}");
    }
}

/// L2: a crashed attempt's key is granted once its lease expires, with the checkpoint that the
/// attempt left.
pub async fn l2_a_crashed_key_is_granted_after_its_lease(store: Shared) {
    let engine = engine(&store);
    let request = request("crashed");
    let first = acquire(&engine, &request.clone().lease(SHORT)).await;
    first.save_checkpoint("half way").await.unwrap();
    until_over(&store, &request.id(), SHORT).await;
    let second = acquire(&engine, &request).await;
    assert_eq!((second.attempt(), second.takeover()), (2, true));
    assert_eq!(second.checkpoint().unwrap(), "half way");
    assert!(matches!(engine.begin(&request).await.unwrap(), Begin::InProgress(_)));
}

/// L6: every state has an exit, for leases and retentions of one microsecond and of for ever.
pub async fn l6_extreme_durations_leave_every_state_an_exit(store: Shared) {
    let engine = engine(&store);
    for (lease, retention) in [(SHORT, SHORT), (SHORT, Duration::MAX), (Duration::MAX, Duration::MAX)] {
        let request = request(&format!("{lease:?} {retention:?}")).lease(lease).retention(retention);
        let id = request.id();
        acquire(&engine, &request).await.release().await.unwrap();
        let failed = acquire(&engine, &request).await;
        failed.fail("wait", Retry::After(Duration::MAX)).await.unwrap();
        let Begin::Failed(wait) = engine.begin(&request).await.unwrap() else { panic!("not due for ever") };
        assert!(wait.retry_after().unwrap() > LONG);
        let key = format!("{lease:?} {retention:?}");
        engine.resolve("checks", key.as_str(), failed.fence(), Resolution::Rerun).await.unwrap();
        until_over(&store, &id, SHORT).await;
        let again = acquire(&engine, &request).await;
        again.renew().await.unwrap_or_else(|error| assert_eq!(retention, SHORT, "{error}"));
        again.complete("done").await.unwrap();
        until_over(&store, &id, SHORT).await;
        match engine.begin(&request).await.unwrap() {
            Begin::Completed(done) => assert!(retention > SHORT && done.response().unwrap() == "done"),
            Begin::Acquired(_) => assert_eq!(retention, SHORT),
            other => panic!("{other:?}"),
        }
        assert!(engine.forget("checks", key.as_str()).await.unwrap() || retention == SHORT);
    }
}

/// A finish past the lease is accepted while no other caller has taken the key. If the record is
/// gone, it is written anew.
pub async fn late_work_is_recorded(store: Shared) {
    let engine = engine(&store);
    crash(&engine, &store, &request("late")).await.complete("late").await.unwrap();
    assert_eq!(response(&engine, &request("late")).await, "late");
    let forgotten = acquire(&engine, &request("forgotten")).await;
    assert!(engine.forget("checks", "forgotten").await.unwrap());
    assert_eq!(lost(forgotten.renew().await), StateKind::Absent);
    forgotten.complete("all the same").await.unwrap();
    assert_eq!(response(&engine, &request("forgotten")).await, "all the same");
}

/// Each of the four kinds of failure has its effect.
pub async fn a_failure_is_retried_as_it_says(store: Shared) {
    let engine = engine(&store);
    let fail = async |key: &str, retry: Retry| {
        let lease = acquire(&engine, &request(key)).await;
        lease.save_checkpoint("kept").await.unwrap();
        lease.fail("why", retry).await.unwrap();
    };
    fail("now", Retry::Now).await;
    fail("due", Retry::After(SHORT)).await;
    until_over(&store, &id("due"), SHORT).await;
    for key in ["now", "due"] {
        let lease = acquire(&engine, &request(key)).await;
        assert_eq!((lease.attempt(), lease.takeover()), (2, false));
        assert_eq!(lease.checkpoint().unwrap(), "kept");
    }
    fail("after", Retry::After(LONG)).await;
    fail("never", Retry::Never).await;
    for (key, waits) in [("after", true), ("never", false)] {
        let Begin::Failed(failed) = engine.begin(&request(key)).await.unwrap() else { panic!("{key}") };
        assert_eq!(failed.error().unwrap(), "why");
        assert_eq!(failed.retry_after().is_some(), waits);
    }
    fail("unresolved", Retry::Unresolved).await;
    assert_eq!(reason(&engine, &request("unresolved")).await.0, Reason::Reported);
}

/// Released and forgotten keys are absent: attempt 1, any payload.
pub async fn a_released_or_forgotten_key_is_absent(store: Shared) {
    let engine = engine(&store);
    acquire(&engine, &request("key")).await.release().await.unwrap();
    assert_eq!(engine.inspect("checks", "key").await.unwrap(), None);
    let other = request("key").fingerprint(Fingerprint::of("other payload"));
    let lease = acquire(&engine, &other).await;
    assert_eq!(lease.attempt(), 1);
    assert!(engine.forget("checks", "key").await.unwrap());
    assert!(!engine.forget("checks", "key").await.unwrap());
    assert_eq!(acquire(&engine, &request("key")).await.attempt(), 1);
}
