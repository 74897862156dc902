//! What was asked for under a key: the [`Fingerprint`] of a request.

use std::fmt::{self, Display};

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

/// A short digest of a request's content. A key that comes back with another fingerprint is another request
/// under a used key, and gets [`Begin::Mismatch`](crate::Begin::Mismatch) (the Idempotency-Key draft's 422).
///
/// It is the first 128 bits of a BLAKE3 hash with a scheme number before it. What a scheme computes never changes; fingerprints
/// of different schemes (bytes, JSON, fields, none) are never equal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Fingerprint(#[serde(with = "hex::serde")] [u8; Fingerprint::BYTES]);

#[derive(Clone, Copy)]
enum Scheme {
    Bytes = 1,
    Json = 2,
    Fields = 3,
}

impl Fingerprint {
    pub(crate) const BYTES: usize = 17;

    /// The fingerprint of a request that has none: it equals itself only.
    pub const NONE: Fingerprint = Fingerprint([0; Fingerprint::BYTES]);

    /// The fingerprint of a body, byte for byte.
    ///
    /// ```
    /// use nevertwice::Fingerprint;
    /// assert_eq!(Fingerprint::of("a body"), Fingerprint::of(b"a body"));
    /// assert_ne!(Fingerprint::of(r#"{"a":1}"#), Fingerprint::of(r#"{ "a": 1 }"#));
    /// ```
    pub fn of(bytes: impl AsRef<[u8]>) -> Fingerprint {
        Fingerprint::finish(Scheme::Bytes, blake3::hash(bytes.as_ref()))
    }

    /// The fingerprint of a JSON value: the order of keys, white space and how a number was written (`1`, `1.0`,
    /// `1e0`) do not matter; everything else does. Integers up to 64 bits are compared exactly, not as floats.
    ///
    /// ```
    /// use nevertwice::Fingerprint;
    /// use serde_json::json;
    /// assert_eq!(Fingerprint::of_json(&json!({"a": 1, "b": 2})), Fingerprint::of_json(&json!({"b": 2, "a": 1.0})));
    /// assert_ne!(Fingerprint::of_json(&json!({"a": 1})), Fingerprint::of_json(&json!({"a": "1"})));
    /// ```
    pub fn of_json(value: &Value) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        hash_json(&mut hasher, value);
        Fingerprint::finish(Scheme::Json, hasher.finalize())
    }

    /// A fingerprint of chosen fields, for requests that carry what may differ in a retry (a time, a trace id).
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
    /// The first 32 bits, enough to tell two apart in a log and too little to guess a payload from.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({}..)", hex::encode(&self.0[..5]))
    }
}

/// Collects the fields of a [`Fingerprint`]; made by [`Fingerprint::builder`].
#[derive(Clone)]
#[must_use = "a builder does nothing until `build` is called"]
pub struct FingerprintBuilder {
    fields: Vec<(String, Vec<u8>)>,
}

impl FingerprintBuilder {
    /// Adds a field by its text. The order of the calls does not matter.
    pub fn field(self, name: &str, value: impl Display) -> FingerprintBuilder {
        let text = value.to_string();
        self.bytes(name, text)
    }

