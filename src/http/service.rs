//! [`IdempotencyService`]: the service that the layer makes.

use std::error::Error as StdError;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use super::body::LayerBody;
use super::in_flight::InFlight;
use super::prepare::{Prepared, prepare};
use super::protocol::Problem;
use super::response::{Format, problem};
use super::settings::Settings;
use super::task;
use crate::observe::{self, HttpOutcome};

/// The service around another one, made by [`IdempotencyLayer`](super::IdempotencyLayer).
///
/// The body of a request is read in the future that the server polls, and ends with its connection.
/// Begin, handler and recording then run in a task of their own, unless they end at once, so that a
/// client that hangs up does not cancel them. A panic of the handler is carried over to the future
/// that the server polls.
#[derive(Clone)]
pub struct IdempotencyService<S> {
    inner: S,
    settings: Arc<Settings>,
    in_flight: InFlight,
}

impl<S> IdempotencyService<S> {
    pub(super) fn new(inner: S, settings: Arc<Settings>, in_flight: InFlight) -> IdempotencyService<S> {
        IdempotencyService { inner, settings, in_flight }
    }
}

impl<S> fmt::Debug for IdempotencyService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyService").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl<S, A, B> Service<Request<A>> for IdempotencyService<S>
where
    S: Service<Request<LayerBody<A>>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    A: Body<Data = Bytes> + Send + 'static,
    A::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<LayerBody<B>>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        // The inner service is asked when it is called: a permit of its limits must not be held
        // while a body is read or a duplicate waits.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let mut inner = self.inner.clone();
        let (settings, in_flight) = (self.settings.clone(), self.in_flight.clone());
        Box::pin(async move {
            let format = Format::of(request.headers());
            let refused = |found: &Problem| {
                observe::http_answered(&settings.engine, HttpOutcome::of(found));
                Ok(problem(&settings, &format, found))
            };
            if format.is_grpc_web() && settings.methods.contains(request.method()) {
                return refused(&Problem::Unsupported);
            }
            let ready = match prepare(&settings, &in_flight, request).await {
                Prepared::PassedThrough(request) => {
                    poll_fn(|context| inner.poll_ready(context)).await?;
                    let response = inner.call(*request).await;
                    return response.map(|response| response.map(LayerBody::original));
                }
                Prepared::Refused(found) => return refused(&found),
                Prepared::Ready(ready) => ready,
            };
            match in_flight.enter(settings.max_in_flight) {
                Some(entered) => task::run(settings, format, *ready, inner, entered).await,
                None => refused(&Problem::Overloaded),
            }
        })
    }
}
