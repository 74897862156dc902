//! Places of secrets in texts of any form: forms, addresses, XML, multipart, JSON that is cut off.

use std::ops::Range;

/// The surroundings of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A body that may be a form: a value goes on to the next field or line.
    Body,
    /// A value that may hold an address or a sentence: a value ends at a blank.
    Value,
}

/// Returns the places of the values whose names are secret, and of numbers of cards, in order and
/// apart.
pub(super) fn secrets(text: &str, form: Form, is_secret: &dyn Fn(&str) -> bool) -> Vec<Range<usize>> {
    let mut places: Vec<_> = pairs(text, form, is_secret)
        .into_iter()
        .chain(elements(text, is_secret))
        .chain(parts(text, is_secret))
        .chain(cards(text))
        .filter(|place| !place.is_empty())
        .collect();
    places.sort_by_key(|place| place.start);
    let mut apart: Vec<Range<usize>> = Vec::new();
    for place in places {
        match apart.last_mut() {
            Some(last) if place.start < last.end => last.end = last.end.max(place.end),
            Some(_) | None => apart.push(place),
        }
    }
    apart
}

/// Returns the text with a mark in these places.
pub(super) fn replaced(text: &str, places: &[Range<usize>], mark: &str) -> String {
    let (mut shown, mut at) = (String::with_capacity(text.len()), 0);
    for place in places {
        shown.push_str(&text[at..place.start]);
        shown.push_str(mark);
        at = place.end;
    }
    shown + &text[at..]
}

/// Values behind `name=` and `name:`, in quotes or without.
fn pairs(text: &str, form: Form, is_secret: &dyn Fn(&str) -> bool) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..].find(['=', ':']).map(|at| from + at) {
        from = at + 1;
        let named = name_before(&text[..at]);
        if named.is_empty() || !is_secret(&decoded(named)) {
            continue;
        }
        let value = text[from..].trim_start_matches([' ', '\t']);
        let start = text.len() - value.len();
        let place = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => start + 1..start + 1 + quoted(&value[1..], quote),
            Some(_) | None => start..start + bare(value, text.as_bytes()[at] == b':', form),
        };
        from = place.end.max(from);
        places.push(place);
    }
    places
}

/// The name at the end of a text, without its quotes.
fn name_before(text: &str) -> &str {
    let text = text.trim_end_matches([' ', '\t']);
    let text = text.strip_suffix(['"', '\'']).unwrap_or(text);
    let text = text.strip_suffix('\\').unwrap_or(text);
    let of_a_name = |c: char| c.is_alphanumeric() || "_-.[]%+$".contains(c);
    &text[text.trim_end_matches(of_a_name).len()..]
}

/// The length of a value up to its quote.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at,
            _ => {}
        }
    }
    text.len()
}

/// The length of a value without quotes.
fn bare(text: &str, after_colon: bool, form: Form) -> usize {
    let ends = |c: char| match c {
        '&' => !after_colon,
        '\n' | '\r' => true,
        ',' | '}' => after_colon,
        '"' | '\'' | '<' | '>' => form == Form::Value,
        c => form == Form::Value && !after_colon && c.is_whitespace(),
    };
    text.find(ends).unwrap_or(text.len())
}

/// The longest head of an element or a part: a hostile text costs no more than its length.
const HEAD: usize = 4096;

/// Returns the place behind the first `end` in the head that begins at `from`.
fn behind(text: &str, from: usize, end: &str) -> Option<usize> {
    let head = &text.as_bytes()[from..text.len().min(from + HEAD)];
    let found = head.windows(end.len()).position(|part| part == end.as_bytes());
    found.map(|found| from + found + end.len())
}

/// Values in elements of XML.
fn elements(text: &str, is_secret: &dyn Fn(&str) -> bool) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..].find('<').map(|at| from + at + 1) {
        from = at;
        let name = text[at..].split(|c: char| c.is_whitespace() || "/><".contains(c)).next();
        let name = name.unwrap_or_default();
        if name.is_empty() || !is_secret(name) {
            continue;
        }
        let Some(end) = behind(text, at, ">").filter(|end| !text[..*end].ends_with("/>")) else { continue };
        let close = text[end..].find(&format!("</{name}")).map_or(text.len(), |close| end + close);
        places.push(end..close);
        from = close;
    }
    places
}

/// Values in parts of a multipart body.
fn parts(text: &str, is_secret: &dyn Fn(&str) -> bool) -> Vec<Range<usize>> {
    let mut places = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..].find("form-data").map(|at| from + at) {
        from = at + 1;
        let head = behind(text, at, "\r\n\r\n").or_else(|| behind(text, at, "\n\n"));
        let Some(start) = head else { continue };
        let named = text[at..start].split("name=").nth(1).unwrap_or_default();
        let name = named.trim_start_matches('"').split(['"', ';', '\r', '\n']).next().unwrap_or_default();
        if is_secret(name) {
            let close = text[start..].find("\n--").map_or(text.len(), |close| start + close);
            places.push(start..close);
            from = close;
        }
    }
    places
}

