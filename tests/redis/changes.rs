//! Servers that change under a store: begins are refused once the server is unfit, and only begins.

use std::time::Duration;

use nevertwice::backends::redis::Warning;
use nevertwice::store::{Snapshot, Store};
use nevertwice::{
    Begin, Clock, Durability, Engine, Error, Lease, RedisStore, Request, Retry, StoreError, SystemClock,
};

use crate::server::{Proxy, Server};
use crate::{acquire, block_on_tokio, calls, get, name, request, response};

const EVICTS: [&str; 4] = ["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
const HALF_AN_HOUR: Duration = Duration::from_secs(1800);
const ALWAYS: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// Connects a store that inspects the server before each of its begins.
async fn watchful(url: &str) -> RedisStore {
    RedisStore::builder(url).recheck_every(Duration::ZERO).connect().await.unwrap()
}

fn engine(store: &RedisStore) -> Engine {
    Engine::builder(store.clone()).build().unwrap()
}

/// Begins, and returns the reason of the permanent refusal.
async fn refusal(engine: &Engine, request: &Request) -> String {
    match engine.begin(request).await {
        Err(Error::Store(StoreError::Unusable { detail, .. })) => detail,
        other => panic!("{other:?}"),
    }
}

/// Keys in every state in which a begin would be granted, a duplicate answered, or a lease
/// continued.
struct Keys {
    held: Lease,
    marked: Lease,
    completed: Request,
    abandoned: Request,
    failed: Request,
}

impl Keys {
    async fn prepare(engine: &Engine) -> Keys {
        let completed = request("completed");
        acquire(engine, &completed).await.complete("done").await.unwrap();
        let abandoned = request("abandoned").lease(Duration::from_millis(1));
        drop(acquire(engine, &abandoned).await);
        let failed = request("failed");
        acquire(engine, &failed).await.fail("no", Retry::Now).await.unwrap();
        let (held, marked) = (acquire(engine, &request("held")).await, acquire(engine, &request("m")).await);
        Keys { held, marked, completed, abandoned, failed }
    }

    /// Checks that operations in progress continue, duplicates are answered, and begins are
    /// refused. Returns the reason.
    async fn only_begins_are_refused(&self, engine: &Engine, server: &Server) -> String {
        let fresh = request("fresh");
        let detail = refusal(engine, &fresh).await;
        for request in [&self.abandoned, &self.failed] {
            let before = get(server, &name(request));
            assert_eq!(refusal(engine, request).await, detail);
            assert_eq!(get(server, &name(request)), before, "nothing was written");
        }
        let many = engine.begin_many(&[fresh.clone(), self.completed.clone()]).await;
        assert!(matches!(many[0], Err(Error::Store(StoreError::Unusable { .. }))), "{many:?}");
        assert!(matches!(many[1], Ok(Begin::Completed(_))), "{many:?}");
        assert_eq!(get(server, &name(&fresh)), None, "nothing was written");
        assert_eq!(response(engine, &self.completed).await, b"done");
        assert!(matches!(engine.begin(&request("held")).await, Ok(Begin::InProgress(_))));
        self.held.renew().await.unwrap();
        self.held.save_checkpoint("half").await.unwrap();
        self.held.mark_effect().await.unwrap();
        self.held.complete("done").await.unwrap();
        assert_eq!(response(engine, &request("held")).await, b"done");
        self.marked.mark_effect().await.unwrap();
        self.marked.fail("no", Retry::Never).await.unwrap();
        detail
    }

    async fn begins_are_granted(&self, engine: &Engine) {
        for request in [&request("fresh"), &self.abandoned, &self.failed] {
            let _ = acquire(engine, request).await;
        }
    }
}

#[test]
fn s2_a_server_that_begins_to_evict_is_given_no_grants_until_it_stops() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let engine = engine(&watchful(&server.url()).await);
        let keys = Keys::prepare(&engine).await;
        server.ask::<()>("CONFIG SET maxmemory 100mb maxmemory-policy volatile-lru");
        let detail = keys.only_begins_are_refused(&engine, &server).await;
        assert!(detail.contains("volatile-lru") && detail.contains("set noeviction"), "{detail}");
        server.ask::<()>("CONFIG SET maxmemory-policy noeviction");
        keys.begins_are_granted(&engine).await;
    });
}

