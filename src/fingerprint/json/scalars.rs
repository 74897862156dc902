//! Literals, strings and numbers of a JSON text, in canonical form.

use std::io::Write;

use super::{FingerprintError, Scanner};

/// The largest power of ten, and the negative of the smallest, of a number's first digit. A number
/// is never expanded, so the limit costs nothing. It allows `1e999999999`, far beyond what any
/// receiver can represent.
const MAX_EXPONENT: u64 = 999_999_999;

/// The end of a string or a number; not a byte of UTF-8.
const END: u8 = 0xff;

impl<'a> Scanner<'a> {
    pub(super) fn literal(&mut self, word: &'static str, form: u8) -> Result<(), FingerprintError> {
        if !self.text[self.at..].starts_with(word.as_bytes()) {
            return Err(self.expected(word));
        }
        self.at += word.len();
        self.form.push(form);
        Ok(())
    }

    pub(super) fn string(&mut self) -> Result<(), FingerprintError> {
        self.at += 1;
        self.form.push(b's');
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.iter().take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1f)).count();
            self.form.extend_from_slice(&rest[..plain]);
            self.at += plain;
            match rest.get(plain) {
                Some(b'"') => {
                    self.at += 1;
                    self.form.push(END);
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(_) => return Err(self.expected("an escape instead of the control character")),
                None => return Err(self.expected("the end of the string")),
            }
        }
    }

    /// Reads an escape, from its backslash.
    fn escape(&mut self) -> Result<(), FingerprintError> {
        let character = match self.text.get(self.at + 1) {
            Some(b'u') => return self.code_unit_escape(),
            Some(byte @ (b'"' | b'\\' | b'/')) => *byte,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0c,
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(_) | None => return Err(self.expected("an escape sequence")),
        };
        self.form.push(character);
        self.at += 2;
        Ok(())
    }

    /// Reads one `\u` escape, or the two of a surrogate pair.
    fn code_unit_escape(&mut self) -> Result<(), FingerprintError> {
        let (first, mut end) = (self.code_unit(self.at)?, self.at + 6);
        let mut second = None;
        if (0xd800..0xdc00).contains(&first) {
            second = Some(self.code_unit(end)?);
            end += 6;
        }
        let units = [Some(first), second].into_iter().flatten();
        let Some(Ok(character)) = char::decode_utf16(units).next() else {
            return Err(self.expected("a whole surrogate pair"));
        };
        self.form.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        self.at = end;
        Ok(())
    }

    /// Returns the code unit that is escaped at `at`: a backslash, `u` and four hexadecimal digits.
    fn code_unit(&self, at: usize) -> Result<u16, FingerprintError> {
        let digits = self.text[at..].strip_prefix(b"\\u").and_then(|rest| rest.first_chunk::<4>());
        let value = digits.and_then(|digits| {
            digits.iter().try_fold(0, |value, digit| Some(value << 4 | char::from(*digit).to_digit(16)?))
        });
        value
            .and_then(|value| u16::try_from(value).ok())
            .ok_or(FingerprintError::Syntax { at, expected: "\\u and four hexadecimal digits" })
    }

    pub(super) fn number(&mut self) -> Result<(), FingerprintError> {
        let (at, start) = (self.at, self.form.len());
        self.form.push(b'n');
        if self.takes_byte(b"-").is_some() {
            self.form.push(b'-');
        }
        let digits = self.form.len();
        // JSON allows no leading zero but a single one, which no digit follows.
        let whole = if self.takes_byte(b"0").is_some() { &[] } else { self.digits()? };
        self.form.extend_from_slice(whole);
        let fraction = if self.takes_byte(b".").is_some() { self.digits()? } else { &[] };
        let zeros = if whole.is_empty() { count_zeros(fraction.iter()) } else { 0 };
        self.form.extend_from_slice(&fraction[zeros..]);
        let exponent = self.exponent()?;

        let trailing = count_zeros(self.form[digits..].iter().rev());
        self.form.truncate(self.form.len() - trailing);
        if self.form.len() == digits {
            self.form.truncate(start);
            self.form.extend_from_slice(&[b'n', b'0', END]);
            return Ok(());
        }
        let power =
            exponent.saturating_sub_unsigned(fraction.len() as u64).saturating_add_unsigned(trailing as u64);
        let of_first = power.saturating_add_unsigned((self.form.len() - digits - 1) as u64);
        if of_first.unsigned_abs() > MAX_EXPONENT {
            return Err(FingerprintError::OutOfRange { at, limit: MAX_EXPONENT });
        }
        if power != 0 {
            let _ = write!(self.form, "e{power}"); // writing to a Vec cannot fail
        }
        self.form.push(END);
        Ok(())
    }

    /// Reads the exponent that follows, or returns 0 if there is none. One that does not fit
    /// saturates: no text is long enough to bring the number back into range.
    fn exponent(&mut self) -> Result<i64, FingerprintError> {
        if self.takes_byte(b"eE").is_none() {
            return Ok(0);
        }
        let is_negative = self.takes_byte(b"+-") == Some(b'-');
        let exponent = self
            .digits()?
            .iter()
            .fold(0_i64, |value, digit| value.saturating_mul(10).saturating_add(i64::from(digit - b'0')));
        Ok(if is_negative { -exponent } else { exponent })
    }

    /// Consumes the digits that follow, at least one.
    fn digits(&mut self) -> Result<&'a [u8], FingerprintError> {
        let rest = &self.text[self.at..];
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return Err(self.expected("a digit"));
        }
        self.at += count;
        Ok(&rest[..count])
    }
}

fn count_zeros<'a>(digits: impl Iterator<Item = &'a u8>) -> usize {
    digits.take_while(|digit| **digit == b'0').count()
}
