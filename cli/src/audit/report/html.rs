//! The report as one page, with everything in it.

use askama::Template;

use super::timeline::Timeline;
use super::{CheckReport, Report, Run};
use crate::audit::check::Outcome;

pub(super) fn render(report: &Report) -> Result<String, askama::Error> {
    let mut checks: Vec<_> = report.checks.iter().collect();
    // The worst first; otherwise as they ran.
    checks.sort_by_key(|check| std::cmp::Reverse(check.verdict.outcome));
    Page { report, sections: checks.into_iter().map(Section::of).collect() }.render()
}

#[derive(Template)]
#[template(path = "audit.html")]
struct Page<'a> {
    report: &'a Report,
    sections: Vec<Section<'a>>,
}

struct Section<'a> {
    check: &'a CheckReport,
    runs: Vec<Case<'a>>,
}

impl Section<'_> {
    fn of(check: &CheckReport) -> Section<'_> {
        Section { check, runs: check.runs.iter().map(Case::of).collect() }
    }

    /// The class of an outcome.
    fn class(&self) -> &'static str {
        class(self.check.verdict.outcome)
    }
}

struct Case<'a> {
    run: &'a Run,
    /// Drawn for a run that failed.
    timeline: Option<Timeline>,
}

impl Case<'_> {
    fn of(run: &Run) -> Case<'_> {
        let drawn = run.verdict.outcome == Outcome::Fail && !run.events.is_empty();
        Case { run, timeline: drawn.then(|| Timeline::of(&run.events)) }
    }
}

fn class(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::NotShown => "not-shown",
        Outcome::Advice => "advice",
        Outcome::Fail => "fail",
    }
}
