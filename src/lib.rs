#![cfg_attr(feature = "memory", doc = include_str!("../README.md"))] // its program uses the memory store
#![cfg_attr(not(feature = "memory"), doc = "An embeddable, storage-agnostic idempotency engine.")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
// Every state and every command is named where something is decided: a new one must not fall into a wildcard.
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
mod inspect;
mod keep_alive;
mod key;
mod label;
mod lease;
mod limits;
pub mod observe;
mod operate;
mod owner;
mod policy;
mod process;
mod record;
mod request;
mod run;
mod store;
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

pub use async_trait::async_trait;

#[cfg(feature = "memory")]
pub use backends::MemoryStore;
#[cfg(feature = "redis")]
pub use backends::RedisStore;
#[cfg(feature = "sqlite")]
pub use backends::{SqliteStore, sqlite};
pub use begin::{Begin, Completed, Failed, InProgress, Mismatch, Unresolved, Verdict};
pub use builder::EngineBuilder;
pub use clock::{Boot, Clock, ManualClock, SystemClock, Timeline};
pub use decide::{Current, Reason, Resolution, StateKind};
pub use durability::Durability;
pub use engine::Engine;
pub use error::{Error, StoreError};
pub use fingerprint::{Fingerprint, FingerprintBuilder, FingerprintError};
pub use inspect::{Content, Inspection};
pub use key::{Key, KeyError, MAX_KEY_BYTES, MAX_SCOPE_PARTS, RecordId, Scope};
pub use label::Label;
pub use lease::Lease;
pub use operate::{
    Amendment, Bulk, BulkPage, Filter, Need, PurgePlan, Purged, Refused, Unfinished, UnfinishedPage,
};
pub use owner::{Owner, OwnerError};
pub use policy::{Oversized, Policy, PolicyError};
pub use record::{Body, DecodeError, Record, Recovery, Retry, Stamp, State};
pub use request::Request;
pub use run::{Classified, Failure, Outcome, Reported, RunError};
pub use store::{Cursor, Page, Purge, Snapshot, Store, Swap, SwapRequest};
pub use store_id::{StoreId, StoreIdError};
pub use token::LeaseToken;
