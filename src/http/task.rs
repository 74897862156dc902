//! The task of a request: begin, handler and recording, apart from the client's connection.

use std::any::Any;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response, response};
use http_body::Body;
use tokio::sync::oneshot;
use tower_service::Service;

use super::body::LayerBody;
use super::collect::{self, Collected};
use super::held::HeldLease;
use super::in_flight::Entered;
use super::prepare::{Incoming, Ready};
use super::protocol::{Effects, Keep, Problem, Recorded, Recording, Reply, essence};
use super::response::{Format, envelope, problem, reply, status};
use super::settings::Settings;
use crate::begin::Begin;
use crate::engine::Engine;
use crate::error::Error;
use crate::lease::Lease;
use crate::observe::{self, HttpOutcome};
use crate::run::alive;

/// Runs the request in a task, and returns the response as soon as it may go out.
pub(super) async fn run<S, A, B>(
    settings: Arc<Settings>,
    format: Format,
    ready: Ready,
    inner: S,
    entered: Entered,
) -> Result<Response<LayerBody<B>>, S::Error>
where
    S: Service<Request<LayerBody<A>>, Response = Response<B>> + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    A: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
{
    let (answer, answered) = oneshot::channel();
    let task = Task {
        settings: settings.clone(),
        format: format.clone(),
        inner,
        answer,
        entered,
        request: PhantomData,
    };
    let mut task = Box::pin(observe::in_current_span(task.run(ready)));
    // A request that is answered at once, as a replay from memory is, needs no task.
    let poll = |context: &mut Context<'_>| {
        Poll::Ready(catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(context))))
    };
    let task = match poll_fn(poll).await.unwrap_or_else(|panic| crashed(&settings, panic)) {
        Poll::Ready(()) => None,
        Poll::Pending => Some(tokio::spawn(task)),
    };
    if let Ok(response) = answered.await {
        return response;
    }
    // It ended without an answer: the handler panicked, or the runtime is shutting down.
    if let Some(task) = task
        && let Err(error) = task.await
        && error.is_panic()
    {
        crashed(&settings, error.into_panic());
    }
    Ok(problem(&settings, &format, &Problem::InProgress))
}

/// Carries a panic of the handler over to the future that the server polls.
fn crashed(settings: &Settings, panic: Box<dyn Any + Send>) -> ! {
    observe::http_answered(&settings.engine, HttpOutcome::Crashed);
    resume_unwind(panic)
}

type Answer<B, E> = Result<Response<LayerBody<B>>, E>;

struct Task<S, A, B, E> {
    settings: Arc<Settings>,
    format: Format,
    inner: S,
    /// Takes the response. The client may have hung up, which changes nothing.
    answer: oneshot::Sender<Answer<B, E>>,
    entered: Entered,
    request: PhantomData<fn(A)>,
}