    /// Adds a field by its bytes.
    pub fn bytes(mut self, name: &str, value: impl AsRef<[u8]>) -> FingerprintBuilder {
        self.fields.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// The fingerprint of the fields given so far.
    pub fn build(mut self) -> Fingerprint {
        self.fields.sort();
        let mut hasher = blake3::Hasher::new();
        for (name, value) in &self.fields {
            hash_bytes(&mut hasher, name.as_bytes());
            hash_bytes(&mut hasher, value);
        }
        Fingerprint::finish(Scheme::Fields, hasher.finalize())
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

/// Every value is a tag, a length where it has one, and its content, so that different values never share bytes.
fn hash_json(hasher: &mut blake3::Hasher, value: &Value) {
    match value {
        Value::Null => {
            hasher.update(b"0");
        }
        Value::Bool(truth) => {
            hasher.update(if *truth { b"t" } else { b"f" });
        }
        Value::Number(number) => {
            hasher.update(b"n");
            hash_bytes(hasher, canonical_number(number).as_bytes());
        }
        Value::String(text) => {
            hasher.update(b"s");
            hash_bytes(hasher, text.as_bytes());
        }
        Value::Array(items) => {
            hasher.update(b"a");
            hasher.update(&(items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| hash_json(hasher, item));
        }
        Value::Object(members) => {
            hasher.update(b"o");
            hasher.update(&(members.len() as u64).to_le_bytes());
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            for (name, member) in members {
                hash_bytes(hasher, name.as_bytes());
                hash_json(hasher, member);
            }
        }
    }
}

/// `1`, `1.0` and `1e0` are one number; an integer that a float cannot hold stays exact.
fn canonical_number(number: &Number) -> String {
    // All integers that a 64-bit number of either kind can hold; the floats among them are exact.
    const RANGE: std::ops::Range<f64> = -9_223_372_036_854_775_808.0..18_446_744_073_709_551_616.0;
    if number.is_i64() || number.is_u64() {
        return number.to_string();
    }
    match number.as_f64() {
        Some(float) if float.fract() == 0.0 && RANGE.contains(&float) => (float as i128).to_string(),
        Some(_) | None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_str, json};

    #[test]
    fn canonical_json_ignores_order_space_and_spelling_only() {
        let parse = |text: &str| Fingerprint::of_json(&from_str(text).unwrap());
        let base = parse(r#"{"amount":100,"to":{"iban":"X","name":"é"}}"#);
        assert_eq!(base, parse(r#" { "to" : {"name":"\u00e9","iban":"X"}, "amount": 1e2 } "#));
        for other in [
            r#"{"amount":101,"to":{"iban":"X","name":"é"}}"#,
            r#"{"amount":"100","to":{"iban":"X","name":"é"}}"#,
            r#"{"amount":100,"to":{"iban":"X"},"name":"é"}"#,
            r#"{"amount":100,"to":{"iban":"X","name":"é"},"x":null}"#,
        ] {
            assert_ne!(base, parse(other));
        }
    }

    #[test]
    fn big_integers_and_nested_arrays_stay_apart() {
        assert_ne!(
            Fingerprint::of_json(&json!(9_007_199_254_740_993_u64)),
            Fingerprint::of_json(&json!(9_007_199_254_740_992_u64))
        );
        assert_ne!(Fingerprint::of_json(&json!([[1], 2])), Fingerprint::of_json(&json!([[1, 2]])));
        assert_ne!(Fingerprint::of_json(&json!(["ab", "c"])), Fingerprint::of_json(&json!(["a", "bc"])));
        assert_eq!(Fingerprint::of_json(&json!(-0.0)), Fingerprint::of_json(&json!(0)));
        assert_eq!(
            Fingerprint::of_json(&json!(1e16)),
            Fingerprint::of_json(&json!(10_000_000_000_000_000_u64))
        );
        assert_ne!(Fingerprint::of_json(&json!(1e300)), Fingerprint::of_json(&json!(1e301)));
    }

    #[test]
    fn schemes_are_apart_and_stable() {
        assert_ne!(Fingerprint::of("1"), Fingerprint::of_json(&json!(1)));
        assert_ne!(Fingerprint::of(""), Fingerprint::NONE);
        assert_ne!(Fingerprint::builder().build(), Fingerprint::of(""));
        // Stored records hold these: what a scheme computes must never change.
        assert_eq!(hex::encode(Fingerprint::of("abc").0), "016437b3ac38465133ffb63b75273a8db5");
    }

    #[test]
    fn fields_are_framed() {
        let one = Fingerprint::builder().field("a", "bc").build();
        assert_ne!(one, Fingerprint::builder().field("ab", "c").build());
        assert_ne!(one, Fingerprint::builder().field("a", "bc").field("a", "bc").build());
    }
}
