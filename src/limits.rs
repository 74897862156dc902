//! Checks of a call against the policy.

use bytes::Bytes;

use crate::error::Error;
use crate::policy::{Oversized, Policy};
use crate::record::Body;
use crate::store_id::StoreId;
use crate::token::LeaseToken;

impl Policy {
    /// The body to record for a response or error, by [`Policy::oversized`] if it is too long.
    pub(crate) fn body(&self, what: &'static str, bytes: Bytes) -> Result<Body, Error> {
        let (length, limit) = (bytes.len(), self.max_response);
        match self.oversized {
            Oversized::Refuse if length > limit => Err(Error::TooLarge { what, bytes: length, limit }),
            Oversized::Refuse | Oversized::Marker => Ok(Body::new(bytes, limit)),
        }
    }

    /// Refuses a token of another store than `store`.
    pub(crate) fn check_origin(&self, token: &LeaseToken, store: StoreId) -> Result<(), Error> {
        let origin = token.store();
        if origin == store || self.accept_tokens_from.contains(&origin) {
            return Ok(());
        }
        Err(Error::WrongStore { token: origin, store })
    }
}
