//! `nevertwice audit` on services with planted faults, on a good one, and on hostile ones.

#[path = "support/target.rs"]
mod target;

use std::future::pending;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use self::target::{Fault, NAMED, Target};

/// The time in which an audit must end.
const PATIENCE: Duration = Duration::from_secs(150);
/// The time that a payment takes.
const LATENCY: Duration = Duration::from_millis(60);

/// Starts a service in this process.
async fn start(fault: Fault) -> SocketAddr {
    start_slow(fault, LATENCY).await
}

/// Starts one whose payments take this time.
async fn start_slow(fault: Fault, latency: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, Target::new(fault, latency, None).router()).into_future());
    address
}

async fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nevertwice"));
    command.arg("audit").args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    timeout(PATIENCE, command.output()).await.expect("the audit ends").unwrap()
}

/// The arguments for a service of these tests.
fn arguments(address: SocketAddr) -> Vec<String> {
    let (url, count) = (format!("http://{address}/pay"), format!("http://{address}/count"));
    let list = [
        "POST",
        &url,
        "--header",
        "Authorization: Bearer alice-secret",
        "--other-header",
        "Authorization: Bearer bob-secret",
        "--json",
        r#"{"amount": 4200}"#,
        "--count-url",
        &count,
        "--count-pointer",
        "/total",
        "--id-pointer",
        "/id",
        "--fail-header",
        "X-Fail: 1",
        "--settle-ms",
        "50",
        "--patience-ms",
        "2000",
    ];
    list.map(str::to_owned).to_vec()
}

/// A report and the exit code.
struct Audited {
    code: i32,
    report: Value,
}

impl Audited {
    async fn of(address: SocketAddr, more: &[&str]) -> Audited {
        let base = arguments(address);
        let all: Vec<_> =
            base.iter().map(String::as_str).chain(["--report", "json"]).chain(more.iter().copied()).collect();
        let output = run(&all).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        let report =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"));
        Audited { code: output.status.code().unwrap(), report }
    }

    /// The names of the checks with an outcome, with the reasons.
    fn with(&self, outcome: &str) -> Vec<String> {
        let checks = self.report["checks"].as_array().unwrap().iter();
        checks
            .filter(|check| check["outcome"] == outcome)
            .map(|check| {
                format!("{}: {}", check["name"].as_str().unwrap(), check["because"].as_str().unwrap())
            })
            .collect()
    }
}

/// Requires that a fault is found by its check.
async fn finds(fault: Fault) {
    let (_, name, check, strict) = Fault::ALL.into_iter().find(|(known, ..)| *known == fault).unwrap();
    // The time between effect and answer is that in which it frees its key.
    let latency = if fault == Fault::FreesOnDrop { Duration::from_millis(400) } else { LATENCY };
    let address = start_slow(fault, latency).await;
    let mut more = vec!["--only", check];
    if strict {
        more.push("--strict");
    }
    let audited = Audited::of(address, &more).await;
    let failed = audited.with("fail");
    assert_eq!((failed.len(), audited.code), (1, 1), "{name}: {}", audited.report);
    assert!(failed[0].starts_with(check), "{name}: {failed:?}");
    assert!(audited.report["requests"].as_u64().unwrap() <= 200);
}

macro_rules! found {
    ($($test:ident: $fault:ident,)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                finds(Fault::$fault).await;
            }
        )*
    };
}

