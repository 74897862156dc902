//! The report for CI systems.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report as Junit, SerializeError, TestCase, TestCaseStatus, TestSuite};

use super::{CheckReport, Report};
use crate::audit::check::Outcome;

pub(super) fn render(report: &Report) -> Result<String, SerializeError> {
    let mut suite = TestSuite::new(format!("{} {}", report.method, report.url));
    suite.set_time(Duration::from_secs_f64(report.seconds));
    suite.add_test_cases(report.checks.iter().map(case));
    let mut junit = Junit::new("nevertwice audit");
    junit.add_test_suite(suite);
    junit.to_string()
}

fn case(check: &CheckReport) -> TestCase {
    let because = check.verdict.because.as_str();
    let mut status = match check.verdict.outcome {
        Outcome::Pass | Outcome::Advice => TestCaseStatus::success(),
        Outcome::NotShown => TestCaseStatus::skipped(),
        Outcome::Fail => TestCaseStatus::non_success(NonSuccessKind::Failure),
    };
    if check.verdict.outcome == Outcome::Fail {
        status.set_description(evidence(check));
    }
    if matches!(check.verdict.outcome, Outcome::Fail | Outcome::NotShown) {
        status.set_message(because);
    }
    let mut case = TestCase::new(check.about.name, status);
    case.set_classname("nevertwice.audit");
    let last = check.runs.iter().flat_map(|run| run.events.last()).map(|event| event.to_ms.max(0.0) / 1000.0);
    case.set_time(Duration::from_secs_f64(last.sum()));
    case.set_system_out(format!("{}: {because}", check.verdict.outcome.name()));
    case
}

fn evidence(check: &CheckReport) -> String {
    let mut text =
        format!("{}\nexpected: {}\nsource: {}\n", check.verdict.because, check.about.says, check.sources());
    for event in check.worst().map(|run| &*run.events).unwrap_or_default() {
        let line =
            format!("{:.0} - {:.0} ms  {}: {}\n", event.from_ms, event.to_ms, event.label, event.result);
        text.push_str(&line);
    }
    text
}
