//! Checks that faults, timeouts and dropped futures change no answer.

use super::*;

/// S10: an error is never a grant, and a call on a store that only returns errors ends in an error.
pub async fn s10_errors_are_never_grants(store: Shared) {
    let faulty = FaultyStore::new(store.clone());
    faulty.from_call(1, Fault::FailBefore);
    let clock = ManualClock::new();
    let engine = Engine::builder(faulty.clone()).clock(clock.clone()).build().unwrap();
    match driven(&clock, engine.begin(&request("dark"))).await {
        Err(Error::TimedOut { tries, last: Some(StoreError::Unavailable { .. }), .. }) => assert!(tries > 3),
        other => panic!("{other:?}"),
    }
    assert_eq!(store.load(&id("dark")).await.unwrap().record, None);
    faulty.heal();
    drop(acquire(&engine, &request("dark")).await);
}

/// L1: a call on a store that never answers ends by its deadline, and anything that it wrote is
/// found again.
pub async fn l1_a_call_ends_by_its_deadline(store: Shared) {
    for fault in [Fault::RequestLost, Fault::AnswerLost] {
        let key = format!("{fault:?}");
        let faulty = FaultyStore::new(store.clone());
        faulty.from_call(1, fault);
        let clock = ManualClock::new();
        let engine = Engine::builder(faulty.clone()).clock(clock.clone()).build().unwrap();
        let request = request(&key).owner(Owner::random().unwrap());
        let limit = engine.policy().call_timeout;
        let result = poll_until(engine.begin(&request), || {
            assert!(crate::Clock::monotonic(&clock) <= limit + Duration::from_secs(1));
            clock.advance(Duration::from_millis(100));
        })
        .await;
        assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
        faulty.heal();
        assert_eq!(acquire(&engine, &request).await.attempt(), 1);
    }
}

/// Returns the output of `call`, while the clock advances whenever the call is pending. For calls
/// that no longer reach a real store.
async fn driven<T>(clock: &ManualClock, call: impl Future<Output = T>) -> T {
    poll_until(call, || {
        assert!(crate::Clock::monotonic(clock) < LONG, "L1: the call does not end");
        clock.advance(Duration::from_millis(100));
    })
    .await
}

async fn poll_until<T>(call: impl Future<Output = T>, mut meanwhile: impl FnMut()) -> T {
    let mut call = pin!(call);
    poll_fn(|context| {
        let poll = call.as_mut().poll(context);
        if poll.is_pending() {
            meanwhile();
            context.waker().wake_by_ref();
        }
        poll
    })
    .await
}

/// S11: a begin or a finish that is dropped at any await leaves nothing half done, and its owner
/// can continue.
pub async fn s11_a_dropped_call_leaves_nothing_half_done(store: Shared) {
    let engine = engine(&store);
    for awaits in 0..4 {
        let request = request(&format!("dropped at {awaits}")).owner(Owner::random().unwrap());
        let begun = dropped_at(awaits, engine.begin(&request)).await;
        drop(begun);
        let lease = acquire(&engine, &request).await;
        assert_eq!(lease.attempt(), 1);
        let _ = dropped_at(awaits, lease.complete("once")).await;
        lease.complete("once").await.unwrap();
        assert_eq!(response(&engine, &request).await, "once");
        let _ = dropped_at(awaits, lease.complete("other")).await;
        assert_eq!(response(&engine, &request).await, "once");
    }
}

/// S15: random histories of calls get the reference model's answers.
pub async fn s15_random_histories_are_answered_as_by_the_model(store: Shared) {
    for seed in 0..60 {
        let ops = history::parse(&random_bytes(seed), &Pace::Real);
        history::run(store.clone(), &format!("seed {seed}"), &ops, &Pace::Real).await;
    }
}

/// S6, S15: they get the same answers if now and then a call fails before or after it is done, or
/// is done twice.
pub async fn s6_faults_change_no_answer(store: Shared) {
    for seed in 1000..1040 {
        let faulty = FaultyStore::new(store.clone());
        let mut random = StdRng::seed_from_u64(seed);
        // Never three in a row: a call that is repeated until it pauses would be a different check.
        for call in (1..600).step_by(3) {
            let fault =
                [Fault::FailBefore, Fault::FailAfter, Fault::Duplicate][random.next_u32() as usize % 3];
            faulty.on_call(call + u64::from(random.next_u32() % 2), fault);
        }
        let mut ops = history::parse(&random_bytes(seed), &Pace::Real);
        for op in &mut ops {
            // A record that expires before the repetition would be a different check.
            if let Op::Begin(ask) = op {
                ask.retention = LONG;
                // So would a lease that does, except for an owner drawn for the call, which is
                // known not to have acted.
                // And so would an effect that is assumed: a kept owner does not find that grant.
                if ask.lease < LONG || ask.assumes {
                    ask.owner = ModelBegin::KEPT_OWNERS;
                }
            }
        }
        history::run(Arc::new(faulty), &format!("seed {seed}"), &ops, &Pace::Real).await;
    }
}

fn random_bytes(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; 4 * 60];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}
