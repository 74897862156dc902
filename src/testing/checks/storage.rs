//! Checks of a store's obligations: swaps, stamps, time, batches, changes, listings.

use super::*;

/// Store: a record that was never written is absent.
pub async fn an_absent_key_loads_as_none(store: Shared) {
    let snapshot = store.load(&id("absent")).await.unwrap();
    assert_eq!(snapshot.record, None);
    assert!(snapshot.now > Stamp::ZERO);
}

/// Store: of many swaps that expect the same stamp, one is done, and each of the others is shown
/// its record.
pub async fn s1_one_of_many_concurrent_swaps_wins(store: Shared) {
    let records: Vec<_> = (0..32).map(|_| grant(&request("race"))).collect();
    let id = id("race");
    let requests = records.iter().map(|record| SwapRequest::new(&id, None, Some(record)));
    let swaps = join_all(requests.map(|swap| {
        let store = &store;
        async move { store.swap(&swap).await }
    }))
    .await;
    let stamps: Vec<_> = swaps.iter().filter_map(|swap| stamp_of(swap.as_ref().unwrap())).collect();
    assert_eq!(stamps.len(), 1);
    for swap in swaps {
        if let Swap::Conflict(found) = swap.unwrap() {
            let record = found.record.unwrap();
            assert_eq!(record.stamp, stamps[0]);
            assert!(found.now >= record.stamp);
        }
    }
}

fn stamp_of(swap: &Swap) -> Option<Stamp> {
    match swap {
        Swap::Done(stamp) => Some(*stamp),
        Swap::Conflict(_) => None,
    }
}

/// Store: a swap whose expected record is gone writes nothing and returns the present one.
pub async fn a_lost_race_shows_the_present_record(store: Shared) {
    let (id, record) = (id("race"), grant(&request("race")));
    let first = done(store.swap(&SwapRequest::new(&id, None, Some(&record))).await.unwrap());
    let second = done(store.swap(&SwapRequest::new(&id, Some(first), Some(&record))).await.unwrap());
    for expected in [None, Some(first), Some(second.next()), Some(Stamp::ZERO)] {
        for next in [Some(&record), None] {
            match store.swap(&SwapRequest::new(&id, expected, next)).await.unwrap() {
                Swap::Conflict(found) => {
                    let found = found.record.unwrap();
                    assert_eq!(found.fence, second, "a record without a fence of its own is its grant");
                    assert_eq!(*found, record.clone().stamped(second));
                }
                Swap::Done(_) => panic!("{expected:?} is not there"),
            }
        }
    }
    match store.swap(&SwapRequest::new(&self::id("never"), Some(second), Some(&record))).await.unwrap() {
        Swap::Conflict(found) => assert_eq!(found.record, None),
        Swap::Done(_) => panic!("there is nothing to replace"),
    }
}

/// Store: removing an absent record is done, and changes nothing.
pub async fn removing_what_is_absent_is_done(store: Shared) {
    let id = id("absent");
    done(store.swap(&SwapRequest::new(&id, None, None)).await.unwrap());
    assert_eq!(store.load(&id).await.unwrap().record, None);
}

/// Store: stamps of an id increase over writes, removals, discards and later writes.
pub async fn s5_stamps_increase_over_writes_and_removals(store: Shared) {
    let (id, record) = (id("stamps"), grant(&request("stamps")));
    let mut last = Stamp::ZERO;
    for round in 0..20 {
        let first = done(store.swap(&SwapRequest::new(&id, None, Some(&record))).await.unwrap());
        assert!(first > last, "{first:?} after {last:?}");
        let second = done(store.swap(&SwapRequest::new(&id, Some(first), Some(&record))).await.unwrap());
        assert!(second > first);
        if round % 2 == 0 {
            let removed = done(store.swap(&SwapRequest::new(&id, Some(second), None)).await.unwrap());
            assert!(removed >= second);
        } else {
            match store.discard(&id).await {
                // A store need not support it.
                Err(StoreError::Unusable { .. }) => {
                    drop(store.swap(&SwapRequest::new(&id, Some(second), None)).await.unwrap())
                }
                discarded => {
                    assert!(discarded.unwrap());
                    assert!(!store.discard(&id).await.unwrap());
                }
            }
        }
        let snapshot = store.load(&id).await.unwrap();
        assert_eq!(snapshot.record, None);
        assert!(snapshot.now >= second);
        last = second;
    }
}

