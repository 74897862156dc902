//! [`HeldLease`] as an extractor of axum.

use std::convert::Infallible;

use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use thiserror::Error;

use super::held::HeldLease;

/// The rejection of a request that has no lease: its route is outside of the layer, or the layer
/// passed it through. Extract `Option<HeldLease>` where keys are optional.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the request has no lease: its route is not behind IdempotencyLayer, or it needs no key")]
pub struct NoLease;

impl IntoResponse for NoLease {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

impl<S: Sync> FromRequestParts<S> for HeldLease {
    type Rejection = NoLease;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<HeldLease, NoLease> {
        parts.extensions.get().cloned().ok_or(NoLease)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for HeldLease {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<HeldLease>, Infallible> {
        Ok(parts.extensions.get().cloned())
    }
}
