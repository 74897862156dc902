//! An embeddable idempotency engine: one owner at a time and one recorded outcome for each key,
//! whatever is retried, delivered twice, raced or interrupted.
//!
//! An application calls [`Engine::begin`] with a scope, a key and a fingerprint before it acts, and
//! [`Lease::complete`] or [`Lease::fail`] afterwards. The engine keeps one [record](store::Record)
//! for each key in a [store](store::Store), which can be memory, a SQLite file, a PostgreSQL or
//! Redis server, or any place where a value can be replaced only if it has not changed.
//!
//! * [An example](#an-example)
//! * [The states of a key](#the-states-of-a-key)
//! * [When not to use it](#when-not-to-use-it)
//! * [Contents](#contents)
//! * [Features](#features)
//!
//! # An example
//!
//! ```
//! # futures_executor::block_on(async {
//! use nevertwice::{Begin, Engine, Fingerprint, MemoryStore, Request};
//!
//! let engine = Engine::builder(MemoryStore::new()).build()?;
//! let request = Request::new(["acct_42", "charges"], "8d7f-11")?
//!     .fingerprint(Fingerprint::of(r#"{"amount":4200}"#));
//!
//! // The first delivery: act, then record the outcome.
//! let Begin::Acquired(lease) = engine.begin(&request).await? else { unreachable!() };
//! lease.mark_effect().await?; // a crash from here on is not rerun blindly
//! lease.complete("receipt 7").await?;
//!
//! // A duplicate: answer the recorded outcome.
//! let Begin::Completed(done) = engine.begin(&request).await? else { unreachable!() };
//! assert_eq!(done.response().unwrap(), "receipt 7");
//!
//! // The key comes back with another payload: refuse it.
//! let other = request.fingerprint(Fingerprint::of(r#"{"amount":9900}"#));
//! assert!(matches!(engine.begin(&other).await?, Begin::Mismatch(_)));
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
//! ```
//!
//! [`Engine::run`] does all of it around a handler: it waits for a duplicate in flight, renews the
//! lease, records the value or the error, and returns it, executed or replayed.
//!
//! # The states of a key
//!
//! ```text
//!                  begin                          complete
//!   ┌────────┐ ───────────────► ┌─────────────┐ ──────────────► ┌───────────┐
//!   │ absent │                  │ in progress │                 │ completed │
//!   └────────┘ ◄─────────────── └─────────────┘                 └───────────┘
//!        ▲         release        │  ▲      │ the lease expires,      ▲
//!        │                   fail │  │      │ the effect is marked    │ resolve
//!        │ expiry,                ▼  │      ▼                         │
//!        │ forget           ┌────────┐    ┌────────────┐              │
//!        └───────────────── │ failed │ ─► │ unresolved │ ─────────────┘
//!                           └────────┘    └────────────┘
//! ```
//!
//! | the key is | [`begin`](Engine::begin) answers |
//! |---|---|
//! | absent, or its retention is over | [`Acquired`](Begin::Acquired): act |
//! | in progress, its lease runs | [`InProgress`](Begin::InProgress): come back later |
//! | in progress, its lease has expired | `Acquired` with [`takeover`](Lease::takeover), or [`Unresolved`](Begin::Unresolved), by [`Recovery`] |
//! | completed | [`Completed`](Begin::Completed): answer the recorded response |
//! | failed | [`Failed`](Begin::Failed) with the recorded error, `Acquired` again, or `Unresolved`, by [`Retry`] |
//! | any of these, under another fingerprint | [`Mismatch`](Begin::Mismatch): refuse |
//!
//! A lease that is dropped unfinished writes nothing: a panic, a cancelled future or a client that
//! hung up is a crash, and a crash is never taken for "nothing happened". The lease expires, and
//! the next begin decides by what is recorded. The rules are one pure function,
//! [`decide`](mod@decide).
//!
//! # When not to use it
//!
//! * The effect is a row in the database that would hold the record, and nothing else happens: a
//!   unique index is enough. (With SQLite and PostgreSQL, `sqlite::begin_in` and
//!   `postgres::begin_in` put record and effect into one transaction of the application's.)
//! * The operation is naturally idempotent and its answer does not matter: run it again.
//! * A process of many steps over days, with timers and signals: use a workflow engine.
//! * Mutual exclusion or rate limits without an outcome to record: use a lock or a limiter.
//! * A browser: there is no support for `wasm32-unknown-unknown`, whose standard library has no
//!   clocks, threads or random bytes.
//!
//! Outside a transaction, no library makes *effects* exactly-once. The [`guide`] says what is
//! promised and what is not.
//!
//! # Contents
//!
//! | to | see |
//! |---|---|
//! | choose a lease and a retention, and learn what a crash leaves | [`guide`] |
//! | name an operation | [`Request`], [`Scope`], [`Key`], [`Fingerprint`] |
//! | begin, renew, checkpoint and finish | [`Engine::begin`], [`Begin`], [`Lease`] |
//! | run a handler | [`Engine::run`], [`run_blocking`](Engine::run_blocking), [`run_classified`](Engine::run_classified), [`Failure`] |
//! | wait for a duplicate in flight | [`Engine::begin_or_wait`] |
//! | consume messages in batches | [`Engine::begin_many`], [`complete_many`](Engine::complete_many), [`Begin::verdict`] |
//! | begin in one process and complete in another | [`LeaseToken`], [`Engine::resume`] |
//! | keep many leases alive | [`Engine::keep_alive`] |
//! | answer HTTP requests with an `Idempotency-Key`, and webhooks | `http::IdempotencyLayer`, `http::webhook` |
//! | commit record and effect together | `sqlite::begin_in` and `postgres::begin_in`, `complete_in` |
//! | commit an effect and an event, and deliver the event | `outbox`, `SqliteOutbox`, `PostgresOutbox` |
//! | set a default or a limit | [`EngineBuilder`], [`Policy`], [`Recovery`], [`Retry`] |
//! | demand that outcomes survive a power cut | [`EngineBuilder::require`], [`Durability`] |
//! | list, inspect and settle operations | [`Engine::unfinished`], [`inspect`](Engine::inspect), [`resolve`](Engine::resolve), [`amend`](Engine::amend), [`forget`](Engine::forget) |
//! | remove expired records | [`Engine::purge_regularly`] |
//! | watch it run | [`observe`] |
//! | test an application | `testing::audit`, [`ManualClock`], `testing::FaultyStore` |
//! | choose a store, or write one | [`backends`], [`guide::write_a_store`], [`store`] |
//!
//! # Features
//!
//! | feature | brings |
//! |---|---|
//! | `memory` (default) | `MemoryStore` |
//! | `sqlite` | `SqliteStore`, and transactions of the application's own |
//! | `bundled` (default) | compiles SQLite in, where `sqlite` is on; otherwise the system's is linked |
//! | `postgres` | `PostgresStore`, and transactions of the application's own; needs tokio |
//! | `sqlx` | those of sqlx 0.9 on PostgreSQL; needs Rust 1.94, as sqlx does |
//! | `redis` | `RedisStore`; needs tokio |
//! | `redis-rustls`, `redis-native-tls` | `redis`, and TLS for `rediss://` by rustls or the system's library |
//! | `http` | a tower layer for the `Idempotency-Key` header, on tokio |
//! | `axum` | `http`, and its lease as an extractor of axum |
//! | `testing` | `conformance!`, `FaultyStore` and the reference model, for authors of stores and for tests of applications |
//! | `tracing` | spans and events |
//! | `metrics` | counters, histograms and gauges |
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
// Decisions name every state and every command: a new one must not fall into a wildcard.
#![cfg_attr(not(test), warn(clippy::wildcard_enum_match_arm))]

