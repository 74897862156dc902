//! The part of a request before its task: nothing is executed or recorded yet.

use std::error::Error as StdError;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body::Body;

use super::body::LayerBody;
use super::collect;
use super::protocol::{KeyFault, Problem};
use super::settings::Settings;
use crate::observe;

/// A request, as it goes on.
pub(super) enum Prepared<B> {
    /// To the handler, unprotected.
    PassedThrough(Request<LayerBody<B>>),
    /// Nowhere.
    Refused(Problem),
    /// To a begin, and then to the handler.
    Ready(Box<Ready>),
}

/// A request that is read, and its operation.
pub(super) struct Ready {
    pub(super) operation: crate::Request,
    pub(super) parts: Parts,
    pub(super) body: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

/// Reads the key, the caller and the body. A key in a header is checked before the body is polled,
/// so that a client that expects `100 Continue` need not send it.
pub(super) async fn prepare<B>(settings: &Arc<Settings>, request: Request<B>) -> Prepared<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    if !settings.methods.contains(&parts.method) {
        return Prepared::PassedThrough(Request::from_parts(parts, LayerBody::original(body)));
    }
    let early = settings.key.is_early().then(|| settings.key.find(&parts, &Bytes::new()));
    match &early {
        Some(Ok(None)) if settings.optional => {
            return Prepared::PassedThrough(Request::from_parts(parts, LayerBody::original(body)));
        }
        Some(Ok(None)) => return Prepared::Refused(Problem::MissingKey),
        Some(Err(fault)) => return Prepared::Refused(Problem::MalformedKey(*fault)),
        Some(Ok(Some(_))) | None => {}
    }
    let (body, trailers) = match collect::request(body, settings.max_body).await {
        Ok(read) => read,
        Err(problem) => return Prepared::Refused(problem),
    };
    let key = match early.unwrap_or_else(|| settings.key.find(&parts, &body)) {
        Ok(Some(key)) => key,
        Ok(None) if settings.optional => {
            let body = LayerBody::buffered(body, trailers);
            return Prepared::PassedThrough(Request::from_parts(parts, body));
        }
        Ok(None) => return Prepared::Refused(Problem::MissingKey),
        Err(fault) => return Prepared::Refused(Problem::MalformedKey(fault)),
    };
    match operation(settings, &parts, &body, key) {
        Ok(operation) => Prepared::Ready(Box::new(Ready { operation, parts, body, trailers })),
        Err(problem) => Prepared::Refused(problem),
    }
}

fn operation(
    settings: &Settings,
    parts: &Parts,
    body: &Bytes,
    key: String,
) -> Result<crate::Request, Problem> {
    let Some(Ok(scope)) = (settings.caller)(parts) else {
        observe::http_no_caller(&settings.engine);
        return Err(Problem::NoCaller);
    };
    // The key was checked, so only one that the check lets through and the engine does not fails.
    let request = crate::Request::new(scope, key);
    let request = request.map_err(|_| Problem::MalformedKey(KeyFault::Characters))?;
    Ok(settings.effects.request(request.fingerprint(settings.fingerprint.of(parts, body))))
}