impl<S, A, B> Task<S, A, B, S::Error>
where
    S: Service<Request<LayerBody<A>>, Response = Response<B>>,
    B: Body<Data = Bytes>,
{
    async fn run(mut self, Ready { operation, incoming }: Ready) {
        let settings = self.settings.clone();
        let engine = &settings.engine;
        let operation = match engine.owned(operation) {
            Ok(operation) => operation,
            Err(error) => return self.refuse(&Problem::of(&error)),
        };
        match begin(&settings, &operation).await {
            Begun::Answered(Begin::Acquired(lease)) => {
                self.execute(Arc::new(lease), &operation, incoming).await;
            }
            Begun::Answered(begin) => {
                // Only a grant has no reply, and it was executed.
                let answer = Reply::of(&begin).unwrap_or(Reply::Problem(Problem::InProgress));
                self.reply(HttpOutcome::of_reply(&answer), answer);
            }
            Begun::Failed { opens: true, .. } => {
                observe::http_failed_open(engine);
                let response = call(&mut self.inner, incoming.into_request(None)).await;
                let response = response.map(|response| response.map(LayerBody::original));
                self.finish(HttpOutcome::FailedOpen, response);
            }
            Begun::Failed { error, .. } => {
                self.refuse(&Problem::of(&error));
                engine.disown(&operation).await;
            }
        }
    }

    fn refuse(self, found: &Problem) {
        let response = problem(&self.settings, &self.format, found);
        self.finish(HttpOutcome::of(found), Ok(response));
    }

    fn reply(self, outcome: HttpOutcome, answer: Reply) {
        let response = reply(&self.settings, &self.format, answer);
        self.finish(outcome, Ok(response));
    }

    fn finish(self, outcome: HttpOutcome, response: Answer<B, S::Error>) {
        observe::http_answered(&self.settings.engine, outcome);
        // The client's next request must find the place free.
        drop(self.entered);
        let _ = self.answer.send(response);
    }

    /// Runs the handler under the lease, and records its response.
    async fn execute(mut self, lease: Arc<Lease>, operation: &crate::Request, incoming: Incoming) {
        let settings = self.settings.clone();
        let held = HeldLease(lease.clone());
        let (limit, grpc) = (settings.engine.policy().max_response, self.format.is_grpc());
        let inner = &mut self.inner;
        if let Err(error) = alive(&lease, poll_fn(|context| inner.poll_ready(context))).await {
            // The handler was not called.
            let _ = lease.release().await;
            return self.finish(HttpOutcome::Crashed, Err(error));
        }
        let work = async {
            let (mut parts, body) = inner.call(incoming.into_request(Some(held))).await?.into_parts();
            let streams = parts.extensions.remove::<Streamed>().is_some() || is_stream(&parts.headers);
            let collected = match streams {
                true => Ok(collect::stream(body)),
                false => collect::response(body, limit, grpc).await.map_err(drop),
            };
            Ok((parts, collected))
        };
        let (parts, collected) = match alive(&lease, work).await {
            Ok(handled) => handled,
            // An error of the service is a crash: nothing is recorded.
            Err(error) => return self.finish(HttpOutcome::Crashed, Err(error)),
        };
        let Ok(collected) = collected else {
            // The response broke off before it was recorded: a crash, after which the lease goes on
            // for a while.
            return self.reply(HttpOutcome::Crashed, Reply::Problem(Problem::InProgress));
        };
        let handled = Handled::of(&settings, &lease, parts, collected);
        self.record(&lease, operation, handled).await;
    }

    /// Records the response, then lets it go out. If the store does not answer for the length of a
    /// call, the response goes out first, and recording is tried again until the lease ends.
    async fn record(self, lease: &Lease, operation: &crate::Request, handled: Handled<B>) {
        let Handled { recording, response } = handled;
        let engine = self.settings.engine.clone();
        let pause = engine.clock().sleep(engine.policy().call_timeout);
        match select(Box::pin(recording.store(lease)), pause).await {
            Either::Left((Recorded::Lost, _)) => {
                let answer = Reply::recorded(&engine, operation).await;
                let answer = answer.unwrap_or_else(|error| Reply::Problem(Problem::of(&error)));
                self.reply(HttpOutcome::Lost, answer);
            }
            Either::Left((recorded, _)) => self.finish(outcome(&engine, &recorded), Ok(response)),
            Either::Right((_, recording)) => {
                let _ = self.answer.send(Ok(response));
                let outcome = outcome(&engine, &recording.await);
                observe::http_answered(&engine, outcome);
                drop(self.entered);
            }
        }
    }
}

/// Returns the outcome of a request whose response went to be recorded, and reports one that could
/// not be.
fn outcome(engine: &Engine, recorded: &Recorded) -> HttpOutcome {
    match recorded {
        Recorded::Done | Recorded::ByHandler => HttpOutcome::Executed,
        Recorded::Lost => HttpOutcome::Lost,
        Recorded::Failed(_) => {
            observe::http_unrecorded(engine);
            HttpOutcome::Unrecorded
        }
    }
}

