//! The checks that [`conformance!`](crate::conformance) mounts. Each takes an empty store and panics if it errs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a check fails by panicking
#![allow(clippy::wildcard_enum_match_arm)] // whatever else it is, the check fails

use std::sync::Arc;

use crate::begin::Begin;
use crate::engine::Engine;
use crate::request::Request;
use crate::store::Store;

/// A begin of a key that nobody used gets attempt 1 and no traces.
pub async fn a_fresh_key_is_granted(store: Arc<dyn Store>) {
    let engine = Engine::builder(store).build().unwrap();
    match engine.begin(&Request::new("s", "k").unwrap()).await.unwrap() {
        Begin::Acquired(lease) => assert_eq!(lease.attempt(), 1),
        other => panic!("{other:?}"),
    }
}