#[test]
fn s2_a_limit_that_makes_a_server_evict_is_noticed() {
    let server = Server::start(&["--maxmemory-policy", "allkeys-lfu"]);
    block_on_tokio(async {
        let store = watchful(&server.url()).await;
        let engine = engine(&store);
        let _ = acquire(&engine, &request("k")).await;
        assert!(store.warnings().contains(&Warning::EvictionPolicy));
        server.ask::<()>("CONFIG SET maxmemory 100mb");
        assert!(refusal(&engine, &request("another")).await.contains("allkeys-lfu"));
    });
}

/// No time passes: the new connection inspects the server.
#[test]
fn s2_a_server_that_comes_back_as_one_that_evicts_is_given_no_grants() {
    let mut server = Server::start(&ALWAYS);
    block_on_tokio(async {
        let engine = engine(&RedisStore::connect(&server.url()).await.unwrap());
        let keys = Keys::prepare(&engine).await;
        server.kill();
        server.restart_with(&[&ALWAYS[..], &EVICTS].concat());
        let detail = keys.only_begins_are_refused(&engine, &server).await;
        assert!(detail.contains("allkeys-lru"), "{detail}");
        server.kill();
        server.restart_with(&ALWAYS);
        keys.begins_are_granted(&engine).await;
    });
}

#[test]
fn s9_a_server_that_comes_back_without_its_file_is_given_no_grants() {
    let mut server = Server::start(&ALWAYS);
    block_on_tokio(async {
        let store = RedisStore::connect(&server.url()).await.unwrap();
        let engine = Engine::builder(store.clone()).require(Durability::Power).build().unwrap();
        let _ = acquire(&engine, &request("k")).await;
        server.kill();
        server.restart_with(&[]);
        let detail = refusal(&engine, &request("k")).await;
        assert!(detail.contains("Power") && detail.contains("appendonly"), "{detail}");
        assert_eq!(
            (store.durability(), store.warnings()),
            (Durability::Memory, vec![Warning::NoAppendOnlyFile])
        );
        server.kill();
        server.restart_with(&ALWAYS);
        let _ = acquire(&engine, &request("another")).await;
        assert_eq!(store.durability(), Durability::Power);
    });
}

#[test]
fn s9_a_server_that_syncs_less_than_it_did_is_given_no_grants() {
    let server = Server::start(&ALWAYS);
    block_on_tokio(async {
        let store = watchful(&server.url()).await;
        let engine = engine(&store);
        let keys = Keys::prepare(&engine).await;
        server.ask::<()>("CONFIG SET appendfsync everysec");
        let detail = keys.only_begins_are_refused(&engine, &server).await;
        assert!(detail.contains("appendfsync"), "{detail}");
        assert_eq!(store.durability(), Durability::Process);
        server.ask::<()>("CONFIG SET appendfsync always");
        keys.begins_are_granted(&engine).await;
        assert_eq!(store.durability(), Durability::Power);
    });
}

#[test]
fn a_server_that_keeps_more_than_it_did_promises_no_more_than_at_first() {
    let server = Server::start(&["--appendonly", "yes"]);
    block_on_tokio(async {
        let store = watchful(&server.url()).await;
        let engine = engine(&store);
        for (sync, durability) in [("always", Durability::Power), ("everysec", Durability::Process)] {
            server.ask::<()>(&format!("CONFIG SET appendfsync {sync}"));
            let _ = acquire(&engine, &request(sync)).await;
            assert_eq!(store.durability(), durability);
        }
    });
}

