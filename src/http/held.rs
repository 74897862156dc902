//! [`HeldLease`]: the lease of the request that a handler executes.

use std::ops::Deref;
use std::sync::Arc;

use crate::lease::Lease;

/// The lease of the request, which the layer puts into the request's extensions. A handler may
/// [mark its effect](Lease::mark_effect), [save a checkpoint](Lease::save_checkpoint),
/// [derive keys](Lease::derive_key) for downstream calls, or finish it by itself; otherwise the
/// layer records the response. The layer also renews it.
///
/// With feature `axum` it is an extractor; elsewhere take it from the extensions. A request that
/// the layer passed through (another method, or no key where keys are optional) has none.
#[derive(Debug, Clone)]
pub struct HeldLease(pub(super) Arc<Lease>);

impl Deref for HeldLease {
    type Target = Lease;

    fn deref(&self) -> &Lease {
        &self.0
    }
}
