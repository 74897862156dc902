//! `nevertwice audit`: the auditor of any HTTP API's idempotency, from outside.
//!
//! [`check`] has the kinds of claims and outcomes, [`checks`] the checks themselves, [`probe`] what
//! they act with, [`wire`] the connections, [`report`] the reports.

mod answer;
mod args;
mod baseline;
mod check;
mod checks;
mod command;
mod cost;
mod curl;
mod effects;
mod evidence;
mod payload;
mod probe;
mod report;
mod secrets;
mod wire;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use http::HeaderName;
use tokio::time::timeout_at;
use uuid::Uuid;

use self::args::{Args, Format};
use self::check::{About, Check, Outcome, Step, Verdict};
use self::effects::Counter;
use self::payload::RequestSpec;
use self::probe::{Probe, RunState, Settings};
use self::report::{CheckReport, Report, Run};
use self::secrets::Secrets;
use self::wire::Endpoint;
use crate::failure::Failure as Problem;

/// The arguments, apart from those of the other commands, whose `--json` means another thing.
#[derive(Debug, Parser)]
#[command(name = "nevertwice audit", bin_name = "nevertwice audit", version, max_term_width = 100)]
struct Audit {
    #[command(flatten)]
    args: Args,
}

/// Returns the command for completions, in place of the one that the other commands list.
pub(crate) fn command() -> clap::Command {
    let listed = crate::args::Cli::command();
    let about = listed.find_subcommand("audit").and_then(|audit| audit.get_about()).cloned();
    let command = Audit::command().name("audit").bin_name("nevertwice audit");
    match about {
        Some(about) => command.about(about),
        None => command,
    }
}

/// Runs an audit if the arguments of the process ask for one, and returns its exit code.
pub(crate) fn asked(arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let arguments: Vec<_> = arguments.skip(1).collect();
    if arguments.first()? != "audit" {
        return None;
    }
    Some(match Audit::try_parse_from(arguments) {
        Ok(audit) => {
            let ended = crate::runtime().and_then(|runtime| runtime.block_on(run(audit.args)));
            ended.unwrap_or_else(|problem| problem.report())
        }
        Err(shown) if !shown.use_stderr() => {
            let _ = shown.print();
            ExitCode::SUCCESS
        }
        Err(error) => Problem::Usage(error.render().to_string()).report(),
    })
}

impl Problem {
    fn usage(text: impl Into<String>) -> Problem {
        Problem::Usage(text.into())
    }

    fn unreachable(text: impl Into<String>) -> Problem {
        Problem::Unreachable(text.into())
    }

    fn refused(host: &str) -> Problem {
        Problem::Refused(format!(
            "{host} is not this machine. An audit causes real effects: if you may test it, say --i-may-test {host}"
        ))
    }
}

/// Returns a problem of usage unless the condition holds.
fn checked(holds: bool, text: impl FnOnce() -> String) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err(Problem::Usage(text())) }
}

