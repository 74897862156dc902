//! Checks that a store makes when it connects.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use nevertwice::backends::redis::{Warning, store_id};
use nevertwice::store::Store;
use nevertwice::{Clock, Durability, Engine, PolicyError, RedisStore, StoreError, SystemClock};

use crate::server::{Server, impostor};
use crate::{acquire, block_on_tokio, request, response};

fn try_connect(url: &str) -> Result<RedisStore, StoreError> {
    block_on_tokio(RedisStore::connect(url))
}

fn refusal(url: &str) -> String {
    match try_connect(url).unwrap_err() {
        StoreError::Unusable { detail, .. } => detail,
        other => panic!("{other:?}"),
    }
}

#[test]
fn durability_is_what_the_server_is_set_to() {
    let cases: [(&[&str], Durability, &[Warning]); 4] = [
        (&[], Durability::Memory, &[Warning::NoAppendOnlyFile]),
        (&["--appendonly", "yes"], Durability::Process, &[Warning::SyncedEverySecond]),
        (&["--appendonly", "yes", "--appendfsync", "no"], Durability::Process, &[]),
        (&["--appendonly", "yes", "--appendfsync", "always"], Durability::Power, &[]),
    ];
    for (options, durability, warnings) in cases {
        let server = Server::start(options);
        let store = try_connect(&server.url()).unwrap();
        assert_eq!((store.durability(), &*store.warnings()), (durability, warnings), "{options:?}");
    }
}

#[test]
fn an_engine_that_requires_more_than_the_server_keeps_is_not_built() {
    let server = Server::start(&["--appendonly", "yes"]);
    let store = try_connect(&server.url()).unwrap();
    let refused = Engine::builder(store.clone()).require(Durability::Power).build().unwrap_err();
    assert!(matches!(refused, PolicyError::Durability { .. }), "{refused}");
    Engine::builder(store).require(Durability::Process).build().unwrap();
}

#[test]
fn a_server_that_evicts_is_refused() {
    let server = Server::start(&["--maxmemory", "100mb", "--maxmemory-policy", "volatile-lru"]);
    let detail = refusal(&server.url());
    assert!(detail.contains("volatile-lru") && detail.contains("noeviction"), "{detail}");
}

#[test]
fn an_eviction_policy_without_a_limit_is_a_warning() {
    let server = Server::start(&["--maxmemory-policy", "allkeys-lru"]);
    assert!(try_connect(&server.url()).unwrap().warnings().contains(&Warning::EvictionPolicy));
}

#[test]
fn a_replica_is_refused() {
    let server = Server::start(&["--replicaof", "127.0.0.1", "1"]);
    let detail = refusal(&server.url());
    assert!(detail.contains("replica"), "{detail}");
}

#[test]
fn a_cluster_is_refused() {
    let server = Server::start(&["--cluster-enabled", "yes"]);
    let detail = refusal(&server.url());
    assert!(detail.contains("cluster"), "{detail}");
}

#[test]
fn a_user_without_dangerous_commands_works_and_is_warned() {
    let server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    server.ask::<()>("ACL SETUSER carl on >s3cret ~nevertwice:* +@all -@dangerous");
    let url = server.url_as("carl", "s3cret");
    block_on_tokio(async {
        let store = RedisStore::connect(&url).await.unwrap();
        assert_eq!(store.durability(), Durability::Memory);
        assert_eq!(store.warnings(), [Warning::EvictionUnverified, Warning::DurabilityUnverified]);
        let store = RedisStore::builder(&url).assume_durability(Durability::Power).connect().await.unwrap();
        assert_eq!(store.durability(), Durability::Power);
        let engine = Engine::builder(store).build().unwrap();
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
        assert_eq!(response(&engine, &request("k")).await, b"done");
    });
}

