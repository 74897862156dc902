//! The settings of a layer, shared by its services.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method, Response, StatusCode, request, response};

use super::key_source::{KeySource, RequestFingerprint};
use super::protocol::{Effects, Keep, Problem};
use crate::engine::Engine;
use crate::key::{KeyError, Scope};

pub(super) type FindCaller = dyn Fn(&request::Parts) -> Option<Result<Scope, KeyError>> + Send + Sync;
pub(super) type ChooseKeep = dyn Fn(&response::Parts) -> Keep + Send + Sync;
pub(super) type FindPath = dyn Fn(&request::Parts) -> String + Send + Sync;
pub(super) type ShowProblem = dyn Fn(&Problem, Response<Bytes>) -> Response<Bytes> + Send + Sync;

#[derive(Clone)]
pub(super) struct Settings {
    pub(super) engine: Engine,
    pub(super) effects: Effects,
    pub(super) caller: Arc<FindCaller>,
    pub(super) optional: bool,
    pub(super) methods: Vec<Method>,
    pub(super) key: KeySource,
    pub(super) fingerprint: RequestFingerprint,
    pub(super) path: Option<Arc<FindPath>>,
    pub(super) keep: Option<Arc<ChooseKeep>>,
    pub(super) problem: Option<Arc<ShowProblem>>,
    pub(super) kept_headers: Vec<String>,
    pub(super) max_body: usize,
    pub(super) max_in_flight: usize,
    pub(super) wait: Duration,
    pub(super) back_off: Duration,
    pub(super) mismatch_status: StatusCode,
    pub(super) unresolved_retry_after: Duration,
    pub(super) replayed: HeaderName,
    pub(super) fail_open: bool,
}

impl Settings {
    pub(super) fn new(engine: Engine, effects: Effects, caller: Arc<FindCaller>) -> Settings {
        Settings {
            engine,
            effects,
            caller,
            optional: false,
            methods: vec![Method::POST, Method::PATCH],
            key: KeySource::default(),
            fingerprint: RequestFingerprint::default(),
            path: None,
            keep: None,
            problem: None,
            kept_headers: Vec::new(),
            max_body: 2 << 20,
            max_in_flight: 10_000,
            wait: Duration::from_secs(5),
            back_off: Duration::from_secs(1),
            mismatch_status: StatusCode::UNPROCESSABLE_ENTITY,
            unresolved_retry_after: Duration::from_secs(60),
            replayed: HeaderName::from_static("idempotency-replayed"),
            fail_open: false,
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("effects", &self.effects)
            .field("optional", &self.optional)
            .field("methods", &self.methods)
            .field("key", &self.key)
            .field("fingerprint", &self.fingerprint)
            .field("kept_headers", &self.kept_headers)
            .field("max_body", &self.max_body)
            .field("max_in_flight", &self.max_in_flight)
            .field("wait", &self.wait)
            .field("back_off", &self.back_off)
            .field("fail_open", &self.fail_open)
            .finish_non_exhaustive()
    }
}