mod batch;
mod begin;
mod builder;
mod call;
pub mod clock;
pub mod decide;
mod durability;
mod engine;
mod error;
mod fingerprint;
pub mod guide;
#[cfg(feature = "http")]
pub mod http;
mod inspect;
mod keep_alive;
mod key;
mod label;
mod lease;
mod limits;
pub mod observe;
mod operate;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod outbox;
mod owner;
mod policy;
mod process;
mod record;
mod request;
mod run;
pub mod store;
mod store_id;
mod sync;
#[cfg(feature = "testing")]
pub mod testing;
mod token;
mod varint;
mod wait;
mod wake;

#[path = "../backends/mod.rs"]
pub mod backends;

#[cfg(feature = "memory")]
pub use backends::MemoryStore;
#[cfg(feature = "redis")]
pub use backends::RedisStore;
#[cfg(feature = "postgres")]
pub use backends::{PostgresOutbox, PostgresStore, postgres};
#[cfg(feature = "sqlite")]
pub use backends::{SqliteOutbox, SqliteStore, sqlite};
pub use begin::{Begin, Completed, Failed, InProgress, Mismatch, Unresolved, Verdict};
pub use builder::EngineBuilder;
pub use clock::{Clock, ManualClock, SystemClock};
pub use decide::{Current, Reason, Resolution, StateKind};
pub use durability::Durability;
pub use engine::Engine;
pub use error::{Error, StoreError};
pub use fingerprint::{Fingerprint, FingerprintBuilder, FingerprintError};
pub use inspect::{Content, Inspection};
pub use key::{Key, KeyError, MAX_KEY_BYTES, MAX_SCOPE_PARTS, RecordId, Scope};
pub use lease::Lease;
pub use operate::{
    Amendment, Bulk, BulkPage, Filter, Need, PurgePlan, Purged, Refused, Unfinished, UnfinishedPage,
};
pub use owner::{Owner, OwnerError};
pub use policy::{Oversized, Policy, PolicyError};
pub use record::{Body, Recovery, Retry, Stamp};
pub use request::Request;
pub use run::{Classified, Failure, Outcome, Reported, RunError};
pub use store::Cursor;
pub use store_id::{StoreId, StoreIdError};
pub use token::LeaseToken;

/// The README, so that its examples are tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
