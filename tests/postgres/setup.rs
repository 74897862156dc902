//! Connecting: what is refused, and what the error says.

use std::time::Duration;

use nevertwice::postgres::{SCHEMA, SCHEMA_VERSION, schema};
use nevertwice::store::Store;
use nevertwice::{Durability, Engine, PostgresStore, StoreError};

use crate::server::{Server, free_port};
use crate::{acquire, block_on_tokio, connect, engine, request, response, unusable};

/// Returns all that a server holds outside of its catalogues.
fn contents(server: &Server) -> String {
    server.sql("SELECT n.nspname, c.relname, c.relkind FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE n.nspname NOT LIKE 'pg_%' AND n.nspname <> 'information_schema' ORDER BY 1, 2")
}

#[test]
fn a_server_that_cannot_be_reached_is_named_as_that() {
    block_on_tokio(async {
        let port = free_port();
        let refused = PostgresStore::connect(&format!("postgres://u:secret@127.0.0.1:{port}/d")).await;
        let Err(StoreError::Unavailable { detail, .. }) = refused else { panic!("{refused:?}") };
        assert!(detail.contains("nothing listens"), "{detail}");
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("postgres://u@127.0.0.1:{}/d?sslmode=disable", silent.local_addr().unwrap().port());
        let limit = Duration::from_millis(200);
        let refused = PostgresStore::builder(&url).connect_timeout(limit).connect().await;
        let Err(StoreError::Unavailable { detail, .. }) = refused else { panic!("{refused:?}") };
        assert!(detail.contains("in time"), "{detail}");
        assert!(unusable(PostgresStore::connect("postgres://u:sec ret@:x/").await).contains("URL"));
    });
}

#[test]
fn a_login_a_database_or_a_schema_that_is_wrong_is_refused() {
    let server = Server::start(&["fsync=off"]);
    server.sql("CREATE ROLE app LOGIN PASSWORD 'right'");
    let access = "host all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n";
    std::fs::write(server.data().join("pg_hba.conf"), access).unwrap();
    server.sql("SELECT pg_reload_conf()");
    block_on_tokio(async {
        let wrong = unusable(PostgresStore::connect(&server.url_as("app", "wrong", "postgres")).await);
        assert!(wrong.contains("28P01") && !wrong.contains("wrong"), "{wrong}");
        let none = format!("postgres://app@127.0.0.1:{}/postgres?sslmode=disable", server.port());
        let none = unusable(PostgresStore::connect(&none).await);
        assert!(none.contains("password"), "{none}");
        let nowhere = unusable(PostgresStore::connect(&server.url_as("postgres", "", "nowhere")).await);
        assert!(nowhere.contains("3D000"), "{nowhere}");
        let tls = server.url().replace("disable", "require");
        let tls = unusable(PostgresStore::connect(&tls).await);
        assert!(tls.contains("TLS"), "{tls}");
        let no_schema = PostgresStore::builder(&server.url()).table("nowhere", "t").connect().await;
        assert!(unusable(no_schema).contains("3F000"));
        let bad = PostgresStore::builder(&server.url()).table("public", "a\"b").connect().await;
        assert!(unusable(bad).contains("letters"));
    });
    assert_eq!(contents(&server), "");
}

#[test]
fn a_role_without_rights_is_refused_and_nothing_is_created() {
    let server = Server::start(&["fsync=off"]);
    server.sql("CREATE ROLE app LOGIN");
    block_on_tokio(async {
        let app = server.url_as("app", "", "postgres");
        assert!(unusable(PostgresStore::connect(&app).await).contains("42501"));
        assert_eq!(contents(&server), "");
        // The tables are those of another role.
        drop(connect(&server).await);
        let before = contents(&server);
        assert!(unusable(PostgresStore::connect(&app).await).contains("42501"));
        server.sql("GRANT SELECT ON nevertwice_meta TO app");
        let store = PostgresStore::connect(&app).await.unwrap();
        let id = request("k").id();
        assert!(unusable(store.load(&id).await).contains("42501"));
        server.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON nevertwice TO app; GRANT SELECT, UPDATE ON nevertwice_mark TO app");
        let engine = Engine::builder(store.clone()).build().unwrap();
        let lease = acquire(&engine, &request("k")).await;
        lease.complete("done").await.unwrap();
        assert_eq!(response(&engine, &request("k")).await, b"done");
        store.purge(10).await.unwrap();
        assert_eq!(contents(&server), before);
    });
}

