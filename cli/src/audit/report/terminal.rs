//! The report for people at a terminal, line by line as it comes.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};

use super::{CheckReport, Report};
use crate::audit::check::{About, Outcome};

/// The most events that are shown of a failing check.
const EVENTS: usize = 16;

const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();

fn style(outcome: Outcome) -> Style {
    let color = match outcome {
        Outcome::Pass => AnsiColor::Green,
        Outcome::NotShown => AnsiColor::BrightBlack,
        Outcome::Advice => AnsiColor::Yellow,
        Outcome::Fail => AnsiColor::Red,
    };
    Style::new().bold().fg_color(Some(color.into()))
}

/// Lists checks with their sources.
pub(in crate::audit) fn list(checks: &[About]) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    for about in checks {
        writeln!(out, "{BOLD}{}{BOLD:#}\n    {}", about.name, about.says)?;
        for source in about.sources {
            writeln!(out, "    {DIM}{}, {}{DIM:#}", source.document, source.section)?;
        }
    }
    Ok(())
}

pub(in crate::audit) fn head(report: &Report) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{BOLD}{} {}{BOLD:#}", report.method, report.url)?;
    writeln!(
        out,
        "{DIM}usually answered in {:.0} ms; effects are {}; keys of --seed {}{DIM:#}\n",
        report.usual_ms, report.effects, report.seed
    )
}

pub(in crate::audit) fn check(check: &CheckReport) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    let outcome = check.verdict.outcome;
    let style = style(outcome);
    writeln!(
        out,
        "{style}{:>9}{style:#}  {:<22} {}",
        outcome.name(),
        check.about.name,
        check.verdict.because
    )?;
    if outcome != Outcome::Fail {
        return out.flush();
    }
    writeln!(out, "{:11}{DIM}expected: {}{DIM:#}", "", check.about.says)?;
    writeln!(out, "{:11}{DIM}source: {}{DIM:#}", "", check.sources())?;
    let events = check.worst().map(|run| &*run.events).unwrap_or_default();
    let skipped = events.len().saturating_sub(EVENTS);
    if skipped > 0 {
        writeln!(out, "{:11}{DIM}.. {skipped} earlier events{DIM:#}", "")?;
    }
    for event in &events[skipped..] {
        writeln!(
            out,
            "{:11}{:>6.0} - {:>6.0} ms  {}: {}",
            "", event.from_ms, event.to_ms, event.label, event.result
        )?;
    }
    out.flush()
}

pub(in crate::audit) fn summary(report: &Report) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    let style = style(if report.has_failed() { Outcome::Fail } else { Outcome::Pass });
    writeln!(out, "\n{style}{}{style:#}", report.summary())?;
    if !report.unknown.is_empty() {
        writeln!(out, "\nNot known by this audit:")?;
    }
    for unknown in &report.unknown {
        writeln!(out, "  - {unknown}")?;
    }
    if let Some(cost) = &report.cost {
        writeln!(out, "\nThe price of what was found:")?;
        for line in &cost.arithmetic {
            writeln!(out, "  {line}")?;
        }
    }
    out.flush()
}
