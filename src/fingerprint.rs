//! The content of a request, condensed: its [`Fingerprint`].

mod json;

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};

pub use json::FingerprintError;

/// A short digest of a request's content. A key that comes back with another fingerprint is a
/// different request under a used key and gets [`Begin::Mismatch`](crate::Begin::Mismatch) (the
/// Idempotency-Key draft's 422).
///
/// It is the first 128 bits of a BLAKE3 hash, after the number of the scheme. The result of a
/// scheme never changes. Fingerprints of different schemes (bytes, JSON, fields, none) are never
/// equal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint(#[serde(with = "hex::serde")] [u8; Fingerprint::BYTES]);

#[derive(Clone, Copy)]
enum Scheme {
    Bytes = 1,
    // 2 and 3 were JSON and fields before the first release: never reuse them.
    Json = 4,
    Fields = 5,
}

impl Fingerprint {
    pub(crate) const BYTES: usize = 17;

    /// The fingerprint of a request without one. It equals only itself.
    pub const NONE: Fingerprint = Fingerprint([0; Fingerprint::BYTES]);

    /// Returns the fingerprint of a body, byte for byte.
    ///
    /// ```
    /// use nevertwice::Fingerprint;
    /// assert_eq!(Fingerprint::of("a body"), Fingerprint::of(b"a body"));
    /// assert_ne!(Fingerprint::of(r#"{"a":1}"#), Fingerprint::of(r#"{ "a": 1 }"#));
    /// ```
    pub fn of(bytes: impl AsRef<[u8]>) -> Fingerprint {
        Fingerprint::finish(Scheme::Bytes, blake3::hash(bytes.as_ref()))
    }

    /// Returns the fingerprint of a JSON text. White space, the order of members, escapes
    /// (`"\u00e9"` is `"é"`) and the spelling of a number (`1`, `1.0`, `10e-1`; `-0` is `0`) do not
    /// matter; everything else does. Numbers are compared as exact decimals of any length, never as
    /// floats. Strings are compared character by character, without Unicode normalisation. A `null`
    /// member differs from an absent one.
    ///
    /// The fingerprint is computed from the text as received, so it is the same in every build, for
    /// ever. A value that a program has parsed from a text has lost some of that:
    /// `serde_json::Value` keeps the last of two members with one name, and numbers as floats
    /// unless one of its features says otherwise. Where there is only a value, write it to a string
    /// first (`serde_json::to_string`); its fingerprint is then as stable as the value's numbers
    /// are. NaN and infinity become `null`.
    ///
    /// Time and memory are linear in the text (names are sorted), and it does not recurse.
    ///
    /// # Errors
    ///
    /// [`FingerprintError`] for a text that is not JSON (RFC 8259) in UTF-8, repeats a name in an
    /// object, nests deeper than 128, or has a number from 10^1000000000 on or below 10^-999999999.
    /// An empty body is not JSON: use [`Fingerprint::of`] where bodies may be anything.
    ///
    /// ```
    /// use nevertwice::Fingerprint;
    /// let one = Fingerprint::of_json(r#"{"amount": 100, "to": "acct_7"}"#)?;
    /// assert_eq!(one, Fingerprint::of_json(r#"{"to":"acct_7","amount":1e2}"#)?);
    /// assert_ne!(one, Fingerprint::of_json(r#"{"to":"acct_7","amount":"100"}"#)?);
    /// assert!(Fingerprint::of_json(r#"{"amount": 100, "amount": 9999}"#).is_err());
    /// # Ok::<(), nevertwice::FingerprintError>(())
    /// ```
    pub fn of_json(text: impl AsRef<[u8]>) -> Result<Fingerprint, FingerprintError> {
        Ok(Fingerprint::finish(Scheme::Json, blake3::hash(&json::canonical(text.as_ref())?)))
    }

    /// Returns a builder for the fingerprint of chosen fields, for requests with parts that may
    /// differ in a retry (a time, a trace id).
    ///
    /// ```
    /// use nevertwice::Fingerprint;
    /// let one = Fingerprint::builder().field("amount", 4200).field("currency", "EUR").build();
    /// let two = Fingerprint::builder().field("currency", "EUR").field("amount", 4200).build();
    /// assert_eq!(one, two);
    /// ```
    pub fn builder() -> FingerprintBuilder {
        FingerprintBuilder { fields: Vec::new() }
    }

    fn finish(scheme: Scheme, hash: blake3::Hash) -> Fingerprint {
        let mut bytes = [scheme as u8; Fingerprint::BYTES];
        bytes[1..].copy_from_slice(&hash.as_bytes()[..Fingerprint::BYTES - 1]);
        Fingerprint(bytes)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; Fingerprint::BYTES] {
        &self.0
    }

    pub(crate) fn from_bytes(bytes: [u8; Fingerprint::BYTES]) -> Fingerprint {
        Fingerprint(bytes)
    }
}

impl fmt::Debug for Fingerprint {
    /// Shows the first 32 bits, enough to tell two apart in a log and too few to guess a payload
    /// from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({}..)", hex::encode(&self.0[..5]))
    }
}

/// A builder of a [`Fingerprint`] from fields; made by [`Fingerprint::builder`].
///
/// Fields of different names may be added in any order. Fields of one name count in the order of
/// the calls, as the elements of a list.
#[derive(Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct FingerprintBuilder {
    fields: Vec<Field>,
}

#[derive(Clone)]
struct Field {
    name: String,
    kind: FieldKind,
    value: Vec<u8>,
}

#[derive(Clone, Copy)]
enum FieldKind {
    Bytes = 0,
    Json = 1,
}

