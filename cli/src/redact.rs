//! Removal of passwords from texts that are shown.
//!
//! A password may hold any character, also quotes and spaces that should have been escaped, and the
//! end of a URL in a text is then not known. So more is removed rather than less.

/// Replaces what may be a login, and the value of every `password=`, by `***`.
pub(crate) fn redact(text: &str) -> String {
    // Parameters first: an @ in one would be taken for the end of a login.
    without_logins(&without_parameters(text))
}

/// Replaces all between the first `://` and the last `@` of the text.
fn without_logins(text: &str) -> String {
    const SIGN: &str = "://";
    let Some(start) = text.find(SIGN).map(|at| at + SIGN.len()) else { return text.to_owned() };
    let (before, after) = text.split_at(start);
    match after.rfind('@') {
        Some(at) => [before, "***", &after[at..]].concat(),
        None => text.to_owned(),
    }
}

fn without_parameters(text: &str) -> String {
    const NAME: &str = "password=";
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.to_ascii_lowercase().find(NAME) {
        let (before, after) = rest.split_at(at + NAME.len());
        shown.extend([before, "***"]);
        rest = &after[end(after, text.contains("://"))..];
    }
    shown + rest
}

/// Returns the end of a value: in a URL the next parameter or line, otherwise the closing quote of
/// one that begins with a quote, or the next space.
fn end(value: &str, is_url: bool) -> usize {
    let is_end = |c: char| if is_url { c == '&' || c == '\n' } else { c.is_whitespace() };
    let end = value.find(is_end).unwrap_or(value.len());
    let Some(inner) = value.strip_prefix('\'').filter(|_| !is_url) else { return end };
    let mut escaped = false;
    for (at, c) in inner.char_indices() {
        match c {
            '\'' if !escaped => return at + 2, // the quotes are a byte each
            c => escaped = c == '\\' && !escaped,
        }
    }
    value.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_never_shown() {
        for (text, shown) in [
            ("redis://u:pw@h:1/2 fails", "redis://***@h:1/2 fails"),
            ("'postgres://u:p%40w@h/d?sslmode=x'", "'postgres://***@h/d?sslmode=x'"),
            ("redis://u:p@w/x@h", "redis://***@h"),
            ("redis://h:1 and redis://a:b@c", "redis://***@c"),
            ("'redis://u:p'w@h' found\n\nUsage: x", "'redis://***@h' found\n\nUsage: x"),
            ("redis://u:p\"w`x y\nz@h", "redis://***@h"),
            ("postgres://h/d?user=u&password=pw&x=y", "postgres://h/d?user=u&password=***&x=y"),
            ("'postgres://h/d?password=p'w q@r' found\nUsage", "'postgres://h/d?password=***\nUsage"),
            ("postgres://u:password=a&b@h/d", "postgres://***@h/d"),
            ("host=h Password=pw dbname=d", "host=h Password=*** dbname=d"),
            ("host=h password='x y' dbname=d", "host=h password=*** dbname=d"),
            (r"password='x\' y\\' dbname=d", "password=*** dbname=d"),
            ("password='x y", "password=***"),
            ("password=p'w dbname=d", "password=*** dbname=d"),
            ("plain", "plain"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }
}
