//! The example `agent_tools`, killed at each of its steps, and asked for nonsense.

#[path = "../../../tests/support/children.rs"]
mod children;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};
use std::thread;

use children::Deadline;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_agent_tools");
const SCRIPT: &str = include_str!("../script.json");
/// The agents at a time: most of the time they wait for a lease to run out.
const AT_ONCE: u32 = 4;

/// A folder with the store, the transcript and the ledgers.
struct Site(TempDir);

impl Site {
    fn new() -> Site {
        let site = Site(tempfile::tempdir().unwrap());
        site.write("script.json", SCRIPT);
        site
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).unwrap_or_default()
    }

    fn agent(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.current_dir(self.0.path()).args(["--script", "script.json", "--lease-ms", "2000"]).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        children::output(&mut self.agent(args))
    }

    /// Kills an agent, as `kill -9` does, at its step. Returns the step's name, or `None` if the
    /// conversation has fewer steps.
    fn kill_at(&self, step: u32) -> Option<String> {
        let mut command = self.agent(&["--stop-at", &step.to_string()]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let deadline = Deadline::of(&child);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let name = lines.find_map(|line| Some(line.strip_prefix("stops at step ")?.to_owned()));
        if name.is_some() {
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        drop(deadline);
        assert!(name.is_some() || status.success(), "step {step}: {status}");
        name
    }

    /// The number of mails and of transfers.
    fn effects(&self) -> (usize, usize) {
        (self.read("mail.tsv").lines().count(), self.read("transfers.tsv").lines().count())
    }
}

fn text(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    format!("{}\n{out}{err}", output.status)
}

/// Kills an agent at a step, and starts it again until the conversation has ended. Returns the call
/// that was left to an operator, if any.
fn continue_after(site: &Site, killed: &str) -> Option<String> {
    let mut unresolved = None;
    loop {
        let before = site.effects();
        let output = site.run(&[]);
        let told = text(&output);
        if output.status.success() {
            assert!(told.contains("Ada has got two refunds and two mails."), "{killed}: {told}");
            return unresolved;
        }
        // Once, and then the operator has settled it.
        assert!(unresolved.is_none() && told.contains("may have had its effect"), "{killed}: {told}");
        let call = told.split("call ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        // The operator looks at the mail server.
        let earlier = usize::from(call != "1.1");
        let outcome = if before.0 > earlier { "done" } else { "rerun" };
        let settled = site.run(&["--resolve", &format!("{call}={outcome}")]);
        assert!(settled.status.success(), "{killed}: {}", text(&settled));
        unresolved = Some(call);
    }
}

#[test]
fn an_agent_killed_at_every_step_has_each_effect_once_or_reports_it() {
    let mut reported = 0;
    let mut ended = false;
    let mut first = 1;
    while !ended {
        let steps = first..first + AT_ONCE;
        let killed: Vec<_> = thread::scope(|scope| {
            let kill = |step| {
                let site = Site::new();
                let name = site.kill_at(step)?;
                let call = continue_after(&site, &name);
                // The model asked for the same mail and the same transfer in two turns.
                assert_eq!(site.effects(), (2, 2), "{name}");
                // Only a mail killed between its mark and its outcome is left to an operator.
                let unclear = call.is_some();
                assert!(!unclear || name.contains("the effect"), "{name}: {call:?}");
                assert!(text(&site.run(&[])).contains("Ada has got"), "{name}: everything is replayed");
                assert_eq!(site.effects(), (2, 2), "{name}");
                Some(unclear)
            };
            let threads: Vec<_> = steps.map(|step| scope.spawn(move || kill(step))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        reported += killed.iter().filter(|unclear| **unclear == Some(true)).count();
        ended = killed.contains(&None);
        first += AT_ONCE;
        assert!(first < 100, "the conversation does not end");
    }
    // Two mails, each killed at the mark and behind the effect.
    assert_eq!(reported, 4);
    assert!(first > 20, "the agent stopped at few steps");
}

#[test]
fn a_reply_that_was_half_logged_is_asked_for_again() {
    let site = Site::new();
    // Killed while it wrote: the model replies anew, and nothing was executed.
    site.write("conversation.jsonl", r#"{"calls":[{"tool":"transfer","arguments":{"to":"mallory","cen"#);
    assert!(site.run(&[]).status.success());
    assert_eq!(site.effects(), (2, 2));
    assert_eq!(site.read("conversation.jsonl").lines().count(), 4);
    assert!(!site.read("transfers.tsv").contains("mallory"));
}

#[test]
fn another_call_at_the_same_place_is_refused_and_not_executed() {
    let site = Site::new();
    assert!(site.run(&[]).status.success());
    let books = (site.read("mail.tsv"), site.read("transfers.tsv"));
    // The log is lost, and the model asks for more money, for another tool, or in another order.
    for (was, is) in [
        (r#""cents": 4200"#, r#""cents": 4201"#),
        (r#""to": "ada""#, r#""to": "bob""#),
        (
            r#""tool": "send_mail", "arguments": { "to": "ada@example.com", "subject": "Your refund" }"#,
            ONE_CENT,
        ),
    ] {
        fs::remove_file(site.0.path().join("conversation.jsonl")).unwrap();
        site.write("script.json", &SCRIPT.replacen(was, is, 1));
        let told = text(&site.run(&[]));
        assert!(told.starts_with("exit status: 1") && told.contains("and was refused"), "{told}");
        assert_eq!((site.read("mail.tsv"), site.read("transfers.tsv")), books);
    }
    // The same calls written differently are the same, and another conversation is another one.
    fs::remove_file(site.0.path().join("conversation.jsonl")).unwrap();
    site.write("script.json", &SCRIPT.replace(r#""to": "ada", "cents": 4200"#, r#""cents":4200,"to":"ada""#));
    assert!(site.run(&[]).status.success());
    assert_eq!((site.read("mail.tsv"), site.read("transfers.tsv")), books);
    let other = site.run(&["--conversation", "refund-8", "--transcript", "8.jsonl"]);
    assert!(other.status.success(), "{}", text(&other));
    assert_eq!(site.effects(), (4, 4));
}

const ONE_CENT: &str = r#""tool": "transfer", "arguments": { "to": "ada", "cents": 1 }"#;

#[test]
fn nonsense_of_the_model_has_no_effect_and_is_told_to_it() {
    let site = Site::new();
    let calls = [
        r#"{ "tool": "send_mail", "arguments": { "to": "a@b.c\r\nBcc: all@b.c", "subject": "x" } }"#,
        r#"{ "tool": "transfer", "arguments": { "to": "ada", "cents": -1 } }"#,
        r#"{ "tool": "transfer", "arguments": { "to": "ada", "cents": 0 } }"#,
        r#"{ "tool": "transfer", "arguments": { "to": "ada", "cents": 18446744073709551615 } }"#,
        r#"{ "tool": "transfer", "arguments": { "to": "ada", "cents": 1, "fee": 1 } }"#,
        r#"{ "tool": "transfer", "arguments": [] }"#,
        r#"{ "tool": "", "arguments": null }"#,
    ];
    site.write("script.json", &format!(r#"[{{ "calls": [{}] }}, {{ "say": "sorry" }}]"#, calls.join(",")));
    for _ in 0..2 {
        let told = text(&site.run(&[]));
        assert!(told.starts_with("exit status: 0") && told.contains("sorry"), "{told}");
        assert_eq!(told.matches(": error: ").count(), calls.len(), "{told}");
        assert_eq!(site.effects(), (0, 0));
    }
}

#[test]
fn what_cannot_work_is_an_error_that_says_so_and_executes_nothing() {
    let site = Site::new();
    site.write("empty.json", "[]");
    site.write("notes.txt", &"these are notes, and no database\n".repeat(200));
    for (args, says) in [
        (["--script", "none.json"], "cannot read none.json:"),
        (["--script", "notes.txt"], "notes.txt is no script:"),
        (["--script", "empty.json"], "the script has no reply for turn 1"),
        (["--transcript", "notes.txt"], "notes.txt, line 1, is no reply:"),
        (["--transcript", "."], "cannot open .:"),
        (["--store", "notes.txt"], "cannot open the store notes.txt:"),
        (["--conversation", ""], "scope is empty"),
        (["--lease-ms", "0"], "lease must not be 0"),
        (["--resolve", "1.1"], "TURN.POSITION=done or"),
        (["--resolve", "1.1=maybe"], "the outcome is done or rerun"),
        (["--resolve", "1.1=done"], "there was no call 1.1"),
    ] {
        let mut command = Command::new(BINARY);
        command.current_dir(site.0.path());
        if args[0] != "--script" {
            command.args(["--script", "script.json"]);
        }
        let told = text(&children::output(command.args(args)));
        assert!(!told.starts_with("exit status: 0") && told.contains(says), "{args:?}: {told}");
        assert!(!told.contains("panicked"), "{args:?}: {told}");
    }
    assert_eq!(site.effects(), (0, 0));
    assert_eq!(site.read("notes.txt").lines().count(), 200);
}
