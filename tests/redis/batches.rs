//! Batches of swaps.

use std::time::Duration;

use bytes::Bytes;
use nevertwice::store::{Record, State, Store, Swap, SwapRequest};
use nevertwice::{Body, RecordId, RedisStore, Stamp, StoreError};

use crate::server::{Proxy, Server};
use crate::{acquire, block_on_tokio, calls, connect, engine, get, name, name_of, request, set};

/// Clock slack so short that every swap uses the script, so that calls can be counted.
const SHORT_SLACK: Duration = Duration::from_secs(59);

async fn connect_scripted(server: &Server) -> RedisStore {
    RedisStore::builder(&server.url()).clock_slack(SHORT_SLACK).connect().await.unwrap()
}

fn id(number: usize) -> RecordId {
    request(&format!("{number}")).id()
}

/// Returns a grant, which may be refused, and an outcome, which may not.
async fn records(server: &Server) -> (Record, Record) {
    let engine = engine(server).await;
    let lease = acquire(&engine, &request("a sample")).await;
    let mut begun = connect(server).await.load(&request("a sample").id()).await.unwrap().record.unwrap();
    drop(lease);
    let mut done = begun.clone();
    done.state = State::Completed(Body::kept(Bytes::from_static(b"done")));
    begun.fence = Stamp::ZERO;
    assert!(begun.may_be_refused() && !done.may_be_refused());
    (*begun, *done)
}

fn swap(id: RecordId, expected: Option<Stamp>, next: &Record) -> SwapRequest {
    SwapRequest { id, expected, next: Some(Box::new(next.clone())) }
}

fn remove(id: RecordId, expected: Stamp) -> SwapRequest {
    SwapRequest { id, expected: Some(expected), next: None }
}

fn stamp(answer: &Result<Swap, StoreError>) -> Stamp {
    match answer {
        Ok(Swap::Done(stamp)) => *stamp,
        other => panic!("{other:?}"),
    }
}

fn present(answer: &Result<Swap, StoreError>) -> Option<Stamp> {
    match answer {
        Ok(Swap::Conflict(found)) => found.record.as_ref().map(|record| record.stamp),
        other => panic!("{other:?}"),
    }
}

#[test]
fn s3_a_batch_of_one_kind_is_one_call() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect_scripted(&server).await;
        let (begun, done) = records(&server).await;
        server.ask::<()>("CONFIG RESETSTAT");
        let begins: Vec<_> = (0..100).map(|number| swap(id(number), None, &begun)).collect();
        let stamps: Vec<_> = store.swap_many(&begins).await.iter().map(stamp).collect();
        assert_eq!(calls(&server, "evalsha"), 1);
        let finishes: Vec<_> =
            stamps.iter().enumerate().map(|(number, &stamp)| swap(id(number), Some(stamp), &done)).collect();
        let finished: Vec<_> = store.swap_many(&finishes).await.iter().map(stamp).collect();
        assert_eq!(calls(&server, "evalsha"), 2);
        for number in 0..100 {
            let record = store.load(&id(number)).await.unwrap().record.unwrap();
            assert!(record.stamp == finished[number] && record.stamp > stamps[number]);
        }
        // The same begins again: each learns the present record.
        let again = store.swap_many(&begins).await;
        assert_eq!(
            again.iter().map(present).collect::<Vec<_>>(),
            finished.into_iter().map(Some).collect::<Vec<_>>()
        );
        assert!(store.swap_many(&[]).await.is_empty());
        assert_eq!(calls(&server, "evalsha"), 3);
    });
}

#[test]
fn s3_a_mixed_batch_is_one_call_of_each_kind() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect_scripted(&server).await;
        let (begun, done) = records(&server).await;
        server.ask::<()>("CONFIG RESETSTAT");
        let batch: Vec<_> = (0..50)
            .map(|number| swap(id(number), None, if number % 2 == 0 { &begun } else { &done }))
            .collect();
        let answers = store.swap_many(&batch).await;
        assert_eq!(calls(&server, "evalsha"), 2);
        for (number, answer) in answers.iter().enumerate() {
            let record = store.load(&id(number)).await.unwrap().record.unwrap();
            assert_eq!(record.stamp, stamp(answer));
            assert_eq!(matches!(record.state, State::Completed(_)), number % 2 == 1);
        }
    });
}

#[test]
fn s3_swaps_of_one_id_see_each_other_in_their_order() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let (begun, done) = records(&server).await;
        for first in [&begun, &done] {
            for second in [&begun, &done] {
                let batch = [
                    swap(id(1), None, first),
                    swap(id(2), None, second),
                    swap(id(1), None, second),
                    remove(id(2), Stamp(1)),
                    swap(id(2), None, first),
                ];
                let answers = store.swap_many(&batch).await;
                let stamps = [stamp(&answers[0]), stamp(&answers[1])];
                for (answer, number) in [(2, 0), (3, 1), (4, 1)] {
                    assert_eq!(present(&answers[answer]), Some(stamps[number]), "{answer}");
                }
                let batch = [remove(id(1), stamps[0]), swap(id(1), None, second), swap(id(1), None, first)];
                let answers = store.swap_many(&batch).await;
                let last = stamp(&answers[1]);
                assert!(stamps[0] < stamp(&answers[0]) && stamp(&answers[0]) < last);
                assert_eq!(present(&answers[2]), Some(last));
                let ends = [remove(id(1), last), remove(id(2), stamps[1])];
                assert!(store.swap_many(&ends).await.iter().all(|answer| stamp(answer) > last));
            }
        }
    });
}

