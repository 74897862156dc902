//! `nevertwice audit` on the crate's own example, `payments_axum`, crashes included.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(180);

/// The example's program: the one that `PAYMENTS_AXUM` names, or a new build.
async fn program() -> PathBuf {
    if let Some(built) = std::env::var_os("PAYMENTS_AXUM") {
        return built.into();
    }
    let tests = std::env::current_exe().unwrap();
    let built = tests.ancestors().nth(2).expect("tests are in target/debug/deps");
    let program = built.join("payments_axum");
    let target = built.parent().unwrap();
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "-p", "payments_axum", "--target-dir"]).arg(target);
    assert!(build.current_dir(env!("CARGO_MANIFEST_DIR")).status().await.unwrap().success());
    program
}

/// Commands that start and kill the example on a port, with its files in a folder.
fn commands(program: &Path, dir: &Path, port: u16) -> (String, String) {
    let (dir, program) = (dir.display(), program.display());
    let start = format!(
        // `exec`: the process of the shell becomes that of the program.
        "(cd '{dir}' && exec '{program}' --port {port} --latency-ms 300 --lease-ms 1500 >/dev/null 2>&1) & \
         echo $! > '{dir}/pid'"
    );
    (start, format!("kill -9 $(cat '{dir}/pid')"))
}

#[tokio::test]
async fn the_payments_example_passes_every_check() {
    let program = program().await;
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let (start, kill) = commands(&program, dir.path(), address.port());
    let sh = |line: String| async move {
        Command::new("sh")
            .args(["-c", &line])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .await
            .unwrap()
    };
    assert!(sh(start.clone()).await.success());
    let up = async {
        while TcpStream::connect(address).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, up).await.expect("it starts");
    let url = format!("http://{address}/v1/payment_intents");
    let ledger = format!("http://{address}/ledger");
    let mut audit = Command::new(env!("CARGO_BIN_EXE_nevertwice"));
    audit.args(["audit", "POST", &url, "--header", "Authorization: Bearer sk_test_1"]);
    audit.args([
        "--other-header",
        "Authorization: Bearer sk_test_2",
        "--json",
        r#"{"amount": 4200, "currency": "eur"}"#,
    ]);
    audit.args(["--count-url", &ledger, "--id-pointer", "/id", "--patience-ms", "6000"]);
    audit.args(["--kill-cmd", &kill, "--start-cmd", &start, "--report", "json"]);
    let output = timeout(PATIENCE, audit.kill_on_drop(true).output()).await.expect("it ends").unwrap();
    sh(kill).await;
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let with = |outcome: &str| -> Vec<_> {
        let checks = report["checks"].as_array().unwrap().iter();
        checks
            .filter(|check| check["outcome"] == outcome)
            .map(|check| check["name"].as_str().unwrap())
            .collect()
    };
    assert_eq!((with("fail"), output.status.code()), (vec![], Some(0)), "{report}");
    assert_eq!(with("advice"), [""; 0], "{report}");
    // It has no hook that fails, sets no cookies, and tells no expiry.
    let mut not_shown = with("not-shown");
    // Another package of the same build may add HTTP/2 to it.
    not_shown.retain(|name| *name != "http2");
    assert_eq!(not_shown, ["failing-first-try", "replayed-cookies", "expiry-told"], "{report}");
    assert!(with("pass").len() >= 17, "{report}");
}
