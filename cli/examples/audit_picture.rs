//! Makes docs/audit.svg: the output of `nevertwice audit` on a service that checks, then runs.
//!
//! ```text
//! cargo build -p nevertwice-cli && cargo run -p nevertwice-cli --example audit_picture > docs/audit.svg
//! ```
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program talks to its terminal")]

#[path = "../tests/support/target.rs"]
mod target;

use std::error::Error;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anstyle_svg::{Term, WIN10_CONSOLE};
use tokio::net::TcpListener;
use tokio::process::Command;

use self::target::{Fault, Target};

/// The widest line of the picture, in characters.
const WIDTH: usize = 112;

#[tokio::main]
async fn main() -> ExitCode {
    match picture().await {
        Ok(svg) => {
            println!("{}", svg.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("audit_picture: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn picture() -> Result<String, Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:3000").await?;
    let target = Target::new(Fault::ChecksThenRuns, Duration::from_millis(60), None);
    tokio::spawn(axum::serve(listener, target.router()).into_future());
    // The command beside the folder of the examples.
    let program = std::env::current_exe()?;
    let program = program.ancestors().nth(2).ok_or("no folder of programs")?.join("nevertwice");
    let mut audit = Command::new(program);
    audit.args([
        "audit",
        "POST",
        "http://localhost:3000/pay",
        "--json",
        r#"{"amount": 4200}"#,
        "--seed",
        "1",
    ]);
    audit.args(["--header", "Authorization: Bearer alice", "--other-header", "Authorization: Bearer bob"]);
    audit.args(["--fail-header", "X-Fail: 1", "--count-url", "http://localhost:3000/count"]);
    audit.args(["--count-pointer", "/total", "--requests-per-day", "1000000", "--duplicate-rate", "0.001%"]);
    audit.env("CLICOLOR_FORCE", "1").stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = audit.output().await?;
    let mut text =
        "$ nevertwice audit POST http://localhost:3000/pay --json '{\"amount\": 4200}' ..\n".to_owned();
    text.push_str(&shortened(&String::from_utf8(output.stdout)?));
    let svg = Term::new().palette(WIN10_CONSOLE).min_width_px(800).render_svg(&text);
    // Dimmed text of the terminal would be too faint in a page.
    Ok(svg.replace("opacity: 0.4", "opacity: 0.75"))
}

/// Cuts wide lines, and leaves out all copies but three.
fn shortened(text: &str) -> String {
    let shown = text
        .lines()
        .filter(|line| !["copy 4:", "copy 5:", "copy 6:", "copy 7:"].iter().any(|copy| line.contains(copy)));
    let cut = |line: &str| match line.char_indices().nth(WIDTH) {
        Some((at, _)) => format!("{}..\u{1b}[0m", &line[..at]),
        None => line.to_owned(),
    };
    shown.map(cut).collect::<Vec<_>>().join("\n")
}
