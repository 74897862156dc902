//! The identity of a store among all others: [`StoreId`].

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The identity of a store: the same in every process that shares its records, and different for
/// every other store. A [`LeaseToken`](crate::LeaseToken) carries it, so that an outcome is never
/// recorded in a store where no caller looks for it.
///
/// It is 128 bits of a BLAKE3 hash, shown and parsed as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StoreId(#[serde(with = "hex::serde")] [u8; StoreId::BYTES]);

impl StoreId {
    const BYTES: usize = 16;

    /// Returns the identity of a store of this `kind`. `parts` distinguish it from others of its
    /// kind: a database and a prefix, an id that is kept in a file. Parts are hashed with their
    /// lengths.
    pub fn of(kind: &str, parts: &[&[u8]]) -> StoreId {
        let mut hasher = blake3::Hasher::new_derive_key("nevertwice 2026-11 store id v1");
        for part in std::iter::once(kind.as_bytes()).chain(parts.iter().copied()) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut id = [0; StoreId::BYTES];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..StoreId::BYTES]);
        StoreId(id)
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreId({self})")
    }
}

/// The error for a text that is not a [`StoreId`], which has 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a store id is 32 hexadecimal digits")]
#[non_exhaustive]
pub struct StoreIdError {}

impl FromStr for StoreId {
    type Err = StoreIdError;

    fn from_str(text: &str) -> Result<StoreId, StoreIdError> {
        let mut id = [0; StoreId::BYTES];
        hex::decode_to_slice(text, &mut id).map_err(|_| StoreIdError {})?;
        Ok(StoreId(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        let ids = [
            StoreId::of("redis", &[b"0", b"a"]),
            StoreId::of("redis", &[b"0a"]),
            StoreId::of("redis", &[b"", b"0a"]),
            StoreId::of("redis0", &[b"a"]),
        ];
        for (at, id) in ids.iter().enumerate() {
            assert!(!ids[..at].contains(id));
        }
    }

    #[test]
    fn it_reads_what_it_shows() {
        let id = StoreId::of("sqlite", &[b"x"]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "0", "zz", &"0".repeat(34)] {
            assert!(bad.parse::<StoreId>().is_err());
        }
    }
}