found! {
    fault_keys_ignored_is_found: Naive,
    fault_check_then_run_is_found: ChecksThenRuns,
    fault_by_key_only_is_found: ByKeyOnly,
    fault_a_refusal_that_tells_too_much_is_found: TellsTooMuch,
    fault_freed_on_drop_is_found: FreesOnDrop,
    fault_stuck_on_drop_is_found: SticksOnDrop,
    fault_cached_failures_is_found: CachesFailures,
    fault_failure_after_the_effect_is_found: FailsAfterEffect,
    fault_mixed_callers_is_found: MixesCallers,
    fault_blocked_callers_is_found: BlocksCallers,
    fault_replayed_cookies_is_found: ReplaysCookies,
    fault_replayed_connection_headers_is_found: ReplaysConnection,
    fault_truncated_keys_is_found: TruncatesKeys,
    fault_truncated_answers_is_found: TruncatesAnswers,
    fault_changed_status_is_found: ChangesStatus,
    fault_the_empty_text_as_a_key_is_found: EmptyIsAKey,
    fault_the_first_of_two_keys_is_found: FirstOfTwo,
    fault_parts_that_run_is_found: RunsParts,
    fault_keys_spoiled_by_parts_is_found: SpoiledByParts,
    fault_gets_with_stored_answers_is_found: ReplaysGets,
    fault_keys_split_by_version_is_found: SplitsVersions,
    fault_failing_copies_is_found: FailsCopies,
    fault_no_retry_after_is_found: SaysNoTime,
    fault_optional_keys_is_found: OptionalKeys,
    fault_unmarked_replays_is_found: Unmarked,
    fault_quotes_in_keys_is_found: KeepsQuotes,
}

#[tokio::test]
async fn every_fault_has_a_test() {
    let tests = include_str!("audit.rs");
    for (fault, name, ..) in Fault::ALL {
        assert!(tests.contains(&format!("{fault:?}")), "{name} has no test");
    }
}

#[tokio::test]
async fn a_good_service_passes_every_check() {
    let address = start(Fault::None).await;
    let slow = ["--strict", "--skip", "crash"];
    let audited = Audited::of(address, &slow).await;
    assert_eq!((audited.with("fail"), audited.code), (vec![], 0), "{}", audited.report);
    // It tells no expiry: a document does.
    let not_shown = audited.with("not-shown");
    assert!(not_shown.len() == 1 && not_shown[0].starts_with("expiry-told"), "{not_shown:?}");
    assert_eq!(audited.with("pass").len(), 19);
    assert!(audited.report["requests"].as_u64().unwrap() <= 200);
}

/// Requires that a service without a fault passes these checks, whatever its manners.
async fn is_good(manners: Fault, more: &[&str]) -> Audited {
    let audited = Audited::of(start(manners).await, more).await;
    assert_eq!((audited.with("fail"), audited.code), (vec![], 0), "{}", audited.report);
    assert_eq!(audited.with("advice"), [""; 0], "{}", audited.report);
    audited
}

#[tokio::test]
async fn effects_that_are_counted_late_accuse_no_check() {
    let audited = is_good(Fault::CountsLate, &["--strict", "--skip", "crash"]).await;
    assert_eq!(audited.with("pass").len(), 19, "{}", audited.report);
}

#[tokio::test]
async fn a_failure_that_may_be_repeated_later_is_no_end() {
    let audited = is_good(Fault::BacksOff, &["--only", "failing-first-try"]).await;
    assert_eq!(audited.with("pass").len(), 1, "{}", audited.report);
}

#[tokio::test]
async fn a_refusal_that_repeats_the_key_gives_nothing_away() {
    let audited = is_good(Fault::EchoesKey, &["--only", "other-payload-refused"]).await;
    assert_eq!(audited.with("pass").len(), 1, "{}", audited.report);
}

#[tokio::test]
async fn the_host_of_the_user_is_sent_with_every_request() {
    let host = format!("Host: {NAMED}");
    let checks = "replay-same,cut-after-request,cut-in-request,cut-in-answer,client-time-out,http2";
    let audited = is_good(Fault::NeedsHost, &["--header", &host, "--only", checks]).await;
    assert_eq!(audited.with("pass").len(), 6, "{}", audited.report);
}

#[tokio::test]
async fn a_limit_of_the_rate_is_neither_a_fault_nor_a_refusal_of_a_key() {
    let checks =
        "replay-same,other-payload-refused,missing-key,empty-key,long-keys,doubled-key,cut-in-answer";
    let audited = is_good(Fault::LimitsRate, &["--only", checks]).await;
    assert_eq!(audited.with("pass").len(), 7, "{}", audited.report);
    assert!(!audited.report["checks"].to_string().contains("refused with 429"), "{}", audited.report);
}

/// The count of a caller's own list does not see the other one's effects.
#[tokio::test]
async fn a_count_of_one_caller_accuses_nobody() {
    let own = ["--count-header", "Authorization: Bearer alice-secret", "--only", "other-caller"];
    let audited = is_good(Fault::CountsOwn, &own).await;
    assert_eq!(audited.with("pass").len(), 1, "{}", audited.report);
}

