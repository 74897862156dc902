//! The question before a change: [`confirm`].

use std::io::{BufRead, IsTerminal, Write};

use crate::failure::Failure;

/// Asks on the terminal, unless the operator said `--yes`. Refuses where there is no terminal, or
/// none that would show the question: stderr, which has the account of changes, may be a file.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let asked = match (std::io::stderr().is_terminal(), std::io::stdout().is_terminal()) {
        _ if !std::io::stdin().is_terminal() => false,
        (true, _) => write!(std::io::stderr(), "{question} [y/N] ").is_ok(),
        (_, true) => {
            let mut out = std::io::stdout().lock();
            write!(out, "{question} [y/N] ").and_then(|()| out.flush()).is_ok()
        }
        (false, false) => false,
    };
    if !asked {
        return Err(Failure::Refused(format!(
            "{question} Nothing was changed: without a terminal to ask on, confirm with --yes"
        )));
    }
    let mut answer = String::new();
    // An answer that cannot be read is a no.
    let _ = std::io::stdin().lock().read_line(&mut answer);
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::Refused("nothing was changed".to_owned()))
}
