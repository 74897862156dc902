//! Reports: what was claimed, what was seen, and the evidence.

mod html;
mod junit;
pub(super) mod terminal;
mod timeline;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Problem;
use super::args::Format;
use super::check::{About, Outcome, Verdict};
use super::checked;
use super::cost::Cost;
use super::evidence::Event;
use super::probe::{Probe, Tally};

/// A report. Its JSON form is stable within a `version`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) version: u32,
    pub(super) method: String,
    pub(super) url: String,
    pub(super) seed: u64,
    pub(super) repeat: u32,
    pub(super) requests: u32,
    pub(super) seconds: f64,
    pub(super) usual_ms: f64,
    /// The way in which effects were counted.
    pub(super) effects: String,
    /// Things that this audit could not know, and what would tell.
    pub(super) unknown: Vec<String>,
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) advised: usize,
    pub(super) not_shown: usize,
    pub(super) checks: Vec<CheckReport>,
    pub(super) cost: Option<Cost>,
    pub(super) preflight: Vec<Event>,
}

/// A check and its runs.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CheckReport {
    #[serde(flatten)]
    pub(super) about: About,
    /// The verdict of the worst run.
    #[serde(flatten)]
    pub(super) verdict: Verdict,
    pub(super) runs: Vec<Run>,
}

/// A run of a check.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Run {
    #[serde(flatten)]
    pub(super) verdict: Verdict,
    pub(super) events: Vec<Event>,
}

impl CheckReport {
    pub(super) fn of(about: About, runs: Vec<Run>) -> CheckReport {
        let worst = runs.iter().map(|run| &run.verdict).max_by_key(|verdict| verdict.outcome);
        let verdict = worst.cloned().unwrap_or_else(|| Verdict::not_shown("not run"));
        CheckReport { about, verdict, runs }
    }

    /// The run that the verdict is about.
    fn worst(&self) -> Option<&Run> {
        self.runs.iter().max_by_key(|run| run.verdict.outcome)
    }

    fn sources(&self) -> String {
        let source = |source: &super::check::Source| {
            let document = source.document.trim_start_matches("draft-ietf-httpapi-");
            format!("{document} {}", source.section)
        };
        self.about.sources.iter().map(source).collect::<Vec<_>>().join("; ")
    }
}

impl Report {
    pub(super) fn new(probe: &Probe, repeat: u32, preflight: Vec<Event>) -> Report {
        let effects = match (&probe.counter, &probe.settings.id_pointer) {
            (Some(counter), _) => format!("counted by {}", counter.name()),
            (None, Some(_)) => "told apart by the ids in the answers (--id-pointer)".to_owned(),
            (None, None) => "not counted".to_owned(),
        };
        let url = &probe.spec.url;
        let path = probe.secrets.hide_path(&url[url::Position::BeforePath..url::Position::AfterQuery]);
        let mut report = Report {
            version: 1,
            method: probe.spec.method.to_string(),
            url: format!("{}://{}{path}", url.scheme(), probe.endpoint.authority),
            seed: probe.settings.seed,
            repeat,
            requests: 0,
            seconds: 0.0,
            usual_ms: probe.baseline.borrow().latency.as_secs_f64() * 1000.0,
            effects,
            unknown: Vec::new(),
            passed: 0,
            failed: 0,
            advised: 0,
            not_shown: 0,
            checks: Vec::new(),
            cost: None,
            preflight,
        };
        report.say_unknown(probe);
        report
    }

    fn say_unknown(&mut self, probe: &Probe) {
        let mut say = |text: &str| self.unknown.push(text.to_owned());
        if probe.counter.is_none() {
            say("effects of requests whose answers were lost: --count-cmd or --count-url counts them");
        }
        if probe.counter.is_none() && probe.settings.id_pointer.is_none() {
            say("effects behind equal answers: --id-pointer names the id of an effect");
        }
        if probe.settings.other_headers.is_empty() {
            say("whether callers are kept apart: --other-header is another caller");
        }
        if probe.settings.fail_headers.is_empty() {
            say("what a failed first try leaves behind: --fail-header makes one fail");
        }
        if probe.settings.kill_cmd.is_none() {
            say("what a crash leaves behind: --kill-cmd and --start-cmd crash the service");
        }
        say(
            "for how long keys are kept, and what happens to many at once: no audit of some seconds shows it",
        );
    }

    /// Counts outcomes and prices them.
    pub(super) fn finish(&mut self, probe: &Probe, load: Option<(f64, f64)>) {
        self.requests = probe.run.spent.get();
        self.seconds = probe.run.start.elapsed().as_secs_f64();
        let count = |outcome| self.checks.iter().filter(|check| check.verdict.outcome == outcome).count();
        (self.passed, self.failed) = (count(Outcome::Pass), count(Outcome::Fail));
        (self.advised, self.not_shown) = (count(Outcome::Advice), count(Outcome::NotShown));
        if let Some((requests, rate)) = load {
            let tally: Tally = probe.run.tally.get();
            self.cost = Cost::of(tally, requests, rate);
            if self.cost.is_none() {
                self.unknown.push("the price: no operation was delivered twice and counted".to_owned());
            }
        }
    }

    /// Returns whether a check ended with anything else than *not shown*.
    pub(super) fn has_shown(&self) -> bool {
        self.not_shown < self.checks.len()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed > 0
    }

    fn summary(&self) -> String {
        format!(
            "{} passed, {} failed, {} with advice, {} not shown; {} requests in {:.1} s, --seed {}",
            self.passed, self.failed, self.advised, self.not_shown, self.requests, self.seconds, self.seed
        )
    }
}

/// Requires that each file's name tells its format, and that it has a folder: that is said before
/// anything is sent.
pub(super) fn check_outputs(paths: &[PathBuf]) -> Result<(), Problem> {
    for path in paths {
        format_of(path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let exists = folder.unwrap_or(Path::new(".")).is_dir();
        checked(exists && !path.is_dir(), || {
            format!("--output {}: there is no such folder", path.display())
        })?;
    }
    Ok(())
}

fn format_of(path: &Path) -> Result<Format, Problem> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Ok(Format::Json),
        Some("xml") => Ok(Format::Junit),
        Some("html" | "htm") => Ok(Format::Html),
        _ => Err(Problem::usage(format!("--output {}: name it .json, .xml or .html", path.display()))),
    }
}

/// Writes a report to a file.
pub(super) fn write(report: &Report, path: &Path) -> Result<(), Problem> {
    let text = render(report, format_of(path)?)?;
    std::fs::write(path, text)
        .map_err(|error| Problem::usage(format!("--output {}: cannot be written: {error}", path.display())))
}

/// Prints a report.
pub(super) fn print(report: &Report, format: Format) -> Result<(), Problem> {
    let text = render(report, format)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", text.trim_end())?;
    Ok(stdout.flush()?)
}

fn render(report: &Report, format: Format) -> Result<String, Problem> {
    let failed =
        |error: &dyn std::fmt::Display| Problem::Refused(format!("the report cannot be written: {error}"));
    match format {
        Format::Json => serde_json::to_string_pretty(report).map_err(|error| failed(&error)),
        Format::Junit => junit::render(report).map_err(|error| failed(&error)),
        Format::Html | Format::Terminal => html::render(report).map_err(|error| failed(&error)),
    }
}
