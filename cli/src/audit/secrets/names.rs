//! Names whose values are secret, and names of headers whose values are not.

/// Parts of names whose values are secret.
const PARTS: [&str; 16] = [
    "authorization",
    "cookie",
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "apikey",
    "signature",
    "session",
    "credential",
    "cvc",
    "cvv",
    "iban",
    "private",
    "accesskey",
];

/// Words of names whose values are secret. As a part of another word they are innocent.
const WORDS: [&str; 19] = [
    "key",
    "auth",
    "pass",
    "pwd",
    "pw",
    "pin",
    "otp",
    "totp",
    "mfa",
    "sig",
    "jwt",
    "sid",
    "pan",
    "ssn",
    "csc",
    "bearer",
    "assertion",
    "login",
    "nonce",
];

/// Words beside which a code is none of access.
const PUBLIC_CODES: [&str; 12] = [
    "error", "status", "country", "currency", "reason", "decline", "language", "http", "result", "response",
    "postal", "zip",
];

/// Headers of requests whose values tell no secret. All others are hidden.
const PUBLIC_HEADERS: [&str; 22] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "connection",
    "content-encoding",
    "content-language",
    "content-length",
    "content-type",
    "date",
    "expect",
    "host",
    "idempotency-key",
    "origin",
    "prefer",
    "referer",
    "te",
    "transfer-encoding",
    "user-agent",
    "x-idempotency-key",
    "x-requested-with",
];

/// Returns whether the value of a header of a request may be shown.
pub(super) fn is_public_header(name: &str) -> bool {
    PUBLIC_HEADERS.contains(&name)
}

/// Returns whether the name is that of a secret.
pub(super) fn is_secret(name: &str) -> bool {
    // The audit made the key.
    if name.to_ascii_lowercase().contains("idempoten") {
        return false;
    }
    let words = words(name);
    let whole = words.concat();
    if PARTS.iter().any(|part| whole.contains(part)) {
        return true;
    }
    let last_is = |word: &str| words.last().is_some_and(|last| last == word);
    let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
    let is_code = last_is("code") && !has(&PUBLIC_CODES);
    is_code || has(&WORDS)
}

/// Splits a name into its words, in lower case: `card[apiKey]` has three.
fn words(name: &str) -> Vec<String> {
    let letters: Vec<char> = name.chars().collect();
    let (mut words, mut word) = (Vec::new(), String::new());
    for (at, letter) in letters.iter().enumerate() {
        let before = at.checked_sub(1).map(|before| letters[before]);
        let after = letters.get(at + 1);
        let begins = letter.is_uppercase()
            && before.is_some_and(|before| {
                !before.is_uppercase() || after.is_some_and(|after| after.is_lowercase())
            });
        if (begins || !letter.is_alphanumeric()) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if letter.is_alphanumeric() {
            word.extend(letter.to_lowercase());
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_known_by_their_words() {
        for name in [
            "card[cvc]",
            "pin",
            "user_pwd",
            "userOtp",
            "OTPCode",
            "key",
            "sig",
            "code",
            "apiKey",
            "api_key",
            "Ocp-Apim-Subscription-Key",
            "X-Auth-Key",
            "X-Access-Key",
            "X-Functions-Key",
            "X-Auth",
            "X-API-Key",
            "client_secret",
            "ns:password",
        ] {
            assert!(is_secret(name), "{name}");
        }
        for name in [
            "author",
            "monkey",
            "shipping",
            "pinned_at",
            "compass",
            "Idempotency-Key",
            "idempotency_key",
            "error_code",
            "currencyCode",
            "amount",
            "design",
            "card",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
