//! The checks that [`conformance!`](crate::conformance) mounts. Each takes an empty store and
//! panics if the store is wrong. They need no control over the store's time: a duration that must
//! expire is a microsecond, and one that must not is an hour.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // a check fails by panicking
#![allow(clippy::wildcard_enum_match_arm)] // whatever else it is, the check fails

mod applications;
mod faults;
mod rules;
mod storage;

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::history::{self, Op, Pace};
use super::model::ModelBegin;
use super::{Fault, FaultyStore, until_over};
use crate::begin::Begin;
use crate::clock::ManualClock;
use crate::decide::{Command, Decision, Reason, Resolution, StateKind, decide};
use crate::engine::Engine;
use crate::error::{Error, StoreError};
use crate::fingerprint::Fingerprint;
use crate::key::{Key, RecordId, Scope};
use crate::lease::Lease;
use crate::owner::Owner;
use crate::policy::Policy;
use crate::record::{Body, Record, Recovery, Retry, Stamp, State};
use crate::request::Request;
use crate::run::{Failure, RunError};
use crate::store::{Store, Swap, SwapRequest};
use crate::store_id::StoreId;
use crate::token::LeaseToken;

pub use self::applications::*;
pub use self::faults::*;
pub use self::rules::*;
pub use self::storage::*;

type Shared = Arc<dyn Store>;

/// Expires by the next call, once [`until_over`] has returned.
const SHORT: Duration = Duration::from_micros(1);
/// Outlasts every check.
const LONG: Duration = Duration::from_secs(3600);
/// The longest duration that a record can represent.
const MAX: Duration = Duration::from_micros(u64::MAX);

fn engine(store: &Shared) -> Engine {
    Engine::builder(store.clone()).build().unwrap()
}

fn request(key: &str) -> Request {
    Request::new("checks", key).unwrap().fingerprint(Fingerprint::of("payload"))
}

fn id(key: &str) -> RecordId {
    RecordId::new(&Scope::try_from("checks").unwrap(), &Key::try_from(key).unwrap())
}

async fn acquire(engine: &Engine, request: &Request) -> Lease {
    match engine.begin(request).await.unwrap() {
        Begin::Acquired(lease) => lease,
        other => panic!("expected a lease, got {other:?}"),
    }
}

/// Returns an expired lease of `request`.
async fn crash(engine: &Engine, store: &Shared, request: &Request) -> Lease {
    let lease = acquire(engine, &request.clone().lease(SHORT)).await;
    until_over(store, &request.id(), SHORT).await;
    lease
}

async fn response(engine: &Engine, request: &Request) -> Bytes {
    match engine.begin(request).await.unwrap() {
        Begin::Completed(done) => done.response().unwrap().clone(),
        other => panic!("expected a response, got {other:?}"),
    }
}

async fn reason(engine: &Engine, request: &Request) -> (Reason, Stamp) {
    match engine.begin(request).await.unwrap() {
        Begin::Unresolved(unknown) => (unknown.reason(), unknown.fence()),
        other => panic!("expected unresolved, got {other:?}"),
    }
}

fn lost(result: Result<(), Error>) -> StateKind {
    match result {
        Err(Error::LeaseLost { current }) => current.state,
        other => panic!("expected LeaseLost, got {other:?}"),
    }
}

/// Returns a record as a begin writes it.
fn grant(request: &Request) -> Record {
    let params = request.params(&Policy::default(), Owner::random).unwrap();
    match decide(Stamp::ZERO, None, &Command::Begin(params)) {
        Decision::Write { next: Some(record), .. } => *record,
        other => panic!("{other:?}"),
    }
}

fn done(swap: Swap) -> Stamp {
    match swap {
        Swap::Done(stamp) => stamp,
        Swap::Conflict(found) => panic!("expected a write, found {found:?}"),
    }
}

/// Returns the output of `call`, or `None` if it is still pending after `awaits` waits.
async fn dropped_at<T>(awaits: u32, call: impl Future<Output = T>) -> Option<T> {
    let mut call = Box::pin(call);
    let mut left = awaits;
    poll_fn(|context| match call.as_mut().poll(context) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}

fn body(text: &'static str) -> Body {
    Body::kept(Bytes::from_static(text.as_bytes()))
}
