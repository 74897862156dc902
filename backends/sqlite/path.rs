//! Checks for paths that SQLite would accept but interpret differently than intended.

use std::fs;
use std::io;
use std::path::Path;

use super::error::{Error, Result};

/// Options of SQLite's URIs. A path that ends in one of them is meant as a URI.
const OPTIONS: [&str; 7] = ["mode", "cache", "vfs", "immutable", "nolock", "psow", "modeof"];
const SCHEMES: [&str; 4] = ["file", "sqlite", "sqlite3", "jdbc"];

/// Refuses paths that would create a file with a strange name, or none at all.
pub(super) fn check(path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() {
        return Err(Error::unusable("the path is empty; pass the path of a file, such as `keys.db`"));
    }
    let text = path.to_string_lossy();
    if text.starts_with(":memory:") || text.contains("file::memory:") {
        return Err(Error::unusable(
            "its connections share a file, and `:memory:` is not one; use `MemoryStore`",
        ));
    }
    if is_url(&text) {
        return Err(Error::unusable(
            "the path looks like a URL, and SQLite would make a file of that name; pass the plain path of a file, \
             such as `keys.db` or `/var/lib/app/keys.db`",
        ));
    }
    match fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(()),
        Ok(found) => {
            let what = if found.is_dir() { "a folder" } else { "not a regular file" };
            Err(Error::unusable(format!("{} is {what}; pass the path of a file", path.display())))
        }
        Err(_) if fs::symlink_metadata(path).is_ok_and(|link| link.is_symlink()) => {
            Err(Error::unusable(format!("{} is a symbolic link that leads to no file", path.display())))
        }
        Err(_) => Ok(()),
    }
}

fn is_url(text: &str) -> bool {
    let option = |(_, options): (&str, &str)| {
        options.split('&').any(|option| OPTIONS.iter().any(|name| option.split('=').next() == Some(name)))
    };
    if text.split_once('?').filter(|(_, options)| options.contains('=')).is_some_and(option) {
        return true;
    }
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    // A single letter is a Windows drive.
    let is_scheme = scheme.len() > 1
        && scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    is_scheme && (rest.starts_with("//") || SCHEMES.iter().any(|known| scheme.eq_ignore_ascii_case(known)))
}

/// Returns an explanation if the process cannot open another file because too many are open.
pub(super) fn out_of_descriptors() -> Option<&'static str> {
    #[cfg(unix)]
    if let Err(error) = fs::File::open("/") {
        return explain(&error);
    }
    None
}

/// Explains an error of opening a file if its cause is too many open files.
pub(super) fn explain(error: &io::Error) -> Option<&'static str> {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    match error.raw_os_error() {
        Some(EMFILE) if cfg!(unix) => Some(
            "the process is out of file descriptors: a store takes 8, and two for each of three more threads that read \
             at once; raise its limit (`ulimit -n`) or open fewer stores",
        ),
        Some(ENFILE) if cfg!(unix) => Some("the machine is out of file descriptors (`fs.file-max`)"),
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_a_url_is_told_from_a_path() {
        for url in [
            "sqlite:keys.db",
            "sqlite://keys.db",
            "SQLite:///var/keys.db",
            "file:keys.db",
            "file:keys.db?mode=rwc",
            "jdbc:sqlite:keys.db",
            "libsql://keys.db",
            "keys.db?mode=ro",
            "keys.db?x=1&cache=shared",
        ] {
            assert!(is_url(url), "{url}");
        }
        for path in
            ["keys.db", "/a/b.db", "C:\\keys.db", "a:b.db", "./file:x", "/a/sqlite:x", "what?.db", "a=b?c"]
        {
            assert!(!is_url(path), "{path}");
        }
    }
}
