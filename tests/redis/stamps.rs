//! Stamps that the store derives from its estimate of the server's clock.

use std::time::Duration;

use nevertwice::store::Store;
use nevertwice::{Begin, Engine, Error, RedisStore, Stamp};

use crate::server::{Proxy, Server};
use crate::{acquire, block_on_tokio, calls, connect, engine, get, name, request, response, ttl};

const HOUR: i64 = 3600;

fn now(server: &Server) -> Stamp {
    let (seconds, micros): (u64, u64) = server.ask("TIME");
    Stamp(seconds * 1_000_000 + micros)
}

/// True if the server supports compare-and-set natively: Valkey.
fn compares(server: &Server) -> bool {
    server.ask::<String>("INFO server").contains("valkey_version")
}

/// Returns an engine that believes in a clock so many seconds ahead of the server's, until it asks
/// again. If that took too long, its estimate is too old and it uses none.
async fn misled(server: &Server, proxy: &Proxy, seconds: i64) -> Engine {
    let store = RedisStore::connect(&proxy.url()).await.unwrap();
    proxy.shift_time(seconds);
    let engine = Engine::builder(store).build().unwrap();
    // The first swap returns with the reading of the clock.
    let _ = acquire(&engine, &request(&format!("first {seconds}"))).await;
    proxy.heal();
    assert!(get(server, &name(&request(&format!("first {seconds}")))).is_some());
    engine
}

#[test]
fn s1_a_grants_stamp_is_not_before_the_grant_was_asked_for() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = engine(&server).await;
        let mut ahead = Duration::ZERO;
        for number in 0..300 {
            let before = now(&server);
            let lease = acquire(&engine, &request(&format!("{number}"))).await;
            let after = now(&server);
            assert!(lease.fence() >= before, "{:?} early", before.since(lease.fence()));
            ahead = ahead.max(lease.fence().since(after));
        }
        assert!(ahead < Duration::from_millis(25), "{ahead:?} ahead");
    });
}

#[test]
fn s5_stamps_increase_from_grant_to_finish_to_grant() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (one, other) = (engine(&server).await, engine(&server).await);
        let mut last = Stamp::ZERO;
        for round in 0..100 {
            let engine = if round % 3 == 0 { &one } else { &other };
            let lease = acquire(engine, &request("k")).await;
            assert!(lease.fence() > last, "round {round}");
            last = lease.fence();
            lease.renew().await.unwrap();
            lease.release().await.unwrap();
            let stone = get(&server, &name(&request("k"))).unwrap();
            assert_eq!(stone.len(), 8);
            let stone = Stamp(u64::from_be_bytes(stone.try_into().unwrap()));
            assert!(stone > last);
            last = stone;
        }
    });
}

#[test]
fn s13_who_believes_in_a_clock_ahead_takes_nothing_over() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let direct = engine(&server).await;
        let held = acquire(&direct, &request("held")).await;
        let proxy = Proxy::start(server.port()).await;
        // Ahead of the end of the lease, and then also of the end of the retention.
        for seconds in [HOUR, 100 * HOUR] {
            let misled = misled(&server, &proxy, seconds).await;
            let begun = misled.begin(&request("held")).await.unwrap();
            assert!(matches!(begun, Begin::InProgress(_)), "{begun:?}");
        }
        held.complete("done").await.unwrap();
        let misled = misled(&server, &proxy, 200 * HOUR).await;
        assert_eq!(response(&misled, &request("held")).await, b"done");
    });
}

#[test]
fn s5_what_was_granted_by_a_clock_ahead_can_be_finished_and_granted_again() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        let (misled, direct) = (misled(&server, &proxy, HOUR).await, engine(&server).await);
        let lease = acquire(&misled, &request("k")).await;
        let begun = direct.begin(&request("k")).await.unwrap();
        assert!(matches!(begun, Begin::InProgress(_)), "{begun:?}");
        lease.release().await.unwrap();
        let second = acquire(&direct, &request("k")).await;
        assert!(second.fence() > lease.fence());
        second.complete("done").await.unwrap();
        assert!(matches!(lease.complete("late").await, Err(Error::LeaseLost { .. })));
        assert_eq!(response(&misled, &request("k")).await, b"done");
        // Kept for its retention of a day, however far ahead its stamp is.
        let kept = ttl(&server, &name(&request("k"))).unwrap();
        assert!(kept > Duration::from_secs(24 * 3600), "{kept:?}");
    });
}

#[test]
fn s3_what_was_granted_by_a_clock_behind_is_over_early_and_protected() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        let (misled, direct) = (misled(&server, &proxy, -HOUR).await, engine(&server).await);
        let lease = acquire(&misled, &request("k")).await;
        let second = acquire(&direct, &request("k")).await;
        // If the estimate was too old by then, the server gave the first stamp, and this begin
        // found the key in progress.
        assert!(second.attempt() == 2 && second.fence() > lease.fence());
        assert!(matches!(lease.complete("late").await, Err(Error::LeaseLost { .. })));
        second.complete("done").await.unwrap();
        assert_eq!(response(&misled, &request("k")).await, b"done");
    });
}

#[test]
fn a_begin_and_a_replay_need_no_script_and_a_finish_needs_one_at_most() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = engine(&server).await;
        let _ = acquire(&engine, &request("first")).await;
        // The estimate of the server's clock may get too old in between. That takes scripts, and
        // another round.
        let done = async |round: u32| {
            let request = request(&format!("{round}"));
            server.ask::<()>("CONFIG RESETSTAT");
            acquire(&engine, &request).await.complete("done").await.unwrap();
            let finish = calls(&server, "evalsha");
            response(&engine, &request).await;
            (finish, calls(&server, "evalsha"), calls(&server, "set"))
        };
        let script = u64::from(!compares(&server));
        let mut seen = Vec::new();
        for round in 0..20 {
            seen.push(done(round).await);
        }
        assert!(seen.contains(&(script, script, 3)), "{seen:?}");
    });
}

#[test]
fn a_lease_that_another_process_wrote_is_finished_by_the_script() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (one, other) = (engine(&server).await, engine(&server).await);
        let lease = acquire(&one, &request("k")).await;
        lease.renew().await.unwrap();
        let elsewhere = other.resume(&lease.token()).await.unwrap();
        elsewhere.mark_effect().await.unwrap();
        // The record that this engine wrote has been replaced.
        lease.renew().await.unwrap();
        lease.save_checkpoint("half").await.unwrap();
        elsewhere.complete("done").await.unwrap();
        lease.complete("done").await.unwrap();
        assert!(matches!(lease.complete("other").await, Err(Error::AlreadyFinished { .. })));
        assert_eq!(response(&other, &request("k")).await, b"done");
    });
}

#[test]
fn a_store_that_keeps_stones_for_a_short_time_lets_the_server_give_all_stamps() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let builder = RedisStore::builder(&server.url()).clock_slack(Duration::from_secs(59));
        let engine = Engine::builder(builder.connect().await.unwrap()).build().unwrap();
        server.ask::<()>("CONFIG RESETSTAT");
        for number in 0..5 {
            acquire(&engine, &request(&format!("{number}"))).await.complete("done").await.unwrap();
        }
        assert_eq!(calls(&server, "evalsha"), 10);
        assert_eq!(connect(&server).await.name(), "redis");
    });
}
