//! `watch`: a screen of rates and of what is unresolved.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;

use super::stats::Figures;
use crate::args::{Global, duration};
use crate::failure::Failure;
use crate::output::Output;
use crate::session::{Access, Session};

/// Clears the terminal and moves to its start.
const CLEAR: &str = "\u{1b}[H\u{1b}[2J";

/// Shows rates and what is unresolved, again and again, until it is interrupted. Each time it reads
/// the whole store.
#[derive(Debug, Args)]
pub struct Watch {
    /// Shows them once
    #[arg(long)]
    once: bool,
    /// The pause between two readings
    #[arg(long, default_value = "5s", value_parser = duration, value_name = "TIME")]
    every: Duration,
    /// The number of scopes to show
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=1000))]
    scopes: u32,
}

impl Watch {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let session = Session::open(global, Access::Read).await?;
        let output = Output { json: global.json };
        loop {
            let read = Figures::read(&session, self.scopes as usize).await;
            let is_screen = !self.once && !output.json && std::io::stdout().is_terminal();
            match read {
                Ok(figures) if output.json => output.json(&figures)?,
                Ok(figures) => {
                    if is_screen {
                        output.line(CLEAR)?;
                    }
                    output.heading("nevertwice watch")?;
                    figures.show(output)?;
                }
                // A screen outlives a store that is away for a while.
                Err(error @ Failure::Unreachable(_)) if is_screen => {
                    output.line(&format!("{CLEAR}{error}"))?
                }
                Err(error) => return Err(error),
            }
            if self.once {
                return Ok(());
            }
            tokio::time::sleep(self.every.max(Duration::from_millis(100))).await;
        }
    }
}
