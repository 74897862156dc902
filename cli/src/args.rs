//! The arguments: [`Cli`].

use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::commands::amend::Amend;
use crate::commands::check::Check;
use crate::commands::completions::Completions;
use crate::commands::derive_key::DeriveKey;
use crate::commands::export::Export;
use crate::commands::forget::Forget;
use crate::commands::import::Import;
use crate::commands::list::List;
use crate::commands::purge::Purge;
use crate::commands::reconcile::Reconcile;
use crate::commands::resolve::Resolve;
use crate::commands::show::Show;
use crate::commands::stats::Stats;
use crate::commands::unresolved::Unresolved;
use crate::commands::watch::Watch;

/// The end of every help text.
const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  nothing was found
  2  the arguments are wrong
  3  the store cannot be reached, is missing, or cannot be used
  4  refused, not confirmed, or ended early: see the message

Put passwords into NEVERTWICE_STORE, where other users do not see them; they are never shown.
Colours are used on a terminal only, and not if NO_COLOR is set.";

/// Looks at idempotency records, and settles, moves and checks them.
#[derive(Debug, Parser)]
#[command(name = "nevertwice", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// The options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The options of all commands.
#[derive(Args)]
pub struct Global {
    /// The store: sqlite:PATH, or [user[:password]@]host[:port][/database] after redis://,
    /// rediss:// or postgres://; redis+cluster://host,host.. with some nodes of a cluster, or
    /// redis+sentinel://host,host../service
    #[arg(long, global = true, env = "NEVERTWICE_STORE", hide_env_values = true, value_name = "URL")]
    pub store: Option<String>,
    /// The prefix of the names of a Redis store [default: nevertwice:]
    #[arg(long, global = true)]
    pub prefix: Option<String>,
    /// The number of replicas that must have each write to a Redis store before it counts as done,
    /// as in the application
    #[arg(long, global = true, default_value_t = 0, hide_default_value = true, value_name = "NUMBER")]
    pub replicas: u8,
    /// The table of a SQLite or PostgreSQL store: TABLE or SCHEMA.TABLE [default: nevertwice]
    #[arg(long, global = true)]
    pub table: Option<String>,
    /// Writes JSON for programs instead of tables
    #[arg(long, global = true)]
    pub json: bool,
    /// The longest time that a single call of the store may take
    #[arg(long, global = true, default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub timeout: Duration,
    /// The number of executions that the application allows, which decides if they are used up
    /// [default: no limit]
    #[arg(long, global = true, value_name = "NUMBER")]
    pub max_attempts: Option<u32>,
}

impl std::fmt::Debug for Global {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Leaves out the URL, which may hold a password.
        f.debug_struct("Global").field("json", &self.json).finish_non_exhaustive()
    }
}

/// The commands. Those that change something ask first, unless told `--yes`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Lists operations, page by page
    List(List),
    /// Shows one operation
    Show(Show),
    /// Lists what needs an operator, oldest first, and why
    Unresolved(Unresolved),
    /// Counts operations by state and scope, and measures them
    Stats(Stats),
    /// Settles unresolved operations
    Resolve(Resolve),
    /// Corrects an earlier resolution
    Amend(Amend),
    /// Removes records: the next begin of each executes
    Forget(Forget),
    /// Removes expired records
    Purge(Purge),
    /// Asks a program about each unresolved operation, and settles what it answers
    Reconcile(Reconcile),
    /// Derives the downstream key of an operation, to ask the provider
    DeriveKey(DeriveKey),
    /// Checks the store: its files or settings, and each record
    Check(Check),
    /// Writes all records as JSON Lines, contents included
    Export(Export),
    /// Reads records that `export` wrote
    Import(Import),
    /// Shows rates and what is unresolved, again and again
    Watch(Watch),
    /// Tests from outside how an HTTP API handles idempotency keys, whatever it is written in; see
    /// `nevertwice audit --help`
    Audit,
    /// Writes completions for a shell
    Completions(Completions),
}

/// Reads a time such as `90s`, `1h 30m` or `2days`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