/// Store: a write raises the stamp even if it changes nothing else, alone and in a batch. The
/// raised stamp shows that the holder has acted.
pub async fn s5_every_write_raises_the_stamp(store: Shared) {
    let (id, other) = (id("unchanged"), id("unchanged too"));
    let record = grant(&request("unchanged"));
    let mut last = done(store.swap(&SwapRequest::new(&id, None, Some(&record))).await.unwrap());
    let record = record.stamped(last);
    for round in 0..20 {
        let stamp = if round % 2 == 0 {
            done(store.swap(&SwapRequest::new(&id, Some(last), Some(&record))).await.unwrap())
        } else {
            let same = |id, expected| SwapRequest { id, expected, next: Some(Box::new(record.clone())) };
            let batch = [same(id, Some(last)), same(other, None)];
            let mut swaps = store.swap_many(&batch).await.into_iter();
            let stamp = done(swaps.next().unwrap().unwrap());
            done(
                store
                    .swap(&SwapRequest::new(
                        &other,
                        swaps.next().unwrap().ok().and_then(|swap| stamp_of(&swap)),
                        None,
                    ))
                    .await
                    .unwrap(),
            );
            stamp
        };
        assert!(stamp > last, "round {round}: {stamp:?} after {last:?}");
        let found = store.load(&id).await.unwrap().record.unwrap();
        assert_eq!((found.stamp, found.fence), (stamp, record.fence));
        last = stamp;
    }
}

/// Store: records of all shapes are read back unchanged, with the stamp that the swap returned.
pub async fn records_come_back_byte_for_byte(store: Shared) {
    let every_byte = Bytes::from_iter(0..=255_u8);
    let bodies = [Bytes::new(), every_byte.clone(), Bytes::from(vec![0xA5; 1 << 20])];
    let mut shapes: Vec<State> =
        bodies.iter().map(|body| State::Completed(Body::kept(body.clone()))).collect();
    shapes.push(State::Completed(Body::new(bodies[2].clone(), 10)));
    for limit in [0, usize::MAX] {
        shapes.push(State::Completed(Body::new(every_byte.clone(), limit).with_head(&every_byte)));
    }
    for retry in [Retry::Now, Retry::After(LONG), Retry::After(MAX), Retry::Never, Retry::Unresolved] {
        shapes.push(State::Failed(Body::kept(every_byte.clone()), retry));
    }
    for (effect, takeover) in [(false, true), (true, false), (true, true)] {
        let holder = "host-7/é".into();
        let owner = Owner::random().unwrap();
        let recovery = [Recovery::Rerun, Recovery::Never, Recovery::RerunUnlessEffect][shapes.len() % 3];
        shapes.push(State::InProgress { owner, lease: LONG, effect, takeover, recovery, holder });
    }
    for (at, state) in shapes.into_iter().enumerate() {
        let id = id(&format!("shape {at}"));
        let mut record = grant(&request("shape"));
        record.state = state;
        record.fence = Stamp(7);
        record.attempt = u32::MAX;
        record.scope = "é/scope".into();
        record.key = Some("a key".into());
        record.checkpoint = Some(every_byte.clone()).filter(|_| at % 2 == 0);
        record.unresolved_retention = Some(LONG * 9).filter(|_| at % 3 == 0);
        record.resolved = at % 4 == 0;
        record.extra = Some(Bytes::from_static(&[2, 3, 0, 7, 255])).filter(|_| at % 2 == 1);
        let stamp = done(store.swap(&SwapRequest::new(&id, None, Some(&record))).await.unwrap());
        let found = store.load(&id).await.unwrap().record.unwrap();
        let record = record.stamped(stamp);
        assert_eq!(*found, record);
    }
}

/// Store: writes under one id do not touch another.
pub async fn s7_other_records_are_untouched(store: Shared) {
    let record = grant(&request("a"));
    let stamp = done(store.swap(&SwapRequest::new(&id("a"), None, Some(&record))).await.unwrap());
    let other = done(store.swap(&SwapRequest::new(&id("b"), None, Some(&record))).await.unwrap());
    done(store.swap(&SwapRequest::new(&id("b"), Some(other), None)).await.unwrap());
    let found = store.load(&id("a")).await.unwrap().record.unwrap();
    assert_eq!(*found, record.stamped(stamp));
}

