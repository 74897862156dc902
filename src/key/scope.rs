//! [`Scope`]: the tenant and operation that a key belongs to.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::str::FromStr;

use super::{KeyError, MAX_KEY_BYTES, MAX_SCOPE_PARTS, check};
use crate::label::Label;

/// The hash key of scopes on their own.
const SCOPES: &[u8; blake3::KEY_LEN] = b"nevertwice scope id v1\0\0\0\0\0\0\0\0\0\0";

/// The tenant and the operation that a key belongs to, in one string or several parts.
///
/// Parts are hashed with their lengths: `["a", "bc"]` is a different scope from `["ab", "c"]`, and
/// neither equals the one-part scope `"a/bc"`. Nothing recorded under one scope can be read under
/// another. The service chooses the scope, and it stays readable for operators; do not put secrets
/// into it.
///
/// # Typed form
///
/// `Display` shows a scope as its parts joined by commas, and `parse` reads that back. A comma, a
/// backslash and the character `…` within a part are preceded by a backslash. Listings, spans and
/// [`Inspection::scope`](crate::Inspection::scope) show the same form, cut to at most 48 bytes: a
/// cut form ends in a `…` without a backslash, and `parse` refuses it. [`TryFrom`] is for programs:
/// it takes the text as one part, unchanged.
///
/// ```
/// use nevertwice::Scope;
/// let one = Scope::try_from("acct_42/charges")?;
/// let two = Scope::try_from(["acct_42", "charges"])?;
/// assert_ne!(one, two);
/// assert_eq!((one.to_string(), two.to_string()), ("acct_42/charges".into(), "acct_42,charges".into()));
/// assert_eq!("acct_42,charges".parse(), Ok(two));
/// assert_eq!(r"one\,part".parse(), Scope::try_from("one,part"));
/// # Ok::<(), nevertwice::KeyError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Scope {
    /// The bytes that are hashed: the number of parts, then each part after its length.
    framed: Framed,
    label: Label,
}

/// The framed bytes of a scope. Most are few and need no allocation.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Framed {
    /// As many bytes as the first number says, then zeroes.
    Few(u8, [u8; Framed::FEW]),
    /// More than [`Framed::FEW`].
    Many(Vec<u8>),
}

impl Framed {
    const FEW: usize = 62;

    /// Appends a part of at most [`MAX_KEY_BYTES`], after its length.
    fn push(&mut self, part: &[u8]) {
        let length = part.len() as u8;
        match self {
            Framed::Few(len, few) => {
                let used = usize::from(*len);
                match few[used..].get_mut(..1 + part.len()) {
                    Some([first, room @ ..]) => {
                        *first = length;
                        room.copy_from_slice(part);
                        *len += 1 + length; // at most FEW in all
                    }
                    _ => *self = Framed::Many([&few[..used], &[length], part].concat()),
                }
            }
            Framed::Many(many) => {
                many.push(length);
                many.extend_from_slice(part);
            }
        }
    }
}

impl Deref for Framed {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Framed::Few(len, few) => &few[..usize::from(*len)],
            Framed::Many(many) => many,
        }
    }
}

impl DerefMut for Framed {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Framed::Few(len, few) => &mut few[..usize::from(*len)],
            Framed::Many(many) => many,
        }
    }
}

impl Scope {
    /// Creates a scope of 1 to 16 parts, each of 1 to 255 bytes without control characters.
    pub fn new<P: AsRef<str>>(parts: impl IntoIterator<Item = P>) -> Result<Scope, KeyError> {
        let mut framed = Framed::Few(1, [0; Framed::FEW]);
        let (mut label, mut count, mut bad) = (Typed::default(), 0_usize, None);
        for part in parts {
            let part = part.as_ref();
            count += 1;
            let kinds = kinds(part);
            if kinds & ODD != 0 || !(1..=MAX_KEY_BYTES).contains(&part.len()) {
                bad = bad.or_else(|| check("scope", part).err());
            }
            if count > MAX_SCOPE_PARTS || bad.is_some() {
                continue; // refused: only the number of parts is still asked for
            }
            label.add(part, kinds & SPECIAL == 0, count > 1);
            framed.push(part.as_bytes());
        }
        if count == 0 || count > MAX_SCOPE_PARTS {
            return Err(KeyError::Parts { parts: count });
        }
        framed[0] = count as u8; // at most MAX_SCOPE_PARTS
        bad.map_or(Ok(Scope { framed, label: label.done() }), Err)
    }