#[test]
fn s14_tables_of_others_and_of_newer_releases_are_left_alone() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        for foreign in [
            "CREATE TABLE nevertwice (id int)",
            "CREATE TABLE nevertwice_meta (version int, store uuid)",
            "CREATE VIEW nevertwice AS SELECT 1 AS id",
        ] {
            server.sql(foreign);
            let before = contents(&server);
            let refused = unusable(PostgresStore::connect(&server.url()).await);
            assert!(refused.contains("not those of a store"), "{foreign}: {refused}");
            assert_eq!(contents(&server), before);
            server.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public");
        }
        let lease = acquire(&engine(&server).await, &request("k")).await;
        let newer = SCHEMA_VERSION + 1;
        server.sql(&format!("UPDATE nevertwice_meta SET version = {newer}"));
        let before = server.sql("SELECT * FROM nevertwice");
        let refused = unusable(PostgresStore::connect(&server.url()).await);
        assert!(refused.contains(&format!("version {newer}")), "{refused}");
        assert_eq!(server.sql("SELECT * FROM nevertwice"), before);
        // The release that wrote them, or the one that has them open, goes on.
        server.sql(&format!("UPDATE nevertwice_meta SET version = {SCHEMA_VERSION}"));
        lease.complete("done").await.unwrap();
    });
}

#[test]
fn the_schema_can_be_run_by_migrations_of_the_applications_own() {
    let server = Server::start(&["fsync=off"]);
    server.sql("CREATE SCHEMA orders; CREATE ROLE app LOGIN; GRANT USAGE ON SCHEMA orders TO app");
    block_on_tokio(async {
        let app = server.url_as("app", "", "postgres");
        let builder = || PostgresStore::builder(&app).table("orders", "idempotency").create_tables(false);
        assert!(unusable(builder().connect().await).contains("orders.idempotency"));
        server.sql(&schema("orders", "idempotency").unwrap());
        server.sql(
            "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA orders TO app; \
             GRANT SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA orders TO app",
        );
        let engine = Engine::builder(builder().connect().await.unwrap()).build().unwrap();
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
        server.sql(SCHEMA);
        assert!(PostgresStore::builder(&server.url()).create_tables(false).connect().await.is_ok());
    });
}

#[test]
fn stores_that_connect_at_once_create_one_set_of_tables() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let url = server.url();
        let stores = (0..12).map(|_| {
            let store = PostgresStore::builder(&url).connect_timeout(Duration::from_secs(60));
            let store = store.answer_timeout(Duration::from_secs(60));
            tokio::spawn(async move { store.connect().await.unwrap().identity() })
        });
        let mut identities = Vec::new();
        for store in stores.collect::<Vec<_>>() {
            identities.push(store.await.unwrap());
        }
        identities.dedup();
        assert_eq!(identities.len(), 1);
        assert_eq!(server.sql("SELECT count(*) FROM nevertwice_meta"), "1");
    });
}

#[test]
fn functions_of_others_and_those_that_may_not_be_called_are_not_used() {
    let server = Server::start(&["fsync=off"]);
    drop(block_on_tokio(connect(&server)));
    server.sql(
        "CREATE ROLE app LOGIN; GRANT SELECT ON nevertwice_meta TO app; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON nevertwice TO app; GRANT SELECT, UPDATE ON nevertwice_mark TO app",
    );
    let no_functions = [nevertwice::postgres::Warning::NoFunctions];
    let cases = [
        ("SELECT 1", true),
        ("REVOKE EXECUTE ON FUNCTION nevertwice_purge_v1 FROM PUBLIC", false),
        ("GRANT EXECUTE ON FUNCTION nevertwice_purge_v1 TO PUBLIC", true),
        ("REVOKE EXECUTE ON FUNCTION nevertwice_swap_one_v1 FROM PUBLIC", false),
        ("GRANT EXECUTE ON FUNCTION nevertwice_swap_one_v1 TO PUBLIC", true),
        ("REVOKE EXECUTE ON FUNCTION nevertwice_swap_together_v1 FROM PUBLIC", false),
        ("GRANT EXECUTE ON FUNCTION nevertwice_swap_together_v1 TO PUBLIC", true),
        (
            "DROP FUNCTION nevertwice_swap_v1; \
             CREATE FUNCTION nevertwice_swap_v1(text) RETURNS text LANGUAGE sql AS 'SELECT $1'",
            false,
        ),
    ];
    for (number, (sql, has_functions)) in cases.into_iter().enumerate() {
        server.sql(sql);
        block_on_tokio(async {
            let store = PostgresStore::connect(&server.url_as("app", "", "postgres")).await.unwrap();
            assert_eq!(store.warnings().is_empty(), has_functions, "{sql}");
            assert!(has_functions || store.warnings() == no_functions);
            let engine = Engine::builder(store.clone()).build().unwrap();
            let lease = acquire(&engine, &request(&format!("{number}"))).await;
            lease.complete("done").await.unwrap();
            store.purge(10).await.unwrap();
        });
    }
}