/// Store: purge leaves records that have not expired, in any state; expired records count as
/// absent.
pub async fn s13_nothing_is_removed_before_its_deadline(store: Shared) {
    let engine = engine(&store);
    let mut kept = Vec::new();
    for at in 0..20 {
        let request = request(&format!("kept {at}"));
        let lease = acquire(&engine, &request).await;
        if at % 2 == 0 {
            lease.complete("kept").await.unwrap();
        }
        let gone =
            acquire(&engine, &self::request(&format!("gone {at}")).lease(SHORT).retention(SHORT)).await;
        gone.complete("gone").await.unwrap();
        kept.push(request);
    }
    // A record that was to be kept only briefly, and was rewritten, is kept for its new retention.
    let (rewritten, mut record) = (id("rewritten"), grant(&request("rewritten")));
    let last = |record: &mut Record, state| {
        record.retention = SHORT;
        record.state = state;
    };
    last(&mut record, State::Completed(body("short")));
    let first = done(store.swap(&SwapRequest::new(&rewritten, None, Some(&record))).await.unwrap());
    last(&mut record, State::Failed(body("not due"), Retry::After(LONG)));
    done(store.swap(&SwapRequest::new(&rewritten, Some(first), Some(&record))).await.unwrap());
    until_over(&store, &id("gone 0"), SHORT).await;
    loop {
        match store.purge(7).await.unwrap().removed {
            0 => break,
            purged => assert!(purged <= 7, "{purged} of at most 7"),
        }
    }
    assert!(store.load(&rewritten).await.unwrap().record.is_some());
    for (at, request) in kept.iter().enumerate() {
        match engine.begin(request).await.unwrap() {
            Begin::Completed(_) if at % 2 == 0 => {}
            Begin::InProgress(_) if at % 2 == 1 => {}
            other => panic!("record {at}: {other:?}"),
        }
    }
    for at in 0..20 {
        assert_eq!(acquire(&engine, &request(&format!("gone {at}"))).await.attempt(), 1);
    }
}

/// S13: evidence of an unknown effect outlasts its retention and every purge, until its own
/// retention is over.
pub async fn s13_evidence_outlasts_the_retention(store: Shared) {
    let crashed = async |key: &str, recovery: Recovery, kept: Duration| {
        let mut record = grant(&request(key).lease(SHORT).retention(SHORT).recovery(recovery));
        if let State::InProgress { effect, .. } = &mut record.state {
            *effect = true;
        }
        record.unresolved_retention = Some(kept);
        done(store.swap(&SwapRequest::new(&id(key), None, Some(&record))).await.unwrap());
    };
    crashed("marked", Recovery::RerunUnlessEffect, LONG).await;
    crashed("marked for ever", Recovery::Never, MAX).await;
    crashed("marked, to be rerun", Recovery::Rerun, LONG).await;
    crashed("marked, and over", Recovery::RerunUnlessEffect, SHORT).await;
    let failed = async |key: &str, engine: &Engine, retry: Retry| {
        let lease = acquire(engine, &request(key).lease(SHORT).retention(SHORT)).await;
        lease.fail("who knows", retry).await.unwrap();
    };
    let patient = Engine::builder(store.clone()).build().unwrap();
    let hasty = Engine::builder(store.clone())
        .lease(SHORT)
        .retention(SHORT)
        .unresolved_retention(SHORT)
        .build()
        .unwrap();
    failed("reported", &patient, Retry::Unresolved).await;
    failed("known", &patient, Retry::Never).await;
    failed("reported, and over", &hasty, Retry::Unresolved).await;
    until_over(&store, &id("reported, and over"), SHORT * 3).await;
    while store.purge(100).await.unwrap().removed > 0 {}
    for key in ["marked", "marked for ever", "reported"] {
        assert!(store.load(&id(key)).await.unwrap().record.is_some(), "{key} was removed");
        let (why, _) = reason(&patient, &request(key)).await;
        assert_eq!(why, if key == "reported" { Reason::Reported } else { Reason::EffectMarked });
    }
    for key in ["marked, to be rerun", "marked, and over", "known", "reported, and over"] {
        assert_eq!(acquire(&patient, &request(key)).await.attempt(), 1, "{key}");
    }
}