impl FingerprintBuilder {
    /// Adds a field by its text, which is as stable as the type's `Display`. `4200` and `"4200"`
    /// are one text, and so are `10` and `10.0_f64`.
    ///
    /// A negative zero (`-0.0_f64`, or a text such as `-0.00`) counts as zero, that is, without its
    /// sign. Use [`bytes`](Self::bytes) for strings in which `-0` and `0` differ.
    ///
    /// ```
    /// use nevertwice::Fingerprint;
    /// let fee = |fee: f64| Fingerprint::builder().field("fee", fee).build();
    /// assert_eq!(fee(0.0), fee(-0.0));
    /// ```
    pub fn field(self, name: &str, value: impl Display) -> FingerprintBuilder {
        let text = value.to_string();
        let unsigned = text.strip_prefix('-').filter(|rest| is_zero(rest));
        self.bytes(name, unsigned.unwrap_or(&text))
    }

    /// Adds a field by its bytes.
    pub fn bytes(self, name: &str, value: impl AsRef<[u8]>) -> FingerprintBuilder {
        self.with(name, FieldKind::Bytes, value.as_ref())
    }

    /// Adds a field by its JSON, compared as [`Fingerprint::of_json`] does.
    ///
    /// ```
    /// use nevertwice::Fingerprint;
    /// let charge = |path: &str, body: &str| Ok(Fingerprint::builder().field("path", path).json("body", body)?.build());
    /// assert_eq!(charge("/charges", r#"{"amount": 100}"#)?, charge("/charges", r#"{"amount":1e2}"#)?);
    /// assert_ne!(charge("/charges", r#"{"amount": 100}"#)?, charge("/refunds", r#"{"amount": 100}"#)?);
    /// # Ok::<(), nevertwice::FingerprintError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Fingerprint::of_json`].
    pub fn json(self, name: &str, text: impl AsRef<[u8]>) -> Result<FingerprintBuilder, FingerprintError> {
        let canonical = json::canonical(text.as_ref())?;
        Ok(self.with(name, FieldKind::Json, &canonical))
    }

    /// Returns the fingerprint of the fields added so far.
    pub fn build(mut self) -> Fingerprint {
        // Stable: fields of one name stay in the order of the calls.
        self.fields.sort_by(|one, other| one.name.cmp(&other.name));
        let mut hasher = blake3::Hasher::new();
        for Field { name, kind, value } in &self.fields {
            hash_bytes(&mut hasher, name.as_bytes());
            hasher.update(&[*kind as u8]);
            hash_bytes(&mut hasher, value);
        }
        Fingerprint::finish(Scheme::Fields, hasher.finalize())
    }

    fn with(mut self, name: &str, kind: FieldKind, value: &[u8]) -> FingerprintBuilder {
        self.fields.push(Field { name: name.to_owned(), kind, value: value.to_vec() });
        self
    }
}

impl fmt::Debug for FingerprintBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FingerprintBuilder({} fields)", self.fields.len())
    }
}

fn hash_bytes(hasher: &mut blake3::Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// Returns true for an unsigned decimal zero: `0`, or `0.` and zeros.
fn is_zero(text: &str) -> bool {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    whole == "0" && !fraction.is_empty() && fraction.bytes().all(|digit| digit == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_apart_and_stable() {
        assert_ne!(Fingerprint::of("1"), Fingerprint::of_json("1").unwrap());
        assert_ne!(Fingerprint::of(""), Fingerprint::NONE);
        assert_ne!(Fingerprint::builder().build(), Fingerprint::of(""));
        // Stored records contain these: the result of a scheme must never change.
        assert_eq!(hex::encode(Fingerprint::of("abc").0), "016437b3ac38465133ffb63b75273a8db5");
    }

    #[test]
    fn fields_are_framed() {
        let one = Fingerprint::builder().field("a", "bc").build();
        assert_ne!(one, Fingerprint::builder().field("ab", "c").build());
        assert_ne!(one, Fingerprint::builder().field("a", "bc").field("a", "bc").build());
        let canonical = json::canonical(b"1").unwrap();
        let json = Fingerprint::builder().json("a", "1").unwrap().build();
        assert_ne!(json, Fingerprint::builder().bytes("a", canonical).build());
    }

    #[test]
    fn fields_of_one_name_count_in_the_order_of_the_calls() {
        let transfer =
            |one: &str, two: &str| Fingerprint::builder().field("account", one).field("account", two);
        assert_ne!(transfer("A", "B").build(), transfer("B", "A").build());
        let before = Fingerprint::builder().field("amount", 1).field("account", "A").field("account", "B");
        assert_eq!(transfer("A", "B").field("amount", 1).build(), before.build());
    }

    #[test]
    fn a_negative_zero_is_zero() {
        let field = |value: &dyn Display| Fingerprint::builder().field("fee", value).build();
        for zero in [&-0.0_f64 as &dyn Display, &-0.0_f32, &0, &"-0", &"0"] {
            assert_eq!(field(&0.0), field(zero));
        }
        assert_eq!(field(&"0.00"), field(&format_args!("{:.2}", -0.001)));
        for text in ["-", "-0.", "-.0", "-00", "-0.0.0", "-0.01", "--0", "-0 ", "0-", "-0x"] {
            let kept = Fingerprint::builder().bytes("fee", text).build();
            assert_eq!(field(&text), kept, "{text}");
        }
        let bytes = |text: &str| Fingerprint::builder().bytes("fee", text).build();
        assert_ne!(bytes("-0"), bytes("0"));
    }
}
