//! Checks of comments and documents: openings, words and width, as CONTRIBUTING.md asks.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The widest that a line of prose may be, in characters.
const COLUMNS: usize = 100;

/// Words that no doc comment may open with: it opens with what the thing is or does.
const OPENINGS: [&str; 20] = [
    "What",
    "Who",
    "Whom",
    "Whose",
    "Whoever",
    "Whatever",
    "Whether",
    "Where",
    "Wherever",
    "How",
    "Which",
    "Why",
    "When",
    "If",
    "That",
    "Somebody",
    "Nobody",
    "Everybody",
    "Anybody",
    "Something",
];

/// Words that a plainer one replaces: a caller, a process, an operator, "none".
const WORDS: [&str; 7] = ["somebody", "nobody", "whoever", "everybody", "anybody", "whatsoever", "whichever"];

/// Returns every file of the repository with prose in it.
fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("git").current_dir(root).args(["ls-files", "-z"]).output().expect("git runs");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let files: Vec<_> =
        names.split('\0').filter(|name| kind(name).is_some()).map(|name| root.join(name)).collect();
    assert!(files.len() > 100, "git lists {} files", files.len());
    files
}

/// The place of prose in a file.
#[derive(Clone, Copy)]
enum Kind {
    /// After one of these marks.
    Comments(&'static [&'static str]),
    /// Everywhere but in tables, code blocks and headings' links.
    Markdown,
}

fn kind(name: &str) -> Option<Kind> {
    let file = name.rsplit('/').next().unwrap_or(name);
    match file.rsplit_once('.') {
        Some((_, "rs")) => Some(Kind::Comments(&["///", "//!", "//"])),
        Some((_, "md")) => Some(Kind::Markdown),
        Some((_, "lua" | "sql")) => Some(Kind::Comments(&["--"])),
        Some((_, "toml")) => Some(Kind::Comments(&["#"])),
        Some((_, "c")) => Some(Kind::Comments(&["//"])),
        Some(_) => None,
        None if name.starts_with("tests/") || name.starts_with("benches/") => Some(Kind::Comments(&["#"])),
        None => None,
    }
}

/// A line of prose, without its mark.
struct Line<'a> {
    number: usize,
    mark: &'a str,
    text: &'a str,
    width: usize,
}

/// The lines of prose of a file: no code, no tables.
fn prose(kind: Kind, text: &str) -> Vec<Line<'_>> {
    let mut lines = Vec::new();
    let mut fenced = false;
    for (at, line) in text.lines().enumerate() {
        let (mark, text) = match kind {
            Kind::Markdown => ("", line),
            Kind::Comments(marks) => {
                match marks.iter().find_map(|mark| Some((*mark, line.trim_start().strip_prefix(mark)?))) {
                    Some(found) => found,
                    None => {
                        fenced = false;
                        continue;
                    }
                }
            }
        };
        let trimmed = text.trim();
        if trimmed.starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let table = trimmed.starts_with('|');
        let code = fenced || (mark != "//" && mark != "#" && text.starts_with("     "));
        // A link or a path that is wider than the page cannot be broken.
        let unbreakable = !trimmed.trim_start_matches("- ").contains(' ');
        if table || code || unbreakable && trimmed.len() > COLUMNS / 2 {
            continue;
        }
        lines.push(Line { number: at + 1, mark, text: trimmed, width: line.chars().count() });
    }
    lines
}

/// Returns the faults that `wrong` finds, each with its file and line.
fn faults(wrong: impl Fn(&[Line<'_>], usize) -> Option<String>) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut faults = Vec::new();
    for path in files() {
        let name = path.strip_prefix(root).expect("the files are under the root").display().to_string();
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let lines = prose(kind(&name).expect("only such files are listed"), &text);
        for at in 0..lines.len() {
            if let Some(fault) = wrong(&lines, at) {
                faults.push(format!("{name}:{}: {fault}", lines[at].number));
            }
        }
    }
    faults
}

fn none(faults: &[String], rule: &str) {
    assert!(faults.is_empty(), "{rule}\n{}\n{} in all", faults.join("\n"), faults.len());
}

#[test]
fn prose_is_wrapped_at_100_columns() {
    let wide =
        faults(|lines, at| (lines[at].width > COLUMNS).then(|| format!("{} columns", lines[at].width)));
    none(&wide, "wider than 100 columns:");
}

#[test]
fn a_doc_comment_opens_with_what_the_thing_is_or_does() {
    let wrong = faults(|lines, at| {
        let line = &lines[at];
        let doc = matches!(line.mark, "///" | "//!");
        // The first line of its block: none of the same kind stands right above.
        let first = at == 0 || lines[at - 1].mark != line.mark || lines[at - 1].number + 1 != line.number;
        let word: String = line.text.chars().take_while(|c| c.is_alphabetic()).collect();
        (doc && first && OPENINGS.contains(&&*word)).then(|| format!("opens with {word:?}"))
    });
    none(&wrong, "a doc comment opens with a noun or a verb:");
}

#[test]
fn prose_says_who_acts() {
    let wrong = faults(|lines, at| {
        // Names in backticks are code.
        let plain: String = lines[at].text.split('`').step_by(2).collect::<Vec<_>>().join(" ").to_lowercase();
        let mut words = plain.split(|c: char| !c.is_alphabetic());
        words.find(|word| WORDS.contains(word)).map(|word| format!("says {word:?}"))
    });
    none(&wrong, "name the caller, process or operator:");
}
