//! The canonical form of a JSON text: the bytes that
//! [`Fingerprint::of_json`](super::Fingerprint::of_json) hashes.
//!
//! Two texts have the same form exactly if they hold the same value: the same members in any order,
//! the same strings with any escapes, the same decimal numbers in any spelling. The form is
//!
//! * `null`, `true`, `false`: `0`, `t`, `f`.
//! * A number: `n`, `-` if below zero, its digits without zeros at either end, `e` and the power of
//!   ten of the last digit unless that is 0, then 0xFF. Zero is `n0` and 0xFF.
//! * A string: `s`, its characters in UTF-8, then 0xFF.
//! * An array: `[`, its elements, `]`.
//! * An object: `{`, its members by the bytes of their names, `}`.
//! * A member: its name as a string, then its value, or if that takes more than 64 bytes `#` and
//!   the BLAKE3 hash of the value.
//!
//! No byte of UTF-8 is 0xFF, so the end of every value is determined by its form, and different
//! values have different forms. The hash bounds what an object copies when it sorts its members, so
//! that the time is linear in the text, nested objects included.
//!
//! The scanner is written here because a stored fingerprint must mean the same in every later
//! build. `serde_json` reads numbers as its version and its features say (`arbitrary_precision`,
//! `float_roundtrip`; any dependency may enable those), and does not report a repeated name. The
//! tokenizers that expose a number's text are experimental, and would add as much code as they
//! save. The scanner needs one page of RFC 8259, which does not change.

mod scalars;

use thiserror::Error;

/// The deepest nesting of arrays and objects.
const MAX_DEPTH: usize = 128;

/// The longest form of a member's value, in bytes, that is not replaced by its hash.
const MAX_INLINE: usize = 64;

/// The reason why a text has no JSON fingerprint. The text itself is not in the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FingerprintError {
    /// The text is not JSON as RFC 8259 defines it. A byte order mark, `NaN`, a lone surrogate, a
    /// raw control character and anything after the value are not JSON either.
    #[error("not JSON at byte {at}: {expected} expected")]
    Syntax {
        /// The position in the text, in bytes from 0.
        at: usize,
        /// The kind of token that was expected there.
        expected: &'static str,
    },
    /// The text is not UTF-8.
    #[error("not UTF-8 at byte {at}")]
    NotUtf8 {
        /// The position of the first byte that is not.
        at: usize,
    },
    /// An object has two members of one name. Receivers take the first, the last or neither, so no
    /// fingerprint could represent the request.
    #[error("an object repeats a name at byte {at}")]
    DuplicateName {
        /// The position of the repeated name.
        at: usize,
    },
    /// Arrays and objects are nested too deeply.
    #[error("nested more than {limit} deep at byte {at}")]
    TooDeep {
        /// The position of the bracket or brace that exceeds the limit.
        at: usize,
        /// The deepest nesting that is accepted: 128.
        limit: usize,
    },
    /// A number is too large or too close to zero.
    #[error("a number with an exponent beyond ±{limit} at byte {at}")]
    OutOfRange {
        /// The position of the number.
        at: usize,
        /// The largest exponent that is accepted, for one digit before the point: 999 999 999.
        limit: u64,
    },
}

/// Returns the canonical form of `text`.
///
/// Time is linear in the text apart from sorting names, memory is linear, and nothing recurses.
pub(super) fn canonical(text: &[u8]) -> Result<Vec<u8>, FingerprintError> {
    let text = std::str::from_utf8(text)
        .map_err(|error| FingerprintError::NotUtf8 { at: error.valid_up_to() })?
        .as_bytes();
    let mut scanner = Scanner {
        text,
        at: 0,
        form: Vec::with_capacity(text.len()),
        open: Vec::new(),
        members: Vec::new(),
        sorted: Vec::new(),
    };
    scanner.document()?;
    Ok(scanner.form)
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    /// The form of the text read so far. The innermost open object still has its members in the
    /// order of the text.
    form: Vec<u8>,
    /// The arrays and objects that are not closed yet, outermost first.
    open: Vec<Open>,
    /// The members of all open objects, outermost first.
    members: Vec<Member>,
    /// The buffer in which an object's members are sorted.
    sorted: Vec<u8>,
}

#[derive(Clone, Copy)]
enum Open {
    Array,
    /// `members`: the index of its first member in the scanner's list. `form`: the start of their
    /// form.
    Object {
        members: usize,
        form: usize,
    },
}

/// One member: positions in the form and, for the name, in the text.
struct Member {
    at: usize,
    start: usize,
    value: usize,
    end: usize,
}

impl Member {
    fn name<'a>(&self, form: &'a [u8]) -> &'a [u8] {
        &form[self.start + 1..self.value - 1]
    }
}

impl<'a> Scanner<'a> {
    fn document(&mut self) -> Result<(), FingerprintError> {
        while !self.value()? || self.is_followed()? {}
        match self.token() {
            Some(_) => Err(self.expected("the end of the text")),
            None => Ok(()),
        }
    }