    /// Returns a digest that distinguishes the scope from every other, at any length: for counts by
    /// scope.
    pub(crate) fn id(&self) -> ScopeId {
        let mut id = [0; 16];
        id.copy_from_slice(&blake3::keyed_hash(SCOPES, &self.framed).as_bytes()[..16]);
        ScopeId(id)
    }

    /// Returns the typed form, cut to at most 48 bytes.
    pub(crate) fn label(&self) -> Label {
        self.label
    }

    /// Returns true if the label is not the whole typed form.
    pub(crate) fn is_cut(&self) -> bool {
        let kept = self.label.strip_suffix(Scope::CUT);
        kept.is_some_and(|kept| kept.bytes().rev().take_while(|byte| *byte == b'\\').count() % 2 == 0)
    }

    /// Returns the bytes that are hashed.
    #[inline]
    pub(super) fn framed(&self) -> &[u8] {
        &self.framed
    }

    /// Returns the parts.
    fn parts(&self) -> impl Iterator<Item = &str> {
        let mut rest = &self.framed[1..];
        std::iter::from_fn(move || {
            let (length, behind) = rest.split_first()?;
            let (part, behind) = behind.split_at_checked(usize::from(*length))?;
            rest = behind;
            std::str::from_utf8(part).ok() // as it was put in
        })
    }
}

/// A scope's label under construction: its typed form, as far as it fits.
#[derive(Default)]
struct Typed {
    label: Label,
    is_cut: bool,
}

impl Typed {
    /// Adds a part, after a comma unless it is the first. A plain one equals its typed form.
    fn add(&mut self, part: &str, is_plain: bool, behind_another: bool) {
        if behind_another {
            self.push(",");
        }
        if is_plain {
            self.push(part);
        } else {
            escaped(part).for_each(|piece| self.push(piece));
        }
    }

    fn push(&mut self, text: &str) {
        self.is_cut = self.is_cut || !self.label.push(text);
    }

    fn done(mut self) -> Label {
        if self.is_cut {
            self.label.cut(Scope::CUT);
        }
        self.label
    }
}

impl Scope {
    /// The mark at the end of a typed form that was cut.
    const CUT: &str = "…";

    fn is_special(c: char) -> bool {
        matches!(c, ',' | '\\' | '…')
    }
}

/// A kind of byte that may belong to a character that is refused.
const ODD: u8 = 1;
/// A kind of byte that may belong to a character that is escaped.
const SPECIAL: u8 = 2;

/// The kinds of every byte.
static KINDS: [u8; 256] = {
    let (mut kinds, mut byte) = ([0; 256], 0);
    while byte < kinds.len() {
        if !matches!(byte as u8, b' '..=b'~') {
            kinds[byte] |= ODD;
        }
        // The last is the first byte of the mark of a cut.
        if matches!(byte as u8, b',' | b'\\' | 0xe2) {
            kinds[byte] |= SPECIAL;
        }
        byte += 1;
    }
    kinds
};

/// Returns the kinds of all bytes of a part.
fn kinds(part: &str) -> u8 {
    part.bytes().fold(0, |kinds, byte| kinds | KINDS[usize::from(byte)])
}

/// Returns the typed form of a part, in pieces.
fn escaped(part: &str) -> impl Iterator<Item = &str> {
    part.split_inclusive(Scope::is_special).flat_map(|piece| {
        let plain = piece.trim_end_matches(Scope::is_special);
        let escape = if plain.len() < piece.len() { "\\" } else { "" };
        [plain, escape, &piece[plain.len()..]]
    })
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, part) in self.parts().enumerate() {
            if number > 0 {
                f.write_str(",")?;
            }
            escaped(part).try_for_each(|piece| f.write_str(piece))?;
        }
        Ok(())
    }
}

impl FromStr for Scope {
    type Err = KeyError;

    /// Parses the typed form. [`TryFrom`] takes a text as one part, unchanged.
    fn from_str(typed: &str) -> Result<Scope, KeyError> {
        let mut parts = vec![String::new()];
        let mut characters = typed.char_indices();
        while let Some((at, character)) = characters.next() {
            let part = match (character, parts.last_mut()) {
                (',', _) | (_, None) => {
                    parts.push(String::new());
                    continue;
                }
                (_, Some(part)) => part,
            };
            match character {
                '\\' => match characters.next() {
                    Some((_, escaped)) if Scope::is_special(escaped) => part.push(escaped),
                    _ => return Err(KeyError::Escape { what: "scope", at }),
                },
                '…' if at + Scope::CUT.len() == typed.len() => return Err(KeyError::Cut),
                plain => part.push(plain),
            }
        }
        Scope::new(parts)
    }
}

/// The digest of a whole [`Scope`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ScopeId([u8; 16]);

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
