//! Removal of passwords from texts that are shown.

/// Replaces the login of every URL in `text`, and the value of every `password=`, by `***`.
pub(crate) fn redact(text: &str) -> String {
    without_parameters(&without_logins(text))
}

fn without_logins(text: &str) -> String {
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "'\"`".contains(c)).unwrap_or(after.len());
        let (url, others) = after.split_at(end);
        // A password may hold an @ or a slash that should have been escaped: the last one counts.
        match url.rfind('@') {
            Some(at) => shown.extend(["***", &url[at..]]),
            None => shown.push_str(url),
        }
        rest = others;
    }
    shown + rest
}

fn without_parameters(text: &str) -> String {
    const NAME: &str = "password=";
    let (mut shown, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.to_ascii_lowercase().find(NAME) {
        let (before, after) = rest.split_at(at + NAME.len());
        shown.extend([before, "***"]);
        let end = after.find(|c: char| c.is_whitespace() || "&'\"`".contains(c)).unwrap_or(after.len());
        rest = &after[end..];
    }
    shown + rest
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
            ("redis://h:1 and redis://a:b@c", "redis://h:1 and redis://***@c"),
            ("postgres://h/d?user=u&password=pw&x=y", "postgres://h/d?user=u&password=***&x=y"),
            ("host=h Password=pw dbname=d", "host=h Password=*** dbname=d"),
            ("plain", "plain"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }
}
