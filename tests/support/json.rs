//! JSON by other means than the crate's: parsed level by level through `RawValue`, compared as
//! exact decimals, written in any spelling, and hashed as documented.

use std::collections::BTreeMap;

use nevertwice::Fingerprint;
use serde::Deserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde_json::value::RawValue;

const MAX_DEPTH: usize = 128;
const MAX_EXPONENT: i128 = 999_999_999;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Json {
    Null,
    Bool(bool),
    Number(Decimal),
    Text(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

/// A decimal without zeros at either end of its digits; zero has no digits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decimal {
    is_negative: bool,
    digits: String,
    power: i128,
}

impl Decimal {
    pub(crate) fn new(is_negative: bool, digits: &str, power: i128) -> Decimal {
        let significant = digits.trim_start_matches('0').trim_end_matches('0');
        if significant.is_empty() {
            return Decimal { is_negative: false, digits: String::new(), power: 0 };
        }
        let zeros = digits.len() - digits.trim_end_matches('0').len();
        Decimal { is_negative, digits: significant.to_owned(), power: power + zeros as i128 }
    }

    /// Parses a text known to be a number. `None` if its exponent is out of range.
    fn read(text: &str) -> Option<Decimal> {
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let magnitude = mantissa.trim_start_matches('-');
        let (whole, fraction) = magnitude.split_once('.').unwrap_or((magnitude, ""));
        let size = exponent.trim_start_matches(['+', '-']).trim_start_matches('0');
        // No text that fits into memory can balance an exponent of more than twenty digits.
        let size = if size.len() > 20 { 10_i128.pow(20) } else { format!("0{size}").parse().ok()? };
        let exponent = if exponent.starts_with('-') { -size } else { size };
        let decimal = Decimal::new(
            mantissa.starts_with('-'),
            &format!("{whole}{fraction}"),
            exponent - fraction.len() as i128,
        );
        let of_first = decimal.power + decimal.digits.len() as i128 - 1;
        (decimal.digits.is_empty() || of_first.abs() <= MAX_EXPONENT).then_some(decimal)
    }

    pub(crate) fn spelled(&self, choices: &mut impl Iterator<Item = u8>) -> String {
        let mut choice = |of: u8| usize::from(choices.next().unwrap_or(0) % of);
        if self.digits.is_empty() {
            return ["0", "-0", "0.0", "-0.00", "0e7", "0E-99999999999", "0.0e+0"][choice(7)].to_owned();
        }
        let zeros = choice(4);
        let digits = format!("{}{}", self.digits, "0".repeat(zeros));
        let point = choice(u8::try_from(digits.len().min(250)).unwrap() + 1);
        let exponent = self.power - zeros as i128 + (digits.len() - point) as i128;
        let (whole, fraction) = digits.split_at(point);
        let mut text = if self.is_negative { "-".to_owned() } else { String::new() };
        text += if whole.is_empty() { "0" } else { whole };
        match fraction {
            "" if choice(2) == 0 => {}
            "" => text += ".00",
            fraction => text = format!("{text}.{fraction}"),
        }
        match (exponent, choice(3)) {
            (0, 0) => text,
            (_, 0) => format!("{text}e{exponent}"),
            (_, 1) => format!("{text}E{exponent:+}"),
            _ => format!("{text}e{exponent:+05}"),
        }
    }
}

impl Json {
    /// Parses a text that has a fingerprint; `None` for any other.
    pub(crate) fn read(text: &[u8]) -> Option<Json> {
        Json::read_within(serde_json::from_str(std::str::from_utf8(text).ok()?).ok()?, 0)
    }

    fn read_within(raw: &RawValue, depth: usize) -> Option<Json> {
        let text = raw.get();
        Some(match text.as_bytes().first()? {
            b'n' => Json::Null,
            b't' | b'f' => Json::Bool(text == "true"),
            b'"' => Json::Text(serde_json::from_str(text).ok()?),
            b'[' | b'{' if depth == MAX_DEPTH => return None,
            b'[' => {
                let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
                Json::Array(
                    items
                        .into_iter()
                        .map(|item| Json::read_within(item, depth + 1))
                        .collect::<Option<_>>()?,
                )
            }
            b'{' => {
                let members = serde_json::Deserializer::from_str(text).deserialize_map(Members).ok()?;
                let members = members.into_iter();
                Json::Object(
                    members
                        .map(|(name, member)| Some((name, Json::read_within(member, depth + 1)?)))
                        .collect::<Option<_>>()?,
                )
            }
            _ => Json::Number(Decimal::read(text)?),
        })
    }

    /// Makes a value from any bytes.
    pub(crate) fn made(bytes: &mut impl Iterator<Item = u8>, depth: usize) -> Json {
        let mut next = || bytes.next().unwrap_or(0);
        let (kind, small) = (next(), next());
        match kind % 8 {
            0 => Json::Null,
            1 => Json::Bool(small % 2 == 1),
            2 => Json::Number(Decimal::new(small % 2 == 1, &(small / 2).to_string(), 0)),
            3 => {
                let wide = u64::from_le_bytes(std::array::from_fn(|_| next()));
                Json::Number(Decimal::new(small % 2 == 1, &wide.to_string(), i128::from(small / 2 % 8) - 4))
            }
            4 => {
                let digits: String = (0..small % 64).map(|_| char::from(b'0' + next() % 10)).collect();
                Json::Number(Decimal::new(small > 127, &digits, i128::from(next() as i8)))
            }
            5 => Json::Text(
                String::from_utf8_lossy(&(0..small % 99).map(|_| next()).collect::<Vec<_>>()).into(),
            ),
            _ if depth > 6 => Json::Null,
            6 => Json::Array((0..small % 4).map(|_| Json::made(bytes, depth + 1)).collect()),
            _ => {
                let mut members = BTreeMap::new();
                for _ in 0..small % 4 {
                    let name = bytes.next().unwrap_or(0) % 4;
                    members.insert("\u{e9}".repeat(usize::from(name)), Json::made(bytes, depth + 1));
                }
                Json::Object(members)
            }
        }
    }

    /// Writes the value in one of its many spellings, selected by `choices`.
    pub(crate) fn spelled(&self, choices: &mut impl Iterator<Item = u8>) -> String {
        let value = match self {
            Json::Null => "null".to_owned(),
            Json::Bool(truth) => truth.to_string(),
            Json::Number(decimal) => decimal.spelled(choices),
            Json::Text(text) => quoted(text, choices),
            Json::Array(items) => {
                let items: Vec<String> = items.iter().map(|item| item.spelled(choices)).collect();
                format!("[{}{}]", space(choices), items.join(","))
            }
            Json::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                for at in 0..members.len() {
                    let other = usize::from(choices.next().unwrap_or(0)) % members.len();
                    members.swap(at, other);
                }
                let members: Vec<String> = members
                    .into_iter()
                    .map(|(name, member)| {
                        let (before, behind) = (space(choices), space(choices));
                        format!("{before}{}{behind}:{}", quoted(name, choices), member.spelled(choices))
                    })
                    .collect();
                format!("{{{}{}}}", space(choices), members.join(","))
            }
        };
        format!("{}{value}{}", space(choices), space(choices))
    }

    /// Computes the fingerprint as documented, in its serialised form.
    pub(crate) fn fingerprint(&self) -> String {
        let hash = blake3::hash(&self.form());
        format!("04{}", &hash.to_hex()[..32])
    }

    fn form(&self) -> Vec<u8> {
        let text = |text: &str| [b"s", text.as_bytes(), b"\xff"].concat();
        match self {
            Json::Null => b"0".to_vec(),
            Json::Bool(truth) => if *truth { b"t" } else { b"f" }.to_vec(),
            Json::Number(Decimal { digits, .. }) if digits.is_empty() => b"n0\xff".to_vec(),
            Json::Number(Decimal { is_negative, digits, power }) => {
                let sign = if *is_negative { "-" } else { "" };
                let power = if *power == 0 { String::new() } else { format!("e{power}") };
                [format!("n{sign}{digits}{power}").as_bytes(), b"\xff"].concat()
            }
            Json::Text(string) => text(string),
            Json::Array(items) => {
                let items: Vec<u8> = items.iter().flat_map(Json::form).collect();
                [b"[", items.as_slice(), b"]"].concat()
            }
            Json::Object(members) => {
                let members = members.iter().flat_map(|(name, member)| {
                    let form = member.form();
                    let hash = [b"#".as_slice(), blake3::hash(&form).as_bytes()].concat();
                    [text(name), if form.len() > 64 { hash } else { form }].concat()
                });
                [b"{", members.collect::<Vec<_>>().as_slice(), b"}"].concat()
            }
        }
    }
}

