//! Feature `http`: a tower layer for the `Idempotency-Key` header
//! (draft-ietf-httpapi-idempotency-key-header-07), against which real clients can retry.
//!
#![doc = include_str!("http/guide.md")]

mod body;
mod collect;
#[cfg(feature = "axum")]
mod extract;
mod held;
mod in_flight;
mod key_source;
mod layer;
mod prepare;
pub mod problems;
pub mod protocol;
mod response;
mod service;
mod settings;
mod task;
pub mod webhook;

pub use http;

pub use self::body::LayerBody;
#[cfg(feature = "axum")]
pub use self::extract::NoLease;
pub use self::held::HeldLease;
pub use self::key_source::{KeySource, RequestFingerprint};
pub use self::layer::IdempotencyLayer;
pub use self::protocol::{Effects, Keep, Problem};
pub use self::service::IdempotencyService;
pub use self::task::Streamed;
