//! Tests of the PostgreSQL store against a real server, one per test. Without Debian's package
//! `postgresql`, or the folder of programs that the environment variable `NEVERTWICE_POSTGRES_BIN`
//! names instead, they fail.
#![cfg(feature = "postgres")]

#[path = "support/postgres.rs"]
#[allow(dead_code, reason = "not every test file needs every fault")]
mod server;

use std::future::Future;

use nevertwice::PostgresStore;
use server::Server;

nevertwice::conformance!(
    conformance,
    async {
        let server = Server::start(&[]);
        (connect(&server).await, server)
    },
    block_on_tokio
);

fn block_on_tokio<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn connect(server: &Server) -> PostgresStore {
    PostgresStore::connect(&server.url()).await.unwrap()
}