#[test]
fn the_permissions_in_the_documentation_are_enough() {
    let server = Server::start(&[]);
    let needed = "~nevertwice:* -@all +evalsha +script|load +get +set +time";
    server.ask::<()>(&format!("ACL SETUSER dora on >s3cret {needed}"));
    let waits = "+client|tracking";
    server.ask::<()>(&format!("ACL SETUSER egon on >s3cret {needed} {waits}"));
    let unverified = [Warning::EvictionUnverified, Warning::DurabilityUnverified];
    for (user, warnings) in [
        ("dora", &[&unverified[..], &[Warning::ChangesUnannounced]].concat()),
        ("egon", &unverified.to_vec()),
    ] {
        block_on_tokio(async {
            let store = RedisStore::connect(&server.url_as(user, "s3cret")).await.unwrap();
            assert_eq!(store.warnings(), *warnings);
            let engine = Engine::builder(store).build().unwrap();
            acquire(&engine, &request("k")).await.complete("done").await.unwrap();
            assert_eq!(response(&engine, &request("k")).await, b"done");
            assert!(engine.forget("scope", "k").await.unwrap());
        });
    }
}

#[test]
fn resp3_works_as_well() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store = RedisStore::connect(&format!("{}/3?protocol=resp3", server.url())).await.unwrap();
        assert_eq!(store.warnings(), [Warning::NoAppendOnlyFile]);
        let engine = Engine::builder(store).build().unwrap();
        assert!(engine.inspect("scope", "k").await.unwrap().is_none());
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
        assert_eq!(response(&engine, &request("k")).await, b"done");
        assert!(engine.forget("scope", "k").await.unwrap());
    });
}

#[test]
fn a_client_of_ones_own_can_be_used() {
    let server = Server::start(&[]);
    let client = redis::Client::open(server.url()).unwrap();
    let store = block_on_tokio(RedisStore::builder_with(client).connect()).unwrap();
    assert_eq!(store.durability(), Durability::Memory);
}

#[test]
fn the_database_and_the_login_of_a_store_are_also_those_of_a_client_of_ones_own() {
    let server = Server::start(&[]);
    server.ask::<()>("ACL SETUSER gerd on >s3cret ~nevertwice:* +@all");
    let client = || redis::Client::open(server.url()).unwrap();
    block_on_tokio(async {
        let builder = RedisStore::builder_with(client()).database(3).login("gerd", "s3cret");
        let store = builder.connect().await.unwrap();
        assert_eq!(store.identity(), store_id(3, "nevertwice:"));
        let engine = Engine::builder(store).build().unwrap();
        let _ = acquire(&engine, &request("k")).await;
        assert!(server.ask::<String>("INFO keyspace").contains("db3:keys=1"));
        assert!(server.ask::<String>("CLIENT LIST").contains("user=gerd"));
        let wrong = RedisStore::builder_with(client()).login("gerd", "wr0ng").connect().await;
        assert!(!wrong.unwrap_err().is_transient());
    });
}

#[test]
fn a_missing_permission_is_named() {
    let server = Server::start(&[]);
    server.ask::<()>("ACL SETUSER emil on >s3cret ~nevertwice:* +@all -@scripting");
    let detail = refusal(&server.url_as("emil", "s3cret"));
    assert!(detail.contains("NOPERM") && detail.contains("+evalsha"), "{detail}");
}

#[test]
fn a_wrong_or_missing_password_is_said_and_not_shown() {
    let server = Server::start(&["--requirepass", "s3cret"]);
    let wrong = server.url_as("default", "wr0ng");
    for url in [wrong.as_str(), &server.url()] {
        let error = try_connect(url).unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("password") && !text.contains("wr0ng"), "{text}");
        assert!(!error.is_transient(), "{text}");
    }
    try_connect(&server.url_as("default", "s3cret")).unwrap();
}

#[test]
fn what_assumes_less_than_the_server_tells_changes_nothing() {
    let server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let builder = RedisStore::builder(&server.url()).assume_durability(Durability::Memory);
    assert_eq!(block_on_tokio(builder.connect()).unwrap().durability(), Durability::Power);
}