async fn run(args: Args) -> Result<ExitCode, Problem> {
    let checks = chosen(&args)?;
    if args.list {
        report::terminal::list(&checks.iter().map(|check| check.about()).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    report::check_outputs(&args.output)?;
    let probe = prepare(&args).await?;
    let preflight = baseline::take(&probe).await?;
    let live = args.report == Format::Terminal;
    let mut report = Report::new(&probe, args.repeat, preflight);
    let mut written = Written::default();
    if live {
        written.keep(report::terminal::head(&report));
    }
    for check in checks {
        let checked = run_check(check.as_ref(), &probe, args.repeat, args.strict).await;
        if live {
            written.keep(report::terminal::check(&checked));
        }
        report.checks.push(checked);
    }
    report.finish(&probe, args.requests_per_day.zip(args.duplicate_rate.map(|rate| rate.0)));
    match args.report {
        Format::Terminal => written.keep(report::terminal::summary(&report)),
        format => written.keep(report::print(&report, format)),
    }
    for path in &args.output {
        written.keep(report::write(&report, path));
    }
    Ok(written.code(&report))
}

/// The exit code if no check could show anything.
const NOTHING_SHOWN: u8 = 5;

/// The problems of writing reports, which neither end an audit nor hide its verdict.
#[derive(Debug, Default)]
struct Written {
    problems: Vec<Problem>,
}

impl Written {
    fn keep(&mut self, result: Result<(), impl Into<Problem>>) {
        match result.map_err(Into::into) {
            // The reader has gone: files and the exit code still tell the verdict.
            Ok(()) | Err(Problem::NoReader) => {}
            Err(problem) => self.problems.push(problem),
        }
    }

    /// Reports the problems, and returns the exit code.
    fn code(&self, report: &Report) -> ExitCode {
        let codes: Vec<_> = self.problems.iter().map(Problem::report).collect();
        if report.has_failed() {
            return ExitCode::from(1);
        }
        let verdict = if report.has_shown() { ExitCode::SUCCESS } else { ExitCode::from(NOTHING_SHOWN) };
        codes.first().copied().unwrap_or(verdict)
    }
}

/// Returns the checks that `--only` and `--skip` leave.
fn chosen(args: &Args) -> Result<Vec<Box<dyn Check>>, Problem> {
    let all = check::all();
    let names: Vec<_> = all.iter().map(|check| check.about().name).collect();
    for name in args.only.iter().chain(&args.skip) {
        checked(names.contains(&name.as_str()), || {
            format!("there is no check {name:?}; there are {}", names.join(", "))
        })?;
    }
    let is_chosen = |about: About| {
        let name = about.name.to_owned();
        (args.only.is_empty() || args.only.contains(&name)) && !args.skip.contains(&name)
    };
    let chosen: Vec<_> = all.into_iter().filter(|check| is_chosen(check.about())).collect();
    checked(!chosen.is_empty(), || "no check is left by --only and --skip".to_owned())?;
    Ok(chosen)
}

async fn prepare(args: &Args) -> Result<Probe, Problem> {
    let spec = RequestSpec::of(args)?;
    let other_headers = payload::headers(&args.other_header)?;
    let fail_headers = payload::headers(&args.fail_header)?;
    let slow_headers = payload::headers(&args.slow_header)?;
    let replay_header = args.replay_header.as_ref().map(|name| name.parse::<HeaderName>()).transpose();
    let replay_header =
        replay_header.map_err(|_| Problem::usage("--replay-header: that is no name of a header"))?;
    if let Some(pointer) = &args.id_pointer {
        checked(pointer.starts_with('/'), || "--id-pointer: a JSON pointer begins with /".to_owned())?;
    }
    let millis = |millis: u32| Duration::from_millis(millis.into());
    let timeout = millis(args.timeout_ms);
    let endpoint = Endpoint::of(&spec.url, &args.i_may_test, args.ca_cert.as_deref(), timeout).await?;
    let counter = Counter::of(args).await?;
    let mut secrets = Secrets::named(&args.secret, spec.key_header.as_str());
    secrets.learn_message(&spec.message("unique", &[], payload::Payload::Described, &[])?);
    secrets.learn_message(&spec.message("unique", &[], payload::Payload::Other, &[])?);
    for headers in [&other_headers, &fail_headers, &slow_headers] {
        secrets.learn_message(&spec.message("unique", &[], payload::Payload::None, headers)?);
    }
    if let Some(message) = counter.as_ref().and_then(Counter::message) {
        secrets.learn_message(message);
    }
    let settings = Settings {
        // Short enough to be typed.
        seed: args.seed.unwrap_or_else(|| u64::from(Uuid::new_v4().as_fields().0)),
        copies: args.copies,
        max_requests: args.max_requests,
        max_time: Duration::from_secs(args.max_seconds.into()),
        timeout,
        patience: millis(args.patience_ms),
        settle: millis(args.settle_ms),
        pause: millis(args.pause_ms),
        id_pointer: args.id_pointer.clone(),
        replay_header,
        other_headers,
        fail_headers,
        slow_headers,
        kill_cmd: args.kill_cmd.clone(),
        start_cmd: args.start_cmd.clone(),
    };
    Ok(Probe {
        endpoint,
        spec,
        secrets,
        counter,
        settings,
        baseline: Default::default(),
        run: RunState::new(),
    })
}

/// Runs a check as often as asked, or until it fails or the budget is used up.
async fn run_check(check: &dyn Check, probe: &Probe, repeat: u32, strict: bool) -> CheckReport {
    let about = check.about();
    let mut runs = Vec::new();
    for number in 1..=repeat {
        if number > 1 && probe.has_budget().is_err() {
            break;
        }
        probe.begin(format!("{}/{number}", about.name));
        let mut verdict = run_once(check, probe).await.unwrap_or_else(|verdict| verdict);
        if strict && verdict.outcome == Outcome::Advice {
            verdict.outcome = Outcome::Fail;
        }
        verdict.because = probe.secrets.hide_line(&verdict.because);
        let failed = verdict.outcome == Outcome::Fail;
        runs.push(Run { verdict, events: probe.take_events() });
        if failed {
            break;
        }
    }
    CheckReport::of(about, runs)
}

/// Runs a check within the time that is left, and leaves no service dead.
async fn run_once(check: &dyn Check, probe: &Probe) -> Step<Verdict> {
    if probe.run.down.get() {
        return Ok(Verdict::not_shown("the service had ended before"));
    }
    probe.has_budget()?;
    let ended = timeout_at(probe.deadline(), check.run(probe)).await;
    checks::failures::revive(probe).await?;
    ended.unwrap_or_else(|_| Err(probe.time_is_over()))
}
