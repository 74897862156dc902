//! The tests named in docs/VERIFICATION.md exist, and every invariant has one.

use std::collections::BTreeSet;
use std::path::Path;

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

/// Returns the invariant that a name starts with.
fn invariant(name: &str) -> Option<&str> {
    let (start, _) = name.split_once('_')?;
    let number = start.strip_prefix(['s', 'l'])?;
    (!number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())).then_some(start)
}

#[test]
fn what_the_page_says_guards_an_invariant_exists_and_every_invariant_is_guarded() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut code = String::new();
    ["src", "backends", "cli", "tests", "verify"]
        .iter()
        .for_each(|folder| sources(&root.join(folder), &mut code));
    let page = std::fs::read_to_string(root.join("docs/VERIFICATION.md")).unwrap();

    let names = page.split('`').filter(|name| invariant(name).is_some());
    let mut guarded = BTreeSet::new();
    for name in names {
        let exists = code.contains(&format!("fn {name}(")) || code.contains(&format!("\"{name}\""));
        assert!(exists, "there is no test {name}");
        guarded.extend(invariant(name));
        guarded.extend(name.split('_').skip(1).take_while(|part| invariant(&format!("{part}_")).is_some()));
    }
    let safety = (1..=15).map(|number| format!("s{number}"));
    let missing: Vec<String> = safety
        .chain((1..=6).map(|number| format!("l{number}")))
        .filter(|invariant| !guarded.contains(invariant.as_str()))
        .collect();
    assert!(missing.is_empty(), "no test is named for {missing:?}");
}
