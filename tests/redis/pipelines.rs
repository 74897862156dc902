//! Concurrent swaps that share pipelines.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use nevertwice::store::{Record, Store, Swap, SwapRequest};
use nevertwice::{Begin, Engine, Fingerprint, RecordId, RedisStore, Request, Stamp, StoreError};
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::server::{Proxy, Server};
use crate::waiting::within;
use crate::{acquire, block_on_tokio, calls, connect, engine, get, name_of, request};

/// Number of swaps sent without queueing.
const FREE: usize = 2;
const SOON: Duration = Duration::from_secs(20);

type Swapping = Pin<Box<dyn Future<Output = Result<Swap, StoreError>> + Send>>;

fn id(number: usize) -> RecordId {
    request(&format!("{number}")).id()
}

/// Returns the record that swaps write.
async fn grant(server: &Server) -> Record {
    let sample = request("a sample");
    let _ = acquire(&engine(server).await, &sample).await;
    let mut record = connect(server).await.load(&sample.id()).await.unwrap().record.unwrap();
    record.fence = Stamp::ZERO;
    *record
}

fn swapping(store: &RedisStore, number: usize, grant: &Record) -> Swapping {
    let (store, mut record) = (store.clone(), grant.clone());
    record.fingerprint = own(number);
    Box::pin(async move { store.swap(&SwapRequest::new(&id(number), None, Some(&record))).await })
}

/// The fingerprint by which a record shows its writer.
fn own(number: usize) -> Fingerprint {
    Fingerprint::of(number.to_le_bytes())
}

fn poll(swapping: &mut Swapping) -> Poll<Result<Swap, StoreError>> {
    swapping.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// Asserts that the swap was done, and that it was this one.
async fn assert_done(server: &Server, number: usize, answer: Result<Swap, StoreError>) {
    let Ok(Swap::Done(stamp)) = answer else { panic!("{number}: {answer:?}") };
    let record = connect(server).await.load(&id(number)).await.unwrap().record.unwrap();
    assert_eq!(record.stamp, stamp, "{number}");
    assert_eq!(record.fingerprint, own(number));
}

#[test]
fn s1_each_caller_gets_the_answer_to_its_own_swap() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, grant) = (connect(&server).await, grant(&server).await);
        // Some records already exist, written by another store.
        let direct = connect(&server).await;
        let mut taken = Vec::new();
        for number in (0..300).step_by(3) {
            let Ok(Swap::Done(stamp)) = swapping(&direct, number, &grant).await else { panic!("taken") };
            taken.push(stamp);
        }
        let tasks: Vec<_> = (0..300).map(|number| tokio::spawn(swapping(&store, number, &grant))).collect();
        for (number, task) in tasks.into_iter().enumerate() {
            let answer = task.await.unwrap();
            if number % 3 == 0 {
                let Ok(Swap::Conflict(found)) = answer else { panic!("{answer:?}") };
                let found = found.record.unwrap();
                assert_eq!((found.stamp, found.fingerprint), (taken[number / 3], own(number)));
            } else {
                assert_done(&server, number, answer).await;
            }
        }
    });
}

#[test]
fn concurrent_finishes_share_scripts() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = engine(&server).await;
        let mut leases = Vec::new();
        for number in 0..200 {
            leases.push(acquire(&engine, &request(&format!("{number}"))).await);
        }
        server.ask::<()>("CONFIG RESETSTAT");
        let finishes = leases.iter().map(|lease| lease.complete("done"));
        for done in futures_util::future::join_all(finishes).await {
            done.unwrap();
        }
        let scripts = calls(&server, "evalsha");
        assert!(scripts <= 12, "{scripts} scripts for 200 finishes");
    });
}

#[test]
fn s11_a_swap_that_is_dropped_while_it_waits_is_not_sent() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, grant) = (connect(&server).await, grant(&server).await);
        let mut all: Vec<_> = (0..8).map(|number| swapping(&store, number, &grant)).collect();
        assert!(all.iter_mut().all(|swapping| poll(swapping).is_pending()));
        for dropped in [6, 4, 2] {
            drop(all.remove(dropped));
        }
        for (number, swapping) in [0, 1, 3, 5, 7].into_iter().zip(all) {
            assert_done(&server, number, within(SOON, swapping).await).await;
        }
        for number in [2, 4, 6] {
            assert_eq!(get(&server, &name_of(&id(number))), None);
        }
    });
}

