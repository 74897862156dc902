//! Fingerprints: a JSON value in another order, with other white space and other spellings of its numbers has the same one,
//! and another value has another one. Fields are framed.

use nevertwice::Fingerprint;
use serde_json::{Map, Value};

pub(crate) fn run(input: &[u8]) {
    let mut bytes = input.iter().copied();
    let one = value(&mut bytes, 0);
    let other = value(&mut bytes, 0);
    let print = Fingerprint::of_json(&one);
    assert_eq!(print, Fingerprint::of_json(&turned(&one)), "the order of members counts");
    for text in [one.to_string(), format!("{one:#}"), spelled(&turned(&one))] {
        let read: Value = serde_json::from_str(&text).expect("what was written is JSON");
        assert_eq!(print, Fingerprint::of_json(&read), "white space or spelling counts");
    }
    let same = is_same(&one, &other);
    assert_eq!(print == Fingerprint::of_json(&other), same, "{one} and {other}");
    // Whatever somebody sends: an error of the parser's, or a fingerprint.
    if let Ok(sent) = serde_json::from_slice::<Value>(input) {
        assert_eq!(Fingerprint::of_json(&sent), Fingerprint::of_json(&turned(&sent)));
    }
    fields(input);
}

/// A value made of what comes: any bytes are one.
fn value(bytes: &mut impl Iterator<Item = u8>, depth: usize) -> Value {
    let mut next = || bytes.next().unwrap_or(0);
    let (kind, small) = (next(), next());
    match kind % 8 {
        0 => Value::Null,
        1 => Value::Bool(small % 2 == 1),
        2 => Value::from(i64::from(small as i8)),
        3 => {
            let wide = u64::from_le_bytes(std::array::from_fn(|_| next()));
            if small % 2 == 0 { Value::from(wide) } else { Value::from(wide as i64) }
        }
        // Of few digits: the parser may read the sixteenth of a float in another way than it was written.
        4 => Value::from(f64::from(i32::from_le_bytes(std::array::from_fn(|_| next()))) / 64.0),
        5 => Value::from(String::from_utf8_lossy(&(0..small % 5).map(|_| next()).collect::<Vec<_>>())),
        _ if depth > 6 => Value::Null,
        6 => (0..small % 4).map(|_| value(bytes, depth + 1)).collect(),
        _ => {
            let mut members = Map::new();
            for _ in 0..small % 4 {
                let name = bytes.next().unwrap_or(0) % 4;
                members.insert("\u{e9}".repeat(usize::from(name)), value(bytes, depth + 1));
            }
            Value::Object(members)
        }
    }
}

/// The same value with its members the other way round.
fn turned(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(turned).collect(),
        Value::Object(members) => {
            Value::Object(members.iter().rev().map(|(name, member)| (name.clone(), turned(member))).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// The value as JSON, with small whole numbers written in another way and every letter escaped.
fn spelled(value: &Value) -> String {
    let text = |text: &str| {
        let units = text.encode_utf16().map(|unit| format!("\\u{unit:04x}"));
        format!("\"{}\"", units.collect::<String>())
    };
    match value {
        Value::Number(number) if number.as_i64().is_some_and(|whole| whole.unsigned_abs() < 1 << 50) => {
            format!("{number}.0e0")
        }
        Value::String(string) => text(string),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(spelled).collect();
            format!("[ {} ]", items.join(" ,\n"))
        }
        Value::Object(members) => {
            let members =
                members.iter().map(|(name, member)| format!("{} : {}", text(name), spelled(member)));
            format!("{{\t{} }}", members.collect::<Vec<_>>().join(" , "))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

/// Whether two values are one, by a comparison that knows nothing of hashes.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            let whole = |number: &serde_json::Number| {
                let float = number.as_f64().filter(|_| number.is_f64());
                match float {
                    None => number.as_i64().map(i128::from).or(number.as_u64().map(i128::from)),
                    // Beyond 64 bits a float stays one, and no integer equals it.
                    Some(float) if float.fract() == 0.0 && float.abs() < 1e30 => Some(float as i128),
                    Some(_) => None,
                }
            };
            match (whole(one), whole(other)) {
                (Some(one), Some(other)) => one == other,
                (None, None) => one.as_f64() == other.as_f64(),
                (Some(_), None) | (None, Some(_)) => false,
            }
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one
                    .iter()
                    .all(|(name, member)| other.get(name).is_some_and(|other| is_same(member, other)))
        }
        _ => one == other,
    }
}

/// A text cut into fields in two ways has one fingerprint if the fields are the same, and two if not.
fn fields(input: &[u8]) {
    let Some((cuts, rest)) = input.split_first_chunk::<2>() else { return };
    let characters: Vec<char> = String::from_utf8_lossy(rest).chars().collect();
    let cut = |at: u8| {
        let (one, two) = characters.split_at(usize::from(at) % (characters.len() + 1));
        let (one, two): (String, String) = (one.iter().collect(), two.iter().collect());
        let print = Fingerprint::builder().field("a", &one).field("b", &two).build();
        (one, two, print)
    };
    let (one, other) = (cut(cuts[0]), cut(cuts[1]));
    assert_eq!((&one.0, &one.1) == (&other.0, &other.1), one.2 == other.2, "fields are not framed");
}
