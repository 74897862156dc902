//! `export`: all records as JSON Lines.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::Args;
use nevertwice::Stamp;
use serde::{Deserialize, Serialize};

use super::fitness::warn_if_stale;
use crate::args::Global;
use crate::failure::Failure;
use crate::session::{Access, Kind, Session};
use crate::view::state;
use crate::walk::{Found, Walk};

/// The version of the format.
pub(super) const VERSION: u32 = 1;

/// Writes all records that have not expired as JSON Lines, for `import` into another store. The
/// output holds responses and checkpoints. Stop the applications first: what they change meanwhile
/// may be missing. A replica, a standby and a Redis that evicts keys are refused. The events of an
/// outbox are not exported: let its relay deliver them first.
#[derive(Debug, Args)]
pub struct Export {
    /// A new file, readable for its owner only, instead of stdout
    #[arg(long, short, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Exports what a replica or standby has, which may be late, or a Redis that evicts or has
    /// evicted keys
    #[arg(long)]
    accept_stale: bool,
}

/// A line of an export.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub(super) enum Line {
    /// The first line.
    Start {
        /// [`VERSION`].
        version: u32,
        /// The kind of store, and its identity, which its tokens carry.
        store: String,
        store_id: String,
        /// The store's time, which no fence that it has given is above.
        now: u64,
    },
    /// A record.
    Record {
        id: String,
        /// The scope and state, for readers; the record itself counts.
        scope: String,
        state: String,
        stamp: u64,
        fence: u64,
        /// The encoded record, in base64.
        record: String,
    },
    /// The last line: without it the file was cut.
    End { records: u64, unreadable: u64, now: u64 },
}

impl Export {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        if self.output.is_none() && std::io::stdout().is_terminal() {
            return Err(Failure::Refused(
                "an export holds responses: redirect it, or name a file by --output".to_owned(),
            ));
        }
        let session = Session::open(global, Access::Read).await?;
        // The last line says that nothing is missing.
        if warn_if_stale(&session) && !self.accept_stale {
            return Err(Failure::Refused(
                "records may be missing or old here: export from the primary, or accept that by --accept-stale"
                    .to_owned(),
            ));
        }
        let counts = match &self.output {
            None => {
                write(&session, &mut std::io::stdout().lock()).await.map_err(|failure| match failure {
                    Failure::NoReader => Failure::Refused(
                        "the reader of the export has gone before its end: export it again".to_owned(),
                    ),
                    other => other,
                })?
            }
            Some(path) => {
                let mut file = create(path)?;
                let counts = write(&session, &mut file).await?;
                file.sync_all().map_err(|error| cannot(path, &error))?;
                counts
            }
        };
        if !matches!(session.kind, Kind::Redis(_)) {
            // Its tables are the application's to name, so it is not known if there is one.
            let _ = writeln!(
                anstream::stderr(),
                "warning: the events of an outbox are not in an export: let its relay deliver those \
                 that are pending before the old store is given up"
            );
        }
        let (records, unreadable) = counts;
        if unreadable > 0 {
            return Err(Failure::Refused(format!(
                "{records} records exported; {unreadable} cannot be read and are missing: see `check`"
            )));
        }
        if records == 0 {
            return Err(Failure::NothingFound("there are no records".to_owned()));
        }
        let _ = writeln!(anstream::stderr(), "{records} records exported");
        Ok(())
    }
}

/// Writes all lines, and returns the numbers of records and of unreadable ones.
async fn write(session: &Session, out: &mut impl Write) -> Result<(u64, u64), Failure> {
    let page = session.page(false, None, 1).await?;
    line(
        out,
        &Line::Start {
            version: VERSION,
            store: session.store.name().to_owned(),
            store_id: session.engine.store_id().to_string(),
            now: page.now.0,
        },
    )?;
    let (mut records, mut unreadable, mut now) = (0, 0, page.now);
    let mut walk = Walk::all(session, "exporting");
    while let Some(step) = walk.next().await? {
        now = now.max(step.now);
        unreadable += step.unreadable.len() as u64;
        for Found { id, record, seen } in step.found {
            now = now.max(record.stamp);
            line(
                out,
                &Line::Record {
                    id: id.to_string(),
                    scope: seen.scope,
                    state: state(seen.state).to_owned(),
                    stamp: record.stamp.0,
                    fence: record.fence.0,
                    record: BASE64_STANDARD.encode(record.encode(&id, Stamp::ZERO)),
                },
            )?;
            records += 1;
        }
    }
    line(out, &Line::End { records, unreadable, now: now.0 })?;
    out.flush()?;
    Ok((records, unreadable))
}

fn line(out: &mut impl Write, line: &Line) -> Result<(), Failure> {
    let text = serde_json::to_string(line).map_err(std::io::Error::from)?;
    Ok(writeln!(out, "{text}")?)
}

/// Creates a file for its owner only. One that exists is left alone.
fn create(path: &Path) -> Result<File, Failure> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path).map_err(|error| cannot(path, &error))
}

fn cannot(path: &Path, error: &std::io::Error) -> Failure {
    Failure::Usage(format!("{} cannot be written: {error}", path.display()))
}
