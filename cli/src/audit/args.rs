//! The arguments of `nevertwice audit`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args as ClapArgs, ValueEnum};

/// Tests from outside how an HTTP API handles idempotency keys
///
/// It sends the described request, repeats, doubles and interrupts it, and reports check by check
/// with the evidence. It needs no access to the service, which may be written in any language.
/// EFFECTS REALLY HAPPEN: run it against a test environment.
///
/// Exit codes: 0 no check failed, 1 a check failed, 2 wrong usage or a request that the service
/// does not accept, 3 the service cannot be reached, 4 the host is not local and not named by
/// --i-may-test, 5 no check could show anything.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// The method and the address of the request; the method may be left out
    #[arg(value_names = ["METHOD", "URL"], num_args = 0..=2)]
    pub(super) what: Vec<String>,

    /// A header of the request, 'Name: value'
    #[arg(short = 'H', long, value_name = "HEADER")]
    pub(super) header: Vec<String>,

    /// A JSON body
    #[arg(long, value_name = "JSON", group = "body", help_heading = "Request")]
    pub(super) json: Option<String>,

    /// A field of a form, key=value
    #[arg(long, value_name = "FIELD", group = "body", help_heading = "Request")]
    pub(super) form: Vec<String>,

    /// A body as it is, or @FILE
    #[arg(short = 'd', long, value_name = "DATA", group = "body", help_heading = "Request")]
    pub(super) data: Option<String>,

    /// A line of curl, whole and in quotes, instead of the above
    #[arg(long, value_name = "LINE", conflicts_with_all = ["what", "header", "body"], help_heading = "Request")]
    pub(super) curl: Option<String>,

    /// Another valid body, or @FILE, for a key that is used twice. Default: the body with a number
    /// or a text changed
    #[arg(long, value_name = "DATA", help_heading = "Request")]
    pub(super) other_data: Option<String>,

    /// The header that carries the key
    #[arg(long, value_name = "NAME", default_value = "Idempotency-Key", help_heading = "Request")]
    pub(super) key_header: String,

    /// A certificate to trust beside the system's, as PEM
    #[arg(long, value_name = "FILE", help_heading = "Request")]
    pub(super) ca_cert: Option<PathBuf>,

    /// A host that you may test, if it is not this machine
    #[arg(long, value_name = "HOST", help_heading = "Safety")]
    pub(super) i_may_test: Vec<String>,

    /// The most requests that are sent
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000), help_heading = "Safety")]
    pub(super) max_requests: u32,

    /// The most time that all of it takes, in seconds
    #[arg(long, value_name = "S", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=86_400), help_heading = "Safety")]
    pub(super) max_seconds: u32,

    /// The time that an answer may take, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=600_000), help_heading = "Safety")]
    pub(super) timeout_ms: u32,

    /// The time for which an operation that was interrupted is repeated until it is answered, in
    /// milliseconds
    #[arg(long, value_name = "MS", default_value_t = 15_000, value_parser = clap::value_parser!(u32).range(1..=600_000), help_heading = "Safety")]
    pub(super) patience_ms: u32,

    /// The pause before each request, in milliseconds, for services that limit the rate
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=60_000), help_heading = "Safety")]
    pub(super) pause_ms: u32,

    /// Another name of a header, field or parameter whose value is hidden in reports
    #[arg(long, value_name = "NAME", help_heading = "Safety")]
    pub(super) secret: Vec<String>,

    /// A command that prints the number of effects, such as "psql -tA -c 'select count(*) from
    /// payments'"
    #[arg(long, value_name = "COMMAND", group = "count", help_heading = "Effects")]
    pub(super) count_cmd: Option<String>,

    /// An address that tells the number of effects
    #[arg(long, value_name = "URL", group = "count", help_heading = "Effects")]
    pub(super) count_url: Option<String>,

    /// The place of the number in the answer of --count-url, as a JSON pointer; a list counts its
    /// members
    #[arg(
        long,
        value_name = "POINTER",
        requires = "count_url",
        default_value = "",
        hide_default_value = true,
        help_heading = "Effects"
    )]
    pub(super) count_pointer: String,

    /// A header for --count-url
    #[arg(long, value_name = "HEADER", requires = "count_url", help_heading = "Effects")]
    pub(super) count_header: Vec<String>,

    /// The place of the effect's id in the answers, as a JSON pointer
    #[arg(long, value_name = "POINTER", help_heading = "Effects")]
    pub(super) id_pointer: Option<String>,

    /// The time that an effect may take to be counted, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 150, value_parser = clap::value_parser!(u32).range(0..=60_000), help_heading = "Effects")]
    pub(super) settle_ms: u32,

    /// Headers of another caller, in place of those of the same names
    #[arg(long, value_name = "HEADER", help_heading = "Checks that need more")]
    pub(super) other_header: Vec<String>,

    /// A header that makes a first try fail, if the service has such a test hook
    #[arg(long, value_name = "HEADER", help_heading = "Checks that need more")]
    pub(super) fail_header: Vec<String>,

    /// A header that makes the service slow, if it has such a test hook
    #[arg(long, value_name = "HEADER", help_heading = "Checks that need more")]
    pub(super) slow_header: Vec<String>,

    /// A command that kills the service at once, as kill -9 does
    #[arg(long, value_name = "COMMAND", requires = "start_cmd", help_heading = "Checks that need more")]
    pub(super) kill_cmd: Option<String>,

    /// A command that starts the service again; it may stay in the foreground
    #[arg(long, value_name = "COMMAND", requires = "kill_cmd", help_heading = "Checks that need more")]
    pub(super) start_cmd: Option<String>,

    /// The header that marks a replay, if it has an unusual name
    #[arg(long, value_name = "NAME", help_heading = "Checks that need more")]
    pub(super) replay_header: Option<String>,

    /// Runs these checks only
    #[arg(long, value_name = "CHECK", value_delimiter = ',', help_heading = "Choice")]
    pub(super) only: Vec<String>,

    /// Leaves these checks out
    #[arg(long, value_name = "CHECK", value_delimiter = ',', help_heading = "Choice")]
    pub(super) skip: Vec<String>,

    /// The seed of all keys. The same seed makes the same keys, which a service that has seen them
    /// answers with replays
    #[arg(long, value_name = "N", help_heading = "Choice")]
    pub(super) seed: Option<u64>,

    /// Runs each check this many times, with fresh keys
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Choice")]
    pub(super) repeat: u32,

    /// The number of copies that are sent at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=100), help_heading = "Choice")]
    pub(super) copies: u32,

    /// Treats advice as failure
    #[arg(long, help_heading = "Choice")]
    pub(super) strict: bool,

    /// Lists the checks with their sources, and sends nothing
    #[arg(long, help_heading = "Choice")]
    pub(super) list: bool,

    /// The report on the standard output
    #[arg(long, value_enum, default_value_t = Format::Terminal, value_name = "FORMAT", help_heading = "Report")]
    pub(super) report: Format,

    /// Writes the report to a file: .json, .xml (JUnit) or .html; repeatable
    #[arg(short = 'o', long, value_name = "FILE", help_heading = "Report")]
    pub(super) output: Vec<PathBuf>,

    /// Requests a day, to estimate the price of what was found
    #[arg(long, value_name = "N", requires = "duplicate_rate", help_heading = "Report")]
    pub(super) requests_per_day: Option<f64>,

    /// The part of the requests that is delivered more than once, such as 0.001% or 1e-5
    #[arg(long, value_name = "RATE", requires = "requests_per_day", help_heading = "Report")]
    pub(super) duplicate_rate: Option<Rate>,
}

/// A form of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people, with colours on a terminal
    Terminal,
    /// For programs
    Json,
    /// For CI systems
    Junit,
    /// One page with all evidence
    Html,
}

/// A part of a whole, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate(pub(super) f64);

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Rate, Self::Err> {
        let (number, unit) = match text.trim().strip_suffix('%') {
            Some(number) => (number, 100.0),
            None => (text, 1.0),
        };
        let rate = number.trim().parse::<f64>().map(|number| number / unit);
        match rate {
            Ok(rate) if (0.0..=1.0).contains(&rate) => Ok(Rate(rate)),
            Ok(_) | Err(_) => Err("a rate is a percentage such as 0.001%, or a part such as 1e-5"),
        }
    }
}
