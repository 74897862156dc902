//! The output on stdout: [`Output`].

use std::io::Write;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::failure::Failure;

/// The style of what needs attention.
pub(crate) const WARN: Style = AnsiColor::Yellow.on_default().bold();
/// The style of what is at fault.
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
/// The style of what is well.
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
const BOLD: Style = Style::new().bold();

/// Writes to stdout: tables for people, or JSON for programs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    /// True for JSON.
    pub(crate) json: bool,
}

impl Output {
    /// Writes one JSON document on a line.
    pub(crate) fn json(self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string(value).map_err(std::io::Error::from)?;
        self.line(&plain_json(&text))
    }

    /// Writes a line. Its colours are left out where stdout is no terminal.
    pub(crate) fn line(self, text: &str) -> Result<(), Failure> {
        let mut out = anstream::stdout().lock();
        writeln!(out, "{text}")?;
        Ok(out.flush()?)
    }

    /// Writes a table.
    pub(crate) fn table(self, header: &[&str], rows: Vec<Vec<String>>) -> Result<(), Failure> {
        let mut table = Table::new();
        // No width is set: an id that is wrapped could not be copied.
        table.load_style(UTF8_HORIZONTAL_ONLY);
        if !header.is_empty() {
            table.set_header(header.iter().copied());
        }
        for row in rows {
            table.add_row(row.iter().map(|text| plain(text)));
        }
        self.line(&table.to_string())
    }

    /// Writes a heading.
    pub(crate) fn heading(self, text: &str) -> Result<(), Failure> {
        self.line(&styled(BOLD, text))
    }
}

/// Returns the text in this style.
pub(crate) fn styled(style: Style, text: &str) -> String {
    format!("{style}{}{style:#}", plain(text))
}

/// Returns the text with control and invisible characters escaped: what is stored must not steer a
/// terminal, turn the order of a row around, or look like something else.
pub(crate) fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push('\n'),
            c if is_hidden(c) => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

/// Returns the same of a JSON document, in JSON's own way.
pub(crate) fn plain_json(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if is_hidden(c) => {
                let escape = |unit: &mut u16| format!("\\u{unit:04x}");
                shown.extend(c.encode_utf16(&mut [0; 2]).iter_mut().map(escape));
            }
            c => shown.push(c),
        }
    }
    shown
}

/// Returns true for control characters, such as those that set the direction of writing, and for
/// others that take no room or look like a space.
fn is_hidden(c: char) -> bool {
    /// Letters by their category, and marks, that fonts show as nothing.
    const BLANK: [char; 8] =
        ['\u{34f}', '\u{115f}', '\u{1160}', '\u{17b4}', '\u{17b5}', '\u{2800}', '\u{3164}', '\u{ffa0}'];
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    // The standard library escapes what cannot be printed, and marks that have no letter before.
    BLANK.contains(&c) || String::from_iter(['a', c]).escape_debug().nth(1) == Some('\\')
}

/// Returns a time in its two largest units, such as `3h 12m`.
pub(crate) fn time(time: Duration) -> String {
    if time >= Duration::from_secs(100 * 365 * 86_400) {
        return "for ever".to_owned();
    }
    let rounded = match time.as_secs() {
        0 => Duration::from_millis(time.as_millis() as u64), // less than 1000
        seconds => Duration::from_secs(seconds),
    };
    let text = humantime::format_duration(rounded).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Returns a number of bytes in a readable unit.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// Shows on stderr how a long walk gets on, if that is a terminal.
pub(crate) fn progress(what: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {prefix}: {human_pos} records, {per_sec}, {elapsed}");
    let bar = ProgressBar::new_spinner().with_prefix(what);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_cannot_steer_a_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\r\u{9b}c\u{7}"), r"a\u{1b}[2Jb\r\u{9b}c\u{7}");
        assert_eq!(plain("é…\n"), "é…\n");
        let json = serde_json::to_string("a\u{9b}\u{202e}\u{e0041}\n\u{1b}é").unwrap();
        assert_eq!(plain_json(&json), r#""a\u009b\u202e\udb40\udc41\n\u001bé""#);
        assert_eq!(
            serde_json::from_str::<String>(&plain_json(&json)).unwrap(),
            "a\u{9b}\u{202e}\u{e0041}\n\u{1b}é"
        );
    }

    #[test]
    fn what_is_stored_cannot_turn_a_row_around_or_hide_in_it() {
        for hidden in
            ['\u{ad}', '\u{61c}', '\u{200b}', '\u{200d}', '\u{200e}', '\u{202a}', '\u{202e}', '\u{2028}']
        {
            assert_eq!(plain(&format!("a{hidden}b")), format!("a{}b", hidden.escape_default()));
        }
        for hidden in
            ['\u{2066}', '\u{2069}', '\u{2060}', '\u{feff}', '\u{a0}', '\u{3164}', '\u{fff9}', '\u{e0041}']
        {
            assert_eq!(plain(&format!("a{hidden}b")), format!("a{}b", hidden.escape_default()));
        }
        // Letters with their marks, right to left ones, and pictures stay.
        for seen in ["naïve nai\u{308}ve", "สวัสดี", "हिन्दी", "שלום", "日本語", "💳", "'\"\\"]
        {
            assert_eq!(plain(seen), seen);
        }
    }

    #[test]
    fn times_are_short() {
        let shown = [0, 999, 61_000, 90_061_000].map(|millis| time(Duration::from_millis(millis)));
        assert_eq!(shown, ["0s", "999ms", "1m 1s", "1day 1h"]);
        assert_eq!(time(Duration::MAX), "for ever");
    }
}
