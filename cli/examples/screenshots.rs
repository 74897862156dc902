//! Writes the pictures of `docs/operations` from the output of the command itself:
//!
//! ```text
//! cargo run -p nevertwice-cli --example screenshots
//! ```

use std::error::Error;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anstyle_svg::Term;
use nevertwice::{Begin, Engine, Lease, Request, Retry, SqliteStore};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let build = ["build", "--quiet", "-p", "nevertwice-cli", "--message-format", "json-render-diagnostics"];
    let built = Command::new(env!("CARGO")).current_dir(&root).args(build).output()?;
    let binary = executable(&String::from_utf8(built.stdout)?).ok_or("the command was not built")?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("keys.db");
    fill(&file).await?;
    let id = Request::new(["acct_42", "charges"], "ord-1007")?.id().to_string();
    for (name, line) in [
        ("unresolved", "unresolved"),
        ("show", &format!("show {id}")),
        ("resolve", &format!("resolve {id} rerun --dry-run")),
        ("stats", "stats"),
        ("watch", "watch --once"),
        ("check", "check"),
    ] {
        let mut command = Command::new(&binary);
        command.args(line.split(' ')).env("CLICOLOR_FORCE", "1").env_remove("NO_COLOR");
        let output = command.env("NEVERTWICE_STORE", format!("sqlite:{}", file.display())).output()?;
        let text = format!("$ nevertwice {line}\n{}", String::from_utf8(output.stdout)?);
        std::fs::write(root.join(format!("docs/operations/{name}.svg")), Term::new().render_svg(&text))?;
    }
    Ok(())
}

/// Finds the path of the command in the messages of cargo.
fn executable(messages: &str) -> Option<String> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut found = messages.filter_map(|message| Some(message["executable"].as_str()?.to_owned()));
    found.find(|path| path.ends_with("nevertwice"))
}

async fn fill(file: &Path) -> Result<(), Box<dyn Error>> {
    let engine = Engine::builder(SqliteStore::open(file)?).holder("web-3").build()?;
    for number in 1000..1007 {
        begin(&engine, Request::new(["acct_42", "charges"], format!("ord-{number}"))?)
            .await?
            .complete("{}")
            .await?;
    }
    let marked = Request::new(["acct_42", "charges"], "ord-1007")?.lease(Duration::from_millis(50));
    let lease = begin(&engine, marked).await?;
    lease.mark_effect().await?;
    drop(lease);
    let exports = Request::new("exports", "2026-11")?;
    begin(&engine, exports).await?.fail("no answer", Retry::Unresolved).await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    Ok(())
}

async fn begin(engine: &Engine, request: Request) -> Result<Lease, Box<dyn Error>> {
    match engine.begin(&request).await? {
        Begin::Acquired(lease) => Ok(lease),
        other => Err(format!("{other:?}").into()),
    }
}
