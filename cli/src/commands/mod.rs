//! The commands, one file each.

pub mod amend;
mod bulk;
mod change;
pub mod check;
pub mod completions;
pub mod derive_key;
pub mod export;
mod fitness;
pub mod forget;
pub mod import;
pub mod list;
pub mod purge;
pub mod reconcile;
pub mod resolve;
mod settle;
pub mod show;
pub mod stats;
pub mod unresolved;
pub mod watch;

use crate::args::{Cli, Command};
use crate::failure::Failure;

/// Runs a command.
///
/// # Errors
/// Any [`Failure`], whose exit code says what kind it is.
pub async fn run(Cli { global, command }: Cli) -> Result<(), Failure> {
    match command {
        Command::List(command) => command.run(&global).await,
        Command::Show(command) => command.run(&global).await,
        Command::Unresolved(command) => command.run(&global).await,
        Command::Stats(command) => command.run(&global).await,
        Command::Resolve(command) => command.run(&global).await,
        Command::Amend(command) => command.run(&global).await,
        Command::Forget(command) => command.run(&global).await,
        Command::Purge(command) => command.run(&global).await,
        Command::Reconcile(command) => command.run(&global).await,
        Command::DeriveKey(command) => command.run(&global),
        Command::Check(command) => command.run(&global).await,
        Command::Export(command) => command.run(&global).await,
        Command::Import(command) => command.run(&global).await,
        Command::Watch(command) => command.run(&global).await,
        // Its options are its own: it is found before these arguments are parsed.
        Command::Audit => {
            Err(Failure::Usage("`audit` must be the first argument: nevertwice audit ..".to_owned()))
        }
        Command::Completions(command) => command.run(&global),
    }
}
