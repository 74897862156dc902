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
        self.line(&text)
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

/// Returns the text with control characters escaped: what is stored must not steer a terminal.
pub(crate) fn plain(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push('\n'),
            c if c.is_control() => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
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
    }

    #[test]
    fn times_are_short() {
        let shown = [0, 999, 61_000, 90_061_000].map(|millis| time(Duration::from_millis(millis)));
        assert_eq!(shown, ["0s", "999ms", "1m 1s", "1day 1h"]);
        assert_eq!(time(Duration::MAX), "for ever");
    }
}
