//! PgBouncer, which lends connections for one transaction each.

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nevertwice::postgres::tokio_postgres::SimpleQueryMessage;
use nevertwice::store::{Store, Swap, SwapRequest};
use nevertwice::{Begin, Engine, PostgresStore};

use crate::server::free_port;
use crate::{Server, acquire, block_on_tokio, engine, request, response};

/// A PgBouncer in front of a server. Stopped when dropped.
struct Pooler {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Pooler {
    fn start(server: &Server) -> Pooler {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let port = free_port();
        let settings = format!(
            "[databases]\npostgres = host=127.0.0.1 port={} dbname=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 3\n\
             logfile = {}/log\n",
            server.port(),
            folder.path().display()
        );
        let file = folder.path().join("settings");
        std::fs::write(&file, settings.replace("dbname=postgres", "dbname=postgres user=postgres")).unwrap();
        let child = Command::new("setpriv")
            .args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "pgbouncer"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need setpriv and the package pgbouncer");
        let pooler = Pooler { child, port, _folder: folder };
        for _ in 0..2000 {
            if std::net::TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), Duration::from_secs(1))
                .is_ok()
            {
                return pooler;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("pgbouncer did not start: these tests need the package pgbouncer");
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_pooler_of_transactions_is_served_and_waiters_poll() {
    let server = Server::start(&["fsync=off"]);
    let pooler = Pooler::start(&server);
    block_on_tokio(async {
        for has_functions in [true, false] {
            let store = PostgresStore::connect(&server.url_at(pooler.port)).await.unwrap();
            let through = Engine::builder(store.clone()).build().unwrap();
            let key = |number| request(&format!("{has_functions} {number}"));
            let work = (0..200).map(|number| {
                let (engine, request) = (through.clone(), key(number));
                tokio::spawn(async move { acquire(&engine, &request).await.complete("done").await })
            });
            for work in work.collect::<Vec<_>>() {
                work.await.unwrap().unwrap();
            }
            assert_eq!(response(&through, &key(7)).await, b"done");
            // No setting or statement of this store's is left in the connections of others.
            let client = crate::races::raw_at(&server.url_at(pooler.port)).await;
            for _ in 0..10 {
                let prepared = "SELECT count(*) FROM pg_prepared_statements";
                for (query, value) in
                    [("SHOW lock_timeout", "0"), ("SHOW enable_seqscan", "on"), (prepared, "0")]
                {
                    let found = client.simple_query(query).await.unwrap();
                    let shown = found.iter().find_map(|message| match message {
                        SimpleQueryMessage::Row(row) => row.get(0),
                        _ => None,
                    });
                    assert_eq!(shown, Some(value), "{query}");
                }
            }
            // Notifications do not arrive through it, so records are read more often than every
            // second.
            let direct = engine(&server).await;
            let mut delay = Duration::ZERO;
            for number in 1000..1006 {
                let lease = acquire(&direct, &key(number)).await;
                let id = key(number).id();
                let stamp = store.load(&id).await.unwrap().record.unwrap().stamp;
                let waiter = tokio::spawn({
                    let store = store.clone();
                    async move { store.changed(&id, stamp, Duration::from_secs(60)).await }
                });
                if number == 1000 {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
                lease.complete("done").await.unwrap();
                let completed = Instant::now();
                tokio::time::timeout(Duration::from_secs(1), waiter).await.unwrap().unwrap().unwrap();
                delay += completed.elapsed();
                assert!(matches!(through.begin(&key(number)).await.unwrap(), Begin::Completed(_)));
            }
            assert!(delay < Duration::from_secs(2), "{delay:?}");
            server.sql("DROP FUNCTION IF EXISTS nevertwice_swap_v1");
        }
    });
}

/// A pooler may name the true process of the server at first, and lend another one afterwards.
#[test]
fn a_statement_whose_name_is_gone_is_sent_with_its_text() {
    let server = Server::start(&["fsync=off"]);
    block_on_tokio(async {
        let store = crate::connect(&server).await;
        server.sql(
            "CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN DEALLOCATE ALL; RETURN NULL; END$$; \
             CREATE TRIGGER forget AFTER INSERT ON nevertwice FOR EACH STATEMENT EXECUTE FUNCTION forget()",
        );
        let record = crate::races::record();
        let insert = |number| SwapRequest::new(&request(&format!("{number}")).id(), None, Some(&record));
        for number in 0..10 {
            assert!(matches!(store.swap(&insert(number)).await, Ok(Swap::Done(_))), "{number}");
        }
        let many: Vec<_> = (100..110).map(insert).collect();
        for swap in store.swap_many(&many).await {
            assert!(matches!(swap, Ok(Swap::Done(_))), "{swap:?}");
        }
    });
}

/// The name may be that of a statement of another store, with the same parameters.
#[test]
fn s1_a_statement_of_another_store_writes_nothing() {
    let server = Server::start(&["fsync=off"]);
    drop(block_on_tokio(crate::connect(&server)));
    let call = |table: &str| {
        format!(
            "SELECT count(*) FROM nevertwice_swap_one_v1(sha256('a'), NULL, 1, false, 'b', '1s') \
             WHERE '{table}' = 'public.nevertwice'"
        )
    };
    assert_eq!(server.sql(&call("public.other")), "0");
    assert_eq!(server.sql("SELECT count(*) FROM nevertwice"), "0");
    assert_eq!(server.sql(&call("public.nevertwice")), "1");
    assert_eq!(server.sql("SELECT count(*) FROM nevertwice"), "1");
}
