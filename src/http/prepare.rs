//! The part of a request before its task: nothing is executed or recorded yet.

use std::error::Error as StdError;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Request};
use http_body::Body;

use super::body::LayerBody;
use super::collect;
use super::held::HeldLease;
use super::in_flight::InFlight;
use super::protocol::{KeyFault, Problem};
use super::settings::Settings;
use crate::key::Scope;
use crate::observe;

/// A request, as it goes on.
pub(super) enum Prepared<B> {
    /// To the handler, unprotected.
    PassedThrough(Box<Request<LayerBody<B>>>),
    /// Nowhere.
    Refused(Problem),
    /// To a begin, and then to the handler.
    Ready(Box<Ready>),
}

/// The operation of a request, and the request itself.
pub(super) struct Ready {
    pub(super) operation: crate::Request,
    pub(super) incoming: Incoming,
}

/// A request that is read.
pub(super) struct Incoming {
    pub(super) parts: Parts,
    pub(super) body: Bytes,
    pub(super) trailers: Option<HeaderMap>,
}

/// Reads the key, the caller and the body. What can be refused by the head alone is refused before
/// the body is polled, so that a client that expects `100 Continue` need not send it.
pub(super) async fn prepare<B>(
    settings: &Arc<Settings>,
    in_flight: &InFlight,
    request: Request<B>,
) -> Prepared<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let (parts, body) = request.into_parts();
    // With a lease, another layer outside of this one protects it.
    if !settings.methods.contains(&parts.method) || parts.extensions.get::<HeldLease>().is_some() {
        return passed_through(parts, LayerBody::original(body));
    }
    let early = settings.key.is_early().then(|| settings.key.find(&parts, &Bytes::new()));
    match &early {
        Some(Ok(None)) if settings.optional => {
            return passed_through(parts, LayerBody::original(body));
        }
        Some(Ok(None)) => return Prepared::Refused(Problem::MissingKey),
        Some(Err(fault)) => return Prepared::Refused(Problem::MalformedKey(*fault)),
        Some(Ok(Some(_))) | None => {}
    }
    // A key in the body may be missing, and then there need be no caller.
    let early_scope = early.is_some().then(|| scope(settings, &parts));
    if let Some(Err(problem)) = early_scope {
        return Prepared::Refused(problem);
    }
    if in_flight.count() >= settings.max_in_flight {
        return Prepared::Refused(Problem::Overloaded);
    }
    let (body, trailers) = match collect::request(body, settings.max_body).await {
        Ok(read) => read,
        Err(problem) => return Prepared::Refused(problem),
    };
    let key = match early.unwrap_or_else(|| settings.key.find(&parts, &body)) {
        Ok(Some(key)) => key,
        Ok(None) if settings.optional => {
            return passed_through(parts, LayerBody::buffered(body, trailers));
        }
        Ok(None) => return Prepared::Refused(Problem::MissingKey),
        Err(fault) => return Prepared::Refused(Problem::MalformedKey(fault)),
    };
    let operation = early_scope.unwrap_or_else(|| scope(settings, &parts));
    let operation = operation.and_then(|scope| operation_of(settings, &parts, &body, scope, key));
    match operation {
        Ok(operation) => {
            let incoming = Incoming { parts, body, trailers };
            Prepared::Ready(Box::new(Ready { operation, incoming }))
        }
        Err(problem) => Prepared::Refused(problem),
    }
}

fn passed_through<B>(parts: Parts, body: LayerBody<B>) -> Prepared<B> {
    Prepared::PassedThrough(Box::new(Request::from_parts(parts, body)))
}

fn scope(settings: &Settings, parts: &Parts) -> Result<Scope, Problem> {
    match (settings.caller)(parts) {
        Some(Ok(scope)) => Ok(scope),
        Some(Err(_)) | None => {
            observe::http_no_caller(&settings.engine);
            Err(Problem::NoCaller)
        }
    }
}

fn operation_of(
    settings: &Settings,
    parts: &Parts,
    body: &Bytes,
    scope: Scope,
    key: String,
) -> Result<crate::Request, Problem> {
    // The key was checked, so only one that the check lets through and the engine does not fails.
    let request = crate::Request::new(scope, key);
    let request = request.map_err(|_| Problem::MalformedKey(KeyFault::Characters))?;
    let path = settings.path.as_ref().map(|path| path(parts));
    let path = path.as_deref().unwrap_or_else(|| parts.uri.path());
    Ok(settings.effects.request(request.fingerprint(settings.fingerprint.of(parts, path, body))))
}