/// Numbers of cards: 13 to 19 digits, also in groups, with the digit that checks them.
fn cards(text: &str) -> Vec<Range<usize>> {
    let bytes = text.as_bytes();
    let groups = groups(bytes);
    let (mut places, mut first) = (Vec::new(), 0);
    while let Some(group) = groups.get(first) {
        let mut digits = bytes[group.clone()].to_vec();
        let mut last = first;
        let card = loop {
            if is_card(&digits) && is_apart(bytes, &(group.start..groups[last].end)) {
                break Some(group.start..groups[last].end);
            }
            let next = groups.get(last + 1).filter(|next| {
                let gap = &bytes[groups[last].end..next.start];
                matches!(gap, b" " | b"-" | b"+")
            });
            match next {
                Some(next) if digits.len() + next.len() <= 19 => {
                    digits.extend_from_slice(&bytes[next.clone()])
                }
                Some(_) | None => break None,
            }
            last += 1;
        };
        first = if card.is_some() { last + 1 } else { first + 1 };
        places.extend(card);
    }
    places
}

/// Returns the places of digits without a gap.
fn groups(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for at in (0..bytes.len()).filter(|at| bytes[*at].is_ascii_digit()) {
        match groups.last_mut() {
            Some(last) if last.end == at => last.end = at + 1,
            Some(_) | None => groups.push(at..at + 1),
        }
    }
    groups
}

fn is_apart(bytes: &[u8], place: &Range<usize>) -> bool {
    let beside = |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_alphanumeric);
    !beside(place.start.checked_sub(1)) && !beside(Some(place.end))
}

fn is_card(digits: &[u8]) -> bool {
    // No card begins with another digit, but the milliseconds of a clock do.
    (13..=19).contains(&digits.len()) && matches!(digits[0], b'2'..=b'6') && luhn(digits)
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(n, digit)| {
            let digit = u32::from(*digit - b'0');
            if n % 2 == 0 { digit } else { digit * 2 / 10 + digit * 2 % 10 }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// A name of a form, decoded.
pub(super) fn decoded(name: &str) -> String {
    let pair = url::form_urlencoded::parse(name.as_bytes()).next();
    pair.map(|(name, value)| format!("{name}{value}")).unwrap_or_default()
}

/// Returns a text in one line, without characters that a terminal or a CI system would obey.
pub(in crate::audit) fn tamed(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(obeyed) {
        return text.to_owned();
    }
    text.chars().fold(String::with_capacity(text.len()), |mut tamed, c| {
        if obeyed(c) {
            tamed.extend(c.escape_default());
        } else {
            tamed.push(c);
        }
        tamed
    })
}

#[cfg(test)]
mod tests {
    use super::super::names;
    use super::*;

    fn shown(text: &str, form: Form) -> String {
        replaced(text, &secrets(text, form, &names::is_secret), "*")
    }

    #[test]
    fn values_of_secret_names_are_found_in_every_form() {
        for (text, expected) in [
            ("amount=1&cvc=123&password=a b\n", "amount=1&cvc=*&password=*\n"),
            ("card%5Bpin%5D=1234&n=1", "card%5Bpin%5D=*&n=1"),
            ("<p><cvc>123</cvc><a pin=\"12\"/><n>1</n></p>", "<p><cvc>*</cvc><a pin=\"*\"/><n>1</n></p>"),
            ("<x:password kind='a'>s</x:password>", "<x:password kind='a'>*</x:password>"),
            ("{\"pin\": \"a\\\"b\", \"n\": \"1", "{\"pin\": \"*\", \"n\": \"1"),
            ("{\"otp\": 1234, \"n\": ", "{\"otp\": *, \"n\": "),
            (
                "--b\r\nContent-Disposition: form-data; name=\"pin\"\r\n\r\n12\r\n--b--",
                "--b\r\nContent-Disposition: form-data; name=\"pin\"\r\n\r\n*\n--b--",
            ),
            ("card[number]=4242424242424242", "card[number]=*"),
            ("n=1 4242 4242 4242 4242", "n=1 *"),
            ("n=4242424242424241&at=1700000000000", "n=4242424242424241&at=1700000000000"),
        ] {
            assert_eq!(shown(text, Form::Body), expected);
        }
        assert_eq!(
            shown("<https://h/x?client_secret=abc&n=1>; rel=\"next\"", Form::Value),
            "<https://h/x?client_secret=*&n=1>; rel=\"next\""
        );
        assert_eq!(shown("see https://h/?token=abc now", Form::Value), "see https://h/?token=* now");
    }

    #[test]
    fn a_text_of_an_answer_commands_no_terminal() {
        assert_eq!(
            tamed("a\u{1b}]52;c\u{7}\r\n::error::\u{202e}ü"),
            r"a\u{1b}]52;c\u{7}\r\n::error::\u{202e}ü"
        );
    }
}
