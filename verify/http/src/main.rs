//! A server to be killed: it writes a line to a ledger for each effect, and then may hang.
//!
//! Arguments: the SQLite file or the URL of a PostgreSQL server, the ledger, `marked` or `assumed`,
//! and `hang` to stop behind the effect. It prints its port.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::request::Parts;
use axum::routing::post;
use nevertwice::http::{Effects, HeldLease, IdempotencyLayer};
use nevertwice::{Engine, PostgresStore, SqliteStore};

#[tokio::main]
#[allow(clippy::print_stdout)] // the test reads the port
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("usage: FILE|URL LEDGER marked|assumed [hang]");
    let (store, ledger, effects) = (next()?, next()?, next()?);
    let hangs = next().is_ok_and(|argument| argument == "hang");
    let effects = if effects == "marked" { Effects::Marked } else { Effects::Assumed };
    let builder = if store.starts_with("postgres://") {
        Engine::builder(PostgresStore::connect(&store).await?)
    } else {
        Engine::builder(SqliteStore::open(store)?)
    };
    let engine = builder.lease(Duration::from_secs(2)).build()?;
    let layer = IdempotencyLayer::new(engine, effects, |_: &Parts| Some("acct_1")).wait(Duration::ZERO);
    let pay = async move |lease: HeldLease, body: Bytes| {
        if effects == Effects::Marked && lease.mark_effect().await.is_err() {
            return "not charged".to_owned();
        }
        let line = format!("{}\n", String::from_utf8_lossy(&body));
        let file = OpenOptions::new().create(true).append(true).open(ledger);
        if file.and_then(|mut file| file.write_all(line.as_bytes())).is_err() {
            return "no ledger".to_owned();
        }
        if hangs {
            std::future::pending::<()>().await;
        }
        "charged".to_owned()
    };
    let app = Router::new().route("/pay", post(pay)).route_layer(layer);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    Ok(axum::serve(listener, app).await?)
}