/// Fills the server beyond a limit until it has evicted a key, then removes the limit.
fn evict(server: &Server) {
    let evicted = || {
        let text: String = server.ask("INFO stats");
        text.lines().find_map(|line| line.strip_prefix("evicted_keys:")).unwrap().parse::<u64>().unwrap()
    };
    let before = evicted();
    let text: String = server.ask("INFO memory");
    let used = text.lines().find_map(|line| line.strip_prefix("used_memory:")).unwrap();
    let limit = used.parse::<u64>().unwrap() + (1 << 20);
    server.ask::<()>(&format!("CONFIG SET maxmemory {limit} maxmemory-policy volatile-lru"));
    let (mut raw, mut number) = (server.raw(), 0);
    while evicted() == before {
        number += 1;
        assert!(number < 1000, "nothing was evicted");
        let value = vec![b'x'; 64 << 10];
        redis::cmd("SET").arg(number).arg(value).arg("EX").arg(1000).exec(&mut raw).unwrap();
    }
    server.ask::<()>("CONFIG SET maxmemory 0 maxmemory-policy noeviction");
}

#[test]
fn s2_evictions_between_two_inspections_are_noticed_and_stand_until_accepted() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = watchful(&server.url()).await;
        let engine = engine(&store);
        let _ = acquire(&engine, &request("k")).await;
        for round in ["first", "second"] {
            evict(&server);
            for _ in 0..2 {
                let detail = refusal(&engine, &request(round)).await;
                assert!(detail.contains("evicted") && detail.contains("accept_evictions"), "{detail}");
            }
            store.accept_evictions();
            let _ = acquire(&engine, &request(round)).await;
            assert!(store.warnings().contains(&Warning::KeysEvicted));
        }
        // A later store only warns, because the time of the evictions is unknown.
        let later = watchful(&server.url()).await;
        assert!(later.warnings().contains(&Warning::KeysEvicted));
        let _ = acquire(&Engine::builder(later).build().unwrap(), &request("later")).await;
    });
}

#[test]
fn s2_evictions_of_another_server_are_noticed_when_it_takes_over() {
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    evict(&new);
    block_on_tokio(async {
        let proxy = Proxy::start(old.port()).await;
        let engine = engine(&RedisStore::connect(&proxy.url()).await.unwrap());
        let _ = acquire(&engine, &request("k")).await;
        proxy.lead_to(new.port());
        old.ask::<u64>("CLIENT KILL TYPE normal SKIPME yes");
        assert!(refusal(&engine, &request("another")).await.contains("evicted"));
    });
}

#[test]
fn s2_a_cluster_that_takes_over_is_given_no_grants() {
    let (old, new) = (Server::start(&[]), Server::start(&["--cluster-enabled", "yes"]));
    block_on_tokio(async {
        let proxy = Proxy::start(old.port()).await;
        let engine = engine(&RedisStore::connect(&proxy.url()).await.unwrap());
        let _ = acquire(&engine, &request("k")).await;
        proxy.lead_to(new.port());
        old.ask::<u64>("CLIENT KILL TYPE normal SKIPME yes");
        let refused = engine.begin(&request("another")).await.unwrap_err().to_string();
        assert!(refused.contains("cluster"), "{refused}");
    });
}

/// Waits until the server is read no more: the time since the last inspection is over. That of
/// grants would take 30 s.
async fn until_not_read<T: std::fmt::Debug>(mut read: impl AsyncFnMut() -> Result<T, StoreError>) {
    let started = SystemClock.monotonic();
    let error = loop {
        match read().await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => break error,
        }
        assert!(SystemClock.monotonic() - started < Duration::from_secs(15), "it still is read");
    };
    assert!(error.is_transient() && error.to_string().contains("replica"), "{error}");
}

/// `REPLICAOF` closes no connection, so that nothing tells of it.
#[test]
fn s9_a_server_that_became_a_replica_is_soon_neither_read_nor_listed() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = RedisStore::connect(&server.url()).await.unwrap();
        let other = RedisStore::connect(&server.url()).await.unwrap();
        let done = request("done");
        acquire(&engine(&store), &done).await.complete("done").await.unwrap();
        assert!(other.scan(None, 10).await.unwrap().next.is_none());
        server.ask::<()>("REPLICAOF 127.0.0.1 1");
        until_not_read(async || store.load(&done.id()).await).await;
        until_not_read(async || other.scan(None, 10).await).await;
        // Neither does a new connection list it.
        assert!(other.scan(None, 10).await.is_err());
    });
}