#[test]
fn another_isolation_level_is_refused() {
    let server = Server::start(&["fsync=off", "default_transaction_isolation=serializable"]);
    let refused = unusable(block_on_tokio(PostgresStore::connect(&server.url())));
    assert!(refused.contains("ALTER ROLE") && refused.contains("default_transaction_isolation"), "{refused}");
    assert_eq!(contents(&server), "");
    server.sql("ALTER ROLE postgres SET default_transaction_isolation TO 'read committed'");
    drop(block_on_tokio(engine(&server)));
    // The functions refuse it by themselves.
    for call in [
        "nevertwice_swap_v1('{a}', '{NULL}', '{1}', '{f}', '{b}', '1s', false)",
        "nevertwice_swap_together_v1('{a}', '{NULL}', '{1}', '{f}', '{b}', '1s')",
        "nevertwice_swap_one_v1('a', NULL, 1, false, 'b', '1s')",
        "nevertwice_purge_v1(1)",
    ] {
        let refused = server.try_sql(&format!("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT * FROM {call}"));
        assert!(refused.unwrap_err().contains("READ COMMITTED"), "{call}");
    }
}

#[test]
fn s9_a_role_that_hides_warnings_is_refused_where_standbys_are_waited_for() {
    let server = Server::start(&["fsync=off"]);
    server.sql("ALTER ROLE postgres SET client_min_messages = error");
    block_on_tokio(async {
        let refused = unusable(PostgresStore::builder(&server.url()).replicas(1).connect().await);
        assert!(refused.contains("client_min_messages"), "{refused}");
        drop(connect(&server).await);
    });
}

#[test]
fn s9_the_durability_is_that_of_the_weakest_setting() {
    let cases: [(&[&str], _); 5] = [
        (&[], Durability::Power),
        (&["fsync=off"], Durability::Process),
        (&["full_page_writes=off"], Durability::Process),
        (&["synchronous_commit=off"], Durability::Memory),
        (&["synchronous_commit=local"], Durability::Power),
    ];
    for (options, level) in cases {
        let server = Server::start(options);
        block_on_tokio(async {
            assert_eq!(connect(&server).await.durability(), level, "{options:?}");
            let replicated = PostgresStore::builder(&server.url()).replicas(1).connect().await;
            assert!(unusable(replicated).contains("synchronous_standby_names"));
            server.sql("ALTER TABLE nevertwice SET UNLOGGED");
            assert_eq!(connect(&server).await.durability(), Durability::Memory);
        });
    }
}

#[test]
fn a_server_that_became_less_durable_makes_no_grants_but_finishes() {
    let server = Server::start(&[]);
    block_on_tokio(async {
        let store =
            PostgresStore::builder(&server.url()).recheck_every(Duration::ZERO).connect().await.unwrap();
        let engine = Engine::builder(store.clone()).build().unwrap();
        let done = request("done");
        acquire(&engine, &done).await.complete("done").await.unwrap();
        let lease = acquire(&engine, &request("k")).await;
        server.sql("ALTER SYSTEM SET synchronous_commit = off");
        server.sql("SELECT pg_reload_conf()");
        // The postmaster passes the setting on in its own time.
        for _ in 0..2000 {
            if server.sql("SHOW synchronous_commit") == "off" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let refused = engine.begin(&request("other")).await;
        let Err(nevertwice::Error::Store(StoreError::Unusable { detail, .. })) = refused else {
            panic!("{refused:?}")
        };
        assert!(detail.contains("less durable"), "{detail}");
        assert_eq!(store.durability(), Durability::Memory);
        assert_eq!(response(&engine, &done).await, b"done");
        lease.complete("finished").await.unwrap();
        assert_eq!(response(&engine, &request("k")).await, b"finished");
    });
}

#[test]
fn s3_each_store_has_an_identity_of_its_own() {
    let server = Server::start(&["fsync=off"]);
    server.sql("CREATE DATABASE other");
    block_on_tokio(async {
        let first = connect(&server).await.identity();
        assert_eq!(connect(&server).await.identity(), first);
        let table = PostgresStore::builder(&server.url()).table("public", "more").connect().await.unwrap();
        let other = PostgresStore::connect(&server.url_as("postgres", "", "other")).await.unwrap();
        // A copy of the whole database, in which the random id is the same.
        drop((table.clone(), other.clone()));
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'other'");
        let port = server.port().to_string();
        let copy = std::process::Command::new(crate::server::program("createdb"))
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-T", "other", "copy"])
            .status();
        assert!(copy.unwrap().success());
        let copy = PostgresStore::connect(&server.url_as("postgres", "", "copy")).await.unwrap();
        let all = [first, table.identity(), other.identity(), copy.identity()];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{all:?}");
        }
    });
}

