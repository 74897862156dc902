//! The operators' command of nevertwice, as a library: `main` only calls [`main`].
//!
//! [`args`] has the arguments, [`commands`] one file for each command, [`session`] the store that
//! they work on; `audit` needs none.

pub mod args;
mod audit;
pub mod commands;
mod confirm;
pub mod failure;
mod journal;
mod output;
mod redact;
mod select;
pub mod session;
mod view;
mod walk;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::failure::Failure;

/// Parses the arguments of the process, runs the command, and returns its exit code.
pub fn main() -> ExitCode {
    if let Some(code) = audit::asked(std::env::args_os()) {
        return code;
    }
    match Cli::try_parse() {
        Ok(cli) => {
            let ended = runtime().and_then(|runtime| runtime.block_on(commands::run(cli)));
            match ended {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => failure.report(),
            }
        }
        // Help and the version are not errors.
        Err(shown) if !shown.use_stderr() => {
            let _ = shown.print();
            ExitCode::SUCCESS
        }
        // A URL that stands where none belongs must not be repeated with its password.
        Err(error) => Failure::Usage(error.render().to_string()).report(),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.map_err(|error| Failure::Refused(format!("no runtime: {error}")))
}
