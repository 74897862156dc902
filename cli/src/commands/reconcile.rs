//! `reconcile`: asks a program about each unresolved operation.

use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use nevertwice::{Body, Inspection, Need, RecordId};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::bulk::{Plan, SHOWN};
use super::change::{Consent, after};
use super::resolve::resolve;
use super::settle::OutcomeName;
use crate::args::{Global, duration};
use crate::failure::{Failure, or_no_reader};
use crate::journal::Journal;
use crate::output::Output;
use crate::select::{Matcher, Select};
use crate::session::Session;
use crate::view::{COLUMNS, View, reason, row};
use crate::walk::Unreadable;

/// The longest answer of a program, in bytes.
const MAX_ANSWER: u64 = 16 << 20;

/// Asks a program about each unresolved operation, by the key that it derives for the provider, and
/// settles what the program answers.
///
/// The program finds the operation in its environment: NEVERTWICE_KEY (the derived key),
/// NEVERTWICE_ID, NEVERTWICE_SCOPE, NEVERTWICE_REASON, NEVERTWICE_ATTEMPT and NEVERTWICE_FENCE. The
/// first line of its output is completed, failed, rerun or unknown, and what follows is the body:
/// an empty line for an empty one. An operation about which it fails, answers something else or
/// takes too long, or that changes meanwhile, is left as it is.
#[derive(Debug, Args)]
pub struct Reconcile {
    /// The program, as a command of the shell
    #[arg(long, value_name = "COMMAND")]
    cmd: String,
    /// The label that the application derives its downstream key for
    #[arg(long)]
    label: String,
    #[command(flatten)]
    select: Select,
    /// The time that the program may take for one operation
    #[arg(long, default_value = "60s", value_parser = duration, value_name = "TIME")]
    cmd_timeout: Duration,
    /// Asks about at most this many of those that the filters match: the first that are found
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    at_most: Option<u32>,
    #[command(flatten)]
    consent: Consent,
}

/// The counts of a run.
#[derive(Debug, Default)]
struct Counts {
    settled: u64,
    unknown: u64,
    refused: Vec<(RecordId, String)>,
    /// Ids whose record could not be read: they may need an operator too.
    unreadable: Unreadable,
}

impl Reconcile {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        if self.select.key.is_some() {
            return Err(Failure::Usage("one operation is settled by `resolve`".to_owned()));
        }
        let matcher = self.select.matcher()?;
        let matcher = Matcher { filter: matcher.filter.need(Need::Operator), ..matcher };
        let (session, mode) = (self.consent.open(global).await?, self.consent.mode(global));
        let at_most = self.at_most.map(|number| number as usize);
        // Of a dry run, too, each is asked about.
        let plan = Plan::whole(&session, at_most, |found| matcher.matches(&found.seen)).await?;
        let output = mode.output;
        let count = plan.count;
        if count == 0 && plan.unreadable.count == 0 {
            return Err(Failure::NothingFound("nothing is unresolved".to_owned()));
        }
        if !output.json && count > 0 {
            let rows = plan.operations.iter().take(SHOWN).map(|(id, seen)| row(id, seen)).collect();
            or_no_reader(output.table(&COLUMNS, rows))?;
        }
        if !mode.dry_run && count > 0 {
            mode.confirm(&format!("Ask the program about {count} operations, and settle them?"))?;
        }
        let mut counts = Counts { unreadable: plan.unreadable, ..Counts::default() };
        let journal = Journal::new("reconcile");
        for (id, seen) in &plan.operations {
            if let Err(lost) = self.settle(&session, &journal, id, seen, &mut counts, output).await {
                // The loss counts for more than a reader that has gone.
                let _ = counts.write(output, mode.dry_run);
                return Err(lost);
            }
        }
        counts.report(output, mode.dry_run)
    }

    async fn settle(
        &self,
        session: &Session,
        journal: &Journal,
        id: &RecordId,
        seen: &Inspection,
        counts: &mut Counts,
        output: Output,
    ) -> Result<(), Failure> {
        let (outcome, body) = match self.ask(session, id, seen).await {
            Ok(Some(answer)) => answer,
            Ok(None) => {
                counts.unknown += 1;
                return Ok(());
            }
            Err(error) => {
                counts.refused.push((*id, error));
                return Ok(());
            }
        };
        if self.consent.dry_run {
            counts.settled += 1;
            return match output.json {
                true => Ok(()),
                false => or_no_reader(output.line(&format!("{id}: the program says {}", name(outcome)))),
            };
        }
        match resolve(session, id, seen, outcome.with(Body::kept(body))).await {
            Ok(()) => {
                counts.settled += 1;
                let after = after(session, id).await;
                journal.write(&id.to_string(), &View::of(id, seen), &after);
                Ok(())
            }
            Err(Failure::Refused(why) | Failure::Corrupt(why)) => {
                counts.refused.push((*id, why));
                Ok(())
            }
            Err(lost) => {
                journal.unknown(&id.to_string(), &View::of(id, seen));
                Err(lost)
            }
        }
    }

    /// Runs the program. `None`: it does not know.
    async fn ask(
        &self,
        session: &Session,
        id: &RecordId,
        seen: &Inspection,
    ) -> Result<Option<(OutcomeName, Bytes)>, String> {
        let shell = if cfg!(windows) { ["cmd", "/C"] } else { ["sh", "-c"] };
        let mut command = Command::new(shell[0]);
        command.args([shell[1], &self.cmd]).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        // The URL of the store may hold a password.
        command.env_remove("NEVERTWICE_STORE");
        command.env("NEVERTWICE_KEY", session.engine.derive_key(id, &self.label));
        command.env("NEVERTWICE_ID", id.to_string()).env("NEVERTWICE_SCOPE", &seen.scope);
        command.env("NEVERTWICE_REASON", seen.reason().map_or("", reason));
        command.env("NEVERTWICE_ATTEMPT", seen.attempt.to_string());
        command.env("NEVERTWICE_FENCE", seen.fence.0.to_string());
        let answer = tokio::time::timeout(self.cmd_timeout, run(command)).await;
        let answer = answer.map_err(|_| "the program took too long".to_owned())??;
        parse(&answer)
    }
}

