//! Lifetimes of records, and values that other clients left.

use std::time::Duration;

use bytes::Bytes;
use nevertwice::store::{DecodeError, Record, State, Store, Swap, SwapRequest};
use nevertwice::{Begin, Body, Durability, Engine, Error, RedisStore, Retry, Stamp, StoreError};

use redis::Value;

use crate::server::Server;
use crate::{acquire, block_on_tokio, connect, engine, get, name, request, response, set, ttl};

const SLACK: Duration = Duration::from_secs(600);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// The default lease, at whose end the retention starts.
const LEASE: Duration = Duration::from_secs(30);

/// Excess lifetime allowed: the stamp may be ahead of the server's clock by the store's uncertainty
/// about it.
const AHEAD: Duration = Duration::from_millis(25);

/// Asserts that `ttl` is `promised`, less the time since the write.
#[track_caller]
fn assert_kept(ttl: Option<Duration>, promised: Duration) {
    let ttl = ttl.expect("it has an end");
    assert!(ttl <= promised + AHEAD && ttl + Duration::from_secs(60) > promised, "{ttl:?} of {promised:?}");
}

#[test]
fn s13_records_are_kept_for_the_retention_and_the_slack() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = engine(&server).await;
        let key = name(&request("k"));
        let lease = acquire(&engine, &request("k")).await;
        assert_kept(ttl(&server, &key), LEASE + DAY + SLACK);
        lease.renew().await.unwrap();
        assert_kept(ttl(&server, &key), LEASE + DAY + SLACK);
        lease.fail("later", Retry::After(2 * DAY)).await.unwrap();
        assert_kept(ttl(&server, &key), 3 * DAY + SLACK);
        let lease = acquire(&engine, &request("done")).await;
        lease.complete("done").await.unwrap();
        let kept = ttl(&server, &name(&request("done")));
        assert!(kept > Some(DAY + SLACK - Duration::from_secs(60)), "{kept:?}");
        assert!(kept <= Some(LEASE + DAY + SLACK + AHEAD), "{kept:?}");
    });
}

#[test]
fn s13_a_removed_record_leaves_its_stamp_for_the_slack() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let slack = Duration::from_secs(90);
        let store = RedisStore::builder(&server.url()).clock_slack(slack).connect().await.unwrap();
        let engine = Engine::builder(store.clone()).build().unwrap();
        acquire(&engine, &request("k")).await.release().await.unwrap();
        let key = name(&request("k"));
        assert_eq!(get(&server, &key).unwrap().len(), 8);
        assert_kept(ttl(&server, &key), slack);
        assert_eq!(store.load(&request("k").id()).await.unwrap().record, None);
        assert!(!engine.forget("scope", "k").await.unwrap());
    });
}

/// Sets the record of a fresh grant an hour ahead of the server's clock, as if that had been set
/// back.
async fn grant_ahead_of_the_clock(server: &Server, engine: &Engine, store: &RedisStore) -> Stamp {
    let _ = acquire(engine, &request("k")).await;
    let id = request("k").id();
    let Swap::Conflict(found) = store.swap(&SwapRequest::new(&id, Some(Stamp(1)), None)).await.unwrap()
    else {
        panic!("written")
    };
    let mut record = found.record.unwrap();
    let ahead = record.stamp.after(Duration::from_secs(3600));
    record.fence = ahead;
    set(
        server,
        &name(&request("k")),
        &[&ahead.0.to_be_bytes()[..], &record.encode(&id, Stamp::ZERO)].concat(),
    );
    ahead
}

#[test]
fn s5_fences_increase_though_the_clock_was_set_back() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store.clone()).build().unwrap();
        let ahead = grant_ahead_of_the_clock(&server, &engine, &store).await;
        let snapshot = store.load(&request("k").id()).await.unwrap();
        assert!(snapshot.now >= ahead);

        assert!(engine.forget("scope", "k").await.unwrap());
        assert!(store.load(&request("k").id()).await.unwrap().now > ahead);
        let second = acquire(&engine, &request("k")).await;
        assert!(second.fence() > ahead);
        second.release().await.unwrap();
        let third = acquire(&engine, &request("k")).await;
        assert!(third.fence() > second.fence());
        third.fail("again", Retry::Now).await.unwrap();
        assert!(acquire(&engine, &request("k")).await.fence() > third.fence());
    });
}