    /// Reads a scalar, or the part of an array or object before its first value. Returns whether
    /// the value is complete.
    fn value(&mut self) -> Result<bool, FingerprintError> {
        match self.token() {
            Some(b'[') => {
                self.opens(Open::Array)?;
                self.form.push(b'[');
                return self.closes(b']');
            }
            Some(b'{') => {
                self.opens(Open::Object { members: self.members.len(), form: self.form.len() + 1 })?;
                self.form.push(b'{');
                if self.closes(b'}')? {
                    return Ok(true);
                }
                self.name()?;
                return Ok(false);
            }
            Some(b'"') => self.string()?,
            Some(b'-' | b'0'..=b'9') => self.number()?,
            Some(b'n') => self.literal("null", b'0')?,
            Some(b't') => self.literal("true", b't')?,
            Some(b'f') => self.literal("false", b'f')?,
            Some(_) | None => return Err(self.expected("a value")),
        }
        Ok(true)
    }

    /// Reads the closing brackets or the comma after a complete value. Returns whether another
    /// value must follow.
    fn is_followed(&mut self) -> Result<bool, FingerprintError> {
        while let Some(open) = self.open.last() {
            let (close, expected) = match open {
                Open::Array => (b']', "a comma or the end of the array"),
                Open::Object { .. } => (b'}', "a comma or the end of the object"),
            };
            if close == b'}' {
                self.end_member();
            }
            if self.takes(b',') {
                if close == b'}' {
                    self.name()?;
                }
                return Ok(true);
            }
            if !self.closes(close)? {
                return Err(self.expected(expected));
            }
        }
        Ok(false)
    }

    fn opens(&mut self, open: Open) -> Result<(), FingerprintError> {
        if self.open.len() == MAX_DEPTH {
            return Err(FingerprintError::TooDeep { at: self.at, limit: MAX_DEPTH });
        }
        self.at += 1;
        self.open.push(open);
        Ok(())
    }

    /// Closes the innermost array or object if `close` comes next.
    fn closes(&mut self, close: u8) -> Result<bool, FingerprintError> {
        if !self.takes(close) {
            return Ok(false);
        }
        if let Some(Open::Object { members, form }) = self.open.pop() {
            self.sort(members, form)?;
        }
        self.form.push(close);
        Ok(true)
    }

    /// Reads a member's name and the colon.
    fn name(&mut self) -> Result<(), FingerprintError> {
        if self.token() != Some(b'"') {
            return Err(self.expected("a name in quotes"));
        }
        let (at, start) = (self.at, self.form.len());
        self.string()?;
        let value = self.form.len();
        self.members.push(Member { at, start, value, end: value });
        if self.takes(b':') { Ok(()) } else { Err(self.expected("a colon")) }
    }

    /// Finishes the form of the member whose value was read last.
    fn end_member(&mut self) {
        let Some(member) = self.members.last_mut() else { return };
        if self.form.len() - member.value > MAX_INLINE {
            let hash = blake3::hash(&self.form[member.value..]);
            self.form.truncate(member.value);
            self.form.push(b'#');
            self.form.extend_from_slice(hash.as_bytes());
        }
        member.end = self.form.len();
    }

    /// Sorts the members of the object that ends here by their names.
    fn sort(&mut self, first: usize, start: usize) -> Result<(), FingerprintError> {
        let (form, members) = (&self.form, &mut self.members[first..]);
        if !members.is_sorted_by(|one, next| one.name(form) < next.name(form)) {
            members.sort_by(|one, other| one.name(form).cmp(other.name(form)));
            if let Some(pair) = members.windows(2).find(|pair| pair[0].name(form) == pair[1].name(form)) {
                return Err(FingerprintError::DuplicateName { at: pair[1].at });
            }
            self.sorted.clear();
            for member in members {
                self.sorted.extend_from_slice(&form[member.start..member.end]);
            }
            self.form.truncate(start);
            self.form.extend_from_slice(&self.sorted);
        }
        self.members.truncate(first);
        Ok(())
    }

    /// Returns the next byte that is not white space, without consuming it.
    fn token(&mut self) -> Option<u8> {
        let rest = &self.text[self.at..];
        self.at += rest.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
        self.text.get(self.at).copied()
    }

    /// Consumes the next token if it is `byte`.
    fn takes(&mut self, byte: u8) -> bool {
        let is_next = self.token() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    /// Consumes the very next byte if it is one of `bytes`.
    fn takes_byte(&mut self, bytes: &[u8]) -> Option<u8> {
        let next = self.text.get(self.at).copied().filter(|next| bytes.contains(next));
        self.at += usize::from(next.is_some());
        next
    }

    fn expected(&self, expected: &'static str) -> FingerprintError {
        FingerprintError::Syntax { at: self.at, expected }
    }
}
