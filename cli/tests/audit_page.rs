//! The report of `nevertwice audit` as a page, in headless Chromium: on a phone, in light and dark.

#[path = "support/target.rs"]
mod target;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::timeout;

use self::target::{Fault, Target};

const PATIENCE: Duration = Duration::from_secs(150);

/// A page that shows the report as wide as a phone, and writes down its measures.
const PHONE: &str = r#"<!doctype html><iframe id="f" width="360" height="700" src="report.html"></iframe><pre id="o"></pre>
<script>
f.onload = () => {
  const page = f.contentDocument, window = f.contentWindow;
  const look = element => window.getComputedStyle(element);
  const text = page.querySelector("svg text"), section = page.querySelector("section.fail");
  o.textContent = JSON.stringify({
    overflow: page.documentElement.scrollWidth - window.innerWidth,
    pictures: page.querySelectorAll("section.fail svg").length,
    failed: page.querySelectorAll("section.fail").length,
    first: page.querySelector("section").className,
    text: parseFloat(look(text).fontSize) * text.getScreenCTM().a,
    bars: [...page.querySelectorAll("svg rect")].filter(bar => bar.getBoundingClientRect().width > 0).length,
    page: look(page.body).backgroundColor, ink: look(page.body).color,
    picture: look(text).fill, badge: look(section.querySelector(".badge")).color,
  });
};
</script>"#;

/// Writes the report of a service that fails.
async fn report(dir: &Path) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = Target::new(Fault::ChecksThenRuns, Duration::from_millis(60), None);
    tokio::spawn(axum::serve(listener, target.router()).into_future());
    let mut audit = Command::new(env!("CARGO_BIN_EXE_nevertwice"));
    audit.args([
        "audit",
        &format!("http://{address}/pay"),
        "--json",
        r#"{"amount": 1}"#,
        "--id-pointer",
        "/id",
    ]);
    audit.args([
        "--header",
        "Authorization: Bearer <b>&\"'</b>",
        "--only",
        "replay-same,simultaneous-copies",
    ]);
    audit.args(["--output", "report.html"]).current_dir(dir).stdout(Stdio::null());
    let status = timeout(PATIENCE, audit.kill_on_drop(true).status()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(1));
}

/// Measures the report in a browser whose user prefers dark or light pages.
async fn measured(dir: &Path, dark: bool) -> Value {
    let mut browser = Command::new("chromium");
    let scheme = if dark {
        "--blink-settings=preferredColorScheme=0"
    } else {
        "--blink-settings=preferredColorScheme=1"
    };
    browser.args(["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files"]);
    browser.args(["--virtual-time-budget=5000", scheme, "--dump-dom"]);
    browser.arg(format!("--user-data-dir={}", dir.join("profile").display()));
    browser.arg(format!("file://{}", dir.join("phone.html").display())).stderr(Stdio::null());
    let output = timeout(PATIENCE, browser.kill_on_drop(true).output()).await.expect("it ends");
    let output = output.expect("chromium is installed (apt-get install chromium)");
    let page = String::from_utf8_lossy(&output.stdout).into_owned();
    let measures = page.split("<pre id=\"o\">").nth(1).and_then(|rest| rest.split("</pre>").next());
    serde_json::from_str(measures.unwrap_or_default()).unwrap_or_else(|error| panic!("{error}: {page}"))
}

/// The contrast of two colours `rgb(r, g, b)`, by WCAG.
fn contrast(one: &Value, other: &Value) -> f64 {
    let light = |color: &Value| {
        let text = color.as_str().unwrap().trim_start_matches("rgb(").trim_end_matches(')');
        let linear = |part: &str| {
            let part = part.trim().parse::<f64>().unwrap() / 255.0;
            if part <= 0.04045 { part / 12.92 } else { ((part + 0.055) / 1.055).powf(2.4) }
        };
        text.split(',')
            .map(linear)
            .zip([0.2126, 0.7152, 0.0722])
            .map(|(part, weight)| part * weight)
            .sum::<f64>()
    };
    let (one, other) = (light(one) + 0.05, light(other) + 0.05);
    one.max(other) / one.min(other)
}

#[tokio::test]
async fn the_page_is_readable_on_a_phone_and_in_the_dark() {
    let dir = tempfile::tempdir().unwrap();
    report(dir.path()).await;
    std::fs::write(dir.path().join("phone.html"), PHONE).unwrap();
    let mut pages = Vec::new();
    for dark in [false, true] {
        let seen = measured(dir.path(), dark).await;
        assert!(seen["overflow"].as_f64().unwrap() <= 0.0, "nothing is cut off at the side: {seen}");
        assert_eq!((&seen["failed"], &seen["pictures"]), (&1.into(), &1.into()), "{seen}");
        assert!(seen["first"].as_str().unwrap().contains("fail"), "failures come first: {seen}");
        assert!(seen["text"].as_f64().unwrap() >= 10.0, "the text of the picture is readable: {seen}");
        assert!(seen["bars"].as_u64().unwrap() >= 9, "a bar for each copy: {seen}");
        for ink in ["ink", "picture", "badge"] {
            assert!(contrast(&seen["page"], &seen[ink]) >= 4.5, "{ink}: {seen}");
        }
        pages.push(seen["page"].clone());
    }
    assert_ne!(pages[0], pages[1]);
}
