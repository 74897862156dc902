//! The adapter: actix-web over `nevertwice::http::protocol`.

use std::sync::Arc;
use std::time::Duration;

use actix_web::body::{BoxBody, MessageBody, to_bytes};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::ErrorInternalServerError;
use actix_web::http::StatusCode;
use actix_web::http::header::{CONTENT_TYPE, HeaderMap};
use actix_web::middleware::Next;
use actix_web::web::{Bytes, Data};
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse, rt};
use nevertwice::http::protocol::{
    Answer, Effects, Envelope, Fingerprinted, Keep, KeyFault, Problem, Recorded, Recording, Reply, parse_key,
};
use nevertwice::{Begin, Engine, Lease, Request};

use crate::Account;

const EFFECTS: Effects = Effects::Marked;
/// The time that a duplicate waits for the request in flight.
const WAIT: Duration = Duration::from_secs(5);
/// The time before an operation that failed before its effect may run again.
const BACK_OFF: Duration = Duration::from_secs(1);

/// A middleware: executes each request once. The authentication is outside of it, and leaves an
/// [`Account`]. The handler takes its `Arc<Lease>` from the extensions.
pub(crate) async fn once<B: MessageBody + 'static>(
    engine: Data<Engine>,
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let key = match parse_key(request.headers().get_all("idempotency-key").map(|value| value.as_bytes())) {
        Ok(Some(key)) => key,
        Ok(None) => return Ok(request.into_response(response(Problem::MissingKey.answer()))),
        Err(fault) => return Ok(request.into_response(response(Problem::MalformedKey(fault).answer()))),
    };
    let body = request.extract::<Bytes>().await?;
    let operation = match operation(&request, &body, key) {
        Ok(operation) => operation,
        Err(problem) => return Ok(request.into_response(response(problem.answer()))),
    };
    request.set_payload(Payload::from(body));
    // A task of its own: a client that hangs up drops this future, and cancels nothing.
    let task = rt::spawn(execute(engine, operation, request, next));
    task.await.map_err(|_| ErrorInternalServerError("the handler panicked"))?
}

/// Method, path, query and body belong to the fingerprint, the caller to the scope.
fn operation(request: &ServiceRequest, body: &Bytes, key: String) -> Result<Request, Problem> {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&[][..], |value| value.as_bytes());
    let query = Some(request.query_string()).filter(|query| !query.is_empty());
    let (method, path) = (request.method().as_str(), request.path());
    let fingerprint = Fingerprinted { method, path, query, content_type, body }.bytes();
    let account = request.extensions().get::<Account>().map(|account| account.0.clone());
    let request = Request::new(account.ok_or(Problem::NoCaller)?, key);
    let request = request.map_err(|_| Problem::MalformedKey(KeyFault::Characters))?;
    Ok(EFFECTS.request(request.fingerprint(fingerprint)))
}

async fn execute<B: MessageBody + 'static>(
    engine: Data<Engine>,
    operation: Request,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let lease = match engine.begin_or_wait(&operation, WAIT).await {
        Ok(Begin::Acquired(lease)) => Arc::new(lease),
        Ok(begin) => {
            let reply = Reply::of(&begin).unwrap_or(Reply::Problem(Problem::InProgress));
            return Ok(request.into_response(response(reply.answer())));
        }
        Err(error) => return Ok(request.into_response(response(Problem::of(&error).answer()))),
    };
    request.extensions_mut().insert(lease.clone());
    let handled = tokio::select! {
        // An error is a crash: nothing is recorded.
        handled = next.call(request) => handled?,
        never = engine.keep_alive(std::slice::from_ref(&lease)) => match never {},
    };
    record(&engine, &operation, &lease, handled).await
}

/// Records the response, then answers it; or what is recorded, if the lease was lost.
async fn record<B: MessageBody + 'static>(
    engine: &Engine,
    operation: &Request,
    lease: &Lease,
    handled: ServiceResponse<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let (request, handled): (HttpRequest, HttpResponse<B>) = handled.into_parts();
    let (head, body) = handled.into_parts();
    let body = to_bytes(body).await.map_err(|_| ErrorInternalServerError("the response broke off"))?;
    let envelope = envelope(head.status(), head.headers());
    let keep = Keep::by_status(envelope.status, EFFECTS, EFFECTS.is_marked(lease), BACK_OFF);
    let response = match Recording::of(lease, &envelope, Some(&body), keep).store(lease).await {
        Recorded::Done | Recorded::ByHandler | Recorded::Failed(_) => head.set_body(BoxBody::new(body)),
        Recorded::Lost => {
            let reply = Reply::recorded(engine, operation).await;
            response(reply.unwrap_or_else(|error| Reply::Problem(Problem::of(&error))).answer())
        }
    };
    Ok(ServiceResponse::new(request, response))
}

fn envelope(status: StatusCode, headers: &HeaderMap) -> Envelope {
    let mut envelope = Envelope::new(status.as_u16());
    let kept = headers.iter().filter(|(name, _)| Envelope::keeps(name.as_str(), &[]));
    envelope.headers = kept
        .map(|(name, value)| (name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes())))
        .collect();
    envelope
}

fn response(answer: Answer) -> HttpResponse {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    for (name, value) in &answer.headers {
        response.append_header((name.as_str(), &value[..]));
    }
    response.body(answer.body)
}