/// Store: its time does not go back, and is never before a stamp that it wrote.
pub async fn s13_time_does_not_go_back(store: Shared) {
    let mut last = Stamp::ZERO;
    for round in 0..50 {
        let id = id(&format!("time {round}"));
        let stamp =
            done(store.swap(&SwapRequest::new(&id, None, Some(&grant(&request("time"))))).await.unwrap());
        assert!(stamp >= last);
        let now = store.load(&id).await.unwrap().now;
        assert!(now >= stamp);
        last = stamp;
    }
}

/// Store: no record is evicted to make room for another.
pub async fn s13_nothing_is_evicted(store: Shared) {
    let record = grant(&request("many"));
    let ids: Vec<_> = (0..600).map(|number| id(&format!("many {number}"))).collect();
    for ids in ids.chunks(100) {
        let requests = ids.iter().map(|id| SwapRequest::new(id, None, Some(&record)));
        for swap in join_all(requests.map(|swap| {
            let store = &store;
            async move { store.swap(&swap).await }
        }))
        .await
        {
            done(swap.unwrap());
        }
    }
    for loaded in join_all(ids.iter().map(|id| store.load(id))).await {
        assert!(loaded.unwrap().record.is_some());
    }
}

/// Store: of many threads that expect the same stamp, one wins, in every round.
pub async fn s1_threads_race_and_one_wins(store: Shared) {
    const THREADS: usize = 8;
    for round in 0..100 {
        let id = id(&format!("threads {round}"));
        let barrier = Arc::new(std::sync::Barrier::new(THREADS));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let (store, barrier) = (store.clone(), barrier.clone());
                let record = grant(&request("threads"));
                std::thread::spawn(move || {
                    barrier.wait();
                    crate::testing::block_on(store.swap(&SwapRequest::new(&id, None, Some(&record))))
                })
            })
            .collect();
        let swaps = threads.into_iter().map(|thread| thread.join().unwrap().unwrap());
        assert_eq!(swaps.filter(|swap| matches!(swap, Swap::Done(_))).count(), 1, "round {round}");
    }
}

/// Store: swaps of a batch are done in order, see each other, and are each answered.
pub async fn swaps_of_a_batch_see_each_other(store: Shared) {
    let (one, two) = (id("one"), id("two"));
    let record = grant(&request("batch"));
    let insert = |id| SwapRequest { id, expected: None, next: Some(Box::new(record.clone())) };
    let remove = SwapRequest { id: id("absent"), expected: None, next: None };
    let wrong = SwapRequest { id: two, expected: Some(Stamp(1)), next: None };
    assert_eq!(store.swap_many(&[]).await.len(), 0);
    let batch = [insert(one), insert(one), insert(two), remove, wrong, insert(two)];
    let answers: Vec<Swap> = store.swap_many(&batch).await.into_iter().map(Result::unwrap).collect();
    let done: Vec<bool> = answers.iter().map(|swap| matches!(swap, Swap::Done(_))).collect();
    assert_eq!(done, [true, false, true, true, false, false]);
    for (at, first) in [(1, 0), (4, 2), (5, 2)] {
        let (Swap::Conflict(found), Swap::Done(stamp)) = (&answers[at], &answers[first]) else { panic!() };
        assert_eq!(found.record.as_ref().unwrap().stamp, *stamp);
    }
    // A batch of records that exist already, and one that continues from the first.
    let replays = store.swap_many(&[insert(two), insert(one)]).await;
    assert!(replays.iter().all(|swap| matches!(swap, Ok(Swap::Conflict(_)))));
    let stamp = stamp_of(&answers[0]);
    let batch = [SwapRequest { id: one, expected: stamp, next: None }, insert(one)];
    let again: Vec<_> =
        store.swap_many(&batch).await.into_iter().map(|swap| self::done(swap.unwrap())).collect();
    assert!(again[1] > stamp.unwrap());
}