#[test]
fn a_url_that_is_none_is_refused_and_not_shown() {
    for url in [
        "",
        "s3cret",
        "http://s3cret@host",
        "redis://:s3cret@",
        "redis://u:s3#cret@host:1/x",
        #[cfg(not(any(feature = "redis-rustls", feature = "redis-native-tls")))]
        "rediss://u:s3cret@host",
    ] {
        let error = try_connect(url).unwrap_err();
        assert!(matches!(error, StoreError::Unusable { .. }), "{url}: {error}");
        let builder = format!("{:?}", RedisStore::builder(url));
        let text = format!("{error} {error:?} {builder}");
        assert!(!text.contains("s3"), "{text}");
    }
}

#[test]
fn a_store_shows_no_password() {
    let server = Server::start(&["--requirepass", "s3cret"]);
    let url = server.url_as("default", "s3cret");
    let store = try_connect(&url).unwrap();
    let text = format!("{store:?} {:?}", RedisStore::builder(&url));
    assert!(!text.contains("s3cret"), "{text}");
}

#[test]
fn l1_a_server_that_does_not_answer_is_given_up() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("redis://{}", silent.local_addr().unwrap());
    let short = Duration::from_millis(100);
    let clock = SystemClock;
    let started = clock.monotonic();
    let builder = RedisStore::builder(&url).connection_timeout(short).response_timeout(short);
    let error = block_on_tokio(builder.connect()).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("no answer in time"), "{error}");
    assert!(clock.monotonic() - started < Duration::from_secs(5));
}

#[test]
fn l1_a_missing_server_is_reported_at_once() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let error = try_connect(&format!("redis://{free}")).unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("refused"), "{error}");
}

#[test]
fn outside_of_tokio_it_is_an_error_and_no_panic() {
    let server = Server::start(&[]);
    let store = try_connect(&server.url()).unwrap();
    let error = nevertwice::testing::block_on(store.load(&request("k").id())).unwrap_err();
    assert!(error.to_string().contains("tokio"), "{error}");
    let error = nevertwice::testing::block_on(RedisStore::connect(&server.url())).unwrap_err();
    assert!(error.to_string().contains("tokio"), "{error}");
}

#[test]
fn a_database_that_the_server_does_not_have_is_said_in_its_words() {
    let server = Server::start(&[]);
    let detail = refusal(&format!("{}/99", server.url()));
    assert!(detail.contains("ERR DB index is out of range") && detail.contains("databases"), "{detail}");
    assert!(!refusal(&format!("{}/99?protocol=resp3", server.url())).contains("it answered"));
}

#[test]
fn what_a_database_takes_is_said() {
    let server = Server::start(&["--requirepass", "s3cret"]);
    let detail = refusal(&format!("{}/1", server.url()));
    assert!(detail.contains("NOAUTH"), "{detail}");
    let needed = "~nevertwice:* -@all +evalsha +script|load +get +set +time";
    server_as_default(&server, &format!("ACL SETUSER dora on >s3cret {needed}"));
    let detail = refusal(&format!("{}/1", server.url_as("dora", "s3cret")));
    assert!(detail.contains("NOPERM") && detail.contains("+select"), "{detail}");
    let cluster = Server::start(&["--cluster-enabled", "yes"]);
    let detail = refusal(&format!("{}/1", cluster.url()));
    // A Valkey cluster has databases too: one, unless configured for more.
    assert!(detail.contains("cluster") || detail.contains("databases"), "{detail}");
}

fn server_as_default(server: &Server, command: &str) {
    let client = redis::Client::open(server.url_as("default", "s3cret")).unwrap();
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        cmd.arg(word);
    });
    cmd.exec(&mut client.get_connection().unwrap()).unwrap();
}