/// The members of an object, without duplicates.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = BTreeMap<String, &'de RawValue>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = BTreeMap::new();
        while let Some((name, member)) = map.next_entry()? {
            if members.insert(name, member).is_some() {
                return Err(A::Error::custom("a name twice"));
            }
        }
        Ok(members)
    }
}

fn space(choices: &mut impl Iterator<Item = u8>) -> &'static str {
    ["", "", "", " ", "\n", "\t\r "][usize::from(choices.next().unwrap_or(0)) % 6]
}

fn quoted(text: &str, choices: &mut impl Iterator<Item = u8>) -> String {
    let mut quoted = "\"".to_owned();
    for character in text.chars() {
        let units = || character.encode_utf16(&mut [0; 2]).to_vec().into_iter();
        let short = match character {
            '"' | '\\' | '/' => Some(character),
            '\u{8}' => Some('b'),
            '\u{c}' => Some('f'),
            '\n' => Some('n'),
            '\r' => Some('r'),
            '\t' => Some('t'),
            _ => None,
        };
        let is_plain = character >= ' ' && !matches!(character, '"' | '\\');
        match (choices.next().unwrap_or(0) % 4, short) {
            (0 | 1, _) if is_plain => quoted.push(character),
            (0..=2, Some(short)) => quoted.extend(['\\', short]),
            (3, _) => quoted.extend(units().map(|unit| format!("\\u{unit:04X}"))),
            _ => quoted.extend(units().map(|unit| format!("\\u{unit:04x}"))),
        }
    }
    quoted + "\""
}

/// Returns a fingerprint in its serialised form.
pub(crate) fn hex(print: Fingerprint) -> String {
    serde_json::to_value(print).unwrap().as_str().unwrap().to_owned()
}
