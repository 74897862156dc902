//! `completions`: for a shell.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::args::{Cli, Global};
use crate::audit;
use crate::failure::Failure;
use crate::output::Output;

/// Writes completions for a shell to stdout.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self, _global: &Global) -> Result<(), Failure> {
        let mut script = Vec::new();
        // The arguments of `audit` are its own: see `args::Command`.
        let mut command = Cli::command().mut_subcommand("audit", |_| audit::command());
        clap_complete::generate(self.shell, &mut command, "nevertwice", &mut script);
        Output { json: false }.line(&String::from_utf8_lossy(&script))
    }
}