#[test]
fn a_server_without_room_for_a_connection_is_not_taken_for_a_refused_password() {
    let server = Server::start(&["--maxclients", "1"]);
    let _taken = server.raw();
    for url in [server.url(), server.url_as("default", "s3cret"), format!("{}/1", server.url())] {
        let error = try_connect(&url).unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("maxclients"), "{error}");
        assert!(!error.to_string().contains("s3cret"), "{error}");
    }
}

#[test]
fn what_is_no_redis_is_said() {
    let protected = b"-DENIED Redis is running in protected mode because protected mode is enabled\r\n";
    // An alert of a server that expected TLS.
    let tls = b"\x15\x03\x03\x00\x02\x02\x46";
    let cases: [(&'static [u8], bool, &str); 4] = [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", true, "does not speak Redis's protocol"),
        (tls, true, "rediss://"),
        (b"", true, "rediss://"),
        (protected, false, "protected-mode no"),
    ];
    for (says, is_transient, text) in cases {
        for url in ["redis://", "redis://:s3cret@"] {
            let error = try_connect(&format!("{url}127.0.0.1:{}", impostor(says))).unwrap_err();
            assert_eq!(error.is_transient(), is_transient, "{says:?}: {error}");
            assert!(error.to_string().contains(text), "{says:?}, {url}: {error}");
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
        }
    }
}

#[test]
fn an_unknown_host_is_reported() {
    let error = try_connect("redis://:s3cret@no-such-host.invalid:6379").unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("cannot be resolved"), "{error}");
    assert!(!error.to_string().contains("s3cret"), "{error}");
}

#[test]
fn a_store_is_known_by_its_database_and_prefix_on_every_server() {
    let (server, other) = (Server::start(&[]), Server::start(&[]));
    block_on_tokio(async {
        let first = RedisStore::connect(&server.url()).await.unwrap();
        assert_eq!(first.identity(), store_id(0, "nevertwice:"));
        let elsewhere = RedisStore::connect(&other.url()).await.unwrap();
        assert_eq!(elsewhere.identity(), first.identity());
        let database = RedisStore::connect(&format!("{}/3", server.url())).await.unwrap();
        assert_eq!(database.identity(), store_id(3, "nevertwice:"));
        let prefix = RedisStore::builder(&server.url()).prefix("api:").connect().await.unwrap();
        assert_eq!(prefix.identity(), store_id(0, "api:"));
        assert_ne!(prefix.identity(), first.identity());
        // The identity is not stored on the server: a token outlives it.
        assert_eq!(server.ask::<u64>("DBSIZE"), 0);
    });
}

#[test]
fn a_store_that_only_reads_needs_the_right_to_read_and_refuses_writes() {
    let server = Server::start(&[]);
    let replica = Server::start(&["--replicaof", "127.0.0.1", &server.port().to_string()]);
    block_on_tokio(async {
        let engine = crate::engine(&server).await;
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
    });
    server.ask::<()>("ACL SETUSER reader on >s3cret resetkeys %R~nevertwice:* -@all +get +time +scan");
    server.ask::<i64>("WAIT 1 30000");
    let before: String = server.ask("INFO commandstats");
    for url in [server.url_as("reader", "s3cret"), replica.url()] {
        block_on_tokio(async {
            let store = RedisStore::builder(&url).read_only().connect().await.unwrap();
            assert_eq!(store.scan(None, 10).await.unwrap().records.len(), 1);
            let engine = Engine::builder(store.clone()).build().unwrap();
            assert_eq!(engine.content("scope", "k").await.unwrap().unwrap().response.unwrap(), "done");
            let refused =
                |error: StoreError| assert!(error.to_string().contains("for reading only"), "{error}");
            refused(store.discard(&request("k").id()).await.unwrap_err());
            assert!(engine.begin(&request("new")).await.is_err());
            assert!(engine.forget("scope", "k").await.is_err());
        });
    }
    let loads = |text: &str| text.lines().find(|line| line.contains("script|load")).map(str::to_owned);
    assert_eq!(loads(&server.ask::<String>("INFO commandstats")), loads(&before));
}
