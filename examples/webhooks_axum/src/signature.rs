//! The checks of signatures. Each compares in constant time and refuses old ones.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::HeaderMap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use standardwebhooks::{Webhook, WebhookError};

/// The oldest signature that is accepted, in seconds, as in Stripe's libraries.
const TOLERANCE: u64 = 5 * 60;

/// The signatures of Standard Webhooks: by the specification's own crate.
#[derive(Clone)]
pub(crate) struct Standard(Arc<Webhook>);

impl Standard {
    /// Takes a secret as the sender shows it: `whsec_` and base64.
    pub(crate) fn new(secret: &str) -> Result<Standard, WebhookError> {
        Webhook::new(secret).map(|webhook| Standard(Arc::new(webhook)))
    }

    pub(crate) fn verify(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        self.0.verify(body, headers).is_ok()
    }
}

/// The signatures of Stripe, `Stripe-Signature: t=1492774577,v1=5257a8..`: an HMAC over the time
/// and the body. <https://docs.stripe.com/webhooks/signature>
#[derive(Clone)]
pub(crate) struct Stripe(Arc<[u8]>);

impl Stripe {
    /// Takes the whole secret, `whsec_` included.
    pub(crate) fn new(secret: &str) -> Stripe {
        Stripe(secret.as_bytes().into())
    }

    pub(crate) fn verify(&self, headers: &HeaderMap, body: &[u8]) -> bool {
        let header = headers.get("stripe-signature").and_then(|value| value.to_str().ok());
        header.is_some_and(|header| self.verify_at(unix_now(), header, body))
    }

    fn verify_at(&self, now: u64, header: &str, body: &[u8]) -> bool {
        let items = || header.split(',').filter_map(|item| item.trim().split_once('='));
        let Some((_, time)) = items().find(|(name, _)| *name == "t") else { return false };
        if !time.parse::<u64>().is_ok_and(|time| time.abs_diff(now) <= TOLERANCE) {
            return false;
        }
        // There are two while a secret is replaced. Other schemes than v1 are ignored.
        items().filter(|(scheme, _)| *scheme == "v1").any(|(_, signature)| {
            let signature = hex::decode(signature).unwrap_or_default();
            // A key of any length will do for an HMAC.
            Hmac::<Sha256>::new_from_slice(&self.0).is_ok_and(|hmac| {
                hmac.chain_update(time).chain_update(".").chain_update(body).verify_slice(&signature).is_ok()
            })
        })
    }
}

#[expect(clippy::disallowed_methods, reason = "a signature states the wall clock of its sender")]
fn unix_now() -> u64 {
    // A clock before 1970 accepts no signature.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl fmt::Debug for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Standard")
    }
}

impl fmt::Debug for Stripe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stripe")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with `openssl dgst -sha256 -hmac whsec_demo`.
    const SIGNATURE: &str = "2c60e4114ab5a6a09db316b30348e962063793d04d55e70772866bd6780e0a1c";
    const BODY: &[u8] = br#"{"id":"evt_1"}"#;

    fn verifies(now: u64, header: &str, body: &[u8]) -> bool {
        Stripe::new("whsec_demo").verify_at(now, header, body)
    }

    #[test]
    fn a_genuine_signature_of_stripe_is_accepted_and_no_other() {
        let genuine = format!(
            "t=1492774577,v1={SIGNATURE},v0=6ffbb59b2300aae63f272406069a9788598b792a944a07aba816edb039989a39"
        );
        assert!(verifies(1_492_774_577, &genuine, BODY));
        assert!(verifies(1_492_774_577 + TOLERANCE, &genuine, BODY));
        let rotated = format!("t=1492774577,v1={},v1={SIGNATURE}", "0".repeat(64));
        assert!(verifies(1_492_774_577, &rotated, BODY));

        assert!(!verifies(1_492_774_577 + TOLERANCE + 1, &genuine, BODY), "too old");
        assert!(!verifies(1_492_774_577 - TOLERANCE - 1, &genuine, BODY), "of the future");
        assert!(!verifies(1_492_774_577, &genuine, br#"{"id":"evt_2"}"#), "another body");
        for header in [
            String::new(),
            "t=1492774577".to_owned(),
            format!("v1={SIGNATURE}"),
            format!("t=1492774578,v1={SIGNATURE}"),
            format!("t=1492774577,v0={SIGNATURE}"),
            format!("t=1492774577,v1={}", &SIGNATURE[..62]),
            "t=1492774577,v1=".to_owned(),
            format!("t=-1,v1={SIGNATURE}"),
        ] {
            assert!(!verifies(1_492_774_577, &header, BODY), "{header}");
        }
    }
}
