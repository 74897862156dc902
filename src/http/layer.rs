//! [`IdempotencyLayer`]: the layer and its settings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, Method, Response, StatusCode, response};
use tower_layer::Layer;

use super::in_flight::InFlight;
use super::key_source::{KeySource, RequestFingerprint};
use super::protocol::{Effects, Keep, Problem};
use super::service::IdempotencyService;
use super::settings::Settings;
use crate::engine::Engine;
use crate::key::{KeyError, Scope};

/// A tower layer that executes each request with an `Idempotency-Key` once and answers its
/// duplicates with the same response.
///
/// Cheap to clone. All clones, and the services that they make, share one count of the requests
/// under way. It needs tokio, since each request runs in a task of its own.
#[derive(Debug, Clone)]
pub struct IdempotencyLayer {
    settings: Arc<Settings>,
    in_flight: InFlight,
}

impl IdempotencyLayer {
    /// A layer over `engine`.
    ///
    /// `effects` says what a crash, a 408 and a 5xx of the handlers mean: see [`Effects`]. `caller`
    /// returns the authenticated caller (an account id, say), to whom a key belongs, from what the
    /// authentication left in the request; keys of different callers have nothing in common. It may
    /// return several parts, such as tenant and API version, and must not return a secret, since
    /// operators see it. For `None`, or a text that is no [`Scope`], the request is refused
    /// ([`Problem::NoCaller`]).
    ///
    /// ```
    /// use nevertwice::http::{Effects, IdempotencyLayer, http::request::Parts};
    /// use nevertwice::{Engine, MemoryStore};
    ///
    /// #[derive(Clone)]
    /// struct Account(String); // an extension that the authentication sets
    ///
    /// let engine = Engine::builder(MemoryStore::new()).build()?;
    /// let layer = IdempotencyLayer::new(engine, Effects::Assumed, |parts: &Parts| {
    ///     parts.extensions.get::<Account>().map(|account| account.0.clone())
    /// });
    /// # Ok::<(), nevertwice::PolicyError>(())
    /// ```
    pub fn new<F, S>(engine: Engine, effects: Effects, caller: F) -> IdempotencyLayer
    where
        F: Fn(&Parts) -> Option<S> + Send + Sync + 'static,
        S: TryInto<Scope>,
        KeyError: From<S::Error>,
    {
        let caller =
            move |parts: &Parts| caller(parts).map(|caller| caller.try_into().map_err(KeyError::from));
        IdempotencyLayer {
            settings: Arc::new(Settings::new(engine, effects, Arc::new(caller))),
            in_flight: InFlight::default(),
        }
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> IdempotencyLayer {
        change(Arc::make_mut(&mut self.settings));
        self
    }

    /// Lets requests without a key pass through to the handler, unprotected. **Default: they are
    /// refused** ([`Problem::MissingKey`]).
    pub fn optional(self) -> IdempotencyLayer {
        self.with(|settings| settings.optional = true)
    }

    /// The methods that the layer applies to; requests with others pass through. **Default: POST
    /// and PATCH**, those of the draft.
    pub fn methods(self, methods: impl IntoIterator<Item = Method>) -> IdempotencyLayer {
        self.with(|settings| settings.methods = methods.into_iter().collect())
    }

    /// The place of the key. **Default: the header `Idempotency-Key`.** A malformed key in a header
    /// is refused before the body is read.
    pub fn key(self, key: KeySource) -> IdempotencyLayer {
        self.with(|settings| settings.key = key)
    }

    /// The content that a retry must repeat. **Default [`RequestFingerprint::body`].**
    pub fn fingerprint(self, fingerprint: RequestFingerprint) -> IdempotencyLayer {
        self.with(|settings| settings.fingerprint = fingerprint)
    }

    /// The path that belongs to the fingerprint. **Default: that of the request, as the layer sees
    /// it.** Routers that nest others strip a prefix from it (axum's `Router::nest`): then return
    /// the whole one (axum's extension `OriginalUri`), or `/accounts/1/close` and
    /// `/accounts/2/close` are taken for one another.
    pub fn path<F>(self, path: F) -> IdempotencyLayer
    where
        F: Fn(&Parts) -> String + Send + Sync + 'static,
    {
        self.with(|settings| settings.path = Some(Arc::new(path)))
    }

    /// The treatment of a response, by its head. A [`Keep`] among the extensions of the response,
    /// set by the handler, takes precedence. Where the handler marked its effect,
    /// [`Keep::Released`] counts as [`Keep::Failed`], and [`Keep::Retried`] as
    /// [`Keep::Unresolved`], except under [`Effects::Repeatable`]. **Default [`Keep::ByStatus`].**
    pub fn keep<F>(self, keep: F) -> IdempotencyLayer
    where
        F: Fn(&response::Parts) -> Keep + Send + Sync + 'static,
    {
        self.with(|settings| settings.keep = Some(Arc::new(keep)))
    }

    /// Rewrites the answer to a problem, for an API with an error format of its own. Keep the
    /// status: clients decide by it. Answers to gRPC requests are not passed.
    pub fn problem<F>(self, problem: F) -> IdempotencyLayer
    where
        F: Fn(&Problem, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
    {
        self.with(|settings| settings.problem = Some(Arc::new(problem)))
    }

    /// Response headers to keep beside `Content-Type`, `Content-Encoding`, `Content-Language`,
    /// `ETag`, `Link` and `Location`. Those of one connection, moment or client are never kept:
    /// `Set-Cookie`, `WWW-Authenticate`, `Date`, `Content-Length`, `Access-Control-*`, ..
    pub fn kept_headers(self, names: impl IntoIterator<Item = HeaderName>) -> IdempotencyLayer {
        self.with(|settings| settings.kept_headers = names.into_iter().map(|name| name.to_string()).collect())
    }

    /// The longest request body, in bytes. **Default 2 MiB.** A longer one is refused
    /// ([`Problem::BodyTooLarge`]). Bodies are read into memory, for the fingerprint.
    pub fn max_body(self, bytes: usize) -> IdempotencyLayer {
        self.with(|settings| settings.max_body = bytes)
    }

    /// The number of requests under way at a time, waiting duplicates included. **Default 10 000.**
    /// Any further one is refused ([`Problem::Overloaded`]).
    pub fn max_in_flight(self, requests: usize) -> IdempotencyLayer {
        self.with(|settings| settings.max_in_flight = requests)
    }

    /// The time that a duplicate waits for the request in flight, before it is told to come back
    /// ([`Problem::InProgress`]). **Default 5 s**: the two retries of common clients are over in
    /// 3 s. The policy's limits on waiters apply.
    pub fn wait(self, limit: Duration) -> IdempotencyLayer {
        self.with(|settings| settings.wait = limit)
    }

    /// The time before an operation that failed before its effect was marked may run again
    /// ([`Effects::Marked`]). **Default 1 s.** Until then, duplicates get the stored response.
    pub fn back_off(self, time: Duration) -> IdempotencyLayer {
        self.with(|settings| settings.back_off = time)
    }

    /// The status of [`Problem::Mismatch`]. **Default 422**, as the draft says; 400 is Stripe's. A
    /// status that is no 4xx changes nothing: it would look like success.
    pub fn mismatch_status(self, status: StatusCode) -> IdempotencyLayer {
        match status.is_client_error() {
            true => self.with(|settings| settings.mismatch_status = status),
            false => self,
        }
    }

    /// The `Retry-After` of [`Problem::Unresolved`]. **Default 60 s.**
    pub fn unresolved_retry_after(self, time: Duration) -> IdempotencyLayer {
        self.with(|settings| settings.unresolved_retry_after = time)
    }

    /// The header that marks a stored response, with the value `true`. **Default
    /// `Idempotency-Replayed`**; `Idempotent-Replayed` is Stripe's.
    pub fn replayed_header(self, name: HeaderName) -> IdempotencyLayer {
        self.with(|settings| settings.replayed = name)
    }

    /// Executes requests without protection while the store is unavailable. **Default: they are
    /// refused** ([`Problem::Unavailable`]). *Warning*: then a retry of a request that was executed
    /// so executes again, during the outage and after it. Each such request is reported
    /// (`nevertwice.http_failed_open`), and has no [`HeldLease`](super::HeldLease). A request that
    /// was found to be in progress, and one whose record is damaged, is refused all the same.
    pub fn fail_open(self) -> IdempotencyLayer {
        self.with(|settings| settings.fail_open = true)
    }

    /// Completes as soon as no request is under way. Call it at shutdown, after the server has
    /// stopped to accept: handlers outlive their connections here, and one that ends with the
    /// runtime is a crash.
    pub async fn idle(&self) {
        self.in_flight.idle().await;
    }

    /// The number of requests under way, waiting duplicates and unfinished recordings included.
    pub fn in_flight(&self) -> usize {
        self.in_flight.count()
    }
}

impl<S> Layer<S> for IdempotencyLayer {
    type Service = IdempotencyService<S>;

    fn layer(&self, inner: S) -> IdempotencyService<S> {
        IdempotencyService::new(inner, self.settings.clone(), self.in_flight.clone())
    }
}
