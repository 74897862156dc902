//! The isolation levels, and the errors that mean: repeat the whole transaction.

use super::*;

const STRICT: [&str; 2] = ["REPEATABLE READ", "SERIALIZABLE"];

async fn start<'a>(client: &'a mut Client, level: &str) -> Transaction<'a> {
    let tx = client.transaction().await.unwrap();
    tx.batch_execute(&format!("SET TRANSACTION ISOLATION LEVEL {level}")).await.unwrap();
    tx
}

fn repeats<T: std::fmt::Debug>(result: Result<T, Error>, expected: &str) {
    match result {
        Err(Error::RepeatTransaction { code }) => assert_eq!(code, expected),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn under_a_stricter_level_a_duplicate_waits_and_has_to_repeat() {
    let app = App::start().await;
    for level in STRICT {
        let (mut one, mut other) = (app.client().await, app.client().await);
        let mut first = start(&mut one, level).await;
        let lease = app.acquire(&mut first, level).await;
        let mut second = start(&mut other, level).await;
        let finish = async {
            app.until_waiting(1).await;
            pay(&first).await;
            postgres::complete_in(&mut first, &lease, "paid").await.unwrap();
            first.commit().await.unwrap();
        };
        let (begin, ()) = tokio::join!(app.begin(&mut second, level), finish);
        repeats(begin, "40001");
        second.rollback().await.unwrap();
        let mut again = start(&mut other, level).await;
        assert_eq!(completed(app.begin(&mut again, level).await.unwrap()), b"paid");
    }
    assert_eq!(app.count("payments"), 2);
}

#[tokio::test]
async fn under_a_stricter_level_a_snapshot_from_before_the_outcome_has_to_repeat() {
    let app = App::start().await;
    for level in STRICT {
        let (mut one, mut other) = (app.client().await, app.client().await);
        let mut old = start(&mut one, level).await;
        old.query("SELECT * FROM payments", &[]).await.unwrap(); // takes its snapshot
        let mut first = other.transaction().await.unwrap();
        let lease = app.acquire(&mut first, level).await;
        postgres::complete_in(&mut first, &lease, "paid").await.unwrap();
        first.commit().await.unwrap();
        repeats(app.begin(&mut old, level).await, "40001");
        // The transaction takes no more commands, so the error cannot become an outcome.
        assert!(postgres::fail_in(&mut old, &lease, "40001", Retry::Never).await.is_err());
        old.rollback().await.unwrap();
        assert_eq!(app.replay(level).await, b"paid");
    }
}

#[tokio::test]
async fn under_a_stricter_level_a_lease_that_was_renewed_meanwhile_has_to_repeat() {
    let app = App::start().await;
    for level in STRICT {
        let Begin::Acquired(lease) = app.engine.begin(&request(level)).await.unwrap() else { panic!() };
        let mut client = app.client().await;
        let mut tx = start(&mut client, level).await;
        let token = lease.token();
        let resumed = postgres::resume_in(&mut tx, &app.store, &app.policy, &token).await.unwrap();
        lease.renew().await.unwrap();
        repeats(postgres::complete_in(&mut tx, &resumed, "paid").await, "40001");
        tx.rollback().await.unwrap();
        let mut tx = start(&mut client, level).await;
        let resumed = postgres::resume_in(&mut tx, &app.store, &app.policy, &token).await.unwrap();
        postgres::complete_in(&mut tx, &resumed, "paid").await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(app.replay(level).await, b"paid");
    }
}

#[tokio::test]
async fn a_serialization_failure_at_the_commit_leaves_no_record() {
    let app = App::start().await;
    app.server.sql("CREATE TABLE shifts (doctor text, on_call boolean); INSERT INTO shifts VALUES ('a', true), ('b', true)");
    let (mut one, mut other) = (app.client().await, app.client().await);
    let (mut first, mut second) = (start(&mut one, STRICT[1]).await, start(&mut other, STRICT[1]).await);
    // Write skew: each leaves because the other stays.
    for (tx, doctor) in [(&mut first, "a"), (&mut second, "b")] {
        let lease = app.acquire(tx, doctor).await;
        tx.query("SELECT count(*) FROM shifts WHERE on_call", &[]).await.unwrap();
        tx.execute("UPDATE shifts SET on_call = false WHERE doctor = $1", &[&doctor]).await.unwrap();
        postgres::complete_in(tx, &lease, "left").await.unwrap();
    }
    first.commit().await.unwrap();
    let error = second.commit().await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "40001");
    assert_eq!(app.server.sql("SELECT count(*) FROM shifts WHERE on_call"), "1");
    // The repetition is the first attempt: nothing was recorded.
    let mut again = start(&mut other, STRICT[1]).await;
    assert_eq!(app.acquire(&mut again, "b").await.attempt(), 1);
}

#[tokio::test]
async fn a_deadlock_ends_one_of_two_that_begin_the_same_keys_crosswise() {
    let app = App::start().await;
    let both_began = tokio::sync::Barrier::new(2);
    let begin_both = async |keys: [&str; 2]| {
        let mut client = app.client().await;
        let mut tx = client.transaction().await.unwrap();
        let lease = app.acquire(&mut tx, keys[0]).await;
        both_began.wait().await;
        match app.begin(&mut tx, keys[1]).await {
            Ok(Begin::Acquired(other)) => {
                postgres::complete_in(&mut tx, &lease, "paid").await.unwrap();
                postgres::complete_in(&mut tx, &other, "paid").await.unwrap();
                tx.commit().await.unwrap();
                1
            }
            victim => {
                repeats(victim, "40P01");
                // It takes no more commands: the deadlock cannot become an outcome.
                assert!(postgres::fail_in(&mut tx, &lease, "40P01", Retry::Never).await.is_err());
                tx.rollback().await.unwrap();
                0
            }
        }
    };
    let (one, other) = soon(async { tokio::join!(begin_both(["x", "y"]), begin_both(["y", "x"])) }).await;
    assert_eq!(one + other, 1);
    assert_eq!((app.replay("x").await, app.replay("y").await), (b"paid".to_vec(), b"paid".to_vec()));
}

#[tokio::test]
async fn a_finish_that_finds_its_row_locked_for_long_has_to_repeat() {
    let app = App::start().await;
    let Begin::Acquired(lease) = app.engine.begin(&request("k")).await.unwrap() else { panic!() };
    let (mut one, mut other) = (app.client().await, app.client().await);
    let lock = one.transaction().await.unwrap();
    lock.query("SELECT * FROM nevertwice FOR UPDATE", &[]).await.unwrap();
    let mut policy = app.policy.clone();
    policy.call_timeout = Duration::from_millis(20);
    let mut tx = other.transaction().await.unwrap();
    let resumed = postgres::resume_in(&mut tx, &app.store, &policy, &lease.token()).await.unwrap();
    repeats(soon(postgres::complete_in(&mut tx, &resumed, "paid")).await, "55P03");
    tx.rollback().await.unwrap();
    lock.rollback().await.unwrap();
    let mut tx = other.transaction().await.unwrap();
    let resumed = postgres::resume_in(&mut tx, &app.store, &policy, &lease.token()).await.unwrap();
    postgres::complete_in(&mut tx, &resumed, "paid").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(app.replay("k").await, b"paid");
}

#[tokio::test]
async fn a_finish_of_a_grant_that_was_committed_waits_no_longer_than_its_limit() {
    let app = App::start().await;
    let (mut one, mut other) = (app.client().await, app.client().await);
    let mut policy = app.policy.clone();
    policy.call_timeout = Duration::from_millis(20);
    let mut tx = one.transaction().await.unwrap();
    let begin = postgres::begin_in(&mut tx, &app.store, &policy, &request("k")).await.unwrap();
    let Begin::Acquired(lease) = begin else { panic!() };
    tx.commit().await.unwrap();
    let lock = one.transaction().await.unwrap();
    lock.query("SELECT * FROM nevertwice FOR UPDATE", &[]).await.unwrap();
    let mut tx = other.transaction().await.unwrap();
    repeats(soon(postgres::complete_in(&mut tx, &lease, "paid")).await, "55P03");
}

#[tokio::test]
async fn a_statement_timeout_or_a_lost_connection_is_an_error_and_no_grant() {
    let app = App::start().await;
    let (mut one, mut other) = (app.client().await, app.client().await);
    let mut first = one.transaction().await.unwrap();
    let _lease = app.acquire(&mut first, "k").await;
    let mut second = other.transaction().await.unwrap();
    second.batch_execute("SET LOCAL statement_timeout = '50ms'").await.unwrap();
    let timed_out = app.begin(&mut second, "k").await;
    assert!(matches!(timed_out, Err(Error::Store(StoreError::Unavailable { .. }))), "{timed_out:?}");
    second.rollback().await.unwrap();
    first.rollback().await.unwrap();
    // A session that idles in its transaction is ended by the server.
    let mut client = app.client().await;
    client.batch_execute("SET idle_in_transaction_session_timeout = '30ms'").await.unwrap();
    let mut idle = client.transaction().await.unwrap();
    let lease = app.acquire(&mut idle, "idle").await;
    soon(async {
        while app.server.sql("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in%'") != "0" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let lost = postgres::complete_in(&mut idle, &lease, "x").await;
    assert!(matches!(lost, Err(Error::Store(StoreError::Unavailable { .. }))), "{lost:?}");
    assert_eq!(app.count("nevertwice"), 0);
}