#[test]
fn s13_what_is_ahead_of_the_clock_is_kept_so_much_longer() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store.clone()).build().unwrap();
        let hour = Duration::from_secs(3600);
        grant_ahead_of_the_clock(&server, &engine, &store).await;
        engine.forget("scope", "k").await.unwrap();
        assert_kept(ttl(&server, &name(&request("k"))), hour + SLACK);
        let _ = acquire(&engine, &request("k")).await;
        assert_kept(ttl(&server, &name(&request("k"))), hour + LEASE + DAY + SLACK);
    });
}

#[test]
fn s5_fences_increase_after_a_discard() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let engine = Engine::builder(store.clone()).build().unwrap();
        let ahead = grant_ahead_of_the_clock(&server, &engine, &store).await;
        assert!(store.discard(&request("k").id()).await.unwrap());
        assert!(!store.discard(&request("k").id()).await.unwrap());
        assert!(acquire(&engine, &request("k")).await.fence() > ahead);
    });
}

#[test]
fn l6_the_shortest_and_the_longest_times_work() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        for slack in [Duration::ZERO, Duration::MAX] {
            let prefix = format!("{slack:?}:");
            let builder = RedisStore::builder(&server.url()).prefix(&prefix).clock_slack(slack);
            let store = builder.connect().await.unwrap();
            for time in [
                Duration::from_nanos(1),
                Duration::from_secs(1 << 33),
                Duration::from_secs(1 << 52),
                Duration::MAX,
            ] {
                let engine = Engine::builder(store.clone())
                    .lease(time)
                    .retention(time)
                    .unresolved_retention(DAY.max(time))
                    .build()
                    .unwrap();
                let request = request(&format!("{time:?}"));
                let lease = acquire(&engine, &request).await;
                lease.complete("done").await.unwrap();
                lease.complete("done").await.unwrap();
                if time > DAY {
                    assert_eq!(response(&engine, &request).await, b"done");
                }
                let _ = engine.forget("scope", format!("{time:?}")).await.unwrap();
            }
        }
    });
}

#[test]
fn what_is_kept_for_ever_has_no_end() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = Engine::builder(connect(&server).await)
            .retention(Duration::MAX)
            .unresolved_retention(Duration::MAX)
            .build()
            .unwrap();
        let lease = acquire(&engine, &request("k")).await;
        lease.complete("done").await.unwrap();
        assert_eq!(ttl(&server, &name(&request("k"))), None);
        engine.forget("scope", "k").await.unwrap();
        assert_kept(ttl(&server, &name(&request("k"))), SLACK);
    });
}

#[test]
fn a_record_without_retention_can_be_swapped() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = RedisStore::builder(&server.url()).clock_slack(Duration::ZERO).connect().await.unwrap();
        let engine = Engine::builder(store.clone()).build().unwrap();
        let _ = acquire(&engine, &request("k")).await;
        let id = request("k").id();
        let mut record: Record = *store.load(&id).await.unwrap().record.unwrap();
        record.retention = Duration::ZERO;
        record.state = State::Completed(Body::kept(Bytes::from_static(b"done")));
        let swap = store.swap(&SwapRequest::new(&id, Some(record.stamp), Some(&record))).await.unwrap();
        assert!(matches!(swap, Swap::Done(stamp) if stamp > record.stamp), "{swap:?}");
    });
}

#[test]
fn s10_what_is_no_record_is_never_a_grant_and_can_be_forgotten() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = engine(&server).await;
        let key = name(&request("k"));
        let _ = acquire(&engine, &request("k")).await;
        let mut damaged = get(&server, &key).unwrap();
        *damaged.last_mut().unwrap() ^= 1;
        let garbage: [&[u8]; 7] =
            [b"", b"x", b"*", b"7 bytes", b"8 bytes!", b"a text that is no record", &damaged];
        for value in garbage {
            set(&server, &key, value);
            assert_corrupt(&engine, value).await;
            assert_eq!(get(&server, &key).as_deref(), Some(value), "left alone");
            assert!(engine.forget("scope", "k").await.unwrap(), "{value:?}");
            acquire(&engine, &request("k")).await.complete("done").await.unwrap();
        }
        let mut raw = server.raw();
        redis::cmd("DEL").arg(&key).exec(&mut raw).unwrap();
        redis::cmd("HSET").arg(&key).arg("field").arg("value").exec(&mut raw).unwrap();
        assert_corrupt(&engine, b"a hash").await;
        assert!(engine.forget("scope", "k").await.unwrap());
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
    });
}

async fn assert_corrupt(engine: &Engine, what: &[u8]) {
    let begun = engine.begin(&request("k")).await;
    assert!(matches!(begun, Err(Error::Store(StoreError::Corrupt { .. }))), "{what:?}: {begun:?}");
    let seen = engine.inspect("scope", "k").await;
    assert!(matches!(seen, Err(Error::Store(StoreError::Corrupt { .. }))), "{what:?}: {seen:?}");
}