#[test]
fn s10_a_damaged_record_spoils_its_own_swap_only() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let (begun, _) = records(&server).await;
        set(&server, &name_of(&id(1)), b"a text that is no record");
        redis::cmd("HSET").arg(name_of(&id(2))).arg("f").arg("v").exec(&mut server.raw()).unwrap();
        let batch: Vec<_> = (0..4).map(|number| swap(id(number), None, &begun)).collect();
        let answers = store.swap_many(&batch).await;
        for number in [1, 2] {
            assert!(matches!(&answers[number], Err(StoreError::Corrupt { id: of, .. }) if *of == id(number)));
        }
        for number in [0, 3] {
            let record = store.load(&id(number)).await.unwrap().record.unwrap();
            assert_eq!(record.stamp, stamp(&answers[number]));
        }
    });
}

#[test]
fn a_long_batch_is_cut() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let builder = RedisStore::builder(&server.url()).response_timeout(Duration::from_secs(10));
        let store = builder.clock_slack(SHORT_SLACK).connect().await.unwrap();
        let (begun, done) = records(&server).await;
        server.ask::<()>("CONFIG RESETSTAT");
        let mut batch: Vec<_> = (0..3000).map(|number| swap(id(number), None, &begun)).collect();
        // In a later call than their predecessors, and of both kinds.
        batch.push(swap(id(0), None, &begun));
        batch.push(swap(id(1), None, &done));
        let answers = store.swap_many(&batch).await;
        let stamps: Vec<_> = answers[..3000].iter().map(stamp).collect();
        assert_eq!(present(&answers[3000]), Some(stamps[0]));
        assert_eq!(present(&answers[3001]), Some(stamps[1]));
        let count = calls(&server, "evalsha");
        assert!((13..=15).contains(&count), "{count}");
        // Also split by bytes.
        let mut long = done.clone();
        long.state = State::Completed(Body::kept(Bytes::from(vec![7; 400_000])));
        let batch: Vec<_> = (0..8).map(|number| swap(id(number), Some(stamps[number]), &long)).collect();
        assert!(store.swap_many(&batch).await.iter().all(|answer| stamp(answer) > stamps[0]));
        assert_eq!(calls(&server, "evalsha") - count, 4);
    });
}

#[test]
fn s12_when_full_begins_are_refused_each_for_itself() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let (begun, done) = records(&server).await;
        let [held, over] = [0, 1].map(|number| swap(id(number), None, &begun));
        let answers = store.swap_many(&[held, over]).await;
        let [held, over] = [stamp(&answers[0]), stamp(&answers[1])];
        server.ask::<()>("CONFIG SET maxmemory 1");
        server.ask::<()>("SCRIPT FLUSH");
        let batch = [
            swap(id(0), None, &begun),
            swap(id(1), Some(over), &done),
            swap(id(2), None, &begun),
            swap(id(1), None, &begun),
        ];
        let answers = store.swap_many(&batch).await;
        assert_eq!(present(&answers[0]), Some(held));
        let finished = stamp(&answers[1]);
        assert!(matches!(answers[2], Err(StoreError::Full { .. })), "{:?}", answers[2]);
        assert_eq!(present(&answers[3]), Some(finished));
        assert_eq!(get(&server, &name_of(&id(2))), None);
    });
}

#[test]
fn a_lost_script_is_not_noticed_by_a_batch() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = connect(&server).await;
        let (begun, done) = records(&server).await;
        let batch: Vec<_> = (0..600)
            .map(|number| swap(id(number), None, if number < 300 { &begun } else { &done }))
            .collect();
        server.ask::<()>("SCRIPT FLUSH");
        for answer in store.swap_many(&batch).await {
            stamp(&answer);
        }
    });
}

#[test]
fn s6_a_batch_whose_answer_is_lost_was_done_or_not() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        let store = RedisStore::connect(&proxy.url()).await.unwrap();
        let (begun, _) = records(&server).await;
        proxy.cut_reply_after(3);
        let batch: Vec<_> = (0..10).map(|number| swap(id(number), None, &begun)).collect();
        for answer in store.swap_many(&batch).await {
            assert!(answer.unwrap_err().is_transient());
        }
        assert!(proxy.heal());
        for answer in store.swap_many(&batch).await {
            assert!(present(&answer).is_some());
        }
    });
}

#[test]
fn a_batch_that_meets_a_replica_follows_the_name_to_the_primary() {
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    block_on_tokio(async {
        let proxy = Proxy::start(old.port()).await;
        let store = RedisStore::connect(&proxy.url()).await.unwrap();
        let (begun, _) = records(&new).await;
        proxy.lead_to(new.port());
        old.ask::<()>("REPLICAOF 127.0.0.1 1");
        let batch = [swap(request("k").id(), None, &begun)];
        assert!(store.swap_many(&batch).await[0].as_ref().unwrap_err().is_transient());
        stamp(&store.swap_many(&batch).await[0]);
        assert!(get(&new, &name(&request("k"))).is_some());
    });
}