/// Its records are those of another server from now on, or soon will be.
#[test]
fn s9_a_server_that_became_a_replica_is_not_read() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = RedisStore::connect(&server.url()).await.unwrap();
        let engine = Engine::builder(store.clone()).call_timeout(Duration::from_millis(500)).build().unwrap();
        let done = request("done");
        acquire(&engine, &done).await.complete("done").await.unwrap();
        server.ask::<()>("REPLICAOF 127.0.0.1 1");
        let refused = engine.begin(&request("k")).await;
        let Err(Error::TimedOut { last: Some(last), .. }) = refused else { panic!("{refused:?}") };
        assert!(last.to_string().contains("replica"), "{last}");
        let read = store.load(&done.id()).await.unwrap_err();
        assert!(read.is_transient() && read.to_string().contains("replica"), "{read}");
        let refused = engine.begin(&done).await;
        assert!(matches!(refused, Err(Error::TimedOut { .. })), "{refused:?}");
        server.ask::<()>("REPLICAOF NO ONE");
        let _ = acquire(&engine, &request("k")).await;
        assert_eq!(response(&engine, &done).await, b"done");
    });
}

#[test]
fn health_tells_why_a_server_would_refuse_a_begin() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = RedisStore::connect(&server.url()).await.unwrap();
        let faults = [
            ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", "maxmemory"),
            ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0", "NOREPLICAS"),
        ];
        for (fault, repair, word) in faults {
            assert!(store.health().await.is_ready());
            server.ask::<()>(fault);
            let health = store.health().await;
            let why = health.nodes[0].fault.as_ref().map(ToString::to_string).unwrap_or_default();
            assert!(!health.is_ready() && why.contains(word), "{word}: {health:?}");
            server.ask::<()>(repair);
        }
        assert!(store.health().await.is_ready());
        assert_eq!(server.ask::<u64>("DBSIZE"), 0, "it writes nothing");
    });
}

#[test]
fn who_may_not_ask_goes_on_and_who_may_ask_a_part_is_told_that() {
    let config = "CONFIG SET maxmemory 100mb maxmemory-policy allkeys-lru";
    for (rules, is_noticed, unseen) in
        [("-info -config", false, false), ("-config", true, false), ("-info", true, true)]
    {
        let server = Server::start(&[]);
        server.ask::<()>(&format!("ACL SETUSER greta on >s3cret ~nevertwice:* +@all {rules}"));
        block_on_tokio(async {
            let store = watchful(&server.url_as("greta", "s3cret")).await;
            assert_eq!(store.warnings().contains(&Warning::EvictionUnverified), !is_noticed, "{rules}");
            assert_eq!(store.warnings().contains(&Warning::EvictionsUnseen), unseen, "{rules}");
            let engine = engine(&store);
            acquire(&engine, &request("k")).await.complete("done").await.unwrap();
            server.ask::<()>(config);
            if is_noticed {
                assert!(refusal(&engine, &request("another")).await.contains("allkeys-lru"), "{rules}");
            } else {
                let _ = acquire(&engine, &request("another")).await;
            }
            assert_eq!(response(&engine, &request("k")).await, b"done");
        });
    }
}

