//! Scopes and keys: exactly the documented ones are accepted, and different pairs have different
//! ids.

use nevertwice::{Key, KeyError, MAX_KEY_BYTES, MAX_SCOPE_PARTS, Request, Scope};

pub(crate) fn run(input: &[u8]) {
    let Some((cuts, rest)) = input.split_first_chunk::<4>() else { return };
    let text = String::from_utf8_lossy(rest);
    check_key(&text);
    // The same text, cut in two ways at any characters.
    let (one, other) = (cut(&text, cuts[0], cuts[1]), cut(&text, cuts[2], cuts[3]));
    let ids = [&one, &other].map(|(scope, key)| request(scope, key).map(|request| request.id()));
    if let [Ok(first), Ok(second)] = ids {
        assert_eq!(first == second, one == other, "S7: {one:?} and {other:?}");
        assert_eq!(request(&one.0, &one.1).expect("accepted before").id(), first, "S7: not always the same");
    }
}

fn request(scope: &[String], key: &str) -> Result<Request, KeyError> {
    let request = Request::new(scope, key);
    let whole = |text: &str| is_good(text);
    let good =
        whole(key) && (1..=MAX_SCOPE_PARTS).contains(&scope.len()) && scope.iter().all(|part| whole(part));
    assert_eq!(request.is_ok(), good, "{scope:?}, {key:?}");
    request
}

/// Cuts the text into the parts of a scope, of `length` characters each, and a key.
fn cut(text: &str, length: u8, key: u8) -> (Vec<String>, String) {
    let characters: Vec<char> = text.chars().collect();
    let (scope, key) = characters.split_at(characters.len() - usize::from(key).min(characters.len()));
    (
        scope.chunks(usize::from(length).max(1)).map(|part| part.iter().collect()).collect(),
        key.iter().collect(),
    )
}

fn is_good(text: &str) -> bool {
    (1..=MAX_KEY_BYTES).contains(&text.len()) && !text.chars().any(char::is_control)
}

fn check_key(text: &str) {
    let (key, scope) = (Key::try_from(text), Scope::try_from(text));
    assert_eq!((key.is_ok(), scope.is_ok()), (is_good(text), is_good(text)), "{text:?}");
    match key {
        Ok(key) => {
            assert_eq!(key.as_str(), Some(text), "a key is taken as it is");
            assert!(text.len() < 20 || !format!("{key:?}").contains(text), "a key is shown");
        }
        // A refused key is not repeated in the error: it may be a secret.
        Err(error) => assert!(text.len() < 20 || !error.to_string().contains(text), "a key is shown"),
    }
}