/// Store: in a batch of different ids, each swap is answered as it would be alone, whatever state
/// its record is in.
pub async fn swaps_of_a_batch_are_answered_as_alone(store: Shared) {
    let ids: Vec<RecordId> = (0..8).map(|number| id(&format!("batch {number}"))).collect();
    let record = grant(&request("batch"));
    let insert = |id: RecordId| SwapRequest::new(&id, None, Some(&record));
    let mut stamps = Vec::new();
    for &id in &ids[..6] {
        stamps.push(done(store.swap(&insert(id)).await.unwrap()));
    }
    let removed = done(store.swap(&SwapRequest::new(&ids[5], Some(stamps[5]), None)).await.unwrap());
    let old = Some(Stamp(stamps[0].0 - 1));
    let batch = [
        SwapRequest::new(&ids[0], Some(stamps[0]), Some(&record)),
        SwapRequest::new(&ids[1], Some(stamps[1]), None),
        SwapRequest::new(&ids[2], old, Some(&record)),
        insert(ids[3]),
        SwapRequest::new(&ids[4], None, None),
        insert(ids[5]),
        insert(ids[6]),
        SwapRequest::new(&ids[7], old, Some(&record)),
    ];
    let answers: Vec<Swap> = store.swap_many(&batch).await.into_iter().map(Result::unwrap).collect();
    for (at, before) in [(0, stamps[0]), (1, stamps[1]), (5, removed), (6, Stamp::ZERO)] {
        let after = stamp_of(&answers[at]).unwrap_or_else(|| panic!("{at}: {answers:?}"));
        assert!(after > before || at == 1 && after >= before, "{at}: {after:?} after {before:?}");
        let found = store.load(&ids[at]).await.unwrap().record;
        assert_eq!(found.map(|record| record.stamp), (at != 1).then_some(after), "{at}");
    }
    for (at, stamp) in [(2, Some(stamps[2])), (3, Some(stamps[3])), (4, Some(stamps[4])), (7, None)] {
        let Swap::Conflict(found) = &answers[at] else { panic!("{at}: {answers:?}") };
        assert_eq!(found.record.as_ref().map(|record| record.stamp), stamp, "{at}");
    }
}

/// L4: a waiter for a record is notified of every change, including one between its load and its
/// wait.
pub async fn l4_a_change_is_never_missed(store: Shared) {
    let id = id("watched");
    let record = grant(&request("watched"));
    let first = done(store.swap(&SwapRequest::new(&id, None, Some(&record))).await.unwrap());
    store.changed(&id, Stamp(first.0 - 1), LONG).await.unwrap();
    store.changed(&self::id("absent"), first, LONG).await.unwrap();
    // The change comes while eight callers wait, and once more before they wait.
    let mut stamp = first;
    for next in [Some(&record), None] {
        let waits = join_all((0..8).map(|_| store.changed(&id, stamp, LONG)));
        let change = async { done(store.swap(&SwapRequest::new(&id, Some(stamp), next)).await.unwrap()) };
        let (waits, changed) = futures_util::future::join(waits, change).await;
        waits.into_iter().for_each(|wait| wait.unwrap());
        store.changed(&id, stamp, LONG).await.unwrap();
        stamp = changed;
    }
}

/// Store: a listing shows every record once, in pages. A store need not support listing.
pub async fn a_listing_shows_every_record_once(store: Shared) {
    let record = grant(&request("listed"));
    let mut ids: Vec<_> = (0..50).map(|number| id(&format!("listed {number}"))).collect();
    for id in &ids {
        done(store.swap(&SwapRequest::new(id, None, Some(&record))).await.unwrap());
    }
    done(store.swap(&SwapRequest::new(&id("removed"), None, None)).await.unwrap());
    let mut listed = Vec::new();
    let mut after = None;
    loop {
        let page = match store.scan(after.as_ref(), 7).await {
            Err(StoreError::Unusable { .. }) if after.is_none() => return,
            page => page.unwrap(),
        };
        assert_eq!(page.unreadable, []);
        for (id, found) in page.records {
            assert_eq!(Some(&found), store.load(&id).await.unwrap().record.as_deref());
            listed.push(id);
        }
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    ids.sort();
    listed.sort();
    listed.dedup();
    assert_eq!(listed, ids);
}