#[tokio::test]
async fn a_count_that_stops_rising_shows_nothing_and_accuses_nobody() {
    let audited = is_good(Fault::CountsPage, &["--only", "replay-same,other-caller"]).await;
    let not_shown = audited.with("not-shown");
    assert_eq!((audited.with("pass").len(), not_shown.len()), (1, 1), "{}", audited.report);
    assert!(not_shown[0].contains("does not rise any more"), "{not_shown:?}");
}

#[tokio::test]
async fn an_answer_that_is_late_for_once_is_awaited() {
    let audited = is_good(Fault::Pauses, &["--only", "cut-in-answer"]).await;
    assert_eq!(audited.with("pass").len(), 1, "{}", audited.report);
}

#[tokio::test]
async fn a_redirection_is_not_audited() {
    let base = arguments(start(Fault::Redirects).await);
    let output = run(&base.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("answered 307") && stderr.contains("/pay/?token=[hidden]"), "{stderr}");
}

#[tokio::test]
async fn a_count_that_hangs_does_not_outlast_the_audit() {
    let count = hostile(|stream| async move {
        let _open = stream;
        pending::<()>().await;
    })
    .await;
    let (url, count) = (format!("http://{}/pay", start(Fault::None).await), format!("http://{count}/"));
    let auth = "Authorization: Bearer alice-secret";
    let arguments =
        ["POST", &url, "--header", auth, "--json", "{}", "--count-url", &count, "--max-seconds", "2"];
    let output = timeout(Duration::from_secs(25), run(&arguments)).await.expect("it ends soon");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("--max-seconds"), "{stderr}");
}

#[tokio::test]
async fn a_count_that_breaks_is_not_asked_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let asked = dir.path().join("asked").display().to_string();
    let address = start(Fault::None).await;
    // It counts well for the first requests, and then breaks.
    let count = format!(
        "echo x >> '{asked}'; n=$(wc -l < '{asked}'); if [ $n -eq 1 ]; then echo 0; elif [ $n -le 3 ]; then echo 3; \
         else exit 1; fi"
    );
    let url = format!("http://{address}/pay");
    let auth = "Authorization: Bearer alice-secret";
    let output =
        run(&["POST", &url, "--header", auth, "--json", "{}", "--count-cmd", &count, "--repeat", "3"]).await;
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("cannot be counted any more"), "{stdout}");
    let asked = std::fs::read_to_string(asked).unwrap().lines().count();
    assert!(asked <= 5, "asked {asked} times: {stdout}");
}

#[tokio::test]
async fn a_verdict_survives_a_reader_that_goes_and_a_file_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (full, file) = (path("full.json"), path("r.html"));
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    for (fault, outputs, code) in [
        (Fault::Naive, vec![&full, &file], 1),
        (Fault::None, vec![&full, &file], 2),
        (Fault::Naive, vec![&file], 1),
        (Fault::None, vec![&file], 0),
    ] {
        let _ = std::fs::remove_file(&file);
        let base = arguments(start(fault).await);
        let mut audit = Command::new(env!("CARGO_BIN_EXE_nevertwice"));
        audit.arg("audit").args(base).args(["--only", "replay-same"]);
        audit.args(outputs.iter().flat_map(|file| ["--output", file.as_str()]));
        let mut audit =
            audit.stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        drop(audit.stdout.take());
        let status = timeout(PATIENCE, audit.wait()).await.expect("it ends").unwrap();
        assert_eq!(status.code(), Some(code), "{fault:?} {outputs:?}");
        assert!(std::fs::read_to_string(&file).unwrap().contains("replay-same"), "{fault:?}");
    }
}

