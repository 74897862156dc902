//! Tests of the PostgreSQL store against a real server, one per test. Without Debian's packages
//! `postgresql`, `pgbouncer` and `faketime` they fail; the environment variable
//! `NEVERTWICE_POSTGRES_BIN` names another folder of the server's programs.
#![cfg(feature = "postgres")]
#![allow(clippy::disallowed_methods, reason = "real servers take real time")]
#![allow(clippy::print_stdout, reason = "what was lost and how long it took is published")]

#[path = "support/children.rs"]
mod children;
#[path = "postgres/keeping.rs"]
mod keeping;
#[path = "postgres/outages.rs"]
mod outages;
#[path = "postgres/pooler.rs"]
mod pooler;
#[path = "support/proxy.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod proxy;
#[path = "postgres/races.rs"]
mod races;
#[path = "support/postgres.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod server;
#[path = "postgres/setup.rs"]
mod setup;
#[path = "postgres/standbys.rs"]
mod standbys;
#[path = "postgres/versions.rs"]
mod versions;
#[path = "postgres/waiting.rs"]
mod waiting;

use std::future::Future;

use nevertwice::{Begin, Engine, Lease, PostgresStore, Request, StoreError};
use server::Server;

nevertwice::conformance!(
    conformance,
    async {
        let server = Server::start(&[]);
        (connect(&server).await, server)
    },
    block_on_tokio
);

// The role may not create functions, so each swap is a statement of its own.
nevertwice::conformance!(
    without_functions,
    async {
        let server = Server::start(&["fsync=off"]);
        server.sql("REVOKE USAGE ON LANGUAGE plpgsql FROM PUBLIC; CREATE ROLE app LOGIN; GRANT CREATE ON SCHEMA public TO app");
        let store = PostgresStore::connect(&server.url_as("app", "", "postgres")).await.unwrap();
        assert_eq!(store.warnings(), [nevertwice::postgres::Warning::NoFunctions]);
        (store, server)
    },
    block_on_tokio
);

fn block_on_tokio<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn connect(server: &Server) -> PostgresStore {
    PostgresStore::connect(&server.url()).await.unwrap()
}

async fn engine(server: &Server) -> Engine {
    Engine::builder(connect(server).await).build().unwrap()
}

fn request(key: &str) -> Request {
    Request::new("scope", key).unwrap()
}

async fn acquire(engine: &Engine, request: &Request) -> Lease {
    match engine.begin(request).await.unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("{other:?}"),
    }
}

async fn response(engine: &Engine, request: &Request) -> Vec<u8> {
    match engine.begin(request).await.unwrap() {
        Begin::Completed(done) => done.response().unwrap().to_vec(),
        other => panic!("{other:?}"),
    }
}

/// Returns the detail of an error that lasts until an operator acts.
fn unusable<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unusable { detail, .. }) => detail,
        other => panic!("{other:?}"),
    }
}