#[test]
fn s11_a_call_that_is_dropped_in_flight_harms_no_other_call() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, grant) = (connect(&server).await, grant(&server).await);
        // Opens the connection.
        assert!(store.load(&id(0)).await.unwrap().record.is_none());
        let mut all: Vec<_> = (0..8).map(|number| swapping(&store, number, &grant)).collect();
        assert!(all.iter_mut().all(|swapping| poll(swapping).is_pending()));
        server.ask::<()>("CLIENT PAUSE 200 ALL");
        for _ in 0..10 {
            // The pipelines of the first are sent.
            yield_now().await;
        }
        drop(all.remove(0));
        for (number, swapping) in (1..).zip(all) {
            assert_done(&server, number, within(SOON, swapping).await).await;
        }
        // Its own swap was sent, and so is done too.
        assert!(get(&server, &name_of(&id(0))).is_some());
    });
}

#[test]
fn s11_whichever_call_is_dropped_at_any_time_the_others_are_answered() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let (store, grant) = (connect(&server).await, grant(&server).await);
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = |below: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % below as u64) as usize
        };
        for round in 0..300 {
            let first = 1000 + round * 16;
            let mut all: Vec<_> = (first..first + 16).map(|n| (n, swapping(&store, n, &grant))).collect();
            for _ in 0..draw(60) {
                let chosen = draw(all.len());
                match draw(4) {
                    0 if all.len() > 4 => drop(all.swap_remove(chosen)),
                    1 => yield_now().await,
                    _ => {
                        if let Poll::Ready(answer) = poll(&mut all[chosen].1) {
                            let (number, _) = all.swap_remove(chosen);
                            assert_done(&server, number, answer).await;
                            if all.is_empty() {
                                break;
                            }
                        }
                    }
                }
            }
            let (numbers, rest): (Vec<_>, Vec<_>) = all.into_iter().unzip();
            let answers = within(SOON, futures_util::future::join_all(rest)).await;
            for (number, answer) in numbers.into_iter().zip(answers) {
                assert_done(&server, number, answer).await;
            }
        }
    });
}

#[test]
fn l1_a_call_neither_polled_nor_dropped_does_not_block_others_for_long() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let grant = grant(&server).await;
        let builder = RedisStore::builder(&server.url()).response_timeout(Duration::from_millis(100));
        let store = builder.connection_timeout(Duration::from_millis(100)).connect().await.unwrap();
        let mut still: Vec<_> = (0..FREE).map(|number| swapping(&store, number, &grant)).collect();
        assert!(still.iter_mut().all(|swapping| poll(swapping).is_pending()));
        let others: Vec<_> =
            (FREE..20).map(|number| tokio::spawn(swapping(&store, number, &grant))).collect();
        for (number, other) in others.into_iter().enumerate() {
            assert_done(&server, number + FREE, within(SOON, other).await.unwrap()).await;
        }
        // The blocked ones return late and do no harm.
        for (number, swapping) in still.into_iter().enumerate() {
            assert_done(&server, number, swapping.await).await;
        }
        let last = within(SOON, swapping(&store, 20, &grant)).await;
        assert_done(&server, 20, last).await;
    });
}

/// Pipelines on a runtime that does not run any more are not waited for.
#[test]
fn l1_a_runtime_that_is_left_idle_does_not_block_others_for_long() {
    let server = Server::start(&[]);
    let idle = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    block_on_tokio(async {
        let (store, grant) = (connect(&server).await, grant(&server).await);
        let mut all: Vec<_> = (0..24).map(|number| swapping(&store, number, &grant)).collect();
        let others = all.split_off(20);
        {
            let _entered = idle.enter();
            assert!(all.iter_mut().all(|swapping| poll(swapping).is_pending()));
        }
        // Those that are queued on the idle runtime do not take each recovery for themselves.
        for (number, swapping) in (20..).zip(others) {
            assert_done(&server, number, within(SOON / 2, swapping).await).await;
        }
    });
}

