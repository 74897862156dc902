//! Where an operation is filed: [`Scope`] and [`Key`], parsed once, and the [`RecordId`] they map to.

use std::convert::Infallible;
use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::label::Label;

/// Every [`RecordId`] is hashed under this key, so that no other hash of the same bytes is one. It is no secret. (In front of
/// the bytes it would make a usual scope and key too long for one of BLAKE3's blocks, and the hash twice as dear.)
const DOMAIN: &[u8; blake3::KEY_LEN] = b"nevertwice record id v2\0\0\0\0\0\0\0\0\0";

/// The longest key, and the longest part of a scope, in bytes.
pub const MAX_KEY_BYTES: usize = 255;
/// The most parts of a scope.
pub const MAX_SCOPE_PARTS: usize = 16;

/// Why a scope or a key was refused. The offending text is not repeated: keys may be secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The key or a part of the scope has no characters.
    #[error("{what} is empty")]
    Empty {
        /// `key` or `scope`.
        what: &'static str,
    },
    /// The key or a part of the scope is too long.
    #[error("{what} is {bytes} bytes long, at most {MAX_KEY_BYTES} are allowed")]
    TooLong {
        /// `key` or `scope`.
        what: &'static str,
        /// Its length in bytes of UTF-8.
        bytes: usize,
    },
    /// The key or a part of the scope contains a control character, such as a line break.
    #[error("{what} has a control character at byte {at}")]
    ControlCharacter {
        /// `key` or `scope`.
        what: &'static str,
        /// Where it stands, in bytes from the start.
        at: usize,
    },
    /// The scope has too many parts, or none.
    #[error("scope has {parts} parts, 1 to {MAX_SCOPE_PARTS} are allowed")]
    Parts {
        /// How many it has.
        parts: usize,
    },
}

impl From<Infallible> for KeyError {
    fn from(never: Infallible) -> KeyError {
        match never {}
    }
}

fn check(what: &'static str, text: &str) -> Result<(), KeyError> {
    if text.is_empty() {
        return Err(KeyError::Empty { what });
    }
    if text.len() > MAX_KEY_BYTES {
        return Err(KeyError::TooLong { what, bytes: text.len() });
    }
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Ok(()); // as nearly all are
    }
    match text.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, _)) => Err(KeyError::ControlCharacter { what, at }),
        None => Ok(()),
    }
}

/// Whose operation it is, and which: tenant and operation, in one string or several parts.
///
/// Parts are hashed with their lengths, so that `["a", "bc"]` is another scope than `["ab", "c"]`, and neither is
/// the one-part scope `"a/bc"`. Nothing recorded under one scope can be read under another. The scope is the
/// service's own word and is kept readable for operators (its first 48 bytes); do not put secrets into it.
///
/// ```
/// use nevertwice::Scope;
/// let one = Scope::try_from("acct_42/charges")?;
/// let two = Scope::try_from(["acct_42", "charges"])?;
/// assert_ne!(one, two);
/// # Ok::<(), nevertwice::KeyError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    /// As it is hashed: the number of parts, then each behind its length.
    framed: Vec<u8>,
    label: Label,
}

impl Scope {
    /// A scope of 1 to 16 parts, each of 1 to 255 bytes without control characters.
    pub fn new<P: AsRef<str>>(parts: impl IntoIterator<Item = P>) -> Result<Scope, KeyError> {
        let mut framed = Vec::with_capacity(Label::MAX_BYTES);
        framed.push(0);
        let (mut label, mut fits, mut count, mut bad) = (Label::EMPTY, true, 0_usize, None);
        for part in parts {
            let part = part.as_ref();
            count += 1;
            bad = bad.or_else(|| check("scope", part).err());
            if count > MAX_SCOPE_PARTS || bad.is_some() {
                continue; // refused: only the number of parts is still asked for
            }
            fits = fits && (count == 1 || label.push("/")) && label.push(part);
            framed.push(part.len() as u8); // at most MAX_KEY_BYTES
            framed.extend_from_slice(part.as_bytes());
        }
        if count == 0 || count > MAX_SCOPE_PARTS {
            return Err(KeyError::Parts { parts: count });
        }
        framed[0] = count as u8; // at most MAX_SCOPE_PARTS
        bad.map_or(Ok(Scope { framed, label }), Err)
    }

    /// What operators see: the parts joined by `/`, cut to at most 48 bytes.
    pub(crate) fn label(&self) -> Label {
        self.label
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scope({})", self.label())
    }
}

impl From<&Scope> for Scope {
    fn from(scope: &Scope) -> Scope {
        scope.clone()
    }
}

impl TryFrom<&str> for Scope {
    type Error = KeyError;
    fn try_from(scope: &str) -> Result<Scope, KeyError> {
        Scope::new([scope])
    }
}

impl TryFrom<&String> for Scope {
    type Error = KeyError;
    fn try_from(scope: &String) -> Result<Scope, KeyError> {
        Scope::new([scope])
    }
}

impl TryFrom<String> for Scope {
    type Error = KeyError;
    fn try_from(scope: String) -> Result<Scope, KeyError> {
        Scope::new([scope])
    }
}

impl<P: AsRef<str>, const N: usize> TryFrom<[P; N]> for Scope {
    type Error = KeyError;
    fn try_from(parts: [P; N]) -> Result<Scope, KeyError> {
        Scope::new(parts)
    }
}

impl<P: AsRef<str>> TryFrom<&[P]> for Scope {
    type Error = KeyError;
    fn try_from(parts: &[P]) -> Result<Scope, KeyError> {
        Scope::new(parts)
    }
}

