//! Responses of the layer: stored ones, and problems.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, TRAILER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, response};

use super::body::LayerBody;
use super::protocol::{Envelope, Header, Problem, Reply, grpc, retry_header};
use super::settings::Settings;

/// The request's properties that shape an answer of the layer's own.
#[derive(Debug, Clone)]
pub(super) struct Format {
    /// The content type of a gRPC request.
    grpc: Option<HeaderValue>,
    /// True for gRPC-Web.
    web: bool,
}

impl Format {
    pub(super) fn of(headers: &HeaderMap) -> Format {
        let content_type = headers.get(CONTENT_TYPE);
        Format {
            grpc: content_type.filter(|value| grpc::is_grpc(value.as_bytes())).cloned(),
            web: content_type.is_some_and(|value| grpc::is_grpc_web(value.as_bytes())),
        }
    }

    pub(super) fn is_grpc_web(&self) -> bool {
        self.web
    }

    pub(super) fn is_grpc(&self) -> bool {
        self.grpc.is_some()
    }
}

/// Returns the response for a request that is not executed.
pub(super) fn reply<B>(settings: &Settings, format: &Format, reply: Reply) -> Response<LayerBody<B>> {
    match reply {
        Reply::Problem(found) => problem(settings, format, &found),
        Reply::Stored { envelope, body, retry_after } => {
            stored(settings, format, &envelope, body, retry_after)
        }
    }
}

fn stored<B>(
    settings: &Settings,
    format: &Format,
    envelope: &Envelope,
    body: Bytes,
    retry_after: Option<Duration>,
) -> Response<LayerBody<B>> {
    // A record that holds no call's outcome.
    if format.is_grpc() && envelope.header("content-type").is_none() {
        return problem(settings, format, &Problem::ResponseNotKept(envelope.clone()));
    }
    let mut trailers = headers(&envelope.trailers);
    // A client of gRPC reads it where the status is.
    if let Some(wait) = retry_after
        && format.is_grpc()
        && trailers.contains_key(GRPC_STATUS)
    {
        insert_retry(&mut trailers, format, wait);
    }
    let names = trailers.keys().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
    let mut response = Response::new(LayerBody::buffered(body, Some(trailers)));
    *response.status_mut() =
        StatusCode::from_u16(envelope.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    *response.headers_mut() = headers(&envelope.headers);
    response.headers_mut().insert(settings.replayed.clone(), HeaderValue::from_static("true"));
    if let (false, false, Ok(names)) = (format.is_grpc(), names.is_empty(), HeaderValue::try_from(names)) {
        // HTTP/1 sends only announced trailers.
        response.headers_mut().insert(TRAILER, names);
    }
    if let Some(wait) = retry_after {
        insert_retry(response.headers_mut(), format, wait);
    }
    response
}

/// Returns the response for a problem.
pub(super) fn problem<B>(settings: &Settings, format: &Format, problem: &Problem) -> Response<LayerBody<B>> {
    if let Some(content_type) = &format.grpc {
        return grpc_problem(content_type, problem, retry_after(settings, problem));
    }
    let status = if *problem == Problem::Mismatch {
        settings.mismatch_status
    } else {
        StatusCode::from_u16(problem.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    };
    let mut response = Response::new(problem.json(status.as_u16()));
    *response.status_mut() = status;
    let map = response.headers_mut();
    *map = headers(&problem.headers());
    if let Some(wait) = retry_after(settings, problem) {
        insert_retry(map, format, wait);
    }
    if let Some(show) = &settings.problem {
        response = show(problem, response);
    }
    response.map(|body| LayerBody::buffered(body, None))
}

fn retry_after(settings: &Settings, problem: &Problem) -> Option<Duration> {
    if *problem == Problem::Unresolved {
        Some(settings.unresolved_retry_after)
    } else {
        problem.retry_after()
    }
}

fn insert_retry(map: &mut HeaderMap, format: &Format, wait: Duration) {
    if format.is_grpc() {
        map.insert(GRPC_PUSHBACK, (wait.as_millis().max(1) as u64).into());
    } else if let Some((name, value)) = header(&retry_header(wait)) {
        map.insert(name, value);
    }
}

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// Returns an answer whose trailers are in its head, without a message.
fn grpc_problem<B>(
    content_type: &HeaderValue,
    problem: &Problem,
    retry_after: Option<Duration>,
) -> Response<LayerBody<B>> {
    let mut response = Response::new(LayerBody::buffered(Bytes::new(), None));
    let map = response.headers_mut();
    map.insert(CONTENT_TYPE, content_type.clone());
    map.insert(GRPC_STATUS, grpc::status(problem).into());
    // Titles have no character that would have to be percent-encoded.
    map.insert(GRPC_MESSAGE, HeaderValue::from_static(problem.title()));
    // An unresolved operation is FAILED_PRECONDITION, which clients do not retry.
    let pushback = retry_after.filter(|_| *problem != Problem::Unresolved);
    if let Some(wait) = pushback {
        map.insert(GRPC_PUSHBACK, (wait.as_millis() as u64).into());
    }
    response
}

/// Returns the envelope of a handler's response.
pub(super) fn envelope(
    settings: &Settings,
    parts: &response::Parts,
    trailers: Option<&HeaderMap>,
) -> Envelope {
    let mut envelope = Envelope::new(parts.status.as_u16());
    let kept = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.as_str().to_owned(), Bytes::copy_from_slice(value.as_bytes()))
    };
    let also = &settings.kept_headers;
    let is_grpc = is_grpc(&parts.headers);
    let keeps = |name: &str| Envelope::keeps(name, also) || is_grpc && name.starts_with("grpc-");
    envelope.headers = parts.headers.iter().filter(|(name, _)| keeps(name.as_str())).map(kept).collect();
    envelope.trailers = trailers.into_iter().flat_map(HeaderMap::iter).map(kept).collect();
    envelope
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| grpc::is_grpc(value.as_bytes()))
}

/// Returns the status that a handler's response counts as: that of HTTP, or that of gRPC.
pub(super) fn status(parts: &response::Parts, trailers: Option<&HeaderMap>) -> u16 {
    if !is_grpc(&parts.headers) || parts.status != StatusCode::OK {
        return parts.status.as_u16();
    }
    let status = trailers.and_then(|trailers| trailers.get(GRPC_STATUS));
    let status = status.or_else(|| parts.headers.get(GRPC_STATUS));
    grpc::http_status(status.map(HeaderValue::as_bytes))
}

fn headers(kept: &[Header]) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(kept.len());
    // Another release, or an adapter, may have kept what must not be sent again.
    let kept = kept.iter().filter(|(name, _)| Envelope::may_keep(name));
    for (name, value) in kept.filter_map(header) {
        map.append(name, value);
    }
    map
}

fn header((name, value): &Header) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
    Some((name, HeaderValue::from_maybe_shared(value.clone()).ok()?))
}
