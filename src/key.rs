//! The address of an operation: [`Scope`] and [`Key`], parsed once, and the [`RecordId`] that they
//! map to.

mod scope;

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::scope::Scope;
pub(crate) use self::scope::ScopeId;

/// The hash key of every [`RecordId`], so that no other hash of the same bytes equals one. It is
/// not secret. (As a prefix of the bytes it would make a typical scope and key exceed one BLAKE3
/// block, and double the cost of the hash.)
const DOMAIN: &[u8; blake3::KEY_LEN] = b"nevertwice record id v2\0\0\0\0\0\0\0\0\0";

/// The longest key, and the longest part of a scope, in bytes.
pub const MAX_KEY_BYTES: usize = 255;
/// The longest typed form of a key, in bytes: two digits for each byte, and two in front.
pub(crate) const MAX_TYPED_KEY_BYTES: usize = 2 + 2 * MAX_KEY_BYTES;
/// The most parts of a scope.
pub const MAX_SCOPE_PARTS: usize = 16;

/// The reason why a scope or a key was refused. The offending text is not repeated, since keys may
/// be secrets.
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
        /// Its position, in bytes from the start.
        at: usize,
    },
    /// The typed form has a backslash that escapes nothing, or bytes that are not hexadecimal.
    #[error("{what} has an invalid escape at byte {at}: a backslash itself is written \\\\")]
    Escape {
        /// `key` or `scope`.
        what: &'static str,
        /// Its position, in bytes from the start.
        at: usize,
    },
    /// The typed form of the scope was cut when it was displayed: its end is unknown. Or it is too
    /// long to choose records by, which show no more of theirs.
    #[error(
        "the scope was truncated (it ends in …): write it in full (\\… is the character itself); or it is over 44 \
         bytes, too long for a filter"
    )]
    Cut,
    /// The text is not a record id, which has 64 hexadecimal digits.
    #[error("a record id has 64 hexadecimal digits")]
    Id,
    /// The text is not the id of an event, which has 32 hexadecimal digits.
    #[error("an event id has 32 hexadecimal digits")]
    EventId,
    /// The scope has too many parts, or none.
    #[error("scope has {parts} parts, 1 to {MAX_SCOPE_PARTS} are allowed")]
    Parts {
        /// The number of parts.
        parts: usize,
    },
}

impl From<Infallible> for KeyError {
    fn from(never: Infallible) -> KeyError {
        match never {}
    }
}

/// Checks that `text` has 1 to 255 bytes and no control characters.
pub(crate) fn check(what: &'static str, text: &str) -> Result<(), KeyError> {
    if text.is_empty() {
        return Err(KeyError::Empty { what });
    }
    if text.len() > MAX_KEY_BYTES {
        return Err(KeyError::TooLong { what, bytes: text.len() });
    }
    // Without an early exit, so that many bytes are compared at once.
    if text.bytes().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~')) {
        return Ok(()); // as nearly all are
    }
    match text.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, _)) => Err(KeyError::ControlCharacter { what, at }),
        None => Ok(()),
    }
}

/// An idempotency key: 1 to 255 bytes of UTF-8 without control characters, used unchanged (no
/// trimming, no case folding). Colons, slashes, ARNs and URLs are fine. `Debug` does not show it.
///
/// Other bytes, such as a broker's binary message id, become a key only through
/// [`from_bytes`](Key::from_bytes).
///
/// # Typed form
///
/// [`to_typed`](Key::to_typed) and `parse` are for operators. A text is its own typed form, with a
/// leading backslash doubled. Other bytes become `\x` and two hexadecimal digits for each.
/// [`TryFrom`] is for programs: it takes a text unchanged.
///
/// ```
/// use nevertwice::Key;
/// let id = Key::from_bytes(&[0x00, 0xff, 0x10])?;
/// assert_eq!(id.to_typed(), r"\x00ff10");
/// assert_eq!(r"\x00ff10".parse(), Ok(id.clone()));
/// assert_ne!(Key::try_from(r"\x00ff10")?, id); // ten characters
/// assert_eq!(Key::from_bytes(b"8d7f-11"), Key::try_from("8d7f-11"));
/// # Ok::<(), nevertwice::KeyError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(Box<[u8]>);

impl Key {
    /// Creates a key from 1 to 255 arbitrary bytes. If they are a text that is a valid key, this is
    /// the same key as that text's; otherwise it differs from the key of every text.
    pub fn from_bytes(bytes: &[u8]) -> Result<Key, KeyError> {
        match bytes.len() {
            0 => Err(KeyError::Empty { what: "key" }),
            1..=MAX_KEY_BYTES => Ok(Key(bytes.into())),
            bytes => Err(KeyError::TooLong { what: "key", bytes }),
        }
    }

    /// Returns the key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the key's text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok().filter(|text| !text.chars().any(char::is_control))
    }

    /// Returns the typed form, which `parse` reads back: the text itself, unless it starts with a
    /// backslash.
    pub fn to_typed(&self) -> Cow<'_, str> {
        match self.as_str() {
            Some(text) if text.starts_with('\\') => format!("\\{text}").into(),
            Some(text) => text.into(),
            None => format!("\\x{}", hex::encode(&self.0)).into(),
        }
    }

    fn of(text: &str) -> Result<Key, KeyError> {
        check("key", text)?;
        Ok(Key(text.as_bytes().into()))
    }
}

impl FromStr for Key {
    type Err = KeyError;

    /// Parses the typed form. [`TryFrom`] takes a text unchanged.
    fn from_str(typed: &str) -> Result<Key, KeyError> {
        let wrong = KeyError::Escape { what: "key", at: 0 };
        match typed.strip_prefix('\\') {
            None => Key::of(typed),
            Some(text) if text.starts_with('\\') => Key::of(text),
            Some(other) => {
                let digits = other.strip_prefix('x').ok_or(wrong)?;
                let key = Key::from_bytes(&hex::decode(digits).map_err(|_| wrong)?)?;
                // A text has only one typed form.
                if key.as_str().is_some() { Err(wrong) } else { Ok(key) }
            }
        }
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
        Key::of(key)
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
        Ok(Key(key.into_bytes().into()))
    }
}

impl From<&Key> for Key {
    fn from(key: &Key) -> Key {
        key.clone()
    }
}

/// The id of a record in a store: the BLAKE3 digest of scope and key. Different pairs have
/// different digests, and a digest reveals nothing about the key to a reader of the store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RecordId(#[serde(with = "hex::serde")] [u8; 32]);

impl RecordId {
    /// Returns the id of `key` in `scope`.
    pub fn new(scope: &Scope, key: &Key) -> RecordId {
        let length = [key.0.len() as u8]; // at most MAX_KEY_BYTES
        let pieces: [&[u8]; 3] = [scope.framed(), &length, &key.0];
        // Nearly all are short enough to be hashed in one piece, which is fastest.
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

    /// Returns the digest's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Creates an id from its bytes, for backends that list their records.
    pub const fn from_bytes(bytes: [u8; 32]) -> RecordId {
        RecordId(bytes)
    }
}

impl FromStr for RecordId {
    type Err = KeyError;

    /// Parses the `Display` or `Debug` form.
    fn from_str(shown: &str) -> Result<RecordId, KeyError> {
        let inner = shown.strip_prefix("RecordId(").and_then(|inner| inner.strip_suffix(')'));
        let (digits, mut id) = (inner.unwrap_or(shown), [0; 32]);
        hex::decode_to_slice(digits, &mut id).map_err(|_| KeyError::Id)?;
        Ok(RecordId(id))
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordId({self})")
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

    /// Stored records are addressed by these ids: they must never change.
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
