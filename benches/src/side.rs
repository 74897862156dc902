//! The sides of the comparison: the same two operations, done by this crate, by hand and by a peer.

use std::ops::Range;

use tokio::task::JoinSet;

/// The length of every response, in bytes.
pub(crate) const RESPONSE: usize = 256;
/// Duration of a grant, on sides that have grants.
pub(crate) const LEASE_MS: u64 = 30_000;
/// Time to keep an outcome.
pub(crate) const RETENTION_MS: u64 = 24 * 3_600_000;
/// Tenant and operation.
pub(crate) const SCOPE: [&str; 2] = ["acct_42", "charges"];

/// One way to make operations happen once.
pub(crate) trait Side: Clone + Send + Sync + 'static {
    /// A new key: begin and complete.
    fn fresh(&self, key: String) -> impl Future<Output = ()> + Send;

    /// A completed key: begin, which answers with the response.
    fn replay(&self, key: String) -> impl Future<Output = ()> + Send;

    /// Completes the keys of these numbers, as fast as this side can.
    fn fill(&self, numbers: Range<u64>) -> impl Future<Output = ()> + Send {
        async move {
            let mut callers = JoinSet::new();
            for caller in 0..64 {
                let (side, numbers) = (self.clone(), numbers.clone());
                callers.spawn(async move {
                    for number in numbers.skip(caller).step_by(64) {
                        side.fresh(key(number)).await;
                    }
                });
            }
            callers.join_all().await;
        }
    }
}

/// Returns a key as a client makes one: the 36 characters of a UUID, in no order. Every number has
/// its own.
pub(crate) fn key(number: u64) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let bits = u128::from(scatter(number)) << 64 | u128::from(scatter(!number));
    let mut key = String::with_capacity(36);
    for place in 0..32 {
        if matches!(place, 8 | 12 | 16 | 20) {
            key.push('-');
        }
        key.push(char::from(DIGITS[(bits >> (124 - 4 * place)) as usize & 15]));
    }
    key
}

/// A bijection without visible order (the finish of SplitMix64).
pub(crate) fn scatter(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Returns a response like a handler's, freshly made each time.
pub(crate) fn response() -> Vec<u8> {
    vec![b'r'; RESPONSE]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_look_like_uuids_and_are_apart() {
        let keys: std::collections::HashSet<String> = (0..10_000).map(key).collect();
        assert_eq!(keys.len(), 10_000);
        assert!(keys.iter().all(|key| key.len() == 36 && key.split('-').count() == 5));
    }
}