impl<P: AsRef<str>> TryFrom<Vec<P>> for Scope {
    type Error = KeyError;
    fn try_from(parts: Vec<P>) -> Result<Scope, KeyError> {
        Scope::new(parts)
    }
}

/// An idempotency key: 1 to 255 bytes of UTF-8 without control characters, taken as it is (no trimming, no
/// case folding). Colons, slashes, ARNs and URLs are fine. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Box<str>);

impl Key {
    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(<{} bytes>)", self.0.len())
    }
}

impl TryFrom<&str> for Key {
    type Error = KeyError;
    fn try_from(key: &str) -> Result<Key, KeyError> {
        check("key", key)?;
        Ok(Key(key.into()))
    }
}

impl TryFrom<&String> for Key {
    type Error = KeyError;
    fn try_from(key: &String) -> Result<Key, KeyError> {
        Key::try_from(key.as_str())
    }
}

impl TryFrom<String> for Key {
    type Error = KeyError;
    fn try_from(key: String) -> Result<Key, KeyError> {
        check("key", &key)?;
        Ok(Key(key.into()))
    }
}

impl From<&Key> for Key {
    fn from(key: &Key) -> Key {
        key.clone()
    }
}

/// What a store files a record under: the BLAKE3 digest of scope and key. Different pairs have different
/// digests, and a digest tells nothing of the key to whoever reads the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RecordId(#[serde(with = "hex::serde")] [u8; 32]);

impl RecordId {
    /// The id of `key` in `scope`.
    pub fn new(scope: &Scope, key: &Key) -> RecordId {
        let length = [key.0.len() as u8]; // at most MAX_KEY_BYTES
        let pieces: [&[u8]; 3] = [&scope.framed, &length, key.0.as_bytes()];
        // Nearly all are short enough to be hashed in one piece, which is the fastest.
        let mut whole = [0_u8; 192];
        let mut used = 0;
        for piece in pieces {
            let Some(room) = whole.get_mut(used..used + piece.len()) else {
                let mut hasher = blake3::Hasher::new_keyed(DOMAIN);
                pieces.iter().for_each(|piece| _ = hasher.update(piece));
                return RecordId(*hasher.finalize().as_bytes());
            };
            room.copy_from_slice(piece);
            used += piece.len();
        }
        RecordId(*blake3::keyed_hash(DOMAIN, &whole[..used]).as_bytes())
    }

    /// The digest's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id that has these bytes: for backends that list what they hold.
    pub const fn from_bytes(bytes: [u8; 32]) -> RecordId {
        RecordId(bytes)
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordId({}..)", hex::encode(&self.0[..8]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn id<const N: usize>(scope: [&str; N], key: &str) -> RecordId {
        RecordId::new(&Scope::new(scope).unwrap(), &Key::try_from(key).unwrap())
    }

    #[test]
    fn s7_parts_and_keys_map_injectively() {
        let ids = [
            id(["a", "bc"], "d"),
            id(["ab", "c"], "d"),
            id(["abc"], "d"),
            id(["a/bc"], "d"),
            id(["a"], "bcd"),
            id(["a", "bc", "d"], "e"),
            id(["a"], "bc"),
            id(["a", "b"], "c"),
            id(["ab"], "c"),
        ];
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    }

    #[test]
    fn s7_long_scopes_hash_alike_however_the_buffer_falls() {
        let long = "x".repeat(255);
        let parts = [long.as_str(); 16];
        let id = RecordId::new(&Scope::new(parts).unwrap(), &Key::try_from(long.as_str()).unwrap());
        let mut whole = vec![16];
        for _ in 0..17 {
            whole.push(255);
            whole.extend_from_slice(long.as_bytes());
        }
        assert_eq!(id.as_bytes(), blake3::keyed_hash(DOMAIN, &whole).as_bytes());
    }

    /// Stores hold these: what they are filed under must never change.
    #[test]
    fn s7_ids_stay_as_they_are() {
        let id = id(["acct_42", "charges"], "8d7f-11");
        assert_eq!(id.to_string(), "289063242f169f102185a86ca6bda50aedf8a39f30f9ad1c053d76b1d4d68f61");
    }

    #[test]
    fn bad_keys_and_scopes_are_refused_with_the_numbers() {
        assert_eq!(Key::try_from(""), Err(KeyError::Empty { what: "key" }));
        assert_eq!(
            Key::try_from("k".repeat(256)).unwrap_err().to_string(),
            "key is 256 bytes long, at most 255 are allowed"
        );
        assert_eq!(Key::try_from("a\nb"), Err(KeyError::ControlCharacter { what: "key", at: 1 }));
        assert_eq!(Key::try_from("a\u{85}"), Err(KeyError::ControlCharacter { what: "key", at: 1 }));
        assert!(Key::try_from("é".repeat(127)).is_ok());
        assert!(Key::try_from("arn:aws:sqs:eu-west-1:1:q/https://a.b/c?d=e#f").is_ok());
        assert_eq!(Scope::new::<&str>([]), Err(KeyError::Parts { parts: 0 }));
        assert_eq!(Scope::new(["a"; 17]), Err(KeyError::Parts { parts: 17 }));
        assert_eq!(Scope::new(["a", ""]), Err(KeyError::Empty { what: "scope" }));
    }

    #[test]
    fn debug_shows_no_key_and_a_bounded_scope() {
        let key = Key::try_from("sk_live_secret").unwrap();
        assert!(!format!("{key:?}").contains("secret"));
        assert!(Scope::new(["é".repeat(100)]).unwrap().label().len() <= 48);
    }
}
