//! The lines to deliver.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;

use nevertwice::{Fingerprint, Key, Request};
use serde_json::Value;

/// The scope of the operations. A service would include the tenant: `[account, "payments"]`.
pub(crate) const SCOPE: &str = "storm/payments";

const SAMPLE: &[u8] = include_bytes!("../data/payments.jsonl");

pub(crate) struct Input {
    pub(crate) name: String,
    pub(crate) lines: Vec<Line>,
    /// The distinct keys; a line refers to its own by position.
    pub(crate) keys: Vec<Key>,
    pub(crate) malformed: Vec<Malformed>,
}

/// A line to deliver, with the request to the engine, made once for all its copies.
pub(crate) struct Line {
    pub(crate) key: usize,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) request: Request,
}

/// A line that cannot be delivered. `what` never quotes the line, which may hold secrets.
pub(crate) struct Malformed {
    pub(crate) line: usize,
    pub(crate) what: String,
}

/// Checks the syntax of a JSON pointer (RFC 6901).
pub(crate) fn pointer(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err("a JSON pointer starts with a slash, as in /id or /data/object/id".to_owned())
    }
}

/// Reads `file`, or the built-in sample.
pub(crate) fn read(file: Option<&Path>, pointer: &str) -> Result<Input, Box<dyn Error>> {
    let (name, bytes) = match file {
        Some(file) => {
            let name = file.display().to_string();
            let bytes = std::fs::read(file).map_err(|error| format!("cannot read {name}: {error}"))?;
            (name, bytes)
        }
        None => ("the sample".to_owned(), SAMPLE.to_vec()),
    };
    let mut input = Input { name, lines: Vec::new(), keys: Vec::new(), malformed: Vec::new() };
    let mut known = HashMap::new();
    for (at, text) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if text.trim_ascii().is_empty() {
            continue;
        }
        match parse(text, pointer) {
            Ok((key, fingerprint)) => {
                let request = Request::new(SCOPE, &key)?.fingerprint(fingerprint);
                let key = *known.entry(key.clone()).or_insert_with(|| {
                    input.keys.push(key);
                    input.keys.len() - 1
                });
                input.lines.push(Line { key, fingerprint, request });
            }
            Err(what) => input.malformed.push(Malformed { line: at + 1, what }),
        }
    }
    match (input.lines.len(), input.malformed.first()) {
        (0, None) => Err(format!("{} is empty: there is nothing to deliver", input.name).into()),
        (0, Some(first)) => Err(format!(
            "{} has no usable line: all {} are malformed, the first (line {}): {}",
            input.name,
            input.malformed.len(),
            first.line,
            first.what
        )
        .into()),
        (_, _) => Ok(input),
    }
}

fn parse(text: &[u8], pointer: &str) -> Result<(Key, Fingerprint), String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| {
        // The error's own text ends in "at line 1 column 7", and this line is not the file's first.
        let words = error.to_string();
        let words = words.split(" at line ").next().unwrap_or_default();
        format!("not JSON: {words} (column {})", error.column())
    })?;
    let key = match value.pointer(pointer) {
        Some(Value::String(key)) => key.clone(),
        Some(Value::Number(key))
            if key.as_f64().is_some_and(|key| key.abs() < MAX_EXACT) || !key.is_f64() =>
        {
            key.to_string()
        }
        Some(Value::Number(_)) => {
            return Err(format!("the number at {pointer:?} has more than 64 bits: write it as a string"));
        }
        Some(Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_)) => {
            return Err(format!("what is at {pointer:?} is neither a string nor a number"));
        }
        None => return Err(format!("there is no {pointer:?} in it")),
    };
    let key = Key::try_from(key).map_err(|error| error.to_string())?;
    let fingerprint = Fingerprint::of_json(text).map_err(|error| error.to_string())?;
    Ok((key, fingerprint))
}

/// The limit from which different integers can be one float (2^53), so that two keys could become
/// one.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;
