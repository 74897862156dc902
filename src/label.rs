//! A short text for operators: [`Label`].

use std::fmt;
use std::ops::Deref;

/// The first 48 bytes of a text (fewer if a character would be cut): a scope or a holder as
/// operators see it.
///
/// It is stored inline, so that making it, copying it and reading it from a store do not allocate.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Label {
    len: u8,
    /// UTF-8, then zeroes.
    bytes: [u8; Label::MAX_BYTES],
}

impl Label {
    /// The longest label, in bytes.
    pub const MAX_BYTES: usize = 48;

    /// The empty label.
    pub const EMPTY: Label = Label { len: 0, bytes: [0; Label::MAX_BYTES] };

    /// As much of `text` as fits.
    pub fn new(text: &str) -> Label {
        let mut label = Label::EMPTY;
        label.push(text);
        label
    }

    /// Appends as much of `text` as fits. Returns true if all of it did.
    pub(crate) fn push(&mut self, text: &str) -> bool {
        let used = usize::from(self.len);
        let mut fits = text.len().min(Label::MAX_BYTES - used);
        while !text.is_char_boundary(fits) {
            fits -= 1; // 0 is a boundary
        }
        self.bytes[used..used + fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.len += fits as u8; // at most MAX_BYTES in all
        fits == text.len()
    }

    /// Ends the label with `mark`, cutting as much of its text as needed. The cut splits neither a
    /// character nor an escape sequence (a backslash and the character after it).
    pub(crate) fn cut(&mut self, mark: &str) {
        let mut kept = self.as_str();
        while kept.len() + mark.len() > Label::MAX_BYTES {
            kept = kept.char_indices().next_back().map_or("", |(at, _)| &kept[..at]);
        }
        let backslashes = kept.bytes().rev().take_while(|byte| *byte == b'\\').count();
        let mut cut = Label::new(&kept[..kept.len() - backslashes % 2]);
        cut.push(mark);
        *self = cut;
    }

    /// The label with these bytes as its text; `None` if they are too long or not UTF-8.
    pub(crate) fn from_bytes(text: &[u8]) -> Option<Label> {
        let fits = text.len() <= Label::MAX_BYTES;
        std::str::from_utf8(text).ok().filter(|_| fits).map(Label::new)
    }

    /// The label of this length at the start of `window`. The text must be a whole label. The bytes
    /// after it are masked in registers: a copy of the text alone could not be read again until it
    /// had reached the cache.
    #[cfg(feature = "memory")]
    pub(crate) fn from_window(window: &[u8; Label::MAX_BYTES], len: u8) -> Label {
        let mut bytes = *window;
        bytes.iter_mut().zip(0..).for_each(|(byte, at)| *byte &= if at < len { 0xff } else { 0 });
        Label { len: len.min(Label::MAX_BYTES as u8), bytes }
    }

    /// The label as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The label as text.
    pub fn as_str(&self) -> &str {
        // Only whole characters are ever added.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl Default for Label {
    fn default() -> Label {
        Label::EMPTY
    }
}

impl Deref for Label {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl From<&str> for Label {
    fn from(text: &str) -> Label {
        Label::new(text)
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_cut_between_characters() {
        let long = "é".repeat(30);
        assert_eq!(Label::new(&long).as_str(), "é".repeat(24));
        let mut label = Label::new("x");
        assert!(!label.push(&long));
        assert_eq!((label.as_str(), label.len()), (format!("x{}", "é".repeat(23)).as_str(), 47));
        assert!(label.push("a") && label.len() == 48);
        assert_eq!(Label::new(&label), label);
        assert_eq!(Label::new("").as_str(), Label::EMPTY.as_str());
    }

    #[test]
    fn bytes_that_no_label_has_are_refused() {
        assert_eq!(Label::from_bytes("é".as_bytes()), Some(Label::new("é")));
        assert_eq!(Label::from_bytes(&[b'a'; 49]), None);
        assert_eq!(Label::from_bytes(&[0xff]), None);
    }
}
