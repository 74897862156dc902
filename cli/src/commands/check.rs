//! `check`: the store and each of its records.

use clap::Args;
use nevertwice::{Durability, StoreError};
use serde::Serialize;

use crate::args::Global;
use crate::failure::Failure;
use crate::output::{BAD, GOOD, Output, WARN, styled};
use crate::session::{Access, Kind, Session};
use crate::walk::Walk;

/// Checks the store: of SQLite the whole file, and the records against their index; of Redis and
/// PostgreSQL the settings and their level of durability; of each, that every record can be read.
#[derive(Debug, Args)]
pub struct Check {
    /// Does not read the records
    #[arg(long)]
    settings_only: bool,
}

/// The result of a check.
#[derive(Debug, Serialize)]
struct Report {
    store: String,
    store_id: String,
    durability: Option<String>,
    records: Option<u64>,
    faults: Vec<String>,
    warnings: Vec<String>,
}

impl Check {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let session = Session::open(global, Access::Read).await?;
        let mut report = Report {
            store: session.store.name().to_owned(),
            store_id: session.engine.store_id().to_string(),
            durability: durability(&session),
            records: None,
            faults: Vec::new(),
            warnings: warnings(&session),
        };
        if !self.settings_only {
            report.read(&session).await?;
        }
        let output = Output { json: global.json };
        let written = match output.json {
            true => output.json(&report),
            false => report.show(output),
        };
        match report.faults.len() {
            0 => written,
            count => Err(Failure::Refused(format!("{count} faults were found"))),
        }
    }
}

impl Report {
    async fn read(&mut self, session: &Session) -> Result<(), Failure> {
        if let Kind::SqliteReader(reader) = &session.kind {
            let reader = reader.clone();
            let checked = tokio::task::spawn_blocking(move || reader.check()).await;
            let checked =
                checked.map_err(|error| Failure::Refused(format!("the check ended early: {error}")))?;
            self.faults.extend(damage(checked)?);
            if !self.faults.is_empty() {
                // A damaged file may have no readable pages.
                return Ok(());
            }
        }
        let mut walk = Walk::all(session, "reading");
        let mut records = 0;
        while let Some(step) = walk.next().await? {
            records += (step.found.len() + step.expired.len()) as u64;
            self.faults.extend(step.unreadable.iter().map(|id| format!("{id}: the record cannot be read")));
        }
        self.records = Some(records);
        Ok(())
    }

    fn show(&self, output: Output) -> Result<(), Failure> {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let rows = [
            ("store", self.store.clone()),
            ("id", self.store_id.clone()),
            ("an acknowledged write survives", or_dash(&self.durability)),
            ("records read", or_dash(&self.records.map(|count| count.to_string()))),
        ];
        output.table(&[], rows.map(|(name, value)| vec![name.to_owned(), value]).into())?;
        for warning in &self.warnings {
            output.line(&format!("{}: {warning}", styled(WARN, "warning")))?;
        }
        for fault in &self.faults {
            output.line(&format!("{}: {fault}", styled(BAD, "fault")))?;
        }
        match self.faults.is_empty() {
            true => output.line(&styled(GOOD, "no faults")),
            false => output.line("a record that cannot be read is removed by `forget ID`: see the runbook"),
        }
    }
}

/// Turns an error that says that the file is damaged into a fault.
fn damage(checked: Result<Vec<String>, StoreError>) -> Result<Vec<String>, Failure> {
    match checked {
        Ok(faults) => Ok(faults),
        Err(error) if error.is_transient() => Err(error.into()),
        Err(error) => Ok(vec![error.to_string()]),
    }
}

/// Returns the durability, which a SQLite file does not show: it is the writers' setting.
fn durability(session: &Session) -> Option<String> {
    let text = match session.store.durability() {
        _ if matches!(session.kind, Kind::SqliteReader(_)) => {
            "a power cut, unless the application chose otherwise"
        }
        Durability::Memory => "nothing: a restart of the server loses it",
        Durability::Process => "a killed server, not a power cut",
        Durability::Power => "a power cut",
        Durability::Replicated(replicas) => {
            return Some(format!("the loss of the primary: {replicas} replicas have it"));
        }
    };
    Some(text.to_owned())
}

fn warnings(session: &Session) -> Vec<String> {
    match &session.kind {
        Kind::SqliteReader(_) => Vec::new(),
        Kind::Sqlite(store) => store.warnings().iter().map(ToString::to_string).collect(),
        Kind::Redis(store) => store.warnings().iter().map(ToString::to_string).collect(),
        Kind::Postgres(store) => store.warnings().iter().map(ToString::to_string).collect(),
    }
}