#[test]
fn s10_a_record_of_another_key_is_not_believed() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = engine(&server).await;
        acquire(&engine, &request("other")).await.complete("done").await.unwrap();
        set(&server, &name(&request("k")), &get(&server, &name(&request("other"))).unwrap());
        assert_corrupt(&engine, b"of another key").await;
    });
}

#[test]
fn s14_a_record_of_a_newer_release_is_left_alone() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = engine(&server).await;
        let key = name(&request("k"));
        let lease = acquire(&engine, &request("k")).await;
        let mut newer = get(&server, &key).unwrap();
        newer[8] = Record::VERSION + 1;
        // A changed stamp, so that the holder's swap conflicts too.
        newer[7] ^= 1;
        set(&server, &key, &newer);
        let refused = |error: &Error| {
            matches!(
                error,
                Error::Store(StoreError::Corrupt { source: DecodeError::NewerVersion { .. }, .. })
            )
        };
        assert!(refused(&engine.begin(&request("k")).await.unwrap_err()));
        assert!(refused(&lease.complete("done").await.unwrap_err()));
        assert!(refused(&lease.release().await.unwrap_err()));
        assert!(refused(&engine.forget("scope", "k").await.unwrap_err()));
        assert_eq!(get(&server, &key).unwrap(), newer);
    });
}

#[test]
fn prefixes_keep_stores_apart() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        for prefix in ["a:", "b:", ""] {
            let store = RedisStore::builder(&server.url()).prefix(prefix).connect().await.unwrap();
            let engine = Engine::builder(store).require(Durability::Memory).build().unwrap();
            acquire(&engine, &request("k")).await.complete(prefix).await.unwrap();
            assert_eq!(response(&engine, &request("k")).await, prefix.as_bytes());
        }
    });
}

#[test]
fn s12_over_maxmemory_begins_are_refused_and_finishes_are_not() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = engine(&server).await;
        let lease = acquire(&engine, &request("k")).await;
        let released = acquire(&engine, &request("released")).await;
        server.ask::<()>("CONFIG SET maxmemory 1");
        server.ask::<()>("SCRIPT FLUSH");

        let full = engine.begin(&request("another")).await;
        assert!(matches!(full, Err(Error::Store(StoreError::Full { .. }))), "{full:?}");
        let busy = engine.begin(&request("k")).await.unwrap();
        assert!(matches!(busy, Begin::InProgress(_)), "{busy:?}");
        lease.renew().await.unwrap();
        lease.mark_effect().await.unwrap();
        lease.complete("done").await.unwrap();
        assert_eq!(response(&engine, &request("k")).await, b"done");
        released.release().await.unwrap();
        assert!(engine.forget("scope", "k").await.unwrap());

        server.ask::<()>("CONFIG SET maxmemory 0");
        let _ = acquire(&engine, &request("another")).await;
    });
}

#[test]
fn one_call_of_the_script_carries_many_swaps() {
    let server = Server::start(&[]);
    let mut raw = server.raw();
    redis::cmd("HSET").arg("hash").arg("field").arg("value").exec(&mut raw).unwrap();
    let old = 7_u64.to_be_bytes();
    set(&server, b"taken", &[&old[..], b"old"].concat());
    set(&server, b"mine", &[&old[..], b"old"].concat());
    let mut call = redis::cmd("EVAL");
    call.arg(concat!("#!lua\n", include_str!("../../backends/redis/swap.lua"))).arg(4);
    call.arg("fresh").arg("taken").arg("hash").arg("mine");
    for (expected, bytes) in [(&b""[..], "new"), (b"", "new"), (b"", "new"), (&old, "")] {
        call.arg(expected).arg(bytes).arg(60_000);
    }
    let answers: Vec<Value> = call.query(&mut raw).unwrap();
    let Value::Int(now) = answers[1] else { panic!("{answers:?}") };
    let string = |parts: &[&[u8]]| Value::BulkString(parts.concat());
    let expected = [
        [Value::Int(1), Value::Int(now), string(&[])],
        [Value::Int(0), Value::Int(now), string(&[&old, b"old"])],
        [Value::Int(0), Value::Int(now), string(&[b"?"])],
        [Value::Int(1), Value::Int(now), string(&[&old])],
    ];
    assert_eq!(answers, expected.concat());
    assert_eq!(get(&server, b"fresh").unwrap(), [&now.to_be_bytes()[..], b"new"].concat());
    assert_eq!(get(&server, b"mine").unwrap(), now.to_be_bytes());
}