/// The result of a begin.
enum Begun {
    Answered(Begin),
    /// It failed. `opens`: the request is executed all the same.
    Failed {
        error: Error,
        opens: bool,
    },
}

/// Begins, and waits for a duplicate in flight. Only a store that is unavailable at the first
/// question lets the request be executed without an answer.
async fn begin(settings: &Settings, operation: &crate::Request) -> Begun {
    let (engine, wait) = (&settings.engine, settings.wait);
    let (begin, first) = match settings.fail_open {
        false => (engine.begin_or_wait(operation, wait).await, false),
        true => match engine.begin(operation).await {
            Ok(Begin::InProgress(_)) => (engine.begin_or_wait(operation, wait).await, false),
            answer => (answer, true),
        },
    };
    match begin {
        Ok(begin) => Begun::Answered(begin),
        Err(error) => {
            let is_away = matches!(&error, Error::TimedOut { .. })
                || matches!(&error, Error::Store(error) if error.is_transient());
            Begun::Failed { error, opens: first && is_away }
        }
    }
}

/// Calls a service once it is ready.
async fn call<S, R>(service: &mut S, request: R) -> Result<S::Response, S::Error>
where
    S: Service<R>,
{
    poll_fn(|context| service.poll_ready(context)).await?;
    service.call(request).await
}

/// An extension of a response: its body is sent piece by piece as it comes, and is not kept.
/// `text/event-stream`, `application/x-ndjson` and the like need no such mark. Nothing of such a
/// body may be the effect, since a client that hangs up ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streamed;

/// A handler's response, and the record to make of it.
struct Handled<B> {
    recording: Recording,
    response: Response<LayerBody<B>>,
}

impl<B: Body<Data = Bytes>> Handled<B> {
    fn of(settings: &Settings, lease: &Lease, mut parts: response::Parts, body: Collected<B>) -> Handled<B> {
        let (kept, trailers) = match &body {
            Collected::Whole { data, trailers } => (Some(data), trailers.as_ref()),
            Collected::Open { .. } => (None, None),
        };
        let marked = (settings.effects, settings.effects.is_marked(lease));
        let chosen = parts.extensions.remove::<Keep>();
        let chosen = chosen.or_else(|| {
            let chosen = settings.keep.as_ref().map(|keep| keep(&parts))?;
            let acted = marked.1 && settings.effects != Effects::Repeatable;
            Some(if acted { chosen.after_effect() } else { chosen })
        });
        let chosen = chosen.unwrap_or_default();
        // The trailers of a stream are not known yet: it counts by its head.
        let status = match kept {
            Some(_) => status(&parts, trailers),
            None => parts.status.as_u16(),
        };
        let keep = chosen.or_by_status(status, marked, settings.back_off);
        let envelope = envelope(settings, &parts, trailers);
        let recording = Recording::of(lease, &envelope, kept, keep);
        let body = match body {
            Collected::Whole { data, trailers } => LayerBody::buffered(data, trailers),
            Collected::Open { read, rest } => LayerBody::resumed(read, rest),
        };
        Handled { recording, response: Response::from_parts(parts, body) }
    }
}

impl Incoming {
    /// Returns the request for the handler.
    fn into_request<A>(self, lease: Option<HeldLease>) -> Request<LayerBody<A>> {
        let Incoming { mut parts, body, trailers } = self;
        if let Some(lease) = lease {
            parts.extensions.insert(lease);
        }
        Request::from_parts(parts, LayerBody::buffered(body, trailers))
    }
}

/// Returns true for media types whose bodies are sent piece by piece.
fn is_stream(headers: &HeaderMap) -> bool {
    const STREAMS: [&[u8]; 6] = [
        b"application/json-seq",
        b"application/jsonl",
        b"application/ndjson",
        b"application/x-ndjson",
        b"multipart/x-mixed-replace",
        b"text/event-stream",
    ];
    headers.get(CONTENT_TYPE).is_some_and(|value| STREAMS.contains(&&essence(value.as_bytes())[..]))
}