#[test]
fn a_database_that_was_replaced_under_a_store_is_not_mistaken_for_it() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let store =
            PostgresStore::builder(&server.url()).recheck_every(Duration::ZERO).connect().await.unwrap();
        let engine = Engine::builder(store).build().unwrap();
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
        // An old dump, in effect: the same store by name and id, without its records.
        server.sql(
            "BEGIN; CREATE TABLE kept AS SELECT * FROM nevertwice_meta; DROP TABLE nevertwice, nevertwice_meta; \
             DROP SEQUENCE nevertwice_mark; DROP FUNCTION nevertwice_swap_v1, nevertwice_swap_one_v1, \
             nevertwice_swap_together_v1, nevertwice_purge_v1; COMMIT",
        );
        server.sql(SCHEMA);
        server.sql("UPDATE nevertwice_meta SET store = (SELECT store FROM kept)");
        let refused = engine.begin(&request("k")).await;
        let Err(nevertwice::Error::Store(StoreError::Unusable { detail, .. })) = refused else {
            panic!("{refused:?}")
        };
        assert!(detail.contains("another store"), "{detail}");
    });
}

#[test]
fn calls_outside_of_tokio_are_refused() {
    let server = Server::start(&["fsync=off"]);
    let store = block_on_tokio(connect(&server));
    let refused = nevertwice::testing::block_on(store.load(&request("k").id()));
    assert!(unusable(refused).contains("tokio"));
    assert!(unusable(nevertwice::testing::block_on(PostgresStore::connect(&server.url()))).contains("tokio"));
}

#[test]
fn tls_is_used_where_the_url_demands_it_and_verified() {
    use nevertwice::postgres::rustls;
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut server = Server::start(&["fsync=off"]);
    let [key, certificate] = ["server.key", "server.crt"].map(|name| server.data().join(name));
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    assert!(made.expect("these tests need openssl").status.success());
    server.own("server.key");
    server.stop();
    server.restart_with(&["fsync=off", "ssl=on"], &[]);
    block_on_tokio(async {
        let url = server.url().replace("disable", "require");
        let refused = PostgresStore::connect(&url).await;
        let Err(error) = refused else { panic!("{refused:?}") };
        assert!(error.to_string().contains("TLS"), "{error}");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&certificate).unwrap()).unwrap();
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let store = PostgresStore::builder(&url).tls(config.with_no_client_auth()).connect().await.unwrap();
        store.load(&request("k").id()).await.unwrap();
        let encrypted = server.sql("SELECT bool_and(ssl) FROM pg_stat_ssl s JOIN pg_stat_activity USING (pid) WHERE application_name = 'nevertwice'");
        assert_eq!(encrypted, "t");
    });
}

#[test]
fn a_store_that_only_reads_needs_select_and_refuses_writes() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let none = PostgresStore::builder(&server.url()).read_only().connect().await;
        assert!(unusable(none).contains("there is no table"));
        assert_eq!(contents(&server), "");
        let engine = engine(&server).await;
        acquire(&engine, &request("k")).await.complete("done").await.unwrap();
    });
    server.sql("CREATE ROLE reader LOGIN; ALTER ROLE reader SET default_transaction_read_only = on");
    server.sql("GRANT SELECT ON nevertwice, nevertwice_meta TO reader");
    let standby = server.standby("eve", &["fsync=off"]);
    for url in [server.url_as("reader", "", "postgres"), standby.url()] {
        block_on_tokio(async {
            let store = PostgresStore::builder(&url).read_only().connect().await.unwrap();
            assert_eq!(store.scan(None, 10).await.unwrap().records.len(), 1);
            let engine = Engine::builder(store.clone()).build().unwrap();
            assert_eq!(engine.content("scope", "k").await.unwrap().unwrap().response.unwrap(), "done");
            assert!(unusable(store.discard(&request("k").id()).await).contains("for reading only"));
            assert!(unusable(store.purge(1).await).contains("for reading only"));
            assert!(engine.begin(&request("new")).await.is_err());
        });
    }
}