#[tokio::test]
async fn text_of_answers_draws_no_lines_and_no_markup() {
    let numbers = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let address = hostile(move |mut stream| {
        let number = numbers.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move {
            let _ = stream.read(&mut [0; 4096]).await;
            let id = r#"\u001b]52;c;eA\u0007\r\n     pass  fake\r\n::error::fake <img onerror=x> ]]>"#;
            let body = format!(r#"{{"id":"{number:04}{id}"}}"#);
            let head = format!("HTTP/1.1 201 Created\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            let _ = stream.read(&mut [0; 4096]).await;
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let files = [path("r.json"), path("r.xml"), path("r.html")];
    let url = format!("http://{address}/pay");
    let arguments = ["POST", &url, "--json", "{}", "--id-pointer", "/id", "--only", "quoted-key"];
    let outputs: Vec<_> = files.iter().flat_map(|file| ["--output", file]).collect();
    let output = run(&[&arguments[..], &outputs].concat()).await;
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    assert!(stdout.contains("another id") && !stdout.contains('\u{1b}'), "{stdout}");
    assert!(
        !stdout.lines().any(|line| line.starts_with("     pass  fake") || line.starts_with("::")),
        "{stdout}"
    );
    let [json, xml, html] = files.map(|file| std::fs::read_to_string(file).unwrap());
    let report: Value = serde_json::from_str(&json).unwrap();
    let because = report["checks"][0]["because"].as_str().unwrap();
    assert!(because.contains("fake") && !because.contains(char::is_control), "{because}");
    assert!(html.contains("onerror") && !html.contains("<img"), "{html}");
    assert!(!xml.contains("<img") && !xml.contains('\u{1b}'), "{xml}");
}

#[tokio::test]
async fn without_a_count_nothing_is_claimed_that_was_not_seen() {
    let address = start(Fault::FreesOnDrop).await;
    let url = format!("http://{address}/pay");
    let output = run(&[
        "POST",
        &url,
        "--header",
        "Authorization: Bearer alice",
        "--json",
        r#"{"amount": 1}"#,
        "--report",
        "json",
        "--only",
        "cut-after-request,cut-in-answer,other-caller,crash,failing-first-try",
        "--patience-ms",
        "2000",
    ])
    .await;
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(5), "nothing was shown: {report}");
    let outcomes: Vec<_> =
        report["checks"].as_array().unwrap().iter().map(|check| &check["outcome"]).collect();
    assert_eq!(outcomes, ["not-shown"; 5], "{report}");
    let unknown = report["unknown"].to_string();
    for option in ["--count-cmd", "--id-pointer", "--other-header", "--fail-header", "--kill-cmd"] {
        assert!(unknown.contains(option), "{option}: {unknown}");
    }
}

#[tokio::test]
async fn the_same_seed_sends_the_same_keys_and_a_used_one_is_noticed() {
    let address = start(Fault::None).await;
    let only = ["--seed", "7", "--only", "replay-same"];
    let first = Audited::of(address, &only).await;
    assert_eq!(first.code, 0, "{}", first.report);
    let base = arguments(address);
    let again: Vec<_> = base.iter().map(String::as_str).chain(only).collect();
    let again = run(&again).await;
    let stderr = String::from_utf8_lossy(&again.stderr);
    assert_eq!(again.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("--seed"), "{stderr}");
    let keys = |report: &Value| report["checks"][0]["runs"][0]["events"][1]["request"]["headers"].clone();
    let elsewhere = Audited::of(start(Fault::None).await, &only).await;
    assert_eq!(keys(&first.report), keys(&elsewhere.report));
}

#[tokio::test]
async fn no_more_requests_are_sent_than_allowed() {
    let address = start(Fault::None).await;
    let audited = Audited::of(address, &["--max-requests", "12", "--repeat", "3"]).await;
    assert_eq!(audited.report["requests"], 12);
    assert!(audited.with("not-shown").iter().any(|reason| reason.contains("--max-requests")));
}

#[tokio::test]
async fn secrets_are_in_no_report() {
    let address = start(Fault::Naive).await;
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<_> =
        ["r.json", "r.xml", "r.html"].map(|name| dir.path().join(name).display().to_string()).into();
    let base = arguments(address);
    let outputs = files.iter().flat_map(|file| ["--output", file]);
    let all: Vec<_> = base
        .iter()
        .map(String::as_str)
        .chain(["--only", "replay-same,other-caller"])
        .chain(outputs)
        .collect();
    let output = run(&all).await;
    assert_eq!(output.status.code(), Some(1));
    let mut texts = vec![String::from_utf8(output.stdout).unwrap()];
    texts.extend(files.iter().map(|file| std::fs::read_to_string(file).unwrap()));
    for text in &texts {
        assert!(text.contains("replay-same"), "{text}");
        for secret in ["alice-secret", "bob-secret"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        // A cookie and the client secret of an answer.
        assert!(!text.contains("session=pay_"), "{text}");
        assert!((0..10).all(|digit| !text.contains(&format!("{digit}_secret"))), "{text}");
    }
    // One page that needs nothing else, with a picture of the failing case.
    let page = &texts[3];
    assert!(
        page.contains("<svg")
            && page.contains("prefers-color-scheme: dark")
            && page.contains("width=device-width")
    );
    assert!(!page.contains("<script") && !page.contains("<link") && !page.contains("src="), "{page}");
    assert!(texts[2].contains("<failure") && texts[2].contains(r#"tests="2""#), "{}", texts[2]);
}

#[tokio::test]
async fn the_price_of_double_effects_is_told_with_its_arithmetic() {
    let address = start(Fault::Naive).await;
    let more = ["--only", "replay-same", "--requests-per-day", "1000000", "--duplicate-rate", "0.001%"];
    let audited = Audited::of(address, &more).await;
    let cost = &audited.report["cost"];
    assert_eq!((cost["doubled"].as_u64(), cost["operations"].as_u64()), (Some(1), Some(1)), "{cost}");
    assert!((cost["per_day"]["value"].as_f64().unwrap() - 10.0).abs() < 1e-6, "{cost}");
    assert!(cost["arithmetic"].to_string().contains("Clopper-Pearson"), "{cost}");
}

#[tokio::test]
async fn a_line_of_curl_and_a_form_are_understood() {
    let address = start(Fault::None).await;
    let curl = format!(
        "curl -s -X POST http://{address}/pay -H 'Authorization: Bearer alice' --json '{{\"amount\": 1}}'"
    );
    let output = run(&["--curl", &curl, "--only", "replay-same", "--id-pointer", "/id"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let url = format!("http://{address}/pay");
    let form = [
        "POST",
        &url,
        "-H",
        "Authorization: Bearer alice",
        "--form",
        "amount=1",
        "--only",
        "replay-same,other-payload-refused",
    ];
    let output = run(&form).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).matches("     pass").count(), 2, "{output:?}");
}

#[tokio::test]
async fn wrong_usage_ends_with_2_and_says_what_to_do() {
    let address = start(Fault::None).await;
    let url = format!("http://{address}/pay");
    let auth = ["-H", "Authorization: Bearer alice"];
    let cases: &[(&[&str], &str)] = &[
        (&[], "--curl"),
        (&["GET", &url], "no effect"),
        (&["POST", "ftp://localhost"], "http://"),
        (&["POST", &url, "--json", "{"], "--json"),
        (&["POST", &url, "--header", "secretvalue"], "Name: value"),
        (&["POST", &url, "--only", "nonsense"], "replay-same"),
        (&["POST", &url, "--data", "@/no/such/file"], "/no/such/file"),
        (&["POST", &url, "--output", "report.pdf"], ".html"),
        (&["POST", &url, "--output", "/no/such/folder/report.html"], "no such folder"),
        (&["POST", &url, "--curl", "curl http://localhost"], "cannot be used with"),
        (&["POST", &url, "--json", "{}"], "401"),
        (&["POST", &url, "--json", "{}", auth[0], auth[1], "--id-pointer", "/nothing"], "--id-pointer"),
        (&["POST", &url, "--json", "{}", auth[0], auth[1], "--count-cmd", "echo three"], "no whole number"),
        (
            &["POST", &url, "--json", "{}", auth[0], auth[1], "--count-cmd", "echo 3"],
            "changed the count by 0",
        ),
        (&["POST", &url, "--json", "{}", auth[0], auth[1], "--count-cmd", "exit 7"], "--count-cmd"),
        (&["POST", &url, "--requests-per-day", "1", "--duplicate-rate", "200%"], "0.001%"),
    ];
    for (arguments, says) in cases {
        let output = run(arguments).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(says), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("secretvalue"), "{stderr}");
    }
}

#[tokio::test]
async fn a_foreign_host_is_refused_before_anything_is_sent() {
    for url in ["http://192.0.2.1/pay", "http://audit.invalid/pay", "http://[2001:db8::1]/pay"] {
        let output = run(&["POST", url]).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{url}: {stderr}");
        assert!(stderr.contains("--i-may-test"), "{stderr}");
    }
    let address = start(Fault::None).await;
    let url = format!("http://{address}/pay");
    let output = run(&["POST", &url, "--count-url", "http://192.0.2.1/count"]).await;
    assert_eq!(output.status.code(), Some(4));
}

#[tokio::test]
async fn the_document_names_every_check() {
    let output = run(&["--list"]).await;
    let list = String::from_utf8(output.stdout).unwrap();
    let names: Vec<_> = list.lines().filter(|line| !line.starts_with(' ')).collect();
    let page = include_str!("../../docs/AUDIT.md");
    assert_eq!(names.len(), 21);
    assert_eq!(
        page.lines()
            .filter(|line| names.iter().any(|name| line.starts_with(&format!("| `{name}` |"))))
            .count(),
        21
    );
}

/// A certificate for localhost, made by openssl.
async fn certificate(dir: &Path) {
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args(["-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost"]);
    openssl.args([
        "-addext",
        "subjectAltName=DNS:localhost",
        "-addext",
        "basicConstraints=critical,CA:FALSE",
    ]);
    let output = openssl.current_dir(dir).output().await.expect("openssl is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn https_is_audited_with_a_certificate_of_the_users() {
    https(Vec::new()).await;
}

#[tokio::test]
async fn https_without_http2_is_not_down_nor_is_a_connection_that_breaks_once() {
    https(vec![b"http/1.1".to_vec()]).await;
}

/// Audits a service by HTTPS with these protocols, which drops some connections unanswered.
async fn https(protocols: Vec<Vec<u8>>) {
    let dir = tempfile::tempdir().unwrap();
    certificate(dir.path()).await;
    let pem = |name: &str| dir.path().join(name);
    let certificate = CertificateDer::from_pem_file(pem("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(pem("key.pem")).unwrap();
    let mut config =
        rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .unwrap();
    config.alpn_protocols = protocols;
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let numbers = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let connections = std::sync::atomic::AtomicU32::new(0);
    let address = hostile(move |stream| {
        let (acceptor, numbers) = (acceptor.clone(), numbers.clone());
        let breaks = connections.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 5 == 4;
        async move {
            if breaks {
                return;
            }
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let _ = stream.read(&mut [0; 4096]).await;
            let id = numbers.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let body = format!(r#"{{"id":"{id:04}"}}"#);
            let _ = stream
                .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{body}").as_bytes())
                .await;
            let _ = stream.read(&mut [0; 4096]).await;
        }
    })
    .await;
    let url = format!("https://localhost:{}/pay", address.port());
    let trusted = pem("cert.pem").display().to_string();
    let arguments =
        ["POST", &url, "--json", "{}", "--only", "replay-same,http2,cut-in-answer", "--id-pointer", "/id"];
    let output = run(&[&arguments[..], &["--ca-cert", &trusted]].concat()).await;
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("3 different ids of 1 operation"), "{stdout}");
    assert!(stdout.contains("does not speak HTTP/2"), "{stdout}");
    assert!(!stdout.contains("accepts no connections"), "{stdout}");
    let output = run(&arguments).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("no TLS"), "{stderr}");
}

/// Starts a server that does as told with each connection.
async fn hostile<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// Requires that an audit of a server that never answers well ends, with 3 and a reason.
async fn is_unreachable(address: SocketAddr, says: &str) {
    let url = format!("http://{address}/pay");
    let arguments = ["POST", &url, "--json", "{}", "--timeout-ms", "5000"];
    let output = timeout(Duration::from_secs(60), run(&arguments)).await.expect("it ends soon");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains(says), "{stderr}");
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up() {
    let address = hostile(|stream| async move {
        let _open = stream;
        pending::<()>().await;
    });
    is_unreachable(address.await, "no whole answer within 5000 ms").await;
}

#[tokio::test]
async fn a_server_that_answers_garbage_is_given_up() {
    let address = hostile(|mut stream| async move {
        let _ = stream.write_all(&[0xff; 4096]).await;
        let _ = stream.read(&mut [0; 1024]).await;
    });
    is_unreachable(address.await, "no valid answer").await;
}

#[tokio::test]
async fn a_server_that_closes_at_once_is_given_up() {
    is_unreachable(hostile(|stream| async move { drop(stream) }).await, "no valid answer").await;
}

#[tokio::test]
async fn an_endless_body_is_bounded() {
    let address = hostile(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {}
    });
    is_unreachable(address.await, "more than 1048576 bytes").await;
}

#[tokio::test]
async fn an_endless_head_is_bounded() {
    let address = hostile(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while stream.write_all(b"x-more: and more and more and more\r\n").await.is_ok() {}
    });
    is_unreachable(address.await, "no valid answer").await;
}

#[tokio::test]
async fn a_server_that_drips_is_given_up() {
    let address = hostile(|mut stream| async move {
        let _ = stream.read(&mut [0; 4096]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await;
        while stream.write_all(b"x").await.is_ok() {
            sleep(Duration::from_millis(50)).await;
        }
    });
    is_unreachable(address.await, "no whole answer").await;
}

#[tokio::test]
async fn a_closed_port_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    is_unreachable(address, "no connections").await;
}

#[tokio::test]
async fn a_server_that_hangs_after_the_first_requests_fails_and_ends_in_time() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    let seen = Arc::new(AtomicU32::new(0));
    let address = hostile(move |mut stream| {
        let number = seen.fetch_add(1, Ordering::SeqCst);
        async move {
            let _ = stream.read(&mut [0; 4096]).await;
            if number < 3 {
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
            pending::<()>().await;
        }
    })
    .await;
    let url = format!("http://{address}/pay");
    let output =
        run(&["POST", &url, "--json", r#"{"a": 1}"#, "--timeout-ms", "3000", "--max-seconds", "10"]).await;
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{stdout}");
    assert!(stdout.contains("no whole answer within 3000 ms"), "{stdout}");
    assert!(stdout.contains("--max-seconds"), "{stdout}");
}

/// A service that runs in a process of its own, for [`served`]: its fault, port and log.
const SERVED: &str = "NEVERTWICE_AUDIT_TARGET";

/// Runs a service, if it is started as one; as a test it does nothing.
#[tokio::test]
async fn served() {
    let Ok(what) = std::env::var(SERVED) else { return };
    let [fault, port, log] = what.split(' ').collect::<Vec<_>>()[..] else { panic!("{what}") };
    let listener = TcpListener::bind(("127.0.0.1", port.parse().unwrap())).await.unwrap();
    let target = Target::new(Fault::named(fault).unwrap(), Duration::from_millis(400), Some(Path::new(log)));
    axum::serve(listener, target.router()).await.unwrap();
}

/// Audits a service that is killed and started again.
async fn crashed(fault: Fault) -> Audited {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (log, pid) = (path("log"), path("pid"));
    let program = std::env::current_exe().unwrap().display().to_string();
    let start = format!(
        "{SERVED}='{} {} {log}' '{program}' served --exact --nocapture & echo $! > '{pid}'",
        fault.name(),
        address.port()
    );
    let kill = format!("kill -9 $(cat '{pid}')");
    assert!(Command::new("sh").args(["-c", &start]).stdout(Stdio::null()).status().await.unwrap().success());
    let up = async {
        while TcpStream::connect(address).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, up).await.expect("it starts");
    let audited =
        Audited::of(address, &["--only", "crash", "--kill-cmd", &kill, "--start-cmd", &start]).await;
    assert!(Command::new("sh").args(["-c", &kill]).status().await.unwrap().success());
    audited
}

#[tokio::test]
async fn fault_records_that_a_crash_forgets_is_found() {
    let audited = crashed(Fault::ForgetsOnCrash).await;
    assert_eq!((audited.with("fail").len(), audited.code), (1, 1), "{}", audited.report);
}

#[tokio::test]
async fn a_service_that_survives_crashes_passes() {
    let audited = crashed(Fault::None).await;
    assert_eq!((audited.with("pass").len(), audited.code), (1, 0), "{}", audited.report);
    assert!(audited.with("pass")[0].contains("2 crashes under way"), "{}", audited.report);
}
