//! The rule of `replicated`, on a primary and a replica that nothing cuts off.

use std::time::Duration;

use nevertwice::store::{Store, SwapRequest};
use nevertwice::{Begin, Engine, Error, RedisStore, Retry, StoreError};

use crate::server::Server;
use crate::waiting::within;
use crate::{acquire, block_on_tokio, calls, get, name, request, set};

/// Attempts to reach a state, one every 10 ms.
const PATIENCE: u32 = 6_000;

/// A primary and its replica.
struct Pair {
    primary: Server,
    _replica: Server,
}

impl Pair {
    fn start() -> Pair {
        let primary = Server::start(&["--repl-diskless-sync-delay", "0"]);
        let replica = Server::start(&["--replicaof", "127.0.0.1", &primary.port().to_string()]);
        let is_in_step = || primary.ask::<String>("INFO replication").contains("state=online");
        assert!(
            (0..PATIENCE).any(|_| is_in_step() || {
                std::thread::sleep(Duration::from_millis(10));
                false
            }),
            "the replica is never in step"
        );
        Pair { primary, _replica: replica }
    }

    async fn store(&self, url: &str) -> RedisStore {
        RedisStore::builder(url).replicated(1).accept_no_append_only_file().connect().await.unwrap()
    }

    fn keys(&self) -> u64 {
        self.primary.ask("DBSIZE")
    }
}

/// A server that stays full would get one more key for each of them.
#[test]
fn s12_begins_that_a_full_server_refuses_write_nothing() {
    let pair = Pair::start();
    block_on_tokio(async {
        let store = pair.store(&pair.primary.url()).await;
        let engine = Engine::builder(store).build().unwrap();
        let (done, failed) = (request("done"), request("failed"));
        acquire(&engine, &done).await.complete("done").await.unwrap();
        acquire(&engine, &failed).await.fail("no", Retry::Now).await.unwrap();
        pair.primary.ask::<()>("CONFIG SET maxmemory 1");
        let before = pair.keys();
        for number in 0..5 {
            let refused = engine.begin(&request(&format!("{number}"))).await;
            assert!(matches!(refused, Err(Error::Store(StoreError::Full { .. }))), "{refused:?}");
        }
        let fresh = [request("a"), request("b"), done, failed];
        let many = engine.begin_many(&fresh).await;
        assert!(matches!(many[2], Ok(Begin::Completed(_))), "{many:?}");
        for refused in [&many[0], &many[1], &many[3]] {
            assert!(matches!(refused, Err(Error::Store(StoreError::Full { .. }))), "{refused:?}");
        }
        assert_eq!(pair.keys(), before, "tombstones of keys that never were");
    });
}

/// The record that is there confirms what is not there too.
#[test]
fn s12_an_absent_record_is_confirmed_by_one_that_exists() {
    let pair = Pair::start();
    block_on_tokio(async {
        let store = pair.store(&pair.primary.url()).await;
        let engine = Engine::builder(store.clone()).build().unwrap();
        acquire(&engine, &request("done")).await.complete("done").await.unwrap();
        let done = store.load(&request("done").id()).await.unwrap().record.unwrap();
        let before = pair.keys();
        let absent = SwapRequest::new(&request("absent").id(), Some(done.stamp), None);
        let known = SwapRequest::new(&request("done").id(), Some(done.stamp.next()), Some(&done));
        let swaps = store.swap_many(&[absent, known]).await;
        assert!(swaps.iter().all(Result::is_ok), "{swaps:?}");
        assert_eq!(pair.keys(), before);
    });
}

/// A user who may do anything, until a permission is taken away and the scripts are lost.
fn taken_away(server: &Server) {
    server.ask::<()>("ACL SETUSER rosa -script|load");
    server.ask::<()>("SCRIPT FLUSH");
}

#[test]
fn a_lost_permission_to_load_scripts_is_named() {
    let pair = Pair::start();
    pair.primary.ask::<()>("ACL SETUSER rosa on >s3cret ~* &* +@all");
    block_on_tokio(async {
        let url = pair.primary.url_as("rosa", "s3cret");
        let replicated = pair.store(&url).await;
        let plain = RedisStore::connect(&url).await.unwrap();
        let engine = Engine::builder(plain).build().unwrap();
        let lease = acquire(&engine, &request("k")).await;
        taken_away(&pair.primary);
        // Valkey completes without a script.
        if !pair.primary.ask::<String>("INFO server").contains("valkey_version") {
            let Err(Error::Store(StoreError::Unusable { detail, .. })) = lease.complete("done").await else {
                panic!("it cannot be done");
            };
            assert!(detail.contains("+script|load"), "{detail}");
        }
        // A read that replicas must confirm.
        let error = replicated.load(&request("k").id()).await.unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains("+script|load"), "{error}");
        // Until it is given back.
        pair.primary.ask::<()>("ACL SETUSER rosa +script|load");
        lease.complete("done").await.unwrap();
        let again = async {
            loop {
                match replicated.load(&request("k").id()).await {
                    // The replica is late.
                    Err(error) if error.is_transient() => {}
                    found => break found.unwrap(),
                }
            }
        };
        assert!(within(Duration::from_secs(60), again).await.record.is_some());
    });
}

/// A record that is read again after each change would be announced for ever.
#[test]
fn a_record_without_waiters_is_not_read_when_it_changes() {
    let pair = Pair::start();
    block_on_tokio(async {
        let store = pair.store(&pair.primary.url()).await;
        let engine = Engine::builder(store.clone()).build().unwrap();
        let request = request("k");
        let lease = acquire(&engine, &request).await;
        let stamp = store.load(&request.id()).await.unwrap().record.unwrap().stamp;
        store.changed(&request.id(), stamp, Duration::from_millis(300)).await.unwrap();
        let value = get(&pair.primary, &name(&request)).unwrap();
        pair.primary.ask::<()>("CONFIG RESETSTAT");
        for _ in 0..5 {
            set(&pair.primary, &name(&request), &value);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(calls(&pair.primary, "get"), 0);
        drop(lease);
    });
}