/// The form that a stream of begins takes in an application: while its body runs, none of the
/// others is polled.
#[test]
fn l1_begins_that_are_not_polled_delay_no_completion() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = Engine::builder(RedisStore::connect(&server.url()).await.unwrap()).build().unwrap();
        let requests: Vec<_> = (0..40).map(|n| Request::new("orders", format!("k{n}")).unwrap()).collect();
        let mut begins = stream::iter(&requests).map(|request| engine.begin(request)).buffered(10);
        let all = async {
            while let Some(begin) = begins.next().await {
                let Begin::Acquired(lease) = begin.unwrap() else { panic!("a new key") };
                lease.complete(&b"done"[..]).await.unwrap();
            }
        };
        // Waiting for a pipeline that is not driven would take seconds for each.
        within(SOON, all).await;
    });
}

/// A runtime that ends drops its callers one by one, each while those behind it are queued.
#[test]
fn l1_a_runtime_that_ends_with_many_queued_calls_harms_no_other() {
    const CALLS: usize = 20_000;
    let server = Server::start(&[]);
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        let (store, grant) = (RedisStore::connect(&proxy.url()).await.unwrap(), grant(&server).await);
        proxy.silence();
        let (from, ended) = (store.clone(), grant.clone());
        // On a thread of its own, since a runtime cannot end within another one.
        let thread = std::thread::spawn(move || {
            let ending = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            for number in 0..CALLS {
                ending.spawn(swapping(&from, number, &ended));
            }
            ending.block_on(yield_now());
            drop(ending);
        });
        tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
        proxy.heal();
        let after = async {
            loop {
                match store.swap(&SwapRequest::new(&id(CALLS), None, Some(&grant))).await {
                    Err(error) if error.is_transient() => {}
                    // A conflict is the first try, whose answer was lost.
                    answer => break drop(answer.unwrap()),
                }
            }
        };
        within(SOON, after).await;
    });
}

/// L3: Callers that leave before the response timeout do not keep a connection that has gone
/// silent.
#[test]
fn l3_a_silent_connection_is_replaced_though_every_caller_leaves_early() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let proxy = Proxy::start(server.port()).await;
        // Four times as much as any caller waits.
        let (limit, early) = (Duration::from_secs(2), Duration::from_millis(500));
        let store = RedisStore::builder(&proxy.url()).response_timeout(limit).connect().await.unwrap();
        assert!(store.load(&id(1)).await.unwrap().record.is_none());
        proxy.stall();
        let heals = async { while timeout(early, store.load(&id(1))).await.is_err() {} };
        within(SOON, heals).await;
        assert!(proxy.heal(), "over a new connection");
    });
}

#[test]
fn s6_an_answer_cut_in_the_middle_reaches_all_callers_and_is_done_once() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let grant = grant(&server).await;
        let proxy = Proxy::start(server.port()).await;
        let store = RedisStore::connect(&proxy.url()).await.unwrap();
        for bytes in 0..60 {
            let first = bytes * 6;
            proxy.cut_reply_after(bytes);
            let all = (first..first + 6).map(|number| swapping(&store, number, &grant));
            let answers = within(SOON, futures_util::future::join_all(all)).await;
            proxy.heal();
            for (number, answer) in (first..).zip(answers) {
                let done = match answer {
                    Ok(_) => answer,
                    Err(error) => {
                        assert!(error.is_transient(), "{error}");
                        repeated(&store, number, &grant).await
                    }
                };
                assert_done(&server, number, done).await;
            }
        }
    });
}

/// Repeats the swap until it is known whether it was done.
async fn repeated(store: &RedisStore, number: usize, grant: &Record) -> Result<Swap, StoreError> {
    loop {
        match swapping(store, number, grant).await {
            Ok(Swap::Conflict(found)) => return Ok(Swap::Done(found.record.unwrap().stamp)),
            Err(error) if error.is_transient() => {}
            done => return done,
        }
    }
}