/// A setting that can no longer be read counts as it would have counted at connect.
#[test]
fn s9_a_permission_that_is_taken_away_leaves_what_is_assumed() {
    let server = Server::start(&ALWAYS);
    for assumed in [None, Some(Durability::Power)] {
        server.ask::<()>("ACL SETUSER hugo on >s3cret ~nevertwice:* +@all");
        block_on_tokio(async {
            let mut builder =
                RedisStore::builder(&server.url_as("hugo", "s3cret")).recheck_every(Duration::ZERO);
            if let Some(durability) = assumed {
                builder = builder.assume_durability(durability);
            }
            let store = builder.connect().await.unwrap();
            let engine = engine(&store);
            let _ = acquire(&engine, &request(&format!("{assumed:?}"))).await;
            server.ask::<()>("ACL SETUSER hugo -config -info");
            let another = request(&format!("{assumed:?}, another"));
            if assumed.is_some() {
                let _ = acquire(&engine, &another).await;
            } else {
                let detail = refusal(&engine, &another).await;
                assert!(detail.contains("+config|get") && detail.contains("assume_durability"), "{detail}");
            }
            assert!(store.warnings().contains(&Warning::DurabilityUnverified));
            assert_eq!(store.durability(), assumed.unwrap_or(Durability::Memory));
        });
    }
}

/// The hot path costs no extra command: one inspection when connecting, and none for operations in
/// progress.
#[test]
fn a_server_is_inspected_seldom() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = RedisStore::connect(&server.url()).await.unwrap();
        let engine = engine(&store);
        server.ask::<()>("CONFIG RESETSTAT");
        for number in 0..100 {
            let request = request(&format!("{number}"));
            acquire(&engine, &request).await.complete("done").await.unwrap();
            assert_eq!(response(&engine, &request).await, b"done");
        }
        assert_eq!((calls(&server, "config|get"), calls(&server, "hello")), (0, 0));

        let engine = Engine::builder(watchful(&server.url()).await).build().unwrap();
        let lease = acquire(&engine, &request("k")).await;
        server.ask::<()>("CONFIG RESETSTAT");
        lease.renew().await.unwrap();
        lease.complete("done").await.unwrap();
        assert_eq!(calls(&server, "config|get"), 0);
        assert_eq!(response(&engine, &request("k")).await, b"done");
        assert_eq!(calls(&server, "config|get"), 1);
    });
}

#[test]
fn an_inspection_is_repeated_after_its_time() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = RedisStore::builder(&server.url()).recheck_every(Duration::from_millis(20));
        let engine = engine(&store.connect().await.unwrap());
        server.ask::<()>("CONFIG SET maxmemory 100mb maxmemory-policy allkeys-lru");
        for number in 0..2000 {
            match engine.begin(&request(&format!("{number}"))).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(Error::Store(StoreError::Unusable { .. })) => return,
                Err(other) => panic!("{other}"),
            }
        }
        panic!("never noticed");
    });
}

/// Time, grants and all other assumptions end with the connection.
#[test]
fn s13_a_stamp_after_a_failover_is_of_the_new_servers_time() {
    let (old, new) = (Server::start(&[]), Server::start(&[]));
    block_on_tokio(async {
        let proxy = Proxy::start(old.port()).await;
        proxy.shift_time(3600);
        let store = RedisStore::connect(&proxy.url()).await.unwrap();
        let engine = engine(&store);
        // The first begin uses the script, and so the server's own clock. Later ones are native and
        // follow the shifted reading, an hour ahead.
        let _ = acquire(&engine, &request("first")).await;
        let least = stamp(&store, &request("first")).await.after(HALF_AN_HOUR);
        for number in 0.. {
            assert!(number < 1000, "no answer came soon enough to tell the time");
            let request = request(&format!("{number}"));
            let _ = acquire(&engine, &request).await;
            if stamp(&store, &request).await > least {
                break;
            }
        }
        proxy.heal();
        proxy.lead_to(new.port());
        old.ask::<u64>("CLIENT KILL TYPE normal SKIPME yes");
        let _ = acquire(&engine, &request("last")).await;
        let stamp = stamp(&store, &request("last")).await;
        assert!(stamp < least, "{stamp:?} is of the old server's time");
    });
}

async fn stamp(store: &RedisStore, request: &Request) -> nevertwice::Stamp {
    let Snapshot { record, .. } = store.load(&request.id()).await.unwrap();
    record.unwrap().stamp
}