/// Runs a program until it ends, and returns its output.
async fn run(mut command: Command) -> Result<Vec<u8>, String> {
    #[cfg(unix)]
    command.process_group(0);
    let mut child = command.spawn().map_err(|error| format!("the program cannot be started: {error}"))?;
    let _group = Group(child.id());
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let read = stdout.take(MAX_ANSWER + 1).read_to_end(&mut answer).await;
        read.map_err(|error| format!("its answer cannot be read: {error}"))?;
    }
    if answer.len() as u64 > MAX_ANSWER {
        return Err(format!("its answer is longer than {MAX_ANSWER} bytes"));
    }
    let status = child.wait().await.map_err(|error| format!("the program is lost: {error}"))?;
    match status.success() {
        true => Ok(answer),
        false => Err(format!("the program failed: {status}")),
    }
}

/// A program and all that it started, which end when this is dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(group) = self.0.and_then(|id| rustix::process::Pid::from_raw(id.cast_signed())) {
            // There may be none left.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

/// Reads an answer. Nothing after the first line is no body, which is not taken for an empty one:
/// every duplicate would get it.
fn parse(answer: &[u8]) -> Result<Option<(OutcomeName, Bytes)>, String> {
    let end = answer.iter().position(|&byte| byte == b'\n');
    let (word, body) = match end {
        Some(end) => (&answer[..end], &answer[end + 1..]),
        None => (answer, &[][..]),
    };
    let word = String::from_utf8_lossy(word);
    if word.trim() == "unknown" {
        return Ok(None);
    }
    // The answer itself may be a response, so it is not repeated.
    let outcome = OutcomeName::from_str(word.trim(), false)
        .map_err(|_| "its first line is none of completed, failed, rerun and unknown".to_owned())?;
    if outcome == OutcomeName::Rerun && !body.iter().all(u8::is_ascii_whitespace) {
        return Err("a rerun has no body".to_owned());
    }
    if outcome != OutcomeName::Rerun && body.is_empty() {
        return Err(
            "it says no body: print it after the first line, or an empty line for an empty one".to_owned()
        );
    }
    let body = if [&b"\n"[..], b"\r\n"].contains(&body) { &body[..0] } else { body };
    Ok(Some((outcome, Bytes::copy_from_slice(body))))
}

fn name(outcome: OutcomeName) -> &'static str {
    match outcome {
        OutcomeName::Completed => "completed",
        OutcomeName::Failed => "failed",
        OutcomeName::Rerun => "rerun",
    }
}

impl Counts {
    /// Writes the counts, and returns the verdict, which does not depend on their reader.
    fn report(&self, output: Output, dry_run: bool) -> Result<(), Failure> {
        let written = self.write(output, dry_run);
        match (self.refused.len(), self.unreadable.count) {
            (0, 0) => or_no_reader(written),
            (left, 0) => Err(Failure::Refused(format!("{left} operations were left as they are"))),
            (left, unreadable) => Err(Failure::Refused(format!(
                "{left} operations were left as they are, and {unreadable} records cannot be read: see `check`"
            ))),
        }
    }

    fn write(&self, output: Output, dry_run: bool) -> Result<(), Failure> {
        let Counts { settled, unknown, refused, unreadable } = self;
        if output.json {
            let refused: Vec<_> =
                refused.iter().map(|(id, why)| json!({ "id": id.to_string(), "why": why })).collect();
            return output.json(&json!({
                "dry_run": dry_run, "settled": settled, "unknown": unknown, "refused": refused,
                "unreadable": unreadable.names(),
            }));
        }
        let note = if dry_run { " (dry run: nothing was changed)" } else { "" };
        output.line(&format!("{settled} settled, {unknown} unknown, {} left{note}", refused.len()))?;
        for (id, why) in refused {
            output.line(&format!("left: {id}: {why}"))?;
        }
        unreadable.show(output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_an_outcome_and_a_body() {
        let body = |text: &'static str| Bytes::from(text);
        assert_eq!(parse(b"completed\n{}\n"), Ok(Some((OutcomeName::Completed, body("{}\n")))));
        assert_eq!(parse(b"failed\n\n"), Ok(Some((OutcomeName::Failed, body("")))));
        assert_eq!(parse(b"failed\r\n\r\n"), Ok(Some((OutcomeName::Failed, body("")))));
        assert_eq!(parse(b"failed\n\n\n"), Ok(Some((OutcomeName::Failed, body("\n\n")))));
        assert_eq!(parse(b"rerun"), Ok(Some((OutcomeName::Rerun, body("")))));
        assert_eq!(parse(b"rerun\n\n"), Ok(Some((OutcomeName::Rerun, body("")))));
        assert_eq!(parse(b"unknown\n"), Ok(None));
        for wrong in [&b""[..], b"done\n", b"\xff", b"Completed", b"rerun\nx", b"completed", b"failed\n"] {
            assert!(parse(wrong).is_err());
        }
    }
}
